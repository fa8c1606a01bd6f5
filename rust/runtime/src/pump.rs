//! What keeps the tree moving between commits: wakes the supervisors when the store changes, ticks them, and every
//! 200 ms looks for commits and commands of other processes, and for runs whose time is used up.

use crate::health::{StoreHealth, StoreState};
use crate::record::{Retry, TreeRecord, locked};
use crate::role_supervisor::RoleMessage;
use mnemosyne_core::{Problem, ProblemKind, RunState};
use mnemosyne_store::NewCommand;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Delayed items and leases are looked at this often.
const TICK: Duration = Duration::from_millis(250);
/// Other processes are looked at this often.
const POLL: Duration = Duration::from_millis(200);
/// Counting the queue reads it whole: at most this often, and only after a change.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// The pump's tasks; they end with it.
pub(crate) struct Pump(Vec<AbortHandle>);

impl Drop for Pump {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

impl Pump {
    pub(crate) fn start(tree: &Arc<TreeRecord>) -> Self {
        let wake = tokio::spawn(wake(tree.clone())).abort_handle();
        let poll = tokio::spawn(poll(tree.clone())).abort_handle();
        Self(vec![wake, poll])
    }
}

async fn wake(tree: Arc<TreeRecord>) {
    let mut changed = tree.store.changed();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watching = true;
    loop {
        let message = tokio::select! {
            answer = changed.changed(), if watching => {
                watching = answer.is_ok();
                || RoleMessage::Wake
            }
            _ = tick.tick() => || RoleMessage::Tick,
        };
        for role in tree.roles() {
            role.send(message());
        }
    }
}

async fn poll(tree: Arc<TreeRecord>) {
    let mut tick = interval(POLL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let changed = tree.store.changed();
    let mut counted: Option<(u64, Instant)> = None;
    loop {
        tick.tick().await;
        let sequence = *changed.borrow();
        let count = counted.is_none_or(|(at, when)| at != sequence && when.elapsed() >= COUNT_EVERY);
        if count {
            counted = Some((sequence, Instant::now()));
        }
        // In a task of its own: a panic in a store must not end the polling.
        let once = tree.background.spawn(poll_once(tree.clone(), count));
        let answer = once.await.unwrap_or_else(|error| {
            Err(Problem::new(ProblemKind::Store, mnemosyne_core::error::codes::STORE_UNAVAILABLE, error.to_string()))
        });
        locked(&tree.seen).store = match answer {
            Ok(()) => StoreHealth { state: StoreState::Available, reason: None },
            Err(problem) => StoreHealth { state: StoreState::Unavailable, reason: Some(problem.message) },
        };
    }
}

async fn poll_once(tree: Arc<TreeRecord>, count: bool) -> Result<(), Problem> {
    tree.store.poll_foreign().await?;
    for command in tree.store.take_commands().await? {
        let tree = tree.clone();
        // Beside the polling: a command waits for the store as long as it takes.
        tree.background.clone().spawn(async move { obey(&tree, command).await });
    }
    for (run, problem) in tree.store.out_of_time().await? {
        // What fails is asked for again by the next look.
        stop_run(&tree, &run, RunState::Budget, problem).await?;
    }
    if count {
        let queue = tree.store.queue().await?;
        locked(&tree.seen).queue = queue;
    }
    Ok(())
}

/// A command was taken from its table, so it must not be lost to a store that is unavailable for a moment.
async fn obey(tree: &TreeRecord, command: NewCommand) {
    if command.kind != "cancel" {
        return; // of a newer version
    }
    let mut retry = Retry::default();
    while let Err(problem) = cancel_run(tree, &command.run, &command.reason).await {
        if problem.kind != ProblemKind::Store || tree.closing.load(Ordering::SeqCst) {
            return; // a run that is gone needs no cancel
        }
        retry.wait().await;
    }
}

/// First the store, which releases the claims; then what is in flight.
pub(crate) async fn stop_run(tree: &TreeRecord, run: &str, state: RunState, problem: Problem) -> Result<(), Problem> {
    let reason = problem.message.clone();
    tree.store.stop_run(run, state, problem).await?;
    tree.cancel_in_flight(run, &reason);
    Ok(())
}

/// First the store, which fences the claims; then what is in flight.
pub(crate) async fn cancel_run(tree: &TreeRecord, run: &str, reason: &str) -> Result<(), Problem> {
    tree.store.cancel_run(run, reason).await?;
    tree.cancel_in_flight(run, reason);
    Ok(())
}
