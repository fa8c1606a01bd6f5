//! What Python asks of a store or a tree: one typed request per verb, answered through the asking loop's port.

use crate::host::PythonHost;
use crate::log::{Followed, follow_events};
use crate::port::Reply;
use crate::sync::locked;
use mnemosyne_core::{Budget, Problem, ProblemKind, Run, RunState, StatsFold, WorkItem, error::codes};
use mnemosyne_runtime::{AgentHandle, AgentSpec, RoleSpec, SupervisorSpec, Tree, TreeConfig, WorkError, operate};
use mnemosyne_store::retention::{Pace, forget};
use mnemosyne_store::{Durability, EventQuery, ItemEnd, ItemSnapshot, MemoryStore, SqliteStore, Store, sqlite};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;

/// A waiting request looks again after this long, whatever the store's signal says: other processes commit too.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// A wait for events ends empty after this long.
const WAIT: Duration = Duration::from_secs(2);

/// Events that sums are made of at a time.
const EVENTS_AT_ONCE: u32 = 1_000;

/// Verbs on a store.
#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum StoreRequest {
    Runs,
    Run { run: String },
    SubmitRun { run: Box<Run>, idempotency_key: Option<String> },
    AdoptRun { run: String, budget: Option<Budget> },
    RetryTask { run: String, task: String, note: Option<String>, budget: Option<Budget> },
    Attempts { run: String, task: String },
    Tell { run: String, kind: String, reason: String },
    PauseRun { run: String, reason: String },
    ContinueRun { run: String },
    DeadLetters,
    Requeue { item: String, reason: String },
    Discard { item: String, reason: String },
    Journals { run: String, subject: String },
    Events { since: u64, run: Option<String>, agent: Option<String>, limit: u32, wait: bool },
    Boot { boot: String },
    Agents { run: String },
    Stats,
    Prune { ended_before: i64, runs: bool },
}

/// Verbs on a store's file, without a boot on it.
#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum FileRequest {
    Check { path: PathBuf },
    Backup { path: PathBuf, to: PathBuf },
}

/// Verbs on a tree.
#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum TreeRequest {
    AddAgent { role: mnemosyne_core::AgentRole, spec: Value, agent_id: Option<String> },
    Scale { role: mnemosyne_core::AgentRole, instances: u32 },
    Supervisors,
    SendWork(SendWork),
    RecordError { agent: String, error: String },
    Restart { agent: String, reason: String },
    ShutdownAgent { agent: String, timeout: Option<f64> },
    StopRun { run: String, state: RunState, problem: Problem },
    CancelRun { run: String, reason: String },
    CancelItem { item: String, reason: String },
    Drain { seconds: Option<f64> },
    Shutdown,
}

/// Direct work for one agent.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SendWork {
    agent: String,
    item: Box<WorkItem>,
    timeout: Option<f64>,
}

/// Hands work over if there is a free place, and refuses at once if there is none; what is returned waits for its end.
pub(crate) fn try_send_work(
    tree: &Tree,
    request: Value,
) -> Result<impl Future<Output = Reply> + Send + 'static, Reply> {
    let SendWork { agent, item, timeout } = serde_json::from_value(request).map_err(|error| unreadable(&error))?;
    let sent = find(tree, &agent).and_then(|handle| handle.try_send_work(*item, timeout.map(duration)));
    let work = sent.map_err(|error| error_reply(&error))?;
    Ok(async move { work.await.map_or_else(|error| error_reply(&error), |result| Reply::Value(json!(result))) })
}

/// How a tree is opened.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OpenTree {
    /// The store's file, beside which runs keep their trees; `None` for a standalone bridge, in memory.
    store: Option<PathBuf>,
    roles: Vec<OpenRole>,
    claims: bool,
    /// Whether somebody reads them: otherwise each would be read from the store for nothing.
    #[serde(default)]
    log_events: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OpenRole {
    role: mnemosyne_core::AgentRole,
    instances: u32,
    spec: Value,
    #[serde(default)]
    supervisor: Option<Value>,
}

impl OpenRole {
    fn read(self) -> Result<RoleSpec, Problem> {
        let spec = AgentSpec::read(self.spec)?;
        let supervisor = self.supervisor.map_or(Ok(SupervisorSpec::default()), SupervisorSpec::read)?;
        Ok(RoleSpec { role: self.role, spec, instances: self.instances, supervisor })
    }
}

