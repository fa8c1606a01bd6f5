//! A port: the way from any thread of Rust into one asyncio loop. Pushing never takes the GIL; the loop watches the bell
//! with `add_reader`, and takes what has come in ticks that are bounded in items and in time.

use crate::attach::same_process;
use crate::bell::FileBell;
use crate::convert::{item_to_python, to_python};
use crate::log::Line;
use crate::mailbox::Mailbox;
use crate::module::{Handle, runtime};
use crate::starter::Starter;
use crate::sync::locked;
use async_task::Runnable;
use mnemosyne_core::error::codes;
use mnemosyne_core::{Problem, ProblemKind, WorkItem};
use mnemosyne_runtime::{HostError, Ticket};
use mnemosyne_store::Claimed;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;

/// Messages of one tick: then the loop's timers and sockets get their turn, and what was done is handed back.
const TICK_MESSAGES: u32 = 256;
/// Time of one tick. Eager tasks run inside it, so it is time of the agents' own code too.
const TICK_TIME: Duration = Duration::from_millis(2);
/// The clock is read once for so many messages: each time costs 2 in 100 of what a short item takes.
const LOOK_EVERY: u32 = 4;

/// What a call is answered with.
#[derive(Debug)]
pub(crate) enum Reply {
    /// A JSON value.
    Value(Value),
    /// Something that lives on the Rust side.
    Handle(Handle),
    /// A refusal, in the form that `errors.from_wire` reads.
    Error(Value),
}

impl From<Problem> for Reply {
    fn from(problem: Problem) -> Self {
        Reply::Error(json!(problem))
    }
}

impl From<&HostError> for Reply {
    fn from(error: &HostError) -> Self {
        Reply::Error(json!({
            "kind": "agent", "code": codes::AGENT, "message": error.to_string(),
            "reason": "", "hint": "", "token": error.token, "type_name": error.type_name, "traceback": error.traceback,
        }))
    }
}

/// What travels into the loop. What concerns work is serialisable: a worker process gets the same (`worker.rs`).
#[derive(Debug)]
pub(crate) enum Message {
    /// Make an agent; answered by `AgentLoop.started(ticket, ...)`. Its work will name the seat.
    Start { ticket: u64, seat: u64, value: Value },
    /// Start a process for an agent, and write its first frame; answered by `AgentLoop.started(ticket, None, pid)`, and its
    /// end by `AgentLoop.exited(number, ...)`. Python owns both descriptors.
    Employ { ticket: u64, number: u64, value: Value, ours: OwnedFd, theirs: OwnedFd },
    /// Forget an agent; answered by `AgentLoop.started(ticket, None)`.
    Stop { ticket: u64, seat: u64 },
    /// A claim; answered by `AgentLoop.completed`.
    Claimed { slot: Ticket, seat: u64, claimed: Arc<Claimed>, about: Value },
    /// Direct work; answered by `AgentLoop.returned` or `completed`.
    Direct { slot: Ticket, seat: u64, item: Arc<WorkItem> },
    /// Work that was cancelled while it waited in here: it is never begun.
    Unbegun { slot: Ticket },
    /// Cancel that.
    Cancel { slot: Ticket, reason: String },
    /// The answer to a call of this loop.
    Reply { ticket: u64, reply: Reply },
    /// A call of the pool for plain functions has ended, or found nothing to do.
    Ran { number: u64 },
    /// For Python's `logging`.
    Log(Vec<Line>),
    /// End the loop.
    Shutdown,
}

/// The shared part, reachable from both sides.
pub(crate) struct Channel {
    mailbox: Mailbox<Message, FileBell>,
    /// By ticket, so that a cancelled await drops the future.
    calls: Mutex<HashMap<u64, Call>>,
}

/// A call under way; given up, its future is dropped.
enum Call {
    /// About to be spawned.
    Beginning,
    OnTokio(AbortHandle),
    WhereTold {
        _task: async_task::Task<()>,
    },
}

impl Call {
    fn give_up(self) {
        if let Call::OnTokio(task) = self {
            task.abort();
        }
    }
}

