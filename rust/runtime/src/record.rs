//! What outlives the actors: one record per tree, role and agent. An actor that dies takes nothing with it that its
//! successor needs: generations, restart windows, claims and waiting places are here, behind short locks that are never
//! held across an `await`.
//!
//! **FENCE-2** An agent's actor writes through [`AgentRecord::update`], which drops writes of an older generation.

use crate::agent::ABANDONED_TO_PROCESS;
use crate::background::Background;
use crate::custody::Custody;
use crate::event_log::EventLog;
use crate::health::{AgentHealth, IntakeHealth, IntakeState, RoleHealth, RoleState, StoreHealth, StoreState};
use crate::host::{AgentSpec, ChildSpec, Isolation, SharedHost, SupervisorView};
use crate::role_supervisor::RoleMessage;
use crate::tree::TreeConfig;
use mnemosyne_core::window::{ERRORS_TO_DEGRADE, ERRORS_TO_RESTART};
use mnemosyne_core::{
    AgentRole, AgentState, ErrorWindow, EventKind, NewEvent, RestartPolicy, Strategy, SupervisorSpec,
};
use mnemosyne_store::{QueueCounts, Store, timestamp};
use ractor::ActorRef;
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Locks without caring about a panic elsewhere: every critical section here leaves its value whole.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits between tries of a store that is unavailable: 50 ms doubled, at most 2 s.
#[derive(Default)]
pub(crate) struct Retry {
    tries: u32,
}

impl Retry {
    pub(crate) async fn wait(&mut self) {
        let delay = Duration::from_millis(50 << self.tries.min(6)).min(Duration::from_secs(2));
        self.tries += 1;
        tokio::time::sleep(delay).await;
    }
}

/// A text for an event or a health snapshot: long tracebacks stay with the host.
pub(crate) fn clip(text: &str) -> String {
    const LIMIT: usize = 2_000;
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What the pump saw last.
pub(crate) struct Seen {
    pub(crate) queue: QueueCounts,
    pub(crate) store: StoreHealth,
}

/// Work that has said nothing for so long is shown as slow. Nothing else is done about it: its loop is alive, its time limit
/// holds, and a model may well think for minutes. What hangs (no heartbeat) is left behind instead.
pub(crate) const SLOW_AFTER: Duration = Duration::from_secs(120);
/// An agent whose loop has not beaten for so long is suspect, on the thread and in a process.
const SUSPECT_AFTER: Duration = Duration::from_secs(15);

/// Direct work that a tree holds at a time, all agents together: the queue of its bridge is never longer than this.
pub(crate) const DIRECT_LIMIT: usize = 16_384;

/// The ids that are taken, and for each role the lowest number that may be free: a thousand agents are named in one walk.
#[derive(Default)]
pub(crate) struct Names {
    taken: HashSet<String>,
    lowest: BTreeMap<AgentRole, u64>,
}

impl Names {
    /// Whether the id was free; then it is taken.
    pub(crate) fn take(&mut self, id: &str) -> bool {
        self.taken.insert(id.to_owned())
    }

    /// Takes the lowest free number of a role.
    pub(crate) fn number(&mut self, role: AgentRole) -> String {
        let lowest = self.lowest.entry(role).or_insert(1);
        loop {
            let id = format!("{role}-{lowest}");
            *lowest += 1;
            if self.taken.insert(id.clone()) {
                return id;
            }
        }
    }

    fn free(&mut self, role: AgentRole, id: &str) {
        self.taken.remove(id);
        self.lowest.remove(&role);
    }
}

/// One tree.
pub(crate) struct TreeRecord {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) events: EventLog,
    pub(crate) background: Arc<Background>,
    /// Whether agents claim from the store.
    pub(crate) claims: bool,
    /// Set by a drain: nothing is claimed or accepted any more.
    pub(crate) draining: AtomicBool,
    /// Set by a shutdown after its drain: writes to an unavailable store are given up.
    pub(crate) closing: AtomicBool,
    pub(crate) seen: Mutex<Seen>,
    /// One permit per piece of direct work, whichever agent's.
    pub(crate) room: Arc<Semaphore>,
    /// Why no work is taken in, where none is.
    pub(crate) intake_stopped: Mutex<Option<String>>,
    /// Of every agent that is kept: an id is unique in the tree.
    pub(crate) names: Mutex<Names>,
    roles: BTreeMap<AgentRole, Arc<RoleRecord>>,
    origin: Instant,
}

