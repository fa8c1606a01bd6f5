//! What keeps the tree moving between commits: wakes the supervisors when the store changes, ticks them, every 200 ms looks
//! for commits, deaths and commands of other processes and for runs whose time is used up, and now and then forgets what
//! ended long ago.

use crate::drain::drain_and_interrupt;
use crate::handle::AgentHandle;
use crate::health::{StoreHealth, StoreState};
use crate::pool::{add_like, scale};
use crate::record::{Retry, TreeRecord, locked};
use crate::role_supervisor::RoleMessage;
use mnemosyne_core::{AgentState, Problem, ProblemKind, RunState};
use mnemosyne_store::NewCommand;
use mnemosyne_store::retention::{Pace, forget as forget_what_ended};
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

/// Items without a run are kept so long after their end, with their history. Runs are kept until a person prunes them.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// What is older is looked for at the start and this often.
const FORGET_EVERY: Duration = Duration::from_secs(3600);

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
        let forget = tokio::spawn(forget(tree.clone())).abort_handle();
        Self(vec![wake, poll, forget])
    }
}

async fn wake(tree: Arc<TreeRecord>) {
    let mut ready = tree.store.ready();
    let mut seen = *ready.borrow_and_update();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watching = true;
    loop {
        tokio::select! {
            answer = ready.changed(), if watching => {
                watching = answer.is_ok();
                let now = *ready.borrow_and_update();
                // A claim costs a transaction: who has nothing new to find is not sent to look.
                for role in tree.roles().filter(|role| now[role.role as usize] != seen[role.role as usize]) {
                    role.send(RoleMessage::Wake);
                }
                seen = now;
            }
            _ = tick.tick() => {
                for role in tree.roles() {
                    role.send(RoleMessage::Tick);
                }
            }
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

/// A store that is unavailable is tried again at the next turn.
async fn forget(tree: Arc<TreeRecord>) {
    let mut turn = interval(FORGET_EVERY);
    turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turn.tick().await;
        let kept = i64::try_from(KEPT.as_millis()).unwrap_or(i64::MAX);
        let ended_before = tree.store.now().saturating_sub(kept);
        // One that fails is tried again at the next turn.
        let _ = forget_what_ended(tree.store.as_ref(), ended_before, false, Pace::Background).await;
    }
}

async fn poll_once(tree: Arc<TreeRecord>, count: bool) -> Result<(), Problem> {
    tree.store.poll_foreign().await?;
    tree.store.take_back().await?;
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
async fn obey(tree: &Arc<TreeRecord>, command: NewCommand) {
    let mut retry = Retry::default();
    while let Err(problem) = try_to_obey(tree, &command).await {
        if problem.kind != ProblemKind::Store || tree.closing.load(Ordering::SeqCst) {
            let NewCommand { kind, .. } = &command;
            tracing::warn!(target: "mnemosyne.runtime", "the command {kind:?} came to nothing: {problem}");
            return;
        }
        retry.wait().await;
    }
}

/// What is not known is of a newer version.
async fn try_to_obey(tree: &Arc<TreeRecord>, command: &NewCommand) -> Result<(), Problem> {
    let words: Vec<&str> = command.kind.split_whitespace().collect();
    match words.as_slice() {
        ["cancel"] => cancel_run(tree, &command.run, &command.reason).await,
        ["pause"] => tree.store.pause_run(&command.run, &command.reason).await,
        ["continue"] => tree.store.continue_run(&command.run).await,
        ["drain", seconds] => {
            let patience = seconds.parse().ok().map(Duration::from_secs);
            drain_and_interrupt(tree, patience).await
        }
        ["scale", role, count] => match (role.parse(), count.parse()) {
            (Ok(role), Ok(count)) => scale(tree, role, count).await,
            _ => Ok(()),
        },
        ["add", role, source @ ..] => match role.parse() {
            Ok(role) => add_like(tree, role, source.first().copied()),
            Err(_) => Ok(()),
        },
        [verb, agent_id] => {
            let found = AgentHandle::all(tree).into_iter().find(|agent| agent.agent_id() == *agent_id);
            if let Some(agent) = found {
                tell(&agent, verb, &command.reason).await;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

async fn tell(agent: &AgentHandle, verb: &str, reason: &str) {
    let quarantined = agent.health().state == AgentState::Quarantined;
    match verb {
        "stop" => agent.shutdown(None).await,
        "release" if !quarantined => {}
        "restart" | "release" => {
            let _ = agent.restart(reason.to_owned()).await; // refused: it is being shut down, which its events say
        }
        _ => {}
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
