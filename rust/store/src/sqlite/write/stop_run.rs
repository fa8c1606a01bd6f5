//! A run stops and can be resumed: nobody is charged, and what still runs is fenced.

use super::{Write, apply, claims, spending};
use crate::rules;
use crate::sqlite::failure::Failure;
use crate::sqlite::{events, rows};
use mnemosyne_core::advance::problem_value;
use mnemosyne_core::{Problem, RunState};

pub(crate) fn stop_run(write: &Write<'_>, id: &str, state: RunState, problem: &Problem) -> Result<(), Failure> {
    let event = rules::stop_event(id, state, problem)?;
    let mut run = rows::run(write.connection, id)?.ok_or_else(|| rules::no_such_run(id))?;
    // The first reason to stop is the one that counts: a drain after the budget ran out does not hide the budget.
    // And a run that another boot took over is no longer ours to stop.
    if !rules::is_under_way(run.state) || run.boot.as_deref() != Some(write.boot) {
        return Ok(());
    }
    run.state = state;
    run.error = Some(problem_value(problem));
    apply::put_run(write, run)?;
    let running = "SELECT id FROM items WHERE run = ?1 AND state = 'running'";
    for item in rows::texts(write.connection, running, [id])? {
        claims::end_by_id(write, &item)?;
    }
    spending::pause_run(write, id)?;
    events::append(write, &[event])
}
