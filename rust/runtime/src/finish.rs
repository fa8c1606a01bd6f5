//! What an outcome means: for the item (what is stored), for the agent (its window), and for a caller. One function per
//! way that work can end, so that the table of outcomes can be read in one place.
//!
//! | outcome | the item | the agent |
//! |---|---|---|
//! | result | completed | `success: true` empties the window, `false` neither fills nor empties it |
//! | raised, deadline | goes back after a delay; charged with a crash if the window is full | counted |
//! | crashed: its process ended | goes back at once, charged with a crash | goes down with it, counted as a restart |
//! | model | goes back later; fatal or five in a row: completed as a failure | not charged |
//! | parked | waits until its time; counts toward nothing | not charged |
//! | environment, budget | the run stops, resumable | not charged |
//! | invalid | given up | not charged |
//! | fenced, run over | nothing: the claim was over | not charged |
//! | cancelled by a drain | goes back at once | not charged |
//! | lost by its host | goes back after a delay | not charged |
//!
//! **TRUTH-1** Only a result that the agent returned is ever completed as it is.

use crate::agent::{Ending, Life};
use crate::handle::WorkError;
use crate::host::{HostError, Outcome};
use crate::record::clip;
use crate::settle::{Commit, End};
use mnemosyne_core::error::codes;
use mnemosyne_core::{EventKind, Item, NewEvent, Problem, ProblemKind, RunState, WorkItem, WorkResult};
use mnemosyne_store::{Claimed, ReleaseReason};

/// Model failures in a row after which the attempt has failed.
const MODEL_FAILURES: u32 = 5;
/// Nothing is parked for longer: a server that names a later time is asked again then, which costs one request.
const LONGEST_PARK_SECONDS: f64 = 3_600.0;
/// An environment problem without a run to stop: the item waits a little.
const ENVIRONMENT_DELAY_MS: i64 = 5_000;

/// A host that has gone loses whatever it is given: the same item is not claimed again at once, for ever.
const LOST_DELAY_MS: i64 = 1_000;

/// The end of a claim, and whether the agent goes down with it.
pub(crate) struct Judged {
    pub(crate) end: End,
    pub(crate) leave: Option<Leave>,
}

/// The agent ends this generation.
#[derive(Debug, Clone)]
pub(crate) struct Leave {
    pub(crate) reason: String,
    /// Its work cannot be stopped, so it goes even if the item turns out to be the fault.
    pub(crate) stuck: bool,
}

impl Leave {
    pub(crate) fn because(reason: &str) -> Self {
        Self { reason: reason.to_owned(), stuck: false }
    }
}

/// Judges the outcome of a claimed item; `None`: the host lost it.
pub(crate) fn claimed(life: &mut Life, claimed: &Claimed, outcome: Option<Outcome>, ending: Option<Ending>) -> Judged {
    let item = &claimed.item;
    match (outcome, ending) {
        (outcome, Some(Ending::Over | Ending::Revoked)) => claim_over(life, outcome, ending),
        (Some(Outcome::Result(result)), _) => completed(life, item, *result),
        (Some(Outcome::Crashed(error)), Some(Ending::Deadline)) => crashed(life, item, &error),
        (_, Some(Ending::Deadline)) => raised(life, item, &timeout_error(&item.work)),
        (_, Some(Ending::Drain | Ending::Unwanted)) => End::innocent(0).into(),
        (None | Some(Outcome::Cancelled), None) => End::innocent(LOST_DELAY_MS).into(),
        (Some(Outcome::Crashed(error)), None) => crashed(life, item, &error),
        (Some(Outcome::Raised(error)), None) => raised(life, item, &error),
        (Some(Outcome::Model { problem, fatal, retry_after, class }), None) => {
            model(life, item, &problem, fatal, retry_after, class)
        }
        (Some(Outcome::Parked { problem, class, seconds }), None) => parked(&problem, class, seconds).into(),
        (Some(Outcome::Environment(problem)), None) => stopped(item, RunState::Interrupted, problem),
        (Some(Outcome::Budget(problem)), None) => stopped(item, RunState::Budget, problem),
        (Some(Outcome::Invalid(problem)), None) => End::quiet(Commit::GiveUp(problem)).into(),
        (Some(Outcome::Fenced), None) => {
            life.announce_stale();
            End::quiet(Commit::Nothing).into()
        }
    }
}

/// A run that ended says nothing more; another claim's rival is counted.
fn claim_over(life: &Life, outcome: Option<Outcome>, ending: Option<Ending>) -> Judged {
    let said_something = !matches!(outcome, None | Some(Outcome::Cancelled | Outcome::Crashed(_)));
    if ending == Some(Ending::Revoked) && said_something {
        life.announce_stale();
    }
    End::quiet(Commit::Nothing).into()
}

fn completed(life: &mut Life, item: &Item, result: WorkResult) -> Judged {
    let summary = summary(&item.work, &result);
    let mut events = vec![of_item(life.event(EventKind::AgentCompleted), item).with("summary", summary)];
    if result.success {
        events.extend(life.count_success());
    }
    End { commit: Commit::Complete(Box::new(result)), events }.into()
}

