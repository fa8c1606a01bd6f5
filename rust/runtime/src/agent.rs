//! One generation of one agent: an actor that starts the agent in its host, hands it work, and keeps its error window.
//!
//! - **SUP-1** `handle` never awaits: host and store calls run beside it and come back as messages.
//! - **SUP-2** The error window is here and dies with the generation; restarts are the supervisor's.
//! - **SUP-3** A start that fails for the moment ends this generation (a counted failure); one that fails for good leaves
//!   the actor alive, degraded, and probing every 5 s.
//! - **FENCE-2**, **KILL-1** What must happen at the end of a generation, however it ends, is in `guards`.
//!
//! A panic in the actor itself counts in the agent's restart window and charges no item: what it held goes back.

use crate::assignment::about;
use crate::background::Timer;
use crate::finish::{self, Judged, Leave};
use crate::guards::{InFlight, Report, Reporter, Seat, Settled, Settling};
use crate::handle::WorkError;
use crate::health::AgentHealth;
use crate::host::{AgentSpec, AgentStart, Assignment, HostError, Isolation, SharedHost, Work, WorkKey};
use crate::record::{AgentRecord, Book, RoleRecord, TreeRecord, clip};
use crate::role_supervisor::RoleMessage;
use crate::settle::{End, Verdict, settle};
use mnemosyne_core::{AgentState, ErrorWindow, EventKind, NewEvent, Shutdown, WorkItem, WorkResult};
use mnemosyne_store::Claimed;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

/// How often a degraded agent tries to start.
pub(crate) const PROBE_EVERY: Duration = Duration::from_secs(5);
/// How long cancelled work may take to end before it is abandoned.
pub(crate) const GRACE: Duration = Duration::from_secs(5);
/// The same in a worker process: it is killed then, with room for that within a second of the deadline.
const PROCESS_GRACE: Duration = Duration::from_millis(500);
/// An agent that was left behind so often goes on in a process of its own, where what does not stop can be killed.
pub(crate) const ABANDONED_TO_PROCESS: u32 = 2;
/// A bridge is registered right after its tree began; only a longer absence is worth an event.
const HOST_GRACE: Duration = Duration::from_secs(1);
/// A host that does not answer for so long has failed to start the agent.
const START_LIMIT: Duration = Duration::from_secs(60);
/// The reason of a role without a host.
pub(crate) const NO_HOST: &str = "no Python bridge is registered";

/// Answers direct work.
pub(crate) type Reply = oneshot::Sender<Result<WorkResult, WorkError>>;

/// One item for one agent, with the place that it takes.
pub(crate) struct Job {
    pub(crate) key: WorkKey,
    pub(crate) place: OwnedSemaphorePermit,
    pub(crate) deadline: Instant,
    pub(crate) load: Load,
}

/// Durable or direct.
pub(crate) enum Load {
    Claimed(Arc<Claimed>),
    /// With the room that it takes in the tree.
    Direct {
        item: Arc<WorkItem>,
        reply: Reply,
        room: OwnedSemaphorePermit,
    },
}

impl Load {
    pub(crate) fn work(&self) -> &WorkItem {
        match self {
            Load::Claimed(claimed) => &claimed.item.work,
            Load::Direct { item, .. } => item,
        }
    }
}

/// Why we cancelled work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Its time is up.
    Deadline,
    /// The tree drains, or the agent shuts down.
    Drain,
    /// Its item or its run was cancelled, or its run stopped: the claim is over.
    Over,
    /// Its lease could not be renewed: another claim took over.
    Revoked,
    /// The caller of direct work is gone.
    Unwanted,
}

pub(crate) enum AgentMessage {
    /// Attaches a host, or another one.
    RegisterPythonBridge(SharedHost),
    /// Start the agent, if it is not started.
    Probe,
    Started {
        attempt: u64,
        result: Result<(), HostError>,
    },
    Work(Job),
    /// The host lost the agent: its process ended.
    Gone(HostError),
    Finished(Report),
    Deadline(WorkKey),
    Abandon(WorkKey),
    Cancel {
        key: WorkKey,
        ending: Ending,
        reason: String,
    },
    CancelRun {
        run: String,
        reason: String,
    },
    CancelAll {
        reason: String,
    },
    /// Take no more work, and stop when none is left.
    WindDown(Shutdown),
    /// The time for that is up; `last`: also the time for what was cancelled then.
    TimeUp {
        last: bool,
    },
    RecordError {
        error: String,
        reply: oneshot::Sender<AgentHealth>,
    },
    Settled(Settled),
}

