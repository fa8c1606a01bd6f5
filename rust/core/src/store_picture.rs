//! How the runs of a store stand, and the agents of the processes that worked on them, as a fold of all its events: the
//! same events give the same picture, whoever folds them and however often he stopped in between.
//!
//! It is bounded: of runs that have ended the newest [`KEPT_RUNS`] stay. What is not an event (which process lives, what
//! waits in the queue) is not in it: that is laid over it by whoever can see it.

use crate::event::{Event, EventKind};
use crate::picture::Picture;
use crate::state::{Phase, PhaseState, RunState, TaskState};
use crate::work::Usage;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Runs that have ended and are kept; all are in the store.
pub const KEPT_RUNS: usize = 50;

/// The runs by id, and by boot how the agents of its process stand.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StorePicture {
    /// Of the newest event in it.
    pub sequence: u64,
    /// By id.
    pub runs: BTreeMap<String, RunPicture>,
    /// By boot.
    pub boots: BTreeMap<String, Picture>,
}

/// One run, by its events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunPicture {
    /// Where its events left it. That its process was killed is no event.
    pub state: RunState,
    /// The phase it is in.
    pub phase: Phase,
    /// The boot that worked on it last.
    pub boot: Option<String>,
    /// The user's folder.
    pub workspace: Option<String>,
    /// UTC, RFC 3339.
    pub submitted_at: String,
    /// When it ended or was stopped.
    pub ended_at: Option<String>,
    /// Sequence of the event that ended it.
    pub ended: Option<u64>,
    /// Why it is not running.
    pub reason: Option<String>,
    /// Times it was resumed.
    pub resumes: u64,
    /// Those that began or were skipped.
    pub phases: BTreeMap<Phase, PhasePicture>,
    /// Those that became ready, in that order.
    pub tasks: Vec<TaskPicture>,
    /// Of all steps whose cost is known.
    pub usage: Usage,
}

/// One phase of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhasePicture {
    /// Where it stands.
    pub state: PhaseState,
    /// When it began.
    pub started_at: Option<String>,
    /// When it ended.
    pub ended_at: Option<String>,
}

/// One task of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskPicture {
    /// Of the plan.
    pub id: String,
    /// One line.
    pub title: String,
    /// Where it stands.
    pub state: TaskState,
    /// What is done for it now: `optimize`, `execute`, `review`, `accept`.
    pub step: Option<String>,
    /// Who does it.
    pub agent: Option<String>,
    /// From 1.
    pub attempt: u32,
    /// When its work waits for its time.
    pub until: Option<String>,
    /// Why it was rejected, failed or waits.
    pub reason: Option<String>,
    /// When its first work began.
    pub started_at: Option<String>,
    /// When it ended.
    pub ended_at: Option<String>,
    /// Of its steps.
    pub usage: Usage,
}

impl StorePicture {
    /// Takes one more event into the picture. Events come in sequence; one that is in it already changes nothing.
    pub fn apply(&mut self, event: &Event) {
        if event.sequence <= self.sequence {
            return;
        }
        self.sequence = event.sequence;
        match (&event.event.run, &event.boot) {
            (Some(id), _) => {
                let run = self.runs.entry(id.clone()).or_insert_with(|| RunPicture::begun(event));
                run.apply(event);
                if run.ended == Some(event.sequence) {
                    self.forget_old_runs();
                }
            }
            (None, Some(boot)) if Picture::concerns(event.event.kind) => {
                self.boots.entry(boot.clone()).or_default().apply(event);
            }
            _ => {}
        }
    }

    fn forget_old_runs(&mut self) {
        let ended = |run: &RunPicture| run.ended.filter(|_| run.state.is_terminal());
        let mut sequences: Vec<u64> = self.runs.values().filter_map(ended).collect();
        if sequences.len() > KEPT_RUNS {
            sequences.sort_unstable();
            let oldest_kept = sequences[sequences.len() - KEPT_RUNS];
            self.runs.retain(|_, run| ended(run).is_none_or(|at| at >= oldest_kept));
        }
    }
}

impl RunPicture {
    fn begun(event: &Event) -> Self {
        Self {
            state: RunState::Running,
            phase: Phase::PromptToSpec,
            boot: event.boot.clone(),
            workspace: None,
            submitted_at: event.at.clone(),
            ended_at: None,
            ended: None,
            reason: None,
            resumes: 0,
            phases: BTreeMap::new(),
            tasks: Vec::new(),
            usage: Usage::default(),
        }
    }

