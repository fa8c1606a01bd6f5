//! One file per write: whoever looks for a change of state finds it by its name, beside its SQL.
//!
//! `apply` is the one door through which an `Advance` of the core becomes rows; `claims` ends claims, whatever the
//! reason; the other files are operations of the trait.

mod adopt_run;
mod append_events;
mod apply;
mod cancel_item;
mod cancel_run;
mod claim;
mod claims;
mod commands;
mod complete;
mod dead_letters;
mod dependents;
mod finish_step;
mod give_up;
mod idempotency;
mod out_of_time;
mod pause_run;
mod prune;
mod put_artifact;
mod release;
mod renew;
mod reserve;
mod retry_task;
mod settle;
mod spending;
mod start_boot;
mod start_step;
mod stop_run;
mod submit_item;
mod submit_run;
mod take_back;
mod workspace;

pub(crate) use adopt_run::adopt_run;
pub(crate) use append_events::append_events;
pub(crate) use cancel_item::cancel_item;
pub(crate) use cancel_run::cancel_run;
#[cfg(test)]
pub(crate) use claim::{LATE, candidates};
pub(crate) use claim::{claim, claim_next};
pub(crate) use commands::{post_command, take_commands};
pub(crate) use complete::complete;
pub(crate) use dead_letters::{discard, requeue};
pub(crate) use finish_step::finish_step;
pub(crate) use give_up::give_up;
pub(crate) use out_of_time::{out_of_time, time_is_due};
pub(crate) use pause_run::{continue_run, pause_run};
pub(crate) use prune::prune;
pub(crate) use put_artifact::put_artifact;
pub(crate) use release::release;
pub(crate) use renew::renew;
pub(crate) use reserve::reserve;
pub(crate) use retry_task::retry_task;
pub(crate) use settle::settle;
pub(crate) use start_boot::start_boot;
pub(crate) use start_step::start_step;
pub(crate) use stop_run::stop_run;
pub(crate) use submit_item::submit_item;
pub(crate) use submit_run::submit_run;
pub(crate) use take_back::take_back;

use super::failure::Failure;
use crate::types::ItemEnd;
use crate::waiting::Waiting;
use mnemosyne_core::{AgentRole, Item};
use rusqlite::{Connection, Params};
use std::cell::RefCell;
use std::path::Path;

/// One operation inside the writer's transaction.
pub(crate) struct Write<'a> {
    pub(crate) connection: &'a Connection,
    /// This store's boot.
    pub(crate) boot: &'a str,
    /// Milliseconds; one instant for the whole operation.
    pub(crate) now: i64,
    /// Of the file, for messages.
    pub(crate) path: &'a Path,
    /// Where the locks of boots are.
    pub(crate) state_directory: &'a Path,
    /// Told to others once the transaction is committed.
    pub(crate) news: &'a RefCell<News>,
    /// Who is told how an item ended.
    pub(crate) waiting: &'a Waiting,
}

/// What a transaction did that others wait for.
#[derive(Default)]
pub(crate) struct News {
    /// Items that ended, and how, where somebody waits to hear it.
    pub(crate) ended: Vec<(String, Option<ItemEnd>)>,
    /// By role: something may have become claimable.
    pub(crate) ready: [bool; AgentRole::ALL.len()],
}

impl Write<'_> {
    /// Runs a statement; how many rows it changed.
    fn execute(&self, sql: &str, parameters: impl Params) -> Result<usize, Failure> {
        Ok(self.connection.prepare_cached(sql)?.execute(parameters)?)
    }

    /// `how` is asked only if somebody waits for the item.
    fn has_ended(&self, item: &str, how: impl FnOnce() -> Option<ItemEnd>) {
        let end = if self.waiting.is_awaited(item) { how() } else { None };
        self.news.borrow_mut().ended.push((item.to_owned(), end));
    }

    fn is_ready(&self, role: AgentRole) {
        self.news.borrow_mut().ready[role as usize] = true;
    }

    /// An item of a run opens the way for others by its end, by its file scope and by its task; also for other roles.
    fn may_open(&self, item: &Item) {
        if item.run.is_some() || !item.work.file_scope.is_empty() {
            self.all_may_be_ready();
        }
    }

    fn all_may_be_ready(&self) {
        self.news.borrow_mut().ready.fill(true);
    }

    fn is_dead(&self, boot: &str) -> bool {
        crate::boot::is_dead(self.state_directory, boot)
    }
}
