//! An orchestrator for Claude agents, for Rust binaries.
//!
//! The nouns and verbs are those of the Python package: [`Orchestra`] takes prompts and plans, [`Run`] is one of them,
//! [`ClaudeAgentBridge`] is a handle to one supervised agent. Everything runs on the caller's tokio runtime.
//!
//! Without the feature `python` the tree and the store are here, and agents are whatever implements
//! [`AgentHost`].

#![cfg_attr(not(feature = "python"), forbid(unsafe_code))]

mod orchestra;
#[cfg(feature = "python")]
pub mod python;

pub use mnemosyne_core::Strategy;
pub use mnemosyne_core::{
    AgentRole, Budget, Event, EventKind, Limits, NewEvent, Phase, Plan, Problem, ProblemKind, RunState, Usage,
    WorkItem, WorkResult,
};
pub use mnemosyne_runtime::{
    AgentHandle, AgentHealth, AgentHost, AgentSource, AgentSpec, ChildSpec, Isolation, Restart, RoleState, Shutdown,
    SupervisorSpec, SupervisorView, SystemHealth, WorkerLimits,
};
pub use mnemosyne_store::{ItemSnapshot, RunSnapshot};
pub use orchestra::{Orchestra, OrchestraBuilder, Run, RunRequest, Work};

#[cfg(feature = "python")]
pub use mnemosyne_bridge::{BridgeError, ClaudeAgentBridge, PythonHost};
