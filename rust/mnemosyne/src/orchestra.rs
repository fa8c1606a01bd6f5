//! [`Orchestra`]: a store, a tree over it, and runs.

use mnemosyne_core::error::codes;
use mnemosyne_core::validation::check_prompt;
use mnemosyne_core::{AgentRole, Budget, Event, Phase, Plan, Problem, ProblemKind, RunOptions, RunState, WorkItem};
use mnemosyne_runtime::{
    AgentHandle, AgentSpec, RoleSpec, SharedHost, SupervisorSpec, SupervisorView, SystemHealth, Tree, TreeConfig,
};
use mnemosyne_store::{Durability, EventQuery, ItemSnapshot, RunSnapshot, SqliteStore, Store};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A waiting call looks again after this long: other processes commit too.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// A resume waits so long for the last child of the process before.
const GUARD_PATIENCE: Duration = Duration::from_secs(15);

/// Collects what an [`Orchestra`] needs.
#[derive(Default)]
pub struct OrchestraBuilder {
    store: Option<PathBuf>,
    agents: BTreeMap<AgentRole, AgentSpec>,
    supervisors: BTreeMap<AgentRole, SupervisorSpec>,
    options: RunOptions,
    host: Option<SharedHost>,
    durability: Durability,
}

impl OrchestraBuilder {
    /// The store's file; by default `MNEMOSYNE_STORE`, else in the XDG state directory.
    #[must_use]
    pub fn store(mut self, path: impl Into<PathBuf>) -> Self {
        self.store = Some(path.into());
        self
    }

    /// Model id for all roles; by default each role has its own.
    #[must_use]
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.options.model = Some(model.into());
        self
    }

    /// A server that speaks the Messages API; by default Anthropic's.
    #[must_use]
    pub fn base_url(mut self, url: impl Into<String>) -> Self {
        self.options.base_url = Some(url.into());
        self
    }

    /// How the agents of a role are made. With Python, a role without one gets its own Claude agent; without, it has no
    /// agents and its work waits.
    #[must_use]
    pub fn agent(mut self, role: AgentRole, spec: AgentSpec) -> Self {
        self.agents.insert(role, spec);
        self
    }

    /// How the agents of a role are restarted; by default a pool with 5 restarts in 300 s.
    #[must_use]
    pub fn supervisor(mut self, role: AgentRole, spec: SupervisorSpec) -> Self {
        self.supervisors.insert(role, spec);
        self
    }

    /// Agents of each role that works on tasks; 4 by default.
    #[must_use]
    pub fn max_concurrent(mut self, count: u32) -> Self {
        self.options.max_concurrent = count;
        self
    }

    /// What an acknowledgement survives; by default the loss of power.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Runs the agents on a host of your own instead of Python.
    #[must_use]
    pub fn host(mut self, host: SharedHost) -> Self {
        self.host = Some(host);
        self
    }

    /// Opens the store and starts the tree on the caller's runtime. Without a host, and without Python initialised, the
    /// tree runs all the same: roles are degraded with the reason, the queue is kept, and Python is looked for again, so
    /// that they recover when it is there (DOWN-1).
    ///
    /// # Errors
    /// The store cannot be opened.
    pub async fn start(self) -> Result<Orchestra, Problem> {
        let path = self.store.clone().unwrap_or_else(default_store);
        let opened = {
            let (path, durability) = (path.clone(), self.durability);
            tokio::task::spawn_blocking(move || SqliteStore::open_as(&path, durability)).await
        };
        let store: Arc<dyn Store> = Arc::new(opened.map_err(|error| {
            Problem::new(ProblemKind::Store, codes::STORE_UNAVAILABLE, "the store could not be opened")
                .because(error.to_string())
        })??);
        let mut options = self.options;
        if options.max_concurrent == 0 {
            options.max_concurrent = 4;
        }
        let mut agents = self.agents;
        if self.host.is_none() {
            add_claude_agents(&mut agents, &options);
        }
        let count = options.max_concurrent;
        let roles = agents.into_iter().map(|(role, spec)| {
            let instances = spec.instances.unwrap_or(if role == AgentRole::Orchestrator { 1 } else { count });
            let supervisor = self.supervisors.get(&role).copied().unwrap_or_default();
            RoleSpec { role, spec, instances, supervisor }
        });
        let config = TreeConfig { store: Arc::clone(&store), roles: roles.collect(), claims: true };
        let tree = Tree::start(config).await?;
        if let Some(host) = self.host {
            tree.register_bridge(host);
        } else {
            attach_python(&tree, &store, &path).await;
        }
        Ok(Orchestra { store, tree, options, directory: mnemosyne_store::boot::state_directory(&path) })
    }
}

