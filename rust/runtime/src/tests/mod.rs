//! The tree on an in-memory host, the memory store and a paused clock. Tests are grouped by what they prove.

mod chaos;
mod direct;
mod durable;
mod flaky;
mod lifecycle;
mod otp;
mod picture;
mod strategies;
mod supervision;
mod windows;

use crate::host::{AgentHost, AgentSpec, AgentStart, Assignment, Done, HostError, Outcome, Ticket, Work, WorkKey};
use crate::record::locked;
use crate::role_supervisor::RoleMessage;
use crate::{AgentHandle, RoleSpec, Tree, TreeConfig};
use async_trait::async_trait;
use mnemosyne_core::{
    AgentRole, AgentState, Budget, Event, EventKind, Exit, ItemState, Limits, NewEvent, Phase, Plan, Run, RunOptions,
    RunState, WorkItem, WorkResult,
};
use mnemosyne_store::{EventQuery, MemoryStore, Store};
use ractor::ActorRef;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// What the host does with one assignment.
pub(crate) enum Act {
    Now(Outcome),
    After(u64, Outcome),
    /// Ends only when it is cancelled.
    Hang,
    /// Ends only when the test says so.
    Deaf,
    /// Drops `done` without a call.
    Lose,
    /// Takes the actor down.
    Panic,
}

type Script = Box<dyn FnMut(&Assignment) -> Act + Send>;
type StartScript = Box<dyn FnMut(&AgentStart) -> Result<(), HostError> + Send>;

/// A host without Python.
pub(crate) struct MemoryHost {
    script: Mutex<Script>,
    start_script: Mutex<StartScript>,
    pending: Mutex<BTreeMap<WorkKey, (bool, Done)>>,
    pub(crate) starts: Mutex<Vec<(Instant, AgentStart)>>,
    pub(crate) stops: Mutex<Vec<(String, u64)>>,
    pub(crate) cancels: Mutex<Vec<String>>,
    pub(crate) abandoned: Mutex<Vec<WorkKey>>,
    pub(crate) submissions: Mutex<Vec<Assignment>>,
    /// Milliseconds that an agent takes to start.
    pub(crate) start_delays: Mutex<BTreeMap<String, u64>>,
    /// When the work of this host last said anything.
    pub(crate) progressed: Mutex<Option<Instant>>,
    /// How long ago its loop beat.
    pub(crate) beat_age: Mutex<Duration>,
}

impl MemoryHost {
    pub(crate) fn new(script: impl FnMut(&Assignment) -> Act + Send + 'static) -> Arc<Self> {
        Arc::new(Self {
            script: Mutex::new(Box::new(script)),
            start_script: Mutex::new(Box::new(|_| Ok(()))),
            pending: Mutex::default(),
            starts: Mutex::default(),
            stops: Mutex::default(),
            cancels: Mutex::default(),
            abandoned: Mutex::default(),
            submissions: Mutex::default(),
            start_delays: Mutex::default(),
            progressed: Mutex::default(),
            beat_age: Mutex::new(Duration::from_secs(1)),
        })
    }

    pub(crate) fn on_start(
        self: Arc<Self>,
        script: impl FnMut(&AgentStart) -> Result<(), HostError> + Send + 'static,
    ) -> Arc<Self> {
        *locked(&self.start_script) = Box::new(script);
        self
    }

    pub(crate) fn busy(&self) -> usize {
        locked(&self.pending).len()
    }

    pub(crate) fn submitted(&self) -> usize {
        locked(&self.submissions).len()
    }

    /// Ends work that hangs or is deaf.
    pub(crate) fn finish(&self, key: WorkKey, outcome: Outcome) {
        let pending = locked(&self.pending).remove(&key);
        if let Some((_, done)) = pending {
            done(outcome);
        }
    }

    pub(crate) fn last_key(&self) -> WorkKey {
        locked(&self.submissions).last().expect("something was submitted").key
    }

    fn keep(&self, key: WorkKey, deaf: bool, done: Done) {
        locked(&self.pending).insert(key, (deaf, done));
    }
}

/// The host as the tree sees it: tests keep the memory host itself.
pub(crate) struct Shared(pub(crate) Arc<MemoryHost>);

