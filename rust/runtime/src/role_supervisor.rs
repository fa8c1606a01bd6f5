//! The supervisor of one role: owns the role's agents and restarts them. How work reaches them is in `dispatch`.
//!
//! - **SUP-1** It never awaits an agent, a host or the store; the only thing awaited is `spawn_linked`, which runs an
//!   infallible `pre_start`.
//! - **SUP-2** Here is the restart window; the error window is in the agent's actor.
//! - **SUP-3** A child that could not be spawned, or whose host failed for the moment, goes through the same restart
//!   branch as one that died: [`Supervisor::ended`].
//! - **SUP-4** Handles send their work here, and only the child that this supervisor owns gets it.
//! - **FENCE-2** A restart bumps the generation; messages that name an older one are dropped.
//!
//! Nothing lives only in a mailbox: claims are in the agent's `Custody`, and what the child does not end, the sweep
//! after its end (or the next tick) releases without a charge. A supervisor that itself dies is started again by the root
//! over the same records: each agent gets a new generation, nobody is charged.

use crate::agent::{AgentActor, AgentArguments, AgentMessage, Ending, Job, Load};
use crate::background::Timer;
use crate::dispatch::ClaimAnswer;
use crate::finish::closed;
use crate::group::Group;
use crate::handle::{WorkError, unavailable};
use crate::health::AgentHealth;
use crate::host::{Restart, SharedHost, Shutdown, WorkKey};
use crate::record::{AgentRecord, RoleRecord, TreeRecord, clip, locked};
use mnemosyne_core::{AgentState, EventKind, Exit, RestartDecision};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::oneshot;

pub(crate) enum RoleMessage {
    RegisterPythonBridge(SharedHost),
    /// The bridge is stuck, or goes on: `RoleRecord::stuck` says which.
    BridgeMoved,
    AddAgent(Arc<AgentRecord>),
    /// Something was committed, or a place became free: look for work.
    Wake,
    /// Every 250 ms: delayed items, leases, orphans.
    Tick,
    Claimed(ClaimAnswer),
    /// By a standing claim.
    Stood(ClaimAnswer),
    /// Direct work from a handle.
    Work {
        agent_id: String,
        job: Job,
    },
    Ready {
        agent_id: String,
        generation: u64,
    },
    Degraded {
        agent_id: String,
        generation: u64,
    },
    RestartDue {
        agent_id: String,
        generation: u64,
    },
    /// By a person; also releases from quarantine.
    Restart {
        agent_id: String,
        reason: String,
        reply: oneshot::Sender<AgentHealth>,
    },
    RecordError {
        agent_id: String,
        error: String,
        reply: oneshot::Sender<AgentHealth>,
    },
    Cancel {
        agent_id: String,
        key: WorkKey,
        ending: Ending,
        reason: String,
    },
    CancelRun {
        run: String,
        reason: String,
    },
    /// Of one agent, or of all.
    CancelAll {
        agent_id: Option<String>,
        reason: String,
    },
    /// Ends one agent; answered when it is gone. `forget`: it is not kept to be started once more.
    StopAgent {
        agent_id: String,
        shutdown: Shutdown,
        forget: bool,
        reply: oneshot::Sender<()>,
    },
    /// The delay of a group's restart is over.
    GroupDue(u64),
    #[cfg(test)]
    Panic,
    /// The child ends: by itself, or killed.
    #[cfg(test)]
    End {
        agent_id: String,
        exit: Exit,
    },
}

pub(crate) struct RoleSupervisor;

impl Actor for RoleSupervisor {
    type Msg = RoleMessage;
    type State = Supervisor;
    type Arguments = (Arc<TreeRecord>, Arc<RoleRecord>);

    async fn pre_start(
        &self,
        myself: ActorRef<RoleMessage>,
        (tree, role): Self::Arguments,
    ) -> Result<Supervisor, ActorProcessingErr> {
        *locked(&role.supervisor) = Some(myself.clone());
        Ok(Supervisor {
            myself,
            tree,
            role,
            slots: Vec::new(),
            places: HashMap::new(),
            next: 0,
            asking: 0,
            wake_again: false,
            over: BTreeSet::new(),
            group: None,
            groups: 0,
        })
    }

