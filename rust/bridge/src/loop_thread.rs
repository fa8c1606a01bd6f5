//! The thread on which all in-process agents live: one asyncio loop, attached for life inside one `spawn_blocking` call.
//! Trees share it; when the last host that uses it is dropped, it stops.

use crate::attach::{Site, attach};
use crate::convert::from_python;
use crate::host::HostInner;
use crate::port::{Mailbox, Message, Port, locked};
use crate::upcall::{notify, upcall};
use mnemosyne_core::{Problem, WorkResult};
use mnemosyne_runtime::{Done, HostError, Outcome};
use pyo3::prelude::*;
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Time for agents to close their clients before the loop is left alone.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// The loop that new hosts use. Held over a start, so that hosts that come at once share one.
static SHARED: tokio::sync::Mutex<Weak<LoopThread>> = tokio::sync::Mutex::const_new(Weak::new());
/// Every loop whose thread has not left Python, also one that was dropped and is still closing its agents.
static LIVING: Mutex<Vec<Arc<Shared>>> = Mutex::new(Vec::new());
static NEXT: AtomicU64 = AtomicU64::new(1);

/// A number that no other ticket, key or host of this process has.
pub(crate) fn unique() -> u64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The loop as Rust holds it.
pub(crate) struct LoopThread {
    pub(crate) shared: Arc<Shared>,
}

/// What both sides reach. The Python side holds it too, so it must not keep the thread alive: [`LoopThread`] does.
pub(crate) struct Shared {
    pub(crate) mailbox: Arc<Mailbox>,
    runtime: Handle,
    /// Work under way: taken out exactly once, by the completion.
    pending: Mutex<HashMap<u64, Done>>,
    /// Agents being started or stopped.
    tickets: Mutex<HashMap<u64, oneshot::Sender<Result<(), HostError>>>>,
    /// Who answers upcalls, by the host id that travels with each assignment.
    hosts: Mutex<HashMap<u64, Weak<HostInner>>>,
    heartbeat: Mutex<Option<Instant>>,
    /// Set once the thread has left Python; waited for at exit.
    ended: (Mutex<bool>, Condvar),
    stopping: AtomicBool,
}

impl LoopThread {
    /// The loop of this process, started if there is none.
    ///
    /// # Errors
    /// Python was never initialised, or the package cannot be imported.
    pub(crate) async fn shared(runtime: &Handle) -> Result<Arc<LoopThread>, HostError> {
        let mut shared = SHARED.lock().await;
        let existing = shared.upgrade().filter(|found| !found.shared.stopping.load(Ordering::Acquire));
        if let Some(found) = existing {
            return Ok(found);
        }
        let started = Arc::new(LoopThread::start(runtime).await?);
        *shared = Arc::downgrade(&started);
        Ok(started)
    }

    async fn start(runtime: &Handle) -> Result<LoopThread, HostError> {
        let mailbox = Mailbox::new().map_err(|error| HostError::new("OSError", error.to_string(), false))?;
        let shared = Arc::new(Shared {
            mailbox,
            runtime: runtime.clone(),
            pending: Mutex::default(),
            tickets: Mutex::default(),
            hosts: Mutex::default(),
            heartbeat: Mutex::new(None),
            ended: (Mutex::new(false), Condvar::new()),
            stopping: AtomicBool::new(false),
        });
        let (ready, is_ready) = oneshot::channel();
        let inside = Arc::clone(&shared);
        locked(&LIVING).push(Arc::clone(&shared));
        runtime.spawn_blocking(move || run(&inside, ready));
        let outcome =
            is_ready.await.unwrap_or_else(|_| Err(HostError::new("RuntimeError", "the loop thread ended", true)));
        outcome.map(|()| LoopThread { shared })
    }
}