/// What the actor is made of.
pub(crate) struct AgentArguments {
    pub(crate) tree: Arc<TreeRecord>,
    pub(crate) role: Arc<RoleRecord>,
    pub(crate) record: Arc<AgentRecord>,
    pub(crate) generation: u64,
    pub(crate) host: Option<SharedHost>,
}

pub(crate) struct AgentActor;

impl Actor for AgentActor {
    type Msg = AgentMessage;
    type State = Life;
    type Arguments = AgentArguments;

    /// Infallible: a failure here would send no supervision event.
    async fn pre_start(
        &self,
        myself: ActorRef<AgentMessage>,
        arguments: AgentArguments,
    ) -> Result<Life, ActorProcessingErr> {
        Ok(Life::new(myself, arguments))
    }

    async fn post_start(&self, _: ActorRef<AgentMessage>, life: &mut Life) -> Result<(), ActorProcessingErr> {
        life.probe();
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<AgentMessage>,
        message: AgentMessage,
        life: &mut Life,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            AgentMessage::RegisterPythonBridge(host) => life.register(host),
            AgentMessage::Probe => life.probe(),
            AgentMessage::Started { attempt, result } => life.started(attempt, result),
            AgentMessage::Work(job) => life.work(job),
            AgentMessage::Gone(error) => life.gone(&error),
            AgentMessage::Finished(report) => life.finished(report),
            AgentMessage::Deadline(key) => life.cancel(key, Ending::Deadline, "deadline"),
            AgentMessage::Abandon(key) => life.abandon(key),
            AgentMessage::Cancel { key, ending, reason } => life.cancel(key, ending, &reason),
            AgentMessage::CancelRun { run, reason } => life.cancel_run(&run, &reason),
            AgentMessage::CancelAll { reason } => life.cancel_all(&reason),
            AgentMessage::WindDown(shutdown) => life.wind_down(shutdown),
            AgentMessage::TimeUp { last } => life.time_up(last),
            AgentMessage::RecordError { error, reply } => life.record_error(&error, reply),
            AgentMessage::Settled(settled) => life.settled(settled),
        }
        Ok(())
    }
}

/// Where this generation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No host yet, or the host has not answered.
    Starting,
    Ready,
    /// The host refused for good; a probe is due.
    Degraded,
    /// Stopping; the supervisor knows why.
    Leaving,
}

/// The actor's state.
pub(crate) struct Life {
    myself: ActorRef<AgentMessage>,
    tree: Arc<TreeRecord>,
    role: Arc<RoleRecord>,
    record: Arc<AgentRecord>,
    generation: u64,
    stage: Stage,
    window: ErrorWindow,
    // Declared before `seat`: work is cancelled before its agent is forgotten.
    jobs: BTreeMap<WorkKey, InFlight>,
    /// Claims whose end is being stored.
    settling: usize,
    /// The window is full and the restart waits for a commit: further errors do not ask for another.
    restart_pending: bool,
    host: Option<SharedHost>,
    seat: Option<Seat>,
    /// Counts starts, so that the answer to an earlier one is not taken for this one's.
    attempt: u64,
    /// A start is under way: another probe need not begin one.
    start_under_way: bool,
    probe_timer: Option<Timer>,
    /// It takes no more work, and stops when it holds none.
    winding_down: bool,
    /// When what it holds is cancelled, then when it stops all the same.
    shutdown_timer: Option<Timer>,
    /// Waits for the end of the agent's process.
    process_watch: Option<Timer>,
}

