//! The pool in which agents that are plain functions run: bounded, so that functions that block cannot use up the
//! process. What is run stays in Python under a number; here are only the numbers, the threads, and who waits.

use crate::attach::{Site, attach, spawn_blocking};
use crate::port::{Channel, Message};
use crate::sync::locked;
use pyo3::prelude::*;
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex};

/// Functions that run at a time, of all agents of the process.
const THREADS: usize = 8;

static POOL: Mutex<Option<Pool>> = Mutex::new(None);

#[derive(Default)]
struct Pool {
    waiting: VecDeque<Call>,
    /// Threads that count: those whose function was left behind do not.
    running: usize,
    /// Calls that run on and that nobody waits for any more.
    left_behind: HashSet<u64>,
}

/// One call, and the loop that waits for its end.
pub(crate) struct Call {
    pub(crate) number: u64,
    pub(crate) channel: Arc<Channel>,
}

fn with_pool<T>(change: impl FnOnce(&mut Pool) -> T) -> T {
    change(locked(&POOL).get_or_insert_with(Pool::default))
}

impl Pool {
    /// The next call, if a thread may run it.
    fn next(&mut self) -> Option<Call> {
        if self.running >= THREADS {
            return None;
        }
        let call = self.waiting.pop_front()?;
        self.running += 1;
        Some(call)
    }
}

/// Runs a call when there is room.
pub(crate) fn submit(call: Call) {
    let next = with_pool(|pool| {
        pool.waiting.push_back(call);
        pool.next()
    });
    begin(next);
}

/// Nobody waits for this call any more, but its function goes on: another may take its room.
pub(crate) fn leave_behind(number: u64) {
    let next = with_pool(|pool| {
        pool.left_behind.insert(number);
        pool.running = pool.running.saturating_sub(1);
        pool.next()
    });
    begin(next);
}

/// Functions that run on although nobody waits for them any more.
pub(crate) fn left_behind() -> usize {
    with_pool(|pool| pool.left_behind.len())
}

/// What waits is forgotten; says whether anything still runs.
pub(crate) fn wind_up() -> bool {
    with_pool(|pool| {
        pool.waiting.clear();
        pool.running > 0 || !pool.left_behind.is_empty()
    })
}

fn begin(call: Option<Call>) {
    if let Some(call) = call
        && spawn_blocking(move || work(call)).is_err()
    {
        // No thread can be had; those that run take over what waits when they are done.
        with_pool(|pool| pool.running = pool.running.saturating_sub(1));
    }
}

/// The body of a thread: one call after the other, until none waits or its own was left behind.
fn work(first: Call) {
    let mut next = Some(first);
    while let Some(Call { number, channel }) = next {
        let _ = attach(Site::PlainAgent, |py| -> PyResult<()> {
            py.import("mnemosyne.loop")?.getattr("run_plain")?.call1((number,)).map(|_| ())
        });
        channel.push(Message::Ran { number });
        next = with_pool(|pool| {
            if pool.left_behind.remove(&number) {
                return None;
            }
            pool.running -= 1;
            pool.next()
        });
    }
}