/// A tree, its store, and the host that keeps the loop thread alive.
#[derive(Clone)]
pub(crate) struct OpenedTree {
    pub(crate) tree: Tree,
    pub(crate) store: Arc<dyn Store>,
    /// Where its events are logged.
    followed: Option<Followed>,
}

pub(crate) async fn open_store(path: PathBuf, durability: Durability) -> Result<Arc<dyn Store>, Problem> {
    // Opening reads and writes files; a blocking thread keeps it off the workers. It never attaches.
    let opened = tokio::task::spawn_blocking(move || SqliteStore::open_as(&path, durability)).await;
    let store = opened.map_err(|error| {
        Problem::new(ProblemKind::Store, codes::STORE_UNAVAILABLE, "the store could not be opened")
            .because(error.to_string())
    })??;
    Ok(Arc::new(store))
}

impl OpenTree {
    /// Opens the tree over `store`, or in memory.
    pub(crate) async fn open(self, store: Option<Arc<dyn Store>>) -> Result<OpenedTree, Problem> {
        let directory = self.store.as_deref().map(mnemosyne_store::boot::state_directory);
        let store = store.unwrap_or_else(|| Arc::new(MemoryStore::new()));
        let roles = self.roles.into_iter().map(OpenRole::read).collect::<Result<Vec<_>, Problem>>()?;
        let followed = self.log_events.then(|| follow_events(&store));
        let config = TreeConfig { store: Arc::clone(&store), roles, claims: self.claims };
        let tree = Tree::start(config).await?;
        match PythonHost::launch(&tokio::runtime::Handle::current(), Arc::clone(&store), directory).await {
            Ok(host) => host.serve(&tree),
            Err(error) => {
                tree.shutdown().await;
                return Err(Problem::new(ProblemKind::Environment, codes::PYTHON, "the agents' loop did not start")
                    .because(error.to_string()));
            }
        }
        Ok(OpenedTree { tree, store, followed })
    }
}

/// Items that were submitted here, and who will be told of their ends: whoever submits nearly always waits, and then need
/// not look first whether the item has ended meanwhile.
#[derive(Default)]
pub(crate) struct Watched(Mutex<HashMap<String, oneshot::Receiver<Option<ItemEnd>>>>);

impl Watched {
    /// Of items that nobody ever asks for, only so many are remembered.
    const MOST: usize = 16_384;

    fn watch(&self, item: String, told: oneshot::Receiver<Option<ItemEnd>>) {
        let mut watched = locked(&self.0);
        if watched.len() >= Self::MOST {
            watched.clear(); // who waits for one of them looks first
        }
        watched.insert(item, told);
    }

    pub(crate) fn take(&self, item: &str) -> Option<oneshot::Receiver<Option<ItemEnd>>> {
        locked(&self.0).remove(item)
    }
}

pub(crate) async fn submit_item(store: Arc<dyn Store>, watched: Arc<Watched>, item: WorkItem, how: Value) -> Reply {
    let how = match serde_json::from_value(how) {
        Ok(how) => how,
        Err(error) => return unreadable(&error),
    };
    let (own, told) = (item.id.clone(), store.ended(&item.id));
    match store.submit(item, how).await {
        Ok(id) => {
            if id == own {
                watched.watch(own, told);
            }
            Reply::Value(json!(id))
        }
        Err(problem) => problem.into(),
    }
}

pub(crate) async fn wait_item(
    store: Arc<dyn Store>,
    item: String,
    told: Option<oneshot::Receiver<Option<ItemEnd>>>,
) -> Reply {
    end_of(&store, &item, told).await.map_or_else(Reply::from, |end| Reply::Value(json!(end)))
}

pub(crate) async fn serve_store(store: Arc<dyn Store>, request: Value) -> Reply {
    match serde_json::from_value::<StoreRequest>(request) {
        Ok(request) => store_reply(&store, request).await.map_or_else(Reply::from, Reply::Value),
        Err(error) => unreadable(&error),
    }
}

