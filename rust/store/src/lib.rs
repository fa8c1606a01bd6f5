//! Durability: the [`Store`] trait, its backends, and one conformance suite that every backend must pass.
//!
//! Invariants kept here:
//! - **DUR-1** A submission is acknowledged only after its row is committed.
//! - **DUR-2** A result, its follow-up items and its events commit together or not at all.
//! - **DUR-3** An event is visible only after it is committed; sequences have no gaps.
//! - **FENCE-1** Every write about a claimed item carries the claim's epoch; a stale writer changes nothing and gets
//!   `Fenced`.
//! - **FENCE-3** A boot is dead only when its lock file can be taken.
//! - **ONCE-1** An item is completed at most once.
//! - **BUDGET-1** Tokens and money are reserved before they are spent; an open reservation after a crash is charged
//!   whole and marked unknown.
//!
//! No type of a backend leaks through the trait. What follows an item is decided by `mnemosyne_core::next_items`, which
//! every backend calls inside the transaction that commits the result.

#![forbid(unsafe_code)]

pub mod boot;
mod budget;
pub mod clock;
pub mod memory;
pub mod retention;
mod rules;
pub mod sqlite;
pub mod types;
mod waiting;

/// For the tests of backends, also of those in other crates.
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;

use async_trait::async_trait;
use mnemosyne_core::{Attempt, Budget, Event, NewEvent, Problem, Run, RunState, Usage, WorkItem, WorkResult};
use std::sync::Arc;
use tokio::sync::{oneshot, watch};

pub use clock::{Clock, timestamp};
pub use memory::MemoryStore;
pub use sqlite::SqliteStore;
pub use types::*;

