//! [`Orchestra`]: a store, a tree over it, and runs.

use mnemosyne_core::error::codes;
use mnemosyne_core::{AgentRole, Budget, Event, Phase, Plan, Problem, ProblemKind, RunOptions, RunState, WorkItem};
use mnemosyne_runtime::{AgentSpec, RoleSpec, SharedHost, SystemHealth, Tree, TreeConfig};
use mnemosyne_store::{EventQuery, ItemSnapshot, RunSnapshot, SqliteStore, Store};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A waiting call looks again after this long: other processes commit too.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Collects what an [`Orchestra`] needs.
#[derive(Default)]
pub struct OrchestraBuilder {
    store: PathBuf,
    agents: BTreeMap<AgentRole, AgentSpec>,
    max_concurrent: Option<u32>,
    host: Option<SharedHost>,
}

impl OrchestraBuilder {
    /// How the agents of a role are made; a role without one has no agents and its work waits.
    #[must_use]
    pub fn agent(mut self, role: AgentRole, spec: AgentSpec) -> Self {
        self.agents.insert(role, spec);
        self
    }

    /// Agents of each role that works on tasks; 4 by default.
    #[must_use]
    pub fn max_concurrent(mut self, count: u32) -> Self {
        self.max_concurrent = Some(count);
        self
    }

    /// Runs the agents on a host of your own instead of Python.
    #[must_use]
    pub fn host(mut self, host: SharedHost) -> Self {
        self.host = Some(host);
        self
    }

    /// Opens the store and starts the tree on the caller's runtime. Without a host, and without Python initialised, the
    /// tree runs all the same: roles are degraded with the reason, and the queue is kept (DOWN-1).
    ///
    /// # Errors
    /// The store cannot be opened.
    pub async fn start(self) -> Result<Orchestra, Problem> {
        let path = self.store;
        let opened = {
            let path = path.clone();
            tokio::task::spawn_blocking(move || SqliteStore::open(&path)).await
        };
        let store: Arc<dyn Store> = Arc::new(opened.map_err(|error| {
            Problem::new(ProblemKind::Store, codes::STORE_UNAVAILABLE, "the store could not be opened")
                .because(error.to_string())
        })??);
        let count = self.max_concurrent.unwrap_or(4).max(1);
        let roles = self.agents.into_iter().map(|(role, spec)| {
            let instances = spec.instances.unwrap_or(if role == AgentRole::Orchestrator { 1 } else { count });
            RoleSpec { role, spec, instances }
        });
        let config = TreeConfig { store: Arc::clone(&store), roles: roles.collect(), claims: true };
        let tree = Tree::start(config).await?;
        if let Some(host) = self.host {
            tree.register_bridge(host);
        } else {
            attach_python(&tree, &store, &path).await;
        }
        Ok(Orchestra { store, tree })
    }
}

/// Gives the tree Python, where there is one.
#[cfg(feature = "python")]
async fn attach_python(tree: &Tree, store: &Arc<dyn Store>, path: &Path) {
    let directory = mnemosyne_store::boot::state_directory(path);
    let runtime = tokio::runtime::Handle::current();
    let host = mnemosyne_bridge::PythonHost::launch(&runtime, Arc::clone(store), Some(directory)).await;
    // The tree says itself why its roles are degraded; a bridge can still be registered later.
    if let Ok(host) = host {
        tree.register_bridge(Arc::new(host));
    }
}

#[cfg(not(feature = "python"))]
async fn attach_python(_tree: &Tree, _store: &Arc<dyn Store>, _path: &Path) {}

/// What a run begins with.
#[derive(Debug, Clone)]
pub struct RunRequest {
    prompt: Option<String>,
    plan: Option<Plan>,
    workspace: PathBuf,
    budget: Budget,
    key: Option<String>,
}

impl RunRequest {
    /// A sentence, to be turned into a specification and a plan.
    pub fn prompt(prompt: impl Into<String>, workspace: impl Into<PathBuf>) -> Self {
        Self {
            prompt: Some(prompt.into()),
            plan: None,
            workspace: workspace.into(),
            budget: Budget::default(),
            key: None,
        }
    }

    /// A plan; the first three phases are skipped.
    pub fn plan(plan: Plan, workspace: impl Into<PathBuf>) -> Self {
        Self { prompt: None, plan: Some(plan), workspace: workspace.into(), budget: Budget::default(), key: None }
    }

    /// What it may spend.
    #[must_use]
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }

    /// Submitting the same key again gives the same run.
    #[must_use]
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }
}

/// A store with a tree of agents over it.
pub struct Orchestra {
    store: Arc<dyn Store>,
    tree: Tree,
}

