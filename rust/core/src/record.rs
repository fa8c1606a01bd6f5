//! What the store keeps about runs, phases, tasks, attempts and items, free of any storage.

use crate::advance::MAX_ATTEMPTS;
use crate::plan::{Acceptance, Plan, PlanTask};
use crate::state::{AgentRole, ItemKind, ItemState, Phase, PhaseState, RunState, TaskState};
use crate::work::WorkItem;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Five limits; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// US dollars, at list price.
    pub usd: Option<f64>,
    /// Tokens of any kind.
    pub tokens: Option<u64>,
    /// Requests to a model, whatever came of them.
    pub calls: Option<u64>,
    /// Seconds of work. Of a run: from its start until it ends or stops, without the time between a stop and its
    /// resume. Of a task or an agent: while it holds a claim.
    pub seconds: Option<f64>,
    /// How many agents deep an item may be handed on: the agent that claimed it is 1 deep, one that it calls is 2 deep,
    /// and so on.
    pub depth: Option<u32>,
}

/// What a run may spend, and within it each of its tasks and each of its agents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "BudgetForm", into = "BudgetForm")]
pub struct Budget {
    /// All of it together.
    pub run: Limits,
    /// Each task of the plan, over all its attempts.
    pub per_task: Limits,
    /// Each agent, over all its generations.
    pub per_agent: Limits,
}

/// As users write it, with the run's limits at the top. (serde's `flatten` would let unknown keys pass.)
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct BudgetForm {
    usd: Option<f64>,
    tokens: Option<u64>,
    calls: Option<u64>,
    seconds: Option<f64>,
    depth: Option<u32>,
    per_task: Limits,
    per_agent: Limits,
}

impl From<BudgetForm> for Budget {
    fn from(form: BudgetForm) -> Self {
        let BudgetForm { usd, tokens, calls, seconds, depth, per_task, per_agent } = form;
        Self { run: Limits { usd, tokens, calls, seconds, depth }, per_task, per_agent }
    }
}

impl From<Budget> for BudgetForm {
    fn from(budget: Budget) -> Self {
        let Budget { run: Limits { usd, tokens, calls, seconds, depth }, per_task, per_agent } = budget;
        Self { usd, tokens, calls, seconds, depth, per_task, per_agent }
    }
}

impl Budget {
    /// A budget for the run as a whole.
    pub fn of_run(run: Limits) -> Self {
        Self { run, ..Self::default() }
    }

    /// How deep an item may be handed on: the strictest of the limits that hold for it. Nothing is summed up here, so the
    /// host can hold an agent to it by itself.
    pub fn depth(&self, of_task: bool) -> Option<u32> {
        let per_task = if of_task { self.per_task.depth } else { None };
        [self.run.depth, per_task, self.per_agent.depth].into_iter().flatten().min()
    }

    /// Whether time is limited anywhere.
    pub fn is_timed(&self) -> bool {
        [self.run, self.per_task, self.per_agent].iter().any(|limits| limits.seconds.is_some())
    }
}

/// What a run remembers of the command that made it. Never a key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunOptions {
    /// Model id for all roles; `None` is each role's default.
    pub model: Option<String>,
    /// Where the model is served.
    pub base_url: Option<String>,
    /// Agents of each role that works on tasks.
    pub max_concurrent: u32,
    /// Whether the model is the demo model.
    pub demo: bool,
    /// Role -> `module:Class` given by the user.
    pub agents: Map<String, Value>,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// `r-` and hexadecimal digits.
    pub id: String,
    /// What the user typed; `None` where a plan was given.
    pub prompt: Option<String>,
    /// The specification, once there is one: what later prompts read their requirements from.
    pub spec: Option<Value>,
    /// The plan, once there is one.
    pub plan: Option<Plan>,
    /// Absolute path of the user's folder.
    pub workspace: String,
    /// How it was started.
    pub options: RunOptions,
    /// What it may spend.
    pub budget: Budget,
    /// Where it stands.
    pub state: RunState,
    /// The phase it is in.
    pub phase: Phase,
    /// The boot that drives it, or drove it last.
    pub boot: Option<String>,
    /// Times it was resumed.
    pub resumes: u32,
    /// Why it is failed, interrupted or out of budget: a `Problem` without its kind.
    pub error: Option<Value>,
    /// Milliseconds since 1970.
    pub created_at: i64,
    /// Milliseconds since 1970, once terminal.
    pub ended_at: Option<i64>,
}

