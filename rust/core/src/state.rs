//! The states of things, and which one may follow which.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Declares a string enum once: variants, wire names, parsing and the list of all.
macro_rules! names {
    ($(#[$meta:meta])* $type:ident { $($variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $type { $($variant),+ }

        impl $type {
            /// Every value, in order.
            pub const ALL: &'static [$type] = &[$($type::$variant),+];

            /// The name on the wire and in the store.
            pub const fn as_str(self) -> &'static str {
                match self { $($type::$variant => $text),+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = UnknownName;
            fn from_str(text: &str) -> Result<Self, UnknownName> {
                match text {
                    $($text => Ok($type::$variant),)+
                    _ => Err(UnknownName { what: stringify!($type), name: text.to_owned() }),
                }
            }
        }
    };
}

/// A name that no value of the enum has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no {what}")]
pub struct UnknownName {
    /// The enum.
    pub what: &'static str,
    /// What was given.
    pub name: String,
}

names! {
    /// The four roles.
    AgentRole { Orchestrator = "orchestrator", Optimizer = "optimizer", Reviewer = "reviewer", Executor = "executor" }
}
names! {
    /// The Work Plan Protocol, in order.
    Phase {
        PromptToSpec = "prompt_to_spec", SpecToFullSpec = "spec_to_full_spec", FullSpecToPlan = "full_spec_to_plan",
        PlanToArtifacts = "plan_to_artifacts", Complete = "complete",
    }
}
names! {
    /// What an item asks for. The first three are named as their phase; `Work` is a user's own durable item.
    ItemKind {
        PromptToSpec = "prompt_to_spec", SpecToFullSpec = "spec_to_full_spec", FullSpecToPlan = "full_spec_to_plan",
        Optimize = "optimize", Execute = "execute", Review = "review", Accept = "accept", Work = "work",
    }
}
names! {
    /// A run.
    RunState {
        Running = "running", Paused = "paused", Waiting = "waiting", Done = "done", Failed = "failed",
        Cancelled = "cancelled", Interrupted = "interrupted", Budget = "budget",
    }
}
names! {
    /// A phase of a run.
    PhaseState { Pending = "pending", Running = "running", Done = "done", Skipped = "skipped", Failed = "failed" }
}
names! {
    /// A task of a plan.
    TaskState {
        Blocked = "blocked", Ready = "ready", Running = "running", Reviewing = "reviewing", Accepted = "accepted",
        Failed = "failed", Conflict = "conflict", Skipped = "skipped", Cancelled = "cancelled",
    }
}
names! {
    /// A work item.
    ItemState {
        Ready = "ready", Running = "running", Waiting = "waiting", Done = "done", Failed = "failed",
        Cancelled = "cancelled", Dead = "dead",
    }
}
names! {
    /// An agent.
    AgentState {
        Starting = "starting", Idle = "idle", Busy = "busy", Slow = "slow", Suspect = "suspect", Restarting = "restarting",
        Quarantined = "quarantined", Degraded = "degraded", Stopped = "stopped",
    }
}

impl Phase {
    /// The phase that follows, or `None` after the last.
    pub const fn next(self) -> Option<Phase> {
        match self {
            Phase::PromptToSpec => Some(Phase::SpecToFullSpec),
            Phase::SpecToFullSpec => Some(Phase::FullSpecToPlan),
            Phase::FullSpecToPlan => Some(Phase::PlanToArtifacts),
            Phase::PlanToArtifacts => Some(Phase::Complete),
            Phase::Complete => None,
        }
    }

    /// Whether a run may go from this phase to `next`: only to the one that follows.
    pub fn may_become(self, next: Phase) -> bool {
        self.next() == Some(next)
    }
}

impl RunState {
    /// Nothing more happens unless a user asks for it.
    pub const fn is_terminal(self) -> bool {
        matches!(self, RunState::Done | RunState::Failed | RunState::Cancelled)
    }

    /// `resume` continues it.
    pub const fn is_resumable(self) -> bool {
        !self.is_terminal()
    }
}

impl TaskState {
    /// The task will not change any more.
    pub const fn is_terminal(self) -> bool {
        matches!(
            self,
            TaskState::Accepted | TaskState::Failed | TaskState::Conflict | TaskState::Skipped | TaskState::Cancelled
        )
    }

    /// The task holds its file scope: from its first claim until it is accepted or failed, across attempts.
    pub const fn holds_scope(self) -> bool {
        matches!(self, TaskState::Running | TaskState::Reviewing)
    }
}

impl ItemState {
    /// The item will not be claimed again.
    pub const fn is_terminal(self) -> bool {
        matches!(self, ItemState::Done | ItemState::Failed | ItemState::Cancelled | ItemState::Dead)
    }
}

impl ItemKind {
    /// The role that does it. `Work` names its own.
    pub const fn role(self) -> Option<AgentRole> {
        match self {
            ItemKind::PromptToSpec | ItemKind::SpecToFullSpec | ItemKind::FullSpecToPlan | ItemKind::Accept => {
                Some(AgentRole::Orchestrator)
            }
            ItemKind::Optimize => Some(AgentRole::Optimizer),
            ItemKind::Execute => Some(AgentRole::Executor),
            ItemKind::Review => Some(AgentRole::Reviewer),
            ItemKind::Work => None,
        }
    }

    /// The phase it belongs to. `Work` names its own.
    pub const fn phase(self) -> Option<Phase> {
        match self {
            ItemKind::PromptToSpec => Some(Phase::PromptToSpec),
            ItemKind::SpecToFullSpec => Some(Phase::SpecToFullSpec),
            ItemKind::FullSpecToPlan => Some(Phase::FullSpecToPlan),
            ItemKind::Optimize | ItemKind::Execute | ItemKind::Review | ItemKind::Accept => {
                Some(Phase::PlanToArtifacts)
            }
            ItemKind::Work => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_may_only_become_the_one_that_follows() {
        for from in Phase::ALL {
            for to in Phase::ALL {
                let legal = Phase::ALL.iter().position(|phase| phase == from).map(|index| index + 1)
                    == Phase::ALL.iter().position(|phase| phase == to);
                assert_eq!(from.may_become(*to), legal, "{from} -> {to}");
            }
        }
    }

    #[test]
    fn every_name_parses_back_and_is_the_serde_name() {
        for state in TaskState::ALL {
            assert_eq!(state.as_str().parse::<TaskState>().unwrap(), *state);
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
        for kind in ItemKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        assert!("sleeping".parse::<ItemState>().is_err());
    }
}
