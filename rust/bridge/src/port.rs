//! A mailbox from any thread of Rust into one asyncio loop. Pushing never takes the GIL: a message goes into a queue, and
//! at the edge from empty to non-empty one byte goes into a socket that the loop watches with `add_reader`.

use crate::convert::to_python;
use crate::module::Handle;
use mnemosyne_core::error::codes;
use mnemosyne_core::{Problem, ProblemKind};
use mnemosyne_runtime::HostError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::task::AbortHandle;

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

/// What travels into the loop. Serialisable but for `Reply::Handle`, so that a worker process can speak it too.
#[derive(Debug)]
pub(crate) enum Message {
    /// Make an agent; answered by `AgentLoop.started(ticket, ...)`.
    Start { ticket: u64, value: Value },
    /// Forget an agent; answered by `AgentLoop.started(ticket, None)`.
    Stop { ticket: u64, value: Value },
    /// Do this; answered by `AgentLoop.completed`.
    Work { key: u64, value: Value },
    /// Cancel that.
    Cancel { key: u64, reason: String },
    /// The answer to a call of this loop.
    Reply { ticket: u64, reply: Reply },
    /// End the loop.
    Shutdown,
}

/// The shared part, reachable from both sides.
pub(crate) struct Mailbox {
    queue: Mutex<Queue>,
    /// Rust's end: written at the edge from empty to non-empty.
    bell: UnixStream,
    /// Python's end: watched by the loop, emptied by `drain`.
    ear: UnixStream,
    /// Calls under way, so that a cancelled await drops the future; empty for the moment in which it is spawned.
    calls: Mutex<HashMap<u64, Option<AbortHandle>>>,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<Message>,
    closed: bool,
}

/// A poisoned lock here holds nothing half-done: every critical section is one push, pop or insert.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mailbox {
    pub(crate) fn new() -> std::io::Result<Arc<Self>> {
        let (bell, ear) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        ear.set_nonblocking(true)?;
        Ok(Arc::new(Self { queue: Mutex::default(), bell, ear, calls: Mutex::default() }))
    }

    /// False if nobody will ever read it.
    pub(crate) fn push(&self, message: Message) -> bool {
        let mut queue = locked(&self.queue);
        if queue.closed {
            return false;
        }
        let was_empty = queue.messages.is_empty();
        queue.messages.push_back(message);
        drop(queue);
        if was_empty {
            // A full socket means that a byte is waiting to be read: the loop will wake.
            let _ = (&self.bell).write(&[1]);
        }
        true
    }

    fn take(&self, limit: usize) -> Vec<Message> {
        let mut byte = [0u8; 64];
        while matches!((&self.ear).read(&mut byte), Ok(count) if count > 0) {}
        let mut queue = locked(&self.queue);
        let count = limit.min(queue.messages.len());
        let messages = queue.messages.drain(..count).collect();
        if !queue.messages.is_empty() {
            let _ = (&self.bell).write(&[1]);
        }
        messages
    }

    pub(crate) fn close(&self) {
        let messages = {
            let mut queue = locked(&self.queue);
            queue.closed = true;
            std::mem::take(&mut queue.messages)
        };
        drop(messages);
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
        let answer = Answer { mailbox: Arc::clone(self), ticket, reply: None };
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
    mailbox: Arc<Mailbox>,
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
        if locked(&self.mailbox.calls).remove(&self.ticket).is_none() {
            return; // cancelled: nobody waits
        }
        let reply = self.reply.take().unwrap_or_else(|| {
            Problem::new(ProblemKind::Closed, codes::CLOSED, "the call was given up before it was answered").into()
        });
        self.mailbox.push(Message::Reply { ticket: self.ticket, reply });
    }
}

/// The Python side of a mailbox.
#[pyclass(frozen, module = "mnemosyne._core")]
pub(crate) struct Port {
    pub(crate) mailbox: Arc<Mailbox>,
}

#[pymethods]
impl Port {
    #[new]
    fn new() -> PyResult<Self> {
        Ok(Self { mailbox: Mailbox::new()? })
    }

    /// The descriptor to watch for reading.
    fn fileno(&self) -> i32 {
        self.mailbox.ear.as_raw_fd()
    }

    /// At most `limit` messages as `(kind, id, payload)`; the descriptor stays readable if more wait.
    fn drain<'py>(&self, py: Python<'py>, limit: usize) -> PyResult<Bound<'py, PyList>> {
        let messages = self.mailbox.take(limit);
        let list = PyList::empty(py);
        for message in messages {
            list.append(convert(py, message)?)?;
        }
        Ok(list)
    }

    /// Drops the future behind a call that nobody awaits any more.
    fn cancel(&self, ticket: u64) {
        let call = locked(&self.mailbox.calls).remove(&ticket);
        if let Some(call) = call.flatten() {
            call.abort();
        }
    }

    /// Nothing is delivered any more; calls under way are dropped.
    fn close(&self) {
        self.mailbox.close();
    }
}

impl Drop for Port {
    /// Its loop was closed: nobody reads any more.
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

fn convert(py: Python<'_>, message: Message) -> PyResult<Bound<'_, PyTuple>> {
    let (kind, id, payload) = match message {
        Message::Start { ticket, value } => ("start", ticket, to_python(py, &value)?),
        Message::Stop { ticket, value } => ("stop", ticket, to_python(py, &value)?),
        Message::Work { key, value } => ("work", key, to_python(py, &value)?),
        Message::Cancel { key, reason } => ("cancel", key, reason.into_pyobject(py)?.into_any()),
        Message::Reply { ticket, reply: Reply::Value(value) } => ("value", ticket, to_python(py, &value)?),
        Message::Reply { ticket, reply: Reply::Error(value) } => ("error", ticket, to_python(py, &value)?),
        Message::Reply { ticket, reply: Reply::Handle(handle) } => {
            ("value", ticket, Bound::new(py, handle)?.into_any())
        }
        Message::Shutdown => ("shutdown", 0, py.None().into_bound(py)),
    };
    (kind, id, payload).into_pyobject(py)
}