impl Channel {
    pub(crate) fn new() -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self { mailbox: Mailbox::new(FileBell::new()?), calls: Mutex::default() }))
    }

    /// False if nobody will ever read it.
    pub(crate) fn push(&self, message: Message) -> bool {
        self.mailbox.push(message).is_ok()
    }

    pub(crate) fn close(&self) {
        drop(self.mailbox.close());
        self.drop_calls();
    }

    /// The loop is given up: when it comes to itself, it finds nothing but the end.
    pub(crate) fn give_up(&self) {
        drop(self.mailbox.close_with(Message::Shutdown));
        self.drop_calls();
    }

    fn drop_calls(&self) {
        let calls = std::mem::take(&mut *locked(&self.calls));
        calls.into_values().for_each(Call::give_up);
    }

    /// Runs `work` on tokio and answers `ticket` with its reply, also if it panics; `Port.cancel(ticket)` drops it.
    pub(crate) fn answer(
        self: &Arc<Self>,
        runtime: &tokio::runtime::Handle,
        ticket: u64,
        work: impl Future<Output = Reply> + Send + 'static,
    ) {
        let answer = Answer { channel: Arc::clone(self), ticket, reply: None };
        // The entry is there before the task can end. No lock over the spawn: on a runtime that is going down it drops the
        // task, and with it the answer, at once.
        locked(&self.calls).insert(ticket, Call::Beginning);
        let task = runtime.spawn(async move { answer.give(work.await) });
        if let Some(call) = locked(&self.calls).get_mut(&ticket) {
            *call = Call::OnTokio(task.abort_handle());
        }
    }

    /// The same for work that asks one thing and waits to be told: its steps are done here, and on the thread that tells,
    /// which has to let go of its locks before. On tokio each step wakes a worker first; two such works for each durable
    /// item took 32 of the 360 us of processor time that it cost.
    pub(crate) fn answer_where_told(
        self: &Arc<Self>,
        runtime: &tokio::runtime::Handle,
        ticket: u64,
        work: impl Future<Output = Reply> + Send + 'static,
    ) {
        let answer = Answer { channel: Arc::clone(self), ticket, reply: None };
        let runtime = runtime.clone();
        let step = move |step: Runnable| {
            let _entered = runtime.enter(); // for its timers
            // Who tells is not harmed by a panic of who is told; the answer is given all the same.
            let _ = catch_unwind(AssertUnwindSafe(|| step.run()));
        };
        let (first, task) = async_task::spawn(async move { answer.give(work.await) }, step);
        locked(&self.calls).insert(ticket, Call::WhereTold { _task: task });
        first.schedule();
    }
}

/// Answers when dropped: whoever waits is told, however the task ends, with a panic for one.
struct Answer {
    channel: Arc<Channel>,
    ticket: u64,
    reply: Option<Reply>,
}

impl Answer {
    fn give(mut self, reply: Reply) {
        self.reply = Some(reply);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let call = locked(&self.channel.calls).remove(&self.ticket);
        if call.is_none() {
            return; // cancelled: nobody waits
        }
        let reply = self.reply.take().unwrap_or_else(|| {
            Problem::new(ProblemKind::Closed, codes::CLOSED, "the call was given up before it was answered").into()
        });
        self.channel.push(Message::Reply { ticket: self.ticket, reply });
    }
}

/// Runs `work` on the runtime of this process, and answers `ticket` of a port with what comes of it.
///
/// # Errors
/// The runtime did not start.
pub fn answer(
    port: &Port,
    ticket: u64,
    work: impl Future<Output = Result<Value, Problem>> + Send + 'static,
) -> PyResult<()> {
    let reply = async { work.await.map_or_else(Reply::from, Reply::Value) };
    port.channel.answer(runtime()?.handle(), ticket, reply);
    Ok(())
}

/// The Python side of a port. Iterating over it is one tick: messages as `(kind, number, seat, payload)`, each made into
/// Python objects when its turn comes. The bell rings on while messages wait, so the loop calls again.
#[pyclass(frozen, module = "mnemosyne._core")]
pub struct Port {
    pub(crate) channel: Arc<Channel>,
    /// Only the loop's own thread takes this lock.
    tick: Mutex<Tick>,
    /// Where agents live, what begins direct work; else it is delivered like all the rest.
    starter: Mutex<Option<Arc<Starter>>>,
}

struct Tick {
    /// Taken from the mailbox and not yet delivered.
    inbox: VecDeque<Message>,
    began: Instant,
    delivered: u32,
}

