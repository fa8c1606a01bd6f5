//! The next item of a role is claimed: candidates by index, the core's pure `eligible`, one fenced update.

use super::{Write, apply, claims, spending};
use crate::rules;
use crate::sqlite::failure::Failure;
use crate::sqlite::{events, rows};
use crate::types::{ClaimRequest, Claimed};
use mnemosyne_core::record::accepted_commands;
use mnemosyne_core::{AgentRole, Candidate, Holding, Item, ItemKind, ItemState, Task, TaskState, eligible, item_dead};
use rusqlite::{Row, params};

pub(crate) fn claim(write: &Write<'_>, request: &ClaimRequest) -> Result<Option<Claimed>, Failure> {
    expire_leases(write)?;
    miss_deadlines(write)?;
    claim_next(write, request)
}

/// Without a look at what has expired meanwhile.
pub(crate) fn claim_next(write: &Write<'_>, request: &ClaimRequest) -> Result<Option<Claimed>, Failure> {
    let Some(item) = pick(write, request)? else { return Ok(None) };
    let item = take(write, item, request)?;
    events::append(write, &rules::claim_events(&item, request))?;
    spending::begin(write, &item, &request.agent)?;
    with_run(write, item).map(Some)
}

/// Expired claims of what this boot may claim. The `+` keeps SQLite on the index of leases: to sort by arrival it would
/// read all items.
pub(crate) const LATE: &str = "SELECT items.id FROM items LEFT JOIN runs ON runs.id = items.run
    WHERE items.state = 'running' AND lease_until <= ?1
      AND (items.run IS NULL OR (runs.boot = ?2 AND runs.state = 'running'))
    ORDER BY +items.arrival";

/// What may be claimed but for file scopes, best first.
pub(crate) fn candidates() -> String {
    format!(
        "SELECT {}, rank, items.arrival, file_scope
         FROM items LEFT JOIN runs ON runs.id = items.run
         WHERE items.state = 'ready' AND open_dependencies = 0 AND role = ?1
           AND (not_before IS NULL OR not_before <= ?2)
           AND (items.run IS NULL OR (runs.boot = ?3 AND runs.state = 'running'))
         ORDER BY rank, items.arrival",
        rows::ITEM
    )
}

/// Claims of nobody who renews: a crash, for the agent or its whole process is gone or stuck.
fn expire_leases(write: &Write<'_>) -> Result<(), Failure> {
    for id in rows::texts(write.connection, LATE, params![write.now, write.boot])? {
        let Some(row) = rows::readable_item(write.connection, &id)? else { continue };
        let Some(holder) = row.holder.clone() else { continue };
        claims::end(write, &row.item)?;
        let mut said = [rules::failed_event(&row.item, rules::LEASE_EXPIRED, None)];
        rules::sign(&mut said, &id, &holder);
        events::append(write, &said)?;
        claims::crash(write, row, &holder)?;
    }
    Ok(())
}

/// Ready items that nobody claimed in time; they belong to no run.
fn miss_deadlines(write: &Write<'_>) -> Result<(), Failure> {
    let missed = "SELECT id FROM items WHERE state = 'ready' AND deadline IS NOT NULL AND deadline <= ?1
         ORDER BY deadline";
    for id in rows::texts(write.connection, missed, [write.now])? {
        let Some(row) = rows::item(write.connection, &id)? else { continue };
        let problem = rules::deadline_passed(&row.item, row.deadline.unwrap_or(write.now));
        claims::set_problem(write, &id, &problem)?;
        let advance = apply::with_view(write, None, |view| item_dead(view, &row.item, ItemState::Failed, &problem))?;
        apply::apply(write, None, Some(&id), advance)?;
    }
    Ok(())
}

/// The first candidate that nobody is in the way of. Nearly always that is the first one, so they are read one by one.
fn pick(write: &Write<'_>, request: &ClaimRequest) -> Result<Option<Item>, Failure> {
    let mut holdings = None;
    let mut statement = write.connection.prepare_cached(&candidates())?;
    let mut rows = statement.query(params![request.role.as_str(), write.now, write.boot])?;
    while let Some(row) = rows.next()? {
        let candidate = read_candidate(row, request.role)?;
        // Who belongs to no task, has no scope and accepts nothing is in nobody's way: then nobody has to be looked for.
        let may_collide =
            candidate.kind == ItemKind::Accept || candidate.task.is_some() || !candidate.file_scope.is_empty();
        if may_collide && holdings.is_none() {
            holdings = Some(find_holdings(write)?);
        }
        let held = holdings.as_deref().unwrap_or_default();
        if eligible(std::slice::from_ref(&candidate), held, request.role, write.now).is_some() {
            return Ok(Some(rows::read_item(row)?.item));
        }
    }
    Ok(None)
}

fn read_candidate(row: &Row<'_>, role: AgentRole) -> Result<Candidate, Failure> {
    Ok(Candidate {
        id: row.get(0)?,
        run: row.get(1)?,
        task: row.get(2)?,
        kind: rows::name(row, 3)?,
        role,
        rank: row.get(rows::AFTER_ITEM)?,
        order: row.get(rows::AFTER_ITEM + 1)?,
        open_dependencies: 0,
        file_scope: rows::json(row, rows::AFTER_ITEM + 2)?,
        not_before: None,
    })
}

/// File scopes in use, by running items and by tasks between their items, and acceptances under way.
fn find_holdings(write: &Write<'_>) -> Result<Vec<Holding>, Failure> {
    let mut statement = write.connection.prepare_cached(
        "SELECT run, task, kind, file_scope FROM items WHERE state = 'running' AND holds = 1
         UNION ALL
         SELECT run, id, NULL, file_scope FROM tasks WHERE state IN ('running', 'reviewing')",
    )?;
    let mut rows = statement.query([])?;
    let mut holdings = Vec::new();
    while let Some(row) = rows.next()? {
        let kind: Option<String> = row.get(2)?;
        holdings.push(Holding {
            run: row.get(0)?,
            task: row.get(1)?,
            kind: kind.map(|kind| kind.parse()).transpose()?,
            file_scope: rows::json(row, 3)?,
        });
    }
    Ok(holdings)
}

fn take(write: &Write<'_>, mut item: Item, request: &ClaimRequest) -> Result<Item, Failure> {
    (item.state, item.epoch) = (ItemState::Running, item.epoch + 1);
    let until = write.now.saturating_add(request.lease_ms);
    write.execute(
        "UPDATE items SET state = 'running', epoch = ?2, not_before = NULL, parked = NULL, boot = ?3, agent = ?4,
             generation = ?5, lease_until = ?6, progressed = 0
         WHERE id = ?1",
        params![item.work.id, item.epoch, write.boot, request.agent, request.generation, until],
    )?;
    Ok(item)
}

/// Adds the item's run and task; a task that was ready now runs.
fn with_run(write: &Write<'_>, item: Item) -> Result<Claimed, Failure> {
    let run = match &item.run {
        Some(id) => rows::run(write.connection, id)?,
        None => None,
    };
    let Some(run) = run else { return Ok(Claimed { item, run: None, task: None, accepted: Vec::new() }) };
    let mut tasks = rows::tasks(write.connection, &run.id)?;
    let mut task = None;
    if let Some(id) = &item.task
        && let Some(known) = tasks.iter_mut().find(|task| task.spec.id == *id)
    {
        if known.state == TaskState::Ready {
            known.state = TaskState::Running;
            apply::put_tasks(write, &run.id, std::slice::from_ref::<Task>(known))?;
        }
        task = Some(known.clone());
    }
    Ok(Claimed { item, run: Some(run), task, accepted: accepted_commands(&tasks) })
}
