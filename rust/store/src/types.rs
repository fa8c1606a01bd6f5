//! What goes in and out of a store.

use mnemosyne_core::{
    Acceptance, AgentRole, Item, ItemKind, ItemState, NewEvent, PhaseRecord, Problem, Run, Task, Usage, WorkResult,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

/// Length of a lease; renewed every third of it.
pub const LEASE_MS: i64 = 30_000;

/// What an acknowledgement survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// The loss of power: every commit is on the disk before it is acknowledged.
    #[default]
    PowerSafe,
    /// The end of any process, also by `kill -9`, but not the loss of power: that may take what was acknowledged in the
    /// seconds before. The file stays sound.
    CrashSafe,
}

/// Who asks for work.
#[derive(Debug, Clone)]
pub struct ClaimRequest {
    /// Of which role.
    pub role: AgentRole,
    /// The agent that will do it.
    pub agent: String,
    /// The agent's generation.
    pub generation: u64,
    /// Milliseconds.
    pub lease_ms: i64,
}

/// Somebody who waits for work with a standing claim. All of it is called by what commits, so none of it may wait.
pub trait Stander: Send + Sync {
    /// For whom is claimed.
    fn request(&self) -> &ClaimRequest;

    /// A place for one more item, if there is room now; asked right before something is claimed for it.
    fn room(&self) -> Option<OwnedSemaphorePermit>;

    /// Gets an item, claimed and committed, with the place that it was claimed for. Before whoever made the item claimable
    /// has an answer.
    fn take(&self, claimed: Claimed, place: OwnedSemaphorePermit);

    /// Will never have room again.
    fn is_over(&self) -> bool;
}

/// An item that is now ours, with all that its host needs.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// With the new epoch.
    pub item: Item,
    /// Its run.
    pub run: Option<Run>,
    /// Its task.
    pub task: Option<Task>,
    /// The acceptance commands of all tasks accepted so far: the joined gate.
    pub accepted: Vec<Acceptance>,
}

/// A result to commit.
#[derive(Debug, Clone)]
pub struct Completion {
    /// Which item.
    pub item: String,
    /// Of the claim.
    pub epoch: u64,
    /// What the agent returned.
    pub result: WorkResult,
    /// Events of the agent that belong to it.
    pub events: Vec<NewEvent>,
}

/// Why a claim ends without a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseReason {
    /// The agent raised; not a crash.
    Error,
    /// The agent went down while it held the item, and was charged for it.
    Crash,
    /// The model failed; neither agent nor item is charged, but `model_failures` rises.
    Model,
    /// The model's server asks to wait: nobody is charged and nothing is counted. The item is [`Parked`] for `delay_ms`.
    Parked,
    /// Drain, a dead supervisor, a lost role: nobody is charged.
    Innocent,
}

/// The end of a claim without a result.
#[derive(Debug, Clone)]
pub struct Release {
    /// Which item.
    pub item: String,
    /// Of the claim.
    pub epoch: u64,
    /// Why.
    pub reason: ReleaseReason,
    /// Generation of the agent that held it, for the poison rule.
    pub generation: u64,
    /// Not to be claimed again for so long.
    pub delay_ms: i64,
    /// What happened, for `work_failed`'s `error` (`work_parked`'s `reason`); no such event where `None`.
    pub error: Option<String>,
    /// The class of the failure, for the same event.
    pub class: Option<String>,
    /// Events of the agent that belong to it.
    pub events: Vec<NewEvent>,
}

/// What became of a released item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// It can be claimed again.
    Ready,
    /// It went to the dead letters.
    Dead,
}

/// Where a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Begun by the claim that is under way.
    Started,
    /// Ended with an output.
    Finished,
    /// Ended with an error.
    Failed,
    /// Begun by a claim that is over.
    Unknown,
}

