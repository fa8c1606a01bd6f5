//! What one durable item costs: submit, claim, complete, with so many in flight, on one SQLite store at FULL.
//!
//! `cargo run --release -p mnemosyne-store --example throughput [-- queued]`; with `queued`, 100,000 items with 200,000
//! dependencies are in the store first.

use mnemosyne_core::{AgentRole, Phase, Problem, WorkItem, WorkResult};
use mnemosyne_store::{ClaimRequest, Completion, LEASE_MS, SqliteStore, Store};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let queued = std::env::args().any(|argument| argument == "queued");
    let folder = tempfile::tempdir()?;
    println!("in flight | items/s | item p50 / p99 ms | claim p50 / p99 ms");
    for in_flight in [1, 8, 64, 1_000] {
        let path = folder.path().join(format!("{in_flight}.db"));
        // One worker beside the writer thread: on two cores, two of them were slower than one (12-18k against 19-23k items/s).
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build()?;
        runtime.block_on(async {
            let store = Arc::new(SqliteStore::open(&path)?);
            if queued {
                fill(&store).await?;
            }
            measure(store, in_flight).await
        })?;
    }
    Ok(())
}

fn item(id: String, depends_on: Vec<String>) -> WorkItem {
    WorkItem {
        id,
        description: "nothing".into(),
        phase: Phase::PlanToArtifacts,
        role: AgentRole::Executor,
        priority: 5,
        depends_on,
        file_scope: Vec::new(),
        context: serde_json::Map::new(),
        timeout_seconds: 60.0,
        attempt: 1,
    }
}

/// Half of the items wait for four others each.
async fn fill(store: &Arc<SqliteStore>) -> Result<(), Problem> {
    let begin = Instant::now();
    let mut submitting = Vec::new();
    for number in 0..100_000u64 {
        let depends_on = if number < 50_000 {
            vec![]
        } else {
            (1..=4).map(|back| format!("q-{}", number - back * 10_000)).collect()
        };
        let (store, item) = (Arc::clone(store), item(format!("q-{number}"), depends_on));
        submitting.push(tokio::spawn(async move { store.submit_item(item, None).await }));
    }
    for submission in submitting {
        submission.await.map_err(|error| fail(&error))??;
    }
    println!("100,000 items with 200,000 edges submitted in {:.1} s", begin.elapsed().as_secs_f64());
    Ok(())
}

async fn measure(store: Arc<SqliteStore>, in_flight: usize) -> Result<(), Problem> {
    let (begin, length) = (Instant::now(), Duration::from_secs(4));
    let next = Arc::new(AtomicU64::new(0));
    let workers: Vec<_> =
        (0..in_flight).map(|_| tokio::spawn(work(Arc::clone(&store), Arc::clone(&next), begin + length))).collect();
    let mut times = Vec::new();
    for worker in workers {
        times.extend(worker.await.map_err(|error| fail(&error))??);
    }
    let seconds = begin.elapsed().as_secs_f64();
    let column = |pick: fn(&(f64, f64)) -> f64| {
        let mut column: Vec<f64> = times.iter().map(pick).collect();
        column.sort_by(f64::total_cmp);
        let at = |part: f64| column.get((column.len() as f64 * part) as usize).copied().unwrap_or_default();
        format!("{:.2} / {:.2}", at(0.5), at(0.99))
    };
    let rate = times.len() as f64 / seconds;
    println!("{in_flight:>9} | {rate:>7.0} | {:>17} | {:>18}", column(|time| time.0), column(|time| time.1));
    Ok(())
}

async fn work(store: Arc<SqliteStore>, next: Arc<AtomicU64>, end: Instant) -> Result<Vec<(f64, f64)>, Problem> {
    let mut times = Vec::new();
    while Instant::now() < end {
        let begin = Instant::now();
        let id = format!("i-{}", next.fetch_add(1, Ordering::Relaxed));
        store.submit_item(item(id, vec![]), None).await?;
        let claiming = Instant::now();
        let request = ClaimRequest { role: AgentRole::Executor, agent: "e".into(), generation: 1, lease_ms: LEASE_MS };
        let Some(claimed) = store.claim(request).await? else { continue };
        let claim = claiming.elapsed().as_secs_f64() * 1e3;
        store.complete(Completion::new(&claimed, WorkResult::success(serde_json::Map::new()))).await?;
        times.push((begin.elapsed().as_secs_f64() * 1e3, claim));
    }
    Ok(times)
}

fn fail(error: &tokio::task::JoinError) -> Problem {
    Problem::new(mnemosyne_core::ProblemKind::Store, mnemosyne_core::error::codes::STORE_UNAVAILABLE, error.to_string())
}
