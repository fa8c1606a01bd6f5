//! [`ClaudeAgentBridge`]: the handle of one supervised agent, for Rust.

use crate::host::PythonHost;
use mnemosyne_core::{AgentRole, EventKind, Problem, ProblemKind, WorkItem, WorkResult};
use mnemosyne_runtime::{AgentHandle, AgentHealth, AgentSpec, HostError, RoleSpec, Tree, TreeConfig, WorkError};
use mnemosyne_store::{EventQuery, MemoryStore, Store};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

/// Why a bridge could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BridgeError {
    /// `mnemosyne::python::initialize` was not called.
    #[error("Python was never initialised in this process; call mnemosyne::python::initialize first")]
    PythonNotInitialized,
    /// The package or the agent's module cannot be imported.
    #[error("the agent cannot be made: {0}")]
    Import(String),
    /// No free place; nothing was queued.
    #[error("{0}")]
    Full(Problem),
    /// The bridge was shut down.
    #[error("{0}")]
    Closed(Problem),
    /// The agent cannot take work now.
    #[error("{0}")]
    Unavailable(Problem),
    /// The agent raised.
    #[error("the agent raised {0}")]
    Agent(HostError),
    /// The work did not end in time; its task was cancelled.
    #[error("{0}")]
    Timeout(Problem),
    /// The work was cancelled.
    #[error("{0}")]
    Cancelled(Problem),
}

impl From<WorkError> for BridgeError {
    fn from(error: WorkError) -> Self {
        match error {
            WorkError::Agent(error) => BridgeError::Agent(error),
            WorkError::Problem { problem, .. } => match problem.kind {
                ProblemKind::Full => BridgeError::Full(*problem),
                ProblemKind::Timeout => BridgeError::Timeout(*problem),
                ProblemKind::Closed => BridgeError::Closed(*problem),
                ProblemKind::Fenced => BridgeError::Cancelled(*problem),
                _ => BridgeError::Unavailable(*problem),
            },
        }
    }
}

/// A handle to one supervised agent. Dropping the last clone stops the agent and, if no other uses it, the loop.
#[derive(Clone)]
pub struct ClaudeAgentBridge {
    inner: Arc<Inner>,
}

struct Inner {
    agent: AgentHandle,
    tree: Tree,
    runtime: Handle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let tree = self.tree.clone();
        self.runtime.spawn(async move { tree.shutdown().await });
    }
}

impl ClaudeAgentBridge {
    /// Starts an agent under a supervisor of its own, on the caller's tokio runtime. Direct work is fast and supervised, not
    /// durable; a memory store keeps the agent's events while the bridge lives.
    ///
    /// # Errors
    /// [`BridgeError::PythonNotInitialized`], or [`BridgeError::Import`] where the class cannot be found.
    pub async fn spawn(role: AgentRole, spec: AgentSpec) -> Result<Self, BridgeError> {
        let runtime = Handle::current();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let host = PythonHost::launch(&runtime, Arc::clone(&store), None).await.map_err(not_started)?;
        let roles = vec![RoleSpec::pool(role, spec, 1)];
        let tree = Tree::start(TreeConfig { store: Arc::clone(&store), roles, claims: false })
            .await
            .map_err(BridgeError::Closed)?;
        host.serve(&tree);
        let agent = tree.agents().into_iter().next();
        let Some(agent) = agent else { return Err(BridgeError::Import("the tree has no agent".to_owned())) };
        let bridge = Self { inner: Arc::new(Inner { agent, tree, runtime }) };
        bridge.wait_started(&store).await?;
        Ok(bridge)
    }

    /// Waits for the agent's own word, which its supervisor stores as an event.
    async fn wait_started(&self, store: &Arc<dyn Store>) -> Result<(), BridgeError> {
        let mut changed = store.changed();
        loop {
            changed.mark_unchanged();
            let events = store.events(EventQuery { limit: 100, ..EventQuery::default() }).await;
            for event in events.map_err(BridgeError::Closed)? {
                match event.event.kind {
                    EventKind::AgentStarted => return Ok(()),
                    EventKind::RoleDegraded => {
                        let reason = event.event.data.get("reason").and_then(|reason| reason.as_str());
                        return Err(BridgeError::Import(reason.unwrap_or_default().to_owned()));
                    }
                    _ => {}
                }
            }
            let _ = changed.changed().await;
        }
    }

    /// `executor-1`.
    pub fn agent_id(&self) -> &str {
        self.inner.agent.agent_id()
    }

    /// The agent's role.
    pub fn role(&self) -> AgentRole {
        self.inner.agent.role()
    }

    /// From 1; rises with every restart (FENCE-2).
    pub fn generation(&self) -> u64 {
        self.inner.agent.generation()
    }

    /// Sends work and waits; waits for a free place too. Dropping the future cancels the work (KILL-1). The time limit is
    /// the smaller of `timeout` and the item's own.
    ///
    /// # Errors
    /// What the agent raised, or why it did not get to it.
    pub async fn send_work(&self, item: WorkItem, timeout: Option<Duration>) -> Result<WorkResult, BridgeError> {
        Ok(self.inner.agent.send_work(item, timeout).await?)
    }

    /// As [`Self::send_work`], but refuses at once with [`BridgeError::Full`] where there is no free place.
    ///
    /// # Errors
    /// See [`Self::send_work`].
    pub fn try_send_work(
        &self,
        item: WorkItem,
        timeout: Option<Duration>,
    ) -> Result<impl Future<Output = Result<WorkResult, BridgeError>> + Send + 'static, BridgeError> {
        let work = self.inner.agent.try_send_work(item, timeout)?;
        Ok(async move { Ok(work.await?) })
    }

    /// Charges the agent with an error that `send_work` did not see.
    ///
    /// # Errors
    /// The bridge was shut down.
    pub async fn record_error(&self, error: impl Into<String>) -> Result<AgentHealth, BridgeError> {
        Ok(self.inner.agent.record_error(error.into()).await?)
    }

    /// Replaces the agent by a new generation.
    ///
    /// # Errors
    /// The bridge was shut down.
    pub async fn restart(&self, reason: impl Into<String>) -> Result<AgentHealth, BridgeError> {
        Ok(self.inner.agent.restart(reason.into()).await?)
    }

    /// A snapshot; never blocks.
    pub fn health(&self) -> AgentHealth {
        self.inner.agent.health()
    }

    /// Stops the agent, giving what it does `timeout` to end. Idempotent.
    pub async fn shutdown(&self, timeout: Duration) {
        self.inner.agent.shutdown(Some(timeout)).await;
        self.inner.tree.shutdown().await;
    }
}

fn not_started(error: HostError) -> BridgeError {
    if error.type_name == "PythonNotInitialized" {
        BridgeError::PythonNotInitialized
    } else {
        BridgeError::Import(error.to_string())
    }
}
