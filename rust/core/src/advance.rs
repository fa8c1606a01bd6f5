//! What follows: the Work Plan Protocol and the way of one task, as one pure function of a run, an item and its result.
//!
//! The store inserts what comes out of here in the transaction that commits the result (**DUR-2**). Nobody else makes
//! items, so an item has at most one set of successors (**ONCE-1**).
//!
//! ```text
//! prompt_to_spec -> spec_to_full_spec -> full_spec_to_plan -> per task, when what it depends on is accepted:
//!     optimize -> execute -> review -> accept
//!        ^___________________|________|   rejected: attempt + 1, at most 3
//! ```

use crate::error::{Problem, ProblemKind, codes};
use crate::event::{EventKind, NewEvent};
use crate::plan::Plan;
use crate::record::{Attempt, Item, Run, Task};
use crate::state::{ItemKind, ItemState, Phase, PhaseState, RunState, TaskState};
use crate::work::WorkResult;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Attempts of a task or a phase before it is given up.
pub const MAX_ATTEMPTS: u32 = 3;

/// A run as the decision needs it.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The run.
    pub run: &'a Run,
    /// All its tasks, in the order of the plan.
    pub tasks: &'a [Task],
    /// The number of the next item of this run.
    pub next_number: u64,
}

/// A phase that changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhaseChange {
    /// Which.
    pub name: Phase,
    /// To what.
    pub state: PhaseState,
    /// Name of the artifact it leaves.
    pub artifact: Option<String>,
}

/// All that follows from one thing that happened. The store applies it in one transaction.
#[derive(Debug, Clone, Default)]
pub struct Advance {
    /// What becomes of the item itself; `None` for a new run.
    pub item_state: Option<ItemState>,
    /// New items.
    pub items: Vec<Item>,
    /// Tasks that are new or changed, whole.
    pub tasks: Vec<Task>,
    /// Attempts that ended.
    pub attempts: Vec<Attempt>,
    /// Phases that change.
    pub phases: Vec<PhaseChange>,
    /// The run, whole, if it changes.
    pub run: Option<Run>,
    /// Typed artifacts: name and content.
    pub artifacts: Vec<(String, Value)>,
    /// What happened, in order.
    pub events: Vec<NewEvent>,
}

/// What a new run begins with. With a plan the first three phases are skipped.
///
/// # Errors
/// All that is wrong with the plan.
pub fn first_items(run: &Run) -> Result<Advance, Problem> {
    let mut step = Step::new(View { run, tasks: &[], next_number: 1 });
    step.event(EventKind::RunSubmitted, None, |event| {
        event.with("workspace", run.workspace.clone()).with("plan_given", run.plan.is_some())
    });
    match &run.plan {
        None => {
            step.start_phase(Phase::PromptToSpec);
            let context = Map::from_iter([("prompt".to_owned(), json!(run.prompt))]);
            step.new_item(None, ItemKind::PromptToSpec, context);
        }
        Some(plan) => {
            plan.validate()?;
            for phase in [Phase::PromptToSpec, Phase::SpecToFullSpec, Phase::FullSpecToPlan] {
                step.out.phases.push(PhaseChange { name: phase, state: PhaseState::Skipped, artifact: None });
            }
            step.start_tasks(plan.clone());
        }
    }
    Ok(step.finish())
}

/// What follows a result.
pub fn next_items(view: View<'_>, item: &Item, result: &WorkResult) -> Advance {
    let mut step = Step::new(view);
    let outcome = match item.kind {
        ItemKind::PromptToSpec | ItemKind::SpecToFullSpec | ItemKind::FullSpecToPlan => step.after_phase(item, result),
        ItemKind::Optimize => step.after_optimize(item, result),
        ItemKind::Execute => step.after_execute(item, result),
        ItemKind::Review => step.after_review(item, result),
        ItemKind::Accept => step.after_accept(item, result),
        ItemKind::Work => {
            if result.success {
                Ok(())
            } else {
                Err(failure_text(result))
            }
        }
    };
    step.out.item_state = Some(if outcome.is_ok() { ItemState::Done } else { ItemState::Failed });
    let said = match &outcome {
        Ok(()) => step.item_event(EventKind::WorkCompleted, item),
        Err(text) => step.item_event(EventKind::WorkFailed, item).with("error", clip(text)),
    };
    step.out.events.insert(0, said);
    if let Err(text) = outcome {
        step.unsuccessful(item, &text);
    }
    step.settle();
    step.finish()
}

