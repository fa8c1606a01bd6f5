//! The public handle to the living tree.
//!
//! **DOWN-1** A tree runs without any host: its roles are degraded with a reason, the store keeps the queue, and a bridge
//! that is registered later finds everything as it was.

use crate::agent::Ending;
use crate::background::Background;
use crate::drain::drain;
use crate::handle::AgentHandle;
use crate::health::SystemHealth;
use crate::host::{AgentSpec, SharedHost, SupervisorView};
use crate::pool::{add_agent, new_agent, scale};
use crate::pump::{self, Pump};
use crate::record::{TreeRecord, locked};
use crate::role_supervisor::RoleMessage;
use crate::root::{Root, RootMessage};
use futures_util::future::join_all;
use mnemosyne_core::error::codes;
use mnemosyne_core::{AgentRole, Problem, ProblemKind, RunState, Strategy, SupervisorSpec};
use mnemosyne_store::Store;
use ractor::{Actor, ActorRef};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::time::timeout;

/// How long a shutdown waits for hosts and for the store to take the last events.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The agents of one role.
#[derive(Debug, Clone)]
pub struct RoleSpec {
    /// Which role.
    pub role: AgentRole,
    /// How each agent is made.
    pub spec: AgentSpec,
    /// How many.
    pub instances: u32,
    /// How its supervisor treats them.
    pub supervisor: SupervisorSpec,
}

impl RoleSpec {
    /// A pool of agents that are made alike, with every default.
    pub fn pool(role: AgentRole, spec: AgentSpec, instances: u32) -> Self {
        Self { role, spec, instances, supervisor: SupervisorSpec::default() }
    }
}

/// What a tree is made of.
pub struct TreeConfig {
    /// Where work comes from and results go.
    pub store: Arc<dyn Store>,
    /// The agents to begin with.
    pub roles: Vec<RoleSpec>,
    /// Whether agents claim from the store; `false` for a standalone bridge, whose agent only gets direct work.
    pub claims: bool,
}

/// The living tree. When the last clone is dropped the actors end, and what is in flight is cancelled; [`Tree::shutdown`]
/// does the same in order, and waits for it.
#[derive(Clone)]
pub struct Tree {
    inner: Arc<Inner>,
}

/// A tree that is not kept alive: for tasks that serve it while it lives.
#[derive(Clone)]
pub struct WeakTree {
    inner: Weak<Inner>,
}

impl WeakTree {
    /// The tree, if it lives.
    pub fn upgrade(&self) -> Option<Tree> {
        self.inner.upgrade().map(|inner| Tree { inner })
    }
}

struct Inner {
    record: Arc<TreeRecord>,
    root: ActorRef<RootMessage>,
    /// Taken by the shutdown.
    pump: Mutex<Option<Pump>>,
    /// Filled by the first shutdown; later ones wait for it.
    ended: OnceCell<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.record.draining.store(true, Ordering::SeqCst);
        self.record.closing.store(true, Ordering::SeqCst);
        self.root.stop(None); // children end with their parents; their state cancels and forgets in `Drop`
        self.record.forget_host();
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.agents()).finish()
    }
}

impl Tree {
    /// Starts the tree on the caller's tokio runtime.
    ///
    /// # Errors
    /// `InvalidInput` for a role's specification that cannot be used; `Environment` where the root cannot be spawned.
    ///
    /// # Panics
    /// Outside a tokio runtime, as everything that spawns does.
    pub async fn start(config: TreeConfig) -> Result<Tree, Problem> {
        let background = Background::new(tokio::runtime::Handle::current());
        let record = TreeRecord::new(&config, background);
        for role in config.roles {
            for _ in 0..role.instances {
                new_agent(&record, role.role, role.spec.clone(), None)?;
            }
        }
        let (root, _) = Root::spawn(None, Root, record.clone()).await.map_err(|error| {
            Problem::new(ProblemKind::Environment, codes::UNAVAILABLE, "the supervision tree could not start")
                .because(error.to_string())
        })?;
        let pump = Pump::start(&record);
        let inner = Inner { record, root, pump: Mutex::new(Some(pump)), ended: OnceCell::new() };
        Ok(Tree { inner: Arc::new(inner) })
    }

    /// The tree without keeping it alive.
    pub fn downgrade(&self) -> WeakTree {
        WeakTree { inner: Arc::downgrade(&self.inner) }
    }

    /// Attaches the bridge to every agent of every role, those added later included. Another bridge replaces it: agents
    /// that run begin a new generation there, without a charge.
    pub fn register_bridge(&self, host: SharedHost) {
        for role in self.inner.record.roles() {
            *locked(&role.host) = Some(host.clone());
            *locked(&role.stuck) = None;
            role.send(RoleMessage::RegisterPythonBridge(host.clone()));
        }
    }

    /// Says that the bridge makes no progress, and why; or with `None` that it goes on. Its agents are shown as suspect
    /// and their roles as degraded meanwhile. What is in flight keeps its deadlines.
    pub fn bridge_stuck(&self, reason: Option<String>) {
        for role in self.inner.record.roles() {
            locked(&role.stuck).clone_from(&reason);
            role.send(RoleMessage::BridgeMoved);
        }
    }

    /// The store.
    pub fn store(&self) -> Arc<dyn Store> {
        self.inner.record.store.clone()
    }