async fn store_reply(store: &Arc<dyn Store>, request: StoreRequest) -> Result<Value, Problem> {
    match request {
        StoreRequest::Runs => {
            let mut rows = Vec::new();
            for run in store.runs().await? {
                let owner = operate::owner(store.as_ref(), run.boot.as_deref()).await?;
                rows.push(json!({"run": run, "owner": owner}));
            }
            Ok(Value::Array(rows))
        }
        StoreRequest::Run { run } => {
            let (snapshot, owner) = operate::find_run(store.as_ref(), &run).await?;
            Ok(json!({"snapshot": snapshot, "owner": owner}))
        }
        StoreRequest::SubmitRun { run, idempotency_key } => Ok(json!(store.submit_run(*run, idempotency_key).await?)),
        StoreRequest::AdoptRun { run, budget } => Ok(json!(store.adopt_run(&run, budget).await?)),
        StoreRequest::RetryTask { run, task, note, budget } => {
            Ok(json!(store.retry_task(&run, &task, note, budget).await?))
        }
        StoreRequest::Attempts { run, task } => Ok(json!(store.attempts(&run, &task).await?)),
        StoreRequest::Tell { run, kind, reason } => done(operate::tell(store.as_ref(), &run, &kind, &reason).await),
        StoreRequest::PauseRun { run, reason } => done(store.pause_run(&run, &reason).await),
        StoreRequest::ContinueRun { run } => done(store.continue_run(&run).await),
        StoreRequest::DeadLetters => Ok(json!(store.dead_letters().await?)),
        StoreRequest::Requeue { item, reason } => done(store.requeue(&item, &reason).await),
        StoreRequest::Discard { item, reason } => done(store.discard(&item, &reason).await),
        StoreRequest::Journals { run, subject } => Ok(json!(store.journals(&run, &subject).await?)),
        StoreRequest::Events { since, run, agent, limit, wait } => {
            let query = EventQuery { since, run, agent, limit, boot: None };
            wait_events(store, query, wait).await
        }
        StoreRequest::Agents { run } => Ok(json!(operate::agents_of(store.as_ref(), &run).await?)),
        StoreRequest::Boot { boot } => Ok(json!(operate::owner(store.as_ref(), Some(&boot)).await?)),
        StoreRequest::Stats => stats(store).await,
        StoreRequest::Prune { ended_before, runs } => {
            Ok(json!(forget(store.as_ref(), ended_before, runs, Pace::Foreground).await?))
        }
    }
}

fn done(outcome: Result<(), Problem>) -> Result<Value, Problem> {
    outcome.map(|()| Value::Null)
}

/// Looks at a store's file, or copies it, on a thread that may wait for the disk.
pub(crate) async fn serve_file(request: Value) -> Reply {
    let request = match serde_json::from_value::<FileRequest>(request) {
        Ok(request) => request,
        Err(error) => return unreadable(&error),
    };
    let answer = tokio::task::spawn_blocking(move || match request {
        FileRequest::Check { path } => sqlite::check(&path).map(|report| json!(report)),
        FileRequest::Backup { path, to } => sqlite::backup(&path, &to).map(|bytes| json!({"bytes": bytes})),
    });
    match answer.await {
        Ok(answer) => answer.map_or_else(Reply::from, Reply::Value),
        Err(error) => Problem::new(ProblemKind::Store, codes::STORE_UNAVAILABLE, error.to_string()).into(),
    }
}

/// The sums over all events of a store.
async fn stats(store: &Arc<dyn Store>) -> Result<Value, Problem> {
    let (mut fold, mut since) = (StatsFold::default(), 0);
    loop {
        let events = store.events(EventQuery { since, limit: EVENTS_AT_ONCE, ..EventQuery::default() }).await?;
        let Some(last) = events.last() else { return Ok(json!(fold.stats())) };
        since = last.sequence;
        events.iter().for_each(|event| fold.add(event));
    }
}

/// Waits for events, but not for ever: who waits must look now and then whether the run's process still lives.
async fn wait_events(store: &Arc<dyn Store>, query: EventQuery, wait: bool) -> Result<Value, Problem> {
    let mut changed = store.changed();
    let until = tokio::time::Instant::now() + WAIT;
    loop {
        changed.mark_unchanged();
        let events = store.events(query.clone()).await?;
        if !events.is_empty() || !wait || tokio::time::Instant::now() >= until {
            return Ok(json!(events));
        }
        if tokio::time::timeout(LOOK_AGAIN, changed.changed()).await.is_err() {
            store.poll_foreign().await?;
        }
    }
}

