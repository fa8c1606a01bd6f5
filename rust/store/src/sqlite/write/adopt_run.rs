//! A run whose boot is dead, or that was stopped, goes on in this boot.

use super::{Write, apply, claims, spending, workspace};
use crate::budget::{self, Account, Level};
use crate::rules;
use crate::sqlite::failure::Failure;
use crate::sqlite::{events, rows};
use crate::types::RunSnapshot;
use mnemosyne_core::{Budget, Run, RunState};
use rusqlite::params;

pub(crate) fn adopt_run(write: &Write<'_>, id: &str, budget: Option<Budget>) -> Result<RunSnapshot, Failure> {
    let before = rows::run(write.connection, id)?.ok_or_else(|| rules::no_such_run(id))?;
    if before.state.is_terminal() {
        return Err(rules::run_ended(&before).into());
    }
    refuse_living(write, &before)?;
    let run = Run { state: RunState::Running, error: None, ..rules::taken_over(before.clone(), write.boot, budget) };
    let resumed = rules::resumed_event(&run);
    apply::put_run(write, run)?;
    // First, so that `resume` can begin to show events at this one.
    events::append(write, &[resumed])?;
    free(write, &before, budget)
}

/// The run is this boot's: what the boot before held or was told is not. `before` is how it was found; the budget that was
/// `given` has to be worth going on with.
pub(super) fn free(write: &Write<'_>, before: &Run, given: Option<Budget>) -> Result<RunSnapshot, Failure> {
    let id = before.id.as_str();
    write.execute("INSERT OR IGNORE INTO run_boots (run, boot) VALUES (?1, ?2)", params![id, write.boot])?;
    // A cancel that the dead process never read was meant for that process: the user has asked to go on since.
    write.execute("UPDATE commands SET taken_by = ?2 WHERE run = ?1 AND taken_by IS NULL", params![id, write.boot])?;
    spending::forget_time(write, id)?;
    let running = "SELECT id FROM items WHERE run = ?1 AND state = 'running' ORDER BY arrival";
    for item in rows::texts(write.connection, running, [id])? {
        // Nobody is charged: a person asked for the run to go on, and how often its process was killed says nothing about
        // the item at hand. A run killed at any moment, any number of times, must still be finished.
        claims::end_by_id(write, &item)?;
    }
    budget::check_resume(before, given, &open_accounts(write, id)?)?;
    spending::begin_run(write, id)?;
    Ok(rows::snapshot(write.connection, id, write.now)?.ok_or_else(|| rules::no_such_run(id))?)
}

/// The accounts that can still be spent from.
fn open_accounts(write: &Write<'_>, run: &str) -> Result<Vec<(Level, Account)>, Failure> {
    let tasks = rows::tasks(write.connection, run)?;
    let ended = |name: &str| tasks.iter().any(|task| task.spec.id == name && task.state.is_terminal());
    let mut accounts = rows::accounts(write.connection, run)?;
    accounts.retain(|(level, _)| !matches!(level, Level::Task(name) if ended(name)));
    Ok(accounts)
}

pub(super) fn refuse_living(write: &Write<'_>, run: &Run) -> Result<(), Failure> {
    // A run that was stopped lives nowhere, even if the process that stopped it does.
    if let Some(boot) = run.boot.as_deref().filter(|boot| !write.is_dead(boot))
        && rules::is_under_way(run.state)
    {
        return Err(rules::run_lives(&run.id, rows::pid_of(write.connection, boot)?).into());
    }
    workspace::refuse_busy(write, &run.workspace, &run.id)
}