/// One phase of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhaseRecord {
    /// Which.
    pub name: Phase,
    /// Where it stands.
    pub state: PhaseState,
    /// Milliseconds since 1970.
    pub started_at: Option<i64>,
    /// Milliseconds since 1970.
    pub ended_at: Option<i64>,
    /// Name of the artifact it left.
    pub artifact: Option<String>,
}

/// One task of a run's plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// As in the plan.
    pub spec: PlanTask,
    /// Place in the plan.
    pub position: u32,
    /// Where it stands.
    pub state: TaskState,
    /// From 1.
    pub attempt: u32,
    /// What the last rejection said.
    pub feedback: Option<String>,
    /// Commit of the attempt under way, and its base.
    pub commit: Option<(String, String)>,
    /// Files that were accepted.
    pub files: Vec<String>,
    /// What was seen in the attempt under way, or in the last one.
    pub evidence: Vec<Value>,
    /// `{passed, confidence, feedback, requirements}` of its review.
    pub review: Option<Value>,
    /// What its executor said at its end.
    #[serde(default)]
    pub summary: Option<String>,
    /// What was tried before, in short: `{attempt, summary, feedback}` each.
    #[serde(default)]
    pub tried: Vec<Value>,
    /// What a person said when they gave the task new attempts.
    #[serde(default)]
    pub note: Option<String>,
    /// The attempt after which it is given up.
    #[serde(default = "first_limit")]
    pub last_attempt: u32,
}

fn first_limit() -> u32 {
    MAX_ATTEMPTS
}

/// What was said and seen of one attempt that ended: nothing of it is ever thrown away.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Of which task.
    pub task: String,
    /// From 1.
    pub attempt: u32,
    /// `accepted`, `rejected`, `failed` or `conflict`.
    pub verdict: String,
    /// What it started from, if there is a commit.
    #[serde(default)]
    pub base: Option<String>,
    /// Its commit, if there was one.
    pub commit: Option<String>,
    /// What its executor said at its end.
    #[serde(default)]
    pub summary: Option<String>,
    /// What was said.
    pub feedback: Option<String>,
    /// What was seen.
    pub evidence: Vec<Value>,
    /// What its reviewer said, if it was asked.
    #[serde(default)]
    pub review: Option<Value>,
}

/// A work item as the store knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Its public form.
    pub work: WorkItem,
    /// Whose run; `None` for a user's own item.
    pub run: Option<String>,
    /// Whose task.
    pub task: Option<String>,
    /// What it asks for.
    pub kind: ItemKind,
    /// Where it stands.
    pub state: ItemState,
    /// Rises with every claim (FENCE-1).
    pub epoch: u64,
    /// Deaths of agent or process while it held the item, since it last made progress.
    pub crashes: u32,
    /// Generations of agents that died with it, since it last made progress.
    pub crash_generations: u32,
    /// Times the model failed it in a row.
    pub model_failures: u32,
}

impl Item {
    /// A new, ready item of a run.
    pub fn new(run: &Run, task: Option<&Task>, kind: ItemKind, number: u64, context: Map<String, Value>) -> Self {
        let (description, scope, attempt) = match task {
            Some(task) => (task.spec.title.clone(), task.spec.file_scope.clone(), task.attempt),
            None => (run.prompt.clone().unwrap_or_default(), Vec::new(), 1),
        };
        Self {
            work: WorkItem {
                id: format!("{}.{number}", run.id),
                description,
                phase: kind.phase().unwrap_or(Phase::PlanToArtifacts),
                role: kind.role().unwrap_or(AgentRole::Executor),
                // What is further on goes first, so that tasks are finished before new ones are begun.
                priority: match kind {
                    ItemKind::Accept => 8,
                    ItemKind::Review => 7,
                    ItemKind::Execute => 6,
                    _ => 5,
                },
                depends_on: Vec::new(),
                file_scope: scope,
                context,
                timeout_seconds: 3600.0,
                attempt,
            },
            run: Some(run.id.clone()),
            task: task.map(|task| task.spec.id.clone()),
            kind,
            state: ItemState::Ready,
            epoch: 0,
            crashes: 0,
            crash_generations: 0,
            model_failures: 0,
        }
    }
}

/// The acceptance commands of all accepted tasks: the joined gate.
pub fn accepted_commands(tasks: &[Task]) -> Vec<Acceptance> {
    let accepted = tasks.iter().filter(|task| task.state == TaskState::Accepted);
    accepted.flat_map(|task| task.spec.acceptance.iter().cloned()).collect()
}