#[async_trait]
impl AgentHost for Shared {
    async fn start(&self, start: AgentStart) -> Result<(), HostError> {
        let delay = locked(&self.0.start_delays).get(&start.agent_id).copied();
        if let Some(milliseconds) = delay {
            sleep(Duration::from_millis(milliseconds)).await;
        }
        let answer = (locked(&self.0.start_script))(&start);
        locked(&self.0.starts).push((Instant::now(), start));
        answer
    }

    fn submit(&self, work: Assignment, done: Done) -> Ticket {
        let key = work.key;
        let act = (locked(&self.0.script))(&work);
        locked(&self.0.submissions).push(work);
        match act {
            Act::Now(outcome) => done(outcome),
            Act::After(milliseconds, outcome) => {
                self.0.keep(key, false, done);
                let host = self.0.clone();
                tokio::spawn(async move {
                    sleep(Duration::from_millis(milliseconds)).await;
                    host.finish(key, outcome);
                });
            }
            Act::Hang => self.0.keep(key, false, done),
            Act::Deaf => self.0.keep(key, true, done),
            Act::Lose => drop(done),
            Act::Panic => panic!("the host was told to"),
        }
        Ticket(key.0)
    }

    fn cancel(&self, ticket: Ticket, reason: &str) {
        let key = WorkKey(ticket.0);
        locked(&self.0.cancels).push(reason.to_owned());
        let hears = locked(&self.0.pending).get(&key).is_some_and(|(deaf, _)| !deaf);
        if hears {
            self.0.finish(key, Outcome::Cancelled);
        }
    }

    fn abandon(&self, ticket: Ticket) {
        locked(&self.0.abandoned).push(WorkKey(ticket.0));
    }

    async fn stop(&self, agent_id: &str, generation: u64) {
        locked(&self.0.stops).push((agent_id.to_owned(), generation));
    }

    fn heartbeat_age(&self) -> Option<Duration> {
        Some(*locked(&self.0.beat_age))
    }

    fn progress_age(&self, _: &str) -> Option<Duration> {
        locked(&self.0.progressed).map(|at| at.elapsed())
    }
}

impl Assignment {
    /// The claim as the agents' side reads it; null for direct work.
    pub(crate) fn claim(&self) -> Value {
        match &self.work {
            Work::Claimed { claimed, about } => {
                let mut whole = about.clone();
                whole["item"] = json!(claimed.item.work);
                whole
            }
            Work::Direct(_) => Value::Null,
        }
    }
}

pub(crate) fn ok() -> Outcome {
    Outcome::Result(Box::new(WorkResult::success(Map::new())))
}

pub(crate) fn ok_with(data: Value) -> Outcome {
    let Value::Object(data) = data else { panic!("data is an object") };
    Outcome::Result(Box::new(WorkResult::success(data)))
}

pub(crate) fn raised() -> Outcome {
    Outcome::Raised(HostError::new("ValueError", "no luck", false))
}

pub(crate) fn item(id: &str) -> WorkItem {
    WorkItem {
        id: id.to_owned(),
        description: format!("do {id}"),
        phase: Phase::PlanToArtifacts,
        role: AgentRole::Executor,
        priority: 5,
        depends_on: Vec::new(),
        file_scope: Vec::new(),
        context: Map::new(),
        timeout_seconds: 600.0,
        attempt: 1,
    }
}

pub(crate) fn plan(tasks: Value) -> Plan {
    serde_json::from_value(json!({"setup": ["true"], "tasks": tasks})).unwrap()
}

pub(crate) fn run(id: &str, plan: Plan) -> Run {
    Run {
        id: id.to_owned(),
        prompt: None,
        spec: None,
        plan: Some(plan),
        workspace: format!("/nowhere/{id}"),
        options: RunOptions::default(),
        budget: Budget::default(),
        state: RunState::Running,
        phase: Phase::PromptToSpec,
        boot: None,
        resumes: 0,
        error: None,
        created_at: 0,
        ended_at: None,
    }
}

pub(crate) fn spec() -> AgentSpec {
    AgentSpec::import("tests:Agent")
}

pub(crate) fn executors(instances: u32) -> Vec<RoleSpec> {
    vec![RoleSpec::pool(AgentRole::Executor, spec(), instances)]
}

