//! Rows into records, for reads and for writes alike.

use super::failure::Failure;
use crate::budget::{Account, Level};
use crate::clock::timestamp;
use crate::rules::{self, Holder};
use crate::types::{
    Amount, DeadLetter, ItemSnapshot, Parked, QueueCounts, RunSnapshot, StepRecord, StepState, UnderWay,
};
use mnemosyne_core::{Attempt, Budget, Item, PhaseRecord, Problem, Run, RunState, Task, Usage};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::str::FromStr;

/// An item with what only the store knows of it.
pub(crate) struct ItemRow {
    pub(crate) item: Item,
    pub(crate) open_dependencies: u32,
    pub(crate) not_before: Option<i64>,
    pub(crate) deadline: Option<i64>,
    pub(crate) last_crash: Option<String>,
    /// Of the claim under way.
    pub(crate) holder: Option<Holder>,
    /// Whether the claim under way finished a step.
    pub(crate) progressed: bool,
}

/// The columns that [`read_item`] reads.
pub(crate) const ITEM: &str = "items.id, items.run, items.task, items.kind, items.state, items.epoch, items.crashes, \
     items.crash_generations, items.model_failures, (SELECT work FROM works WHERE works.item = items.arrival), \
     items.open_dependencies, items.not_before, items.last_crash, items.boot, items.agent, items.generation, \
     items.progressed, items.deadline";

/// How many these are: where the columns of a query begin that has more.
pub(crate) const AFTER_ITEM: usize = 18;

/// One item.
pub(crate) fn item(connection: &Connection, id: &str) -> Result<Option<ItemRow>, Failure> {
    let mut statement = connection.prepare_cached(&format!("SELECT {ITEM} FROM items WHERE id = ?1"))?;
    let mut rows = statement.query([id])?;
    rows.next()?.map(read_item).transpose()
}

/// One item, if there is one that can be read: whoever looks after many goes on without the others. `store check` names
/// them.
pub(crate) fn readable_item(connection: &Connection, id: &str) -> Result<Option<ItemRow>, Failure> {
    match item(connection, id) {
        Err(failure) if failure.is_of_one_row() => Ok(None),
        found => found,
    }
}

pub(crate) fn read_item(row: &Row<'_>) -> Result<ItemRow, Failure> {
    let item = Item {
        work: json(row, 9)?,
        run: row.get(1)?,
        task: row.get(2)?,
        kind: name(row, 3)?,
        state: name(row, 4)?,
        epoch: row.get(5)?,
        crashes: row.get(6)?,
        crash_generations: row.get(7)?,
        model_failures: row.get(8)?,
    };
    let holder = match (row.get(13)?, row.get(14)?, row.get(15)?) {
        (Some(boot), Some(agent), Some(generation)) => Some(Holder { boot, agent, generation }),
        _ => None,
    };
    Ok(ItemRow {
        item,
        open_dependencies: row.get(10)?,
        not_before: row.get(11)?,
        last_crash: row.get(12)?,
        holder,
        progressed: row.get(16)?,
        deadline: row.get(17)?,
    })
}

/// One item as people see it.
pub(crate) fn item_snapshot(connection: &Connection, id: &str, now: i64) -> Result<Option<ItemSnapshot>, Failure> {
    let Some(row) = item(connection, id)? else { return Ok(None) };
    let mut statement = connection.prepare_cached("SELECT result, problem FROM items WHERE id = ?1")?;
    let mut rows = statement.query([id])?;
    let (result, problem) = match rows.next()? {
        Some(found) => (optional_json(found, 0)?, optional_json::<Problem>(found, 1)?),
        None => (None, None),
    };
    let mut item = row.item;
    item.state = rules::shown_state(item.state, row.open_dependencies, row.not_before, now);
    Ok(Some(ItemSnapshot { item, result, problem }))
}

/// One run.
pub(crate) fn run(connection: &Connection, id: &str) -> Result<Option<Run>, Failure> {
    let mut statement = connection.prepare_cached("SELECT record FROM runs WHERE id = ?1")?;
    let mut rows = statement.query([id])?;
    rows.next()?.map(|row| json(row, 0)).transpose()
}