    async fn post_start(
        &self,
        _: ActorRef<RoleMessage>,
        supervisor: &mut Supervisor,
    ) -> Result<(), ActorProcessingErr> {
        for record in supervisor.role.agents() {
            supervisor.adopt(record).await;
        }
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<RoleMessage>,
        message: RoleMessage,
        supervisor: &mut Supervisor,
    ) -> Result<(), ActorProcessingErr> {
        supervisor.handle(message).await;
        supervisor.advance_group().await;
        Ok(())
    }

    /// ractor's default would stop the supervisor with its first child.
    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<RoleMessage>,
        event: SupervisionEvent,
        supervisor: &mut Supervisor,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(child, state, reason) => {
                drop(state); // cancels what was in flight and forgets the agent in its host, before anything follows
                let abnormal = reason.is_some();
                supervisor.ended(&child, reason.unwrap_or_else(|| "it ended".to_owned()), abnormal);
            }
            SupervisionEvent::ActorFailed(child, error) => {
                supervisor.ended(&child, format!("its actor failed: {error}"), true);
            }
            _ => {}
        }
        supervisor.advance_group().await;
        Ok(())
    }
}

/// One agent as its supervisor sees it.
pub(crate) struct Slot {
    pub(crate) record: Arc<AgentRecord>,
    /// The actor of this generation; the only way to reach the agent.
    pub(crate) child: Option<ActorRef<AgentMessage>>,
    /// Its host started it.
    pub(crate) ready: bool,
    /// Why this child cannot be made, as last announced.
    degraded: Option<String>,
    /// It was told to end, so that its group can restart: its exit is not counted.
    pub(crate) told: bool,
    /// Claims that were asked for and have no answer yet.
    pub(crate) claiming: usize,
    /// The generation that waits in the store with a standing claim.
    pub(crate) standing: Option<u64>,
    /// Direct work that came while the agent was starting; bounded by the agent's places.
    pub(crate) waiting: VecDeque<Job>,
    restart_timer: Option<Timer>,
    /// Asked to end: the exit is not answered with a restart.
    pub(crate) stopped: bool,
    /// Once it has ended and holds nothing, it is not kept.
    forget: bool,
    stop_replies: Vec<oneshot::Sender<()>>,
    restart_replies: Vec<oneshot::Sender<AgentHealth>>,
}

impl Slot {
    fn new(record: Arc<AgentRecord>) -> Self {
        Self {
            record,
            child: None,
            ready: false,
            degraded: None,
            told: false,
            claiming: 0,
            standing: None,
            waiting: VecDeque::new(),
            restart_timer: None,
            stopped: false,
            forget: false,
            stop_replies: Vec::new(),
            restart_replies: Vec::new(),
        }
    }

    /// The child, if it takes work.
    pub(crate) fn open(&self) -> Option<&ActorRef<AgentMessage>> {
        let takes = self.ready && !self.stopped && !self.told;
        self.child.as_ref().filter(|_| takes && self.record.book().leaving.is_none())
    }

    pub(crate) fn tell(&self, message: AgentMessage) {
        if let Some(child) = &self.child {
            let _ = child.send_message(message); // a child that is gone is found by its exit event
        }
    }

    /// Answers direct work that waits for a start which will not come soon.
    pub(crate) fn refuse_waiting(&mut self) {
        for job in std::mem::take(&mut self.waiting) {
            refuse(job, unavailable(&self.record));
        }
    }
}

pub(crate) fn refuse(job: Job, error: WorkError) {
    if let Load::Direct { reply, .. } = job.load {
        let _ = reply.send(Err(error));
    }
}

/// The actor's state. All of it can be made anew from the records.
pub(crate) struct Supervisor {
    pub(crate) myself: ActorRef<RoleMessage>,
    pub(crate) tree: Arc<TreeRecord>,
    pub(crate) role: Arc<RoleRecord>,
    /// In start order.
    pub(crate) slots: Vec<Slot>,
    /// Where the slot of each agent is: a thousand agents that start are not each looked for among a thousand.
    places: HashMap<String, usize>,
    /// Where the next pull begins, so that idle agents take turns.
    pub(crate) next: usize,
    /// Claims under way.
    pub(crate) asking: usize,
    /// Something was committed while claims were under way.
    pub(crate) wake_again: bool,
    /// Runs that ended while claims were under way: what those claims still bring of them is not begun.
    pub(crate) over: BTreeSet<String>,
    /// The restart of agents that restart together, while it is under way.
    pub(crate) group: Option<Group>,
    /// Restarts of groups so far: names the timer of each.
    pub(crate) groups: u64,
}