/// What follows when an item is given up without a result: dead (poison) or failed for good.
pub fn item_dead(view: View<'_>, item: &Item, state: ItemState, problem: &Problem) -> Advance {
    let mut step = Step::new(view);
    step.out.item_state = Some(state);
    let kind = if state == ItemState::Dead { EventKind::WorkDead } else { EventKind::WorkFailed };
    let event = step.item_event(kind, item).with("error", clip(&problem.message)).with("code", problem.code.clone());
    step.out.events.push(event);
    match step.task_of(item) {
        Some(task) => step.fail_task(task, TaskState::Failed, "failed", &problem.message),
        None if item.kind != ItemKind::Work => step.fail_run(problem.clone(), Some(item.work.phase)),
        None => {}
    }
    step.settle();
    step.finish()
}

/// What follows when a run is cancelled. The store cancels its items.
pub fn cancel_run(view: View<'_>, reason: &str) -> Advance {
    let mut step = Step::new(view);
    for task in view.tasks.iter().filter(|task| !task.state.is_terminal()) {
        step.put_task(Task { state: TaskState::Cancelled, ..task.clone() });
    }
    step.out.phases.push(PhaseChange { name: view.run.phase, state: PhaseState::Failed, artifact: None });
    let problem = Problem::new(ProblemKind::Closed, codes::RUN_FAILED, "the run was cancelled").because(reason);
    step.change_run(|run| {
        run.state = RunState::Cancelled;
        run.error = Some(problem_value(&problem));
    });
    step.event(EventKind::RunCancelled, Some(view.run.phase), |event| event.with("reason", reason));
    step.finish()
}

/// What follows when a person gives a task that failed new attempts, with or without a word of guidance: the run goes on,
/// and tasks that were skipped because of this one wait for it again. The run is given as it is now driven: its boot,
/// its budget and the count of its resumes are the store's.
///
/// # Errors
/// No such task, a task that did not fail, a run that was cancelled.
pub fn retry_task(view: View<'_>, id: &str, note: Option<&str>) -> Result<Advance, Problem> {
    let task = retryable(view, id)?;
    let mut step = Step::new(view);
    step.change_run(|run| {
        run.state = RunState::Running;
        run.phase = Phase::PlanToArtifacts;
        run.error = None;
        run.ended_at = None;
    });
    let resumes = view.run.resumes;
    step.event(EventKind::RunResumed, Some(Phase::PlanToArtifacts), |event| event.with("resumes", resumes));
    let running = PhaseChange { name: Phase::PlanToArtifacts, state: PhaseState::Running, artifact: None };
    step.out.phases.push(running);
    let task = Task {
        state: TaskState::Ready,
        attempt: task.attempt + 1,
        last_attempt: task.attempt + MAX_ATTEMPTS,
        note: note.map(str::to_owned).or(task.note),
        ..task
    };
    step.task_event(EventKind::TaskRetried, &task, |event| {
        event.with("title", task.spec.title.clone()).with("note", clip(note.unwrap_or_default()))
    });
    step.begin_attempt(task);
    step.unskip();
    Ok(step.finish())
}

