//! A run is submitted: acknowledged only after its rows are committed (**DUR-1**).

use super::{Write, apply, idempotency, spending, workspace};
use crate::rules;
use crate::sqlite::failure::Failure;
use crate::sqlite::rows;
use mnemosyne_core::{Run, first_items};
use rusqlite::params;

pub(crate) fn submit_run(write: &Write<'_>, run: &Run, key: Option<&str>) -> Result<String, Failure> {
    if let Some(known) = idempotency::known(write, "run", key)? {
        return Ok(known);
    }
    if rows::run(write.connection, &run.id)?.is_some() {
        return Err(rules::duplicate("run", &run.id).into());
    }
    workspace::refuse_busy(write, &run.workspace, &run.id)?;
    let run = Run { boot: Some(write.boot.to_owned()), ..run.clone() };
    let advance = first_items(&run)?;
    insert(write, &run)?;
    idempotency::remember(write, "run", key, &run.id)?;
    apply::apply(write, Some(&run.id), None, advance)?;
    Ok(run.id)
}

fn insert(write: &Write<'_>, run: &Run) -> Result<(), Failure> {
    write.execute(
        "INSERT INTO runs (id, workspace, state, boot, timed, record) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            run.id,
            run.workspace,
            run.state.as_str(),
            run.boot,
            run.budget.is_timed(),
            serde_json::to_string(run)?
        ],
    )?;
    write.execute("INSERT INTO run_boots (run, boot) VALUES (?1, ?2)", params![run.id, write.boot])?;
    for phase in rules::pending_phases() {
        write.execute(
            "INSERT INTO phases (run, position, name, state) VALUES (?1, ?2, ?3, ?4)",
            params![run.id, apply::position(phase.name), phase.name.as_str(), phase.state.as_str()],
        )?;
    }
    spending::begin_run(write, &run.id)
}