impl Drop for LoopThread {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// The body of the loop thread.
fn run(shared: &Arc<Shared>, ready: oneshot::Sender<Result<(), HostError>>) {
    let ready = Mutex::new(Some(ready));
    let outcome = attach(Site::LoopThread, |py| -> PyResult<()> {
        let entry = py.import("mnemosyne.loop")?.getattr("run")?;
        let port = Bound::new(py, Port { mailbox: Arc::clone(&shared.mailbox) })?;
        let side = Bound::new(py, AgentLoop { shared: Arc::clone(shared), port: port.unbind() })?;
        if let Some(ready) = locked(&ready).take() {
            let _ = ready.send(Ok(()));
        }
        entry.call1((side,)).map(|_| ())
    });
    let error = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(error)) => {
            // Formatting needs the interpreter; this thread may attach, and holds no lock.
            let text = attach(Site::LoopThread, |py| (error.get_type(py).to_string(), error.value(py).to_string()));
            Some(text.map_or_else(
                |_| HostError::new("SystemError", "Python is gone", true),
                |(kind, text)| HostError::new(&kind, text, true),
            ))
        }
        Err(missing) => Some(HostError::new("PythonNotInitialized", missing.to_string(), true)),
    };
    if let (Some(error), Some(ready)) = (error, locked(&ready).take()) {
        let _ = ready.send(Err(error));
    }
    shared.ended();
}

impl Shared {
    /// Asks the loop to end. Idempotent; returns at once.
    pub(crate) fn stop(&self) {
        if !self.stopping.swap(true, Ordering::AcqRel) {
            self.mailbox.push(Message::Shutdown);
        }
    }

    /// The thread has left Python: what waits for it is told so by dropping it.
    fn ended(&self) {
        self.stopping.store(true, Ordering::Release);
        self.mailbox.close();
        let pending = std::mem::take(&mut *locked(&self.pending));
        drop(pending);
        let tickets = std::mem::take(&mut *locked(&self.tickets));
        drop(tickets);
        locked(&LIVING).retain(|living| !std::ptr::eq(Arc::as_ptr(living), self));
        *locked(&self.ended.0) = true;
        self.ended.1.notify_all();
    }

    /// Waits for the thread to leave Python. Must not be called attached.
    fn wait_until_ended(&self, patience: Duration) {
        let guard = locked(&self.ended.0);
        drop(self.ended.1.wait_timeout_while(guard, patience, |ended| !*ended));
    }

    pub(crate) fn enlist(&self, id: u64, host: &Arc<HostInner>) {
        locked(&self.hosts).insert(id, Arc::downgrade(host));
    }

    pub(crate) fn forget(&self, id: u64) {
        locked(&self.hosts).remove(&id);
    }

    pub(crate) fn submit(&self, key: u64, value: Value, done: Done) {
        locked(&self.pending).insert(key, done);
        if !self.mailbox.push(Message::Work { key, value }) {
            let lost = locked(&self.pending).remove(&key);
            drop(lost);
        }
    }

    /// Sends a start or stop and waits for its answer.
    pub(crate) async fn ask(&self, make: impl FnOnce(u64) -> Message) -> Result<(), HostError> {
        let ticket = unique();
        let (answer, answered) = oneshot::channel();
        locked(&self.tickets).insert(ticket, answer);
        if !self.mailbox.push(make(ticket)) {
            locked(&self.tickets).remove(&ticket);
            return Err(HostError::new("BridgeClosed", "the loop thread has ended", false));
        }
        answered.await.unwrap_or_else(|_| Err(HostError::new("BridgeClosed", "the loop thread ended", false)))
    }

    pub(crate) fn heartbeat_age(&self) -> Option<Duration> {
        locked(&self.heartbeat).map(|at| at.elapsed())
    }

    fn host(&self, id: u64) -> Option<Arc<HostInner>> {
        locked(&self.hosts).get(&id).and_then(Weak::upgrade)
    }
}