/// Its process is gone, so it goes even if the item turns out to be the fault. A death is no error of the window: it is
/// a restart already.
fn crashed(life: &mut Life, item: &Item, error: &HostError) -> Judged {
    let text = error.to_string();
    life.remember_error(&text);
    let failed = of_item(life.event(EventKind::AgentFailed), item).with("error", clip(&text));
    let commit = Commit::Release { reason: ReleaseReason::Crash, delay_ms: 0, error: Some(clip(&text)), class: None };
    let end = End { commit, events: vec![failed] };
    Judged { end, leave: Some(Leave { reason: clip(&text), stuck: true }) }
}

fn raised(life: &mut Life, item: &Item, error: &HostError) -> Judged {
    let text = error.to_string();
    let (leave, mut events) = life.count_error(&text);
    events.push(of_item(life.event(EventKind::AgentFailed), item).with("error", clip(&text)));
    let (reason, delay_ms) = match &leave {
        Some(_) => (ReleaseReason::Crash, 0), // the item that fills the window takes its agent down
        None => (ReleaseReason::Error, error_delay_ms(life.error_count())),
    };
    let end = End { commit: Commit::Release { reason, delay_ms, error: Some(clip(&text)), class: None }, events };
    Judged { end, leave }
}

/// 100 ms doubled with each error in the window, at most 5 s.
fn error_delay_ms(errors: usize) -> i64 {
    let doublings = u32::try_from(errors.saturating_sub(1)).unwrap_or(u32::MAX).min(6);
    (100_i64 << doublings).min(5_000)
}

fn model(
    life: &Life,
    item: &Item,
    problem: &Problem,
    fatal: bool,
    retry_after: Option<f64>,
    class: Option<String>,
) -> Judged {
    let text = text_of(problem);
    let mut failed = of_item(life.event(EventKind::AgentFailed), item).with("error", clip(&text));
    if let Some(class) = &class {
        failed = failed.with("class", class.clone());
    }
    let commit = if fatal || item.model_failures + 1 >= MODEL_FAILURES {
        Commit::Complete(Box::new(WorkResult::failure(text)))
    } else {
        let delay_ms = model_delay_ms(item.model_failures, retry_after);
        Commit::Release { reason: ReleaseReason::Model, delay_ms, error: Some(clip(&text)), class }
    };
    End { commit, events: vec![failed] }.into()
}

/// The agent did what it could, so nothing is said of it.
fn parked(problem: &Problem, class: String, seconds: f64) -> End {
    let seconds = if seconds.is_finite() { seconds.clamp(0.0, LONGEST_PARK_SECONDS) } else { LONGEST_PARK_SECONDS };
    let delay_ms = (seconds * 1_000.0) as i64;
    let error = Some(clip(&text_of(problem)));
    End::quiet(Commit::Release { reason: ReleaseReason::Parked, delay_ms, error, class: Some(class) })
}

/// What the server asked for, else 1 s doubled with each failure; at most 60 s.
fn model_delay_ms(failures: u32, retry_after: Option<f64>) -> i64 {
    let seconds = retry_after.filter(|seconds| seconds.is_finite()).unwrap_or(f64::from(1 << failures.min(6)));
    (seconds.clamp(0.0, 60.0) * 1_000.0) as i64
}

fn stopped(item: &Item, state: RunState, problem: Problem) -> Judged {
    let commit = match (&item.run, state) {
        (Some(run), state) => Commit::StopRun { run: run.clone(), state, problem },
        (None, RunState::Budget) => Commit::GiveUp(problem), // a user's own item has no run to resume with more
        (None, _) => return End::innocent(ENVIRONMENT_DELAY_MS).into(),
    };
    End::quiet(commit).into()
}

/// Judges a claimed item whose work did not stop. It took its agent down if its own deadline did.
pub(crate) fn abandoned(life: &mut Life, claimed: &Claimed, ending: Ending) -> Judged {
    let item = &claimed.item;
    let leave = Some(Leave { reason: life.abandoned_reason(), stuck: true });
    let end = match ending {
        Ending::Deadline => {
            let text = timeout_error(&item.work).to_string();
            life.remember_error(&text);
            let failed = of_item(life.event(EventKind::AgentFailed), item).with("error", text.clone());
            let commit = Commit::Release { reason: ReleaseReason::Crash, delay_ms: 0, error: Some(text), class: None };
            End { commit, events: vec![failed] }
        }
        Ending::Drain | Ending::Unwanted => End::innocent(0),
        Ending::Over | Ending::Revoked => End::quiet(Commit::Nothing),
    };
    Judged { end, leave }
}