/// The task, if it may be given new attempts.
fn retryable(view: View<'_>, id: &str) -> Result<Task, Problem> {
    let run = view.run;
    let refuse = |code, message: String| Problem::new(ProblemKind::InvalidInput, code, message);
    if run.state == RunState::Cancelled {
        let problem = refuse(codes::RUN_ENDED, format!("run {} is {} and cannot go on", run.id, run.state));
        return Err(problem.hint(format!("mnemosyne show {}", run.id)));
    }
    let Some(task) = view.tasks.iter().find(|task| task.spec.id == id) else {
        let ids: Vec<&str> = view.tasks.iter().map(|task| task.spec.id.as_str()).collect();
        let known =
            if ids.is_empty() { "it has none".to_owned() } else { clip(&format!("its tasks are {}", ids.join(", "))) };
        let problem = refuse(codes::TASK_NOT_FOUND, format!("run {} has no task {id:?}", run.id));
        return Err(problem.because(known).hint(format!("mnemosyne show {}", run.id)));
    };
    if matches!(task.state, TaskState::Failed | TaskState::Conflict) {
        return Ok(task.clone());
    }
    let problem =
        refuse(codes::TASK_NOT_FAILED, format!("task {id} of run {} is {} and did not fail", run.id, task.state));
    let failed = view.tasks.iter().find(|other| matches!(other.state, TaskState::Failed | TaskState::Conflict));
    Err(match (task.state, failed) {
        (TaskState::Accepted, _) => {
            problem.because("what was accepted stays accepted").hint(format!("mnemosyne show {}", run.id))
        }
        (TaskState::Skipped, Some(failed)) => problem
            .because("it waits for a task that failed, and is begun when that one is accepted")
            .hint(format!("mnemosyne retry {} {}", run.id, failed.spec.id)),
        _ => problem.because("it has attempts left").hint(format!("mnemosyne resume {}", run.id)),
    })
}

/// `{code, message, reason, hint}`: the form of `error` in the summary.
pub fn problem_value(problem: &Problem) -> Value {
    json!({"code": problem.code, "message": problem.message, "reason": problem.reason, "hint": problem.hint})
}

/// The advance under construction, with a copy of the tasks that already holds its changes.
struct Step {
    run: Run,
    tasks: Vec<Task>,
    out: Advance,
    next_number: u64,
}

impl Step {
    fn new(view: View<'_>) -> Self {
        Self {
            run: view.run.clone(),
            tasks: view.tasks.to_vec(),
            out: Advance::default(),
            next_number: view.next_number,
        }
    }

    fn finish(self) -> Advance {
        self.out
    }

    fn event(&mut self, kind: EventKind, phase: Option<Phase>, fill: impl FnOnce(NewEvent) -> NewEvent) {
        let event = NewEvent { run: Some(self.run.id.clone()), phase, ..NewEvent::new(kind) };
        self.out.events.push(fill(event));
    }