impl Port {
    pub(crate) fn on(channel: Arc<Channel>) -> Self {
        let tick = Tick { inbox: VecDeque::new(), began: Instant::now(), delivered: 0 };
        Self { channel, tick: Mutex::new(tick), starter: Mutex::default() }
    }

    /// Whether more messages than `few` wait for their turn, in here or in the mailbox.
    pub(crate) fn has_more_than(&self, few: usize) -> bool {
        let taken = locked(&self.tick).inbox.len();
        taken > few || taken + self.channel.mailbox.len() > few
    }

    /// The next message of this tick, if there is one and it is wanted.
    fn next(&self, wanted: impl FnOnce(&Message) -> bool) -> Option<Message> {
        let tick = &mut *locked(&self.tick);
        if tick.is_over() {
            return None;
        }
        if tick.inbox.is_empty() {
            if !self.channel.mailbox.take(&mut tick.inbox) {
                return None;
            }
            withdraw(&mut tick.inbox);
        }
        if !tick.inbox.front().is_some_and(wanted) {
            return None;
        }
        tick.delivered += 1;
        tick.inbox.pop_front()
    }
}

/// Takes back work whose cancel waits behind it.
fn withdraw(inbox: &mut VecDeque<Message>) {
    let cancelled: HashSet<u64> = inbox.iter().filter_map(Message::cancels).collect();
    if cancelled.is_empty() {
        return;
    }
    for message in inbox {
        if let Message::Direct { slot, .. } | Message::Claimed { slot, .. } = message
            && cancelled.contains(&slot.0)
        {
            *message = Message::Unbegun { slot: *slot };
        }
    }
}

impl Tick {
    fn is_over(&self) -> bool {
        self.delivered >= TICK_MESSAGES
            || (self.delivered > 0 && self.delivered.is_multiple_of(LOOK_EVERY) && self.began.elapsed() >= TICK_TIME)
    }
}

#[pymethods]
impl Port {
    #[new]
    fn new(py: Python<'_>) -> PyResult<Self> {
        same_process(py)?;
        Ok(Self::on(Channel::new()?))
    }

    /// The descriptor to watch for reading.
    fn fileno(&self) -> i32 {
        self.channel.mailbox.bell().descriptor()
    }

    /// Begins a tick.
    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        let mut tick = locked(&slf.get().tick);
        tick.began = Instant::now();
        tick.delivered = 0;
        drop(tick);
        slf
    }

    /// From now on direct work is begun in here: `task(work(slot, seat, item), **options)`, with a context of its own. What is
    /// delivered of it is `begun` with a task that goes on, or `unstarted` with what was raised where none could be made.
    fn begin_direct(&self, work: Py<PyAny>, task: Py<PyAny>, options: Py<PyDict>, context: Py<PyAny>) {
        let other = locked(&self.starter).replace(Arc::new(Starter { work, task, options, context }));
        drop(other);
    }

    /// The next message; one that cannot be made into objects comes as `undeliverable`, for whoever waits for it.
    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let starter = locked(&self.starter).clone();
        while let Some(message) = self.next(|_| true) {
            if let Some(told) = delivered(py, message, starter.as_deref())? {
                return Ok(Some(told));
            }
        }
        Ok(None)
    }

    /// The next message of the tick, if it is direct work: for a task that has done its own without waiting.
    fn next_direct<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let next = self.next(|message| matches!(message, Message::Direct { .. }));
        next.map_or(Ok(None), |message| delivered(py, message, None))
    }

    /// Drops the future behind a call that nobody awaits any more.
    fn cancel(&self, ticket: u64) {
        let call = locked(&self.channel.calls).remove(&ticket);
        call.into_iter().for_each(Call::give_up);
    }

    /// Nothing is delivered any more; calls under way are dropped.
    fn close(&self) {
        self.channel.close();
        let starter = locked(&self.starter).take(); // it holds the loop's side, which holds this
        drop(starter);
    }
}

impl Drop for Port {
    /// Its loop was closed: nobody reads any more.
    fn drop(&mut self) {
        self.channel.close();
    }
}

impl Message {
    fn cancels(&self) -> Option<u64> {
        match self {
            Message::Cancel { slot, .. } => Some(slot.0),
            _ => None,
        }
    }

