//! The thread on which all in-process agents live: one asyncio loop, attached for life inside one `spawn_blocking` call.
//! Trees share it; when the last host that uses it is dropped, it stops.

use crate::attach::{Site, attach, close, is_a_fork, spawn_blocking};
use crate::convert::{from_python, item_to_python, result_from_python};
use crate::health::{Health, watch};
use crate::host::{Fate, HostInner};
use crate::plain::{self, Call};
use crate::port::{Channel, Message, Port};
use crate::slots::Slots;
use crate::sync::locked;
use crate::upcall::{notify, tree_is_gone, upcall};
use crate::worker::Exit;
use mnemosyne_core::{Problem, WorkItem, WorkResult};
use mnemosyne_runtime::{Done, HostError, Outcome, Ticket, Work};
use mnemosyne_store::Claimed;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

/// Time for agents to close their clients before the loop is left alone.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// Time for plain functions to return, beyond that; longer ones are left to the end of the process.
const PLAIN_DEADLINE: Duration = Duration::from_secs(1);
/// A signal is seen this soon by a main thread that waits in here.
const SIGNALS_EVERY: Duration = Duration::from_millis(50);

/// Outcomes are handed over before their tick ends, so that their waiters send more while the loop goes on; but each time
/// wakes a thread of tokio's, which costs the loop 5 to 10 us and more. So it is done when the loop comes to the end of what
/// it has (`LITTLE_LEFT` messages), or when there are `MANY`. Ratios to a task per item on one loop, medians of 70 rounds in
/// turn, at 64 and at 1,000 in flight:
///
/// | | every 16 | 8 left | 16 left | 24 left | 16 left, or 128 for 64 |
/// |---|---|---|---|---|---|
/// | Python 3.12 | 1.17, 1.21 | 1.25, 1.38 | 1.30, 1.42 | 1.28, 1.35 | 1.31, 1.40 |
/// | Python 3.13 | 1.09, 1.20 | 1.20, 1.36 | 1.18, 1.28 | 1.08, 1.27 | 1.15, 1.34; another time 1.23, 1.47 for 1.22, 1.28 |
///
/// What waits in the mailbox counts too: else the loop hands over the last 16 of a batch though the next batch is there.
/// That took 35 wake-ups for 1,000 items at 64 in flight, and takes 22; ratios 1.30 -> 1.35 on 3.12 and 1.20 -> 1.25 on 3.13
/// (means of 330 rounds in turn, +-0.02). Then, with items that share a task: 16 left 1.52 and 1.60, 24 left 1.58 and 1.60, 32
/// left 1.52 and 1.53, 8 left 1.50 and 1.51.
const FEW: usize = 16;
const LITTLE_LEFT: usize = 16;
const MANY: usize = 128;

/// After a batch of `FEW` the courier stays awake for so long, and meanwhile each `FEW` are handed to it. To wait for as long
/// as the other way costs is never more than twice as dear as the better of both (Karlin et al., "Competitive randomized
/// algorithms for non-uniform problems", 1990), and to sleep and be woken costs 50 to 100 us here; where the host is slow to
/// wake a core, both sides slept after every few items, and an item took 10 us instead of 5. Agents that take their time never
/// end so many at once. Ratios to a task per item on one loop at 64 in flight, means of 390 rounds in turn, +-0.02:
///
/// | | no time | 60 us | 100 us | 200 us |
/// |---|---|---|---|---|
/// | Python 3.12 | 1.71 | 1.76 | 1.80 | 1.80 |
/// | Python 3.13 | 1.50 | 1.58 | 1.62 | 1.64 |
/// | wake-ups for 1,000 items | 22 | 16 | 5 | 1 |
///
/// At 1,000 in flight, with 100 us: 1.79 for 1.77; with agents that wait once 0.70 for 0.67.
const AWAKE: Duration = Duration::from_micros(100);
/// Looks of the courier between two turns of other tasks, each after as many pauses of the core.
const LOOKS: usize = 8;

