//! Skeleton; being written.
#![allow(unused_variables, missing_docs)]
use crate::Store;
use crate::types::*;
use async_trait::async_trait;
use mnemosyne_core::{Budget, Event, NewEvent, Problem, Run, RunState, Usage, WorkItem};
use std::sync::Arc;
use tokio::sync::watch;

pub struct SqliteStore {}
impl SqliteStore {
    pub fn open(path: &std::path::Path) -> Result<Self, Problem> {
        unimplemented!()
    }
    pub fn open_with_clock(path: &std::path::Path, clock: Arc<dyn Fn() -> i64 + Send + Sync>) -> Result<Self, Problem> {
        unimplemented!()
    }
}
#[async_trait]
impl Store for SqliteStore {
    fn boot(&self) -> &str {
        unimplemented!()
    }
    fn now(&self) -> i64 {
        unimplemented!()
    }
    fn changed(&self) -> watch::Receiver<u64> {
        unimplemented!()
    }
    async fn poll_foreign(&self) -> Result<bool, Problem> {
        unimplemented!()
    }
    async fn submit_run(&self, run: Run, idempotency_key: Option<String>) -> Result<String, Problem> {
        unimplemented!()
    }
    async fn adopt_run(&self, run: &str, budget: Option<Budget>) -> Result<RunSnapshot, Problem> {
        unimplemented!()
    }
    async fn run(&self, run: &str) -> Result<Option<RunSnapshot>, Problem> {
        unimplemented!()
    }
    async fn runs(&self) -> Result<Vec<Run>, Problem> {
        unimplemented!()
    }
    async fn stop_run(&self, run: &str, state: RunState, problem: Problem) -> Result<(), Problem> {
        unimplemented!()
    }
    async fn cancel_run(&self, run: &str, reason: &str) -> Result<(), Problem> {
        unimplemented!()
    }
    async fn submit_item(&self, item: WorkItem, idempotency_key: Option<String>) -> Result<String, Problem> {
        unimplemented!()
    }
    async fn item(&self, item: &str) -> Result<Option<ItemSnapshot>, Problem> {
        unimplemented!()
    }
    async fn cancel_item(&self, item: &str, reason: &str) -> Result<(), Problem> {
        unimplemented!()
    }
    async fn claim(&self, request: ClaimRequest) -> Result<Option<Claimed>, Problem> {
        unimplemented!()
    }
    async fn renew(&self, item: &str, epoch: u64, lease_ms: i64) -> Result<(), Problem> {
        unimplemented!()
    }
    async fn complete(&self, completion: Completion) -> Result<(), Problem> {
        unimplemented!()
    }
    async fn release(&self, release: Release) -> Result<Released, Problem> {
        unimplemented!()
    }
    async fn give_up(&self, item: &str, epoch: u64, problem: Problem, events: Vec<NewEvent>) -> Result<(), Problem> {
        unimplemented!()
    }
    async fn journal(&self, item: &str, attempt: u32) -> Result<Vec<StepRecord>, Problem> {
        unimplemented!()
    }
    async fn start_step(&self, step: StartStep) -> Result<u64, Problem> {
        unimplemented!()
    }
    async fn finish_step(&self, step: FinishStep) -> Result<(), Problem> {
        unimplemented!()
    }
    async fn reserve(&self, reserve: Reserve) -> Result<String, Problem> {
        unimplemented!()
    }
    async fn settle(&self, item: &str, epoch: u64, reservation: &str, usage: Usage) -> Result<(), Problem> {
        unimplemented!()
    }
    async fn put_artifact(
        &self,
        item: &str,
        epoch: u64,
        name: &str,
        content: Vec<u8>,
    ) -> Result<mnemosyne_core::ArtifactRef, Problem> {
        unimplemented!()
    }
    async fn artifact(&self, run: &str, name: &str) -> Result<Option<Vec<u8>>, Problem> {
        unimplemented!()
    }
    async fn append_events(&self, events: Vec<NewEvent>) -> Result<u64, Problem> {
        unimplemented!()
    }
    async fn events(&self, query: EventQuery) -> Result<Vec<Event>, Problem> {
        unimplemented!()
    }
    async fn post_command(&self, command: NewCommand) -> Result<(), Problem> {
        unimplemented!()
    }
    async fn take_commands(&self) -> Result<Vec<NewCommand>, Problem> {
        unimplemented!()
    }
    async fn queue(&self) -> Result<QueueCounts, Problem> {
        unimplemented!()
    }
    fn is_dead(&self, boot: &str) -> bool {
        unimplemented!()
    }
    async fn pid_of(&self, boot: &str) -> Result<Option<u32>, Problem> {
        unimplemented!()
    }
}
