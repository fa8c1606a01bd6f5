//! The accounts of a run in rows (**BUDGET-1**); what they allow is decided in [`crate::budget`].

use super::Write;
use crate::budget::{self, Account, Level, Open};
use crate::sqlite::failure::Failure;
use crate::sqlite::{events, rows};
use crate::types::Amount;
use mnemosyne_core::{Item, Usage};
use rusqlite::params;

/// Changes accounts of a run, all alike, and says so where a limit comes near.
pub(crate) fn change(
    write: &Write<'_>,
    run: &str,
    levels: &[Level],
    mut change: impl FnMut(&mut Account),
) -> Result<(), Failure> {
    let budget = rows::budget(write.connection, run)?;
    for level in levels {
        let before = rows::account(write.connection, run, level)?.unwrap_or_default();
        let mut after = before.clone();
        change(&mut after);
        if after != before {
            put(write, run, level, &after)?;
            events::append(write, &budget::warnings(run, &budget, level, &before, &after))?;
        }
    }
    Ok(())
}

/// What an item's agent used, and the time until now. `unknown`: what it set aside and nobody can settle.
pub(crate) fn charge(
    write: &Write<'_>,
    item: &Item,
    agent: &str,
    usage: Option<&Usage>,
    unknown: &[Amount],
) -> Result<(), Failure> {
    let Some(run) = &item.run else { return Ok(()) };
    change(write, run, &Level::of(item, agent), |account| {
        account.count_time(write.now);
        if let Some(usage) = usage {
            account.usage.add(usage);
        }
        for amount in unknown {
            account.charge_unknown(*amount);
        }
    })
}

/// A claim begins.
pub(crate) fn begin(write: &Write<'_>, item: &Item, agent: &str) -> Result<(), Failure> {
    let Some(run) = &item.run else { return Ok(()) };
    change(write, run, &Level::of(item, agent), |account| account.begin(write.now))
}

/// A claim has ended; `left_open` is what it had set aside. Its task and its agent rest, unless they hold another.
pub(crate) fn end(write: &Write<'_>, item: &Item, agent: &str, left_open: &[Amount]) -> Result<(), Failure> {
    let Some(run) = &item.run else { return Ok(()) };
    charge(write, item, agent, None, left_open)?;
    let mut statement =
        write.connection.prepare_cached("SELECT task, agent FROM items WHERE run = ?1 AND state = 'running'")?;
    let holding: Vec<(Option<String>, Option<String>)> =
        statement.query_map([run], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()?;
    let rests = |level: &Level| match level {
        Level::Run => false,
        Level::Task(task) => holding.iter().all(|(other, _)| other.as_ref() != Some(task)),
        Level::Agent(agent) => holding.iter().all(|(_, other)| other.as_ref() != Some(agent)),
    };
    let resting: Vec<Level> = Level::of(item, agent).into_iter().filter(rests).collect();
    change(write, run, &resting, |account| account.pause(write.now))
}

/// The run itself ends or stops.
pub(crate) fn pause_run(write: &Write<'_>, run: &str) -> Result<(), Failure> {
    change(write, run, &[Level::Run], |account| account.pause(write.now))
}

/// The run itself begins or goes on.
pub(crate) fn begin_run(write: &Write<'_>, run: &str) -> Result<(), Failure> {
    change(write, run, &[Level::Run], |account| account.begin(write.now))
}

/// The process that worked on it is gone: the time since its last sign of life is not counted.
pub(crate) fn forget_time(write: &Write<'_>, run: &str) -> Result<(), Failure> {
    write.execute("UPDATE spending SET counted_at = NULL WHERE run = ?1 AND counted_at IS NOT NULL", [run])?;
    Ok(())
}

/// The accounts that an item's agent spends from, with what is open in them.
pub(crate) fn accounts(
    write: &Write<'_>,
    run: &str,
    levels: Vec<Level>,
) -> Result<Vec<(Level, Account, Open)>, Failure> {
    let mut statement = write
        .connection
        .prepare_cached("SELECT task, agent, step, tokens, usd FROM usage WHERE run = ?1 AND state = 'open'")?;
    let mut found = statement.query([run])?;
    let mut open = Vec::new();
    while let Some(row) = found.next()? {
        let (task, agent, step): (Option<String>, Option<String>, Option<u64>) =
            (row.get(0)?, row.get(1)?, row.get(2)?);
        open.push((task, agent, step.is_some(), Amount { tokens: row.get(3)?, usd: row.get(4)? }));
    }
    let mut accounts = Vec::new();
    for level in levels {
        let mut held = Open::default();
        for (task, agent, of_step, amount) in &open {
            let its = match &level {
                Level::Run => true,
                Level::Task(name) => task.as_ref() == Some(name),
                Level::Agent(name) => agent.as_ref() == Some(name),
            };
            if its {
                held.add(*amount, *of_step);
            }
        }
        let account = rows::account(write.connection, run, &level)?.unwrap_or_default();
        accounts.push((level, account, held));
    }
    Ok(accounts)
}

fn put(write: &Write<'_>, run: &str, level: &Level, account: &Account) -> Result<(), Failure> {
    let (kind, name) = level.key();
    let usage = &account.usage;
    write.execute(
        "INSERT INTO spending (run, level, name, turns, input_tokens, output_tokens, cache_read_tokens,
             cache_write_tokens, cost_usd, calls, unknown_calls, unknown_tokens, unknown_usd, milliseconds, counted_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)
         ON CONFLICT (run, level, name) DO UPDATE SET turns = ?4, input_tokens = ?5, output_tokens = ?6,
             cache_read_tokens = ?7, cache_write_tokens = ?8, cost_usd = ?9, calls = ?10, unknown_calls = ?11,
             unknown_tokens = ?12, unknown_usd = ?13, milliseconds = ?14, counted_at = ?15",
        params![
            run,
            kind,
            name,
            usage.turns,
            usage.input_tokens,
            usage.output_tokens,
            usage.cache_read_tokens,
            usage.cache_write_tokens,
            usage.cost_usd,
            account.calls,
            account.unknown_calls,
            account.unknown.tokens,
            account.unknown.usd.unwrap_or_default(),
            account.milliseconds,
            account.counted_at,
        ],
    )?;
    Ok(())
}
