//! Journals as people read them: the items of a task or a phase, each with its steps and what they cost.

use super::failure::Failure;
use super::rows::{name, read_step};
use crate::types::{Amount, ItemJournal, JournalStep};
use rusqlite::{Connection, params};

/// The journals of a task, or of a phase by its name.
pub(crate) fn journals(connection: &Connection, run: &str, subject: &str) -> Result<Vec<ItemJournal>, Failure> {
    let mut statement = connection.prepare_cached(
        "SELECT id, kind, role, (SELECT work FROM works WHERE works.item = items.arrival) ->> 'attempt', state, epoch FROM items
         WHERE run = ?1 AND (task = ?2 OR (task IS NULL AND kind = ?2)) ORDER BY arrival",
    )?;
    let mut rows = statement.query([run, subject])?;
    let mut journals = Vec::new();
    while let Some(row) = rows.next()? {
        let (item, attempt): (String, u32) = (row.get(0)?, row.get(3)?);
        let steps = steps(connection, &item, attempt)?;
        let (kind, role, state) = (name(row, 1)?, name(row, 2)?, name(row, 4)?);
        journals.push(ItemJournal { item, kind, role, attempt, state, claims: row.get(5)?, steps });
    }
    Ok(journals)
}

fn steps(connection: &Connection, item: &str, attempt: u32) -> Result<Vec<JournalStep>, Failure> {
    // Settled reservations have no index of their own: they are read only here, when a person asks.
    let mut statement = connection.prepare_cached(
        "SELECT journal.number, name, kind, input_sha256, journal.state, output, error, tokens, usd,
                coalesce(usage.state = 'unknown', 0)
         FROM journal LEFT JOIN usage
           ON usage.item = journal.item AND usage.attempt = journal.attempt AND usage.step = journal.number
         WHERE journal.item = ?1 AND journal.attempt = ?2 ORDER BY journal.number",
    )?;
    let mut rows = statement.query(params![item, attempt])?;
    let mut steps = Vec::new();
    while let Some(row) = rows.next()? {
        let tokens: Option<u64> = row.get(7)?;
        let usd = row.get(8)?;
        steps.push(JournalStep {
            record: read_step(row)?,
            reserved: tokens.map(|tokens| Amount { tokens, usd }),
            spent_unknown: row.get(9)?,
        });
    }
    Ok(steps)
}
