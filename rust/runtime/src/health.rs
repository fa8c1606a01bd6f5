//! What `health()` shows: snapshots of one agent, one role and the system, with the keys of the public contract.
//!
//! **TRUTH-2** A snapshot is computed when it is asked for (errors leave the window by themselves), never cached.

use mnemosyne_core::{AgentRole, AgentState};
use mnemosyne_store::QueueCounts;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One agent, now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentHealth {
    /// `executor-1`.
    pub agent_id: String,
    /// Its role.
    pub role: AgentRole,
    /// Where it stands.
    pub state: AgentState,
    /// It can work and has fewer than three errors in its window.
    pub is_healthy: bool,
    /// Errors in the window of this generation.
    pub error_count: u32,
    /// The newest error, of any generation.
    pub last_error: Option<String>,
    /// When it happened; RFC 3339.
    pub last_error_at: Option<String>,
    /// The error window is full: the agent is being restarted.
    pub should_restart: bool,
    /// From 1.
    pub generation: u64,
    /// How often it was started again.
    pub restarts: u32,
    /// When the next restart or probe is due; RFC 3339, `None` where none is planned.
    pub next_restart_at: Option<String>,
    /// How long ago its host's loop was seen alive.
    pub heartbeat_age_seconds: Option<f64>,
    /// How long ago its work last said anything, while it works: `None` where that is not known.
    pub progress_age_seconds: Option<f64>,
    /// Of its process, where it has one of its own.
    pub pid: Option<u32>,
}

/// Whether a role can work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoleState {
    /// Its agents work, or restart by themselves.
    Running,
    /// Some agent of it cannot be made; `reason` says why.
    Degraded,
    /// It was shut down.
    Stopped,
}

/// One role, now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoleHealth {
    /// Whether it can work.
    pub state: RoleState,
    /// Why it cannot.
    pub reason: Option<String>,
    /// Its agents, in start order.
    pub agents: Vec<AgentHealth>,
}

/// Whether the store answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreState {
    /// It does.
    Available,
    /// It does not; `reason` says why.
    Unavailable,
}

/// The store, as of its last poll.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreHealth {
    /// Whether it answers.
    pub state: StoreState,
    /// Why it does not.
    pub reason: Option<String>,
}

/// Whether work is taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IntakeState {
    /// It is.
    Open,
    /// No role has an agent that could work; what is submitted is kept.
    Stopped,
}

/// The last rung of the ladder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntakeHealth {
    /// Whether work is taken in.
    pub state: IntakeState,
    /// Why it is not.
    pub reason: Option<String>,
}

/// The whole tree, now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SystemHealth {
    /// Every role that has agents.
    pub roles: BTreeMap<AgentRole, RoleHealth>,
    /// Items by state, at most about a second old.
    pub queue: QueueCounts,
    /// Whether the store answers.
    pub store: StoreHealth,
    /// Whether work is taken in.
    pub intake: IntakeHealth,
}