    fn item_event(&self, kind: EventKind, item: &Item) -> NewEvent {
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

    fn task_event(&mut self, kind: EventKind, task: &Task, fill: impl FnOnce(NewEvent) -> NewEvent) {
        let event = NewEvent {
            run: Some(self.run.id.clone()),
            phase: Some(Phase::PlanToArtifacts),
            task: Some(task.spec.id.clone()),
            attempt: Some(task.attempt),
            ..NewEvent::new(kind)
        };
        self.out.events.push(fill(event));
    }

    fn new_item(&mut self, task: Option<&Task>, kind: ItemKind, context: Map<String, Value>) {
        let item = Item::new(&self.run, task, kind, self.next_number, context);
        self.next_number += 1;
        self.out.items.push(item);
    }

    fn change_run(&mut self, change: impl FnOnce(&mut Run)) {
        change(&mut self.run);
        self.out.run = Some(self.run.clone());
    }

    fn put_task(&mut self, task: Task) {
        self.out.tasks.retain(|changed| changed.spec.id != task.spec.id);
        match self.tasks.iter_mut().find(|known| known.spec.id == task.spec.id) {
            Some(known) => known.clone_from(&task),
            None => self.tasks.push(task.clone()),
        }
        self.out.tasks.push(task);
    }

    fn task_of(&self, item: &Item) -> Option<Task> {
        let id = item.task.as_ref()?;
        self.tasks.iter().find(|task| task.spec.id == *id).cloned()
    }

    fn start_phase(&mut self, phase: Phase) {
        self.out.phases.push(PhaseChange { name: phase, state: PhaseState::Running, artifact: None });
        self.change_run(|run| run.phase = phase);
        self.event(EventKind::PhaseStarted, Some(phase), |event| event);
    }

    fn complete_phase(&mut self, phase: Phase, artifact: &str, content: Value) {
        self.out.phases.push(PhaseChange { name: phase, state: PhaseState::Done, artifact: Some(artifact.to_owned()) });
        self.out.artifacts.push((artifact.to_owned(), content));
        self.event(EventKind::PhaseCompleted, Some(phase), |event| event.with("artifact", artifact));
    }

    /// The first three phases: the artifact is validated, stored, and read by the next.
    fn after_phase(&mut self, item: &Item, result: &WorkResult) -> Result<(), String> {
        let key = match item.kind {
            ItemKind::PromptToSpec => "spec",
            ItemKind::SpecToFullSpec => "full_spec",
            _ => "plan",
        };
        if !result.success {
            return Err(failure_text(result));
        }
        let content = result.data.get(key).filter(|value| value.is_object()).cloned();
        let content = content.ok_or_else(|| format!("the result has no {key:?} in its data"))?;
        let plan = match item.kind {
            ItemKind::FullSpecToPlan => Some(read_plan(&content)?),
            _ => None,
        };
        self.complete_phase(item.work.phase, &format!("{key}.json"), content.clone());
        if item.kind == ItemKind::PromptToSpec {
            self.change_run(|run| run.spec = Some(content.clone()));
        }
        match (item.kind, plan) {
            (_, Some(plan)) => {
                self.change_run(|run| run.plan = Some(plan.clone()));
                self.start_tasks(plan);
            }
            (ItemKind::PromptToSpec, None) => self.next_phase_item(item, ItemKind::SpecToFullSpec, key, content),
            (_, None) => self.next_phase_item(item, ItemKind::FullSpecToPlan, key, content),
        }
        Ok(())
    }

    fn next_phase_item(&mut self, item: &Item, kind: ItemKind, key: &str, content: Value) {
        if let Some(phase) = kind.phase() {
            self.start_phase(phase);
        }
        let mut context = item.work.context.clone();
        context.remove("feedback");
        context.insert(key.to_owned(), content);
        self.new_item(None, kind, context);
    }

    fn start_tasks(&mut self, plan: Plan) {
        self.start_phase(Phase::PlanToArtifacts);
        for (position, spec) in plan.tasks.into_iter().enumerate() {
            self.put_task(Task {
                spec,
                position: u32::try_from(position).unwrap_or(u32::MAX),
                state: TaskState::Blocked,
                attempt: 1,
                feedback: None,
                commit: None,
                files: Vec::new(),
                evidence: Vec::new(),
                review: None,
                summary: None,
                tried: Vec::new(),
                note: None,
                last_attempt: MAX_ATTEMPTS,
            });
        }
        self.release_ready();
    }

    /// Blocked tasks whose dependencies are all accepted become ready, in the order of the plan.
    fn release_ready(&mut self) {
        let accepted: BTreeSet<String> = self
            .tasks
            .iter()
            .filter(|task| task.state == TaskState::Accepted)
            .map(|task| task.spec.id.clone())
            .collect();
        let ready: Vec<Task> = self
            .tasks
            .iter()
            .filter(|task| task.state == TaskState::Blocked)
            .filter(|task| task.spec.depends_on.iter().all(|id| accepted.contains(id)))
            .cloned()
            .collect();
        for task in ready {
            let task = Task { state: TaskState::Ready, ..task };
            self.task_event(EventKind::TaskReady, &task, |event| event.with("title", task.spec.title.clone()));
            self.begin_attempt(task);
        }
    }

    /// Puts the task, and the first item of its attempt. What an earlier one saw is no evidence of this one.
    fn begin_attempt(&mut self, task: Task) {
        let task = Task { evidence: Vec::new(), review: None, summary: None, ..task };
        let mut context = Map::new();
        context.insert("task".into(), json!(task.spec));
        context.insert("requirements".into(), requirements(&self.run, &task));
        context.insert("spec".into(), self.run.spec.clone().unwrap_or(Value::Null));
        context.insert("feedback".into(), json!(task.feedback));
        context.insert("tried".into(), json!(task.tried));
        context.insert("note".into(), json!(task.note));
        let (base, commit) = task.commit.clone().unzip();
        context.insert("rejected_base".into(), json!(base));
        context.insert("rejected_commit".into(), json!(commit));
        self.new_item(Some(&task), ItemKind::Optimize, context);
        self.put_task(task);
    }

    fn after_optimize(&mut self, item: &Item, result: &WorkResult) -> Result<(), String> {
        let task = self.task_of(item).ok_or("its task is gone")?;
        if !result.success {
            return Err(failure_text(result));
        }
        if result.flag("refused") {
            // Another attempt would be judged by the same commands.
            let task = Task { evidence: result.evidence.clone(), ..task };
            self.fail_task(task, TaskState::Failed, "refused", result.text("feedback").unwrap_or_default());
            return Ok(());
        }
        let pack = result.text("pack").ok_or("the result has no \"pack\" in its data")?;
        let mut context = item.work.context.clone();
        context.remove("task");
        context.remove("spec");
        context.insert("pack".into(), json!(pack));
        context.insert("base".into(), result.data.get("base").cloned().unwrap_or(Value::Null));
        context.insert("acceptance".into(), json!(task.spec.acceptance));
        self.new_item(Some(&task), ItemKind::Execute, context);
        Ok(())
    }

    fn after_execute(&mut self, item: &Item, result: &WorkResult) -> Result<(), String> {
        let task = self.task_of(item).ok_or("its task is gone")?;
        let base = result.text("base_commit").map(str::to_owned);
        let commit = result.text("commit").map(str::to_owned);
        let commit = base.zip(commit);
        let summary = result.text("summary").filter(|text| !text.is_empty()).map(clip);
        let task = Task { evidence: result.evidence.clone(), summary, ..task };
        if !result.success {
            // What was done so far is the start of the next attempt.
            self.put_task(Task { commit, ..task });
            return Err(failure_text(result));
        }
        let (base, head) = commit.ok_or("the result names no commit")?;
        let mut context = Map::new();
        context.insert("commit".into(), json!(head));
        context.insert("base_commit".into(), json!(base));
        context.insert("base".into(), item.work.context.get("base").cloned().unwrap_or(Value::Null));
        context.insert("tree".into(), result.data.get("tree").cloned().unwrap_or(Value::Null));
        context.insert("summary".into(), json!(result.text("summary").unwrap_or_default()));
        context.insert("acceptance".into(), json!(task.spec.acceptance));
        context.insert("requirements".into(), requirements(&self.run, &task));
        let task = Task { state: TaskState::Reviewing, commit: Some((base, head)), ..task };
        self.new_item(Some(&task), ItemKind::Review, context);
        self.put_task(task);
        Ok(())
    }

    fn after_review(&mut self, item: &Item, result: &WorkResult) -> Result<(), String> {
        let task = self.task_of(item).ok_or("its task is gone")?;
        if !result.success {
            return Err(failure_text(result));
        }
        let passed = result.flag("passed");
        let feedback = result.text("feedback").unwrap_or_default().to_owned();
        let confidence = result.data.get("confidence").cloned().unwrap_or(Value::Null);
        let review = json!({"passed": passed, "confidence": confidence, "feedback": feedback,
            "requirements": result.data.get("requirements").cloned().unwrap_or_else(|| json!([]))});
        let mut task = Task { review: Some(review), ..task };
        task.evidence.extend(result.evidence.iter().cloned());
        self.put_task(task.clone());
        if !passed {
            self.task_event(EventKind::ReviewRejected, &task, |event| event.with("feedback", clip(&feedback)));
            let from = match result.text("rework_commit") {
                _ if result.flag("start_over") => Start::Fresh,
                Some(commit) => Start::At(commit.to_owned()),
                None => Start::Rejected,
            };
            self.reject(task, &feedback, from);
            return Ok(());
        }
        self.task_event(EventKind::ReviewPassed, &task, |event| event.with("confidence", confidence));
        let (base, commit) = task.commit.clone().ok_or("its commit is gone")?;
        let context = Map::from_iter([("commit".into(), json!(commit)), ("base_commit".into(), json!(base))]);
        self.new_item(Some(&task), ItemKind::Accept, context);
        Ok(())
    }

    fn after_accept(&mut self, item: &Item, result: &WorkResult) -> Result<(), String> {
        let task = self.task_of(item).ok_or("its task is gone")?;
        if !result.success {
            return Err(failure_text(result));
        }
        let feedback = result.text("feedback").unwrap_or_default().to_owned();
        let mut task = task;
        task.evidence.extend(result.evidence.iter().cloned());
        if result.flag("accepted") {
            self.accept_task(task, result);
        } else if result.flag("conflict") {
            self.fail_task(task, TaskState::Conflict, "conflict", &feedback);
        } else {
            self.task_event(EventKind::ReviewRejected, &task, |event| event.with("feedback", clip(&feedback)));
            self.reject(task, &feedback, Start::Rejected);
        }
        Ok(())
    }

    fn accept_task(&mut self, task: Task, result: &WorkResult) {
        let files = result.data.get("files").and_then(Value::as_array).cloned().unwrap_or_default();
        let files: Vec<String> = files.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let commit = result.text("commit").unwrap_or_default().to_owned();
        let task = Task { state: TaskState::Accepted, files, feedback: None, ..task };
        self.end_attempt(&task, "accepted", None);
        self.task_event(EventKind::TaskAccepted, &task, |event| {
            event.with("commit", commit).with("files", task.files.clone())
        });
        self.put_task(task);
        self.release_ready();
    }

    /// A reviewer that could not answer has rejected nothing: it is asked again, about the same commit. An attempt is the
    /// executor's.
    fn review_again(&mut self, item: &Item, task: Task, text: &str) {
        let tries = item.work.context.get("review_tries").and_then(Value::as_u64).unwrap_or(1);
        if tries >= u64::from(MAX_ATTEMPTS) {
            return self.fail_task(task, TaskState::Failed, "failed", &format!("it could not be reviewed: {text}"));
        }
        let mut context = item.work.context.clone();
        context.insert("review_tries".into(), json!(tries + 1));
        self.new_item(Some(&task), ItemKind::Review, context);
    }

    /// A result that says no: the next attempt sees why, or the task or phase is given up.
    fn unsuccessful(&mut self, item: &Item, text: &str) {
        match self.task_of(item) {
            Some(task) if item.kind == ItemKind::Review => self.review_again(item, task, text),
            Some(task) => {
                let task =
                    if task.state == TaskState::Ready { Task { state: TaskState::Running, ..task } } else { task };
                self.reject(task, text, Start::Rejected);
            }
            None if item.kind == ItemKind::Work => {}
            None if item.work.attempt < MAX_ATTEMPTS => {
                let mut context = item.work.context.clone();
                context.insert("feedback".into(), json!(text));
                self.new_item(None, item.kind, context);
                if let Some(next) = self.out.items.last_mut() {
                    next.work.attempt = item.work.attempt + 1;
                }
            }
            None => {
                let problem = Problem::new(
                    ProblemKind::Agent,
                    codes::RUN_FAILED,
                    format!("the phase {} failed after {MAX_ATTEMPTS} attempts", item.work.phase),
                );
                self.fail_run(problem.because(clip(text)), Some(item.work.phase));
            }
        }
    }

    fn reject(&mut self, task: Task, feedback: &str, from: Start) {
        let gives_up = task.attempt >= task.last_attempt;
        self.end_attempt(&task, "rejected", Some(feedback));
        let task = remember(start_from(task, from), feedback);
        if gives_up {
            return self.lose_task(task, TaskState::Failed);
        }
        self.begin_attempt(Task { state: TaskState::Running, attempt: task.attempt + 1, ..task });
    }

    fn end_attempt(&mut self, task: &Task, verdict: &str, feedback: Option<&str>) {
        self.out.attempts.push(Attempt {
            task: task.spec.id.clone(),
            attempt: task.attempt,
            verdict: verdict.to_owned(),
            base: task.commit.as_ref().map(|(base, _)| base.clone()),
            commit: task.commit.as_ref().map(|(_, commit)| commit.clone()),
            summary: task.summary.clone(),
            feedback: feedback.map(str::to_owned),
            evidence: task.evidence.clone(),
            review: task.review.clone(),
        });
    }

    fn fail_task(&mut self, task: Task, state: TaskState, verdict: &str, feedback: &str) {
        self.end_attempt(&task, verdict, Some(feedback));
        self.lose_task(remember(task, feedback), state);
    }

    fn lose_task(&mut self, task: Task, state: TaskState) {
        let task = Task { state, ..task };
        let reason = clip(task.feedback.as_deref().unwrap_or_default());
        self.task_event(EventKind::TaskFailed, &task, |event| {
            event.with("state", state.as_str()).with("reason", reason)
        });
        self.put_task(task);
        self.skip_dependents();
    }

    /// Tasks that wait for one that will never be accepted are skipped, and those that wait for them.
    fn skip_dependents(&mut self) {
        loop {
            let lost: BTreeSet<String> = self
                .tasks
                .iter()
                .filter(|task| task.state.is_terminal() && task.state != TaskState::Accepted)
                .map(|task| task.spec.id.clone())
                .collect();
            let next = self
                .tasks
                .iter()
                .find(|task| {
                    task.state == TaskState::Blocked && task.spec.depends_on.iter().any(|id| lost.contains(id))
                })
                .cloned();
            let Some(task) = next else { return };
            let because: Vec<String> = task.spec.depends_on.iter().filter(|id| lost.contains(*id)).cloned().collect();
            let task = Task { state: TaskState::Skipped, ..task };
            self.task_event(EventKind::TaskSkipped, &task, |event| event.with("because_of", because));
            self.put_task(task);
        }
    }

    /// Skipped tasks that no longer wait for a lost one wait for their turn again.
    fn unskip(&mut self) {
        loop {
            let lost: BTreeSet<&String> = self
                .tasks
                .iter()
                .filter(|task| task.state.is_terminal() && task.state != TaskState::Accepted)
                .map(|task| &task.spec.id)
                .collect();
            let next = self.tasks.iter().find(|task| {
                task.state == TaskState::Skipped && !task.spec.depends_on.iter().any(|id| lost.contains(id))
            });
            let Some(task) = next.cloned() else { return };
            self.put_task(Task { state: TaskState::Blocked, ..task });
        }
    }

    /// Ends the run when all its tasks have ended.
    fn settle(&mut self) {
        if self.run.state.is_terminal()
            || self.tasks.is_empty()
            || !self.tasks.iter().all(|task| task.state.is_terminal())
        {
            return;
        }
        let not_accepted: Vec<String> = self
            .tasks
            .iter()
            .filter(|task| task.state != TaskState::Accepted)
            .map(|task| {
                match task.feedback.as_deref().and_then(|text| text.lines().find(|line| !line.trim().is_empty())) {
                    Some(line) if task.state != TaskState::Skipped => {
                        format!("{} {}: {line}", task.spec.id, task.state)
                    }
                    _ => format!("{} {}", task.spec.id, task.state),
                }
            })
            .collect();
        if !not_accepted.is_empty() {
            let problem = Problem::new(
                ProblemKind::Agent,
                codes::RUN_FAILED,
                format!("{} of {} tasks were not accepted", not_accepted.len(), self.tasks.len()),
            )
            .because(clip(&not_accepted.join("; ")))
            .hint(
                match self.tasks.iter().find(|task| matches!(task.state, TaskState::Failed | TaskState::Conflict)) {
                    Some(failed) => format!("mnemosyne show {} --evidence {}", self.run.id, failed.spec.id),
                    None => format!("mnemosyne show {}", self.run.id),
                },
            );
            return self.fail_run(problem, Some(Phase::PlanToArtifacts));
        }
        let files: Vec<Value> =
            self.tasks.iter().map(|task| json!({"task": task.spec.id, "files": task.files})).collect();
        self.complete_phase(Phase::PlanToArtifacts, "artifacts.json", json!({"tasks": files}));
        self.out.phases.push(PhaseChange { name: Phase::Complete, state: PhaseState::Done, artifact: None });
        self.change_run(|run| {
            run.phase = Phase::Complete;
            run.state = RunState::Done;
            run.error = None;
        });
        self.event(EventKind::RunCompleted, Some(Phase::Complete), |event| event);
    }

    fn fail_run(&mut self, problem: Problem, phase: Option<Phase>) {
        if let Some(name) = phase {
            self.out.phases.push(PhaseChange { name, state: PhaseState::Failed, artifact: None });
        }
        let hint = format!("mnemosyne show {}", self.run.id);
        let problem = if problem.hint.is_empty() { problem.hint(hint) } else { problem };
        self.change_run(|run| {
            run.state = RunState::Failed;
            run.error = Some(problem_value(&problem));
        });
        let data = (problem.code.clone(), clip(&problem.message), clip(&problem.reason));
        self.event(EventKind::RunFailed, phase, |event| {
            event.with("code", data.0).with("message", data.1).with("reason", data.2)
        });
        // A run that ended has nothing left to claim.
        self.out.items.clear();
    }
}

/// Where the files of the next attempt come from, beside the accepted ones.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Start {
    /// The rejected commit.
    Rejected,
    /// A commit in its place: the harness put back what must not count.
    At(String),
    /// The accepted files alone.
    Fresh,
}

