//! What a person decides about a dead letter: once more, or never again.

use super::{Write, prune};
use crate::rules;
use crate::sqlite::failure::Failure;
use crate::sqlite::{events, rows};
use mnemosyne_core::{EventKind, Item, ItemState, rank};
use rusqlite::{OptionalExtension, params};

/// The epoch goes on: whoever held the item before stays fenced (**FENCE-1**).
pub(crate) fn requeue(write: &Write<'_>, id: &str, reason: &str) -> Result<(), Failure> {
    let item = dead_letter(write, id)?;
    let mut rival = write.connection.prepare_cached(
        "SELECT other.id FROM items JOIN items AS other ON other.unique_key = items.unique_key
         WHERE items.id = ?1 AND other.state IN ('ready', 'running')",
    )?;
    if let Some(rival) = rival.query_row([id], |row| row.get::<_, String>(0)).optional()? {
        return Err(rules::key_is_taken(id, &rival).into());
    }
    write.execute(
        "UPDATE items SET state = 'ready', ended_at = NULL, problem = NULL, crashes = 0, crash_generations = 0,
             last_crash = NULL, model_failures = 0, not_before = NULL, deadline = NULL, rank = ?2
         WHERE id = ?1",
        params![id, rank(write.now, item.work.priority)],
    )?;
    write.is_ready(item.work.role);
    events::append(write, &[rules::dead_letter_event(EventKind::WorkRequeued, &item, reason)])
}

pub(crate) fn discard(write: &Write<'_>, id: &str, reason: &str) -> Result<(), Failure> {
    let item = dead_letter(write, id)?;
    prune::remove_item(write, id)?;
    events::append(write, &[rules::dead_letter_event(EventKind::WorkDiscarded, &item, reason)])
}

fn dead_letter(write: &Write<'_>, id: &str) -> Result<Item, Failure> {
    let item = rows::item(write.connection, id)?.map(|row| row.item);
    match item {
        Some(item) if item.state == ItemState::Dead => match &item.run {
            Some(run) => Err(rules::dead_letter_of_a_run(&item, run).into()),
            None => Ok(item),
        },
        other => Err(rules::no_dead_letter(id, other.map(|item| item.state)).into()),
    }
}
