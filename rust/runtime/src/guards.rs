//! What must happen however an agent's actor ends: stopped, killed, panicked, or dropped with its supervisor. ractor runs
//! `post_stop` only for the first of these, so each duty is the `Drop` of a value that the actor, its mailbox or a task
//! beside it holds.
//!
//! - **KILL-1** [`InFlight`]: work is cancelled. [`Seat`]: the agent is forgotten by its host.
//! - **FENCE-2** [`Report`]: an outcome that no actor reads is counted as stale.
//! - [`Reporter`], [`Settling`]: the actor is told, once, also when the other side drops what it was given or panics.

use crate::agent::{AgentMessage, Ending, Load};
use crate::background::Timer;
use crate::finish::Leave;
use crate::host::{Outcome, SharedHost, Ticket, WorkKey};
use crate::record::{AgentRecord, RoleRecord, TreeRecord};
use crate::role_supervisor::RoleMessage;
use crate::settle::Verdict;
use ractor::ActorRef;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// The agent of this generation in its host: forgotten when dropped.
pub(crate) struct Seat {
    pub(crate) host: SharedHost,
    pub(crate) record: Arc<AgentRecord>,
    pub(crate) generation: u64,
    pub(crate) tree: Arc<TreeRecord>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let (host, agent_id, generation) = (self.host.clone(), self.record.agent_id.clone(), self.generation);
        self.tree.background.spawn(async move { host.stop(&agent_id, generation).await });
    }
}

/// Work that the host has: cancelled when dropped unfinished.
pub(crate) struct InFlight {
    pub(crate) host: SharedHost,
    /// Set once the host has it.
    pub(crate) ticket: Option<Ticket>,
    pub(crate) place: Option<OwnedSemaphorePermit>,
    pub(crate) load: Option<Load>,
    pub(crate) ending: Option<Ending>,
    /// The deadline, then the grace.
    pub(crate) timer: Option<Timer>,
    pub(crate) finished: bool,
}

impl InFlight {
    pub(crate) fn cancel(&self, reason: &str) {
        if let Some(ticket) = self.ticket {
            self.host.cancel(ticket, reason);
        }
    }

    /// It was cancelled, and goes on.
    pub(crate) fn abandon(&mut self) {
        self.finished = true;
        if let Some(ticket) = self.ticket {
            self.host.abandon(ticket);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.finished {
            self.cancel("its agent went down");
        }
    }
}

/// An outcome on its way to the actor. Dropped unread (the actor is gone), it is counted as stale.
pub(crate) struct Report {
    pub(crate) key: WorkKey,
    /// `None`: the host lost the work.
    pub(crate) outcome: Option<Outcome>,
    pub(crate) tree: Arc<TreeRecord>,
    pub(crate) record: Arc<AgentRecord>,
    pub(crate) generation: u64,
}

impl Report {
    pub(crate) fn read(mut self) -> (WorkKey, Option<Outcome>) {
        (self.key, self.outcome.take())
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if !matches!(self.outcome, None | Some(Outcome::Cancelled | Outcome::Crashed(_))) {
            self.tree.events.announce(self.record.stale(self.generation));
        }
    }
}

/// The host's end of a submission: reports once, also when the host drops it without a call.
pub(crate) struct Reporter {
    pub(crate) actor: ActorRef<AgentMessage>,
    pub(crate) report: Option<Report>,
}

impl Reporter {
    pub(crate) fn deliver(mut self, outcome: Outcome) {
        if let Some(report) = &mut self.report {
            report.outcome = Some(outcome);
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if let Some(report) = self.report.take() {
            let _ = self.actor.send_message(AgentMessage::Finished(report)); // a report that comes back counts itself
        }
    }
}

/// The end of a claim is stored, or the task that stored it died. Holds the item's place until the actor has read it.
pub(crate) struct Settled {
    pub(crate) _place: Option<OwnedSemaphorePermit>,
    pub(crate) leave: Option<Leave>,
    pub(crate) verdict: Verdict,
}

/// Sends [`Settled`] however its task ends.
pub(crate) struct Settling {
    pub(crate) actor: ActorRef<AgentMessage>,
    pub(crate) role: Arc<RoleRecord>,
    pub(crate) settled: Option<Settled>,
}

impl Drop for Settling {
    fn drop(&mut self) {
        if let Some(settled) = self.settled.take() {
            let _ = self.actor.send_message(AgentMessage::Settled(settled));
        }
        self.role.send(RoleMessage::Wake);
    }
}