    /// Its kind, and the number that its answer or its failure names.
    fn name(&self) -> (&'static str, u64) {
        match self {
            Message::Start { ticket, .. } => ("start", *ticket),
            Message::Employ { ticket, .. } => ("employ", *ticket),
            Message::Stop { ticket, .. } => ("stop", *ticket),
            Message::Claimed { slot, .. } => ("claimed", slot.0),
            Message::Direct { slot, .. } => ("direct", slot.0),
            Message::Unbegun { slot } => ("unbegun", slot.0),
            Message::Cancel { slot, .. } => ("cancel", slot.0),
            Message::Reply { ticket, reply: Reply::Error(_) } => ("error", *ticket),
            Message::Reply { ticket, .. } => ("value", *ticket),
            Message::Ran { number } => ("ran", *number),
            Message::Log(_) => ("log", 0),
            Message::Shutdown => ("shutdown", 0),
        }
    }
}

/// What the loop is told of a message; also of one that cannot be made into objects, for there may be who waits for it.
fn delivered<'py>(
    py: Python<'py>,
    message: Message,
    starter: Option<&Starter>,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    let (kind, number) = message.name();
    let failure = match catch_unwind(AssertUnwindSafe(|| deliver(py, message, starter))) {
        Ok(Ok(told)) => return Ok(told),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "a panic in the bridge".to_owned(),
    };
    (intern!(py, "undeliverable"), number, 0_u64, (kind, failure)).into_pyobject(py).map(Some)
}

/// What the loop is told of a message: nothing of an item that was done while it was begun.
fn deliver<'py>(py: Python<'py>, message: Message, starter: Option<&Starter>) -> PyResult<Option<Bound<'py, PyTuple>>> {
    if let (Message::Direct { slot, seat, item }, Some(starter)) = (&message, starter) {
        let item = item_to_python(py, item)?;
        let told = match starter.start(py, slot.0, *seat, item) {
            Ok(None) => return Ok(None),
            Ok(Some(task)) => (intern!(py, "begun"), slot.0, *seat, task).into_pyobject(py),
            Err(error) => (intern!(py, "unstarted"), slot.0, *seat, error.into_value(py)).into_pyobject(py),
        };
        return told.map(Some);
    }
    as_tuple(py, message).map(Some)
}

