//! [`PythonHost`]: the tree's `AgentHost`, with Python behind it: on the loop thread, or in a process for each agent that
//! asks for one.

use crate::loop_thread::{LoopThread, unique};
use crate::port::Message;
use crate::sync::locked;
use crate::worker::{START_DEADLINE, Worker};
use async_trait::async_trait;
use mnemosyne_runtime::{
    AgentHost, AgentProcess, AgentStart, Assignment, Done, HostError, Isolation, Outcome, Ticket, Tree, WeakTree, Work,
};
use mnemosyne_store::Store;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::watch;

/// Agents of one tree on the loop thread of this process.
pub struct PythonHost {
    inner: Arc<HostInner>,
}

/// How the loop of a host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It goes on.
    Fine,
    /// It makes no progress, and nothing can be done about it.
    Stuck(String),
    /// It was left behind: its trees need another host.
    Lost(String),
}

/// What upcalls need of a host.
pub(crate) struct HostInner {
    id: u64,
    thread: Arc<LoopThread>,
    /// Where its upcalls are answered: trees of several runtimes may share the loop.
    pub(crate) runtime: Handle,
    pub(crate) store: Arc<dyn Store>,
    /// Where runs keep their trees; `None` for a standalone bridge.
    directory: Option<PathBuf>,
    /// Told by whoever watches the loop.
    pub(crate) fate: watch::Sender<Fate>,
    /// When each claimed item last said anything, and whose it is.
    progress: Mutex<HashMap<String, (String, Instant)>>,
    /// Where each generation of each agent sits.
    seats: Mutex<HashMap<String, BTreeMap<u64, Seat>>>,
    /// Who has the work of a ticket, where that is not the loop.
    at_work: Mutex<HashMap<u64, Weak<Worker>>>,
}

/// Where one generation of one agent sits.
#[derive(Clone)]
enum Seat {
    /// On the loop: a number is all that travels with its work.
    Loop(u64),
    /// In a process that is being started.
    Hiring,
    /// In a process of its own.
    Process(Arc<Worker>),
}

/// Between tries to start the loop, doubled each time.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// An import that fails costs a while of one core.
const TRY_AGAIN_AT_MOST: Duration = Duration::from_secs(30);

/// Set in the tickets of processes and in none of the loop's: a loop would need 2^31 items at once to get there.
const OF_A_PROCESS: u64 = 1 << 31;

impl PythonHost {
    /// A host on the loop thread of this process, which is started if there is none.
    ///
    /// # Errors
    /// Python was never initialised, or the package cannot be imported: permanent.
    pub async fn launch(
        runtime: &Handle,
        store: Arc<dyn Store>,
        directory: Option<PathBuf>,
    ) -> Result<PythonHost, HostError> {
        let thread = LoopThread::shared(runtime).await?;
        let inner = Arc::new(HostInner {
            id: unique(),
            thread,
            runtime: runtime.clone(),
            store,
            directory,
            progress: Mutex::default(),
            seats: Mutex::default(),
            at_work: Mutex::default(),
            fate: watch::Sender::new(Fate::Fine),
        });
        inner.thread.shared.enlist(inner.id, &inner);
        Ok(PythonHost { inner })
    }

    /// Gives the tree this host, and another one whenever the loop of the last was left behind: agents then begin a new
    /// generation there, uncharged.
    pub fn serve(self, tree: &Tree) {
        let runtime = self.inner.runtime.clone();
        let fate = self.inner.fate.subscribe();
        let (store, directory) = (Arc::clone(&self.inner.store), self.inner.directory.clone());
        tree.register_bridge(Arc::new(self));
        runtime.spawn(attend(tree.downgrade(), fate, store, directory));
    }

