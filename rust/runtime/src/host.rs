//! What runs an agent, as the tree sees it: start, submit, cancel, stop. The bridge implements it with Python; the
//! supervision tests implement it in memory, so that they need no interpreter and can pause the clock.

use async_trait::async_trait;
use mnemosyne_core::supervision::Keys;
use mnemosyne_core::{AgentRole, Problem, SpecError, WorkItem, WorkResult};
pub use mnemosyne_core::{Isolation, Restart, Shutdown, SupervisorSpec, WorkerLimits};
use mnemosyne_store::Claimed;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How an agent's class is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentSource {
    /// `package.module:Class`.
    Import(String),
    /// A class that the host already holds, by the key it gave out.
    Registered(String),
}

/// How an agent is made, as data.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value")]
pub struct AgentSpec {
    /// Its class.
    pub source: AgentSource,
    /// How many; `None` is the role's default.
    pub instances: Option<u32>,
    /// Items at a time.
    pub in_flight: u32,
    /// When it is started again.
    pub restart: Restart,
    /// What it gets before it is ended for good.
    pub shutdown: Shutdown,
    /// Where it runs.
    pub isolation: Isolation,
    /// Of its process, where it has one.
    pub limits: WorkerLimits,
    /// Another process can make it too: its class is found by its name.
    pub importable: bool,
    /// Given to every generation, whole.
    pub config: Map<String, Value>,
}

/// Of its configuration only the names: a key of it would be in the text of a panic (SECRET-1).
impl std::fmt::Debug for AgentSpec {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("AgentSpec")
            .field("source", &self.source)
            .field("instances", &self.instances)
            .field("in_flight", &self.in_flight)
            .field("restart", &self.restart)
            .field("isolation", &self.isolation)
            .field("config", &self.config.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl AgentSpec {
    /// An agent found by `package.module:Class`, with every default.
    pub fn import(path: impl Into<String>) -> Self {
        Self {
            source: AgentSource::Import(path.into()),
            instances: None,
            in_flight: 1,
            restart: Restart::default(),
            shutdown: Shutdown::default(),
            isolation: Isolation::default(),
            limits: WorkerLimits::default(),
            importable: true,
            config: Map::new(),
        }
    }

    /// Reads a mapping with the keys of this type; only `source` has no default.
    ///
    /// # Errors
    /// One entry for each key that cannot be used.
    pub fn read(value: Value) -> Result<Self, SpecError> {
        const COUNT: &str = "a count, 1 or more";
        let mut keys = Keys::of("agent", value)?;
        let source = keys.need("source", "where the class is found");
        let spec = Self {
            source: source.unwrap_or_else(|| AgentSource::Import(String::new())),
            instances: keys.take_if("instances", None, COUNT, |instances| *instances != Some(0)),
            in_flight: keys.take_if("in_flight", 1, COUNT, |in_flight| *in_flight > 0),
            restart: keys.take("restart", Restart::default(), "permanent, transient or temporary"),
            shutdown: keys.take("shutdown", Shutdown::default(), "\"kill\", \"infinity\" or seconds"),
            isolation: keys.take("isolation", Isolation::default(), "thread or process"),
            limits: keys.nested("limits", WorkerLimits::read),
            importable: keys.take("importable", true, "true or false"),
            config: keys.take("config", Map::new(), "a mapping"),
        };
        keys.finish(spec)
    }
}

impl TryFrom<Value> for AgentSpec {
    type Error = SpecError;
    fn try_from(value: Value) -> Result<Self, SpecError> {
        Self::read(value)
    }
}

/// One child as its supervisor keeps it, to be read by people: every default is spelled out. What an agent is configured
/// with is not part of it, since that may be a secret (SECRET-1).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChildSpec {
    /// `executor-1`.
    pub id: String,
    /// Whose supervisor owns it.
    pub role: AgentRole,
    /// Its class.
    pub source: AgentSource,
    /// Items at a time.
    pub in_flight: u32,
    /// When it is started again.
    pub restart: Restart,
    /// What it gets before it is ended for good.
    pub shutdown: Shutdown,
    /// Where it runs.
    pub isolation: Isolation,
    /// Of its process, where it has one.
    pub limits: WorkerLimits,
}

/// A supervisor and its children as data, in start order.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SupervisorView {
    /// How it treats them.
    pub supervisor: SupervisorSpec,
    /// What it keeps: ended children too, unless they were temporary.
    pub children: Vec<ChildSpec>,
}

/// One generation of one agent.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentStart {
    /// `executor-1`.
    pub agent_id: String,
    /// Its role.
    pub role: AgentRole,
    /// From 1 (FENCE-2).
    pub generation: u64,
    /// How it is made.
    pub spec: AgentSpec,
}

