//! The store in memory: the same promises but survival, for tests of everything above the store and for a standalone
//! bridge. It keeps the newest 20,000 events.
//!
//! One mutex, no thread, no I/O, no timer: every call is done when it is first polled, so it goes together with tokio's
//! paused clock. Several "processes" are several handles on the same data ([`MemoryStore::another_boot`]).
//!
//! An operation first checks everything and then changes everything: a refusal leaves nothing behind (**DUR-2**).

mod operations;
mod rows;

use crate::clock::{Clock, system_clock};
use crate::types::{
    ClaimRequest, Claimed, Completion, DeadLetter, EventQuery, FinishStep, ItemEnd, ItemJournal, ItemSnapshot,
    NewCommand, Prune, Pruned, QueueCounts, Ready, Release, Released, Reserve, RunSnapshot, StartStep, StepRecord,
    Submission, UnderWay,
};
use crate::waiting::Waiting;
use crate::{Store, rules};
use async_trait::async_trait;
use mnemosyne_core::{ArtifactRef, Attempt, Budget, Event, NewEvent, Problem, Run, RunState, Usage, WorkItem};
use operations::Operation;
use rows::{BootRow, Data};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{oneshot, watch};

/// What all handles share.
struct Shared {
    /// A standard mutex: it is never held across an await, and nothing below it waits.
    data: Mutex<Data>,
    /// Told after the mutex is released, as a database tells after the commit.
    changed: watch::Sender<u64>,
    ready: watch::Sender<Ready>,
    waiting: Waiting,
}

/// A handle on a store in memory; one boot.
pub struct MemoryStore {
    boot: String,
    clock: Clock,
    shared: Arc<Shared>,
    /// Commits of other boots that `poll_foreign` has reported.
    seen_foreign: AtomicU64,
}

impl MemoryStore {
    /// An empty store on the wall clock.
    pub fn new() -> Self {
        Self::with_clock(system_clock())
    }

    /// An empty store on a clock of the caller.
    pub fn with_clock(clock: Clock) -> Self {
        let shared = Shared {
            data: Mutex::new(Data::default()),
            changed: watch::Sender::new(0),
            ready: watch::Sender::default(),
            waiting: Waiting::default(),
        };
        Self::handle(Arc::new(shared), clock)
    }

    /// Another boot on the same data, as another process would be.
    pub fn another_boot(&self) -> MemoryStore {
        Self::handle(Arc::clone(&self.shared), Arc::clone(&self.clock))
    }

    /// Ends this boot as `kill -9` would: nothing is released, and its lock can be taken. The handle still works, as a
    /// process that was only thought dead would, so that tests can show that it is fenced.
    pub fn kill_boot(&self) {
        if let Some(row) = self.data().boots.get_mut(&self.boot) {
            row.alive = false;
        }
    }

    fn handle(shared: Arc<Shared>, clock: Clock) -> Self {
        let mut data = shared.data.lock().unwrap_or_else(PoisonError::into_inner);
        // Counted, not random: nothing here can fail.
        let boot = format!("b-{:08x}", data.boots.len() + 1);
        data.boots.insert(boot.clone(), BootRow { pid: std::process::id(), alive: true, commits: 0 });
        let seen_foreign = AtomicU64::new(data.commits);
        drop(data);
        Self { boot, clock, shared, seen_foreign }
    }