pub(crate) fn store() -> Arc<MemoryStore> {
    let origin = Instant::now();
    let clock = move || 1_700_000_000_000 + i64::try_from(origin.elapsed().as_millis()).unwrap();
    Arc::new(MemoryStore::with_clock(Arc::new(clock)))
}

/// A tree with all that a test looks at.
pub(crate) struct World {
    pub(crate) tree: Tree,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) host: Arc<MemoryHost>,
}

impl World {
    /// A tree whose bridge is registered and whose agents are idle.
    pub(crate) async fn new(roles: Vec<RoleSpec>, host: Arc<MemoryHost>) -> World {
        let world = World::without_host(roles, host).await;
        world.tree.register_bridge(Arc::new(Shared(world.host.clone())));
        let tree = &world.tree;
        eventually("the agents start", async || {
            tree.agents().iter().all(|agent| agent.health().state != AgentState::Starting)
        })
        .await;
        world
    }

    pub(crate) async fn without_host(roles: Vec<RoleSpec>, host: Arc<MemoryHost>) -> World {
        let store = store();
        let tree = Tree::start(TreeConfig { store: store.clone(), roles, claims: true }).await.unwrap();
        World { tree, store, host }
    }

    pub(crate) fn agent(&self) -> AgentHandle {
        self.tree.agents().remove(0)
    }

    pub(crate) fn supervisor(&self) -> ActorRef<RoleMessage> {
        let role = self.tree.record().role(AgentRole::Executor).unwrap();
        locked(&role.supervisor).clone().unwrap()
    }

    /// Ends the actor of an agent from outside: by itself, or killed.
    pub(crate) fn end(&self, agent: &AgentHandle, exit: Exit) {
        let agent_id = agent.agent_id().to_owned();
        self.supervisor().send_message(RoleMessage::End { agent_id, exit }).unwrap();
    }

    pub(crate) async fn submit(&self, id: &str) {
        self.store.submit_item(item(id), None).await.unwrap();
    }

    pub(crate) async fn state_of(&self, id: &str) -> ItemState {
        self.store.item(id).await.unwrap().unwrap().item.state
    }

    pub(crate) async fn until_item(&self, id: &str, state: ItemState) {
        eventually(&format!("{id} becomes {state}"), async || self.state_of(id).await == state).await;
    }

    pub(crate) async fn events(&self) -> Vec<Event> {
        self.tree.record().events.flush(Duration::from_secs(5)).await;
        self.store.events(EventQuery { limit: 10_000, ..EventQuery::default() }).await.unwrap()
    }

    pub(crate) async fn of_kind(&self, kind: EventKind) -> Vec<NewEvent> {
        let events = self.events().await.into_iter().map(|event| event.event);
        events.filter(|event| event.kind == kind).collect()
    }

    pub(crate) async fn count(&self, kind: EventKind) -> usize {
        self.of_kind(kind).await.len()
    }

    pub(crate) async fn until_events(&self, kind: EventKind, count: usize) {
        eventually(&format!("{count} x {kind:?}"), async || self.count(kind).await >= count).await;
        assert_eq!(self.count(kind).await, count, "{kind:?}");
    }
}

/// Polls a condition on the paused clock: finely at first, then coarsely, for ten minutes.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(600);
    let mut polls = 0;
    while !condition().await {
        assert!(Instant::now() < deadline, "never: {what}");
        polls += 1;
        sleep(Duration::from_millis(if polls < 200 { 5 } else { 100 })).await;
    }
}

/// Waits for an answer that must come: a missing one is a failure, not a test that never ends.
pub(crate) async fn soon<T>(answer: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(3_600), answer).await.expect("it answers")
}

pub(crate) async fn until_idle(agent: &AgentHandle, generation: u64) {
    eventually(&format!("generation {generation} of {} is idle", agent.agent_id()), async || {
        agent.generation() == generation && agent.health().state == AgentState::Idle
    })
    .await;
}

pub(crate) async fn until_state(agent: &AgentHandle, state: AgentState) {
    eventually(&format!("{} is {state}", agent.agent_id()), async || agent.health().state == state).await;
}

/// Lets everything that is due now happen.
pub(crate) async fn settle() {
    sleep(Duration::from_millis(20)).await;
}