    fn apply(&mut self, event: &Event) {
        let what = &event.event;
        self.spend(event);
        if what.task.is_some() {
            return self.apply_to_task(event);
        }
        match what.kind {
            EventKind::RunSubmitted => {
                self.workspace = text(event, "workspace");
                if what.data.get("plan_given") == Some(&Value::Bool(true)) {
                    let skipped = [Phase::PromptToSpec, Phase::SpecToFullSpec, Phase::FullSpecToPlan];
                    self.phases.extend(skipped.map(|phase| (phase, PhasePicture::skipped())));
                }
            }
            EventKind::RunResumed => {
                self.state = RunState::Running;
                self.boot.clone_from(&event.boot);
                self.resumes = what.data.get("resumes").and_then(Value::as_u64).unwrap_or(self.resumes);
                (self.ended_at, self.ended, self.reason) = (None, None, None);
            }
            EventKind::RunPaused => {
                self.state = RunState::Paused;
                self.reason = text(event, "reason");
            }
            EventKind::RunCompleted => {
                self.phase = Phase::Complete;
                let both = Some(event.at.clone());
                let complete = PhasePicture { state: PhaseState::Done, started_at: both.clone(), ended_at: both };
                self.phases.insert(Phase::Complete, complete);
                self.end(RunState::Done, event);
            }
            EventKind::RunFailed => {
                self.end_phase(what.phase, PhaseState::Failed, &event.at);
                self.end(RunState::Failed, event);
            }
            EventKind::RunCancelled => {
                self.end_phase(what.phase, PhaseState::Failed, &event.at);
                for task in self.tasks.iter_mut().filter(|task| !task.state.is_terminal()) {
                    task.end(TaskState::Cancelled, &event.at);
                }
                self.end(RunState::Cancelled, event);
            }
            EventKind::RunInterrupted => self.end(RunState::Interrupted, event),
            EventKind::BudgetExceeded => self.end(RunState::Budget, event),
            EventKind::PhaseStarted => {
                let Some(phase) = what.phase else { return };
                self.phase = phase;
                let started_at = Some(event.at.clone());
                self.phases.insert(phase, PhasePicture { state: PhaseState::Running, started_at, ended_at: None });
            }
            EventKind::PhaseCompleted => self.end_phase(what.phase, PhaseState::Done, &event.at),
            _ => {}
        }
    }

    fn end(&mut self, state: RunState, event: &Event) {
        self.state = state;
        self.ended_at = Some(event.at.clone());
        self.ended = Some(event.sequence);
        self.reason = text(event, "message").or_else(|| text(event, "reason"));
        for task in &mut self.tasks {
            task.rest();
        }
    }

    fn end_phase(&mut self, phase: Option<Phase>, state: PhaseState, at: &str) {
        if let Some(phase) = phase.and_then(|phase| self.phases.get_mut(&phase)) {
            phase.state = state;
            phase.ended_at = Some(at.to_owned());
        }
    }

    fn spend(&mut self, event: &Event) {
        let Some(used) = event.event.data.get("usage") else { return };
        let Ok(used) = serde_json::from_value::<Usage>(used.clone()) else { return };
        self.usage.add(&used);
        if let Some(task) = self.tasks.iter_mut().find(|task| Some(&task.id) == event.event.task.as_ref()) {
            task.usage.add(&used);
        }
    }

    fn apply_to_task(&mut self, event: &Event) {
        let what = &event.event;
        let Some(id) = &what.task else { return };
        if !self.tasks.iter().any(|task| task.id == *id) {
            self.tasks.push(TaskPicture::ready(id));
        }
        let Some(task) = self.tasks.iter_mut().find(|task| task.id == *id) else { return };
        task.attempt = task.attempt.max(what.attempt.unwrap_or(0));
        match what.kind {
            EventKind::TaskReady | EventKind::TaskRetried => {
                task.rest();
                task.state = TaskState::Ready;
                task.title = text(event, "title").unwrap_or_default();
                (task.ended_at, task.reason) = (None, None);
            }
            EventKind::WorkStarted => {
                let step = text(event, "kind");
                let judged = matches!(step.as_deref(), Some("review" | "accept"));
                task.state = if judged { TaskState::Reviewing } else { TaskState::Running };
                (task.step, task.agent, task.until) = (step, what.agent.clone(), None);
                task.started_at.get_or_insert_with(|| event.at.clone());
            }
            EventKind::WorkParked => {
                task.rest();
                (task.until, task.reason) = (text(event, "until"), text(event, "reason"));
            }
            EventKind::WorkCompleted | EventKind::WorkFailed | EventKind::WorkCancelled => task.rest(),
            EventKind::ReviewRejected => {
                task.state = TaskState::Running;
                task.reason = text(event, "feedback");
            }
            EventKind::TaskAccepted => {
                task.reason = None;
                task.end(TaskState::Accepted, &event.at);
            }
            EventKind::TaskFailed => {
                task.reason = text(event, "reason");
                let state = text(event, "state").and_then(|name| name.parse().ok());
                task.end(state.unwrap_or(TaskState::Failed), &event.at);
            }
            EventKind::TaskSkipped => task.end(TaskState::Skipped, &event.at),
            _ => {}
        }
    }
}

impl PhasePicture {
    fn skipped() -> Self {
        Self { state: PhaseState::Skipped, started_at: None, ended_at: None }
    }
}

