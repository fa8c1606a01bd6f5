//! Agents in processes of their own, as this process holds them: a socket each, and the way to kill what is behind it.
//!
//! The guard starts the process (`guard.py`), Python writes its first frame, which holds what is secret, and from then on
//! the socket is ours: no message of a worker waits for this process's interpreter or for its agents' loop. All sockets
//! share one thread. A frame is a length (32 bits, big end first) and a JSON array `[kind, number, payload]`; the kinds
//! are those of [`Message`](crate::port::Message) and of `AgentLoop`, because the other end is the same loop.
//!
//! - **KILL-1** Work that was abandoned ends with its process: SIGTERM, then SIGKILL. Whatever the process had started
//!   ends with it, because its keeper is the subreaper of all of it.
//! - **FENCE-1** An upcall carries its claim as everywhere; a process that lives on for a moment changes nothing.
//! - A process that ends by itself, or whose loop is silent for 30 s, is a crash of what it held; one that we end is not.

use crate::host::HostInner;
use crate::loop_thread::{Said, read_said};
use crate::port::{Message, Reply};
use crate::sync::locked;
use crate::upcall::{notify, tree_is_gone, upcall};
use mnemosyne_core::error::codes;
use mnemosyne_core::{Problem, ProblemKind};
use mnemosyne_runtime::{Done, HostError, Outcome};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

/// From the order to start it until its agent is made; an import of the SDK on a busy machine takes seconds.
pub(crate) const START_DEADLINE: Duration = Duration::from_secs(30);
/// Between SIGTERM and SIGKILL. With the grace of the work before it this is less than a second.
const TERM_GRACE: Duration = Duration::from_millis(300);
/// For an agent that is stopped to close what it holds, before SIGTERM.
const STOP_GRACE: Duration = Duration::from_millis(2_500);
/// A loop that is silent for so long is dead: five times what makes it suspect elsewhere is no hiccup.
const DEAD_AFTER: Duration = Duration::from_secs(30);
/// How long a process that has ended is waited for to say why; nothing that it started lives by then.
const EXIT_PATIENCE: Duration = Duration::from_secs(1);
/// A frame that is longer is no message of ours.
const LONGEST_FRAME: usize = 256 << 20;
/// Readers of JSON stop at 128 levels, so that a value cannot end their stack.
const DEEPEST: usize = 100;

/// How a process ended: its exit code, negative for a signal, and the end of what it wrote to standard error.
pub(crate) type Exit = (Option<i32>, String);

/// One worker process.
pub(crate) struct Worker {
    pub(crate) pid: u32,
    /// Names this very process, also after its id was given to another.
    process: OwnedFd,
    /// Frames on their way out; closed when the process is gone.
    outgoing: mpsc::UnboundedSender<Vec<u8>>,
    /// Work that it has, by ticket.
    jobs: Mutex<HashMap<u64, Done>>,
    /// Upcalls under way, so that an await that is given up drops the future; empty while one is spawned.
    calls: Mutex<HashMap<u64, Option<AbortHandle>>>,
    beat: Mutex<Instant>,
    /// The socket has ended: what is handed over now was never begun.
    closed: AtomicBool,
    fate: Mutex<Fate>,
    /// Filled when the process is gone and its work has been answered for.
    pub(crate) gone: watch::Sender<Option<HostError>>,
    host: Weak<HostInner>,
    /// Waits for the agent to be made.
    started: Mutex<Option<oneshot::Sender<Result<(), HostError>>>>,
}

/// Who ended it.
enum Fate {
    /// Nobody.
    Lives,
    /// We did, and its work is nobody's fault.
    Dismissed,
    /// We did, because of what it did.
    Condemned(String),
}

/// The one thread of all sockets; it never attaches and is never dropped.
fn sockets() -> Result<&'static Runtime, HostError> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let built = RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let built = builder.worker_threads(1).thread_name("mnemosyne-workers").enable_all().build();
        built.map_err(|error| error.to_string())
    });
    built.as_ref().map_err(|error| HostError::new("OSError", error.clone(), false))
}

