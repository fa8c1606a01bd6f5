//! What every backend decides alike: pure functions of records, so that two backends differ only in where rows lie.

use crate::budget;
use crate::clock::timestamp;
use crate::types::{
    ClaimRequest, FinishStep, NewCommand, Parked, Release, ReleaseReason, StartStep, StepState, Submission,
};
use mnemosyne_core::error::codes;
use mnemosyne_core::validation::{item_findings, refuse};
use mnemosyne_core::{
    ArtifactRef, Budget, EventKind, Item, ItemKind, ItemState, NewEvent, Phase, PhaseRecord, PhaseState, Problem,
    ProblemKind, Run, RunOptions, RunState, WorkItem,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Crashes after which an item is poison, if they happened on enough generations.
const POISON_CRASHES: u32 = 3;
/// One broken agent may die three times by itself; a second generation that dies too makes the item the suspect.
const POISON_GENERATIONS: u32 = 2;
/// Said of a claim that nobody renewed.
pub(crate) const LEASE_EXPIRED: &str = "its lease expired: the agent or its process is gone or stuck";
/// Texts in events are for people to glance at; the whole is in the item.
const EVENT_TEXT: usize = 200;

/// Who held a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) boot: String,
    pub(crate) agent: String,
    pub(crate) generation: u64,
}

impl Holder {
    /// Names one generation of one boot: after a restart of the process generations start at 1 again, and a death there
    /// is a death elsewhere.
    fn key(&self) -> String {
        format!("{}/{}", self.boot, self.generation)
    }
}

/// Counts a crash; says whether the item is now poison.
pub(crate) fn count_crash(item: &mut Item, last_crash: &mut Option<String>, holder: &Holder) -> bool {
    item.crashes += 1;
    let key = holder.key();
    if last_crash.as_ref() != Some(&key) {
        item.crash_generations += 1;
        *last_crash = Some(key);
    }
    item.crashes >= POISON_CRASHES && item.crash_generations >= POISON_GENERATIONS
}

/// Why a poisonous item is dead.
pub(crate) fn poison(item: &Item) -> Problem {
    Problem::new(
        ProblemKind::Agent,
        codes::POISON,
        format!("{} took its agent down {} times and is not tried again", item.work.id, item.crashes),
    )
    .because(format!("it happened on {} generations of agents, so the item is the cause", item.crash_generations))
    .hint(match &item.run {
        Some(run) => format!("mnemosyne show {run}"),
        None => "look at the item's work_failed events for what it did".to_owned(),
    })
}

/// A run as it goes on in another boot; its state is the caller's.
pub(crate) fn taken_over(mut run: Run, boot: &str, budget: Option<Budget>) -> Run {
    run.boot = Some(boot.to_owned());
    run.resumes += 1;
    run.budget = budget::raise(run.budget, budget);
    run
}

/// A user's own item as it is stored.
pub(crate) fn own_item(work: WorkItem) -> Item {
    Item {
        work,
        run: None,
        task: None,
        kind: ItemKind::Work,
        state: ItemState::Ready,
        epoch: 0,
        crashes: 0,
        crash_generations: 0,
        model_failures: 0,
    }
}

/// Whether it may be stored.
pub(crate) fn check_item(item: &Item) -> Result<(), Problem> {
    refuse("work item", &item_findings(&item.work))
}

/// `Ready` in the rows means "not claimed and not ended"; people are told whether it waits.
pub(crate) fn shown_state(state: ItemState, open_dependencies: u32, not_before: Option<i64>, now: i64) -> ItemState {
    match state {
        ItemState::Ready if open_dependencies > 0 || not_before.is_some_and(|at| at > now) => ItemState::Waiting,
        other => other,
    }
}

/// Why an item is parked; kept with the item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ParkedFor {
    pub(crate) class: String,
    pub(crate) reason: String,
}

impl ParkedFor {
    /// What is kept of a release, if it parks its item.
    pub(crate) fn of(release: &Release) -> Option<Self> {
        let text = |said: &Option<String>| said.clone().unwrap_or_default();
        (release.reason == ReleaseReason::Parked)
            .then(|| Self { class: text(&release.class), reason: text(&release.error) })
    }
}

/// A parked item as people see it.
pub(crate) fn parked(item: &Item, until: i64, why: &ParkedFor) -> Parked {
    Parked {
        item: item.work.id.clone(),
        task: item.task.clone(),
        role: item.work.role,
        until: timestamp(until),
        class: why.class.clone(),
        reason: why.reason.clone(),
    }
}

/// `work_parked`. `run_waits`: it was the last thing that the run could go on with.
pub(crate) fn parked_event(item: &Item, until: i64, why: &ParkedFor, run_waits: bool) -> NewEvent {
    item_event(EventKind::WorkParked, item)
        .with("until", timestamp(until))
        .with("class", why.class.clone())
        .with("reason", clip(&why.reason, 2_000))
        .with("run_waits", run_waits)
}

