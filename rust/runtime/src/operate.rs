//! What people ask and tell of a run from outside the process that works on it: one door for the command line and HTTP.
//!
//! Nothing here touches another process: what is told is written into the store, where the process that works on the run
//! finds it within 0.2 s.

use crate::state_manager::{AgentView, Live, StateManager};
use mnemosyne_core::error::codes;
use mnemosyne_core::{Problem, ProblemKind, Run, RunState};
use mnemosyne_store::{LEASE_MS, NewCommand, RunSnapshot, Store};
use serde::Serialize;

/// The process that a boot stands for.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Owner {
    /// `None` where nobody ever worked.
    pub boot: Option<String>,
    /// Its lock is held (FENCE-3).
    pub alive: bool,
    /// What it wrote.
    pub pid: Option<u32>,
    /// For how long a process that holds claims has renewed none of them: it is stopped, or hangs as a whole. `None` while
    /// it renews them, and where it holds none, since then nothing can be said.
    pub silent_seconds: Option<f64>,
}

/// Who that boot is.
///
/// # Errors
/// The store cannot be read.
pub async fn owner(store: &dyn Store, boot: Option<&str>) -> Result<Owner, Problem> {
    let Some(boot) = boot else { return Ok(Owner::default()) };
    let mine = boot == store.boot();
    let alive = mine || !store.is_dead(boot);
    let silent_seconds = if alive && !mine { silent_for(store, boot).await? } else { None };
    Ok(Owner { boot: Some(boot.to_owned()), alive, pid: store.pid_of(boot).await?, silent_seconds })
}

async fn silent_for(store: &dyn Store, boot: &str) -> Result<Option<f64>, Problem> {
    let claims = store.under_way(boot).await?;
    let newest = claims.iter().map(|claim| claim.lease_until).max();
    let over = newest.map(|until| store.now() - until).filter(|over| *over > 0);
    Ok(over.map(|over| (over + LEASE_MS) as f64 / 1_000.0))
}

/// A run, and the process that works on it or worked on it last.
///
/// # Errors
/// There is no such run (MN-0110).
pub async fn find_run(store: &dyn Store, run: &str) -> Result<(RunSnapshot, Owner), Problem> {
    let Some(snapshot) = store.run(run).await? else { return Err(no_run(run)) };
    let owner = owner(store, snapshot.run.boot.as_deref()).await?;
    Ok((snapshot, owner))
}

/// The state that people see: running only while its process lives and is not silent (TRUTH-2).
pub fn visible_state(run: &Run, owner: &Owner) -> RunState {
    let under_way = matches!(run.state, RunState::Running | RunState::Paused | RunState::Waiting);
    if under_way && (!owner.alive || owner.silent_seconds.is_some()) { RunState::Interrupted } else { run.state }
}

/// The agents of the process that works on a run, or worked on it last.
///
/// # Errors
/// There is no such run (MN-0110).
pub async fn agents_of(store: &dyn Store, run: &str) -> Result<Vec<AgentView>, Problem> {
    let (snapshot, owner) = find_run(store, run).await?;
    let Some(boot) = snapshot.run.boot else { return Ok(Vec::new()) };
    let mut manager = StateManager::new(&boot);
    manager.catch_up(store).await?;
    let claims = store.under_way(&boot).await?;
    Ok(manager.view(&Live { alive: owner.alive, claims, now: store.now() }))
}

/// Tells the process that works on a run: `cancel`, `pause`, `continue`, `drain SECONDS`, a verb with an agent (`restart`,
/// `stop`, `release`), `scale ROLE COUNT`. A run that nobody works on is cancelled here.
///
/// # Errors
/// There is no such run (MN-0110), nobody works on it (MN-0220), or its process has no such agent (MN-0362).
pub async fn tell(store: &dyn Store, run: &str, kind: &str, reason: &str) -> Result<(), Problem> {
    let (snapshot, owner) = find_run(store, run).await?;
    if kind == "cancel" && !owner.alive {
        return store.cancel_run(run, reason).await;
    }
    let state = visible_state(&snapshot.run, &owner);
    let worked_on =
        owner.alive && matches!(snapshot.run.state, RunState::Running | RunState::Paused | RunState::Waiting);
    if kind != "cancel" && !worked_on {
        let message = format!("nobody works on run {run}");
        return Err(Problem::new(ProblemKind::InvalidInput, codes::NOBODY_WORKS, message)
            .because(format!("it is {state}"))
            .hint(format!("mnemosyne show {run}")));
    }
    if let Some((verb @ ("restart" | "stop" | "release"), agent)) = kind.split_once(' ') {
        check_agent(store, run, verb, agent).await?;
    }
    let command = NewCommand { run: run.to_owned(), kind: kind.to_owned(), reason: reason.to_owned() };
    store.post_command(command).await
}

async fn check_agent(store: &dyn Store, run: &str, verb: &str, agent: &str) -> Result<(), Problem> {
    let agents = agents_of(store, run).await?;
    if agents.iter().any(|view| view.agent.agent_id == agent) {
        return Ok(());
    }
    let known: Vec<&str> = agents.iter().map(|view| view.agent.agent_id.as_str()).collect();
    let known = if known.is_empty() { "none yet".to_owned() } else { known.join(", ") };
    let message = format!("run {run} has no agent {agent:?} to {verb}");
    Err(Problem::new(ProblemKind::InvalidInput, codes::NO_AGENT, message)
        .because(format!("its agents are {known}"))
        .hint("mnemosyne agents"))
}

fn no_run(run: &str) -> Problem {
    Problem::new(ProblemKind::InvalidInput, codes::RUN_NOT_FOUND, format!("there is no run {run} in this store"))
        .hint("mnemosyne runs")
}