/// Judges direct work: the answer to its caller, and whether the agent goes down.
pub(crate) fn direct(
    life: &mut Life,
    item: &WorkItem,
    outcome: Option<Outcome>,
    ending: Option<Ending>,
) -> (Result<WorkResult, WorkError>, Option<Leave>) {
    let problem = match (outcome, ending) {
        (Some(Outcome::Result(result)), _) => {
            life.announce(life.event(EventKind::AgentCompleted).with("summary", summary(item, &result)));
            if result.success
                && let Some(recovered) = life.count_success()
            {
                life.announce(recovered);
            }
            return (Ok(*result), None);
        }
        (_, Some(Ending::Deadline)) => {
            let leave = direct_error(life, &timeout_error(item));
            return (Err(timeout_problem(item).into()), leave);
        }
        (_, Some(Ending::Drain | Ending::Over)) => closed(),
        (_, Some(Ending::Revoked | Ending::Unwanted)) | (None | Some(Outcome::Cancelled), None) => lost(),
        (Some(Outcome::Crashed(error)), None) => {
            life.remember_error(&error.to_string());
            life.announce(life.event(EventKind::AgentFailed).with("error", clip(&error.to_string())));
            let leave = Leave { reason: clip(&error.to_string()), stuck: true };
            return (Err(WorkError::Agent(error)), Some(leave));
        }
        (Some(Outcome::Raised(error)), None) => {
            let leave = direct_error(life, &error);
            return (Err(WorkError::Agent(error)), leave);
        }
        (Some(Outcome::Model { problem, .. } | Outcome::Parked { problem, .. }), None) => problem,
        (Some(Outcome::Environment(problem) | Outcome::Budget(problem) | Outcome::Invalid(problem)), None) => problem,
        (Some(Outcome::Fenced), None) => Problem::fenced(&item.id, 0),
    };
    if ending.is_none() {
        life.announce(life.event(EventKind::AgentFailed).with("error", clip(&text_of(&problem))));
    }
    (Err(problem.into()), None)
}

/// Judges direct work that did not stop.
pub(crate) fn abandoned_direct(life: &mut Life, item: &WorkItem, ending: Ending) -> Problem {
    if ending != Ending::Deadline {
        return closed();
    }
    let text = timeout_error(item).to_string();
    life.remember_error(&text);
    life.announce(life.event(EventKind::AgentFailed).with("error", text));
    timeout_problem(item)
}

fn direct_error(life: &mut Life, error: &HostError) -> Option<Leave> {
    let text = error.to_string();
    let (leave, events) = life.count_error(&text);
    for event in events {
        life.announce(event);
    }
    life.announce(life.event(EventKind::AgentFailed).with("error", clip(&text)));
    leave
}

fn of_item(event: NewEvent, item: &Item) -> NewEvent {
    NewEvent {
        phase: Some(item.work.phase),
        task: item.task.clone(),
        item: Some(item.work.id.clone()),
        epoch: Some(item.epoch),
        attempt: Some(item.work.attempt),
        ..event
    }
}

fn summary(item: &WorkItem, result: &WorkResult) -> String {
    let said = if result.success { result.text("summary") } else { result.error.as_deref() };
    clip(said.unwrap_or(&item.description))
}

fn text_of(problem: &Problem) -> String {
    if problem.reason.is_empty() { problem.message.clone() } else { format!("{}: {}", problem.message, problem.reason) }
}

fn timeout_error(item: &WorkItem) -> HostError {
    HostError::new("WorkTimeout", format!("{} did not end within its time limit", item.id), false)
}

/// The caller of direct work waited long enough.
pub(crate) fn timeout_problem(item: &WorkItem) -> Problem {
    Problem::new(ProblemKind::Timeout, codes::TIMEOUT, format!("{} did not end within its time limit", item.id))
        .because("the work was cancelled")
        .hint("give it a larger timeout, or smaller work")
}

/// The agent, or its tree, takes no more work.
pub(crate) fn closed() -> Problem {
    Problem::new(ProblemKind::Closed, codes::CLOSED, "the agent was shut down")
}

/// The agent went down while it held direct work.
pub(crate) fn lost() -> Problem {
    Problem::new(ProblemKind::Unavailable, codes::UNAVAILABLE, "the agent went down while it held the work")
        .because("direct work is not durable; whether it was done is not known")
        .hint("send it again, or use submit_work, which is durable")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_delay_the_item_from_100_ms_to_5_s() {
        let delays: Vec<i64> = (0..8).map(error_delay_ms).collect();
        assert_eq!(delays, [100, 100, 200, 400, 800, 1_600, 3_200, 5_000]);
    }

    #[test]
    fn the_server_s_own_delay_wins_and_nothing_waits_longer_than_a_minute() {
        assert_eq!(model_delay_ms(0, None), 1_000);
        assert_eq!(model_delay_ms(3, None), 8_000);
        assert_eq!(model_delay_ms(3, Some(0.25)), 250);
        assert_eq!(model_delay_ms(60, None), 60_000);
        assert_eq!(model_delay_ms(0, Some(1e9)), 60_000);
        assert_eq!(model_delay_ms(0, Some(f64::NAN)), 1_000);
    }
}
