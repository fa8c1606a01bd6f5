//! What the bridge counts, readable at any time and from any thread, without the GIL.

use crate::attach::usage;
use crate::loop_thread::{living, loops_left_behind};
use crate::plain;
use serde::Serialize;
use std::sync::atomic::Ordering;

/// The bridge of this process, now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BridgeMetrics {
    /// Each place that attaches to Python, by name.
    pub sites: Vec<SiteMetrics>,
    /// The loops that live.
    pub loops: Vec<LoopMetrics>,
    /// Loops that were stuck in an agent's code and were left behind, since the process began.
    pub loops_left_behind: u64,
    /// Plain functions that go on although nobody waits for them.
    pub functions_left_behind: usize,
}

/// One place that attaches.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SiteMetrics {
    /// Its name.
    pub site: &'static str,
    /// Attaches since the process began.
    pub count: u64,
    /// Seconds that they waited for the interpreter, in all.
    pub waited_seconds: f64,
}

/// One loop of agents.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoopMetrics {
    /// Work that it has.
    pub in_flight: usize,
    /// Work that it was ever given.
    pub submitted: u64,
    /// Work that did not end within its grace after a cancel.
    pub abandoned: u64,
    /// Outcomes that nobody waited for any more.
    pub late: u64,
    /// Seconds since it was last seen alive; `None` before the first time.
    pub heartbeat_age_seconds: Option<f64>,
    /// Seconds by which it is late with its timers.
    pub lag_seconds: f64,
    /// The longest lag of its life.
    pub longest_lag_seconds: f64,
    /// Seconds that it last waited for the interpreter.
    pub gil_wait_seconds: f64,
    /// The longest wait of its life.
    pub longest_gil_wait_seconds: f64,
    /// Its lag is over the limit.
    pub suspect: bool,
}

/// Reads the counters.
pub fn metrics() -> BridgeMetrics {
    let sites = usage().map(|usage| SiteMetrics {
        site: usage.site.as_str(),
        count: usage.count,
        waited_seconds: usage.waited.as_secs_f64(),
    });
    let loops = living().into_iter().map(|shared| {
        let (health, counts) = (&shared.health, &shared.counts);
        LoopMetrics {
            in_flight: shared.in_flight(),
            submitted: counts.submitted.load(Ordering::Relaxed),
            abandoned: counts.abandoned.load(Ordering::Relaxed),
            late: counts.late.load(Ordering::Relaxed),
            heartbeat_age_seconds: health.beat_age().map(|age| age.as_secs_f64()),
            lag_seconds: health.lag().as_secs_f64(),
            longest_lag_seconds: health.longest_lag().as_secs_f64(),
            gil_wait_seconds: health.gil_wait().as_secs_f64(),
            longest_gil_wait_seconds: health.longest_gil_wait().as_secs_f64(),
            suspect: health.is_suspect(),
        }
    });
    BridgeMetrics {
        sites: sites.collect(),
        loops: loops.collect(),
        loops_left_behind: loops_left_behind(),
        functions_left_behind: plain::left_behind(),
    }
}
