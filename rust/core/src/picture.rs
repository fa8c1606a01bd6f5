//! How the agents of a process stand, as a fold of its events: the same events give the same picture, whoever folds them
//! and however often he stopped in between. What is not an event (heartbeats, progress, claims) is not in it: that is laid
//! over it by whoever can see it.

use crate::event::{Event, EventKind};
use crate::state::{AgentRole, AgentState};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// One agent, by its events. `state` is never `busy`, `suspect` or `slow`: those are seen, not said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentPicture {
    /// `executor-1`.
    pub agent_id: String,
    /// Its role.
    pub role: Option<AgentRole>,
    /// Where it stands.
    pub state: AgentState,
    /// From 1.
    pub generation: u64,
    /// How often it was started again.
    pub restarts: u32,
    /// Errors in its window, when the last one was counted.
    pub error_count: u64,
    /// Its newest error.
    pub last_error: Option<String>,
    /// When it happened; RFC 3339.
    pub last_error_at: Option<String>,
    /// Why it is restarting, degraded, quarantined or stopped.
    pub reason: Option<String>,
    /// When that restart was announced, and its delay in seconds.
    pub restarting: Option<(String, f64)>,
    /// Results that it returned.
    pub completed: u64,
    /// Work that it failed.
    pub failed: u64,
    /// What older generations still said, and was dropped.
    pub stale: u64,
}

/// Every agent that said something, every role that is degraded, and whether work is taken in at all.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Picture {
    /// Of the newest event in it.
    pub sequence: u64,
    /// By id.
    pub agents: BTreeMap<String, AgentPicture>,
    /// Why each role that is degraded is.
    pub degraded: BTreeMap<AgentRole, String>,
    /// Why no work is taken in, where none is.
    pub intake_stopped: Option<String>,
}

impl Picture {
    /// Whether events of a kind can change it.
    pub const fn concerns(kind: EventKind) -> bool {
        is_about_an_agent(kind)
            || matches!(
                kind,
                EventKind::RoleDegraded
                    | EventKind::RoleRecovered
                    | EventKind::IntakeStopped
                    | EventKind::IntakeResumed
            )
    }

    /// Takes one more event into the picture. Events come in sequence; one that is in it already changes nothing.
    pub fn apply(&mut self, event: &Event) {
        if event.sequence <= self.sequence {
            return;
        }
        self.sequence = event.sequence;
        let what = &event.event;
        match (what.kind, what.role) {
            (EventKind::RoleDegraded, Some(role)) => {
                self.degraded.insert(role, text(&what.data, "reason").unwrap_or_default());
            }
            (EventKind::RoleRecovered, Some(role)) => {
                self.degraded.remove(&role);
            }
            (EventKind::IntakeStopped, _) => self.intake_stopped = Some(text(&what.data, "reason").unwrap_or_default()),
            (EventKind::IntakeResumed, _) => self.intake_stopped = None,
            _ => {}
        }
        let (Some(agent_id), true) = (&what.agent, is_about_an_agent(what.kind)) else { return };
        let agent = self.agents.entry(agent_id.clone()).or_insert_with(|| AgentPicture::unknown(agent_id));
        agent.role = what.role.or(agent.role);
        agent.apply(event);
    }
}

impl AgentPicture {
    fn unknown(agent_id: &str) -> Self {
        Self {
            agent_id: agent_id.to_owned(),
            role: None,
            state: AgentState::Starting,
            generation: 1,
            restarts: 0,
            error_count: 0,
            last_error: None,
            last_error_at: None,
            reason: None,
            restarting: None,
            completed: 0,
            failed: 0,
            stale: 0,
        }
    }

    fn apply(&mut self, event: &Event) {
        let what = &event.event;
        match what.kind {
            EventKind::StaleResultDropped => self.stale += 1,
            EventKind::AgentRestarted => {
                self.restarts += 1;
                self.generation = what.generation.unwrap_or(self.generation + 1);
                self.error_count = 0;
                let delay = what.data.get("delay_seconds").and_then(Value::as_f64).unwrap_or(0.0);
                self.restarting = Some((event.at.clone(), delay));
                self.becomes(AgentState::Restarting, event);
            }
            // What an older generation still says of itself changes nothing but its counters (FENCE-2).
            _ if what.generation.is_some_and(|generation| generation < self.generation) => self.count(event),
            EventKind::AgentStarted => {
                self.restarting = None;
                self.becomes(AgentState::Idle, event);
            }
            EventKind::AgentQuarantined => {
                self.restarting = None;
                self.becomes(AgentState::Quarantined, event);
            }
            EventKind::AgentDegraded => self.becomes(AgentState::Degraded, event),
            EventKind::AgentStopped => {
                self.restarting = None;
                self.becomes(AgentState::Stopped, event);
            }
            EventKind::AgentRecovered => self.error_count = 0,
            EventKind::AgentErrorRecorded => {
                self.error_count = what.data.get("count").and_then(Value::as_u64).unwrap_or(self.error_count + 1);
                self.error(event);
            }
            _ => self.count(event),
        }
    }

