//! What a store has seen since it was made, added up from its events: for `mnemosyne stats` and for `/metrics`.
//!
//! Events are committed with what they tell of (DUR-2), so these sums hold whatever was killed meanwhile. A claim that a
//! `kill -9` cut off has begun and never ended; it is counted as `cut_off`, and so is one that is under way.

use crate::event::{Event, EventKind};
use crate::state::{AgentRole, Phase};
use crate::work::Usage;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// How many, by name.
pub type Counts = BTreeMap<String, u64>;

/// What one claim is counted under, beside its outcome.
type Whose = (Option<AgentRole>, Option<Phase>);

/// Sums over all events of a store.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct StoreStats {
    /// How many there are.
    pub events: u64,
    /// By the state in which the last event left them.
    pub runs: Counts,
    /// Claims of work items by their end: `started`, then `completed`, `failed`, `cancelled`, `dead`, `parked`, `errors`
    /// (the agent raised, and the item was given out again or given up) and `cut_off`.
    pub claims: Counts,
    /// `accepted`, `failed`, `skipped`.
    pub tasks: Counts,
    /// `passed` and `rejected`.
    pub reviews: Counts,
    /// `started`, `finished`, `failed`, and `unknown` for those that a crash cut off.
    pub steps: Counts,
    /// Turns and tools that failed, by class.
    pub failures: Counts,
    /// Mean of the verdicts that passed, from 0 to 1, in four digits.
    pub mean_review_confidence: f64,
    /// Of all steps whose cost is known.
    pub usage: Usage,
    /// `claims` by role.
    pub agents: BTreeMap<AgentRole, Counts>,
    /// Of agents.
    pub restarts: u64,
    /// Of agents.
    pub quarantines: u64,
}

/// The sums under way. Events come in sequence.
#[derive(Debug, Clone, Default)]
pub struct StatsFold {
    events: u64,
    runs: HashMap<String, &'static str>,
    /// By item and epoch: those that have begun and not ended.
    open: HashMap<(String, Option<u64>), Whose>,
    claims: BTreeMap<(Whose, &'static str), u64>,
    tasks: BTreeMap<&'static str, u64>,
    reviews: BTreeMap<&'static str, u64>,
    steps: Counts,
    failures: Counts,
    confidences: (f64, u64),
    usage: Usage,
    restarts: u64,
    quarantines: u64,
}

impl StatsFold {
    /// Takes one more event in.
    pub fn add(&mut self, event: &Event) {
        self.events += 1;
        let what = &event.event;
        if let (Some(run), Some(state)) = (&what.run, run_state(what.kind)) {
            self.runs.insert(run.clone(), state);
        }
        match what.kind {
            EventKind::WorkStarted => {
                self.open.insert(claim_of(event), whose(event));
                self.count(whose(event), "started");
            }
            EventKind::WorkCompleted => self.end(event, "completed"),
            EventKind::WorkFailed => self.end(event, "failed"),
            EventKind::WorkCancelled => self.end(event, "cancelled"),
            EventKind::WorkDead => self.end(event, "dead"),
            EventKind::WorkParked => self.end(event, "parked"),
            EventKind::AgentFailed if what.item.is_some() => self.end(event, "errors"),
            EventKind::TaskAccepted => *self.tasks.entry("accepted").or_default() += 1,
            EventKind::TaskFailed => *self.tasks.entry("failed").or_default() += 1,
            EventKind::TaskSkipped => *self.tasks.entry("skipped").or_default() += 1,
            EventKind::ReviewPassed => self.review(event, "passed"),
            EventKind::ReviewRejected => self.review(event, "rejected"),
            EventKind::StepStarted => *self.steps.entry("started".into()).or_default() += 1,
            EventKind::StepFinished => self.step(event),
            EventKind::AgentRestarted => self.restarts += 1,
            EventKind::AgentQuarantined => self.quarantines += 1,
            _ => {}
        }
    }