/// The loop that new hosts use. Held over a start, so that hosts that come at once share one.
static SHARED: tokio::sync::Mutex<Weak<LoopThread>> = tokio::sync::Mutex::const_new(Weak::new());
/// Every loop whose thread has not left Python, also one that was dropped and is still closing its agents.
static LIVING: Mutex<Vec<Arc<Shared>>> = Mutex::new(Vec::new());
/// Loops that were stuck and were left to themselves, since the process began.
static LEFT_BEHIND: AtomicU64 = AtomicU64::new(0);
static NEXT: AtomicU64 = AtomicU64::new(1);

/// A number that no other ticket, seat or host of this process has.
pub(crate) fn unique() -> u64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The loops whose thread has not left Python.
pub(crate) fn living() -> Vec<Arc<Shared>> {
    locked(&LIVING).clone()
}

pub(crate) fn loops_left_behind() -> u64 {
    LEFT_BEHIND.load(Ordering::Relaxed)
}

/// The loop as Rust holds it.
pub(crate) struct LoopThread {
    pub(crate) shared: Arc<Shared>,
}

/// Work that the loop has. No Python object: those live and die on the loop thread.
struct Pending {
    done: Done,
    /// What its context is made of, should the agent ask for it: the agent may have changed the dict that it got.
    kept: Kept,
    /// Nobody waits for it any more.
    abandoned: bool,
}

#[derive(Clone)]
enum Kept {
    Item(Arc<WorkItem>),
    Claim(Arc<Claimed>),
}

impl Kept {
    fn item(&self) -> &WorkItem {
        match self {
            Kept::Item(item) => item,
            Kept::Claim(claimed) => &claimed.item.work,
        }
    }
}

/// How a start or stop went: with a process id, where a process was started.
type Started = Result<Option<u32>, HostError>;

/// What happened to work on this loop.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) submitted: AtomicU64,
    /// Did not end within its grace after a cancel; its slot stays taken until it does.
    pub(crate) abandoned: AtomicU64,
    /// Ended after it was abandoned, or after its loop was left behind; nobody waited for it.
    pub(crate) late: AtomicU64,
}

