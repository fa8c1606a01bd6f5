//! A step begins, with its reservation, before anything is sent (**BUDGET-1**).

use super::{Write, claims, reserve};
use crate::rules;
use crate::sqlite::events;
use crate::sqlite::failure::Failure;
use crate::types::StartStep;
use rusqlite::params;

pub(crate) fn start_step(write: &Write<'_>, step: &StartStep) -> Result<u64, Failure> {
    let (row, holder) = claims::claimed(write, &step.item, step.epoch)?;
    let mut last = write
        .connection
        .prepare_cached("SELECT coalesce(max(number), 0) FROM journal WHERE item = ?1 AND attempt = ?2")?;
    let number = last.query_row(params![step.item, step.attempt], |row| row.get::<_, u64>(0))? + 1;
    let event = rules::step_started(&row.item, &holder, step, number)?;
    if let Some(amount) = step.reserve {
        reserve::set_aside(write, &row.item, &holder, amount, Some((step.attempt, number)))?;
    }
    write.execute(
        "INSERT INTO journal (item, attempt, number, name, kind, input_sha256, state, started_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'started', ?7)",
        params![step.item, step.attempt, number, step.name, step.kind, step.input_sha256, write.now],
    )?;
    events::append(write, &[event])?;
    Ok(number)
}
