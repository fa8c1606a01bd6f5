//! A run of this boot is paused, and goes on: while it is paused nothing of it is given out, and its time does not count.

use super::{Write, apply, spending};
use crate::rules;
use crate::sqlite::failure::Failure;
use crate::sqlite::{events, rows};
use mnemosyne_core::{NewEvent, Run, RunState};

pub(crate) fn pause_run(write: &Write<'_>, id: &str, reason: &str) -> Result<(), Failure> {
    let Some(run) = ours(write, id, RunState::Running)? else { return Ok(()) };
    let said = rules::paused_event(&run, reason);
    change(write, Run { state: RunState::Paused, ..run }, said)?;
    spending::pause_run(write, id)
}

pub(crate) fn continue_run(write: &Write<'_>, id: &str) -> Result<(), Failure> {
    let Some(run) = ours(write, id, RunState::Paused)? else { return Ok(()) };
    let said = rules::resumed_event(&run);
    change(write, Run { state: RunState::Running, ..run }, said)?;
    spending::begin_run(write, id)
}

/// The run, if this boot drives it and it is in that state.
fn ours(write: &Write<'_>, id: &str, state: RunState) -> Result<Option<Run>, Failure> {
    let run = rows::run(write.connection, id)?.ok_or_else(|| rules::no_such_run(id))?;
    Ok((run.state == state && run.boot.as_deref() == Some(write.boot)).then_some(run))
}

fn change(write: &Write<'_>, run: Run, said: NewEvent) -> Result<(), Failure> {
    apply::put_run(write, run)?;
    events::append(write, &[said])
}