/// A run waits while all that it has is parked. Like an item's, this state is not written but seen, so that it cannot
/// outlive its reason: when the first item's time has come, the run is running again.
pub(crate) fn shown_run_state(state: RunState, has_parked: bool, has_other: bool) -> RunState {
    match state {
        RunState::Running if has_parked && !has_other => RunState::Waiting,
        other => other,
    }
}

/// What `next_items` is given for an item without a run; nothing of it is stored.
pub(crate) fn no_run() -> Run {
    Run {
        id: String::new(),
        prompt: None,
        spec: None,
        plan: None,
        workspace: String::new(),
        options: RunOptions::default(),
        budget: Budget::default(),
        state: RunState::Running,
        phase: Phase::PlanToArtifacts,
        boot: None,
        resumes: 0,
        error: None,
        created_at: 0,
        ended_at: None,
    }
}

/// All phases of a run that has not begun.
pub(crate) fn pending_phases() -> Vec<PhaseRecord> {
    let pending = |name: &Phase| PhaseRecord {
        name: *name,
        state: PhaseState::Pending,
        started_at: None,
        ended_at: None,
        artifact: None,
    };
    Phase::ALL.iter().map(pending).collect()
}

/// A phase's change with its times.
pub(crate) fn change_phase(phase: &mut PhaseRecord, state: PhaseState, artifact: Option<String>, now: i64) {
    phase.state = state;
    if artifact.is_some() {
        phase.artifact = artifact;
    }
    match state {
        PhaseState::Running => {
            phase.started_at = phase.started_at.or(Some(now));
            phase.ended_at = None;
        }
        PhaseState::Done | PhaseState::Failed => {
            phase.started_at = phase.started_at.or(Some(now));
            phase.ended_at = Some(now);
        }
        PhaseState::Pending | PhaseState::Skipped => {}
    }
}

/// Whether a run is being worked on, if its boot lives.
pub(crate) fn is_under_way(state: RunState) -> bool {
    matches!(state, RunState::Running | RunState::Paused | RunState::Waiting)
}

/// Refuses states that `stop_run` is not for.
pub(crate) fn stop_event(run: &str, state: RunState, problem: &Problem) -> Result<NewEvent, Problem> {
    let kind = match state {
        RunState::Interrupted => EventKind::RunInterrupted,
        RunState::Budget => EventKind::BudgetExceeded,
        other => {
            return Err(Problem::new(
                ProblemKind::InvalidInput,
                codes::ITEM_INVALID,
                format!("a run cannot be stopped as {other}"),
            )
            .hint("stop it as interrupted or budget"));
        }
    };
    Ok(NewEvent { run: Some(run.to_owned()), ..NewEvent::new(kind) }
        .with("code", problem.code.clone())
        .with("message", problem.message.clone())
        .with("reason", problem.reason.clone())
        .with_all(problem.data.as_deref().cloned().unwrap_or_default()))
}

/// `run_resumed`.
pub(crate) fn resumed_event(run: &Run) -> NewEvent {
    NewEvent { run: Some(run.id.clone()), phase: Some(run.phase), ..NewEvent::new(EventKind::RunResumed) }
        .with("resumes", run.resumes)
}

/// An event about an item.
pub(crate) fn item_event(kind: EventKind, item: &Item) -> NewEvent {
    NewEvent {
        run: item.run.clone(),
        phase: Some(item.work.phase),
        task: item.task.clone(),
        item: Some(item.work.id.clone()),
        role: Some(item.work.role),
        epoch: Some(item.epoch),
        attempt: Some(item.work.attempt),
        ..NewEvent::new(kind)
    }
}

/// Events about the item that was claimed say by whom, where nobody said so before.
pub(crate) fn sign(events: &mut [NewEvent], item: &str, holder: &Holder) {
    for event in events.iter_mut().filter(|event| event.item.as_deref() == Some(item) && event.agent.is_none()) {
        event.agent = Some(holder.agent.clone());
        event.generation = Some(holder.generation);
    }
}

/// `work_failed` of a claim that ended without a result.
pub(crate) fn failed_event(item: &Item, error: &str, class: Option<&str>) -> NewEvent {
    let event = item_event(EventKind::WorkFailed, item).with("error", clip(error, 2_000));
    match class {
        Some(class) => event.with("class", class),
        None => event,
    }
}

/// `work_cancelled`.
pub(crate) fn cancelled_event(item: &Item, reason: &str) -> NewEvent {
    item_event(EventKind::WorkCancelled, item).with("reason", clip(reason, 2_000))
}