fn start_from(task: Task, from: Start) -> Task {
    let commit = match from {
        Start::Rejected => task.commit,
        Start::At(commit) => task.commit.map(|(base, _)| (base, commit)),
        Start::Fresh => None,
    };
    Task { commit, ..task }
}

/// Notes what was tried and why it was not enough, so that the next attempt does not try it again.
fn remember(mut task: Task, feedback: &str) -> Task {
    task.tried.push(json!({"attempt": task.attempt, "summary": task.summary, "feedback": clip(feedback)}));
    Task { feedback: Some(feedback.to_owned()), ..task }
}

/// A plan as the model gave it; the text of a refusal is the feedback of the next attempt.
fn read_plan(content: &Value) -> Result<Plan, String> {
    let plan: Plan =
        serde_json::from_value(content.clone()).map_err(|error| format!("the plan is malformed: {error}"))?;
    plan.validate().map_err(|refused| format!("the plan is refused: {}; {}", refused.message, refused.reason))?;
    Ok(plan)
}

/// The requirements that a task names in its title or description; where it names none, the task itself is the one.
fn requirements(run: &Run, task: &Task) -> Value {
    let all = run.spec.as_ref().and_then(|spec| spec.get("requirements")).and_then(Value::as_array);
    let text = format!("{} {}", task.spec.title, task.spec.description);
    let words: BTreeSet<&str> = text.split(|c: char| !c.is_alphanumeric() && c != '-' && c != '_').collect();
    let named: Vec<Value> = all
        .into_iter()
        .flatten()
        .filter(|requirement| requirement.get("id").and_then(Value::as_str).is_some_and(|id| words.contains(id)))
        .cloned()
        .collect();
    if named.is_empty() {
        let text = if task.spec.description.is_empty() { &task.spec.title } else { &task.spec.description };
        return json!([{"id": task.spec.id, "text": text}]);
    }
    Value::Array(named)
}

fn failure_text(result: &WorkResult) -> String {
    result.error.clone().filter(|text| !text.trim().is_empty()).unwrap_or_else(|| "the agent gave no reason".to_owned())
}

/// Events are read by people and kept for ever: long texts are in the task and its attempts.
fn clip(text: &str) -> String {
    const LIMIT: usize = 2_000;
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
#[path = "advance_tests.rs"]
mod tests;