impl Worker {
    /// Takes over the socket of a process that was just started, and waits until its agent is made.
    pub(crate) async fn begin(
        pid: u32,
        socket: std::os::unix::net::UnixStream,
        exit: oneshot::Receiver<Exit>,
        host: Weak<HostInner>,
    ) -> Result<Arc<Worker>, HostError> {
        let os_error = |error: std::io::Error| HostError::new("OSError", error.to_string(), false);
        let id = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let id = id.ok_or_else(|| HostError::new("OSError", format!("{pid} is no process id"), false))?;
        let process = pidfd_open(id, PidfdFlags::empty()).map_err(|error| os_error(error.into()))?;
        socket.set_nonblocking(true).map_err(os_error)?;
        let runtime = sockets()?;
        let entered = runtime.enter();
        let (incoming, writer) = UnixStream::from_std(socket).map_err(os_error)?.into_split();
        drop(entered);
        let (outgoing, frames) = mpsc::unbounded_channel();
        let (started, is_started) = oneshot::channel();
        let worker = Arc::new(Worker {
            pid,
            process,
            outgoing,
            jobs: Mutex::default(),
            calls: Mutex::default(),
            beat: Mutex::new(Instant::now()),
            closed: AtomicBool::new(false),
            fate: Mutex::new(Fate::Lives),
            gone: watch::Sender::new(None),
            host,
            started: Mutex::new(Some(started)),
        });
        runtime.spawn(write(writer, frames));
        runtime.spawn(serve(Arc::clone(&worker), incoming, exit));
        let hired = Hired(Some(worker));
        is_started
            .await
            .unwrap_or_else(|_| Err(HostError::new("WorkerCrashed", "it ended while it started", false)))?;
        Ok(hired.keep())
    }

    /// How long ago its loop was seen alive.
    pub(crate) fn beat_age(&self) -> Duration {
        locked(&self.beat).elapsed()
    }

    /// Hands over work. A process that is gone loses it, which charges nobody.
    pub(crate) fn submit(&self, ticket: u64, kind: &str, payload: &Value, done: Done) {
        let frame = match frame(kind, ticket, payload) {
            Ok(frame) => frame,
            Err(reason) => return done(Outcome::Raised(HostError::new("ValueError", reason, false))),
        };
        locked(&self.jobs).insert(ticket, done);
        if self.outgoing.send(frame).is_err() || self.closed.load(Ordering::SeqCst) {
            let lost = locked(&self.jobs).remove(&ticket);
            drop(lost);
        }
    }

    pub(crate) fn cancel(&self, ticket: u64, reason: &str) {
        self.send("cancel", ticket, &json!(reason));
    }

    /// Asks the agent to close, and sees to it that the process ends; returns when it has.
    pub(crate) async fn stop(self: Arc<Self>) {
        let mut gone = self.gone.subscribe();
        self.settle_fate(Fate::Dismissed);
        self.send("shutdown", 0, &Value::Null);
        if tokio::time::timeout(STOP_GRACE, gone.wait_for(Option::is_some)).await.is_err() {
            self.kill();
            let _ = gone.wait_for(Option::is_some).await;
        }
    }

    /// Ends the process now: what it does did not stop, or nobody wants it any more.
    pub(crate) fn dismiss(self: &Arc<Self>) {
        self.settle_fate(Fate::Dismissed);
        self.kill();
    }

    /// The first reason stands.
    fn settle_fate(&self, settled: Fate) {
        let fate = &mut *locked(&self.fate);
        if matches!(fate, Fate::Lives) {
            *fate = settled;
        }
    }

    /// SIGTERM, then SIGKILL; the keeper of the process then ends what is left of its session and of its daemons.
    fn kill(self: &Arc<Self>) {
        self.signal(Signal::TERM);
        let worker = Arc::clone(self);
        if let Ok(runtime) = sockets() {
            runtime.spawn(async move {
                tokio::time::sleep(TERM_GRACE).await;
                worker.signal(Signal::KILL);
            });
        }
    }

    fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.process, signal); // one that is gone needs none
    }

    fn send(&self, kind: &str, number: u64, payload: &Value) {
        if let Ok(frame) = frame(kind, number, payload) {
            let _ = self.outgoing.send(frame); // nobody reads it any more
        }
    }

    /// What the other end said.
    fn receive(self: &Arc<Self>, bytes: &[u8]) -> Result<(), String> {
        let read = serde_json::from_slice::<(String, u64, Value)>(bytes);
        let (kind, number, payload) = read.map_err(|error| format!("it sent what cannot be read: {error}"))?;
        match kind.as_str() {
            "completed" => self.completed(number, read_said(payload)),
            "upcall" => self.upcall(number, payload),
            "withdraw" => {
                let call = locked(&self.calls).remove(&number);
                if let Some(call) = call.flatten() {
                    call.abort();
                }
            }
            "notify" => {
                if let Some(host) = self.host.upgrade() {
                    notify(&host, &payload);
                }
            }
            "beat" => *locked(&self.beat) = Instant::now(),
            "log" => {
                if let (Some(host), Ok(lines)) = (self.host.upgrade(), serde_json::from_value(payload)) {
                    host.push(Message::Log(lines));
                }
            }
            "started" => self.is_started(match payload {
                Value::Null => Ok(()),
                error => Err(serde_json::from_value(error).map_err(|error| error.to_string())?),
            }),
            other => return Err(format!("it sent a message of kind {other:?}")),
        }
        Ok(())
    }

    fn is_started(&self, result: Result<(), HostError>) {
        let waiting = locked(&self.started).take();
        if let Some(waiting) = waiting {
            let _ = waiting.send(result);
        }
    }

    fn completed(&self, ticket: u64, said: Said) {
        let done = locked(&self.jobs).remove(&ticket);
        let outcome = match said.into() {
            // What it keeps, it keeps there: here the number would name another's exception.
            Outcome::Raised(error) => Outcome::Raised(HostError { token: None, ..error }),
            outcome => outcome,
        };
        if let Some(done) = done {
            done(outcome);
        }
    }

    fn upcall(self: &Arc<Self>, ticket: u64, request: Value) {
        let Some(host) = self.host.upgrade() else { return self.reply(ticket, tree_is_gone().into()) };
        let runtime = host.runtime.clone();
        let _entered = runtime.enter();
        let mut work = Box::pin(upcall(host, request));
        // The first poll puts it into the store's queue: here, in the order of the calls.
        if let Poll::Ready(reply) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return self.reply(ticket, reply);
        }
        // The entry is there before the task can end.
        locked(&self.calls).insert(ticket, None);
        let worker = Arc::clone(self);
        let task = runtime.spawn(async move {
            let reply = work.await;
            if locked(&worker.calls).remove(&ticket).is_some() {
                worker.reply(ticket, reply);
            }
        });
        if let Some(call) = locked(&self.calls).get_mut(&ticket) {
            *call = Some(task.abort_handle());
        }
    }

    fn reply(&self, ticket: u64, reply: Reply) {
        let (kind, value) = match reply {
            Reply::Value(value) => ("value", value),
            Reply::Error(value) => ("error", value),
            Reply::Handle(_) => return, // no upcall answers with one
        };
        match frame(kind, ticket, &value) {
            Ok(frame) => drop(self.outgoing.send(frame)),
            Err(reason) => self.send("error", ticket, &json!(Problem::new(ProblemKind::Agent, codes::AGENT, reason))),
        }
    }

    /// The socket has ended. Returns the work that the process had; what comes later finds the door shut.
    fn close(&self) -> HashMap<u64, Done> {
        self.closed.store(true, Ordering::SeqCst);
        std::mem::take(&mut *locked(&self.jobs))
    }

    /// The process is gone: its work is answered for, then whoever watches is told.
    fn ended(&self, jobs: HashMap<u64, Done>, exit: Option<Exit>) {
        let (code, output) = exit.unwrap_or_default();
        let fate = std::mem::replace(&mut *locked(&self.fate), Fate::Dismissed);
        let mut error = HostError::new("WorkerCrashed", describe(&fate, code), false);
        error.traceback = output;
        let calls = std::mem::take(&mut *locked(&self.calls));
        calls.into_values().flatten().for_each(|call| call.abort());
        self.is_started(Err(error.clone()));
        for done in jobs.into_values() {
            match fate {
                Fate::Dismissed => drop(done),
                Fate::Lives | Fate::Condemned(_) => done(Outcome::Crashed(error.clone())),
            }
        }
        self.gone.send_replace(Some(error));
    }
}