    /// Gives the tree a host: at once if there can be one, else as soon as there can, for Python may be initialised, or
    /// its package repaired, later. Until then the roles are degraded and the queue is kept (DOWN-1).
    pub async fn serve_when_possible(tree: &Tree, store: Arc<dyn Store>, directory: Option<PathBuf>) {
        let runtime = Handle::current();
        match PythonHost::launch(&runtime, Arc::clone(&store), directory.clone()).await {
            Ok(host) => host.serve(tree),
            Err(error) => {
                tracing::warn!(target: "mnemosyne.bridge", "there is no Python bridge: {error}; it is tried again");
                let tree = tree.downgrade();
                runtime.spawn(async move {
                    if let Some((host, tree)) = launch_later(&tree, &store, directory.as_ref()).await {
                        host.serve(&tree);
                    }
                });
            }
        }
    }

    fn describe(&self) -> Value {
        json!({"id": self.inner.id, "boot": self.inner.store.boot(), "directory": self.inner.directory})
    }
}

/// Tries until there is a host, or the tree is gone.
async fn launch_later(
    tree: &WeakTree,
    store: &Arc<dyn Store>,
    directory: Option<&PathBuf>,
) -> Option<(PythonHost, Tree)> {
    let mut pause = TRY_AGAIN;
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(TRY_AGAIN_AT_MOST);
        tree.upgrade()?;
        if let Ok(host) = PythonHost::launch(&Handle::current(), Arc::clone(store), directory.cloned()).await {
            return Some((host, tree.upgrade()?));
        }
    }
}

/// Follows the host of a tree, and its successors, as long as the tree lives.
async fn attend(tree: WeakTree, mut fate: watch::Receiver<Fate>, store: Arc<dyn Store>, directory: Option<PathBuf>) {
    while fate.changed().await.is_ok() {
        let now = fate.borrow_and_update().clone();
        let Some(tree) = tree.upgrade() else { return };
        match now {
            Fate::Fine => tree.bridge_stuck(None),
            Fate::Stuck(reason) => tree.bridge_stuck(Some(reason)),
            Fate::Lost(reason) => {
                tree.bridge_stuck(Some(reason));
                let next = match PythonHost::launch(&Handle::current(), Arc::clone(&store), directory.clone()).await {
                    Ok(host) => Some((host, tree)),
                    Err(error) => {
                        tree.bridge_stuck(Some(format!("no other loop could be started: {error}")));
                        let weak = tree.downgrade();
                        drop(tree);
                        launch_later(&weak, &store, directory.as_ref()).await
                    }
                };
                let Some((host, tree)) = next else { return };
                fate = host.inner.fate.subscribe();
                tree.register_bridge(Arc::new(host));
            }
        }
    }
}

impl HostInner {
    fn seat(&self, agent_id: &str, generation: u64) -> Option<Seat> {
        locked(&self.seats).get(agent_id)?.get(&generation).cloned()
    }

    fn take_seat(&self, start: &AgentStart, seat: Seat) {
        locked(&self.seats).entry(start.agent_id.clone()).or_default().insert(start.generation, seat);
    }

    fn worker(&self, agent_id: &str, generation: u64) -> Option<Arc<Worker>> {
        match self.seat(agent_id, generation)? {
            Seat::Process(worker) => Some(worker),
            Seat::Loop(_) | Seat::Hiring => None,
        }
    }

    fn free_seat(&self, agent_id: &str, generation: u64) -> Option<Seat> {
        let mut seats = locked(&self.seats);
        let of_agent = seats.get_mut(agent_id)?;
        let seat = of_agent.remove(&generation);
        if of_agent.is_empty() {
            seats.remove(agent_id);
        }
        seat
    }

    /// An item said something.
    pub(crate) fn progressed(&self, request: &Value) {
        let Some(item) = request.get("item").and_then(Value::as_str) else { return };
        if let Some((_, at)) = locked(&self.progress).get_mut(item) {
            *at = Instant::now();
        }
    }

    /// Follows an item until what is returned is dropped.
    fn follow(self: &Arc<Self>, agent_id: &str, item: &str) -> Followed {
        let item = item.to_owned();
        locked(&self.progress).insert(item.clone(), (agent_id.to_owned(), Instant::now()));
        Followed { host: Arc::downgrade(self), item }
    }

