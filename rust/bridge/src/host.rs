//! [`PythonHost`]: the tree's `AgentHost`, with Python behind it.

use crate::loop_thread::{LoopThread, unique};
use crate::port::Message;
use crate::sync::locked;
use async_trait::async_trait;
use mnemosyne_runtime::{AgentHost, AgentStart, Assignment, Done, HostError, Outcome, Ticket, Tree, WeakTree, Work};
use mnemosyne_store::Store;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
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
    /// Where each generation of each agent sits on the loop: a number is all that travels with its work.
    seats: Mutex<HashMap<String, BTreeMap<u64, u64>>>,
}

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

    fn describe(&self) -> Value {
        json!({"id": self.inner.id, "boot": self.inner.store.boot(), "directory": self.inner.directory})
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
                match PythonHost::launch(&Handle::current(), Arc::clone(&store), directory.clone()).await {
                    Ok(host) => {
                        fate = host.inner.fate.subscribe();
                        tree.register_bridge(Arc::new(host));
                    }
                    Err(error) => tree.bridge_stuck(Some(format!("no other loop could be started: {error}"))),
                }
            }
        }
    }
}

impl HostInner {
    fn seat(&self, agent_id: &str, generation: u64) -> Option<u64> {
        locked(&self.seats).get(agent_id)?.get(&generation).copied()
    }

    fn free_seat(&self, agent_id: &str, generation: u64) -> Option<u64> {
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
    fn follow(self: &Arc<Self>, agent_id: &str, claim: &Value) -> Followed {
        let item = claim["item"]["id"].as_str().unwrap_or_default().to_owned();
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

impl Drop for HostInner {
    fn drop(&mut self) {
        self.thread.shared.forget(self.id);
    }
}

#[async_trait]
impl AgentHost for PythonHost {
    async fn start(&self, start: AgentStart) -> Result<(), HostError> {
        let seat = unique();
        let value = json!({
            "host": self.describe(), "agent_id": start.agent_id, "role": start.role, "generation": start.generation,
            "source": start.spec.source, "config": start.spec.config,
        });
        locked(&self.inner.seats).entry(start.agent_id.clone()).or_default().insert(start.generation, seat);
        let answer = self.inner.thread.shared.ask(|ticket| Message::Start { ticket, seat, value }).await;
        if answer.is_err() {
            self.inner.free_seat(&start.agent_id, start.generation);
        }
        answer
    }

    fn submit(&self, assignment: Assignment, done: Done) -> Ticket {
        let Assignment { agent_id, generation, mut work, .. } = assignment;
        let Some(seat) = self.inner.seat(&agent_id, generation) else {
            let text = format!("{agent_id} of generation {generation} is not here");
            done(Outcome::Raised(HostError::new("AgentUnavailable", text, false)));
            return Ticket(0); // names nothing: generations of slots begin at 1
        };
        let mut done = done;
        if let Work::Claimed(value) = &mut work {
            self.inner.place_run(value);
            let followed = self.inner.follow(&agent_id, value);
            done = Box::new(move |outcome| {
                drop(followed);
                done(outcome);
            });
        }
        self.inner.thread.shared.submit(seat, work, done)
    }

    fn cancel(&self, ticket: Ticket, reason: &str) {
        self.inner.thread.shared.cancel(ticket, reason);
    }

    fn abandon(&self, ticket: Ticket) {
        self.inner.thread.shared.abandon(ticket);
    }

    async fn stop(&self, agent_id: &str, generation: u64) {
        let Some(seat) = self.inner.free_seat(agent_id, generation) else { return };
        // A loop that has ended has forgotten the agent already.
        let _ = self.inner.thread.shared.ask(|ticket| Message::Stop { ticket, seat }).await;
    }

    fn heartbeat_age(&self) -> Option<Duration> {
        self.inner.thread.shared.health.beat_age()
    }

    fn progress_age(&self, agent_id: &str) -> Option<Duration> {
        let progress = locked(&self.inner.progress);
        let mine = progress.values().filter(|(agent, _)| agent == agent_id);
        mine.map(|(_, at)| at.elapsed()).min()
    }
}