    fn becomes(&mut self, state: AgentState, event: &Event) {
        self.state = state;
        self.reason = text(&event.event.data, "reason");
    }

    fn count(&mut self, event: &Event) {
        match event.event.kind {
            EventKind::AgentCompleted => self.completed += 1,
            EventKind::AgentFailed => {
                self.failed += 1;
                self.error(event);
            }
            _ => {}
        }
    }

    fn error(&mut self, event: &Event) {
        self.last_error = text(&event.event.data, "error").or(self.last_error.take());
        self.last_error_at = Some(event.at.clone());
    }
}

fn text(data: &serde_json::Map<String, Value>, key: &str) -> Option<String> {
    data.get(key).and_then(Value::as_str).map(str::to_owned)
}

const fn is_about_an_agent(kind: EventKind) -> bool {
    matches!(
        kind,
        EventKind::AgentStarted
            | EventKind::AgentStartedWithTask
            | EventKind::AgentCompleted
            | EventKind::AgentFailed
            | EventKind::AgentErrorRecorded
            | EventKind::AgentHealthDegraded
            | EventKind::AgentRestarted
            | EventKind::AgentQuarantined
            | EventKind::AgentRecovered
            | EventKind::AgentDegraded
            | EventKind::AgentStopped
            | EventKind::StaleResultDropped
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::NewEvent;

    fn event(sequence: u64, kind: EventKind, generation: u64) -> Event {
        let event = NewEvent {
            agent: Some("executor-1".into()),
            role: Some(AgentRole::Executor),
            generation: Some(generation),
            ..NewEvent::new(kind)
        };
        Event { sequence, at: format!("at {sequence}"), boot: None, event }
    }

    fn story() -> Vec<Event> {
        let mut restarted = event(5, EventKind::AgentRestarted, 2);
        restarted.event = restarted.event.with("reason", "five errors").with("delay_seconds", 0.5);
        let mut failed = event(3, EventKind::AgentErrorRecorded, 1);
        failed.event = failed.event.with("count", 4).with("error", "no luck");
        vec![
            event(1, EventKind::AgentStarted, 1),
            event(2, EventKind::AgentCompleted, 1),
            failed,
            event(4, EventKind::AgentFailed, 1),
            restarted,
            event(6, EventKind::StaleResultDropped, 1),
            event(7, EventKind::AgentStarted, 1), // of the generation that is over
        ]
    }

    fn fold(events: &[Event]) -> Picture {
        let mut picture = Picture::default();
        events.iter().for_each(|event| picture.apply(event));
        picture
    }

    #[test]
    fn the_picture_says_what_the_events_said() {
        let agent = fold(&story()).agents.remove("executor-1").unwrap();
        assert_eq!((agent.state, agent.generation, agent.restarts), (AgentState::Restarting, 2, 1));
        assert_eq!((agent.completed, agent.failed, agent.stale, agent.error_count), (1, 1, 1, 0));
        assert_eq!(agent.restarting, Some(("at 5".into(), 0.5)));
        assert_eq!((agent.reason.as_deref(), agent.last_error.as_deref()), (Some("five errors"), Some("no luck")));
    }

    #[test]
    fn a_picture_that_is_rebuilt_or_goes_on_from_any_moment_is_the_same() {
        let events = story();
        let whole = fold(&events);
        for stop in 0..=events.len() {
            let mut resumed = fold(&events[..stop]);
            let kept: Picture = serde_json::from_value(serde_json::to_value(&resumed).unwrap()).unwrap();
            assert_eq!(kept, resumed);
            events.iter().for_each(|event| resumed.apply(event)); // some of them a second time
            assert_eq!(resumed, whole, "stopped after {stop}");
        }
    }

    #[test]
    fn a_role_is_degraded_until_it_recovers() {
        let degraded = event(1, EventKind::RoleDegraded, 1);
        let recovered = event(2, EventKind::RoleRecovered, 1);
        assert_eq!(fold(std::slice::from_ref(&degraded)).degraded.len(), 1);
        assert!(fold(&[degraded, recovered]).degraded.is_empty());
    }
}
