//! How a loop is, as Rust can read it without the GIL: what the loop says about itself once a second, and what a thread
//! beside it makes of a loop that says nothing.
//!
//! A loop that has not beaten for its limit is *suspect*: Python's fault handler, armed with each beat, has written all
//! stacks to standard error by then. At twice the limit a witness tries to attach. If it can, the code that is stuck
//! lets go of the interpreter: that loop is left behind with its thread, which is never joined, and its trees move to a new
//! one. If it cannot, no loop could do anything: the trees are told that their bridge is stuck, until it goes on.

use crate::attach::{Site, attach, nanoseconds, spawn_blocking};
use crate::loop_thread::{Shared, living};
use mnemosyne_runtime::Ticket;
use pyo3::prelude::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How often the watch looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A loop beats this often (`loop.BEAT_SECONDS`); being late by less than that is no lag.
const BEAT: Duration = Duration::from_secs(1);

/// One loop, in nanoseconds; 0 where nothing was measured yet.
#[derive(Default)]
pub(crate) struct Health {
    /// Since the process began.
    beat_at: AtomicU64,
    lag: AtomicU64,
    longest_lag: AtomicU64,
    gil_wait: AtomicU64,
    longest_gil_wait: AtomicU64,
    limit: AtomicU64,
    suspect: AtomicBool,
    /// A witness is on its way, or stands before the door.
    witness: AtomicBool,
    /// The hosts were told that the loop is stuck.
    told: AtomicBool,
}

fn now() -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    // Never 0, which stands for never.
    nanoseconds(ORIGIN.get_or_init(Instant::now).elapsed()).saturating_add(1)
}

impl Health {
    pub(crate) fn beat(&self, lag: Duration, gil_wait: Duration, limit: Duration) {
        let (lag, gil_wait) = (nanoseconds(lag), nanoseconds(gil_wait));
        self.limit.store(nanoseconds(limit), Ordering::Relaxed);
        self.lag.store(lag, Ordering::Relaxed);
        self.longest_lag.fetch_max(lag, Ordering::Relaxed);
        self.gil_wait.store(gil_wait, Ordering::Relaxed);
        self.longest_gil_wait.fetch_max(gil_wait, Ordering::Relaxed);
        self.beat_at.store(now(), Ordering::Release);
    }

    /// The watch itself was held up: the process was stopped (Ctrl-Z, a debugger) or got no core. What a loop did not say
    /// in that time says nothing about the loop, so its silence counts from now on.
    fn excuse(&self) {
        if self.beat_at.load(Ordering::Acquire) > 0 {
            self.beat_at.store(now(), Ordering::Release);
        }
    }

    /// `None` before the first beat.
    pub(crate) fn beat_age(&self) -> Option<Duration> {
        let at = self.beat_at.load(Ordering::Acquire);
        (at > 0).then(|| Duration::from_nanos(now().saturating_sub(at)))
    }

    /// How late the loop is now: as it said itself, or by how much its next beat is overdue.
    pub(crate) fn lag(&self) -> Duration {
        let said = Duration::from_nanos(self.lag.load(Ordering::Relaxed));
        self.beat_age().map_or(said, |age| said.max(age.saturating_sub(BEAT)))
    }

    pub(crate) fn longest_lag(&self) -> Duration {
        Duration::from_nanos(self.longest_lag.load(Ordering::Relaxed)).max(self.lag())
    }

    pub(crate) fn gil_wait(&self) -> Duration {
        Duration::from_nanos(self.gil_wait.load(Ordering::Relaxed))
    }

    pub(crate) fn longest_gil_wait(&self) -> Duration {
        Duration::from_nanos(self.longest_gil_wait.load(Ordering::Relaxed))
    }

    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    fn limit(&self) -> Duration {
        Duration::from_nanos(self.limit.load(Ordering::Relaxed))
    }
}

/// Looks after every loop of the process, on one thread that lives as long as any of them.
pub(crate) fn watch() {
    static WATCHED: AtomicBool = AtomicBool::new(false);
    if WATCHED.swap(true, Ordering::SeqCst) {
        return;
    }
    let begun = spawn_blocking(|| {
        loop {
            let looked = Instant::now();
            std::thread::sleep(LOOK_EVERY);
            let loops = living();
            if looked.elapsed() > LOOK_EVERY + BEAT {
                loops.iter().for_each(|shared| shared.health.excuse());
            }
            loops.iter().for_each(look);
            if loops.is_empty() {
                WATCHED.store(false, Ordering::SeqCst);
                // One that came just now was told that it is watched.
                if living().is_empty() || WATCHED.swap(true, Ordering::SeqCst) {
                    return;
                }
            }
        }
    });
    if begun.is_err() {
        WATCHED.store(false, Ordering::SeqCst);
    }
}

fn look(shared: &Arc<Shared>) {
    let health = &shared.health;
    let late = health.beat_age().map_or(Duration::ZERO, |age| age.saturating_sub(BEAT));
    if late <= health.limit() {
        if health.suspect.swap(false, Ordering::Relaxed) {
            tracing::info!(target: "mnemosyne.bridge", "the agents' loop goes on");
        }
        if health.told.swap(false, Ordering::Relaxed) {
            shared.tell_hosts(None);
        }
        return;
    }
    if !health.suspect.swap(true, Ordering::Relaxed) {
        let seconds = late.as_secs_f64();
        tracing::warn!(target: "mnemosyne.bridge", "the agents' loop has done nothing for {seconds:.1} s");
    }
    if late <= 2 * health.limit() {
        return;
    }
    if !health.witness.swap(true, Ordering::SeqCst) {
        let seen = Arc::clone(shared);
        if spawn_blocking(move || witness(&seen)).is_err() {
            health.witness.store(false, Ordering::SeqCst);
        }
    } else if !health.told.swap(true, Ordering::Relaxed) {
        // It was sent at the last look and is still at the door.
        shared.tell_hosts(Some(format!(
            "the agents' loop has done nothing for {:.0} s, and what it is stuck in does not let go of the interpreter",
            late.as_secs_f64()
        )));
    }
}

/// Attaches beside a loop that is stuck. Getting here at all says that the code lets go of the interpreter.
fn witness(shared: &Arc<Shared>) {
    let id = shared.id;
    let health = &shared.health;
    let late = || health.beat_age().map_or(Duration::ZERO, |age| age.saturating_sub(BEAT));
    if attach(Site::Witness, |_| ()).is_ok() {
        // Perhaps it has just come to itself: then it beats at once.
        std::thread::sleep(LOOK_EVERY);
        if late() > health.limit() {
            let culprit = attach(Site::Witness, |py| -> PyResult<Option<u64>> {
                py.import("mnemosyne.loop")?.getattr("stuck_slot")?.call1((id,))?.extract()
            });
            if let Ok(Ok(slot)) = culprit {
                shared.leave_behind(slot.map(Ticket), late());
            }
        }
    }
    health.witness.store(false, Ordering::SeqCst);
}
