//! Upcalls: what an agent asks of Rust through its `AgentContext`. Each carries (item, epoch) and returns after the commit;
//! a stale epoch is answered `Fenced` and the task ends (FENCE-1).

use crate::host::HostInner;
use crate::port::Reply;
use base64::Engine;
use mnemosyne_core::{EventKind, NewEvent, Problem, ProblemKind, Usage, error::codes};
use mnemosyne_store::{Amount, FinishStep, Reserve, StartStep, Store};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Whoever waits for a free part of the budget looks again after this long, whatever the store's signal says.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
enum Upcall {
    Journal {
        item: String,
        #[allow(dead_code)]
        epoch: u64,
        attempt: u32,
    },
    StepStart {
        item: String,
        epoch: u64,
        attempt: u32,
        name: String,
        kind: String,
        input_sha256: String,
        detail: Option<Value>,
        reserve: Option<Amount>,
    },
    StepFinish {
        item: String,
        epoch: u64,
        attempt: u32,
        number: u64,
        output: Value,
        usage: Option<Usage>,
        detail: Option<Value>,
    },
    StepFail {
        item: String,
        epoch: u64,
        attempt: u32,
        number: u64,
        error: String,
        usage: Option<Usage>,
        detail: Option<Value>,
    },
    Reserve {
        item: String,
        epoch: u64,
        tokens: u64,
        usd: Option<f64>,
    },
    Settle {
        item: String,
        epoch: u64,
        reservation: String,
        usage: Usage,
    },
    Artifact {
        item: String,
        epoch: u64,
        name: String,
        content: String,
    },
    /// A breaker opened or closed. It belongs to the process: to no run, and to no claim that could be over.
    Breaker {
        #[allow(dead_code)]
        item: String,
        #[allow(dead_code)]
        epoch: u64,
        opened: bool,
        data: Map<String, Value>,
    },
}

/// Answers one upcall.
pub(crate) async fn upcall(host: Arc<HostInner>, request: Value) -> Reply {
    host.progressed(&request);
    match serde_json::from_value::<Upcall>(request) {
        Ok(upcall) => serve(&host, upcall).await.map_or_else(Reply::from, Reply::Value),
        Err(error) => {
            Problem::new(ProblemKind::Agent, codes::AGENT, format!("an upcall cannot be read: {error}")).into()
        }
    }
}

pub(crate) fn tree_is_gone() -> Problem {
    Problem::new(ProblemKind::Closed, codes::CLOSED, "the tree of this agent was shut down")
}

async fn serve(host: &HostInner, upcall: Upcall) -> Result<Value, Problem> {
    let store = &host.store;
    match upcall {
        Upcall::Journal { item, attempt, .. } => Ok(json!(store.journal(&item, attempt).await?)),
        Upcall::StepStart { item, epoch, attempt, name, kind, input_sha256, detail, reserve } => {
            let detail = detail.unwrap_or(Value::Null);
            let step = StartStep { item, epoch, attempt, name, kind, input_sha256, detail, reserve };
            Ok(json!({"number": when_free(store, || store.start_step(step.clone())).await?}))
        }
        Upcall::StepFinish { item, epoch, attempt, number, output, usage, detail } => {
            let detail = detail.unwrap_or(Value::Null);
            let step = FinishStep { item, epoch, attempt, number, outcome: Ok(output), usage, detail };
            store.finish_step(step).await.map(|()| Value::Null)
        }
        Upcall::StepFail { item, epoch, attempt, number, error, usage, detail } => {
            let detail = detail.unwrap_or(Value::Null);
            let step = FinishStep { item, epoch, attempt, number, outcome: Err(error), usage, detail };
            store.finish_step(step).await.map(|()| Value::Null)
        }
        Upcall::Reserve { item, epoch, tokens, usd } => {
            let reserve = Reserve { item, epoch, amount: Amount { tokens, usd } };
            Ok(json!({"reservation": when_free(store, || store.reserve(reserve.clone())).await?}))
        }
        Upcall::Settle { item, epoch, reservation, usage } => {
            store.settle(&item, epoch, &reservation, usage).await.map(|()| Value::Null)
        }
        Upcall::Artifact { item, epoch, name, content } => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(content).map_err(|error| {
                Problem::new(ProblemKind::Agent, codes::AGENT, format!("the artifact {name:?} cannot be read: {error}"))
            })?;
            Ok(json!(store.put_artifact(&item, epoch, &name, bytes).await?))
        }
        Upcall::Breaker { opened, data, .. } => {
            let kind = if opened { EventKind::BreakerOpened } else { EventKind::BreakerClosed };
            store.append_events(vec![NewEvent { data, ..NewEvent::new(kind) }]).await?;
            Ok(Value::Null)
        }
    }
}

/// What fits once requests under way have ended waits for them (BUDGET-1): the run is not stopped while there is money
/// left. Whoever waits has set nothing aside, and a request ends by itself, so nobody waits in a circle; a claim that
/// ends meanwhile is fenced.
async fn when_free<T, A>(store: &Arc<dyn Store>, ask: impl Fn() -> A) -> Result<T, Problem>
where
    A: Future<Output = Result<T, Problem>>,
{
    let mut changed = store.changed();
    loop {
        changed.mark_unchanged();
        match ask().await {
            Err(problem) if problem.code == codes::BUDGET_BUSY => {}
            answer => return answer,
        }
        let _ = tokio::time::timeout(LOOK_AGAIN, changed.changed()).await;
    }
}

/// Progress is a live overlay, not rows: that something was said is remembered, and when.
pub(crate) fn notify(host: &HostInner, request: &Value) {
    host.progressed(request);
}