/// All runs as people see them, oldest first.
pub(crate) fn runs(connection: &Connection, now: i64) -> Result<Vec<Run>, Failure> {
    let mut statement = connection.prepare_cached("SELECT record FROM runs ORDER BY arrival")?;
    let mut rows = statement.query([])?;
    let mut runs = Vec::new();
    while let Some(row) = rows.next()? {
        let run: Run = json(row, 0)?;
        runs.push(shown_run(connection, run, now)?);
    }
    Ok(runs)
}

/// A run with the state that people see.
fn shown_run(connection: &Connection, run: Run, now: i64) -> Result<Run, Failure> {
    let waits = run.state == RunState::Running && run_waits(connection, &run.id, now)?;
    Ok(if waits { Run { state: RunState::Waiting, ..run } } else { run })
}

/// Whether all that a run has is parked.
pub(crate) fn run_waits(connection: &Connection, run: &str, now: i64) -> Result<bool, Failure> {
    let mut statement = connection.prepare_cached(
        "SELECT count(*) FILTER (WHERE state = 'ready' AND parked IS NOT NULL AND not_before > ?2), count(*)
         FROM items WHERE run = ?1 AND state IN ('ready', 'running')",
    )?;
    let (parked, all): (u64, u64) = statement.query_row(params![run, now], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rules::shown_run_state(RunState::Running, parked > 0, all > parked) == RunState::Waiting)
}

/// The parked items of a run, the first to go on first.
fn parked(connection: &Connection, run: &str, now: i64) -> Result<Vec<Parked>, Failure> {
    let columns = format!("SELECT {ITEM}, parked FROM items");
    let mut statement = connection.prepare_cached(&format!(
        "{columns} WHERE run = ?1 AND state = 'ready' AND parked IS NOT NULL AND not_before > ?2
         ORDER BY not_before, +arrival"
    ))?;
    let mut rows = statement.query(params![run, now])?;
    let mut parked = Vec::new();
    while let Some(row) = rows.next()? {
        let found = read_item(row)?;
        parked.push(rules::parked(&found.item, found.not_before.unwrap_or(now), &json(row, AFTER_ITEM)?));
    }
    Ok(parked)
}

/// A run's tasks, in the order of the plan.
pub(crate) fn tasks(connection: &Connection, run: &str) -> Result<Vec<Task>, Failure> {
    let mut statement = connection.prepare_cached("SELECT record FROM tasks WHERE run = ?1 ORDER BY position")?;
    let mut rows = statement.query([run])?;
    let mut tasks = Vec::new();
    while let Some(row) = rows.next()? {
        tasks.push(json(row, 0)?);
    }
    Ok(tasks)
}

/// The attempts of a task that ended, oldest first.
pub(crate) fn attempts(connection: &Connection, run: &str, task: &str) -> Result<Vec<Attempt>, Failure> {
    let mut statement =
        connection.prepare_cached("SELECT record FROM attempts WHERE run = ?1 AND task = ?2 ORDER BY attempt")?;
    let mut rows = statement.query([run, task])?;
    let mut attempts = Vec::new();
    while let Some(row) = rows.next()? {
        attempts.push(json(row, 0)?);
    }
    Ok(attempts)
}

/// A run's phases, in the order of the protocol.
pub(crate) fn phases(connection: &Connection, run: &str) -> Result<Vec<PhaseRecord>, Failure> {
    let mut statement = connection.prepare_cached(
        "SELECT name, state, started_at, ended_at, artifact FROM phases WHERE run = ?1 ORDER BY position",
    )?;
    let mut rows = statement.query([run])?;
    let mut phases = Vec::new();
    while let Some(row) = rows.next()? {
        phases.push(PhaseRecord {
            name: name(row, 0)?,
            state: name(row, 1)?,
            started_at: row.get(2)?,
            ended_at: row.get(3)?,
            artifact: row.get(4)?,
        });
    }
    Ok(phases)
}

/// The budget of a run, without reading all of its record.
pub(crate) fn budget(connection: &Connection, run: &str) -> Result<Budget, Failure> {
    let mut statement = connection.prepare_cached("SELECT json_extract(record, '$.budget') FROM runs WHERE id = ?1")?;
    let mut rows = statement.query([run])?;
    Ok(rows.next()?.map(|row| json(row, 0)).transpose()?.unwrap_or_default())
}

