//! The one door into Python (GIL-3), and the only threads that go through it (GIL-1).

use mnemosyne_core::error::codes;
use mnemosyne_core::{Problem, ProblemKind};
use pyo3::prelude::*;
use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Every place that attaches. No catch-all: a new place must be named here, and be inside [`spawn_blocking`] unless it is
/// the caller's own thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// The loop thread, attached for life.
    LoopThread,
    /// A thread of the pool for plain functions, once for each call.
    PlainAgent,
    /// Whoever looks what a stuck loop is doing.
    Witness,
    /// `mnemosyne::python::initialize` and what else a program's own thread asks for.
    Initialize,
}

impl Site {
    /// Every site, in the order of the metrics.
    pub const ALL: [Site; 4] = [Site::LoopThread, Site::PlainAgent, Site::Witness, Site::Initialize];

    /// Its name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Site::LoopThread => "loop_thread",
            Site::PlainAgent => "plain_agent",
            Site::Witness => "witness",
            Site::Initialize => "initialize",
        }
    }

    /// Whether the calling thread is the program's own, and so is none that tokio works on.
    const fn is_the_caller_s(self) -> bool {
        match self {
            Site::Initialize => true,
            Site::LoopThread | Site::PlainAgent | Site::Witness => false,
        }
    }
}

/// How often a site attached, and how long it waited for the interpreter in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Which.
    pub site: Site,
    /// Attaches since the process began.
    pub count: u64,
    /// The sum of the waits.
    pub waited: Duration,
}

#[derive(Default)]
struct Counter {
    count: AtomicU64,
    waited_ns: AtomicU64,
}

static COUNTERS: [Counter; Site::ALL.len()] =
    [const { Counter { count: AtomicU64::new(0), waited_ns: AtomicU64::new(0) } }; Site::ALL.len()];

/// Set once this process is about to leave Python for good: nothing attaches any more.
static OVER: AtomicBool = AtomicBool::new(false);

/// The process that loaded us; 0 before that.
static HOME: AtomicU32 = AtomicU32::new(0);

thread_local! {
    /// Whether this thread is one of [`spawn_blocking`]'s.
    static MAY_ATTACH: Cell<bool> = const { Cell::new(false) };
}

/// Python was never initialised in this process, or is being left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Python is not initialised in this process (at {0:?})")]
pub struct NotInitialized(pub Site);

/// Runs `work` attached.
///
/// # Errors
/// [`NotInitialized`] instead of the panic that attaching to nothing would be, and after [`close`].
///
/// # Panics
/// In debug builds, on a thread that is not made for it: a tokio worker would stand still for as long as Python is busy.
#[allow(clippy::disallowed_methods)] // this is the door that the ban on all others leaves open
pub fn attach<R>(site: Site, work: impl for<'py> FnOnce(Python<'py>) -> R) -> Result<R, NotInitialized> {
    debug_assert!(site.is_the_caller_s() || MAY_ATTACH.get(), "{site:?} attaches outside spawn_blocking (GIL-1)");
    if OVER.load(Ordering::SeqCst) {
        return Err(NotInitialized(site));
    }
    let began = Instant::now();
    Python::try_attach(|py| {
        let counter = &COUNTERS[site as usize];
        counter.count.fetch_add(1, Ordering::Relaxed);
        counter.waited_ns.fetch_add(nanoseconds(began.elapsed()), Ordering::Relaxed);
        work(py)
    })
    .ok_or(NotInitialized(site))
}

pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The metrics of the door; readable without Python.
pub fn usage() -> impl Iterator<Item = Usage> {
    Site::ALL.into_iter().map(|site| {
        let counter = &COUNTERS[site as usize];
        Usage {
            site,
            count: counter.count.load(Ordering::Relaxed),
            waited: Duration::from_nanos(counter.waited_ns.load(Ordering::Relaxed)),
        }
    })
}

/// Shuts the door: whoever attaches from now on is told that Python is gone.
pub(crate) fn close() {
    OVER.store(true, Ordering::SeqCst);
}

/// Runs `work` on a thread that may attach. The runtime behind these threads is ours alone and is never dropped: whoever
/// drops a runtime joins its threads, and a thread that is stuck in somebody's Python code must never be joined.
///
/// # Errors
/// The operating system gives no thread.
pub(crate) fn spawn_blocking(work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    static THREADS: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let threads = THREADS.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.thread_name("mnemosyne-python").max_blocking_threads(MOST_THREADS);
        builder.build().map_err(|error| error.to_string())
    });
    threads.as_ref().map_err(Clone::clone)?.spawn_blocking(|| {
        MAY_ATTACH.set(true);
        work();
    });
    Ok(())
}

/// Loops, the pool for plain functions, and those of either that are stuck and were left behind.
const MOST_THREADS: usize = 128;

/// Remembers which process this is.
pub(crate) fn settle_here() {
    let _ = HOME.compare_exchange(0, std::process::id(), Ordering::Relaxed, Ordering::Relaxed);
}

/// Whether this process is a fork of the one that loaded us. Its threads are gone, and locks may be held for ever.
pub(crate) fn is_a_fork() -> bool {
    let home = HOME.load(Ordering::Relaxed);
    home != 0 && home != std::process::id()
}

/// What a forked process is told; every call that would need a thread of ours asks first.
pub(crate) fn forked() -> Problem {
    Problem::new(ProblemKind::Environment, codes::FORKED, "mnemosyne was started before this process was forked")
        .because("a fork has none of its parent's threads, so nothing would ever answer")
        .hint("start processes with the \"spawn\" method, or import mnemosyne after the fork")
}

/// # Errors
/// [`forked`], as the exception that Python knows.
pub(crate) fn same_process(py: Python<'_>) -> PyResult<()> {
    if is_a_fork() { raise(py, &forked()) } else { Ok(()) }
}

/// For calls that need the agents' loop.
///
/// # Errors
/// As [`same_process`]; and `Closed` once Python's exit hook has run.
pub(crate) fn still_open(py: Python<'_>) -> PyResult<()> {
    same_process(py)?;
    if !OVER.load(Ordering::SeqCst) {
        return Ok(());
    }
    raise(py, &Problem::new(ProblemKind::Closed, codes::CLOSED, "this process is about to end: its agents are gone"))
}

fn raise(py: Python<'_>, problem: &Problem) -> PyResult<()> {
    let problem = serde_json::to_value(problem).unwrap_or_default();
    let wire = crate::convert::to_python(py, &problem)?;
    let error = py.import("mnemosyne.errors")?.getattr("from_wire")?.call1((wire,))?;
    Err(PyErr::from_value(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "outside spawn_blocking")]
    fn gil_1_a_thread_that_is_not_made_for_it_is_caught_when_it_attaches() {
        let _ = attach(Site::LoopThread, |_| ());
    }
}