fn as_tuple(py: Python<'_>, message: Message) -> PyResult<Bound<'_, PyTuple>> {
    match message {
        Message::Direct { slot, seat, item } => {
            (intern!(py, "direct"), slot.0, seat, item_to_python(py, &item)?).into_pyobject(py)
        }
        Message::Claimed { slot, seat, claimed, about } => {
            let assignment = to_python(py, &about)?;
            assignment.set_item(intern!(py, "item"), item_to_python(py, &claimed.item.work)?)?;
            (intern!(py, "claimed"), slot.0, seat, assignment).into_pyobject(py)
        }
        Message::Unbegun { slot } => (intern!(py, "unbegun"), slot.0, 0_u64, py.None()).into_pyobject(py),
        Message::Cancel { slot, reason } => (intern!(py, "cancel"), slot.0, 0_u64, reason).into_pyobject(py),
        Message::Start { ticket, seat, value } => {
            (intern!(py, "start"), ticket, seat, to_python(py, &value)?).into_pyobject(py)
        }
        Message::Employ { ticket, number, value, ours, theirs } => {
            let value = to_python(py, &value)?;
            (intern!(py, "employ"), ticket, number, (value, ours.into_raw_fd(), theirs.into_raw_fd())).into_pyobject(py)
        }
        Message::Stop { ticket, seat } => (intern!(py, "stop"), ticket, seat, py.None()).into_pyobject(py),
        Message::Reply { ticket, reply } => {
            let (kind, payload) = match reply {
                Reply::Value(value) => (intern!(py, "value"), to_python(py, &value)?),
                Reply::Error(value) => (intern!(py, "error"), to_python(py, &value)?),
                Reply::Handle(handle) => (intern!(py, "value"), Bound::new(py, handle)?.into_any()),
            };
            (kind, ticket, 0_u64, payload).into_pyobject(py)
        }
        Message::Ran { number } => (intern!(py, "ran"), number, 0_u64, py.None()).into_pyobject(py),
        Message::Log(lines) => {
            let lines = lines.into_iter().map(|Line { at, level, logger, text, about }| {
                let about = about.into_iter().map(|(name, value)| (name.into_owned(), value)).collect::<Vec<_>>();
                (at, level, logger.into_owned(), text, about)
            });
            (intern!(py, "log"), 0_u64, 0_u64, lines.collect::<Vec<_>>()).into_pyobject(py)
        }
        Message::Shutdown => (intern!(py, "shutdown"), 0_u64, 0_u64, py.None()).into_pyobject(py),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use tokio::runtime::{Handle as Tokio, Runtime};
    use tokio::sync::oneshot;

    struct World {
        channel: Arc<Channel>,
        runtime: Runtime,
    }

    impl World {
        fn new() -> Self {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
            Self { channel: Channel::new().unwrap(), runtime }
        }

        fn tokio(&self) -> &Tokio {
            self.runtime.handle()
        }

        /// What has come.
        fn replies(&self) -> Vec<Reply> {
            let mut inbox = VecDeque::new();
            self.channel.mailbox.take(&mut inbox);
            let reply = |message| match message {
                Message::Reply { ticket: 1, reply } => reply,
                other => panic!("{other:?}"),
            };
            inbox.into_iter().map(reply).collect()
        }
    }

    fn this_thread() -> Reply {
        Reply::Value(json!(thread::current().name()))
    }

    fn on_a_thread(name: &str, tell: impl FnOnce() + Send + 'static) {
        thread::Builder::new().name(name.to_owned()).spawn(tell).unwrap().join().unwrap();
    }

    #[test]
    fn who_waits_to_be_told_goes_on_where_it_is_told() {
        let world = World::new();
        let (tell, told) = oneshot::channel::<()>();
        world.channel.answer_where_told(world.tokio(), 1, async move {
            told.await.unwrap();
            tokio::task::yield_now().await; // woken while it is at a step
            this_thread()
        });
        assert!(world.replies().is_empty());
        on_a_thread("teller", move || tell.send(()).unwrap());
        assert!(matches!(&world.replies()[..], [Reply::Value(name)] if name == "teller"));
        assert!(locked(&world.channel.calls).is_empty());
    }

    #[test]
    fn what_need_not_wait_is_answered_before_the_call_is_over() {
        let world = World::new();
        world.channel.answer_where_told(world.tokio(), 1, async { this_thread() });
        assert_eq!(world.replies().len(), 1);
        assert!(locked(&world.channel.calls).is_empty());
    }

    #[test]
    fn a_panic_of_who_is_told_is_its_answer_and_does_not_reach_who_tells() {
        let world = World::new();
        let (tell, told) = oneshot::channel::<()>();
        world.channel.answer_where_told(world.tokio(), 1, async move {
            told.await.unwrap();
            panic!("on purpose")
        });
        on_a_thread("teller", move || tell.send(()).unwrap()); // and its thread ends well
        assert!(matches!(&world.replies()[..], [Reply::Error(error)] if error["code"] == codes::CLOSED));
    }

    #[test]
    fn kill_1_an_await_that_is_given_up_drops_what_waits_to_be_told() {
        struct Dropped(Arc<AtomicBool>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let (world, is_dropped) = (World::new(), Arc::new(AtomicBool::new(false)));
        let (tell, told) = oneshot::channel::<()>();
        let dropped = Dropped(Arc::clone(&is_dropped));
        world.channel.answer_where_told(world.tokio(), 1, async move {
            let _dropped = dropped;
            told.await.unwrap();
            this_thread()
        });
        let port = Port::on(Arc::clone(&world.channel));
        port.cancel(1);
        assert!(is_dropped.load(Ordering::SeqCst) && tell.send(()).is_err());
        assert!(world.replies().is_empty());
    }

    #[test]
    fn who_waits_to_be_told_may_have_a_time_limit() {
        let world = World::new();
        let (tell, told) = oneshot::channel::<()>();
        world.channel.answer_where_told(world.tokio(), 1, async move {
            let late = tokio::time::timeout(Duration::from_millis(1), told).await.is_err();
            Reply::Value(json!(late))
        });
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut replies = Vec::new();
        while replies.is_empty() && Instant::now() < deadline {
            thread::yield_now();
            replies = world.replies();
        }
        assert!(matches!(&replies[..], [Reply::Value(late)] if *late == json!(true)));
        drop(tell);
    }
}
