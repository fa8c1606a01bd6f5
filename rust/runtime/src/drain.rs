//! A drain: no more work is taken, what runs may finish, the rest is cancelled and goes back without a charge.
//!
//! The agents' times run side by side, so that a drain lasts as long as the longest of them and not as their sum. Leases
//! that end so burn neither an attempt nor a crash. A drain that another process asks for also leaves the runs of this one
//! interrupted, to be resumed: it is what SIGTERM does.

use crate::handle::AgentHandle;
use crate::pump::stop_run;
use crate::record::TreeRecord;
use futures_util::future::join_all;
use mnemosyne_core::error::codes;
use mnemosyne_core::{Problem, ProblemKind, RunState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Each agent has the time of its own specification, or `patience` where that is given. `true` if all of it finished by
/// itself.
pub(crate) async fn drain(tree: &Arc<TreeRecord>, patience: Option<Duration>) -> bool {
    tree.draining.store(true, Ordering::SeqCst);
    let agents = AgentHandle::all(tree);
    let ends = join_all(agents.iter().map(|agent| agent.drain(patience))).await;
    ends.into_iter().all(|finished| finished)
}

/// A drain, then the end of this process's runs as interrupted.
pub(crate) async fn drain_and_interrupt(tree: &Arc<TreeRecord>, patience: Option<Duration>) -> Result<(), Problem> {
    drain(tree, patience).await;
    for run in tree.store.runs().await? {
        let ours = run.boot.as_deref() == Some(tree.store.boot());
        if ours && matches!(run.state, RunState::Running | RunState::Paused | RunState::Waiting) {
            let why = Problem::new(ProblemKind::Environment, codes::RUN_INTERRUPTED, "the run was interrupted")
                .because("its process was asked to drain")
                .hint(format!("mnemosyne resume {}", run.id));
            stop_run(tree, &run.id, RunState::Interrupted, why).await?;
        }
    }
    Ok(())
}