    /// Claims by role, phase and outcome; those that have begun and not ended are `open` here.
    pub fn claims(&self) -> BTreeMap<(Option<AgentRole>, Option<Phase>, &'static str), u64> {
        let mut claims: BTreeMap<_, u64> =
            self.claims.iter().map(|(((role, phase), outcome), count)| ((*role, *phase, *outcome), *count)).collect();
        for (role, phase) in self.open.values() {
            *claims.entry((*role, *phase, "open")).or_default() += 1;
        }
        claims
    }

    /// The sums, as they are now.
    pub fn stats(&self) -> StoreStats {
        let mut stats = StoreStats {
            events: self.events,
            tasks: named(&self.tasks),
            reviews: named(&self.reviews),
            steps: self.steps.clone(),
            failures: self.failures.clone(),
            usage: self.usage.clone(),
            restarts: self.restarts,
            quarantines: self.quarantines,
            ..StoreStats::default()
        };
        for state in self.runs.values() {
            *stats.runs.entry((*state).to_owned()).or_default() += 1;
        }
        for ((role, _, outcome), count) in self.claims() {
            let outcome = if outcome == "open" { "cut_off" } else { outcome };
            *stats.claims.entry(outcome.to_owned()).or_default() += count;
            if let Some(role) = role {
                *stats.agents.entry(role).or_default().entry(outcome.to_owned()).or_default() += count;
            }
        }
        let steps = |name: &str| self.steps.get(name).copied().unwrap_or(0);
        let unknown = steps("started").saturating_sub(steps("finished") + steps("failed"));
        if unknown > 0 {
            stats.steps.insert("unknown".into(), unknown);
        }
        let (sum, count) = self.confidences;
        if count > 0 {
            stats.mean_review_confidence = (sum / count as f64 * 1e4).round() / 1e4;
        }
        stats
    }

    fn end(&mut self, event: &Event, outcome: &'static str) {
        // An item that is cancelled while it waits was never begun, and one that is dead ended with its last claim.
        let begun = self.open.remove(&claim_of(event));
        if begun.is_some() || matches!(outcome, "cancelled" | "dead") {
            self.count(whose(event), outcome);
        }
    }

    fn count(&mut self, whose: Whose, outcome: &'static str) {
        *self.claims.entry((whose, outcome)).or_default() += 1;
    }

    fn review(&mut self, event: &Event, verdict: &'static str) {
        *self.reviews.entry(verdict).or_default() += 1;
        if let Some(confidence) = event.event.data.get("confidence").and_then(Value::as_f64) {
            self.confidences.0 += confidence;
            self.confidences.1 += 1;
        }
    }

