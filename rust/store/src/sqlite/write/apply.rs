//! The one door: an `Advance` of the core becomes rows here and nowhere else (**DUR-2**, **ONCE-1**).

use super::{Write, claims, dependents, put_artifact, spending};
use crate::rules::{self, Holder};
use crate::sqlite::failure::Failure;
use crate::sqlite::{events, rows};
use crate::types::{ItemEnd, Submission};
use mnemosyne_core::advance::{PhaseChange, View};
use mnemosyne_core::{
    Advance, Attempt, Item, ItemKind, ItemState, NewEvent, Phase, Problem, Run, Task, WorkResult, rank,
};
use rusqlite::params;
use serde_json::Value;

/// All that follows from one thing that happened: `item` is what it happened to, if its state changes.
pub(crate) fn apply(write: &Write<'_>, run: Option<&str>, item: Option<&str>, advance: Advance) -> Result<(), Failure> {
    if let (Some(id), Some(state)) = (item, advance.item_state) {
        let ended_at = state.is_terminal().then_some(write.now);
        let row = params![id, state.as_str(), ended_at];
        write.execute("UPDATE items SET state = ?2, ended_at = ?3 WHERE id = ?1", row)?;
        if state.is_terminal() {
            write.has_ended(id, || None);
        }
    }
    follow(write, run, item, advance)
}

/// What follows, once the item itself is written.
fn follow(write: &Write<'_>, run: Option<&str>, item: Option<&str>, advance: Advance) -> Result<(), Failure> {
    for new in &advance.items {
        insert_item(write, new, 0, &Submission::default())?;
    }
    if let Some(run) = run {
        put_tasks(write, run, &advance.tasks)?;
        put_attempts(write, run, &advance.attempts)?;
        change_phases(write, run, advance.phases)?;
        put_artifacts(write, run, item.unwrap_or_default(), &advance.artifacts)?;
    }
    let ended = advance.run.as_ref().is_some_and(|run| run.state.is_terminal());
    if let Some(run) = advance.run {
        put_run(write, run)?;
    }
    if let (true, Some(run)) = (ended, run) {
        cancel_what_is_left(write, run)?;
        spending::pause_run(write, run)?;
    }
    // After all that may have something to say: the run's last event must stay its last.
    events::append(write, &advance.events)?;
    match (item, advance.item_state) {
        (Some(id), Some(state)) => dependents::settle(write, id, state),
        _ => Ok(()),
    }
}

/// How a claim ends for good.
pub(crate) enum Outcome<'a> {
    Result(&'a WorkResult),
    Problem(&'a Problem),
}

impl Outcome<'_> {
    fn end(&self, state: ItemState) -> ItemEnd {
        match self {
            Outcome::Result(result) => ItemEnd { state, result: Some((*result).clone()), problem: None },
            Outcome::Problem(problem) => ItemEnd { state, result: None, problem: Some((*problem).clone()) },
        }
    }
}

/// Ends a claim for good, in one update of its row. The agent's own events come first: the run's last event must stay its
/// last.
pub(crate) fn finish(
    write: &Write<'_>,
    item: &Item,
    holder: &Holder,
    outcome: &Outcome<'_>,
    mut own_events: Vec<NewEvent>,
    mut advance: Advance,
) -> Result<(), Failure> {
    let id = &item.work.id;
    let (result, problem, model_failures) = match outcome {
        Outcome::Result(result) => (Some(serde_json::to_string(result)?), None, 0),
        Outcome::Problem(problem) => (None, Some(serde_json::to_string(problem)?), item.model_failures),
    };
    let state = advance.item_state.unwrap_or(ItemState::Failed);
    write.execute(
        "UPDATE items SET state = ?2, ended_at = ?3, result = ?4, problem = ?5, model_failures = ?6, not_before = NULL,
             boot = NULL, agent = NULL, generation = NULL, lease_until = NULL, progressed = 0
         WHERE id = ?1",
        params![id, state.as_str(), write.now, result, problem, model_failures],
    )?;
    write.has_ended(id, || Some(outcome.end(state)));
    write.may_open(item);
    claims::forget(write, item, &holder.agent)?;
    rules::sign(&mut own_events, id, holder);
    rules::sign(&mut advance.events, id, holder);
    events::append(write, &own_events)?;
    follow(write, item.run.as_deref(), Some(id), advance)
}