async fn end_of(
    store: &Arc<dyn Store>,
    item: &str,
    watched: Option<oneshot::Receiver<Option<ItemEnd>>>,
) -> Result<ItemEnd, Problem> {
    let mut look_first = watched.is_none();
    let mut told = watched.unwrap_or_else(|| store.ended(item));
    loop {
        if look_first {
            let Some(ItemSnapshot { item: found, result, problem }) = store.item(item).await? else {
                return Err(Problem::new(
                    ProblemKind::InvalidInput,
                    codes::ITEM_INVALID,
                    format!("there is no item {item}"),
                ));
            };
            if found.state.is_terminal() {
                return Ok(ItemEnd { state: found.state, result, problem });
            }
        }
        look_first = true;
        match tokio::time::timeout(LOOK_AGAIN, &mut told).await {
            Ok(Ok(Some(end))) => return Ok(end),
            Ok(_) => told = store.ended(item),
            // Another process may end it too: of that nobody tells us.
            Err(_) => {}
        }
    }
}

pub(crate) async fn serve_tree(opened: OpenedTree, request: Value) -> Reply {
    let OpenedTree { tree, store, followed } = opened;
    match serde_json::from_value::<TreeRequest>(request) {
        Ok(request) => {
            // Before the end, while the agents' loop still takes what is logged.
            if let (TreeRequest::Shutdown, Some(mut followed)) = (&request, followed) {
                followed.catch_up(store.as_ref()).await;
            }
            tree_reply(&tree, request).await.unwrap_or_else(|error| error_reply(&error))
        }
        Err(error) => unreadable(&error),
    }
}

async fn tree_reply(tree: &Tree, request: TreeRequest) -> Result<Reply, WorkError> {
    let value = match request {
        TreeRequest::AddAgent { role, spec, agent_id } => {
            let handle = tree
                .add_agent(role, AgentSpec::read(spec).map_err(|error| problem(error.into()))?, agent_id)
                .await
                .map_err(problem)?;
            json!({"agent_id": handle.agent_id(), "role": handle.role()})
        }
        TreeRequest::Scale { role, instances } => {
            tree.scale(role, instances).await.map_err(problem)?;
            Value::Null
        }
        TreeRequest::Supervisors => json!(tree.supervisors()),
        TreeRequest::SendWork(SendWork { agent, item, timeout }) => {
            json!(find(tree, &agent)?.send_work(*item, timeout.map(duration)).await?)
        }
        TreeRequest::RecordError { agent, error } => json!(find(tree, &agent)?.record_error(error).await?),
        TreeRequest::Restart { agent, reason } => json!(find(tree, &agent)?.restart(reason).await?),
        TreeRequest::ShutdownAgent { agent, timeout } => {
            find(tree, &agent)?.shutdown(timeout.map(duration)).await;
            Value::Null
        }
        TreeRequest::StopRun { run, state, problem: why } => {
            tree.stop_run(&run, state, why).await.map_err(problem)?;
            Value::Null
        }
        TreeRequest::CancelRun { run, reason } => {
            tree.cancel_run(&run, &reason).await.map_err(problem)?;
            Value::Null
        }
        TreeRequest::CancelItem { item, reason } => {
            tree.cancel_item(&item, &reason).await.map_err(problem)?;
            Value::Null
        }
        TreeRequest::Drain { seconds } => json!(tree.drain(seconds.map(duration)).await),
        TreeRequest::Shutdown => {
            tree.shutdown().await;
            Value::Null
        }
    };
    Ok(Reply::Value(value))
}

/// A year at most; less than nothing is nothing.
fn duration(seconds: f64) -> Duration {
    const YEAR: f64 = 365.0 * 24.0 * 3600.0;
    Duration::from_secs_f64(seconds.clamp(0.0, YEAR))
}

fn find(tree: &Tree, agent: &str) -> Result<AgentHandle, WorkError> {
    tree.agent(agent).ok_or_else(|| {
        problem(Problem::new(ProblemKind::Closed, codes::CLOSED, format!("the agent {agent} was shut down")))
    })
}

fn problem(problem: Problem) -> WorkError {
    problem.into()
}

fn error_reply(error: &WorkError) -> Reply {
    match error {
        WorkError::Agent(error) => Reply::from(error),
        WorkError::Problem { problem, retry_at } => {
            let mut value = json!(problem);
            value["retry_at"] = json!(retry_at);
            Reply::Error(value)
        }
    }
}

fn unreadable(error: &serde_json::Error) -> Reply {
    Problem::new(ProblemKind::InvalidInput, codes::ITEM_INVALID, format!("a request cannot be read: {error}")).into()
}
