//! Dispatch: how work reaches the agents of one role. The other half of the role supervisor.
//!
//! Work is pulled, never pushed: a claim is asked for only when an agent has room, its host started it and nothing
//! drains, or stands in the store until there is work. **SUP-1** Claims and renewals run beside the actor. **FENCE-2** A
//! claim that arrives for a generation that is over goes back without a charge.

use crate::agent::{AgentMessage, Ending, Job, Load};
use crate::finish::{closed, timeout_problem};
use crate::handle::unavailable;
use crate::host::WorkKey;
use crate::record::{AgentRecord, RoleRecord, TreeRecord};
use crate::role_supervisor::{RoleMessage, Slot, Supervisor, refuse};
use crate::settle::release_innocent;
use mnemosyne_core::{AgentState, ProblemKind};
use mnemosyne_store::{ClaimRequest, Claimed, LEASE_MS, Stander};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

/// What a claim gave. However its task ends, one of these reaches the supervisor.
pub(crate) struct ClaimAnswer {
    record: Arc<AgentRecord>,
    generation: u64,
    found: Option<(WorkKey, Arc<Claimed>, OwnedSemaphorePermit)>,
}

/// One generation of an agent that waits for work. Weak, because the tree holds the store that holds this.
struct StandingAgent {
    tree: Weak<TreeRecord>,
    role: Weak<RoleRecord>,
    record: Arc<AgentRecord>,
    request: ClaimRequest,
}

impl Stander for StandingAgent {
    fn request(&self) -> &ClaimRequest {
        &self.request
    }

    fn room(&self) -> Option<OwnedSemaphorePermit> {
        let open = self.tree.upgrade().is_some_and(|tree| !tree.is_draining()) && !self.record.is_closing();
        let wanted = open && self.record.takes_work(self.request.generation);
        if wanted { self.record.places().try_acquire_owned().ok() } else { None }
    }

    /// In this order: whatever happens to the message, the claim is known.
    fn take(&self, claimed: Claimed, place: OwnedSemaphorePermit) {
        let (key, generation) = (WorkKey::next(), self.request.generation);
        // A tree that has just gone leaves its claims to the end of its boot.
        let (Some(tree), Some(role)) = (self.tree.upgrade(), self.role.upgrade()) else { return };
        self.record.custody.hold(key, &claimed, generation, tree.now());
        let found = Some((key, Arc::new(claimed), place));
        role.send(RoleMessage::Stood(ClaimAnswer { record: self.record.clone(), generation, found }));
    }

    fn is_over(&self) -> bool {
        let gone = self.tree.upgrade().is_none_or(|tree| tree.is_draining());
        gone || self.record.places().is_closed() || self.record.generation() != self.request.generation
    }
}

fn request(record: &AgentRecord, generation: u64) -> ClaimRequest {
    ClaimRequest { role: record.role, agent: record.agent_id.clone(), generation, lease_ms: LEASE_MS }
}

/// Sends the answer when dropped.
struct Asking {
    role: Arc<RoleRecord>,
    answer: Option<ClaimAnswer>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            self.role.send(RoleMessage::Claimed(answer));
        }
    }
}

impl Supervisor {
    pub(crate) fn wake(&mut self) {
        self.wake_again = self.asking > 0;
        self.pull(1);
    }

    /// Asks the store for at most `count` items. It begins with one and doubles with every item found, so that one
    /// commit does not make a thousand idle agents ask for the same item.
    pub(crate) fn pull(&mut self, count: usize) {
        if !self.tree.claims || self.tree.is_draining() {
            return;
        }
        let (mut left, mut refused) = (count, 0);
        while left > 0 && refused < self.slots.len() {
            self.next = (self.next + 1) % self.slots.len();
            if self.ask(self.next) {
                (left, refused) = (left - 1, 0);
            } else {
                refused += 1;
            }
        }
    }

    /// An agent that can work waits with a standing claim too, so that what is submitted reaches it with the commit of the
    /// submission. It holds no place meanwhile: the store asks for one when there is an item.
    pub(crate) fn stand(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let generation = slot.record.generation();
        if !self.tree.claims || slot.open().is_none() || slot.standing == Some(generation) {
            return;
        }
        slot.standing = Some(generation);
        let request = request(&slot.record, generation);
        let (tree, role, record) = (Arc::downgrade(&self.tree), Arc::downgrade(&self.role), slot.record.clone());
        self.tree.store.stand(Arc::new(StandingAgent { tree, role, record, request }));
    }

    /// Claims for one agent, beside the actor, if the agent has room.
    fn ask(&mut self, index: usize) -> bool {
        let slot = &mut self.slots[index];
        if slot.record.is_closing() || slot.open().is_none() {
            return false;
        }
        let Ok(place) = slot.record.places().try_acquire_owned() else { return false };
        slot.claiming += 1;
        self.asking += 1;
        let record = slot.record.clone();
        let request = request(&record, record.generation());
        let answer = ClaimAnswer { record: record.clone(), generation: request.generation, found: None };
        let mut asking = Asking { role: self.role.clone(), answer: Some(answer) };
        let tree = self.tree.clone();
        self.tree.background.spawn(async move {
            let generation = request.generation;
            // A store that does not answer shows in `health`; the next tick asks again.
            if let Ok(Some(claimed)) = tree.store.claim(request).await {
                let key = WorkKey::next();
                record.custody.hold(key, &claimed, generation, tree.now());
                if let Some(answer) = &mut asking.answer {
                    answer.found = Some((key, Arc::new(claimed), place));
                }
            }
        });
        true
    }