/// Stops every loop of this process and waits for them. Called from Python's exit hook, detached.
pub(crate) fn stop_at_exit() {
    let living = locked(&LIVING).clone();
    for shared in &living {
        shared.stop();
    }
    let deadline = Instant::now() + STOP_DEADLINE;
    for shared in &living {
        shared.wait_until_ended(deadline.saturating_duration_since(Instant::now()));
    }
}

/// What the loop calls back. Lives on the loop thread; every method returns at once.
#[pyclass(frozen, module = "mnemosyne._core")]
pub(crate) struct AgentLoop {
    shared: Arc<Shared>,
    #[pyo3(get)]
    port: Py<Port>,
}

#[pymethods]
impl AgentLoop {
    /// Answers a `start` or `stop`; `error` is None or `{permanent, type_name, message, traceback}`.
    fn started(&self, ticket: u64, error: &Bound<'_, PyAny>) -> PyResult<()> {
        let outcome = match from_python(error)? {
            Value::Null => Ok(()),
            value => Err(serde_json::from_value(value).unwrap_or_else(|_| HostError::new("RuntimeError", "?", true))),
        };
        let waiting = locked(&self.shared.tickets).remove(&ticket);
        if let Some(waiting) = waiting {
            let _ = waiting.send(outcome);
        }
        Ok(())
    }

    /// Hands over the outcomes of one tick: `[(key, outcome)]`.
    fn completed(&self, outcomes: Vec<(u64, Bound<'_, PyAny>)>) -> PyResult<()> {
        for (key, outcome) in outcomes {
            let outcome = read_outcome(&outcome);
            let done = locked(&self.shared.pending).remove(&key);
            if let Some(done) = done {
                done(outcome);
            }
        }
        Ok(())
    }

    /// A two-way upcall; answered on this loop's port under `ticket`.
    fn upcall(&self, ticket: u64, host: u64, request: &Bound<'_, PyAny>) -> PyResult<()> {
        let request = from_python(request)?;
        let host = self.shared.host(host);
        self.shared.mailbox.answer(&self.shared.runtime, ticket, upcall(host, request));
        Ok(())
    }

    /// A one-way upcall: live only, dropped where nobody listens.
    fn notify(&self, host: u64, request: &Bound<'_, PyAny>) -> PyResult<()> {
        let request = from_python(request)?;
        if let Some(host) = self.shared.host(host) {
            notify(&host, &request);
        }
        Ok(())
    }

    /// The loop is alive.
    fn heartbeat(&self) {
        *locked(&self.shared.heartbeat) = Some(Instant::now());
    }
}

/// The outcomes as the loop says them.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Said {
    Result { result: WorkResult },
    Raised { error: HostError },
    Model { problem: Problem, fatal: bool, retry_after: Option<f64> },
    Environment { problem: Problem },
    Budget { problem: Problem },
    Invalid { problem: Problem },
    Fenced,
    Cancelled,
}

/// What cannot be read is the agent's error: nothing is ever taken for a success by mistake (TRUTH-1).
fn read_outcome(object: &Bound<'_, PyAny>) -> Outcome {
    let value = match from_python(object) {
        Ok(value) => value,
        Err(error) => return Outcome::Raised(HostError::new("AgentError", error.to_string(), false)),
    };
    match serde_json::from_value::<Said>(value) {
        Ok(Said::Result { result }) => Outcome::Result(Box::new(result)),
        Ok(Said::Raised { error }) => Outcome::Raised(error),
        Ok(Said::Model { problem, fatal, retry_after }) => Outcome::Model { problem, fatal, retry_after },
        Ok(Said::Environment { problem }) => Outcome::Environment(problem),
        Ok(Said::Budget { problem }) => Outcome::Budget(problem),
        Ok(Said::Invalid { problem }) => Outcome::Invalid(problem),
        Ok(Said::Fenced) => Outcome::Fenced,
        Ok(Said::Cancelled) => Outcome::Cancelled,
        Err(error) => {
            Outcome::Raised(HostError::new("AgentError", format!("the result cannot be read: {error}"), false))
        }
    }
}
