//! The load of `make bench-bridge`: tokio tasks that push work through the bridge and wait for its end. Compiled into the
//! wheel that is measured (feature `bench`) and into no other; what it drives is the code of every build.

use crate::host::PythonHost;
use crate::module::runtime;
use crate::port::{Port, Reply};
use mnemosyne_core::{AgentRole, Problem, ProblemKind, WorkItem, error::codes};
use mnemosyne_runtime::{
    AgentHandle, AgentHost, AgentSource, AgentSpec, AgentStart, Assignment, Outcome, RoleSpec, Tree, TreeConfig, Work,
    WorkKey,
};
use mnemosyne_store::{MemoryStore, Store};
use pyo3::prelude::*;
use serde::Deserialize;
use serde_json::json;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// One case.
#[derive(Deserialize)]
struct Load {
    /// The key of a registered class.
    agent: String,
    /// Whether the work goes through the agent's supervisor and actor, as `send_work` does, or straight into the host.
    supervised: bool,
    in_flight: u32,
    items: u64,
    /// Sent again and again; it becomes Python objects each time.
    item: WorkItem,
}

/// Drives one case; answered on `port` with `{seconds, p50_us, p99_us}`.
#[pyfunction]
pub(crate) fn bench_bridge(port: &Port, ticket: u64, load: &Bound<'_, PyAny>) -> PyResult<()> {
    let load: Result<Load, _> = serde_json::from_value(crate::convert::from_python(load)?);
    port.channel.answer(runtime()?.handle(), ticket, async move {
        match load {
            Ok(load) => drive(load).await.unwrap_or_else(Reply::from),
            Err(error) => failed(error).into(),
        }
    });
    Ok(())
}

fn failed(error: impl ToString) -> Problem {
    Problem::new(ProblemKind::Agent, codes::AGENT, error.to_string())
}

async fn drive(load: Load) -> Result<Reply, Problem> {
    let spec = AgentSpec {
        source: AgentSource::Registered(load.agent.clone()),
        in_flight: load.in_flight,
        ..AgentSpec::import("")
    };
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let host = PythonHost::launch(&Handle::current(), Arc::clone(&store), None).await.map_err(failed)?;
    let way = if load.supervised {
        let roles = vec![RoleSpec::pool(AgentRole::Executor, spec, 1)];
        let tree = Tree::start(TreeConfig { store, roles, claims: false }).await?;
        host.serve(&tree);
        let agent = tree.agents().pop().ok_or_else(|| failed("the tree has no agent"))?;
        Way::Supervised(Box::new((tree, agent)))
    } else {
        let start = AgentStart { agent_id: "executor-1".to_owned(), role: AgentRole::Executor, generation: 1, spec };
        host.start(start).await.map_err(failed)?;
        Way::Host(host)
    };
    let reply = measure(Arc::new(way), &load).await;
    Ok(Reply::Value(reply))
}

enum Way {
    Host(PythonHost),
    Supervised(Box<(Tree, AgentHandle)>),
}

impl Way {
    async fn go(&self, item: &Arc<WorkItem>) -> bool {
        match self {
            Way::Host(host) => {
                let (ended, end) = oneshot::channel();
                let work = Work::Direct(Arc::clone(item));
                let assignment = Assignment { key: WorkKey(0), agent_id: "executor-1".to_owned(), generation: 1, work };
                host.submit(assignment, Box::new(move |outcome| drop(ended.send(outcome))));
                matches!(end.await, Ok(Outcome::Result(result)) if result.success)
            }
            Way::Supervised(both) => {
                both.1.send_work(WorkItem::clone(item), None).await.is_ok_and(|result| result.success)
            }
        }
    }
}

async fn measure(way: Arc<Way>, load: &Load) -> serde_json::Value {
    let left = Arc::new(AtomicU64::new(load.items));
    let item = Arc::new(load.item.clone());
    let began = Instant::now();
    let mut drivers = Vec::new();
    for _ in 0..load.in_flight {
        let (way, left, item) = (Arc::clone(&way), Arc::clone(&left), Arc::clone(&item));
        drivers.push(tokio::spawn(async move {
            let mut took = Vec::new();
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                let sent = Instant::now();
                let succeeded = way.go(&item).await;
                assert!(succeeded, "an item of the benchmark failed");
                took.push(sent.elapsed());
            }
            took
        }));
    }
    let mut took = Vec::new();
    let mut failures = 0;
    for driver in drivers {
        match driver.await {
            Ok(times) => took.extend(times),
            Err(_) => failures += 1,
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    if let Way::Host(host) = &*way {
        host.stop("executor-1", 1).await;
    }
    if let Way::Supervised(both) = &*way {
        both.0.shutdown().await;
    }
    took.sort_unstable();
    json!({"items": took.len(), "failures": failures, "seconds": seconds,
           "p50_us": percentile(&took, 50), "p99_us": percentile(&took, 99)})
}

fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).map_or(0.0, |took| took.as_secs_f64() * 1e6)
}

/// Two threads of Rust that wake each other: what a wake-up costs here, whatever the glue. `(seconds, p50_us, p99_us)`.
///
/// `apart`: each on a core of its own, as the two sides of a bridge are while both work. Left alone, two threads of which
/// one always sleeps end up on one core, where a hand-over is a mere switch and wakes no core.
#[pyfunction]
pub(crate) fn bench_ping_pong(py: Python<'_>, rounds: usize, apart: bool) -> (f64, f64, f64) {
    py.detach(|| ping_pong(rounds, apart))
}

fn ping_pong(rounds: usize, apart: bool) -> (f64, f64, f64) {
    let ball = Arc::new((Mutex::new(0_usize), Condvar::new()));
    let other = Arc::clone(&ball);
    // The ball is odd on the other side, even on this one.
    let pong = std::thread::spawn(move || {
        keep_to(apart.then_some(1));
        (0..rounds).for_each(|_| hit(&other, 1));
    });
    let ping = std::thread::spawn(move || {
        keep_to(apart.then_some(0));
        let mut took = Vec::with_capacity(rounds);
        let began = Instant::now();
        for _ in 0..rounds {
            let sent = Instant::now();
            hit(&ball, 0);
            let (count, changed) = &*ball;
            let held = count.lock().unwrap_or_else(PoisonError::into_inner);
            drop(changed.wait_while(held, |count| *count % 2 == 1));
            took.push(sent.elapsed());
        }
        (began.elapsed().as_secs_f64(), took)
    });
    let (seconds, mut took) = ping.join().unwrap_or_default();
    let _ = pong.join();
    took.sort_unstable();
    (seconds, percentile(&took, 50), percentile(&took, 99))
}

/// Keeps the calling thread to one core, where the system can do that.
fn keep_to(core: Option<usize>) {
    #[cfg(target_os = "linux")]
    if let Some(core) = core {
        // SAFETY: the set is a plain value that lives over the call, and its size is given with it. A core that does not
        // exist is refused, and then the thread runs where it would have.
        #[allow(unsafe_code)]
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(core, &mut set);
            libc::sched_setaffinity(0, std::mem::size_of_val(&set), &raw const set);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = core;
}

/// Waits until the ball is on this side, and sends it to the other.
fn hit(ball: &(Mutex<usize>, Condvar), side: usize) {
    let (count, changed) = ball;
    let held = count.lock().unwrap_or_else(PoisonError::into_inner);
    let mut held = changed.wait_while(held, |count| *count % 2 != side).unwrap_or_else(PoisonError::into_inner);
    *held += 1;
    drop(held);
    changed.notify_one();
}