impl TreeRecord {
    pub(crate) fn new(config: &TreeConfig, background: Arc<Background>) -> Arc<Self> {
        let store = config.store.clone();
        let record = |role: &AgentRole| {
            let of_role = config.roles.iter().find(|spec| spec.role == *role);
            let supervisor = of_role.map(|of_role| of_role.supervisor).unwrap_or_default();
            (*role, RoleRecord::new(*role, supervisor, of_role.map(|of_role| of_role.spec.clone())))
        };
        let seen =
            Seen { queue: QueueCounts::default(), store: StoreHealth { state: StoreState::Available, reason: None } };
        Arc::new(Self {
            events: EventLog::start(store.clone()),
            store,
            background,
            claims: config.claims,
            draining: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            seen: Mutex::new(seen),
            room: Arc::new(Semaphore::new(DIRECT_LIMIT)),
            intake_stopped: Mutex::default(),
            names: Mutex::default(),
            roles: AgentRole::ALL.iter().map(record).collect(),
            origin: Instant::now(),
        })
    }

    /// In start order.
    pub(crate) fn roles(&self) -> impl DoubleEndedIterator<Item = &Arc<RoleRecord>> {
        self.roles.values()
    }

    pub(crate) fn role(&self, role: AgentRole) -> Option<&Arc<RoleRecord>> {
        self.roles.get(&role)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Monotonic milliseconds since the tree began, on tokio's clock, which tests pause.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The tree is over: what it still did not answer for must not keep its host alive.
    pub(crate) fn forget_host(&self) {
        for role in self.roles() {
            let host = locked(&role.host).take();
            drop(host);
        }
    }

    /// The last rung: where no role has an agent that could work, the tree says that it takes nothing in. What is
    /// submitted is still kept, and the first agent that works again opens the intake.
    pub(crate) fn judge_intake(&self) {
        let staffed =
            |role: &&Arc<RoleRecord>| role.agents().iter().any(|agent| agent.book().state != AgentState::Stopped);
        let staffed: Vec<_> = self.roles().filter(staffed).collect();
        let out = |role: &&Arc<RoleRecord>| role.out_of_service.load(Ordering::SeqCst);
        let reason = (!staffed.is_empty() && staffed.iter().all(out)).then(|| {
            let roles: Vec<String> = staffed.iter().map(|role| role.reason()).collect();
            roles.join("; ")
        });
        let mut stopped = locked(&self.intake_stopped);
        if stopped.is_some() == reason.is_some() {
            return;
        }
        let kind = if reason.is_some() { EventKind::IntakeStopped } else { EventKind::IntakeResumed };
        let event = NewEvent::new(kind);
        self.events.announce(match &reason {
            Some(reason) => event.with("reason", clip(reason)),
            None => event,
        });
        *stopped = reason;
    }

    pub(crate) fn intake(&self) -> IntakeHealth {
        let reason = locked(&self.intake_stopped).clone();
        IntakeHealth { state: if reason.is_some() { IntakeState::Stopped } else { IntakeState::Open }, reason }
    }

    /// Cancels what is in flight of a run whose claims are over.
    pub(crate) fn cancel_in_flight(&self, run: &str, reason: &str) {
        for role in self.roles() {
            role.send(RoleMessage::CancelRun { run: run.to_owned(), reason: reason.to_owned() });
        }
    }
}

/// One role.
pub(crate) struct RoleRecord {
    pub(crate) role: AgentRole,
    /// In start order.
    pub(crate) agents: Mutex<Vec<Arc<AgentRecord>>>,
    /// The bridge that was registered last.
    pub(crate) host: Mutex<Option<SharedHost>>,
    /// Why that bridge makes no progress, while it makes none.
    pub(crate) stuck: Mutex<Option<String>>,
    /// The supervisor that lives now; replaced by the root.
    pub(crate) supervisor: Mutex<Option<ActorRef<RoleMessage>>>,
    /// Why the role is degraded, as last announced.
    pub(crate) degraded: Mutex<Option<String>>,
    /// None of its agents could work.
    pub(crate) out_of_service: AtomicBool,
    /// How its supervisor treats its agents.
    pub(crate) spec: SupervisorSpec,
    /// What its pool is made of, when it is scaled.
    pub(crate) template: Option<AgentSpec>,
    /// The restart window of agents that restart together; under the other strategies each has its own (SUP-2).
    pub(crate) group: Mutex<RestartPolicy>,
}

impl RoleRecord {
    fn new(role: AgentRole, spec: SupervisorSpec, template: Option<AgentSpec>) -> Arc<Self> {
        Arc::new(Self {
            role,
            group: Mutex::new(RestartPolicy::from(&spec)),
            spec,
            template,
            agents: Mutex::default(),
            host: Mutex::default(),
            stuck: Mutex::default(),
            supervisor: Mutex::default(),
            degraded: Mutex::default(),
            out_of_service: AtomicBool::new(false),
        })
    }