/// A process that nobody took over is ended.
struct Hired(Option<Arc<Worker>>);

impl Hired {
    fn keep(mut self) -> Arc<Worker> {
        self.0.take().expect("it is taken once")
    }
}

impl Drop for Hired {
    fn drop(&mut self) {
        if let Some(worker) = &self.0 {
            worker.dismiss();
        }
    }
}

fn describe(fate: &Fate, code: Option<i32>) -> String {
    match (fate, code) {
        (Fate::Condemned(reason), _) => format!("its process was ended: {reason}"),
        (_, Some(code)) if code < 0 => format!("its process was ended by signal {}", -code),
        (_, Some(code)) => format!("its process ended with exit code {code}"),
        (_, None) => "its process was ended".to_owned(),
    }
}

/// One message with its length before it.
///
/// # Errors
/// The other end could not read it.
pub(crate) fn frame(kind: &str, number: u64, payload: &Value) -> Result<Vec<u8>, String> {
    if is_deeper(payload, DEEPEST) {
        return Err(format!("the value is nested deeper than {DEEPEST} levels, which a worker process cannot take"));
    }
    let body = serde_json::to_vec(&(kind, number, payload)).map_err(|error| error.to_string())?;
    match u32::try_from(body.len()) {
        Ok(length) if body.len() <= LONGEST_FRAME => Ok([&length.to_be_bytes()[..], &body].concat()),
        _ => Err(format!("the value is {} MiB, and at most {} pass", body.len() >> 20, LONGEST_FRAME >> 20)),
    }
}

fn is_deeper(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels == 0 || items.iter().any(|item| is_deeper(item, levels - 1)),
        Value::Object(entries) => levels == 0 || entries.values().any(|entry| is_deeper(entry, levels - 1)),
        _ => false,
    }
}

async fn write(mut socket: OwnedWriteHalf, mut frames: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(frame) = frames.recv().await {
        if socket.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// Reads what the process says until it is gone, and watches its heartbeat.
async fn serve(worker: Arc<Worker>, mut socket: OwnedReadHalf, exit: oneshot::Receiver<Exit>) {
    let problem = tokio::select! {
        problem = listen(&worker, &mut socket) => problem,
        problem = silence(&worker) => Some(problem),
    };
    if let Some(reason) = problem {
        worker.settle_fate(Fate::Condemned(reason));
        worker.kill();
        let mut rest = Vec::new();
        // Its end is the end of the socket.
        let _ = tokio::time::timeout(TERM_GRACE + EXIT_PATIENCE, socket.read_to_end(&mut rest)).await;
    }
    let jobs = worker.close();
    let exit = tokio::time::timeout(EXIT_PATIENCE, exit).await.ok().and_then(Result::ok);
    worker.ended(jobs, exit);
}

/// Returns at the end of the socket, or with what is wrong with what came.
async fn listen(worker: &Arc<Worker>, socket: &mut OwnedReadHalf) -> Option<String> {
    loop {
        let length = socket.read_u32().await.ok()? as usize;
        if length > LONGEST_FRAME {
            return Some(format!("it sent a message of {length} bytes"));
        }
        let mut body = Vec::new();
        let read = (&mut *socket).take(length as u64).read_to_end(&mut body).await.ok()?;
        if read < length {
            return None;
        }
        if let Err(reason) = worker.receive(&body) {
            return Some(reason);
        }
    }
}

/// Returns when the loop of the process has been silent for too long.
async fn silence(worker: &Worker) -> String {
    loop {
        let left = DEAD_AFTER.saturating_sub(worker.beat_age());
        if left.is_zero() {
            return format!("its loop did nothing for {} s", DEAD_AFTER.as_secs());
        }
        tokio::time::sleep(left).await;
    }
}