/// Calls a pure decision with the run as it stands.
pub(crate) fn with_view<T>(
    write: &Write<'_>,
    run: Option<&str>,
    decide: impl FnOnce(View<'_>) -> T,
) -> Result<T, Failure> {
    let stored = match run {
        Some(id) => rows::run(write.connection, id)?,
        None => None,
    };
    let Some(run) = stored else {
        return Ok(decide(View { run: &rules::no_run(), tasks: &[], next_number: 1 }));
    };
    let tasks = rows::tasks(write.connection, &run.id)?;
    let mut count = write.connection.prepare_cached("SELECT count(*) FROM items WHERE run = ?1")?;
    let items: u64 = count.query_row([&run.id], |row| row.get(0))?;
    Ok(decide(View { run: &run, tasks: &tasks, next_number: items + 1 }))
}

/// A new item, ready.
pub(crate) fn insert_item(
    write: &Write<'_>,
    item: &Item,
    open_dependencies: usize,
    how: &Submission,
) -> Result<(), Failure> {
    let holds = item.kind == ItemKind::Accept || !item.work.file_scope.is_empty();
    if open_dependencies == 0 {
        write.is_ready(item.work.role);
    }
    write.execute(
        "INSERT INTO items
             (id, run, task, kind, role, priority, state, open_dependencies, file_scope, holds, rank, not_before,
              unique_key, deadline)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'ready', ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        params![
            item.work.id,
            item.run,
            item.task,
            item.kind.as_str(),
            item.work.role.as_str(),
            item.work.priority,
            open_dependencies,
            serde_json::to_string(&item.work.file_scope)?,
            holds,
            rank(rules::queued_from(how, write.now), item.work.priority),
            how.not_before,
            how.unique_key,
            how.deadline,
        ],
    )?;
    let work = serde_json::to_string(&item.work)?;
    write.execute("INSERT INTO works (item, work) VALUES (last_insert_rowid(), ?1)", [work])?;
    Ok(())
}

/// A run whose record changed. A terminal one has an end.
pub(crate) fn put_run(write: &Write<'_>, mut run: Run) -> Result<(), Failure> {
    write.all_may_be_ready();
    if run.state.is_terminal() {
        run.ended_at = run.ended_at.or(Some(write.now));
    }
    let record = serde_json::to_string(&run)?;
    write.execute(
        "UPDATE runs SET state = ?2, boot = ?3, timed = ?4, record = ?5 WHERE id = ?1",
        params![run.id, run.state.as_str(), run.boot, run.budget.is_timed(), record],
    )?;
    Ok(())
}

/// Tasks that are new or changed, whole.
pub(crate) fn put_tasks(write: &Write<'_>, run: &str, tasks: &[Task]) -> Result<(), Failure> {
    for task in tasks {
        write.execute(
            "INSERT INTO tasks (run, id, position, state, file_scope, record) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (run, id) DO UPDATE SET state = excluded.state, record = excluded.record",
            params![
                run,
                task.spec.id,
                task.position,
                task.state.as_str(),
                serde_json::to_string(&task.spec.file_scope)?,
                serde_json::to_string(task)?,
            ],
        )?;
    }
    Ok(())
}

fn put_attempts(write: &Write<'_>, run: &str, attempts: &[Attempt]) -> Result<(), Failure> {
    for attempt in attempts {
        write.execute(
            "INSERT INTO attempts (run, task, attempt, record) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (run, task, attempt) DO UPDATE SET record = excluded.record",
            params![run, attempt.task, attempt.attempt, serde_json::to_string(attempt)?],
        )?;
    }
    Ok(())
}

fn change_phases(write: &Write<'_>, run: &str, changes: Vec<PhaseChange>) -> Result<(), Failure> {
    if changes.is_empty() {
        return Ok(());
    }
    let mut phases = rows::phases(write.connection, run)?;
    for change in changes {
        let Some(phase) = phases.iter_mut().find(|phase| phase.name == change.name) else { continue };
        rules::change_phase(phase, change.state, change.artifact, write.now);
        write.execute(
            "UPDATE phases SET state = ?3, started_at = ?4, ended_at = ?5, artifact = ?6
             WHERE run = ?1 AND position = ?2",
            params![run, position(phase.name), phase.state.as_str(), phase.started_at, phase.ended_at, phase.artifact],
        )?;
    }
    Ok(())
}

/// A phase's place in the protocol.
pub(crate) fn position(phase: Phase) -> usize {
    Phase::ALL.iter().position(|known| *known == phase).unwrap_or_default()
}

fn put_artifacts(write: &Write<'_>, run: &str, item: &str, artifacts: &[(String, Value)]) -> Result<(), Failure> {
    for (name, content) in artifacts {
        put_artifact::store(write, Some(run), item, name, &serde_json::to_vec_pretty(content)?)?;
    }
    Ok(())
}

/// A run that ended has nothing left to claim.
fn cancel_what_is_left(write: &Write<'_>, run: &str) -> Result<(), Failure> {
    let open = "SELECT id FROM items WHERE run = ?1 AND state IN ('ready', 'running')";
    for id in rows::texts(write.connection, open, [run])? {
        claims::end_by_id(write, &id)?;
        write.execute("UPDATE items SET state = 'cancelled', ended_at = ?2 WHERE id = ?1", params![id, write.now])?;
        write.has_ended(&id, || None);
    }
    Ok(())
}
