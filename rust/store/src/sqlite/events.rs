//! Events in rows (**DUR-3**): numbered in the transaction that writes them, so a rollback leaves no gap.

use super::failure::Failure;
use super::write::Write;
use crate::clock::timestamp;
use crate::types::EventQuery;
use mnemosyne_core::{Event, NewEvent};
use rusqlite::{Connection, Params, params};

/// Appends events, in order.
pub(crate) fn append(write: &Write<'_>, events: &[NewEvent]) -> Result<(), Failure> {
    if events.is_empty() {
        return Ok(());
    }
    let at = timestamp(write.now);
    // Without a number of its own a row gets the greatest plus one: no gap, also after a rollback.
    let mut insert = write
        .connection
        .prepare_cached("INSERT INTO events (at, boot, run, kind, agent, record) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
    for event in events {
        let record = serde_json::to_string(event)?;
        insert.execute(params![at, write.boot, event.run, event.kind.name(), event.agent, record])?;
    }
    Ok(())
}

/// The greatest number, 0 where there is none.
pub(crate) fn last_sequence(connection: &Connection) -> rusqlite::Result<u64> {
    connection.prepare_cached("SELECT coalesce(max(sequence), 0) FROM events")?.query_row([], |row| row.get(0))
}

/// Up to where there may be gaps: events of what was pruned are gone.
pub(crate) fn horizon(connection: &Connection) -> rusqlite::Result<u64> {
    connection.prepare_cached("SELECT sequence FROM horizon")?.query_row([], |row| row.get(0))
}

/// Events after a sequence, oldest first.
pub(crate) fn events(connection: &Connection, query: &EventQuery, own_boot: &str) -> Result<Vec<Event>, Failure> {
    let limit = if query.limit == 0 { i64::MAX } else { i64::from(query.limit) };
    let since = i64::try_from(query.since).unwrap_or(i64::MAX);
    if let Some(boot) = &query.boot {
        let wanted = "run IS NULL AND boot = ?1 AND sequence > ?2 ORDER BY sequence LIMIT ?3";
        return select(connection, wanted, params![boot, since, limit]);
    }
    match (&query.run, &query.agent) {
        (None, None) => select(connection, "sequence > ?1 ORDER BY sequence LIMIT ?2", params![since, limit]),
        (None, Some(agent)) => {
            let wanted = "sequence > ?1 AND boot = ?3 AND agent = ?4 ORDER BY sequence LIMIT ?2";
            select(connection, wanted, params![since, limit, own_boot, agent])
        }
        (Some(run), None) => of_run(connection, run, since, limit),
        (Some(run), Some(agent)) => {
            let wanted = "sequence > ?1 AND boot = ?3 AND agent = ?4
                 AND (run = ?5 OR run IS NULL AND ?3 IN (SELECT boot FROM run_boots WHERE run = ?5))
                 ORDER BY sequence LIMIT ?2";
            select(connection, wanted, params![since, limit, own_boot, agent, run])
        }
    }
}

/// A run's own, and the runless ones of its boots: two walks along two indexes, merged.
fn of_run(connection: &Connection, run: &str, since: i64, limit: i64) -> Result<Vec<Event>, Failure> {
    let wanted = "run = ?1 AND sequence > ?2
         UNION ALL
         SELECT sequence, at, boot, record FROM events
         WHERE run IS NULL AND boot IN (SELECT boot FROM run_boots WHERE run = ?1) AND sequence > ?2
         ORDER BY sequence LIMIT ?3";
    select(connection, wanted, params![run, since, limit])
}

fn select(connection: &Connection, wanted: &str, parameters: impl Params) -> Result<Vec<Event>, Failure> {
    let mut statement =
        connection.prepare_cached(&format!("SELECT sequence, at, boot, record FROM events WHERE {wanted}"))?;
    let mut rows = statement.query(parameters)?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        let event: NewEvent = serde_json::from_str(row.get_ref(3)?.as_str().map_err(rusqlite::Error::from)?)?;
        events.push(Event { sequence: row.get(0)?, at: row.get(1)?, boot: row.get(2)?, event });
    }
    Ok(events)
}