impl Orchestra {
    /// An orchestra over the store in this file.
    pub fn builder(store: impl Into<PathBuf>) -> OrchestraBuilder {
        OrchestraBuilder { store: store.into(), ..OrchestraBuilder::default() }
    }

    /// Stores a run; returns after the commit (DUR-1).
    ///
    /// # Errors
    /// An empty prompt, a plan that cannot be used, a workspace that is missing or busy.
    pub async fn submit(&self, request: RunRequest) -> Result<Run, Problem> {
        let workspace = request.workspace.canonicalize().map_err(|error| {
            Problem::new(ProblemKind::InvalidInput, "MN-0107", "the workspace does not exist")
                .because(error.to_string())
        })?;
        if request.plan.is_none() && request.prompt.as_deref().is_none_or(|prompt| prompt.trim().is_empty()) {
            return Err(Problem::new(ProblemKind::InvalidInput, "MN-0101", "the prompt is empty"));
        }
        let run = mnemosyne_core::Run {
            id: new_run_id()?,
            prompt: request.prompt,
            spec: None,
            plan: request.plan,
            workspace: workspace.to_string_lossy().into_owned(),
            options: RunOptions::default(),
            budget: request.budget,
            state: RunState::Running,
            phase: Phase::PromptToSpec,
            boot: None,
            resumes: 0,
            error: None,
            created_at: self.store.now(),
            ended_at: None,
        };
        let id = self.store.submit_run(run, request.key).await?;
        Ok(Run { id, store: Arc::clone(&self.store), tree: self.tree.clone() })
    }

    /// Continues a run that another process left.
    ///
    /// # Errors
    /// The run has ended, or its process lives.
    pub async fn resume(&self, run: &str) -> Result<Run, Problem> {
        self.store.adopt_run(run, None).await?;
        Ok(Run { id: run.to_owned(), store: Arc::clone(&self.store), tree: self.tree.clone() })
    }

    /// Stores one durable item for a role and waits for its end.
    ///
    /// # Errors
    /// The item cannot be stored.
    pub async fn work(&self, item: WorkItem, idempotency_key: Option<String>) -> Result<ItemSnapshot, Problem> {
        let id = self.store.submit_item(item, idempotency_key).await?;
        let mut changed = self.store.changed();
        loop {
            changed.mark_unchanged();
            match self.store.item(&id).await? {
                Some(snapshot) if snapshot.item.state.is_terminal() => return Ok(snapshot),
                _ => {
                    let _ = tokio::time::timeout(LOOK_AGAIN, changed.changed()).await;
                }
            }
        }
    }

    /// The whole tree; never blocks.
    pub fn health(&self) -> SystemHealth {
        self.tree.health()
    }

    /// Attaches a host at once or later; degraded roles recover (DOWN-1).
    pub fn register_bridge(&self, host: SharedHost) {
        self.tree.register_bridge(host);
    }

    /// Stops claiming, lets running items finish for so long, then stops the tree. Runs stay resumable.
    pub async fn shutdown(self, patience: Duration) {
        self.tree.drain(patience).await;
        self.tree.shutdown().await;
    }
}

/// One run.
pub struct Run {
    id: String,
    store: Arc<dyn Store>,
    tree: Tree,
}

impl Run {
    /// `r-` and hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Events after `since`, at most 1,000.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn events(&self, since: u64) -> Result<Vec<Event>, Problem> {
        let query = EventQuery { since, run: Some(self.id.clone()), agent: None, limit: 1_000 };
        self.store.events(query).await
    }

    /// Waits until nothing more happens without a person: done, failed, cancelled, interrupted or out of budget.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn result(&self) -> Result<RunSnapshot, Problem> {
        let mut changed = self.store.changed();
        loop {
            changed.mark_unchanged();
            match self.store.run(&self.id).await? {
                Some(snapshot) if has_stopped(snapshot.run.state) => return Ok(snapshot),
                _ => {
                    let _ = tokio::time::timeout(LOOK_AGAIN, changed.changed()).await;
                }
            }
        }
    }

    /// Cancels it, and what is in flight.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn cancel(&self, reason: &str) -> Result<(), Problem> {
        self.tree.cancel_run(&self.id, reason).await
    }
}

fn has_stopped(state: RunState) -> bool {
    state.is_terminal() || matches!(state, RunState::Interrupted | RunState::Budget)
}

fn new_run_id() -> Result<String, Problem> {
    let mut bytes = [0u8; 4];
    getrandom::fill(&mut bytes).map_err(|error| {
        Problem::new(ProblemKind::Environment, codes::STORE_UNAVAILABLE, "no random numbers").because(error.to_string())
    })?;
    Ok(format!("r-{:08x}", u32::from_be_bytes(bytes)))
}
