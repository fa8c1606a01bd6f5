//! What ended long ago is forgotten, a little at a time, so that those who wait for the writer do not notice.

use super::Write;
use crate::clock::timestamp;
use crate::sqlite::failure::Failure;
use crate::sqlite::rows;
use crate::types::{Prune, Pruned};
use rusqlite::{OptionalExtension, params};

/// Pages given back to the file system with each call.
const PAGES: u32 = 128;

/// One kind of work in each call: events are looked at once their items and runs are gone.
pub(crate) fn prune(write: &Write<'_>, prune: &Prune) -> Result<Pruned, Failure> {
    let mut pruned = Pruned { events_seen: prune.events_seen, ..Pruned::default() };
    pruned.items = prune_items(write, prune)?;
    if prune.runs && pruned.items == 0 {
        pruned.runs = prune_run(write, prune)?;
    }
    if pruned.items == 0 && pruned.runs == 0 {
        let seen;
        (pruned.events, seen) = prune_events(write, prune)?;
        pruned.events_seen = seen.unwrap_or(prune.events_seen);
        pruned.done = seen.is_none();
    }
    give_back_pages(write)?;
    Ok(pruned)
}

/// Items without a run. What waited for them has been told of their end, so nothing needs their edges.
fn prune_items(write: &Write<'_>, prune: &Prune) -> Result<u64, Failure> {
    let ended = "SELECT id FROM items WHERE run IS NULL AND ended_at < ?1 ORDER BY ended_at LIMIT ?2";
    let ids = rows::texts(write.connection, ended, params![prune.ended_before, prune.limit])?;
    for id in &ids {
        remove_item(write, id)?;
    }
    Ok(ids.len() as u64)
}

pub(super) fn remove_item(write: &Write<'_>, id: &str) -> Result<(), Failure> {
    for sql in [
        "DELETE FROM item_dependencies WHERE item = ?1",
        "DELETE FROM item_dependencies WHERE dependency = ?1",
        "DELETE FROM journal WHERE item = ?1",
        "DELETE FROM usage WHERE item = ?1",
        "DELETE FROM artifacts WHERE item = ?1",
        "DELETE FROM idempotency_keys WHERE id = ?1 AND scope = 'item'",
        "DELETE FROM works WHERE item = (SELECT arrival FROM items WHERE id = ?1)",
        "DELETE FROM items WHERE id = ?1",
    ] {
        write.execute(sql, [id])?;
    }
    Ok(())
}

/// One run that ended, with all that belongs to it.
fn prune_run(write: &Write<'_>, prune: &Prune) -> Result<u64, Failure> {
    let mut ended = write.connection.prepare_cached(
        "SELECT id FROM runs WHERE state IN ('done', 'failed', 'cancelled') AND record ->> 'ended_at' < ?1
         ORDER BY arrival LIMIT 1",
    )?;
    let run: Option<String> = ended.query_row([prune.ended_before], |row| row.get(0)).optional()?;
    let Some(run) = run else { return Ok(0) };
    for item in rows::texts(write.connection, "SELECT id FROM items WHERE run = ?1", [&run])? {
        remove_item(write, &item)?;
    }
    let newest = "SELECT max(sequence) FROM events WHERE run = ?1";
    if let Some(newest) =
        write.connection.prepare_cached(newest)?.query_row([&run], |row| row.get::<_, Option<i64>>(0))?
    {
        raise_horizon(write, newest)?;
    }
    for sql in [
        // The last event of the store stays: the next one is numbered after it.
        "DELETE FROM events WHERE run = ?1 AND sequence < (SELECT max(sequence) FROM events)",
        "DELETE FROM spending WHERE run = ?1",
        "DELETE FROM artifacts WHERE run = ?1",
        "DELETE FROM attempts WHERE run = ?1",
        "DELETE FROM tasks WHERE run = ?1",
        "DELETE FROM phases WHERE run = ?1",
        "DELETE FROM commands WHERE run = ?1",
        "DELETE FROM run_boots WHERE run = ?1",
        "DELETE FROM idempotency_keys WHERE id = ?1 AND scope = 'run'",
        "DELETE FROM runs WHERE id = ?1",
    ] {
        write.execute(sql, [&run])?;
    }
    Ok(1)
}

/// Events of items that are gone, and of agents whose boot worked on no run that is kept. How many went, and the last one
/// that was looked at, if there are more.
fn prune_events(write: &Write<'_>, prune: &Prune) -> Result<(u64, Option<u64>), Failure> {
    let before = timestamp(prune.ended_before);
    let mut page = write.connection.prepare_cached(
        "SELECT sequence, at < ?3,
                run IS NULL AND CASE WHEN record ->> 'item' IS NULL THEN boot NOT IN (SELECT boot FROM run_boots)
                        AND boot IN (SELECT id FROM boots WHERE ended_at IS NOT NULL)
                    ELSE NOT EXISTS (SELECT 1 FROM items WHERE id = record ->> 'item') END
         FROM events WHERE sequence > ?1 AND sequence < (SELECT max(sequence) FROM events)
         ORDER BY sequence LIMIT ?2",
    )?;
    let mut rows = page.query(params![prune.events_seen, prune.limit, before])?;
    let (mut gone, mut seen) = (Vec::<i64>::new(), None);
    while let Some(row) = rows.next()? {
        let sequence: i64 = row.get(0)?;
        if !row.get::<_, bool>(1)? {
            // What follows is younger still.
            seen = None;
            break;
        }
        seen = Some(sequence);
        if row.get(2)? {
            gone.push(sequence);
        }
    }
    for sequence in &gone {
        write.execute("DELETE FROM events WHERE sequence = ?1", [sequence])?;
    }
    if let Some(newest) = gone.last() {
        raise_horizon(write, *newest)?;
    }
    Ok((gone.len() as u64, seen.and_then(|sequence| u64::try_from(sequence).ok())))
}

fn raise_horizon(write: &Write<'_>, sequence: i64) -> Result<(), Failure> {
    write.execute("UPDATE horizon SET sequence = max(sequence, ?1)", [sequence])?;
    Ok(())
}

fn give_back_pages(write: &Write<'_>) -> Result<(), Failure> {
    let mut vacuum = write.connection.prepare(&format!("PRAGMA incremental_vacuum({PAGES})"))?;
    let mut rows = vacuum.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}
