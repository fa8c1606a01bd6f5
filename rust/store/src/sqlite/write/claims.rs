//! How claims end, whatever the reason (**FENCE-1**): the columns of the claim are emptied, so that its epoch opens no
//! door any more, and what it left open in the journal and in the budget becomes unknown (**BUDGET-1**).

use super::{Write, apply, spending};
use crate::rules::{self, Holder};
use crate::sqlite::failure::Failure;
use crate::sqlite::rows::{self, ItemRow};
use crate::types::Released;
use mnemosyne_core::{Item, ItemState, Problem, item_dead};
use rusqlite::{OptionalExtension, params};

/// The item under this claim; everybody else is fenced.
pub(crate) fn claimed(write: &Write<'_>, id: &str, epoch: u64) -> Result<(ItemRow, Holder), Failure> {
    let row = rows::item(write.connection, id)?.ok_or_else(|| rules::no_such_item(id))?;
    match row.holder.clone() {
        Some(holder) if row.item.state == ItemState::Running && row.item.epoch == epoch => Ok((row, holder)),
        _ => Err(Problem::fenced(id, epoch).into()),
    }
}

/// Ends the claim under way, if there is one, and leaves the item ready.
pub(crate) fn end(write: &Write<'_>, item: &Item) -> Result<(), Failure> {
    let id = &item.work.id;
    let mut holding = write.connection.prepare_cached("SELECT agent FROM items WHERE id = ?1 AND state = 'running'")?;
    let Some(agent) = holding.query_row([id], |row| row.get::<_, String>(0)).optional()? else { return Ok(()) };
    write.execute(
        "UPDATE items SET state = 'ready', not_before = NULL, boot = NULL, agent = NULL, generation = NULL,
             lease_until = NULL, progressed = 0
         WHERE id = ?1 AND state = 'running'",
        [id],
    )?;
    write.is_ready(item.work.role);
    write.may_open(item);
    forget(write, item, &agent)
}

/// Ends the claim under way of an item by its id.
pub(crate) fn end_by_id(write: &Write<'_>, id: &str) -> Result<(), Failure> {
    match rows::item(write.connection, id)? {
        Some(row) => end(write, &row.item),
        None => Ok(()),
    }
}

/// What a claim left open in the journal and in the budget: nobody knows how it went.
pub(crate) fn forget(write: &Write<'_>, item: &Item, agent: &str) -> Result<(), Failure> {
    let id = &item.work.id;
    write.execute(
        "UPDATE journal SET state = 'unknown', ended_at = ?2 WHERE item = ?1 AND state = 'started'",
        params![id, write.now],
    )?;
    // Read first: RETURNING would make a table for its answer each time, and nearly always there is none.
    let mut open =
        write.connection.prepare_cached("SELECT tokens, usd FROM usage WHERE item = ?1 AND state = 'open'")?;
    let left_open = open.query_map([id], rows::amount)?.collect::<rusqlite::Result<Vec<_>>>()?;
    if !left_open.is_empty() {
        write.execute("UPDATE usage SET state = 'unknown' WHERE item = ?1 AND state = 'open'", [id])?;
    }
    spending::end(write, item, agent, &left_open)
}

/// Counts a crash of an item whose claim has ended; at the poison rule's limit the item is dead.
pub(crate) fn crash(write: &Write<'_>, mut row: ItemRow, holder: &Holder) -> Result<Released, Failure> {
    let id = row.item.work.id.clone();
    let dead = rules::count_crash(&mut row.item, &mut row.last_crash, holder);
    let (item, last_crash) = (row.item, row.last_crash);
    write.execute(
        "UPDATE items SET crashes = ?2, crash_generations = ?3, last_crash = ?4 WHERE id = ?1",
        params![id, item.crashes, item.crash_generations, last_crash],
    )?;
    if !dead {
        return Ok(Released::Ready);
    }
    let problem = rules::poison(&item);
    set_problem(write, &id, &problem)?;
    let mut advance =
        apply::with_view(write, item.run.as_deref(), |view| item_dead(view, &item, ItemState::Dead, &problem))?;
    rules::sign(&mut advance.events, &id, holder);
    apply::apply(write, item.run.as_deref(), Some(&id), advance)?;
    Ok(Released::Dead)
}

/// A killed process says nothing about an item that made progress: only a claim without one finished step counts.
pub(crate) fn release_of_dead_boot(write: &Write<'_>, id: &str) -> Result<(), Failure> {
    let Some(row) = rows::readable_item(write.connection, id)? else { return Ok(()) };
    let Some(holder) = row.holder.clone() else { return Ok(()) };
    end(write, &row.item)?;
    if !row.progressed {
        crash(write, row, &holder)?;
    }
    Ok(())
}

/// Cancels one item that has not ended; its claim, if any, is fenced from here on.
pub(crate) fn cancel(write: &Write<'_>, id: &str, reason: &str) -> Result<(), Failure> {
    let Some(row) = rows::item(write.connection, id)? else { return Ok(()) };
    end(write, &row.item)?;
    write.execute("UPDATE items SET state = 'cancelled', ended_at = ?2 WHERE id = ?1", params![id, write.now])?;
    write.has_ended(id, || None);
    set_problem(write, id, &rules::cancelled(id, reason))?;
    let mut events = [rules::cancelled_event(&row.item, reason)];
    if let Some(holder) = &row.holder {
        rules::sign(&mut events, id, holder);
    }
    crate::sqlite::events::append(write, &events)
}

/// Why an item ended without a result.
pub(crate) fn set_problem(write: &Write<'_>, id: &str, problem: &Problem) -> Result<(), Failure> {
    let text = serde_json::to_string(problem)?;
    write.execute("UPDATE items SET problem = ?2 WHERE id = ?1", params![id, text])?;
    Ok(())
}