    /// Whether the message reached a living supervisor. What it carried is dropped otherwise: claims are found by the
    /// sweep, direct work tells its caller by its closed reply.
    pub(crate) fn send(&self, message: RoleMessage) -> bool {
        let supervisor = locked(&self.supervisor).clone();
        supervisor.is_some_and(|supervisor| supervisor.send_message(message).is_ok())
    }

    pub(crate) fn agents(&self) -> Vec<Arc<AgentRecord>> {
        locked(&self.agents).clone()
    }

    fn reason(&self) -> String {
        format!("{}: {}", self.role, locked(&self.degraded).clone().unwrap_or_default())
    }

    /// Forgets an agent that has ended; who has a handle may still ask it.
    pub(crate) fn forget(&self, tree: &TreeRecord, agent_id: &str) {
        locked(&tree.names).free(self.role, agent_id);
        let mut agents = locked(&self.agents);
        if let Some(index) = agents.iter().rposition(|agent| agent.agent_id == agent_id) {
            agents.remove(index);
        }
    }

    /// Itself and what its agents are made from, if it can be scaled.
    pub(crate) fn pool(self: &Arc<Self>) -> Option<(Arc<Self>, AgentSpec)> {
        let template = self.template.clone().filter(|_| self.spec.strategy == Strategy::Pool)?;
        Some((self.clone(), template))
    }

    pub(crate) fn view(&self) -> SupervisorView {
        let children = self.agents().iter().map(|agent| agent.child_spec()).collect();
        SupervisorView { supervisor: self.spec, children }
    }

    /// Says that the role is degraded, with the reason, or recovered; once per change.
    pub(crate) fn announce_degraded(&self, tree: &TreeRecord, reason: Option<String>) {
        let mut announced = locked(&self.degraded);
        if *announced == reason {
            return;
        }
        match &reason {
            Some(reason) => {
                tracing::warn!(target: "mnemosyne.runtime", role = self.role.as_str(), "the role is degraded: {reason}");
            }
            None => tracing::warn!(target: "mnemosyne.runtime", role = self.role.as_str(), "the role has recovered"),
        }
        let kind = if reason.is_some() { EventKind::RoleDegraded } else { EventKind::RoleRecovered };
        let event = NewEvent { role: Some(self.role), ..NewEvent::new(kind) }.with("role", self.role.as_str());
        tree.events.announce(match &reason {
            Some(reason) => event.with("reason", clip(reason)),
            None => event,
        });
        *announced = reason;
    }