/// `work_started`, and the agent's own event, which has no run.
pub(crate) fn claim_events(item: &Item, request: &ClaimRequest) -> Vec<NewEvent> {
    let description = clip(&item.work.description, EVENT_TEXT);
    let started = NewEvent {
        agent: Some(request.agent.clone()),
        generation: Some(request.generation),
        ..item_event(EventKind::WorkStarted, item)
    };
    let agent = NewEvent { run: None, kind: EventKind::AgentStartedWithTask, ..started.clone() };
    vec![
        started.with("kind", item.kind.as_str()).with("description", description.clone()),
        agent.with("agent_id", request.agent.clone()).with("description", description),
    ]
}

/// `step_started`: what the caller says of it, and our own three keys.
pub(crate) fn step_started(item: &Item, holder: &Holder, step: &StartStep, number: u64) -> Result<NewEvent, Problem> {
    let detail = match &step.detail {
        Value::Null => Map::new(),
        Value::Object(detail) => detail.clone(),
        _ => return Err(bad_item(format!("the detail of step {:?} is not an object", step.name))),
    };
    let mut event = NewEvent {
        attempt: Some(step.attempt),
        agent: Some(holder.agent.clone()),
        generation: Some(holder.generation),
        data: detail,
        ..item_event(EventKind::StepStarted, item)
    };
    event = event.with("name", step.name.clone()).with("kind", step.kind.clone()).with("number", number);
    Ok(event)
}

/// `step_finished`: what the caller says of it (the class of its failure, say), and our own keys.
pub(crate) fn step_finished(item: &Item, holder: &Holder, name: &str, kind: &str, step: &FinishStep) -> NewEvent {
    let mut event = NewEvent {
        attempt: Some(step.attempt),
        agent: Some(holder.agent.clone()),
        generation: Some(holder.generation),
        data: step.detail.as_object().cloned().unwrap_or_default(),
        ..item_event(EventKind::StepFinished, item)
    };
    let state = if step.outcome.is_err() { StepState::Failed } else { StepState::Finished };
    event = event.with("name", name).with("kind", kind).with("number", step.number).with("state", json!(state));
    if let Err(error) = &step.outcome {
        event = event.with("error", clip(error, EVENT_TEXT));
    }
    match &step.usage {
        Some(usage) => event.with("usage", json!(usage)),
        None => event,
    }
}

/// Why an item is cancelled.
pub(crate) fn cancelled(item: &str, reason: &str) -> Problem {
    Problem::new(ProblemKind::Closed, codes::CLOSED, format!("work item {item} was cancelled")).because(reason)
}

/// Said of what waited for an item that ended without success: it would wait for ever.
pub(crate) fn lost_dependency(dependency: &str, state: ItemState) -> String {
    format!("it depends on {dependency}, which is {state}")
}

/// Something about an item that cannot be used.
pub(crate) fn bad_item(message: impl Into<String>) -> Problem {
    Problem::new(ProblemKind::InvalidInput, codes::ITEM_INVALID, message)
}

/// An id that names no item.
pub(crate) fn no_such_item(item: &str) -> Problem {
    bad_item(format!("there is no work item {item}")).hint("mnemosyne runs lists the runs of this store")
}

/// One item of a run is not cancelled by itself: the run would wait for it for ever.
pub(crate) fn item_of_a_run(item: &str, run: &str) -> Problem {
    bad_item(format!("{item} belongs to run {run} and cannot be cancelled alone"))
        .hint(format!("mnemosyne cancel {run}"))
}

/// An id that names no dead letter.
pub(crate) fn no_dead_letter(item: &str, state: Option<ItemState>) -> Problem {
    let why = state.map_or_else(|| "there is no such item".to_owned(), |state| format!("the item is {state}"));
    Problem::new(ProblemKind::InvalidInput, codes::NO_DEAD_LETTER, format!("there is no dead letter {item}"))
        .because(why)
        .hint("mnemosyne dead")
}

/// A dead letter of a run was the end of its task.
pub(crate) fn dead_letter_of_a_run(item: &Item, run: &str) -> Problem {
    let task = item.task.as_deref().unwrap_or("TASK");
    bad_item(format!("{} belongs to run {run} and is not requeued or discarded alone", item.work.id))
        .because("its task has failed with it")
        .hint(format!("mnemosyne retry {run} {task}"))
}

/// What a person does with a dead letter.
pub(crate) fn dead_letter_event(kind: EventKind, item: &Item, reason: &str) -> NewEvent {
    item_event(kind, item).with("reason", clip(reason, 2_000))
}

/// Nobody claimed it in time.
pub(crate) fn deadline_passed(item: &Item, deadline: i64) -> Problem {
    Problem::new(
        ProblemKind::Timeout,
        codes::DEADLINE_PASSED,
        format!("work item {} was not begun before its deadline", item.work.id),
    )
    .because(format!("the deadline was {}", timestamp(deadline)))
    .hint("give it more time, a higher priority, or its role more agents")
}