const ACCOUNT: &str = "turns, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cost_usd, calls, \
     unknown_calls, unknown_tokens, unknown_usd, milliseconds, counted_at";

/// One account of a run; none where nothing was spent.
pub(crate) fn account(connection: &Connection, run: &str, level: &Level) -> Result<Option<Account>, Failure> {
    let (kind, name) = level.key();
    let mut statement = connection
        .prepare_cached(&format!("SELECT {ACCOUNT} FROM spending WHERE run = ?1 AND level = ?2 AND name = ?3"))?;
    Ok(statement.query_row([run, kind, name], read_account).optional()?)
}

/// All accounts of a run; the run's own first.
pub(crate) fn accounts(connection: &Connection, run: &str) -> Result<Vec<(Level, Account)>, Failure> {
    let mut statement =
        connection.prepare_cached(&format!("SELECT {ACCOUNT}, level, name FROM spending WHERE run = ?1"))?;
    let found = statement.query_map([run], |row| {
        let level: String = row.get(12)?;
        Ok((Level::parse(&level, row.get(13)?), read_account(row)?))
    })?;
    let mut accounts = found.collect::<rusqlite::Result<Vec<(Level, Account)>>>()?;
    accounts.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(accounts)
}

fn read_account(row: &Row<'_>) -> rusqlite::Result<Account> {
    Ok(Account {
        usage: Usage {
            turns: row.get(0)?,
            input_tokens: row.get(1)?,
            output_tokens: row.get(2)?,
            cache_read_tokens: row.get(3)?,
            cache_write_tokens: row.get(4)?,
            cost_usd: row.get(5)?,
        },
        calls: row.get(6)?,
        unknown_calls: row.get(7)?,
        unknown: Amount { tokens: row.get(8)?, usd: Some(row.get(9)?) },
        milliseconds: row.get(10)?,
        counted_at: row.get(11)?,
    })
}

/// `tokens` and `usd`, the first two columns.
pub(crate) fn amount(row: &Row<'_>) -> rusqlite::Result<Amount> {
    Ok(Amount { tokens: row.get(0)?, usd: row.get(1)? })
}

/// One run with all that a person asks about it.
pub(crate) fn snapshot(connection: &Connection, id: &str, now: i64) -> Result<Option<RunSnapshot>, Failure> {
    let Some(run) = run(connection, id)? else { return Ok(None) };
    let account = account(connection, id, &Level::Run)?.unwrap_or_default();
    let mut restarts = connection.prepare_cached(
        "SELECT count(*) FROM events WHERE run IS NULL AND kind = 'agent_restarted'
         AND boot IN (SELECT boot FROM run_boots WHERE run = ?1)",
    )?;
    Ok(Some(RunSnapshot {
        run: shown_run(connection, run, now)?,
        phases: phases(connection, id)?,
        tasks: tasks(connection, id)?,
        spent: account.spent(),
        usage: account.usage,
        unknown_turns: account.unknown_calls,
        restarts: restarts.query_row([id], |row| row.get(0))?,
        parked: parked(connection, id, now)?,
        last_sequence: super::events::last_sequence(connection)?,
    }))
}

/// The steps of one attempt.
pub(crate) fn journal(connection: &Connection, item: &str, attempt: u32) -> Result<Vec<StepRecord>, Failure> {
    let mut statement = connection.prepare_cached(
        "SELECT number, name, kind, input_sha256, state, output, error FROM journal
         WHERE item = ?1 AND attempt = ?2 ORDER BY number",
    )?;
    let mut rows = statement.query(params![item, attempt])?;
    let mut steps = Vec::new();
    while let Some(row) = rows.next()? {
        steps.push(read_step(row)?);
    }
    Ok(steps)
}

/// A step from a row that begins with its seven columns.
pub(crate) fn read_step(row: &Row<'_>) -> Result<StepRecord, Failure> {
    let state: String = row.get(4)?;
    Ok(StepRecord {
        number: row.get(0)?,
        name: row.get(1)?,
        kind: row.get(2)?,
        input_sha256: row.get(3)?,
        state: serde_json::from_value::<StepState>(Value::String(state))?,
        output: optional_json(row, 5)?,
        error: row.get(6)?,
    })
}

