//! Events: what happened, in the words that users rely on. Live-only kinds (heartbeat, progress) are not here:
//! what is not stored cannot be named as an event.

use crate::state::{AgentRole, Phase};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Every kind that is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // the names are the public contract and say what they mean
pub enum EventKind {
    RunSubmitted,
    PhaseStarted,
    PhaseCompleted,
    TaskReady,
    WorkStarted,
    StepStarted,
    StepFinished,
    WorkCompleted,
    WorkFailed,
    WorkCancelled,
    WorkParked,
    WorkDead,
    WorkRequeued,
    WorkDiscarded,
    ReviewPassed,
    ReviewRejected,
    TaskAccepted,
    TaskFailed,
    TaskSkipped,
    TaskRetried,
    RunPaused,
    RunResumed,
    RunCompleted,
    RunFailed,
    RunCancelled,
    RunInterrupted,
    BudgetWarning,
    BudgetExceeded,
    BreakerOpened,
    BreakerClosed,
    AgentStarted,
    AgentStartedWithTask,
    AgentCompleted,
    AgentFailed,
    AgentErrorRecorded,
    AgentHealthDegraded,
    AgentRestarted,
    AgentQuarantined,
    AgentRecovered,
    AgentDegraded,
    AgentStopped,
    RoleDegraded,
    RoleRecovered,
    IntakeStopped,
    IntakeResumed,
    StaleResultDropped,
}

impl EventKind {
    /// The name on the wire: the serde name, so that there is one list.
    pub fn name(self) -> String {
        match serde_json::to_value(self) {
            Ok(Value::String(name)) => name,
            _ => format!("{self:?}"),
        }
    }

    /// Reads a name back.
    pub fn parse(name: &str) -> Option<EventKind> {
        serde_json::from_value(Value::String(name.to_owned())).ok()
    }
}

/// An event before it has a sequence and a time: those are the store's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewEvent {
    /// What happened.
    pub kind: EventKind,
    /// Whose run; `None` for agent events.
    #[serde(default)]
    pub run: Option<String>,
    /// The phase it belongs to.
    #[serde(default)]
    pub phase: Option<Phase>,
    /// The task it belongs to.
    #[serde(default)]
    pub task: Option<String>,
    /// The work item it belongs to.
    #[serde(default)]
    pub item: Option<String>,
    /// The role it belongs to.
    #[serde(default)]
    pub role: Option<AgentRole>,
    /// The agent's id.
    #[serde(default)]
    pub agent: Option<String>,
    /// Of the agent.
    #[serde(default)]
    pub generation: Option<u64>,
    /// Of the claim.
    #[serde(default)]
    pub epoch: Option<u64>,
    /// Of the task.
    #[serde(default)]
    pub attempt: Option<u32>,
    /// Whatever else the kind carries.
    #[serde(default)]
    pub data: Map<String, Value>,
}

impl NewEvent {
    /// An event with nothing but its kind.
    pub fn new(kind: EventKind) -> Self {
        Self {
            kind,
            run: None,
            phase: None,
            task: None,
            item: None,
            role: None,
            agent: None,
            generation: None,
            epoch: None,
            attempt: None,
            data: Map::new(),
        }
    }

    /// Adds one entry of `data`.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.data.insert(key.to_owned(), value.into());
        self
    }

    /// Adds entries of `data`.
    #[must_use]
    pub fn with_all(mut self, entries: Map<String, Value>) -> Self {
        self.data.extend(entries);
        self
    }
}

/// A stored event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Global to the store, without gaps.
    pub sequence: u64,
    /// UTC, RFC 3339 with milliseconds.
    pub at: String,
    /// The boot that committed it: an agent's id means something only together with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
    /// The rest.
    #[serde(flatten)]
    pub event: NewEvent,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_one_name_that_parses_back() {
        assert_eq!(EventKind::StepStarted.name(), "step_started");
        assert_eq!(EventKind::parse("agent_started_with_task"), Some(EventKind::AgentStartedWithTask));
        assert_eq!(EventKind::parse("heartbeat"), None);
    }
}