    pub(crate) fn health(&self, tree: &TreeRecord) -> RoleHealth {
        let agents: Vec<AgentHealth> = self.agents().iter().map(|agent| agent.health(tree, self)).collect();
        let reason = locked(&self.degraded).clone();
        let state = match &reason {
            Some(_) => RoleState::Degraded,
            None if agents.iter().all(|agent| agent.state == AgentState::Stopped) => RoleState::Stopped,
            None => RoleState::Running,
        };
        RoleHealth { state, reason, agents }
    }
}

/// One agent, across its generations.
pub(crate) struct AgentRecord {
    pub(crate) agent_id: String,
    pub(crate) role: AgentRole,
    pub(crate) spec: AgentSpec,
    /// One permit per item at a time. It goes with the item, from before it is claimed until its end is stored, so that
    /// a permit is free exactly when there is room. Closed when the agent has ended; new if it is started once more.
    places: Mutex<Arc<Semaphore>>,
    /// Set by the agent's own shutdown: nothing is claimed or accepted for it any more.
    pub(crate) closing: AtomicBool,
    pub(crate) custody: Arc<Custody>,
    book: Mutex<Book>,
}

/// What changes about an agent.
pub(crate) struct Book {
    /// Written by the supervisor, and by the actor while it lives.
    pub(crate) state: AgentState,
    /// Written by the supervisor; 0 before the first start.
    pub(crate) generation: u64,
    /// The restart window: the supervisor's (SUP-2).
    pub(crate) policy: RestartPolicy,
    /// A copy of the error window, which is the actor's (SUP-2).
    pub(crate) window: ErrorWindow,
    /// `agent_health_degraded` was said and `agent_recovered` was not.
    pub(crate) reported_degraded: bool,
    /// The text, and when by the store's clock.
    pub(crate) last_error: Option<(String, i64)>,
    pub(crate) restarts: u32,
    /// How often work of it did not stop, over all generations.
    pub(crate) abandoned: u32,
    /// By the store's clock.
    pub(crate) next_restart_at: Option<i64>,
    /// Why it is degraded, quarantined or restarting.
    pub(crate) reason: String,
    /// Why the child is about to end, and whether that counts in the restart window. Here and not in a message: ractor
    /// delivers the child's exit before any message that the child sent.
    pub(crate) leaving: Option<(String, bool)>,
}

impl AgentRecord {
    pub(crate) fn new(agent_id: String, role: AgentRole, spec: AgentSpec, supervisor: &SupervisorSpec) -> Arc<Self> {
        let places = Mutex::new(Arc::new(Semaphore::new(spec.in_flight as usize)));
        let book = Book {
            state: AgentState::Starting,
            generation: 0,
            policy: RestartPolicy::from(supervisor),
            window: ErrorWindow::default(),
            reported_degraded: false,
            last_error: None,
            restarts: 0,
            abandoned: 0,
            next_restart_at: None,
            reason: String::new(),
            leaving: None,
        };
        Arc::new(Self {
            agent_id,
            role,
            spec,
            places,
            closing: AtomicBool::new(false),
            custody: Arc::default(),
            book: Mutex::new(book),
        })
    }

    pub(crate) fn places(&self) -> Arc<Semaphore> {
        locked(&self.places).clone()
    }

    /// It was ended, and is to be started once more: it takes work again.
    pub(crate) fn reopen(&self) {
        *locked(&self.places) = Arc::new(Semaphore::new(self.spec.in_flight as usize));
        self.closing.store(false, Ordering::SeqCst);
    }

    pub(crate) fn child_spec(&self) -> ChildSpec {
        let AgentSpec { source, in_flight, restart, shutdown, isolation, limits, .. } = self.spec.clone();
        let (id, role) = (self.agent_id.clone(), self.role);
        ChildSpec { id, role, source, in_flight, restart, shutdown, isolation, limits }
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        locked(&self.book)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.book().generation
    }

    /// Changes the book on behalf of one generation; `None` if that generation is over.
    pub(crate) fn update<T>(&self, generation: u64, change: impl FnOnce(&mut Book) -> T) -> Option<T> {
        let mut book = self.book();
        (book.generation == generation).then(|| change(&mut book))
    }