    /// Adds one agent to a role; it starts at once if a bridge is registered.
    ///
    /// # Errors
    /// `InvalidInput` for an id that is taken or a specification that cannot be used, `Closed` after a drain.
    pub async fn add_agent(
        &self,
        role: AgentRole,
        spec: AgentSpec,
        agent_id: Option<String>,
    ) -> Result<AgentHandle, Problem> {
        add_agent(&self.inner.record, role, spec, agent_id)
    }

    /// All agents, in start order.
    pub fn agents(&self) -> Vec<AgentHandle> {
        AgentHandle::all(&self.inner.record)
    }

    /// One agent.
    pub fn agent(&self, id: &str) -> Option<AgentHandle> {
        self.agents().into_iter().find(|agent| agent.agent_id() == id)
    }

    /// The supervisors and their children as data, defaults included: the roles that have agents.
    pub fn supervisors(&self) -> BTreeMap<AgentRole, SupervisorView> {
        let views = self.inner.record.roles().map(|role| (role.role, role.view()));
        views.filter(|(_, view)| !view.children.is_empty()).collect()
    }

    /// Makes a pool as large as asked: new agents like the first ones, or the youngest are ended, side by side, each
    /// with the time of its own specification, and are not kept. Agents that were added by hand are not counted.
    ///
    /// # Errors
    /// `InvalidInput` for a role that is no pool, or was begun without agents; `Closed` after a drain.
    pub async fn scale(&self, role: AgentRole, instances: u32) -> Result<(), Problem> {
        scale(&self.inner.record, role, instances).await
    }

    /// Now; never blocks.
    pub fn health(&self) -> SystemHealth {
        let record = &self.inner.record;
        let roles = record.roles().map(|role| (role.role, role.health(record)));
        let roles = roles.filter(|(_, health)| !health.agents.is_empty()).collect();
        let seen = locked(&record.seen);
        SystemHealth { roles, queue: seen.queue, store: seen.store.clone(), intake: record.intake() }
    }

    /// Cancels a run: first in the store, which fences its claims, then what is in flight.
    ///
    /// # Errors
    /// As `Store::cancel_run`.
    pub async fn cancel_run(&self, run: &str, reason: &str) -> Result<(), Problem> {
        pump::cancel_run(&self.inner.record, run, reason).await
    }

    /// Stops a run so that it can be resumed: first in the store, then what is in flight.
    ///
    /// # Errors
    /// As `Store::stop_run`.
    pub async fn stop_run(&self, run: &str, state: RunState, problem: Problem) -> Result<(), Problem> {
        pump::stop_run(&self.inner.record, run, state, problem).await
    }

    /// Cancels a user's own item: first in the store, which fences its claim, then what is in flight.
    ///
    /// # Errors
    /// As `Store::cancel_item`.
    pub async fn cancel_item(&self, item: &str, reason: &str) -> Result<(), Problem> {
        let record = &self.inner.record;
        record.store.cancel_item(item, reason).await?;
        for role in record.roles() {
            for agent in role.agents() {
                // A claim that is only just on its way is found by its next write or renewal, which is fenced.
                if let Some(key) = agent.custody.find(item) {
                    let (agent_id, reason) = (agent.agent_id.clone(), reason.to_owned());
                    role.send(RoleMessage::Cancel { agent_id, key, ending: Ending::Over, reason });
                }
            }
        }
        Ok(())
    }

    /// Takes no more work, lets what runs finish, cancels the rest and releases it without a charge. `true` if all of it
    /// finished by itself.
    ///
    /// Each agent has the time of its own specification, or `patience` where that is given. The times run side by side,
    /// so that a drain lasts as long as the longest of them and not as their sum.
    pub async fn drain(&self, patience: Option<Duration>) -> bool {
        drain(&self.inner.record, patience).await
    }

    /// Drains without patience, then ends all actors: the roles in reverse start order, a pool's agents side by side, others
    /// one by one, the youngest first. Idempotent; later calls wait for the first.
    pub async fn shutdown(&self) {
        self.inner.ended.get_or_init(|| self.end()).await;
    }

    async fn end(&self) {
        let record = &self.inner.record;
        self.drain(Some(Duration::ZERO)).await;
        record.closing.store(true, Ordering::SeqCst);
        for role in record.roles().rev() {
            let agents = role.agents().into_iter().map(|agent| AgentHandle::new(record.clone(), role.clone(), agent));
            let stops = agents.rev().map(|agent| async move { timeout(LAST_WORDS, agent.stop()).await });
            if role.spec.strategy == Strategy::Pool {
                join_all(stops).await;
            } else {
                for stop in stops {
                    let _ = stop.await;
                }
            }
            let supervisor = locked(&role.supervisor).clone();
            if let Some(supervisor) = supervisor {
                let _ = supervisor.stop_and_wait(None, Some(LAST_WORDS)).await;
            }
        }
        let _ = self.inner.root.stop_and_wait(None, Some(LAST_WORDS)).await;
        record.forget_host();
        locked(&self.inner.pump).take();
        record.background.idle(LAST_WORDS).await;
        record.events.flush(LAST_WORDS).await;
    }

    #[cfg(test)]
    pub(crate) fn record(&self) -> &Arc<TreeRecord> {
        &self.inner.record
    }
}
