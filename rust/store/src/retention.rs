//! What ended long ago is forgotten, to the end, in bites that others hardly notice.

use crate::Store;
use crate::types::{Prune, Pruned};
use mnemosyne_core::Problem;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How much of the writer's time it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// A person waits for it.
    Foreground,
    /// Nobody waits for it: a fifth of the time, in short bites. Claims of 64 in flight then wait as long at p99 as without
    /// it (7 ms), 1.3 times as long with bites of 32 rows, and for 24 ms behind bites of 200 without a pause
    /// (`throughput -- retention`).
    Background,
}

impl Pace {
    /// Rows that one write looks at.
    fn bite(self) -> u32 {
        match self {
            Pace::Foreground => 200,
            Pace::Background => 16,
        }
    }

    async fn rest(self, took: Duration) {
        if self == Pace::Background {
            sleep(took * 4).await;
        }
    }
}

/// Forgets what ended before `ended_before`, milliseconds since 1970: items without a run, their events, and with `runs`
/// also runs. What was forgotten in all.
///
/// # Errors
/// The store cannot be written; what was forgotten until then stays forgotten.
pub async fn forget(store: &dyn Store, ended_before: i64, runs: bool, pace: Pace) -> Result<Pruned, Problem> {
    let mut sum = Pruned::default();
    while !sum.done {
        let began = Instant::now();
        let bite = Prune { ended_before, runs, events_seen: sum.events_seen, limit: pace.bite() };
        let once = store.prune(bite).await?;
        sum = Pruned {
            items: sum.items + once.items,
            runs: sum.runs + once.runs,
            events: sum.events + once.events,
            ..once
        };
        if !sum.done {
            pace.rest(began.elapsed()).await;
        }
    }
    Ok(sum)
}
