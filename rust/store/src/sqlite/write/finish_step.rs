//! A step ends, and its reservation is settled. The item made progress: its crashes are counted from zero again.

use super::{Write, claims, spending};
use crate::rules;
use crate::sqlite::events;
use crate::sqlite::failure::Failure;
use crate::sqlite::rows;
use crate::types::{Amount, FinishStep};
use rusqlite::{OptionalExtension, params};

pub(crate) fn finish_step(write: &Write<'_>, step: &FinishStep) -> Result<(), Failure> {
    let (row, holder) = claims::claimed(write, &step.item, step.epoch)?;
    let (state, output, error) = match &step.outcome {
        Ok(output) => ("finished", Some(serde_json::to_string(output)?), None),
        Err(error) => ("failed", None, Some(error.as_str())),
    };
    let mut update = write.connection.prepare_cached(
        "UPDATE journal SET state = ?4, output = ?5, error = ?6, ended_at = ?7
         WHERE item = ?1 AND attempt = ?2 AND number = ?3 AND state = 'started' RETURNING name, kind",
    )?;
    let key = params![step.item, step.attempt, step.number, state, output, error, write.now];
    let found: Option<(String, String)> = update.query_row(key, |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let (name, kind) = found.ok_or_else(|| rules::no_such_step(&step.item, step.number))?;
    let unknown = end_reservation(write, step)?;
    write.execute(
        "UPDATE items SET crashes = 0, crash_generations = 0, last_crash = NULL, progressed = 1 WHERE id = ?1",
        [&step.item],
    )?;
    let event = rules::step_finished(&row.item, &holder, &name, &kind, step);
    events::append(write, &[event])?;
    spending::charge(write, &row.item, &holder.agent, step.usage.as_ref(), &unknown)
}

/// Settles what the step had set aside, or leaves it unknown: that is returned.
fn end_reservation(write: &Write<'_>, step: &FinishStep) -> Result<Vec<Amount>, Failure> {
    let mut update = write.connection.prepare_cached(
        "UPDATE usage SET state = ?5, used = ?4 WHERE item = ?1 AND attempt = ?2 AND step = ?3 AND state = 'open'
         RETURNING tokens, usd",
    )?;
    let (unknown, used) = (step.spent_unknown(), step.usage.as_ref().map(serde_json::to_string).transpose()?);
    let state = if unknown { "unknown" } else { "settled" };
    let ended = update
        .query_map(params![step.item, step.attempt, step.number, used, state], rows::amount)?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(if unknown { ended } else { Vec::new() })
}