/// One step of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// From 1 within (item, attempt).
    pub number: u64,
    /// The key with `input_sha256`.
    pub name: String,
    /// `step`, `turn` or `tool`.
    pub kind: String,
    /// Of the canonical JSON of its input.
    pub input_sha256: String,
    /// Where it stands.
    pub state: StepState,
    /// What it gave.
    pub output: Option<Value>,
    /// Why it failed.
    pub error: Option<String>,
}

/// What was done in the name of one item of a run, for people to read: its journal, with what each step cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ItemJournal {
    /// Which.
    pub item: String,
    /// What it asks for.
    pub kind: ItemKind,
    /// Whose work it is.
    pub role: AgentRole,
    /// Of its task, or of its phase.
    pub attempt: u32,
    /// Where it stands.
    pub state: ItemState,
    /// How often it was claimed.
    pub claims: u64,
    /// In the order of their numbers.
    pub steps: Vec<JournalStep>,
}

/// One step as people read it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JournalStep {
    /// The step.
    #[serde(flatten)]
    pub record: StepRecord,
    /// What was set aside for it.
    pub reserved: Option<Amount>,
    /// Nobody knows what it used: its reservation is charged whole (BUDGET-1).
    pub spent_unknown: bool,
}

/// Tokens and money to set aside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Amount {
    /// Of any kind.
    pub tokens: u64,
    /// US dollars, where a price is known.
    pub usd: Option<f64>,
}

/// A step that begins.
#[derive(Debug, Clone)]
pub struct StartStep {
    /// Whose.
    pub item: String,
    /// Of the claim.
    pub epoch: u64,
    /// Of the task.
    pub attempt: u32,
    /// See [`StepRecord`].
    pub name: String,
    /// See [`StepRecord`].
    pub kind: String,
    /// See [`StepRecord`].
    pub input_sha256: String,
    /// Goes into the event's data beside `name`, `kind` and `number`; an object or null.
    pub detail: Value,
    /// Set aside in the same commit.
    pub reserve: Option<Amount>,
}

/// A step that ended.
#[derive(Debug, Clone)]
pub struct FinishStep {
    /// Whose.
    pub item: String,
    /// Of the claim.
    pub epoch: u64,
    /// Of the task.
    pub attempt: u32,
    /// Which.
    pub number: u64,
    /// `Ok` output or `Err` error text.
    pub outcome: Result<Value, String>,
    /// What it used; settles its reservation. `None` frees the reservation of a step that gave an output (nothing was
    /// spent); of one that failed nobody knows, so it is charged whole.
    pub usage: Option<Usage>,
    /// Goes into the event's data beside what is always there; an object or null.
    pub detail: Value,
}

impl FinishStep {
    /// It failed, and nobody knows what it spent (BUDGET-1).
    pub(crate) fn spent_unknown(&self) -> bool {
        self.outcome.is_err() && self.usage.is_none()
    }
}

/// A reservation outside a step.
#[derive(Debug, Clone)]
pub struct Reserve {
    /// Whose.
    pub item: String,
    /// Of the claim.
    pub epoch: u64,
    /// How much.
    pub amount: Amount,
}

/// What a run has spent, in the terms of its budget: what was used, and reservations that nobody can settle any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// US dollars, at list price.
    pub usd: f64,
    /// Of any kind.
    pub tokens: u64,
    /// Requests to a model, whatever came of them.
    pub calls: u64,
    /// Of active time, up to the last sign of life.
    pub seconds: f64,
}

/// A run as people ask about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSnapshot {
    /// The run.
    pub run: Run,
    /// In the order of the protocol.
    pub phases: Vec<PhaseRecord>,
    /// In the order of the plan.
    pub tasks: Vec<Task>,
    /// Of settled reservations and steps.
    pub usage: Usage,
    /// What counts against its budget.
    pub spent: Spent,
    /// Reservations that a crash, or a step that failed, left open; charged whole.
    pub unknown_turns: u64,
    /// Agents restarted by the boots that worked on it.
    pub restarts: u64,
    /// Items that wait for their time, the first to go on first. If they are all that the run has, it is `Waiting`.
    pub parked: Vec<Parked>,
    /// Sequence of the last event of the store.
    pub last_sequence: u64,
}