/// The newest artifact of a name.
pub(crate) fn artifact(connection: &Connection, run: &str, name: &str) -> Result<Option<Vec<u8>>, Failure> {
    let mut statement = connection
        .prepare_cached("SELECT content FROM artifacts WHERE run = ?1 AND name = ?2 ORDER BY arrival DESC LIMIT 1")?;
    Ok(statement.query_row([run, name], |row| row.get(0)).optional()?)
}

/// Items that boots (a JSON array) could claim or have claimed: of no run, or of a running run of their own.
pub(crate) fn queue(connection: &Connection, boots: &str, now: i64) -> Result<QueueCounts, Failure> {
    let mut statement = connection.prepare_cached(
        "SELECT count(*) FILTER (WHERE items.state = 'ready' AND open_dependencies = 0
                                 AND (not_before IS NULL OR not_before <= ?2)),
                count(*) FILTER (WHERE items.state = 'running'),
                count(*)
         FROM items LEFT JOIN runs ON runs.id = items.run
         WHERE items.state IN ('ready', 'running')
           AND (items.run IS NULL OR (runs.state = 'running'
                                      AND runs.boot IN (SELECT value FROM json_each(?1))))",
    )?;
    Ok(statement.query_row(params![boots, now], |row| {
        let (ready, running, all): (u64, u64, u64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(QueueCounts { ready, running, waiting: all - ready - running })
    })?)
}

/// Claims of a boot.
pub(crate) fn under_way(connection: &Connection, boot: &str) -> Result<Vec<UnderWay>, Failure> {
    let mut statement = connection.prepare_cached(
        "SELECT id, run, agent, generation, lease_until FROM items
         WHERE state = 'running' AND boot = ?1 AND agent IS NOT NULL AND lease_until IS NOT NULL",
    )?;
    let found = statement.query_map([boot], |row| {
        let (item, run, agent) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(UnderWay { item, run, agent, generation: row.get(3)?, lease_until: row.get(4)? })
    })?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

/// Boots that hold items of no run.
pub(crate) fn holders_without_a_run(connection: &Connection) -> Result<Vec<String>, Failure> {
    texts(connection, "SELECT DISTINCT boot FROM items WHERE state = 'running' AND run IS NULL", [])
}

/// The dead letters, oldest first.
pub(crate) fn dead_letters(connection: &Connection) -> Result<Vec<DeadLetter>, Failure> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {ITEM}, problem, ended_at FROM items WHERE state = 'dead' ORDER BY ended_at, arrival"
    ))?;
    let mut rows = statement.query([])?;
    let mut letters = Vec::new();
    while let Some(row) = rows.next()? {
        let died_at: Option<i64> = row.get(AFTER_ITEM + 1)?; // of an older version there is none
        letters.push(DeadLetter {
            item: read_item(row)?.item,
            problem: optional_json(row, AFTER_ITEM)?,
            died_at: timestamp(died_at.unwrap_or_default()),
        });
    }
    Ok(letters)
}

/// The process that a boot runs in.
pub(crate) fn pid_of(connection: &Connection, boot: &str) -> Result<Option<u32>, Failure> {
    let mut statement = connection.prepare_cached("SELECT pid FROM boots WHERE id = ?1")?;
    Ok(statement.query_row([boot], |row| row.get(0)).optional()?)
}

/// The first column of every row.
pub(crate) fn texts(
    connection: &Connection,
    sql: &str,
    parameters: impl rusqlite::Params,
) -> Result<Vec<String>, Failure> {
    let mut statement = connection.prepare_cached(sql)?;
    let texts = statement.query_map(parameters, |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(texts)
}

/// A column of JSON.
pub(crate) fn json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<T, Failure> {
    Ok(serde_json::from_str(row.get_ref(column)?.as_str().map_err(rusqlite::Error::from)?)?)
}

fn optional_json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<Option<T>, Failure> {
    let text = row.get_ref(column)?.as_str_or_null().map_err(rusqlite::Error::from)?;
    Ok(text.map(serde_json::from_str).transpose()?)
}

/// A column with a wire name.
pub(crate) fn name<T>(row: &Row<'_>, column: usize) -> Result<T, Failure>
where
    T: FromStr,
    Failure: From<T::Err>,
{
    Ok(row.get_ref(column)?.as_str().map_err(rusqlite::Error::from)?.parse::<T>()?)
}