    /// A claim that was asked for has its answer.
    pub(crate) fn claimed(&mut self, answer: ClaimAnswer) {
        self.asking = self.asking.saturating_sub(1);
        if let Some(slot) = self.slot(&answer.record.agent_id) {
            slot.claiming = slot.claiming.saturating_sub(1);
        }
        let found = answer.found.is_some();
        self.given(answer);
        if found {
            self.pull(2);
        } else if std::mem::take(&mut self.wake_again) {
            self.pull(1);
        }
    }

    /// A claim reaches the agent that it was made for, or goes back.
    pub(crate) fn given(&mut self, answer: ClaimAnswer) {
        let over = answer.found.as_ref().and_then(|(_, claimed, _)| claimed.item.run.as_ref());
        let unwanted = self.tree.is_draining() || over.is_some_and(|run| self.over.contains(run));
        if self.asking == 0 {
            self.over.clear();
        }
        let ClaimAnswer { record, generation, found } = answer;
        let Some((key, claimed, place)) = found else { return };
        let wanted = record.generation() == generation && !unwanted && !record.is_closing();
        let slot = self.slot(&record.agent_id).map(|slot| &*slot);
        match slot.and_then(Slot::open).filter(|_| wanted) {
            Some(child) => {
                let deadline = deadline_after(claimed.item.work.timeout_seconds);
                let job = Job { key, place, deadline, load: Load::Claimed(claimed) };
                let _ = child.send_message(AgentMessage::Work(job)); // lost with its child: swept at its end
            }
            None => {
                if let Some(settlement) = record.custody.take(key) {
                    release_innocent(&self.tree, &record, settlement);
                }
            }
        }
    }

    /// Direct work: to the child, or it waits for a start that is under way, or it is refused.
    pub(crate) fn work(&mut self, agent_id: &str, job: Job) {
        let Some(slot) = self.slot(agent_id) else { return };
        // A drain does not refuse it here: it was accepted, with its place, before the drain began.
        if slot.stopped {
            return refuse(job, closed().into());
        }
        if let Some(child) = slot.open() {
            let _ = child.send_message(AgentMessage::Work(job)); // lost with its child: its caller is told
            return;
        }
        let soon = {
            let book = slot.record.book();
            let out = matches!(book.state, AgentState::Degraded | AgentState::Quarantined);
            !out && book.next_restart_at.is_none()
        };
        if soon { slot.waiting.push_back(job) } else { refuse(job, unavailable(&slot.record)) }
    }

    /// Cancels what is in flight of a run whose claims are over, and what a claim under way may still bring of it.
    pub(crate) fn cancel_run(&mut self, run: String, reason: &str) {
        for slot in &self.slots {
            slot.tell(AgentMessage::CancelRun { run: run.clone(), reason: reason.to_owned() });
        }
        if self.asking > 0 {
            self.over.insert(run);
        }
    }

    pub(crate) fn cancel_all(&mut self, agent_id: Option<&str>, reason: &str) {
        let wanted = |slot: &&mut Slot| agent_id.is_none_or(|id| slot.record.agent_id == id);
        for slot in self.slots.iter_mut().filter(wanted) {
            for job in std::mem::take(&mut slot.waiting) {
                refuse(job, closed().into());
            }
            slot.tell(AgentMessage::CancelAll { reason: reason.to_owned() });
        }
    }

    pub(crate) fn tick(&mut self) {
        for index in 0..self.slots.len() {
            let generation = self.slots[index].record.generation();
            self.sweep(index, generation.saturating_sub(1));
            self.stand(index);
            self.renew(index);
            self.expire_waiting(index);
        }
        self.forget_ended();
        self.pull(1);
    }

    /// Releases claims that nobody works on: of generations up to `over`, and orphans. Nobody is charged.
    pub(crate) fn sweep(&self, index: usize, over: u64) {
        let record = &self.slots[index].record;
        for settlement in record.custody.sweep(over) {
            release_innocent(&self.tree, record, settlement);
        }
    }

    fn renew(&self, index: usize) {
        let record = &self.slots[index].record;
        for (key, claim) in record.custody.due(self.tree.now()) {
            let (tree, role, record) = (self.tree.clone(), self.role.clone(), record.clone());
            self.tree.background.spawn(async move {
                match tree.store.renew(&claim.item, claim.epoch, LEASE_MS).await {
                    Ok(()) => {}
                    Err(problem) if problem.kind == ProblemKind::Fenced => {
                        let agent_id = record.agent_id.clone();
                        let reason = "another claim took the item over".to_owned();
                        role.send(RoleMessage::Cancel { agent_id, key, ending: Ending::Revoked, reason });
                    }
                    Err(_) => record.custody.renew_soon(key, tree.now()),
                }
            });
        }
    }

    fn expire_waiting(&mut self, index: usize) {
        let now = Instant::now();
        let waiting = &mut self.slots[index].waiting;
        for job in std::mem::take(waiting) {
            if job.deadline > now {
                waiting.push_back(job);
            } else {
                let problem = timeout_problem(job.load.work());
                refuse(job, problem.into());
            }
        }
    }
}

/// From now; what is no time at all is a year.
pub(crate) fn deadline_after(seconds: f64) -> Instant {
    const YEAR: f64 = 365.0 * 24.0 * 3600.0;
    let seconds = if seconds.is_finite() { seconds.clamp(0.0, YEAR) } else { YEAR };
    Instant::now() + Duration::from_secs_f64(seconds)
}