/// What both sides reach. The Python side holds it too, so it must not keep the thread alive: [`LoopThread`] does.
pub(crate) struct Shared {
    pub(crate) channel: Arc<Channel>,
    /// Work under way: taken out exactly once, by the completion.
    pending: Mutex<Slots<Pending>>,
    /// Agents being started or stopped.
    tickets: Mutex<HashMap<u64, oneshot::Sender<Started>>>,
    /// Worker processes that this loop had started, by number: who waits for their end.
    exits: Mutex<HashMap<u64, oneshot::Sender<Exit>>>,
    /// Who answers upcalls, by the host id that travels with each assignment.
    hosts: Mutex<HashMap<u64, Weak<HostInner>>>,
    pub(crate) health: Health,
    pub(crate) counts: Counts,
    /// Under which the loop is known in Python.
    pub(crate) id: u64,
    /// What ended since the last hand-over: the loop's own, until it is left behind.
    outcomes: Mutex<Vec<(Ticket, Outcome)>>,
    /// What was handed over and its waiter was not told yet.
    outbox: Mutex<Vec<(Ticket, Outcome)>>,
    /// The outbox of before, empty: its storage is used again.
    spare: Mutex<Vec<(Ticket, Outcome)>>,
    /// Tells the courier that the outbox is not empty, or that the loop has ended.
    courier: Notify,
    /// It looks without being told. A hint, which decides when it is told, not whether.
    awake: AtomicBool,
    /// The courier's runtime went down before the loop: the loop hands its outbox over itself.
    no_courier: AtomicBool,
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
        let channel = Channel::new().map_err(|error| HostError::new("OSError", error.to_string(), false))?;
        let shared = Arc::new(Shared {
            channel,
            pending: Mutex::default(),
            tickets: Mutex::default(),
            exits: Mutex::default(),
            hosts: Mutex::default(),
            health: Health::default(),
            counts: Counts::default(),
            id: unique(),
            outcomes: Mutex::default(),
            outbox: Mutex::default(),
            spare: Mutex::default(),
            courier: Notify::new(),
            awake: AtomicBool::new(false),
            no_courier: AtomicBool::new(false),
            ended: (Mutex::new(false), Condvar::new()),
            stopping: AtomicBool::new(false),
        });
        let (ready, is_ready) = oneshot::channel();
        let inside = Arc::clone(&shared);
        locked(&LIVING).push(Arc::clone(&shared));
        runtime.spawn(Courier(Arc::clone(&shared)).carry());
        if let Err(error) = spawn_blocking(move || run(&inside, ready)) {
            shared.ended();
            return Err(HostError::new("OSError", error, false));
        }
        let outcome =
            is_ready.await.unwrap_or_else(|_| Err(HostError::new("RuntimeError", "the loop thread ended", true)));
        outcome?;
        watch();
        Ok(LoopThread { shared })
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
        let port = Bound::new(py, Port::on(Arc::clone(&shared.channel)))?;
        let side = AgentLoop { shared: Arc::clone(shared), port: port.unbind() };
        let side = Bound::new(py, side)?;
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
            self.channel.push(Message::Shutdown);
        }
    }

    /// The thread has left Python: what waits for it is told so by dropping it.
    fn ended(&self) {
        self.stopping.store(true, Ordering::Release);
        self.channel.close();
        self.deliver();
        let pending = locked(&self.pending).drain();
        drop(pending);
        let tickets = std::mem::take(&mut *locked(&self.tickets));
        drop(tickets);
        locked(&LIVING).retain(|living| !std::ptr::eq(Arc::as_ptr(living), self));
        *locked(&self.ended.0) = true;
        self.ended.1.notify_all();
        self.courier.notify_one();
    }

    fn has_ended(&self) -> bool {
        *locked(&self.ended.0)
    }

    /// Waits for the thread to leave Python, at most `patience`; says whether it has. Must not be called attached.
    fn wait_until_ended(&self, patience: Duration) -> bool {
        let guard = locked(&self.ended.0);
        let waited = self.ended.1.wait_timeout_while(guard, patience, |ended| !*ended);
        *waited.unwrap_or_else(std::sync::PoisonError::into_inner).0
    }

    pub(crate) fn enlist(&self, id: u64, host: &Arc<HostInner>) {
        locked(&self.hosts).insert(id, Arc::downgrade(host));
    }

    pub(crate) fn forget(&self, id: u64) {
        locked(&self.hosts).remove(&id);
    }

    pub(crate) fn submit(&self, seat: u64, work: Work, done: Done) -> Ticket {
        let kept = match &work {
            Work::Direct(item) => Kept::Item(Arc::clone(item)),
            Work::Claimed { claimed, .. } => Kept::Claim(Arc::clone(claimed)),
        };
        self.counts.submitted.fetch_add(1, Ordering::Relaxed);
        let slot = locked(&self.pending).insert(Pending { done, kept, abandoned: false });
        let pushed = self.channel.push(match work {
            Work::Direct(item) => Message::Direct { slot, seat, item },
            Work::Claimed { claimed, about } => Message::Claimed { slot, seat, claimed, about },
        });
        if !pushed {
            let lost = locked(&self.pending).remove(slot);
            drop(lost);
        }
        slot
    }

    pub(crate) fn cancel(&self, slot: Ticket, reason: &str) {
        self.channel.push(Message::Cancel { slot, reason: reason.to_owned() });
    }

    /// Its task may live on, and so the slot stays taken until it ends.
    pub(crate) fn abandon(&self, slot: Ticket) {
        if let Some(pending) = locked(&self.pending).get(slot) {
            pending.abandoned = true;
            self.counts.abandoned.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Who is told when the worker process of this number has ended.
    pub(crate) fn await_exit(&self, number: u64) -> oneshot::Receiver<Exit> {
        let (exit, has_exited) = oneshot::channel();
        locked(&self.exits).insert(number, exit);
        has_exited
    }

    /// Sends a start or stop and waits for its answer: a process id, where a process was started.
    pub(crate) async fn ask(&self, make: impl FnOnce(u64) -> Message) -> Started {
        let ticket = unique();
        let (answer, answered) = oneshot::channel();
        locked(&self.tickets).insert(ticket, answer);
        if !self.channel.push(make(ticket)) {
            locked(&self.tickets).remove(&ticket);
            return Err(HostError::new("BridgeClosed", "the loop thread has ended", false));
        }
        answered.await.unwrap_or_else(|_| Err(HostError::new("BridgeClosed", "the loop thread ended", false)))
    }

    /// Tells every tree that uses this loop that it is stuck, or with `None` that it goes on.
    pub(crate) fn tell_hosts(&self, stuck: Option<String>) {
        for host in self.hosts() {
            host.fate.send_replace(stuck.clone().map_or(Fate::Fine, Fate::Stuck));
        }
    }

    fn hosts(&self) -> Vec<Arc<HostInner>> {
        locked(&self.hosts).values().filter_map(Weak::upgrade).collect()
    }

    /// Gives up a loop that is stuck in somebody's code, with its thread. Its work is lost, which charges nobody, but for
    /// the item whose code it is stuck in; its trees are told to move to another loop.
    pub(crate) fn leave_behind(&self, culprit: Option<Ticket>, late: Duration) {
        if self.stopping.swap(true, Ordering::AcqRel) {
            return; // it is ending anyway
        }
        let seconds = late.as_secs_f64();
        let reason = format!("the agents' loop did nothing for {seconds:.0} s; another one has taken over");
        tracing::error!(target: "mnemosyne.bridge", "{reason}");
        self.channel.give_up();
        locked(&LIVING).retain(|living| !std::ptr::eq(Arc::as_ptr(living), self));
        LEFT_BEHIND.fetch_add(1, Ordering::Relaxed);
        // What had ended when it got stuck is not lost with it.
        let ended = std::mem::take(&mut *locked(&self.outcomes));
        locked(&self.outbox).extend(ended);
        self.deliver();
        let (guilty, lost) = {
            let mut pending = locked(&self.pending);
            (culprit.and_then(|slot| pending.remove(slot)), pending.drain())
        };
        if let Some(guilty) = guilty {
            let text = format!("the agent kept the loop of all agents from going on for {seconds:.0} s");
            (guilty.done)(Outcome::Raised(HostError::new("LoopBlocked", text, false)));
        }
        drop(lost);
        let tickets = std::mem::take(&mut *locked(&self.tickets));
        drop(tickets);
        for host in self.hosts() {
            host.fate.send_replace(Fate::Lost(reason.clone()));
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        locked(&self.pending).len()
    }

    fn host(&self, id: u64) -> Option<Arc<HostInner>> {
        locked(&self.hosts).get(&id).and_then(Weak::upgrade)
    }

    /// Hands outcomes to whoever waits for them, and says to how many. One that panics is not the end of the others.
    fn deliver(&self) -> usize {
        let mut outcomes = std::mem::take(&mut *locked(&self.spare));
        std::mem::swap(&mut *locked(&self.outbox), &mut outcomes);
        let mut ready = Vec::with_capacity(outcomes.len());
        let mut late = 0;
        {
            let mut pending = locked(&self.pending);
            for (slot, outcome) in outcomes.drain(..) {
                let found = pending.remove(slot);
                late += u64::from(found.as_ref().is_none_or(|pending| pending.abandoned));
                ready.extend(found.map(|pending| (pending, outcome)));
            }
        }
        *locked(&self.spare) = outcomes;
        self.counts.late.fetch_add(late, Ordering::Relaxed);
        let told = ready.len();
        for (pending, outcome) in ready {
            let _ = catch_unwind(AssertUnwindSafe(|| (pending.done)(outcome)));
        }
        told
    }
}

/// Hands over what the loop puts into its outbox, as one tokio task: waking one task per tick from outside costs one
/// system call, waking each waiter from there costs one each, and they would fight the loop for its locks and its core.
struct Courier(Arc<Shared>);

impl Courier {
    async fn carry(self) {
        // Where there is one core it is the loop's.
        let may_stay_awake = std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
        while !self.0.has_ended() {
            self.0.courier.notified().await;
            if self.0.deliver() >= FEW && may_stay_awake {
                self.stay_awake().await;
            }
        }
    }

    async fn stay_awake(&self) {
        self.0.awake.store(true, Ordering::Relaxed);
        let mut last = Instant::now();
        while last.elapsed() < AWAKE {
            tokio::task::yield_now().await; // those who were told have their turn first
            if self.finds_more() && self.0.deliver() >= FEW {
                last = Instant::now();
            }
        }
        self.0.awake.store(false, Ordering::Relaxed);
    }

    fn finds_more(&self) -> bool {
        (0..LOOKS).any(|_| {
            (0..LOOKS).for_each(|_| std::hint::spin_loop());
            !locked(&self.0.outbox).is_empty()
        })
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        self.0.no_courier.store(true, Ordering::SeqCst);
        self.0.deliver();
    }
}

/// Stops every loop of this process and waits for them, for Python's exit hook: after it no Rust thread touches Python.
/// Idempotent, and bounded: a loop that is stuck in somebody's code is left behind, and finds the door shut.
///
/// # Errors
/// What a signal handler raised meanwhile, `KeyboardInterrupt` for one: the rest of the wait is given up.
pub(crate) fn stop_at_exit(py: Python<'_>) -> PyResult<()> {
    if is_a_fork() {
        return Ok(()); // the threads that this would wait for are the parent's
    }
    let living = locked(&LIVING).clone();
    for shared in &living {
        shared.stop();
    }
    let deadline = Instant::now() + STOP_DEADLINE;
    let mut interrupted = Ok(());
    for shared in &living {
        while interrupted.is_ok() && Instant::now() < deadline {
            if py.detach(|| shared.wait_until_ended(SIGNALS_EVERY)) {
                break;
            }
            interrupted = py.check_signals();
        }
    }
    close();
    // A function that came back into an interpreter that is being taken down would take the process down with it.
    let deadline = Instant::now() + PLAIN_DEADLINE;
    while interrupted.is_ok() && plain::wind_up() && Instant::now() < deadline {
        py.detach(|| std::thread::sleep(Duration::from_millis(5))); // polling a condition with a deadline
        interrupted = py.check_signals();
    }
    interrupted
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
    #[pyo3(signature = (ticket, error, pid=None))]
    fn started(&self, ticket: u64, error: &Bound<'_, PyAny>, pid: Option<u32>) -> PyResult<()> {
        let outcome = match from_python(error)? {
            Value::Null => Ok(pid),
            value => Err(serde_json::from_value(value).unwrap_or_else(|_| HostError::new("RuntimeError", "?", true))),
        };
        let waiting = locked(&self.shared.tickets).remove(&ticket);
        if let Some(waiting) = waiting {
            let _ = waiting.send(outcome);
        }
        Ok(())
    }

    /// The worker process of this number has ended, and all that it had started with it.
    fn exited(&self, number: u64, code: Option<i32>, output: String) {
        let waiting = locked(&self.shared.exits).remove(&number);
        if let Some(waiting) = waiting {
            let _ = waiting.send((code, output));
        }
    }

    /// Takes what an agent returned, where it is a plain result; False is no judgement, `completed` takes the rest. It is
    /// read now, not in `flush`: an agent may go on to change the dict that it returned.
    fn returned(&self, slot: u64, result: &Bound<'_, PyAny>) -> bool {
        let read = catch_unwind(AssertUnwindSafe(|| result_from_python(result)));
        let Ok(Some(result)) = read else { return false };
        self.ended(slot, Outcome::Result(Box::new(result)));
        true
    }

    /// Takes any other outcome.
    fn completed(&self, slot: u64, outcome: &Bound<'_, PyAny>) {
        let read = catch_unwind(AssertUnwindSafe(|| read_outcome(outcome)));
        let outcome = read.unwrap_or_else(|_| {
            Outcome::Raised(HostError::new("RuntimeError", "a panic in the bridge while it read the outcome", false))
        });
        self.ended(slot, outcome);
    }

    /// Hands over all outcomes that were not handed over yet: at the end of a tick.
    fn flush(&self) {
        self.hand_over(1);
    }

    /// The item of work, as a new dict; None if the work has ended.
    fn item<'py>(&self, py: Python<'py>, slot: u64) -> PyResult<Option<Bound<'py, PyDict>>> {
        let kept = locked(&self.shared.pending).get(Ticket(slot)).map(|pending| pending.kept.clone());
        kept.map(|kept| item_to_python(py, kept.item())).transpose()
    }

    /// A two-way upcall; answered on this loop's port under `ticket`.
    fn upcall(&self, ticket: u64, host: u64, request: &Bound<'_, PyAny>) -> PyResult<()> {
        let request = from_python(request)?;
        let Some(host) = self.shared.host(host) else {
            self.shared.channel.push(Message::Reply { ticket, reply: tree_is_gone().into() });
            return Ok(());
        };
        let runtime = host.runtime.clone();
        let _entered = runtime.enter();
        let mut work = Box::pin(upcall(host, request));
        // The first poll puts it into the store's queue: here, in the order of the calls. Two workers of tokio's would let
        // the upcalls of one item overtake each other.
        match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(reply) => drop(self.shared.channel.push(Message::Reply { ticket, reply })),
            Poll::Pending => self.shared.channel.answer(&runtime, ticket, work),
        }
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

    /// Runs what Python keeps under `number` in the pool for plain functions; a message `ran` tells when it is over.
    fn run_plain(&self, number: u64) {
        plain::submit(Call { number, channel: Arc::clone(&self.shared.channel) });
    }

    /// Nobody waits for that function any more, and it goes on.
    fn leave_behind(&self, number: u64) {
        plain::leave_behind(number);
    }

    /// The loop is alive; it was `lag` seconds late, and more than `limit` makes it suspect.
    fn heartbeat(&self, py: Python<'_>, lag: f64, limit: f64) {
        // Letting go of the interpreter and asking for it again is what every wait of the loop costs.
        let began = Instant::now();
        py.detach(|| ());
        let gil_wait = began.elapsed();
        self.shared.health.beat(seconds(lag), gil_wait, seconds(limit));
    }

    /// Under which number `stuck_slot` is asked about this loop.
    #[getter]
    fn id(&self) -> u64 {
        self.shared.id
    }
}