impl TaskPicture {
    fn ready(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            title: String::new(),
            state: TaskState::Ready,
            step: None,
            agent: None,
            attempt: 1,
            until: None,
            reason: None,
            started_at: None,
            ended_at: None,
            usage: Usage::default(),
        }
    }

    /// Nobody works on it now.
    fn rest(&mut self) {
        (self.step, self.agent, self.until) = (None, None, None);
    }

    fn end(&mut self, state: TaskState, at: &str) {
        self.rest();
        self.state = state;
        self.ended_at = Some(at.to_owned());
    }
}

fn text(event: &Event, key: &str) -> Option<String> {
    event.event.data.get(key).and_then(Value::as_str).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::NewEvent;
    use crate::state::AgentRole;
    use serde_json::json;

    fn event(sequence: u64, new: NewEvent) -> Event {
        Event { sequence, at: format!("at {sequence}"), boot: Some("b-1".into()), event: new }
    }

    fn of_run(kind: EventKind) -> NewEvent {
        NewEvent { run: Some("r-1".into()), phase: Some(Phase::PlanToArtifacts), ..NewEvent::new(kind) }
    }

    fn of_task(kind: EventKind) -> NewEvent {
        NewEvent { task: Some("t1".into()), attempt: Some(1), agent: Some("executor-1".into()), ..of_run(kind) }
    }

    fn story() -> Vec<Event> {
        let usage = json!({"turns": 1, "input_tokens": 10, "output_tokens": 5, "cost_usd": 0.5});
        let started = NewEvent {
            agent: Some("executor-1".into()),
            role: Some(AgentRole::Executor),
            generation: Some(1),
            ..NewEvent::new(EventKind::AgentStarted)
        };
        let news = [
            started,
            of_run(EventKind::RunSubmitted).with("workspace", "/w").with("plan_given", true),
            of_run(EventKind::PhaseStarted),
            of_task(EventKind::TaskReady).with("title", "One"),
            of_task(EventKind::WorkStarted).with("kind", "execute"),
            of_task(EventKind::StepFinished).with("usage", usage),
            of_task(EventKind::WorkCompleted),
            of_task(EventKind::ReviewRejected).with("feedback", "no"),
            of_run(EventKind::RunInterrupted).with("message", "stopped"),
            of_run(EventKind::RunResumed).with("resumes", 1),
            of_task(EventKind::WorkStarted).with("kind", "review"),
            of_task(EventKind::TaskAccepted),
            of_run(EventKind::PhaseCompleted),
            of_run(EventKind::RunCompleted),
        ];
        news.into_iter().zip(1..).map(|(new, sequence)| event(sequence, new)).collect()
    }

    fn fold(events: &[Event]) -> StorePicture {
        let mut picture = StorePicture::default();
        events.iter().for_each(|event| picture.apply(event));
        picture
    }

    #[test]
    fn the_picture_says_what_the_events_said() {
        let events = story();
        let half = fold(&events[..9]);
        let run = &half.runs["r-1"];
        assert_eq!((run.state, run.reason.as_deref()), (RunState::Interrupted, Some("stopped")));
        assert_eq!((run.tasks[0].state, run.tasks[0].reason.as_deref()), (TaskState::Running, Some("no")));
        let whole = fold(&events);
        let run = &whole.runs["r-1"];
        assert_eq!((run.state, run.phase, run.resumes), (RunState::Done, Phase::Complete, 1));
        assert_eq!((run.tasks[0].state, run.tasks[0].title.as_str()), (TaskState::Accepted, "One"));
        assert_eq!((run.usage.tokens(), run.tasks[0].usage.cost_usd), (15, 0.5));
        assert_eq!(run.phases[&Phase::PromptToSpec].state, PhaseState::Skipped);
        assert_eq!(run.phases[&Phase::PlanToArtifacts].state, PhaseState::Done);
        assert_eq!(whole.boots["b-1"].agents["executor-1"].generation, 1);
    }

    #[test]
    fn a_picture_that_is_rebuilt_or_goes_on_from_any_moment_is_the_same() {
        let events = story();
        let whole = fold(&events);
        for stop in 0..=events.len() {
            let kept = serde_json::to_value(fold(&events[..stop])).unwrap();
            let mut resumed: StorePicture = serde_json::from_value(kept).unwrap();
            events.iter().for_each(|event| resumed.apply(event)); // some of them a second time
            assert_eq!(resumed, whole, "stopped after {stop}");
        }
    }

    #[test]
    fn of_runs_that_have_ended_only_the_newest_are_kept() {
        let mut picture = StorePicture::default();
        for number in 0..KEPT_RUNS as u64 + 10 {
            for (step, kind) in [EventKind::RunSubmitted, EventKind::RunCompleted].into_iter().enumerate() {
                let new = NewEvent { run: Some(format!("r-{number:03}")), ..NewEvent::new(kind) };
                picture.apply(&event(number * 2 + step as u64 + 1, new));
            }
        }
        assert_eq!(picture.runs.len(), KEPT_RUNS);
        assert_eq!(picture.runs.keys().next().map(String::as_str), Some("r-010"));
    }
}
