//! A port: the way from any thread of Rust into one asyncio loop. Pushing never takes the GIL; the loop watches the bell
//! with `add_reader`, and takes what has come in ticks that are bounded in items and in time.

use crate::attach::same_process;
use crate::bell::FileBell;
use crate::convert::{item_to_python, to_python};
use crate::log::Line;
use crate::mailbox::Mailbox;
use crate::module::{Handle, runtime};
use crate::sync::locked;
use mnemosyne_core::error::codes;
use mnemosyne_core::{Problem, ProblemKind, WorkItem};
use mnemosyne_runtime::{HostError, Ticket};
use mnemosyne_store::Claimed;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
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
    /// Calls under way, so that a cancelled await drops the future; empty for the moment in which it is spawned.
    calls: Mutex<HashMap<u64, Option<AbortHandle>>>,
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
        for call in calls.into_values().flatten() {
            call.abort();
        }
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
        locked(&self.calls).insert(ticket, None);
        let task = runtime.spawn(async move { answer.give(work.await) });
        if let Some(call) = locked(&self.calls).get_mut(&ticket) {
            *call = Some(task.abort_handle());
        }
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
        if locked(&self.channel.calls).remove(&self.ticket).is_none() {
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
        Self { channel, tick: Mutex::new(tick) }
    }

    fn next(&self) -> Option<Message> {
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

    /// The next message; one that cannot be made into objects comes as `undeliverable`, for whoever waits for it.
    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let Some(message) = self.next() else { return Ok(None) };
        let (kind, number) = message.name();
        let failure = match catch_unwind(AssertUnwindSafe(|| deliver(py, message))) {
            Ok(Ok(tuple)) => return Ok(Some(tuple)),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "a panic in the bridge".to_owned(),
        };
        (intern!(py, "undeliverable"), number, 0_u64, (kind, failure)).into_pyobject(py).map(Some)
    }

    /// Drops the future behind a call that nobody awaits any more.
    fn cancel(&self, ticket: u64) {
        let call = locked(&self.channel.calls).remove(&ticket);
        if let Some(call) = call.flatten() {
            call.abort();
        }
    }

    /// Nothing is delivered any more; calls under way are dropped.
    fn close(&self) {
        self.channel.close();
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

fn deliver(py: Python<'_>, message: Message) -> PyResult<Bound<'_, PyTuple>> {
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