impl AgentLoop {
    fn ended(&self, slot: u64, outcome: Outcome) {
        locked(&self.shared.outcomes).push((Ticket(slot), outcome));
        let costs_nothing = self.shared.awake.load(Ordering::Relaxed);
        let enough = if costs_nothing || !self.port.get().has_more_than(LITTLE_LEFT) { FEW } else { MANY };
        self.hand_over(enough);
    }

    /// Hands over what ended, if that is so many.
    fn hand_over(&self, at_least: usize) {
        let mut outcomes = locked(&self.shared.outcomes);
        if outcomes.len() < at_least {
            return;
        }
        locked(&self.shared.outbox).append(&mut outcomes);
        drop(outcomes);
        self.shared.courier.notify_one();
        if self.shared.no_courier.load(Ordering::SeqCst) {
            self.shared.deliver();
        }
    }
}

/// What is no time is no time.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// The outcomes as the loop says them.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Said {
    Result { result: WorkResult },
    Raised { error: HostError },
    Model { problem: Problem, fatal: bool, retry_after: Option<f64>, class: Option<String> },
    Parked { problem: Problem, class: String, seconds: f64 },
    Environment { problem: Problem },
    Budget { problem: Problem },
    Invalid { problem: Problem },
    Fenced,
    Cancelled,
}

