//! What one durable item costs: submit, claim, complete, with so many in flight, on one SQLite store at FULL.
//!
//! `cargo run --release -p mnemosyne-store --example throughput [-- queued | retention]`
//!
//! - `queued`: 100,000 items with 200,000 dependencies are in the store first; also the peak of memory, and how long the
//!   store takes to open after its process was killed with all of them in it.
//! - `retention`: claims of 64 in flight while 100,000 finished items are forgotten in the background, beside the same
//!   without.

use mnemosyne_core::{AgentRole, Phase, Problem, WorkItem, WorkResult};
use mnemosyne_store::retention::{Pace, forget};
use mnemosyne_store::{ClaimRequest, Completion, LEASE_MS, SqliteStore, Store};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = tempfile::tempdir()?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => table(folder.path(), None),
        ["queued"] => {
            let filled = folder.path().join("filled.db");
            start_up(&filled)?;
            table(folder.path(), Some(&filled))?;
            println!("peak of memory: {:.0} MB", peak_megabytes()?);
            Ok(())
        }
        ["retention"] => retention(&folder.path().join("store.db")),
        ["fill-and-die", path] => fill_and_die(Path::new(path)),
        _ => Err("throughput [queued | retention]".into()),
    }
}

/// One worker beside the writer thread: on two cores, two of them were slower than one (12-18k against 19-23k items/s).
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build()
}

fn table(folder: &Path, filled: Option<&Path>) -> Outcome<()> {
    println!("in flight | items/s | item p50 / p99 ms | claim p50 / p99 ms");
    for in_flight in [1, 8, 64, 1_000] {
        let path = folder.join(format!("{in_flight}.db"));
        if let Some(filled) = filled {
            std::fs::copy(filled, &path)?;
        }
        let store = Arc::new(SqliteStore::open(&path)?);
        let (rate, item, claim) = runtime()?.block_on(measure(store, in_flight, Duration::from_secs(4)))?;
        println!("{in_flight:>9} | {rate:>7.0} | {item:>17} | {claim:>18}");
    }
    Ok(())
}

/// A process fills the store and kills itself; then the store is opened, five times over.
fn start_up(path: &Path) -> Outcome<()> {
    let begin = Instant::now();
    let child = std::process::Command::new(std::env::current_exe()?).arg("fill-and-die").arg(path).status()?;
    assert!(!child.success(), "it was to die");
    println!("100,000 items with 200,000 edges submitted in {:.1} s", begin.elapsed().as_secs_f64());
    let saved = path.with_file_name("saved");
    for suffix in ["", "-wal"] {
        std::fs::copy(with_suffix(path, suffix), with_suffix(&saved, suffix))?;
    }
    let mut times = Vec::new();
    for _ in 0..5 {
        for suffix in ["", "-wal"] {
            std::fs::copy(with_suffix(&saved, suffix), with_suffix(path, suffix))?;
        }
        let begin = Instant::now();
        let store = SqliteStore::open(path)?;
        times.push(begin.elapsed().as_secs_f64() * 1e3);
        drop(store);
    }
    times.sort_by(f64::total_cmp);
    let bytes = std::fs::metadata(path)?.len() as f64 / 1e6;
    println!("opened after the kill in {:.0} ms (median of 5, {bytes:.0} MB)", times[2]);
    Ok(())
}

fn with_suffix(path: &Path, suffix: &str) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn fill_and_die(path: &Path) -> Outcome<()> {
    let store = Arc::new(SqliteStore::open(path)?);
    runtime()?.block_on(fill(&store))?;
    std::process::abort()
}

fn retention(path: &Path) -> Outcome<()> {
    let store = Arc::new(SqliteStore::open(path)?);
    let runtime = runtime()?;
    runtime.block_on(async {
        let ended = finish(&store, 100_000).await?;
        let length = Duration::from_secs(4);
        let (_, _, alone) = measure(Arc::clone(&store), 64, length).await?;
        let (begin, pruned) = (Instant::now(), Arc::clone(&store));
        let pruning = tokio::spawn(async move { forget(pruned.as_ref(), ended, false, Pace::Background).await });
        let (_, _, beside) = measure(Arc::clone(&store), 64, length).await?;
        println!("claim p50 / p99 ms at 64 in flight: {alone} alone, {beside} while items are forgotten");
        let pruned = pruning.await.map_err(|error| fail(&error))??;
        let seconds = begin.elapsed().as_secs_f64();
        println!("{} items and {} events forgotten in {seconds:.1} s", pruned.items, pruned.events);
        Ok(())
    })
}

/// So many items that are done; the time after which nothing of them ended.
async fn finish(store: &Arc<SqliteStore>, items: u64) -> Outcome<i64> {
    let next = Arc::new(AtomicU64::new(0));
    let workers: Vec<_> = (0..1_000)
        .map(|_| {
            let (store, next) = (Arc::clone(store), Arc::clone(&next));
            tokio::spawn(async move {
                while next.load(Ordering::Relaxed) < items {
                    one(&store, format!("f-{}", next.fetch_add(1, Ordering::Relaxed))).await?;
                }
                Ok::<(), Problem>(())
            })
        })
        .collect();
    for worker in workers {
        worker.await??;
    }
    tokio::time::sleep(Duration::from_millis(2)).await;
    Ok(store.now())
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
    Ok(())
}

/// Items per second, and p50 / p99 of an item and of its claim in milliseconds.
async fn measure(
    store: Arc<SqliteStore>,
    in_flight: usize,
    length: Duration,
) -> Result<(f64, String, String), Problem> {
    let begin = Instant::now();
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
    Ok((times.len() as f64 / seconds, column(|time| time.0), column(|time| time.1)))
}

async fn work(store: Arc<SqliteStore>, next: Arc<AtomicU64>, end: Instant) -> Result<Vec<(f64, f64)>, Problem> {
    let mut times = Vec::new();
    while Instant::now() < end {
        let id = format!("i-{}-{}", store.now(), next.fetch_add(1, Ordering::Relaxed));
        times.extend(one(&store, id).await?);
    }
    Ok(times)
}

/// Submit, claim, complete; milliseconds of all and of the claim.
async fn one(store: &SqliteStore, id: String) -> Result<Option<(f64, f64)>, Problem> {
    let begin = Instant::now();
    store.submit_item(item(id, vec![]), None).await?;
    let claiming = Instant::now();
    let request = ClaimRequest { role: AgentRole::Executor, agent: "e".into(), generation: 1, lease_ms: LEASE_MS };
    let Some(claimed) = store.claim(request).await? else { return Ok(None) };
    let claim = claiming.elapsed().as_secs_f64() * 1e3;
    store.complete(Completion::new(&claimed, WorkResult::success(serde_json::Map::new()))).await?;
    Ok(Some((begin.elapsed().as_secs_f64() * 1e3, claim)))
}

/// Of this process.
fn peak_megabytes() -> Outcome<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

fn fail(error: &tokio::task::JoinError) -> Problem {
    Problem::new(mnemosyne_core::ProblemKind::Store, mnemosyne_core::error::codes::STORE_UNAVAILABLE, error.to_string())
}
