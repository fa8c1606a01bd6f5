//! The handle to one agent.

use crate::health::AgentHealth;
use crate::host::HostError;
use mnemosyne_core::{AgentRole, Problem, WorkItem, WorkResult};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// A boxed future, as `try_send_work` returns it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why direct work gave no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WorkError {
    /// The agent raised.
    #[error(transparent)]
    Agent(HostError),
    /// Timeout, Unavailable, Full, Closed, or what the agent's side reported in coded form.
    #[error("{problem}")]
    Problem {
        /// What happened.
        problem: Problem,
        /// Seconds since 1970 when trying again may help.
        retry_at: Option<f64>,
    },
}

/// Handle to one supervised agent; stable across restarts.
#[derive(Clone)]
pub struct AgentHandle {}

impl AgentHandle {
    pub fn agent_id(&self) -> &str { unimplemented!() }
    pub fn role(&self) -> AgentRole { unimplemented!() }
    pub fn generation(&self) -> u64 { unimplemented!() }
    pub fn health(&self) -> AgentHealth { unimplemented!() }
    pub async fn send_work(&self, item: WorkItem, timeout: Option<Duration>) -> Result<WorkResult, WorkError> { unimplemented!("{item:?}{timeout:?}") }
    pub fn try_send_work(&self, item: WorkItem, timeout: Option<Duration>) -> Result<BoxFuture<'static, Result<WorkResult, WorkError>>, WorkError> { unimplemented!("{item:?}{timeout:?}") }
    pub async fn record_error(&self, error: String) -> Result<AgentHealth, WorkError> { unimplemented!("{error}") }
    pub async fn restart(&self, reason: String) -> Result<AgentHealth, WorkError> { unimplemented!("{reason}") }
    pub async fn shutdown(&self, timeout: Duration) { unimplemented!("{timeout:?}") }
}