    /// What a run's items need to know and the tree does not: where the run keeps its trees.
    fn place_run(&self, value: &mut Value) {
        if let (Some(run), Some(directory)) = (value.get_mut("run").and_then(Value::as_object_mut), &self.directory)
            && let Some(id) = run.get("id").and_then(Value::as_str)
        {
            let directory = directory.join("runs").join(id);
            run.insert("directory".into(), json!(directory));
        }
    }
}

/// An item whose progress is followed.
struct Followed {
    host: Weak<HostInner>,
    item: String,
}

impl Drop for Followed {
    fn drop(&mut self) {
        if let Some(host) = self.host.upgrade() {
            locked(&host.progress).remove(&self.item);
        }
    }
}

impl HostInner {
    /// Sends into the loop of this process.
    pub(crate) fn push(&self, message: Message) {
        self.thread.shared.channel.push(message);
    }

    /// Starts a process for an agent, and the agent in it.
    async fn employ(self: &Arc<Self>, start: &AgentStart, mut value: Value) -> Result<Arc<Worker>, HostError> {
        let os_error = |error: std::io::Error| HostError::new("OSError", error.to_string(), false);
        let number = unique();
        let (ours, theirs) = UnixStream::pair().map_err(os_error)?;
        let lent = ours.try_clone().map_err(os_error)?;
        value["limits"] = json!(start.spec.limits);
        let exit = self.thread.shared.await_exit(number);
        let employ = |ticket| Message::Employ { ticket, number, value, ours: lent.into(), theirs: theirs.into() };
        let pid = self.thread.shared.ask(employ).await?;
        let pid = pid.ok_or_else(|| HostError::new("RuntimeError", "a process was started without a number", false))?;
        Worker::begin(pid, ours, exit, Arc::downgrade(self)).await
    }

    fn submit_to(self: &Arc<Self>, worker: &Arc<Worker>, work: Work, done: Done) -> Ticket {
        let ticket = unique() << 32 | OF_A_PROCESS;
        locked(&self.at_work).insert(ticket, Arc::downgrade(worker));
        let entry = Entry { host: Arc::downgrade(self), ticket };
        let done: Done = Box::new(move |outcome| {
            drop(entry);
            done(outcome);
        });
        match work {
            Work::Claimed { claimed, mut about } => {
                about["item"] = json!(claimed.item.work);
                worker.submit(ticket, "claimed", &about, done);
            }
            Work::Direct(item) => worker.submit(ticket, "direct", &json!(*item), done),
        }
        Ticket(ticket)
    }

    fn worker_of(&self, ticket: Ticket) -> Option<Arc<Worker>> {
        locked(&self.at_work).get(&ticket.0)?.upgrade()
    }
}

/// Work of a process in [`HostInner::at_work`]; goes with the work, however that ends.
struct Entry {
    host: Weak<HostInner>,
    ticket: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(host) = self.host.upgrade() {
            locked(&host.at_work).remove(&self.ticket);
        }
    }
}

impl Drop for HostInner {
    fn drop(&mut self) {
        let seats = std::mem::take(&mut *locked(&self.seats));
        for seat in seats.into_values().flat_map(BTreeMap::into_values) {
            if let Seat::Process(worker) = seat {
                worker.dismiss();
            }
        }
        self.thread.shared.forget(self.id);
    }
}