    fn data(&self) -> MutexGuard<'_, Data> {
        self.shared.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write<T>(&self, run: impl FnOnce(&mut Operation<'_>) -> Result<T, Problem>) -> Result<T, Problem> {
        let mut data = self.data();
        let mut operation =
            Operation { data: &mut data, boot: &self.boot, now: (self.clock)(), changed_nothing: false };
        let answer = run(&mut operation)?;
        let changed_nothing = operation.changed_nothing;
        if !changed_nothing {
            data.commits += 1;
            if let Some(row) = data.boots.get_mut(&self.boot) {
                row.commits += 1;
            }
            let last = data.last_sequence();
            let over = |item: &String| data.items.get(item).is_none_or(|row| row.item.state.is_terminal());
            let ended = self.shared.waiting.items().into_iter().filter(over).map(|item| (item, None)).collect();
            drop(data);
            // Told even where the number is the same: a commit without an event can make work claimable.
            self.shared.changed.send_replace(last);
            self.shared.ready.send_modify(|counts| counts.iter_mut().for_each(|count| *count += 1));
            self.shared.waiting.tell(ended);
        }
        Ok(answer)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.kill_boot();
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn boot(&self) -> &str {
        &self.boot
    }

    fn now(&self) -> i64 {
        (self.clock)()
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    fn ready(&self) -> watch::Receiver<Ready> {
        self.shared.ready.subscribe()
    }

    fn ended(&self, item: &str) -> oneshot::Receiver<Option<ItemEnd>> {
        self.shared.waiting.wait_for(item)
    }

    async fn poll_foreign(&self) -> Result<bool, Problem> {
        let data = self.data();
        let own = data.boots.get(&self.boot).map_or(0, |row| row.commits);
        let foreign = data.commits - own;
        Ok(self.seen_foreign.swap(foreign, Ordering::Relaxed) != foreign)
    }

    async fn submit_run(&self, run: Run, idempotency_key: Option<String>) -> Result<String, Problem> {
        self.write(|operation| operation.submit_run(run, idempotency_key))
    }

    async fn adopt_run(&self, run: &str, budget: Option<Budget>) -> Result<RunSnapshot, Problem> {
        self.write(|operation| operation.adopt_run(run, budget))
    }

    async fn retry_task(
        &self,
        run: &str,
        task: &str,
        note: Option<String>,
        budget: Option<Budget>,
    ) -> Result<RunSnapshot, Problem> {
        self.write(|operation| operation.retry_task(run, task, note.as_deref(), budget))
    }

    async fn attempts(&self, run: &str, task: &str) -> Result<Vec<Attempt>, Problem> {
        let data = self.data();
        let ended = data.runs.get(run).into_iter().flat_map(|row| &row.attempts);
        Ok(ended.filter(|attempt| attempt.task == task).cloned().collect())
    }

    async fn run(&self, run: &str) -> Result<Option<RunSnapshot>, Problem> {
        Ok(self.data().snapshot(run, (self.clock)()))
    }

    async fn runs(&self) -> Result<Vec<Run>, Problem> {
        let data = self.data();
        let now = (self.clock)();
        Ok(data.run_order.iter().filter_map(|id| data.runs.get(id)).map(|row| data.shown_run(row, now)).collect())
    }

    async fn stop_run(&self, run: &str, state: RunState, problem: Problem) -> Result<(), Problem> {
        self.write(|operation| operation.stop_run(run, state, &problem))
    }

    async fn cancel_run(&self, run: &str, reason: &str) -> Result<(), Problem> {
        self.write(|operation| operation.cancel_run(run, reason))
    }

    async fn pause_run(&self, run: &str, reason: &str) -> Result<(), Problem> {
        self.write(|operation| operation.pause_run(run, reason))
    }

    async fn continue_run(&self, run: &str) -> Result<(), Problem> {
        self.write(|operation| operation.continue_run(run))
    }

    async fn submit(&self, item: WorkItem, how: Submission) -> Result<String, Problem> {
        self.write(|operation| operation.submit_item(item, how))
    }

    async fn item(&self, item: &str) -> Result<Option<ItemSnapshot>, Problem> {
        let data = self.data();
        Ok(data.items.get(item).map(|row| row.snapshot((self.clock)())))
    }

    async fn cancel_item(&self, item: &str, reason: &str) -> Result<(), Problem> {
        self.write(|operation| operation.cancel_item(item, reason))
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Option<Claimed>, Problem> {
        self.write(|operation| Ok(operation.claim(&request)))
    }

    async fn take_back(&self) -> Result<u64, Problem> {
        self.write(|operation| Ok(operation.take_back()))
    }

    async fn dead_letters(&self) -> Result<Vec<DeadLetter>, Problem> {
        Ok(self.data().dead_letters())
    }

    async fn requeue(&self, item: &str, reason: &str) -> Result<(), Problem> {
        self.write(|operation| operation.requeue(item, reason))
    }

    async fn discard(&self, item: &str, reason: &str) -> Result<(), Problem> {
        self.write(|operation| operation.discard(item, reason))
    }

    async fn renew(&self, item: &str, epoch: u64, lease_ms: i64) -> Result<(), Problem> {
        self.write(|operation| operation.renew(item, epoch, lease_ms))
    }

    async fn complete(&self, completion: Completion) -> Result<(), Problem> {
        self.write(|operation| operation.complete(completion))
    }

    async fn release(&self, release: Release) -> Result<Released, Problem> {
        self.write(|operation| operation.release(release))
    }

    async fn give_up(&self, item: &str, epoch: u64, problem: Problem, events: Vec<NewEvent>) -> Result<(), Problem> {
        self.write(|operation| operation.give_up(item, epoch, problem, events))
    }

    async fn journal(&self, item: &str, attempt: u32) -> Result<Vec<StepRecord>, Problem> {
        let data = self.data();
        Ok(data.journal.get(&(item.to_owned(), attempt)).cloned().unwrap_or_default())
    }

    async fn journals(&self, run: &str, subject: &str) -> Result<Vec<ItemJournal>, Problem> {
        Ok(self.data().journals(run, subject))
    }

    async fn start_step(&self, step: StartStep) -> Result<u64, Problem> {
        self.write(|operation| operation.start_step(step))
    }

    async fn finish_step(&self, step: FinishStep) -> Result<(), Problem> {
        self.write(|operation| operation.finish_step(step))
    }

    async fn reserve(&self, reserve: Reserve) -> Result<String, Problem> {
        self.write(|operation| operation.reserve(&reserve))
    }

    async fn settle(&self, item: &str, epoch: u64, reservation: &str, usage: Usage) -> Result<(), Problem> {
        self.write(|operation| operation.settle(item, epoch, reservation, &usage))
    }

    async fn out_of_time(&self) -> Result<Vec<(String, Problem)>, Problem> {
        self.write(|operation| Ok(operation.out_of_time()))
    }

    async fn put_artifact(&self, item: &str, epoch: u64, name: &str, content: Vec<u8>) -> Result<ArtifactRef, Problem> {
        self.write(|operation| operation.put_artifact(item, epoch, name, content))
    }

    async fn artifact(&self, run: &str, name: &str) -> Result<Option<Vec<u8>>, Problem> {
        let data = self.data();
        let newest =
            data.artifacts.iter().rev().find(|row| row.run.as_deref() == Some(run) && row.reference.name == name);
        Ok(newest.map(|row| row.content.clone()))
    }

    async fn append_events(&self, events: Vec<NewEvent>) -> Result<u64, Problem> {
        self.write(|operation| Ok(operation.append_events(events)))
    }

    async fn events(&self, query: EventQuery) -> Result<Vec<Event>, Problem> {
        Ok(self.data().events_of(&query, &self.boot))
    }

    async fn horizon(&self) -> Result<u64, Problem> {
        Ok(self.data().forgotten)
    }

    async fn post_command(&self, command: NewCommand) -> Result<(), Problem> {
        rules::check_command(&command)?;
        self.write(|operation| operation.post_command(command))
    }

    async fn take_commands(&self) -> Result<Vec<NewCommand>, Problem> {
        self.write(|operation| Ok(operation.take_commands()))
    }

    async fn under_way(&self, boot: &str) -> Result<Vec<UnderWay>, Problem> {
        Ok(self.data().under_way(boot))
    }

    async fn queue_of(&self, boots: &[&str]) -> Result<QueueCounts, Problem> {
        Ok(self.data().queue(boots, (self.clock)()))
    }

    async fn prune(&self, prune: Prune) -> Result<Pruned, Problem> {
        self.write(|operation| Ok(operation.prune(&prune)))
    }

    fn is_dead(&self, boot: &str) -> bool {
        self.data().is_dead(boot)
    }

    async fn pid_of(&self, boot: &str) -> Result<Option<u32>, Problem> {
        Ok(self.data().boots.get(boot).map(|row| row.pid))
    }
}
