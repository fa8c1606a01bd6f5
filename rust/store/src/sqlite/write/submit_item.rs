//! A user's own item is submitted.

use super::{Write, apply, idempotency};
use crate::rules;
use crate::sqlite::failure::Failure;
use crate::types::Submission;
use mnemosyne_core::{Item, ItemState};
use rusqlite::{OptionalExtension, params};
use std::collections::BTreeSet;

pub(crate) fn submit_item(write: &Write<'_>, item: &Item, how: &Submission) -> Result<String, Failure> {
    let key = how.idempotency_key.as_deref();
    if let Some(known) = idempotency::known(write, "item", key)? {
        return Ok(known);
    }
    if let Some(known) = live(write, how.unique_key.as_deref())? {
        return Ok(known);
    }
    let id = &item.work.id;
    rules::check_item(item)?;
    rules::check_times(id, how, write.now)?;
    if state_of(write, id)?.is_some() {
        return Err(rules::duplicate("work item", id).into());
    }
    let open = open_dependencies(write, item)?;
    apply::insert_item(write, item, open.len(), how)?;
    for dependency in open {
        // Only what is still open: an edge to an item that is done would never be looked at.
        write.execute("INSERT INTO item_dependencies (item, dependency) VALUES (?1, ?2)", params![id, dependency])?;
    }
    idempotency::remember(write, "item", key, id)?;
    Ok(id.clone())
}

/// The item of this name that has not ended.
fn live(write: &Write<'_>, unique_key: Option<&str>) -> Result<Option<String>, Failure> {
    let Some(key) = unique_key else { return Ok(None) };
    let mut statement = write
        .connection
        .prepare_cached("SELECT id FROM items WHERE unique_key = ?1 AND state IN ('ready', 'running')")?;
    Ok(statement.query_row([key], |row| row.get(0)).optional()?)
}

/// Dependencies that are not done yet. An item can only depend on what is there already, so there is no circle.
fn open_dependencies<'a>(write: &Write<'_>, item: &'a Item) -> Result<BTreeSet<&'a str>, Failure> {
    let mut open = BTreeSet::new();
    for dependency in &item.work.depends_on {
        match state_of(write, dependency)?.ok_or_else(|| rules::dangling(&item.work.id, dependency))? {
            ItemState::Done => {}
            state if state.is_terminal() => {
                return Err(rules::dead_dependency(&item.work.id, dependency, state).into());
            }
            _ => {
                open.insert(dependency.as_str());
            }
        }
    }
    Ok(open)
}

fn state_of(write: &Write<'_>, item: &str) -> Result<Option<ItemState>, Failure> {
    let mut statement = write.connection.prepare_cached("SELECT state FROM items WHERE id = ?1")?;
    let state: Option<String> = statement.query_row([item], |row| row.get(0)).optional()?;
    Ok(state.map(|name| name.parse()).transpose()?)
}