#[async_trait]
impl AgentHost for PythonHost {
    async fn start(&self, start: AgentStart) -> Result<(), HostError> {
        let inner = &self.inner;
        let value = json!({
            "host": self.describe(), "agent_id": start.agent_id, "role": start.role, "generation": start.generation,
            "source": start.spec.source, "config": start.spec.config,
        });
        if start.spec.isolation == Isolation::Thread {
            let seat = unique();
            inner.take_seat(&start, Seat::Loop(seat));
            let answer = inner.thread.shared.ask(|ticket| Message::Start { ticket, seat, value }).await;
            if answer.is_err() {
                inner.free_seat(&start.agent_id, start.generation);
            }
            return answer.map(|_| ());
        }
        inner.take_seat(&start, Seat::Hiring);
        let employed = tokio::time::timeout(START_DEADLINE, inner.employ(&start, value)).await;
        let late = || HostError::new("StartTimeout", format!("it did not start within {START_DEADLINE:?}"), false);
        let employed = employed.unwrap_or_else(|_| Err(late()));
        // Stopped meanwhile: then its seat is gone, and nobody would ever end the process.
        let wanted = inner.free_seat(&start.agent_id, start.generation).is_some();
        match employed {
            Ok(worker) if wanted => inner.take_seat(&start, Seat::Process(worker)),
            Ok(worker) => worker.dismiss(),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn submit(&self, assignment: Assignment, done: Done) -> Ticket {
        let Assignment { agent_id, generation, mut work, .. } = assignment;
        let mut done = done;
        if let Work::Claimed { claimed, about } = &mut work {
            self.inner.place_run(about);
            let followed = self.inner.follow(&agent_id, &claimed.item.work.id);
            done = Box::new(move |outcome| {
                drop(followed);
                done(outcome);
            });
        }
        match self.inner.seat(&agent_id, generation) {
            Some(Seat::Loop(seat)) => self.inner.thread.shared.submit(seat, work, done),
            Some(Seat::Process(worker)) => self.inner.submit_to(&worker, work, done),
            Some(Seat::Hiring) | None => {
                let text = format!("{agent_id} of generation {generation} is not here");
                done(Outcome::Raised(HostError::new("AgentUnavailable", text, false)));
                Ticket(0) // names nothing: generations of slots begin at 1
            }
        }
    }

    fn cancel(&self, ticket: Ticket, reason: &str) {
        if ticket.0 & OF_A_PROCESS == 0 {
            self.inner.thread.shared.cancel(ticket, reason);
        } else if let Some(worker) = self.inner.worker_of(ticket) {
            worker.cancel(ticket.0, reason);
        }
    }

    fn abandon(&self, ticket: Ticket) {
        if ticket.0 & OF_A_PROCESS == 0 {
            self.inner.thread.shared.abandon(ticket);
        } else if let Some(worker) = self.inner.worker_of(ticket) {
            worker.dismiss();
        }
    }

    async fn stop(&self, agent_id: &str, generation: u64) {
        match self.inner.free_seat(agent_id, generation) {
            // A loop that has ended has forgotten the agent already.
            Some(Seat::Loop(seat)) => drop(self.inner.thread.shared.ask(|ticket| Message::Stop { ticket, seat }).await),
            Some(Seat::Process(worker)) => worker.stop().await,
            Some(Seat::Hiring) | None => {}
        }
    }

    fn heartbeat_age(&self) -> Option<Duration> {
        self.inner.thread.shared.health.beat_age()
    }

    fn progress_age(&self, agent_id: &str) -> Option<Duration> {
        let progress = locked(&self.inner.progress);
        let mine = progress.values().filter(|(agent, _)| agent == agent_id);
        mine.map(|(_, at)| at.elapsed()).min()
    }

    fn process(&self, agent_id: &str, generation: u64) -> Option<AgentProcess> {
        let worker = self.inner.worker(agent_id, generation)?;
        Some(AgentProcess { pid: worker.pid, heartbeat_age: worker.beat_age() })
    }

    async fn gone(&self, agent_id: &str, generation: u64) -> HostError {
        let Some(worker) = self.inner.worker(agent_id, generation) else { return std::future::pending().await };
        let mut gone = worker.gone.subscribe();
        drop(worker);
        let error = gone.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
        error.unwrap_or_else(|| HostError::new("WorkerCrashed", "its process was forgotten", false))
    }
}