/// A failure inside a host, opaque to the tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{type_name}: {message}")]
pub struct HostError {
    /// Trying again as it is cannot help: no Python, an import that fails, a bad configuration.
    pub permanent: bool,
    /// Name of the exception's class.
    pub type_name: String,
    /// Its text.
    pub message: String,
    /// Its traceback, cut to a bounded length.
    #[serde(default)]
    pub traceback: String,
    /// Where the host keeps the original exception, if it does.
    #[serde(default)]
    pub token: Option<u64>,
}

impl HostError {
    /// A failure that no exception stands for.
    pub fn new(type_name: &str, message: impl Into<String>, permanent: bool) -> Self {
        Self {
            permanent,
            type_name: type_name.to_owned(),
            message: message.into(),
            traceback: String::new(),
            token: None,
        }
    }
}

/// Identifies one piece of submitted work; never used twice in a process, because trees share hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkKey(pub u64);

impl WorkKey {
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The host's own name for submitted work; may be used again once the work has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(pub u64);

/// Work for a started agent.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// Unique in this process.
    pub key: WorkKey,
    /// Who.
    pub agent_id: String,
    /// Which generation.
    pub generation: u64,
    /// What.
    pub work: Work,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub enum Work {
    /// A claim; `about` is what the agents' side reads beside its item: kind, epoch, run, task, setup, accepted, depth.
    Claimed { claimed: Arc<Claimed>, about: Value },
    /// Direct work: no store stands behind it, and nothing is around it.
    Direct(Arc<WorkItem>),
}

/// How work ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The agent returned a result.
    Result(Box<WorkResult>),
    /// The agent raised: charged to its error window.
    Raised(HostError),
    /// The agent's process ended while it held the work: a crash of the item.
    Crashed(HostError),
    /// The model failed: nobody is charged.
    Model {
        /// What happened.
        problem: Problem,
        /// Asking the same again cannot help.
        fatal: bool,
        /// What the server asked for.
        retry_after: Option<f64>,
        /// The class of the failure, where the host knows it.
        class: Option<String>,
    },
    /// The model's server asks to wait for longer than an agent may be held: the item waits, nobody is charged.
    Parked {
        /// What happened.
        problem: Problem,
        /// The class of the failure.
        class: String,
        /// For how long.
        seconds: f64,
    },
    /// Something outside is missing or refuses: the run is interrupted.
    Environment(Problem),
    /// The budget is used up: the run stops.
    Budget(Problem),
    /// The item can never be done as it is.
    Invalid(Problem),
    /// Another claim took over; drop it.
    Fenced,
    /// Cancelled on request.
    Cancelled,
}

/// The process of an agent that has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentProcess {
    /// Its process id.
    pub pid: u32,
    /// How long ago its loop was seen alive.
    pub heartbeat_age: Duration,
}

/// Takes the outcome, once. Dropped without a call: the work was lost with its host.
pub type Done = Box<dyn FnOnce(Outcome) + Send>;

/// Runs agents. Methods never block and may be called from any tokio worker.
#[async_trait]
pub trait AgentHost: Send + Sync + 'static {
    /// Makes the agent of this generation.
    async fn start(&self, start: AgentStart) -> Result<(), HostError>;
    /// Hands over work; `done` is called once it ended.
    fn submit(&self, work: Assignment, done: Done) -> Ticket;
    /// Asks for work to be cancelled; its outcome still comes through `done`. Work that has ended is not found.
    fn cancel(&self, ticket: Ticket, reason: &str);
    /// Work did not end when it was cancelled, and nobody waits for it any more; should it still end, `done` is called.
    fn abandon(&self, ticket: Ticket);
    /// Forgets the agent of this generation, closing what it holds.
    async fn stop(&self, agent_id: &str, generation: u64);
    /// How long ago the host's loop was seen alive; `None` where it was never seen.
    fn heartbeat_age(&self) -> Option<Duration>;
    /// How long ago claimed work of this agent last said anything: a step, a tool, an artifact, a word about its progress.
    /// `None` where it has none. Apart from the heartbeat: a loop can be alive while its work stands still.
    fn progress_age(&self, _agent_id: &str) -> Option<Duration> {
        None
    }
    /// The process of an agent that has one of its own.
    fn process(&self, _agent_id: &str, _generation: u64) -> Option<AgentProcess> {
        None
    }
    /// Completes when the agent of this generation is gone though nobody stopped it, after the outcomes of its work.
    async fn gone(&self, _agent_id: &str, _generation: u64) -> HostError {
        std::future::pending().await
    }
}

/// A host that all agents of a tree share.
pub type SharedHost = Arc<dyn AgentHost>;