impl Supervisor {
    async fn handle(&mut self, message: RoleMessage) {
        match message {
            RoleMessage::RegisterPythonBridge(host) => {
                for slot in &self.slots {
                    slot.tell(AgentMessage::RegisterPythonBridge(host.clone()));
                }
            }
            RoleMessage::BridgeMoved => self.judge_role(),
            RoleMessage::AddAgent(record) => self.adopt(record).await,
            RoleMessage::Wake => self.wake(),
            RoleMessage::Tick => self.tick(),
            RoleMessage::Claimed(answer) => self.claimed(answer),
            RoleMessage::Stood(answer) => self.given(answer),
            RoleMessage::Work { agent_id, job } => self.work(&agent_id, job),
            RoleMessage::Ready { agent_id, generation } => self.ready(&agent_id, generation),
            RoleMessage::Degraded { agent_id, generation } => self.degraded(&agent_id, generation),
            RoleMessage::RestartDue { agent_id, generation } => self.restart_due(&agent_id, generation).await,
            RoleMessage::Restart { agent_id, reason, reply } => self.restart(&agent_id, reason, reply),
            RoleMessage::GroupDue(number) => self.group_due(number),
            RoleMessage::RecordError { agent_id, error, reply } => {
                if let Some(slot) = self.slot(&agent_id) {
                    slot.tell(AgentMessage::RecordError { error, reply });
                }
            }
            RoleMessage::Cancel { agent_id, key, ending, reason } => {
                if let Some(slot) = self.slot(&agent_id) {
                    slot.waiting.retain(|job| job.key != key);
                    slot.tell(AgentMessage::Cancel { key, ending, reason });
                }
            }
            RoleMessage::CancelRun { run, reason } => self.cancel_run(run, &reason),
            RoleMessage::CancelAll { agent_id, reason } => self.cancel_all(agent_id.as_deref(), &reason),
            RoleMessage::StopAgent { agent_id, shutdown, forget, reply } => {
                self.stop_agent(&agent_id, shutdown, forget, reply);
            }
            #[cfg(test)]
            RoleMessage::Panic => panic!("asked to"),
            #[cfg(test)]
            RoleMessage::End { agent_id, exit } => {
                if let Some(child) = self.slot(&agent_id).and_then(|slot| slot.child.as_ref()) {
                    if exit == Exit::Normal { child.stop(None) } else { child.kill() }
                }
            }
        }
    }

    pub(crate) fn place(&self, agent_id: &str) -> Option<usize> {
        self.places.get(agent_id).copied()
    }

    pub(crate) fn slot(&mut self, agent_id: &str) -> Option<&mut Slot> {
        let index = self.place(agent_id)?;
        self.slots.get_mut(index)
    }

    /// The slot, if `generation` is the one that lives (FENCE-2).
    fn current(&mut self, agent_id: &str, generation: u64) -> Option<&mut Slot> {
        self.slot(agent_id).filter(|slot| slot.child.is_some() && slot.record.generation() == generation)
    }

    // ---- children -------------------------------------------------------------------------------------------------

    /// Takes an agent under supervision: a new one, or one whose earlier supervisor died.
    async fn adopt(&mut self, record: Arc<AgentRecord>) {
        if self.places.contains_key(&record.agent_id) {
            return;
        }
        let (generation, state) = {
            let book = record.book();
            (book.generation, book.state)
        };
        let index = self.slots.len();
        self.places.insert(record.agent_id.clone(), index);
        self.slots.push(Slot::new(record));
        match state {
            _ if self.slots[index].record.is_closing() => self.finish_stop(index),
            _ if generation == 0 => {
                self.slots[index].record.book().generation = 1;
                self.spawn_child(index).await;
            }
            AgentState::Quarantined => {}
            AgentState::Stopped => self.slots[index].stopped = true,
            _ => {
                self.sweep(index, generation);
                self.begin_restart(index, "its supervisor went down", 0);
            }
        }
    }

