//! The public handle to the living tree.

use crate::handle::AgentHandle;
use crate::health::SystemHealth;
use crate::host::{AgentSpec, SharedHost};
use mnemosyne_core::{AgentRole, Problem};
use mnemosyne_store::Store;
use std::sync::Arc;
use std::time::Duration;

/// The agents of one role.
#[derive(Debug, Clone)]
pub struct RoleSpec {
    /// Which role.
    pub role: AgentRole,
    /// How each agent is made.
    pub spec: AgentSpec,
    /// How many.
    pub instances: u32,
}

/// What a tree is made of.
pub struct TreeConfig {
    /// Where work comes from and results go.
    pub store: Arc<dyn Store>,
    /// The agents to begin with.
    pub roles: Vec<RoleSpec>,
    /// Whether agents claim from the store; `false` for a standalone bridge.
    pub claims: bool,
}

/// The living tree.
#[derive(Clone)]
pub struct Tree {}

impl Tree {
    pub async fn start(_config: TreeConfig) -> Result<Tree, Problem> { unimplemented!() }
    pub fn register_bridge(&self, _host: SharedHost) {}
    pub fn store(&self) -> Arc<dyn Store> { unimplemented!() }
    pub async fn add_agent(&self, _role: AgentRole, _spec: AgentSpec, _agent_id: Option<String>) -> Result<AgentHandle, Problem> { unimplemented!() }
    pub fn agents(&self) -> Vec<AgentHandle> { unimplemented!() }
    pub fn agent(&self, _id: &str) -> Option<AgentHandle> { unimplemented!() }
    pub fn health(&self) -> SystemHealth { unimplemented!() }
    pub async fn cancel_run(&self, _run: &str, _reason: &str) -> Result<(), Problem> { unimplemented!() }
    pub async fn drain(&self, _patience: Duration) -> bool { unimplemented!() }
    pub async fn shutdown(&self) {}
}