/// All state that must survive. Every method returns after the commit, or changes nothing.
///
/// # Errors
/// Every method returns a coded `Problem`: `Fenced` for a stale epoch, `Store` where the store cannot be written or
/// read, `InvalidInput` for what cannot be stored.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The boot that this handle stands for: `b-` and hexadecimal digits. Its lock is held until the handle is dropped.
    fn boot(&self) -> &str;

    /// Milliseconds since 1970 by this store's clock, which tests inject.
    fn now(&self) -> i64;

    /// Changes with every commit of this process; the value is the last event's sequence. What waits for work or events
    /// waits on it. (Commits of other processes show up through [`Store::poll_foreign`].)
    fn changed(&self) -> watch::Receiver<u64>;

    /// Which roles may have got work by a commit of this process, or of another that [`Store::poll_foreign`] saw. What
    /// becomes claimable by the passing of time shows up nowhere.
    fn ready(&self) -> watch::Receiver<Ready>;

    /// Told once a commit of this process has ended the item, with how, where that is at hand; never, if it had ended
    /// before. Who waits for an item asks for this first and reads the item then. Whoever is told may go on at once, on the
    /// thread that tells: a backend tells without a lock of its own, here and where it answers.
    fn ended(&self, item: &str) -> oneshot::Receiver<Option<ItemEnd>>;

    /// Looks whether another process committed since the last call, and if so wakes the waiters of [`Store::changed`].
    async fn poll_foreign(&self) -> Result<bool, Problem>;

    /// Stores a run with `first_items`, owned by this boot. With a key that was seen before, returns that run's id
    /// and stores nothing. Refuses a workspace in which a run of a live boot is under way (MN-0113).
    async fn submit_run(&self, run: Run, idempotency_key: Option<String>) -> Result<String, Problem>;

    /// Takes a run over for this boot: `run_resumed`, `resumes` + 1, state running, `error` cleared, a larger budget if
    /// given. Claims of the dead boot are released and charged to nobody. Refuses a
    /// terminal run (MN-0116), one whose boot lives (MN-0112, naming the pid), a busy workspace (MN-0113), a budget that is
    /// not larger than what is spent (MN-0140).
    async fn adopt_run(&self, run: &str, budget: Option<Budget>) -> Result<RunSnapshot, Problem>;

    /// Gives a task that failed new attempts, with a person's word for their prompts, and takes its run over as
    /// [`Store::adopt_run`] does (`core::retry_task`), in one transaction: `run_resumed`, then `task_retried`. Refuses an
    /// unknown task (MN-0121), one that did not fail (MN-0122), a cancelled run (MN-0116), one whose boot lives (MN-0112),
    /// a busy workspace (MN-0113).
    async fn retry_task(
        &self,
        run: &str,
        task: &str,
        note: Option<String>,
        budget: Option<Budget>,
    ) -> Result<RunSnapshot, Problem>;

    /// The attempts of a task that ended, oldest first, with all that was seen and said.
    async fn attempts(&self, run: &str, task: &str) -> Result<Vec<Attempt>, Problem>;

    /// One run with all that a person asks about it.
    async fn run(&self, run: &str) -> Result<Option<RunSnapshot>, Problem>;

    /// All runs, oldest first.
    async fn runs(&self) -> Result<Vec<Run>, Problem>;

    /// Stops a run that can be resumed: `state` is `Interrupted` or `Budget`. Its running items are released without a
    /// crash. A terminal run, one that was stopped before, and one of another boot are left alone. Emits `run_interrupted`
    /// or `budget_exceeded`.
    async fn stop_run(&self, run: &str, state: RunState, problem: Problem) -> Result<(), Problem>;

    /// Cancels a run: its items are cancelled (running ones are fenced), `core::cancel_run` says the rest. A terminal run
    /// is left alone.
    async fn cancel_run(&self, run: &str, reason: &str) -> Result<(), Problem>;

    /// Lets nothing more of a run of this boot be claimed; what is claimed goes on. Emits `run_paused`. A run that is not
    /// running here is left alone.
    async fn pause_run(&self, run: &str, reason: &str) -> Result<(), Problem>;

    /// Lets a paused run of this boot go on. Emits `run_resumed`. A run that is not paused here is left alone.
    async fn continue_run(&self, run: &str) -> Result<(), Problem>;

    /// Stores a user's own item (kind `Work`, no run); its id, or that of the item that one of its keys stands for. Refuses a
    /// dependency on nothing (MN-0105), a used id (MN-0106), a deadline that has passed (MN-0117).
    async fn submit(&self, item: WorkItem, how: Submission) -> Result<String, Problem>;

    /// The plain form of [`Store::submit`].
    async fn submit_item(&self, item: WorkItem, idempotency_key: Option<String>) -> Result<String, Problem> {
        self.submit(item, Submission::keyed(idempotency_key)).await
    }

    /// One item with its result.
    async fn item(&self, item: &str) -> Result<Option<ItemSnapshot>, Problem>;

    /// Cancels an item that is not terminal; a running one is fenced. Emits `work_cancelled`.
    async fn cancel_item(&self, item: &str, reason: &str) -> Result<(), Problem>;

    /// Claims the next eligible item of a role, or nothing: in one transaction candidates by index, `core::eligible`,
    /// then epoch + 1, owner, lease; steps and reservations that earlier claims left open become `unknown`; a `Ready`
    /// task becomes `Running`; events `work_started` and `agent_started_with_task`. Only items of runs that this boot
    /// owns and that are `Running`, and runless items. Items whose lease has expired count as ready (crash counted).
    async fn claim(&self, request: ClaimRequest) -> Result<Option<Claimed>, Problem>;

    /// Claims for an agent, from now on, whenever a commit of this process makes work claimable and there is room, in that
    /// same commit. Nothing is promised: what a backend does not give out in this way is there for [`Store::claim`], which
    /// whoever stands calls too. A backend whose commits cost nothing does nothing here.
    fn stand(&self, _stander: Arc<dyn Stander>) {}

    /// Takes back what dead boots held of the items that belong to no run, without waiting for its leases: how many items.
    /// (Those of runs are taken back by whoever adopts the run.)
    async fn take_back(&self) -> Result<u64, Problem>;

    /// Items that went to the dead letters and are still there, oldest first.
    async fn dead_letters(&self) -> Result<Vec<DeadLetter>, Problem>;

    /// Gives a dead letter to the queue again, at its end, with its crashes forgotten. Emits `work_requeued`. What was
    /// cancelled because it waited for the item stays cancelled. Refuses what is no dead letter (MN-0218), belongs to a run
    /// (MN-0117), or has the unique key of an item that lives (MN-0106).
    async fn requeue(&self, item: &str, reason: &str) -> Result<(), Problem>;

    /// Forgets a dead letter, with its journal and its keys. Emits `work_discarded`. Refuses as [`Store::requeue`] does.
    async fn discard(&self, item: &str, reason: &str) -> Result<(), Problem>;

    /// Extends a lease; never shortens it. Fenced if the claim is over.
    async fn renew(&self, item: &str, epoch: u64, lease_ms: i64) -> Result<(), Problem>;

    /// Commits a result with all that follows from it. Fenced if the claim is over.
    async fn complete(&self, completion: Completion) -> Result<(), Problem>;

    /// Ends a claim without a result: the item becomes ready again (after `delay_ms`), or, by the poison rule (3 crashes
    /// on at least 2 generations), dead. Fenced if the claim is over.
    async fn release(&self, release: Release) -> Result<Released, Problem>;

    /// Ends an item for good without a result (`ItemState::Failed`): `core::item_dead`. Fenced if the claim is over.
    async fn give_up(&self, item: &str, epoch: u64, problem: Problem, events: Vec<NewEvent>) -> Result<(), Problem>;

    /// The steps of one attempt, in the order of their numbers.
    async fn journal(&self, item: &str, attempt: u32) -> Result<Vec<StepRecord>, Problem>;

    /// What was done for a task of a run, or for a phase by its name: the journals of its items, all attempts, in the order
    /// of their arrival. Empty where there is no such task or phase.
    async fn journals(&self, run: &str, subject: &str) -> Result<Vec<ItemJournal>, Problem>;

    /// Commits that a step begins, with its reservation; returns its number, from 1, rising within (item, attempt).
    /// Emits `step_started`. Fenced, or `Budget` and nothing written where the reservation does not fit: MN-0502 as long
    /// as requests of the run are under way, then MN-0501 (`data.left` says what would fit) or MN-0503 (it has no price).
    async fn start_step(&self, step: StartStep) -> Result<u64, Problem>;

    /// Commits that a step ended, and settles its reservation. Emits `step_finished`. `crashes` starts anew.
    async fn finish_step(&self, step: FinishStep) -> Result<(), Problem>;

    /// Sets tokens and money aside. `Budget` where they do not fit, as for [`Store::start_step`].
    async fn reserve(&self, reserve: Reserve) -> Result<String, Problem>;

    /// Replaces a reservation by what was really used. Fenced if the claim is over.
    async fn settle(&self, item: &str, epoch: u64, reservation: &str, usage: Usage) -> Result<(), Problem>;

    /// Runs of this boot that are under way and whose time, or that of one of their tasks or agents, is used up, each with
    /// why it is to be stopped. Emits `budget_warning` where time comes near its limit.
    async fn out_of_time(&self) -> Result<Vec<(String, Problem)>, Problem>;

    /// Stores an artifact of an item; the same name again replaces it. Fenced if the claim is over.
    async fn put_artifact(
        &self,
        item: &str,
        epoch: u64,
        name: &str,
        content: Vec<u8>,
    ) -> Result<mnemosyne_core::ArtifactRef, Problem>;

    /// The newest artifact of that name in a run.
    async fn artifact(&self, run: &str, name: &str) -> Result<Option<Vec<u8>>, Problem>;

    /// Appends events (of agents and roles) with this boot; returns the last sequence.
    async fn append_events(&self, events: Vec<NewEvent>) -> Result<u64, Problem>;

    /// Events after `since`, oldest first. With a run: its own, and the runless ones of the boots that worked on it.
    async fn events(&self, query: EventQuery) -> Result<Vec<Event>, Problem>;

    /// Events up to this sequence may have gaps: those of what was forgotten are gone. Above it there is none.
    async fn horizon(&self) -> Result<u64, Problem>;

    /// Writes a command for the process that owns the run.
    async fn post_command(&self, command: NewCommand) -> Result<(), Problem>;

    /// Commands for runs of this boot that nobody took yet; they are taken by this call.
    async fn take_commands(&self) -> Result<Vec<NewCommand>, Problem>;

    /// The claims that a boot holds.
    async fn under_way(&self, boot: &str) -> Result<Vec<UnderWay>, Problem>;

    /// Items by state that this boot could claim or has claimed, for `health`.
    async fn queue(&self) -> Result<QueueCounts, Problem> {
        self.queue_of(&[self.boot()]).await
    }

    /// Items by state that one of these boots could claim or has claimed: of no run, or of a running run of theirs.
    async fn queue_of(&self, boots: &[&str]) -> Result<QueueCounts, Problem>;

    /// Forgets what ended before a time, a little of it: items without a run, runs if asked for, with their journals,
    /// artifacts, keys and events. To be called until it is `done`. What has not ended is kept, and so are the events of
    /// runs that are kept; the sequences of those that are gone are not used again.
    async fn prune(&self, prune: Prune) -> Result<Pruned, Problem>;

    /// Whether a boot is dead: its lock can be taken (FENCE-3).
    fn is_dead(&self, boot: &str) -> bool;

    /// The process id that a boot wrote, for messages.
    async fn pid_of(&self, boot: &str) -> Result<Option<u32>, Problem>;
}

/// The parts of a completion that a test builds most: a plain success.
impl Completion {
    /// A result without further events.
    pub fn new(claimed: &Claimed, result: WorkResult) -> Self {
        Self { item: claimed.item.work.id.clone(), epoch: claimed.item.epoch, result, events: Vec::new() }
    }
}