/// An item that waits for a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parked {
    /// Which.
    pub item: String,
    /// Of which task.
    pub task: Option<String>,
    /// Who will do it.
    pub role: AgentRole,
    /// UTC, RFC 3339 with milliseconds.
    pub until: String,
    /// The class of the failure.
    pub class: String,
    /// What the server said.
    pub reason: String,
}

/// How an item is submitted, beside what it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Submission {
    /// The same key again gives the item that it was first given for, whatever became of that, and stores nothing.
    pub idempotency_key: Option<String>,
    /// As long as an item that was submitted under this name has not ended, that one is given and nothing is stored.
    pub unique_key: Option<String>,
    /// Milliseconds since 1970: not given out before.
    pub not_before: Option<i64>,
    /// Milliseconds since 1970: not begun after; what nobody has claimed by then has failed.
    pub deadline: Option<i64>,
}

impl Submission {
    /// With no more than an idempotency key.
    pub fn keyed(idempotency_key: Option<String>) -> Self {
        Self { idempotency_key, ..Self::default() }
    }
}

/// An item that took its agent down too often, kept until a person decides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// With its crashes.
    pub item: Item,
    /// Why it is not tried again.
    pub problem: Option<Problem>,
    /// UTC, RFC 3339 with milliseconds.
    pub died_at: String,
}

/// An item with its result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ItemSnapshot {
    /// The item.
    pub item: Item,
    /// Its result, once done or failed.
    pub result: Option<WorkResult>,
    /// Why it is dead or failed without a result.
    pub problem: Option<Problem>,
}

/// How an item ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ItemEnd {
    /// Terminal.
    pub state: ItemState,
    /// Its result, if it has one.
    pub result: Option<WorkResult>,
    /// Why it has none.
    pub problem: Option<Problem>,
}

/// Which events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventQuery {
    /// Sequences above this one.
    pub since: u64,
    /// Of this run and of the boots that worked on it.
    pub run: Option<String>,
    /// Of this agent and this store's boot only (a standalone bridge).
    pub agent: Option<String>,
    /// What this boot said of its agents and roles; the other two are not looked at.
    pub boot: Option<String>,
    /// At most so many.
    pub limit: u32,
}

/// How often a role may have got work, in the order of `AgentRole::ALL`: a role whose number moved has a reason to ask.
pub type Ready = [u64; AgentRole::ALL.len()];

/// What may be forgotten, and how much of it in one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prune {
    /// Milliseconds since 1970: only what ended before.
    pub ended_before: i64,
    /// Also runs that are done, failed or cancelled; else only items without a run.
    pub runs: bool,
    /// The last event that was looked at: 0 at first, then what the call before gave back.
    pub events_seen: u64,
    /// Rows that are looked at in one call.
    pub limit: u32,
}

/// What was forgotten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Items without a run, with their journals, artifacts and keys.
    pub items: u64,
    /// Runs with all that belongs to them.
    pub runs: u64,
    /// Events of what is gone.
    pub events: u64,
    /// For the next call.
    pub events_seen: u64,
    /// Nothing is left to forget.
    pub done: bool,
}

/// A claim that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnderWay {
    /// The item.
    pub item: String,
    /// Of which run, if of any.
    pub run: Option<String>,
    /// Who holds it.
    pub agent: String,
    /// Which generation of it.
    pub generation: u64,
    /// Until when its process has said that it lives; milliseconds since 1970.
    pub lease_until: i64,
}

/// A command from another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewCommand {
    /// For which run.
    pub run: String,
    /// `cancel`, `pause` or `continue`; `drain SECONDS`; a verb with an agent, `restart`, `stop` or `release`; `scale ROLE COUNT`.
    pub kind: String,
    /// Why.
    pub reason: String,
}

/// Items by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueCounts {
    /// Could be claimed.
    pub ready: u64,
    /// Are claimed.
    pub running: u64,
    /// Wait for dependencies or for their time.
    pub waiting: u64,
}