    fn step(&mut self, event: &Event) {
        let data = &event.event.data;
        let state = data.get("state").and_then(Value::as_str).unwrap_or("finished");
        *self.steps.entry(state.to_owned()).or_default() += 1;
        if let Some(Ok(used)) = data.get("usage").map(|used| serde_json::from_value::<Usage>(used.clone())) {
            self.usage.add(&used);
        }
        if let Some(class) = data.get("class").and_then(Value::as_str) {
            *self.failures.entry(class.to_owned()).or_default() += 1;
        }
    }
}

fn claim_of(event: &Event) -> (String, Option<u64>) {
    (event.event.item.clone().unwrap_or_default(), event.event.epoch)
}

fn whose(event: &Event) -> Whose {
    (event.event.role, event.event.phase)
}

fn named(counts: &BTreeMap<&'static str, u64>) -> Counts {
    counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

const fn run_state(kind: EventKind) -> Option<&'static str> {
    Some(match kind {
        EventKind::RunSubmitted | EventKind::RunResumed => "running",
        EventKind::RunPaused => "paused",
        EventKind::RunCompleted => "done",
        EventKind::RunFailed => "failed",
        EventKind::RunCancelled => "cancelled",
        EventKind::RunInterrupted => "interrupted",
        EventKind::BudgetExceeded => "budget",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::NewEvent;
    use serde_json::json;

    fn fold(news: &[NewEvent]) -> StatsFold {
        let mut fold = StatsFold::default();
        for (new, sequence) in news.iter().zip(1..) {
            fold.add(&Event { sequence, at: String::new(), boot: None, event: new.clone() });
        }
        fold
    }

    fn claim(kind: EventKind, item: &str, epoch: u64) -> NewEvent {
        NewEvent {
            run: Some("r-1".into()),
            item: Some(item.into()),
            epoch: Some(epoch),
            role: Some(AgentRole::Executor),
            phase: Some(Phase::PlanToArtifacts),
            ..NewEvent::new(kind)
        }
    }

    #[test]
    fn each_claim_is_counted_with_its_end_and_one_without_an_end_is_cut_off() {
        let failed = NewEvent { run: None, ..claim(EventKind::AgentFailed, "a", 1) };
        let stats = fold(&[
            claim(EventKind::WorkStarted, "a", 1),
            failed.clone(),
            failed, // told twice, counted once
            claim(EventKind::WorkStarted, "a", 2),
            claim(EventKind::WorkCompleted, "a", 2),
            claim(EventKind::WorkStarted, "b", 1),
            claim(EventKind::WorkCancelled, "c", 0), // never begun
        ])
        .stats();
        let counts = json!({"started": 3, "errors": 1, "completed": 1, "cut_off": 1, "cancelled": 1});
        assert_eq!(json!(stats.claims), counts);
        assert_eq!(json!(stats.agents), json!({"executor": counts}));
    }

    #[test]
    fn every_end_of_a_claim_has_its_name() {
        for (kind, name) in [
            (EventKind::WorkCompleted, "completed"),
            (EventKind::WorkFailed, "failed"),
            (EventKind::WorkCancelled, "cancelled"),
            (EventKind::WorkDead, "dead"),
            (EventKind::WorkParked, "parked"),
            (EventKind::AgentFailed, "errors"),
            (EventKind::AgentStarted, "cut_off"),
        ] {
            let stats = fold(&[claim(EventKind::WorkStarted, "a", 1), claim(kind, "a", 1)]).stats();
            assert_eq!(json!(stats.claims), json!({"started": 1, name: 1}));
        }
    }

    #[test]
    fn an_older_epoch_ends_no_newer_claim() {
        let stats = fold(&[claim(EventKind::WorkStarted, "a", 2), claim(EventKind::WorkCompleted, "a", 1)]).stats();
        assert_eq!(json!(stats.claims), json!({"started": 1, "cut_off": 1}));
    }

    #[test]
    fn a_run_is_as_its_last_event_left_it() {
        let kinds =
            [EventKind::RunSubmitted, EventKind::RunInterrupted, EventKind::RunResumed, EventKind::BudgetExceeded];
        let stats = fold(&kinds.map(|kind| claim(kind, "a", 1))).stats();
        assert_eq!(json!(stats.runs), json!({"budget": 1}));
    }

    #[test]
    fn what_was_spent_and_what_was_never_answered_is_summed_up() {
        let usage = json!({"turns": 1, "input_tokens": 7, "cost_usd": 0.25});
        let stats = fold(&[
            claim(EventKind::StepStarted, "a", 1),
            claim(EventKind::StepFinished, "a", 1).with("state", "finished").with("usage", usage),
            claim(EventKind::StepStarted, "a", 1),
            claim(EventKind::StepFinished, "a", 1).with("state", "failed").with("class", "overloaded"),
            claim(EventKind::StepStarted, "a", 1),
            claim(EventKind::ReviewPassed, "a", 1).with("confidence", 0.5),
        ])
        .stats();
        assert_eq!(json!(stats.steps), json!({"started": 3, "finished": 1, "failed": 1, "unknown": 1}));
        assert_eq!((stats.usage.input_tokens, stats.usage.cost_usd), (7, 0.25));
        assert_eq!((stats.failures["overloaded"], stats.mean_review_confidence), (1, 0.5));
    }
}