/// As in Python's `config.settings`.
fn default_store() -> PathBuf {
    if let Some(named) = std::env::var_os("MNEMOSYNE_STORE").filter(|named| !named.is_empty()) {
        return PathBuf::from(named);
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".local/state");
    state.unwrap_or_else(home).join("mnemosyne/store.db")
}

/// The role's own agent for every role that has none.
#[cfg(feature = "python")]
fn add_claude_agents(agents: &mut BTreeMap<AgentRole, AgentSpec>, options: &RunOptions) {
    for (role, source) in [
        (AgentRole::Orchestrator, "mnemosyne.agents.orchestrator:OrchestratorAgent"),
        (AgentRole::Optimizer, "mnemosyne.agents.optimizer:OptimizerAgent"),
        (AgentRole::Reviewer, "mnemosyne.agents.reviewer:ReviewerAgent"),
        (AgentRole::Executor, "mnemosyne.agents.executor:ExecutorAgent"),
    ] {
        agents.entry(role).or_insert_with(|| {
            let mut spec = AgentSpec::import(source);
            spec.config.insert("model".into(), options.model.clone().into());
            spec.config.insert("base_url".into(), options.base_url.clone().into());
            spec
        });
    }
}

#[cfg(not(feature = "python"))]
fn add_claude_agents(_agents: &mut BTreeMap<AgentRole, AgentSpec>, _options: &RunOptions) {}

/// Gives the tree Python, where there is one.
#[cfg(feature = "python")]
async fn attach_python(tree: &Tree, store: &Arc<dyn Store>, path: &Path) {
    let directory = mnemosyne_store::boot::state_directory(path);
    mnemosyne_bridge::PythonHost::serve_when_possible(tree, Arc::clone(store), Some(directory)).await;
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
    /// What its runs remember of it.
    options: RunOptions,
    /// Where boots keep their locks, and runs their trees.
    directory: PathBuf,
}

impl Orchestra {
    /// Collects what an orchestra needs.
    pub fn builder() -> OrchestraBuilder {
        OrchestraBuilder::default()
    }