/// What cannot be read is the agent's error: nothing is ever taken for a success by mistake (TRUTH-1).
fn read_outcome(object: &Bound<'_, PyAny>) -> Outcome {
    match from_python(object) {
        Ok(value) => read_said(value).into(),
        Err(error) => Outcome::Raised(HostError::new("AgentError", error.to_string(), false)),
    }
}

/// As [`read_outcome`].
pub(crate) fn read_said(value: Value) -> Said {
    serde_json::from_value(value).unwrap_or_else(|error| Said::Raised {
        error: HostError::new("AgentError", format!("the result cannot be read: {error}"), false),
    })
}

impl From<Said> for Outcome {
    fn from(said: Said) -> Self {
        match said {
            Said::Result { result } => Outcome::Result(Box::new(result)),
            Said::Raised { error } => Outcome::Raised(error),
            Said::Model { problem, fatal, retry_after, class } => Outcome::Model { problem, fatal, retry_after, class },
            Said::Parked { problem, class, seconds } => Outcome::Parked { problem, class, seconds },
            Said::Environment { problem } => Outcome::Environment(problem),
            Said::Budget { problem } => Outcome::Budget(problem),
            Said::Invalid { problem } => Outcome::Invalid(problem),
            Said::Fenced => Outcome::Fenced,
            Said::Cancelled => Outcome::Cancelled,
        }
    }
}