    pub(crate) async fn spawn_child(&mut self, index: usize) {
        let host = locked(&self.role.host).clone();
        let slot = &mut self.slots[index];
        let generation = {
            let mut book = slot.record.book();
            book.state = AgentState::Starting;
            book.next_restart_at = None;
            book.window.succeed();
            book.leaving = None;
            book.generation
        };
        let arguments = AgentArguments {
            tree: self.tree.clone(),
            role: self.role.clone(),
            record: slot.record.clone(),
            generation,
            host,
        };
        slot.ready = false;
        slot.degraded = None;
        slot.told = false;
        match AgentActor::spawn_linked(None, AgentActor, arguments, self.myself.get_cell()).await {
            Ok((child, _)) => slot.child = Some(child),
            Err(error) => self.went_down(index, format!("it could not be spawned: {error}"), true),
        }
    }

    /// A child is gone. Messages about earlier children are dropped.
    fn ended(&mut self, child: &ActorCell, reason: String, abnormal: bool) {
        let is_child = |slot: &Slot| slot.child.as_ref().is_some_and(|known| known.get_id() == child.get_id());
        let Some(index) = self.slots.iter().rposition(is_child) else { return };
        let slot = &mut self.slots[index];
        slot.child = None;
        slot.ready = false;
        let leaving = slot.record.book().leaving.take();
        let generation = slot.record.generation();
        self.sweep(index, generation);
        if self.slots[index].stopped {
            return self.finish_stop(index);
        }
        if std::mem::take(&mut self.slots[index].told) {
            return; // its group goes on without counting it
        }
        let (reason, exit) = match leaving {
            Some((reason, true)) => (reason, Exit::Abnormal),
            Some((reason, false)) => (reason, Exit::Replaced),
            None if abnormal => (reason, Exit::Abnormal),
            None => (reason, Exit::Normal),
        };
        if self.slots[index].record.spec.restart.after(exit) {
            self.went_down(index, reason, exit != Exit::Replaced);
        } else {
            self.finish_end(index, &reason);
        }
    }

    /// The restart branch: at once, later, or not any more; alone, or with its group.
    fn went_down(&mut self, index: usize, reason: String, fault: bool) {
        let now = self.tree.now();
        let group = fault && self.role.spec.strategy.is_group();
        let decision = match (fault, group) {
            (false, _) => RestartDecision::After { delay_ms: 0 },
            (true, false) => self.slots[index].record.book().policy.down(now, jitter()),
            (true, true) => locked(&self.role.group).down(now, jitter()),
        };
        match decision {
            RestartDecision::After { delay_ms } if group => self.begin_group(index, reason, Some(delay_ms)),
            RestartDecision::After { delay_ms } => self.begin_restart(index, &reason, delay_ms),
            RestartDecision::Quarantine if group => self.begin_group(index, reason, None),
            RestartDecision::Quarantine => self.quarantine(index, &reason),
        }
    }

    /// The child comes after the delay.
    fn begin_restart(&mut self, index: usize, reason: &str, delay_ms: u64) {
        let generation = self.announce_restart(index, reason, delay_ms);
        let slot = &mut self.slots[index];
        let due = RoleMessage::RestartDue { agent_id: slot.record.agent_id.clone(), generation };
        let myself = self.myself.clone();
        slot.restart_timer = Some(self.tree.background.after(Duration::from_millis(delay_ms), move || {
            let _ = myself.send_message(due);
        }));
    }

    /// Bumps the generation now, so that everything of the old one is stale.
    pub(crate) fn announce_restart(&mut self, index: usize, reason: &str, delay_ms: u64) -> u64 {
        let due = self.tree.store.now().saturating_add(i64::try_from(delay_ms).unwrap_or(i64::MAX));
        let slot = &mut self.slots[index];
        let generation = {
            let mut book = slot.record.book();
            book.generation += 1;
            book.restarts += 1;
            book.state = AgentState::Restarting;
            book.next_restart_at = (delay_ms > 0).then_some(due);
            reason.clone_into(&mut book.reason);
            book.generation
        };
        let event = slot.record.event(EventKind::AgentRestarted, generation).with("reason", clip(reason));
        let event = event.with("generation", generation).with("delay_seconds", delay_ms as f64 / 1_000.0);
        self.tree.events.announce(event);
        let agent_id = &slot.record.agent_id;
        tracing::info!(target: "mnemosyne.runtime", "{agent_id} begins generation {generation}: {reason}");
        if delay_ms > 0 {
            slot.refuse_waiting();
        }
        let health = slot.record.health(&self.tree, &self.role);
        for reply in slot.restart_replies.drain(..) {
            let _ = reply.send(health.clone());
        }
        self.judge_role();
        generation
    }