    /// Stores a run; returns after the commit (DUR-1).
    ///
    /// # Errors
    /// An empty prompt, a plan that cannot be used, a workspace that is missing or busy.
    pub async fn submit(&self, request: RunRequest) -> Result<Run, Problem> {
        let workspace = request.workspace.canonicalize().map_err(|error| {
            Problem::new(ProblemKind::InvalidInput, codes::WORKSPACE, "the workspace does not exist")
                .because(error.to_string())
        })?;
        if request.plan.is_none() {
            check_prompt(request.prompt.as_deref().unwrap_or_default())?;
        }
        let run = mnemosyne_core::Run {
            id: new_run_id()?,
            prompt: request.prompt,
            spec: None,
            plan: request.plan,
            workspace: workspace.to_string_lossy().into_owned(),
            options: self.options.clone(),
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

    /// Continues a run that another process left; waits until that process's last child is gone (KILL-2).
    ///
    /// # Errors
    /// The run has ended, or its process or one of its commands lives.
    pub async fn resume(&self, run: &str) -> Result<Run, Problem> {
        let snapshot = self.store.run(run).await?;
        if let Some(boot) = snapshot.and_then(|found| found.run.boot).filter(|boot| self.store.is_dead(boot)) {
            self.wait_for_guard(run, &boot).await?;
        }
        self.store.adopt_run(run, None).await?;
        Ok(Run { id: run.to_owned(), store: Arc::clone(&self.store), tree: self.tree.clone() })
    }

    /// A guard holds its lock until its last child is gone.
    async fn wait_for_guard(&self, run: &str, boot: &str) -> Result<(), Problem> {
        let Ok(lock) = File::open(self.directory.join("boots").join(format!("{boot}.guard"))) else { return Ok(()) };
        let until = Instant::now() + GUARD_PATIENCE;
        while lock.try_lock_shared().is_err() {
            if Instant::now() >= until {
                return Err(Problem::new(
                    ProblemKind::Environment,
                    codes::COMMAND_LEFT,
                    format!("a command of run {run} is still running"),
                )
                .because("the process before ended, but not all that it had started")
                .hint("wait for it to end, or end it, and resume again"));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Stores one durable item for a role; returns after the commit (DUR-1).
    ///
    /// # Errors
    /// The item cannot be stored.
    pub async fn submit_work(&self, item: WorkItem, idempotency_key: Option<String>) -> Result<Work, Problem> {
        let id = self.store.submit_item(item, idempotency_key).await?;
        Ok(Work { id, store: Arc::clone(&self.store), tree: self.tree.clone() })
    }

    /// The whole tree; never blocks.
    pub fn health(&self) -> SystemHealth {
        self.tree.health()
    }

    /// What happened in the store since an event, oldest first; at most 1,000.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn events(&self, since: u64) -> Result<Vec<Event>, Problem> {
        self.store.events(EventQuery { since, limit: 1_000, ..EventQuery::default() }).await
    }

    /// The supervisors and their agents as data, defaults included.
    pub fn supervisors(&self) -> BTreeMap<AgentRole, SupervisorView> {
        self.tree.supervisors()
    }

    /// Every agent, in start order: to send it work, restart it, or end it.
    pub fn agents(&self) -> Vec<AgentHandle> {
        self.tree.agents()
    }

    /// Adds an agent to a role; it starts at once if a host is attached.
    ///
    /// # Errors
    /// A specification that cannot be used, or a tree that drains.
    pub async fn add_agent(&self, role: AgentRole, spec: AgentSpec) -> Result<AgentHandle, Problem> {
        self.tree.add_agent(role, spec, None).await
    }

    /// Makes a role's pool as large as asked; the youngest are ended first, and are not kept.
    ///
    /// # Errors
    /// The role is no pool, or the tree drains.
    pub async fn scale(&self, role: AgentRole, instances: u32) -> Result<(), Problem> {
        self.tree.scale(role, instances).await
    }

    /// Attaches a host of your own at once or later; degraded roles recover (DOWN-1). Python's is attached by itself.
    pub fn register_bridge(&self, host: SharedHost) {
        self.tree.register_bridge(host);
    }

    /// Stops claiming, lets running items finish for so long, then stops the tree. Runs stay resumable.
    pub async fn shutdown(self, patience: Duration) {
        self.tree.drain(Some(patience)).await;
        self.tree.shutdown().await;
    }
}

/// One durable item that a user submitted.
pub struct Work {
    id: String,
    store: Arc<dyn Store>,
    tree: Tree,
}

impl Work {
    /// The item's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Waits for its end: done, failed, cancelled or dead.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn result(&self) -> Result<ItemSnapshot, Problem> {
        let mut changed = self.store.changed();
        loop {
            changed.mark_unchanged();
            match self.store.item(&self.id).await? {
                Some(snapshot) if snapshot.item.state.is_terminal() => return Ok(snapshot),
                _ => {
                    let _ = tokio::time::timeout(LOOK_AGAIN, changed.changed()).await;
                }
            }
        }
    }

    /// Cancels it, in flight too.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn cancel(&self, reason: &str) -> Result<(), Problem> {
        self.tree.cancel_item(&self.id, reason).await
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
        let query = EventQuery { since, run: Some(self.id.clone()), limit: 1_000, ..EventQuery::default() };
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