    /// Whether the actor of that generation takes work.
    pub(crate) fn takes_work(&self, generation: u64) -> bool {
        let book = self.book();
        let works = matches!(book.state, AgentState::Idle | AgentState::Busy);
        works && book.generation == generation && book.leaving.is_none()
    }

    /// Where it runs now: in a process of its own once it was left behind too often, if another process can make it.
    pub(crate) fn isolation(&self) -> Isolation {
        match self.spec.isolation {
            Isolation::Thread if self.spec.importable && self.book().abandoned >= ABANDONED_TO_PROCESS => {
                Isolation::Process
            }
            asked => asked,
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// An event of this agent.
    pub(crate) fn event(&self, kind: EventKind, generation: u64) -> NewEvent {
        NewEvent {
            role: Some(self.role),
            agent: Some(self.agent_id.clone()),
            generation: Some(generation),
            ..NewEvent::new(kind)
        }
        .with("agent_id", self.agent_id.clone())
    }

    /// The event that counts what an older generation, or a claim that is over, still said (FENCE-2).
    pub(crate) fn stale(&self, generation: u64) -> NewEvent {
        self.event(EventKind::StaleResultDropped, generation).with("generation", generation)
    }

    pub(crate) fn health(&self, tree: &TreeRecord, role: &RoleRecord) -> AgentHealth {
        let host = locked(&role.host).clone();
        let progress = host.as_ref().and_then(|host| host.progress_age(&self.agent_id));
        let generation = self.generation();
        let process = host.as_ref().and_then(|host| host.process(&self.agent_id, generation));
        let heartbeat = match process {
            Some(process) => Some(process.heartbeat_age),
            None => host.and_then(|host| host.heartbeat_age()),
        };
        // The bridge's loop has no part in what a process does.
        let silent = heartbeat.is_some_and(|age| age >= SUSPECT_AFTER);
        let stuck = silent || process.is_none() && locked(&role.stuck).is_some();
        let book = self.book();
        let count = book.window.count(tree.now());
        let working = book.state == AgentState::Busy;
        let progress = progress.filter(|_| working);
        let slow = progress.is_some_and(|age| age >= SLOW_AFTER);
        let alive = matches!(book.state, AgentState::Starting | AgentState::Idle | AgentState::Busy);
        let works = alive && !stuck;
        AgentHealth {
            agent_id: self.agent_id.clone(),
            role: self.role,
            state: match book.state {
                _ if alive && stuck => AgentState::Suspect,
                _ if slow => AgentState::Slow,
                state => state,
            },
            is_healthy: works && count < ERRORS_TO_DEGRADE,
            error_count: u32::try_from(count).unwrap_or(u32::MAX),
            last_error: book.last_error.as_ref().map(|(text, _)| text.clone()),
            last_error_at: book.last_error.as_ref().map(|(_, at)| timestamp(*at)),
            should_restart: count >= ERRORS_TO_RESTART,
            generation: book.generation,
            restarts: book.restarts,
            next_restart_at: book.next_restart_at.map(timestamp),
            heartbeat_age_seconds: heartbeat.map(|age| age.as_secs_f64()),
            progress_age_seconds: progress.map(|age| age.as_secs_f64()),
            pid: process.map(|process| process.pid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fence_2_an_older_generation_cannot_write_into_the_book() {
        let record = AgentRecord::new(
            "executor-1".into(),
            AgentRole::Executor,
            AgentSpec::import("tests:Agent"),
            &SupervisorSpec::default(),
        );
        record.book().generation = 2;
        assert_eq!(record.update(1, |book| book.restarts = 9), None);
        assert_eq!(record.book().restarts, 0);
        assert_eq!(record.update(2, |book| book.restarts), Some(0));
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let text = "ä".repeat(3_000);
        assert_eq!(clip(&text).chars().count(), 2_001);
        assert_eq!(clip("short"), "short");
    }
}