/// A deadline that would be over before anybody could look.
pub(crate) fn check_times(item: &str, how: &Submission, now: i64) -> Result<(), Problem> {
    match how.deadline {
        Some(deadline) if deadline <= queued_from(how, now) => {
            Err(bad_item(format!("work item {item} would have no time before its deadline"))
                .because(format!("the deadline is {}", timestamp(deadline)))
                .hint("give it a later deadline; nothing was stored"))
        }
        _ => Ok(()),
    }
}

/// From when on an item waits its turn: one that is delayed does not get ahead by having been submitted early.
pub(crate) fn queued_from(how: &Submission, now: i64) -> i64 {
    how.not_before.map_or(now, |at| at.max(now))
}

/// Two items of one unique key cannot live at once.
pub(crate) fn key_is_taken(item: &str, rival: &str) -> Problem {
    Problem::new(
        ProblemKind::InvalidInput,
        codes::PLAN_DUPLICATE,
        format!("{item} cannot be requeued: {rival} has its unique key"),
    )
    .hint("wait until that one has ended, or discard the dead letter: mnemosyne dead discard ITEM")
}

/// `run_paused`.
pub(crate) fn paused_event(run: &Run, reason: &str) -> NewEvent {
    NewEvent { run: Some(run.id.clone()), phase: Some(run.phase), ..NewEvent::new(EventKind::RunPaused) }
        .with("reason", clip(reason, 2_000))
}

/// An item whose dependency is already lost.
pub(crate) fn dead_dependency(item: &str, dependency: &str, state: ItemState) -> Problem {
    bad_item(format!("work item {item} depends on {dependency}, which is {state}"))
        .because("it could never be started")
        .hint("depend on an item that is done or still to be done; nothing was stored")
}

/// A dependency on nothing.
pub(crate) fn dangling(item: &str, dependency: &str) -> Problem {
    Problem::new(
        ProblemKind::InvalidInput,
        codes::PLAN_DANGLING,
        format!("work item {item} depends on {dependency:?}, which is not in the store"),
    )
    .hint("submit the dependency first; nothing was stored")
}

/// An id that is taken.
pub(crate) fn duplicate(what: &str, id: &str) -> Problem {
    Problem::new(ProblemKind::InvalidInput, codes::PLAN_DUPLICATE, format!("the {what} id {id:?} is used already"))
        .hint("choose another id, or give an idempotency key to submit the same thing twice; nothing was stored")
}

/// A step that is not open.
pub(crate) fn no_such_step(item: &str, number: u64) -> Problem {
    bad_item(format!("step {number} of {item} is not open")).because("it was never started or has ended")
}

/// A reservation that is not open.
pub(crate) fn no_such_reservation(item: &str, reservation: &str) -> Problem {
    bad_item(format!("reservation {reservation} of {item} is not open")).because("it was never made or is settled")
}

/// An id that names no run.
pub(crate) fn no_such_run(run: &str) -> Problem {
    Problem::new(ProblemKind::InvalidInput, codes::RUN_NOT_FOUND, format!("there is no run {run} in this store"))
        .hint("mnemosyne runs")
}

/// A run that has ended.
pub(crate) fn run_ended(run: &Run) -> Problem {
    Problem::new(
        ProblemKind::InvalidInput,
        codes::RUN_ENDED,
        format!("run {} is {} and cannot go on", run.id, run.state),
    )
    .hint(format!("mnemosyne show {}", run.id))
}

/// A run that a live boot works on.
pub(crate) fn run_lives(run: &str, pid: Option<u32>) -> Problem {
    let who = process(pid);
    Problem::new(ProblemKind::InvalidInput, codes::RUN_LIVES, format!("run {run} is being worked on by {who}"))
        .because("two processes must not drive one run")
        .hint(format!("wait for it, or: mnemosyne cancel {run}"))
}

/// A workspace that another run changes.
pub(crate) fn workspace_busy(workspace: &str, run: &str, pid: Option<u32>) -> Problem {
    let who = process(pid);
    Problem::new(ProblemKind::InvalidInput, codes::WORKSPACE_BUSY, format!("run {run} works in {workspace} already"))
        .because(format!("{who} drives it, and two runs would overwrite each other's files"))
        .hint(format!("wait for it, choose another --workspace, or: mnemosyne cancel {run}"))
}

/// What an artifact's content is called.
pub(crate) fn artifact_reference(name: &str, content: &[u8]) -> ArtifactRef {
    let digest = Sha256::digest(content);
    let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    ArtifactRef { name: name.to_owned(), sha256, size: content.len() as u64 }
}

fn process(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// A command that names nothing to do would be taken and forgotten.
pub(crate) fn check_command(command: &NewCommand) -> Result<(), Problem> {
    if command.kind.trim().is_empty() {
        return Err(bad_item("a command has no kind"));
    }
    Ok(())
}

fn clip(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