impl Life {
    fn new(myself: ActorRef<AgentMessage>, arguments: AgentArguments) -> Self {
        let AgentArguments { tree, role, record, generation, host } = arguments;
        Self {
            myself,
            tree,
            role,
            record,
            generation,
            stage: Stage::Starting,
            window: ErrorWindow::default(),
            jobs: BTreeMap::new(),
            settling: 0,
            restart_pending: false,
            host,
            seat: None,
            attempt: 0,
            start_under_way: false,
            probe_timer: None,
            winding_down: false,
            shutdown_timer: None,
            process_watch: None,
        }
    }

    // ---- starting -------------------------------------------------------------------------------------------------

    fn register(&mut self, host: SharedHost) {
        let same = self.host.as_ref().is_some_and(|known| Arc::ptr_eq(known, &host));
        match self.stage {
            Stage::Leaving => {}
            Stage::Ready | Stage::Starting if same => {}
            Stage::Ready => self.leave("another bridge was registered", false),
            Stage::Starting | Stage::Degraded => {
                self.seat = None;
                self.host = Some(host);
                self.stage = Stage::Starting;
                self.start_under_way = false;
                self.probe();
            }
        }
    }

    /// Starts the agent in its host; the answer comes as a message.
    fn probe(&mut self) {
        self.probe_timer = None;
        if self.start_under_way || matches!(self.stage, Stage::Ready | Stage::Leaving) {
            return;
        }
        let Some(host) = self.host.clone() else { return self.without_host() };
        self.attempt += 1;
        self.start_under_way = true;
        self.seat.get_or_insert_with(|| Seat {
            host: host.clone(),
            record: self.record.clone(),
            generation: self.generation,
            tree: self.tree.clone(),
        });
        let start = AgentStart {
            agent_id: self.record.agent_id.clone(),
            role: self.record.role,
            generation: self.generation,
            spec: self.spec(),
        };
        let (background, myself, attempt) = (self.tree.background.clone(), self.myself.clone(), self.attempt);
        let starting = background.spawn(async move { tokio::time::timeout(START_LIMIT, host.start(start)).await });
        background.spawn(async move {
            let result = match starting.await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(HostError::new("StartTimeout", "the host did not answer within 60 s", false)),
                Err(error) => Err(HostError::new("HostPanic", error.to_string(), false)),
            };
            let _ = myself.send_message(AgentMessage::Started { attempt, result });
        });
    }

    /// As this generation is made: an agent that was left behind again and again gets a process.
    fn spec(&self) -> AgentSpec {
        AgentSpec { isolation: self.record.isolation(), ..self.record.spec.clone() }
    }

    /// At first only waits: the bridge may be on its way.
    fn without_host(&mut self) {
        if self.attempt == 0 && self.stage == Stage::Starting {
            self.attempt = 1;
            self.probe_timer = Some(self.probe_after(HOST_GRACE));
            return;
        }
        self.degrade(NO_HOST.to_owned(), None);
    }

    fn probe_after(&self, delay: Duration) -> Timer {
        let myself = self.myself.clone();
        self.tree.background.after(delay, move || {
            let _ = myself.send_message(AgentMessage::Probe);
        })
    }

    fn started(&mut self, attempt: u64, result: Result<(), HostError>) {
        if attempt != self.attempt || matches!(self.stage, Stage::Ready | Stage::Leaving) {
            return;
        }
        self.start_under_way = false;
        match result {
            Ok(()) => {
                self.stage = Stage::Ready;
                self.watch_process();
                self.book(|book| {
                    book.state = AgentState::Idle;
                    book.next_restart_at = None;
                    book.reason.clear();
                });
                self.tell(|agent_id, generation| RoleMessage::Ready { agent_id, generation });
            }
            Err(error) => {
                let text = error.to_string();
                self.remember_error(&text);
                if error.permanent {
                    self.probe_timer = Some(self.probe_after(PROBE_EVERY));
                    self.degrade(text, Some(PROBE_EVERY));
                } else {
                    self.leave(&format!("it could not start: {text}"), true);
                }
            }
        }
    }

    fn watch_process(&mut self) {
        let (Some(host), Isolation::Process) = (self.host.clone(), self.record.isolation()) else { return };
        let (myself, agent_id, generation) = (self.myself.clone(), self.record.agent_id.clone(), self.generation);
        self.process_watch = Some(self.tree.background.watch(async move {
            let error = host.gone(&agent_id, generation).await;
            let _ = myself.send_message(AgentMessage::Gone(error));
        }));
    }

    /// What it held has been judged by then, and may have said already that the agent goes.
    fn gone(&mut self, error: &HostError) {
        if !self.restart_pending {
            self.remember_error(&error.to_string());
            self.leave(&clip(&error.to_string()), true);
        }
    }

    fn degrade(&mut self, reason: String, next: Option<Duration>) {
        self.stage = Stage::Degraded;
        let next = next.map(|delay| self.tree.store.now() + i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
        self.book(|book| {
            book.state = AgentState::Degraded;
            book.next_restart_at = next;
            book.reason.clone_from(&reason);
        });
        self.tell(|agent_id, generation| RoleMessage::Degraded { agent_id, generation });
    }

    // ---- work -----------------------------------------------------------------------------------------------------

    fn work(&mut self, job: Job) {
        let Job { key, place, deadline, load } = job;
        let Some(host) = self.host.clone().filter(|_| self.stage == Stage::Ready) else { return };
        let (agent_id, generation) = (self.record.agent_id.clone(), self.generation);
        let work = match &load {
            Load::Claimed(claimed) => Work::Claimed { claimed: Arc::clone(claimed), about: about(claimed) },
            Load::Direct { reply, .. } if reply.is_closed() => return,
            Load::Direct { item, .. } => {
                let event = self.event(EventKind::AgentStartedWithTask);
                self.tree.events.announce(event.with("description", item.description.clone()));
                Work::Direct(item.clone())
            }
        };
        let report = Report { key, outcome: None, tree: self.tree.clone(), record: self.record.clone(), generation };
        let reporter = Reporter { actor: self.myself.clone(), report: Some(report) };
        let timer = self.timer(deadline.saturating_duration_since(Instant::now()), AgentMessage::Deadline(key));
        let job = InFlight {
            host: host.clone(),
            ticket: None,
            place: Some(place),
            load: Some(load),
            ending: None,
            timer: Some(timer),
            finished: false,
        };
        self.jobs.insert(key, job);
        self.refresh();
        // Its place in `jobs` is there before: should the host panic, the job is released with the actor.
        let assignment = Assignment { key, agent_id, generation, work };
        let ticket = host.submit(assignment, Box::new(move |outcome| reporter.deliver(outcome)));
        if let Some(job) = self.jobs.get_mut(&key) {
            job.ticket = Some(ticket);
        }
    }

    fn timer(&self, delay: Duration, message: AgentMessage) -> Timer {
        let myself = self.myself.clone();
        self.tree.background.after(delay, move || {
            let _ = myself.send_message(message);
        })
    }

    /// Asks the host to cancel; what has not ended after the grace is abandoned. The first reason stands.
    fn cancel(&mut self, key: WorkKey, ending: Ending, reason: &str) {
        let patience = match self.record.isolation() {
            Isolation::Thread => GRACE,
            Isolation::Process => PROCESS_GRACE,
        };
        let grace = self.timer(patience, AgentMessage::Abandon(key));
        if let Some(job) = self.jobs.get_mut(&key).filter(|job| job.ending.is_none()) {
            job.ending = Some(ending);
            job.timer = Some(grace);
            job.cancel(reason);
        }
    }

    fn cancel_run(&mut self, run: &str, reason: &str) {
        let of_run = |job: &InFlight| match &job.load {
            Some(Load::Claimed(claimed)) => claimed.item.run.as_deref() == Some(run),
            _ => false,
        };
        let keys: Vec<WorkKey> = self.jobs.iter().filter(|(_, job)| of_run(job)).map(|(key, _)| *key).collect();
        for key in keys {
            self.cancel(key, Ending::Over, reason);
        }
    }

    fn cancel_all(&mut self, reason: &str) {
        let keys: Vec<WorkKey> = self.jobs.keys().copied().collect();
        for key in keys {
            self.cancel(key, Ending::Drain, reason);
        }
    }

    fn finished(&mut self, report: Report) {
        if !self.jobs.contains_key(&report.key) {
            return; // abandoned: the report counts itself
        }
        let (key, outcome) = report.read();
        let Some(mut job) = self.jobs.remove(&key) else { return };
        job.finished = true;
        let (ending, place) = (job.ending, job.place.take());
        match job.load.take() {
            Some(Load::Claimed(claimed)) => {
                let judged = finish::claimed(self, &claimed, outcome, ending);
                self.settle(key, judged, place);
            }
            Some(Load::Direct { item, reply, room }) => {
                drop(room);
                let (answer, leave) = finish::direct(self, &item, outcome, ending);
                self.leave_now(leave);
                let _ = reply.send(answer);
            }
            None => {}
        }
        self.refresh();
    }

    /// Work that did not stop: the agent is left behind with it, and a new generation takes over (FENCE-2).
    fn abandon(&mut self, key: WorkKey) {
        let Some(mut job) = self.jobs.remove(&key) else { return };
        job.abandon();
        self.book(|book| book.abandoned = book.abandoned.saturating_add(1));
        let ending = job.ending.unwrap_or(Ending::Deadline);
        let place = job.place.take();
        match job.load.take() {
            Some(Load::Claimed(claimed)) => {
                let judged = finish::abandoned(self, &claimed, ending);
                self.settle(key, judged, place);
            }
            Some(Load::Direct { item, reply, room }) => {
                drop(room);
                let problem = finish::abandoned_direct(self, &item, ending);
                self.leave_now(Some(Leave::because(&self.abandoned_reason())));
                let _ = reply.send(Err(WorkError::from(problem)));
            }
            None => {}
        }
        self.refresh();
    }

    /// Stores the end of a claim beside the actor.
    fn settle(&mut self, key: WorkKey, judged: Judged, place: Option<OwnedSemaphorePermit>) {
        let Judged { end, leave } = judged;
        self.restart_pending |= leave.is_some();
        let settled = Settled { _place: place, leave, verdict: Verdict::Unknown };
        let mut settling = Settling { actor: self.myself.clone(), role: self.role.clone(), settled: Some(settled) };
        self.settling += 1;
        let Some(settlement) = self.record.custody.take(key) else { return }; // dropping `settling` answers
        let (tree, record) = (self.tree.clone(), self.record.clone());
        self.tree.background.spawn(async move {
            let verdict = settle(&tree, &record, settlement, end).await;
            if let Some(settled) = &mut settling.settled {
                settled.verdict = verdict;
            }
        });
    }

    fn settled(&mut self, settled: Settled) {
        self.settling = self.settling.saturating_sub(1);
        match settled.leave.clone() {
            // Poison: the item was the fault, so the agent is not charged for it.
            Some(leave) if settled.verdict == Verdict::Dead && !leave.stuck => {
                self.restart_pending = false;
                self.window.succeed();
                self.publish_window();
            }
            Some(leave) => self.leave(&leave.reason, settled.verdict != Verdict::Dead),
            None => {}
        }
        self.refresh();
        drop(settled); // the place is free only now: what takes it finds the supervisor informed
    }

    // ---- errors ---------------------------------------------------------------------------------------------------

    fn record_error(&mut self, error: &str, reply: oneshot::Sender<AgentHealth>) {
        let (full, events) = self.count_error(error);
        for event in events {
            self.tree.events.announce(event);
        }
        let health = self.record.health(&self.tree, &self.role);
        self.leave_now(full);
        let _ = reply.send(health);
    }

    /// Counts an error; `Some` when the window is full and nobody asked for the restart yet.
    pub(crate) fn count_error(&mut self, error: &str) -> (Option<Leave>, Vec<NewEvent>) {
        use mnemosyne_core::Verdict as Window;
        self.remember_error(error);
        let verdict = self.window.record(self.tree.now());
        let count = self.error_count();
        let mut events =
            vec![self.event(EventKind::AgentErrorRecorded).with("count", count).with("error", clip(error))];
        if verdict == Window::Degraded {
            let event = self.event(EventKind::AgentHealthDegraded);
            events.push(event.with("count", count).with("healthy", false));
        }
        self.publish_window();
        self.book(|book| book.reported_degraded |= verdict == Window::Degraded);
        let full = verdict == Window::Restart && !self.restart_pending && self.stage != Stage::Leaving;
        let leave = full.then(|| Leave::because(&format!("{count} errors within 60 s, the last: {}", clip(error))));
        (leave, events)
    }

    /// A success empties the window, and ends a reported degradation.
    pub(crate) fn count_success(&mut self) -> Option<NewEvent> {
        self.window.succeed();
        self.publish_window();
        let reported = self.book(|book| std::mem::take(&mut book.reported_degraded));
        reported.unwrap_or(false).then(|| self.event(EventKind::AgentRecovered))
    }

    pub(crate) fn error_count(&self) -> usize {
        self.window.count(self.tree.now())
    }

    pub(crate) fn event(&self, kind: EventKind) -> NewEvent {
        self.record.event(kind, self.generation)
    }

    /// Announces an event that belongs to no commit.
    pub(crate) fn announce(&self, event: NewEvent) {
        self.tree.events.announce(event);
    }

    /// Announces that a result came for a claim that is over.
    pub(crate) fn announce_stale(&self) {
        self.tree.events.announce(self.record.stale(self.generation));
    }

    pub(crate) fn abandoned_reason(&self) -> String {
        let reason = "its work did not stop when it was cancelled";
        if self.record.isolation() == self.record.spec.isolation {
            return reason.to_owned();
        }
        format!("{reason}, again; it goes on in a process of its own")
    }

    pub(crate) fn remember_error(&mut self, error: &str) {
        let last = Some((clip(error), self.tree.store.now()));
        self.book(|book| book.last_error = last);
    }

    fn publish_window(&self) {
        self.book(|book| book.window.clone_from(&self.window));
    }

    // ---- leaving --------------------------------------------------------------------------------------------------

    fn leave_now(&mut self, leave: Option<Leave>) {
        if let Some(leave) = leave {
            self.leave(&leave.reason, true);
        }
    }

    /// Ends this generation. The book says so before anything that the end sets free (places, replies) can reach the
    /// supervisor, so that nothing is sent here any more. `fault`: it counts in the restart window.
    fn leave(&mut self, reason: &str, fault: bool) {
        if self.stage == Stage::Leaving {
            return;
        }
        self.stage = Stage::Leaving;
        self.book(|book| {
            book.state = AgentState::Restarting;
            reason.clone_into(&mut book.reason);
            book.leaving.get_or_insert_with(|| (reason.to_owned(), fault));
        });
        self.myself.stop(Some(reason.to_owned()));
    }

    /// Lets what it holds finish for as long as the shutdown says; then cancels it, and waits for its end to be stored.
    fn wind_down(&mut self, shutdown: Shutdown) {
        self.winding_down = true;
        match shutdown {
            Shutdown::Kill => return self.myself.kill(), // what it holds is cancelled as its state is dropped
            Shutdown::Within(milliseconds) => {
                let time = Duration::from_millis(milliseconds);
                self.shutdown_timer = Some(self.timer(time, AgentMessage::TimeUp { last: false }));
            }
            Shutdown::Infinity => self.shutdown_timer = None,
        }
        self.refresh();
    }

    fn time_up(&mut self, last: bool) {
        if last {
            return self.myself.stop(None); // the store does not answer: its claims are swept
        }
        self.cancel_all("the agent is shutting down");
        let grace = GRACE + Duration::from_secs(1);
        self.shutdown_timer = Some(self.timer(grace, AgentMessage::TimeUp { last: true }));
    }

    fn refresh(&self) {
        let idle = self.jobs.is_empty() && self.settling == 0;
        if self.stage == Stage::Ready {
            self.book(|book| book.state = if idle { AgentState::Idle } else { AgentState::Busy });
        }
        if idle && self.winding_down {
            self.myself.stop(None);
        }
    }

    fn book<T>(&self, change: impl FnOnce(&mut Book) -> T) -> Option<T> {
        self.record.update(self.generation, change)
    }

    fn tell(&self, message: impl FnOnce(String, u64) -> RoleMessage) {
        self.role.send(message(self.record.agent_id.clone(), self.generation));
    }
}

/// Convenience for a claim that ends without events.
impl From<End> for Judged {
    fn from(end: End) -> Self {
        Judged { end, leave: None }
    }
}