    async fn restart_due(&mut self, agent_id: &str, generation: u64) {
        let due = |slot: &Slot| slot.record.generation() == generation && slot.child.is_none() && !slot.stopped;
        if let Some(index) = self.place(agent_id).filter(|index| due(&self.slots[*index])) {
            self.slots[index].restart_timer = None;
            self.spawn_child(index).await;
        }
    }

    pub(crate) fn quarantine(&mut self, index: usize, reason: &str) {
        let slot = &mut self.slots[index];
        let generation = {
            let mut book = slot.record.book();
            book.state = AgentState::Quarantined;
            book.next_restart_at = None;
            book.reported_degraded = true; // its first success after its release says that it has recovered
            reason.clone_into(&mut book.reason);
            book.generation
        };
        let event = slot.record.event(EventKind::AgentQuarantined, generation).with("reason", clip(reason));
        self.tree.events.announce(event);
        slot.refuse_waiting();
        self.judge_role();
    }

    /// By a person: not counted, and earlier restarts are forgiven. An agent that was ended is started once more.
    fn restart(&mut self, agent_id: &str, reason: String, reply: oneshot::Sender<AgentHealth>) {
        let Some(index) = self.place(agent_id) else { return };
        let slot = &mut self.slots[index];
        if slot.stopped && (slot.child.is_some() || slot.forget || self.tree.is_draining()) {
            return; // dropping the reply says so
        }
        if std::mem::take(&mut slot.stopped) {
            slot.record.reopen();
        }
        slot.record.book().policy.forgive();
        locked(&self.role.group).forgive();
        slot.restart_replies.push(reply);
        match &slot.child {
            Some(child) => {
                slot.record.book().leaving = Some((reason.clone(), false));
                child.stop(Some(reason));
            }
            None => self.begin_restart(index, &reason, 0),
        }
    }

    fn stop_agent(&mut self, agent_id: &str, shutdown: Shutdown, forget: bool, reply: oneshot::Sender<()>) {
        let Some(index) = self.place(agent_id) else { return };
        let slot = &mut self.slots[index];
        slot.stopped = true;
        slot.forget |= forget;
        slot.restart_timer = None;
        slot.stop_replies.push(reply);
        for job in std::mem::take(&mut slot.waiting) {
            refuse(job, closed().into());
        }
        match slot.child.is_some() {
            true => slot.tell(AgentMessage::WindDown(shutdown)),
            false => self.finish_stop(index),
        }
    }

    /// Ended because somebody asked for it.
    fn finish_stop(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        slot.stopped = true;
        slot.record.places().close();
        let was = {
            let mut book = slot.record.book();
            book.next_restart_at = None;
            std::mem::replace(&mut book.state, AgentState::Stopped)
        };
        // The end of the whole tree says it for all, and a standalone bridge is a whole tree.
        if was != AgentState::Stopped && self.tree.claims && !self.tree.is_draining() {
            let reason = slot.record.book().reason.clone();
            let reason = if reason.is_empty() { "requested".to_owned() } else { clip(&reason) };
            let event = slot.record.event(EventKind::AgentStopped, slot.record.generation());
            self.tree.events.announce(event.with("reason", reason));
        }
        for job in std::mem::take(&mut slot.waiting) {
            refuse(job, closed().into());
        }
        slot.restart_replies.clear();
        let replies = std::mem::take(&mut slot.stop_replies);
        self.forget_if_over(index);
        self.judge_unless_well();
        for reply in replies {
            let _ = reply.send(());
        }
    }

