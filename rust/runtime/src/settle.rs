//! Ends claims in the store. Runs beside the actors, retries while the store is unavailable (a result that was thought
//! must not be lost to a full disk), and says what became of the item.
//!
//! **DUR-2** The agent's events ride in the same commit. **FENCE-1** A claim that is over changes nothing; a result that
//! comes for it is counted as stale.

use crate::custody::{Claim, Settlement};
use crate::pump;
use crate::record::{AgentRecord, Retry, TreeRecord};
use mnemosyne_core::{EventKind, NewEvent, Problem, ProblemKind, RunState, WorkResult};
use mnemosyne_store::{Completion, LEASE_MS, Release, ReleaseReason, Released};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What to write.
#[derive(Debug, Clone)]
pub(crate) enum Commit {
    /// A result with all that follows.
    Complete(Box<WorkResult>),
    /// The item goes back.
    Release { reason: ReleaseReason, delay_ms: i64, error: Option<String>, class: Option<String> },
    /// The item can never be done.
    GiveUp(Problem),
    /// The run stops, which releases its claims.
    StopRun { run: String, state: RunState, problem: Problem },
    /// The claim was over already.
    Nothing,
}

/// The end of one claim.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub(crate) commit: Commit,
    pub(crate) events: Vec<NewEvent>,
}

impl End {
    /// Without events.
    pub(crate) fn quiet(commit: Commit) -> Self {
        Self { commit, events: Vec::new() }
    }

    /// Nobody is charged.
    pub(crate) fn innocent(delay_ms: i64) -> Self {
        Self::quiet(Commit::Release { reason: ReleaseReason::Innocent, delay_ms, error: None, class: None })
    }
}

/// What became of the claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Written.
    Stored,
    /// Written, and the item is poison: it went to the dead letters.
    Dead,
    /// The claim was over.
    Fenced,
    /// Not known: the task that wrote it died, or the tree shut down first.
    Unknown,
}

/// Ends the claim.
pub(crate) async fn settle(tree: &TreeRecord, agent: &AgentRecord, settlement: Settlement, end: End) -> Verdict {
    let claim = settlement.claim.clone();
    let mut end = end;
    let mut retry = Retry::default();
    let verdict = loop {
        match commit(tree, &claim, &end).await {
            Ok(verdict) => break verdict,
            Err(problem) if problem.kind == ProblemKind::Fenced => {
                announce_fenced(tree, agent, &claim, end);
                break Verdict::Fenced;
            }
            Err(problem) if problem.kind == ProblemKind::Store => {
                if tree.closing.load(Ordering::SeqCst) {
                    return Verdict::Unknown; // the settlement is dropped: the boot's death frees the claim
                }
                retry.wait().await;
            }
            // The store refuses the result itself: asking again would give the same.
            Err(problem) if matches!(end.commit, Commit::Complete(_)) => end.commit = Commit::GiveUp(problem),
            Err(_) => break Verdict::Unknown,
        }
    };
    settlement.settled();
    verdict
}

/// Releases a claim that nobody works on; nobody is charged.
pub(crate) fn release_innocent(tree: &Arc<TreeRecord>, agent: &Arc<AgentRecord>, settlement: Settlement) {
    let (tree, agent) = (tree.clone(), agent.clone());
    let background = tree.background.clone();
    background.spawn(async move { settle(&tree, &agent, settlement, End::innocent(0)).await });
}

async fn commit(tree: &TreeRecord, claim: &Claim, end: &End) -> Result<Verdict, Problem> {
    let store = &tree.store;
    let Claim { item, epoch, generation, .. } = claim.clone();
    let events = end.events.clone();
    match end.commit.clone() {
        Commit::Complete(result) => {
            store.complete(Completion { item, epoch, result: *result, events }).await?;
        }
        Commit::Release { reason, delay_ms, error, class } => {
            let release = Release { item, epoch, reason, generation, delay_ms, error, class, events };
            if store.release(release).await? == Released::Dead {
                return Ok(Verdict::Dead);
            }
        }
        Commit::GiveUp(problem) => store.give_up(&item, epoch, problem, events).await?,
        Commit::StopRun { run, state, problem } => {
            store.renew(&item, epoch, LEASE_MS).await?; // a claim that is over stops nothing
            pump::stop_run(tree, &run, state, problem).await?;
        }
        Commit::Nothing => {}
    }
    Ok(Verdict::Stored)
}

/// The agent's errors happened all the same; its result is stale.
fn announce_fenced(tree: &TreeRecord, agent: &AgentRecord, claim: &Claim, end: End) {
    for event in end.events.into_iter().filter(|event| event.kind != EventKind::AgentCompleted) {
        tree.events.announce(event);
    }
    if matches!(end.commit, Commit::Complete(_)) {
        tree.events.announce(agent.stale(claim.generation));
    }
}