    /// Ended by itself, and its spec says that it stays so. Of a temporary child nothing is kept.
    pub(crate) fn finish_end(&mut self, index: usize, reason: &str) {
        let slot = &mut self.slots[index];
        reason.clone_into(&mut slot.record.book().reason);
        slot.forget |= slot.record.spec.restart == Restart::Temporary;
        self.finish_stop(index);
    }

    /// Lets go of an agent that is over, once no claim of it is left to be ended.
    fn forget_if_over(&mut self, index: usize) {
        let slot = &self.slots[index];
        if slot.forget && slot.child.is_none() && slot.claiming == 0 && slot.record.custody.is_empty() {
            let slot = self.slots.remove(index);
            self.places.remove(&slot.record.agent_id);
            for later in &self.slots[index..] {
                if let Some(place) = self.places.get_mut(&later.record.agent_id) {
                    *place -= 1;
                }
            }
            self.role.forget(&self.tree, &slot.record.agent_id);
        }
    }

    pub(crate) fn forget_ended(&mut self) {
        for index in (0..self.slots.len()).rev() {
            self.forget_if_over(index);
        }
    }

    fn ready(&mut self, agent_id: &str, generation: u64) {
        let now = self.tree.now();
        let Some(slot) = self.current(agent_id, generation) else { return };
        slot.ready = true;
        slot.record.book().policy.started(now);
        let event = slot.record.event(EventKind::AgentStarted, generation);
        let waiting = std::mem::take(&mut slot.waiting);
        locked(&self.role.group).started(now);
        self.tree.events.announce(event);
        for job in waiting {
            self.work(agent_id, job);
        }
        // What let this one start may let the others start too: no need to wait for their probes.
        if locked(&self.role.degraded).is_some() {
            for slot in self.slots.iter().filter(|slot| slot.record.book().state == AgentState::Degraded) {
                slot.tell(AgentMessage::Probe);
            }
        }
        self.judge_unless_well();
        if let Some(index) = self.place(agent_id) {
            self.stand(index);
        }
        self.pull(1);
    }

    fn degraded(&mut self, agent_id: &str, generation: u64) {
        let Some(slot) = self.current(agent_id, generation) else { return };
        slot.ready = false;
        slot.refuse_waiting();
        let reason = slot.record.book().reason.clone();
        if slot.degraded.as_ref() != Some(&reason) {
            let event = slot.record.event(EventKind::AgentDegraded, generation).with("reason", clip(&reason));
            slot.degraded = Some(reason); // each probe says it again
            self.tree.events.announce(event);
        }
        self.judge_role();
    }

    /// A role that is well and has an agent that works stays so, whatever became of another that is not degraded: a
    /// thousand agents that start or end are not each looked at a thousand times.
    fn judge_unless_well(&self) {
        let works = |slot: &Slot| {
            let state = slot.record.book().state;
            !matches!(state, AgentState::Degraded | AgentState::Quarantined | AgentState::Stopped)
        };
        if locked(&self.role.degraded).is_some() || !self.slots.iter().any(works) {
            self.judge_role();
        }
    }

    /// The role is degraded while an agent of it cannot be made, or when none is left that could work.
    fn judge_role(&self) {
        if self.tree.is_draining() {
            return;
        }
        let mut out_of_service = None;
        let mut works = false;
        let mut degraded = None;
        for slot in &self.slots {
            let book = slot.record.book();
            match book.state {
                AgentState::Degraded => degraded = degraded.or_else(|| Some(book.reason.clone())),
                AgentState::Quarantined => {
                    out_of_service = Some(format!("{} is quarantined: {}", slot.record.agent_id, book.reason));
                }
                AgentState::Stopped => {}
                _ => works = true,
            }
        }
        let stuck = locked(&self.role.stuck).clone().filter(|_| works);
        let reason = degraded.or(stuck).or(out_of_service.filter(|_| !works));
        self.role.out_of_service.store(!works && reason.is_some(), Ordering::SeqCst);
        self.role.announce_degraded(&self.tree, reason);
        self.tree.judge_intake();
    }
}

/// Uniform in 0..1. Without randomness every agent waits half of the bound, which is still a delay.
fn jitter() -> f64 {
    getrandom::u64().map_or(0.5, |bits| (bits >> 11) as f64 / (1_u64 << 53) as f64)
}
