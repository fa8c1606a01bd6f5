//! The endpoints. What each takes and answers is said in `openapi.json`, to which a test holds them.

use crate::answer::{Refusal, no_endpoint, no_json, too_large, unreadable, wrong_method};
use crate::desk::{Counter, OrderKind};
use crate::door::{Door, enter};
use crate::hub::{Hub, Snapshot};
use crate::metrics::metrics;
use crate::stream::events;
use axum::body::{Body, to_bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use mnemosyne_core::error::codes;
use mnemosyne_core::{AgentRole, AgentState, Problem, ProblemKind, Run, RunState, Task};
use mnemosyne_runtime::operate::{Owner, agents_of, find_run, owner, tell, visible_state};
use mnemosyne_store::{Store, timestamp};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Clients that follow events at a time.
const STREAMS: usize = 256;
/// Bytes of a body, the largest plan's.
const LARGEST_BODY: usize = 10_000_000;
/// Characters of a reason.
const LONGEST_REASON: usize = 2_000;

const OPENAPI: &str = include_str!("openapi.json");
const PAGE: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/window.css");
const SCRIPT: &str = include_str!("page/window.js");

/// What the endpoints share.
#[derive(Clone)]
pub(crate) struct Window {
    pub(crate) hub: Arc<Hub>,
    pub(crate) streams: Arc<Semaphore>,
    counter: Counter,
}

impl Window {
    pub(crate) fn new(hub: Arc<Hub>, counter: Counter) -> Self {
        Self { hub, streams: Arc::new(Semaphore::new(STREAMS)), counter }
    }

    fn store(&self) -> &dyn Store {
        self.hub.store()
    }

    /// Clients that follow events now.
    pub(crate) fn following(&self) -> usize {
        STREAMS - self.streams.available_permits()
    }
}

type Answer = Result<(StatusCode, Json<Value>), Refusal>;
type Named<T> = Result<Path<T>, PathRejection>;

/// All of it, behind the door.
pub(crate) fn router(window: Window, door: Door) -> Router {
    let typed =
        |kind: &'static str, text: &'static str| get(move || async move { ([(header::CONTENT_TYPE, kind)], text) });
    Router::new()
        .route("/", typed("text/html; charset=utf-8", PAGE))
        .route("/window.css", typed("text/css; charset=utf-8", STYLE))
        .route("/window.js", typed("text/javascript; charset=utf-8", SCRIPT))
        .route("/openapi.json", typed("application/json", OPENAPI))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/state", get(state))
        .route("/events", get(events))
        .route("/metrics", get(metrics))
        .route("/runs", get(runs).post(submit_run))
        .route("/runs/{run}", get(run))
        .route("/runs/{run}/cancel", post(cancel))
        .route("/runs/{run}/pause", post(pause))
        .route("/runs/{run}/resume", post(resume))
        .route("/runs/{run}/agents", get(agents))
        .route("/runs/{run}/agents/{agent}/restart", post(restart))
        .route("/runs/{run}/agents/{agent}/release", post(release))
        .route("/items", post(submit_item))
        .route("/items/{item}", get(item))
        // The door answers it; here for the methods that it does not have.
        .route("/login", post(|| async {}))
        .fallback(async |method: Method, uri: Uri| Refusal::from(no_endpoint(said(&method, &uri))))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| wrong_method(said(&method, &uri)))
        .with_state(window)
        .layer(middleware::from_fn_with_state(door, enter))
}

fn said(method: &Method, uri: &Uri) -> String {
    format!("there is no {method} {}", uri.path().chars().take(200).collect::<String>())
}

/// The process answers. Touches nothing that could make it wait.
async fn health() -> Json<Value> {
    Json(json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")}))
}

/// Whether work would be begun: per role, with reasons.
async fn ready(State(window): State<Window>) -> Answer {
    let snapshot = window.hub.snapshot().await?;
    let roles: Map<String, Value> =
        AgentRole::ALL.iter().map(|role| (role.as_str().to_owned(), role_readiness(&snapshot, *role))).collect();
    let ready = roles.values().all(|role| role["ready"] == json!(true));
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(json!({"ready": ready, "roles": roles, "queue": snapshot.live.queue}))))
}

/// A role is ready where some process has an agent of it that takes work.
fn role_readiness(snapshot: &Snapshot, role: AgentRole) -> Value {
    let (mut reasons, mut agents, mut able) = (Vec::new(), 0, 0);
    for (boot, seen) in snapshot.live.boots.iter().filter(|(_, seen)| seen.owner.alive) {
        let picture = snapshot.picture.boots.get(boot);
        let degraded = picture.and_then(|picture| picture.degraded.get(&role));
        let stopped = picture.and_then(|picture| picture.intake_stopped.as_ref());
        reasons.extend(degraded.or(stopped).cloned());
        for view in seen.agents.iter().filter(|view| view.agent.role == Some(role)) {
            agents += 1;
            match view.agent.state {
                AgentState::Stopped | AgentState::Quarantined | AgentState::Degraded | AgentState::Suspect => {
                    let why = view.agent.reason.as_deref().unwrap_or("no reason is known");
                    reasons.push(format!("{} is {}: {why}", view.agent.agent_id, view.agent.state));
                }
                _ if degraded.is_none() && stopped.is_none() => able += 1,
                _ => {}
            }
        }
    }
    if agents == 0 && reasons.is_empty() {
        reasons.push("no process that lives has an agent of this role".to_owned());
    }
    json!({"ready": able > 0, "agents": agents, "reasons": reasons})
}

async fn state(State(window): State<Window>) -> Result<Json<Snapshot>, Refusal> {
    Ok(Json(window.hub.snapshot().await?))
}

async fn runs(State(window): State<Window>) -> Answer {
    let mut rows = Vec::new();
    for run in window.store().runs().await? {
        let seen = owner(window.store(), run.boot.as_deref()).await?;
        rows.push(row(&run, run.state, &seen));
    }
    Ok((StatusCode::OK, Json(json!({"runs": rows}))))
}

async fn run(State(window): State<Window>, run: Named<String>) -> Answer {
    let id = named(run)?;
    let (snapshot, seen) = find_run(window.store(), &id).await?;
    let mut found = row(&snapshot.run, snapshot.run.state, &seen);
    let run = &snapshot.run;
    let rest = json!({
        "error": run.error, "budget": run.budget, "resumes": run.resumes, "model": run.options.model, "demo": run.options.demo,
        "phases": snapshot.phases, "tasks": snapshot.tasks.iter().map(task).collect::<Vec<_>>(), "usage": snapshot.usage,
        "spent": snapshot.spent, "unknown_turns": snapshot.unknown_turns, "restarts": snapshot.restarts,
        "parked": snapshot.parked, "sequence": snapshot.last_sequence, "silent_seconds": seen.silent_seconds,
    });
    if let (Some(found), Value::Object(rest)) = (found.as_object_mut(), rest) {
        found.extend(rest);
    }
    Ok((StatusCode::OK, Json(found)))
}

/// As `mnemosyne runs --json` has it.
fn row(run: &Run, told: RunState, seen: &Owner) -> Value {
    let state = visible_state(&Run { state: told, ..run.clone() }, seen);
    let pid = seen.pid.filter(|_| seen.alive && state != RunState::Interrupted && !state.is_terminal());
    json!({
        "run": run.id, "state": state, "pid": pid, "phase": run.phase, "created_at": timestamp(run.created_at),
        "ended_at": run.ended_at.map(timestamp), "workspace": run.workspace, "prompt": run.prompt,
    })
}

fn task(task: &Task) -> Value {
    json!({
        "id": task.spec.id, "title": task.spec.title, "state": task.state, "attempt": task.attempt,
        "depends_on": task.spec.depends_on, "files": task.files, "feedback": task.feedback, "review": task.review,
    })
}

async fn agents(State(window): State<Window>, run: Named<String>) -> Answer {
    let agents = agents_of(window.store(), &named(run)?).await?;
    Ok((StatusCode::OK, Json(json!({"agents": agents}))))
}

async fn cancel(State(window): State<Window>, run: Named<String>, headers: HeaderMap, body: Body) -> Answer {
    told(&window, &named(run)?, "cancel", reason(&headers, body).await?).await
}

async fn pause(State(window): State<Window>, run: Named<String>, headers: HeaderMap, body: Body) -> Answer {
    told(&window, &named(run)?, "pause", reason(&headers, body).await?).await
}

async fn restart(
    State(window): State<Window>,
    names: Named<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let (run, agent) = named(names)?;
    told(&window, &run, &format!("restart {agent}"), reason(&headers, body).await?).await
}

async fn release(
    State(window): State<Window>,
    names: Named<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let (run, agent) = named(names)?;
    told(&window, &run, &format!("release {agent}"), reason(&headers, body).await?).await
}

/// A paused run goes on where it is; one that nobody works on goes on here.
async fn resume(State(window): State<Window>, run: Named<String>, headers: HeaderMap, body: Body) -> Answer {
    let (run, why) = (named(run)?, reason(&headers, body).await?);
    let (snapshot, seen) = find_run(window.store(), &run).await?;
    if seen.alive && snapshot.run.state == RunState::Paused {
        return told(&window, &run, "continue", why).await;
    }
    let began = window.counter.ask(OrderKind::ResumeRun(run), String::new()).await?;
    Ok((StatusCode::ACCEPTED, Json(began)))
}

async fn told(window: &Window, run: &str, kind: &str, reason: String) -> Answer {
    tell(window.store(), run, kind, &reason).await?;
    let (snapshot, seen) = find_run(window.store(), run).await?;
    let state = visible_state(&snapshot.run, &seen);
    Ok((StatusCode::ACCEPTED, Json(json!({"run": run, "asked": kind, "state": state}))))
}

async fn submit_run(State(window): State<Window>, headers: HeaderMap, body: Body) -> Answer {
    let body = text(&headers, body).await?;
    Ok((StatusCode::CREATED, Json(window.counter.ask(OrderKind::SubmitRun, body).await?)))
}

async fn submit_item(State(window): State<Window>, headers: HeaderMap, body: Body) -> Answer {
    let body = text(&headers, body).await?;
    Ok((StatusCode::CREATED, Json(window.counter.ask(OrderKind::SubmitItem, body).await?)))
}

async fn item(State(window): State<Window>, item: Named<String>) -> Answer {
    let id = named(item)?;
    let found = window.store().item(&id).await?.ok_or_else(|| {
        Problem::new(ProblemKind::InvalidInput, codes::NO_ITEM, format!("there is no item {id} in this store"))
            .hint("mnemosyne runs")
    })?;
    let state = json!({"item": id, "run": found.item.run, "role": found.item.work.role, "state": found.item.state,
        "result": found.result, "problem": found.problem});
    Ok((StatusCode::OK, Json(state)))
}

fn named<T>(name: Named<T>) -> Result<T, Refusal> {
    name.map(|Path(name)| name).map_err(|_| unreadable("its path is not UTF-8"))
}

/// Why something is told; nothing is a reason too.
async fn reason(headers: &HeaderMap, body: Body) -> Result<String, Refusal> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Said {
        reason: Option<String>,
    }
    let bytes = to_bytes(body, LARGEST_BODY).await.map_err(|_| too_large(LARGEST_BODY))?;
    if bytes.is_empty() {
        return Ok("requested".to_owned());
    }
    is_json(headers)?;
    let said: Said = serde_json::from_slice(&bytes).map_err(|error| unreadable(format!("its body: {error}")))?;
    let reason = said.reason.unwrap_or_else(|| "requested".to_owned());
    if reason.chars().count() > LONGEST_REASON || reason.contains('\0') {
        return Err(unreadable(format!("its reason is no text of at most {LONGEST_REASON} characters")));
    }
    Ok(reason)
}

/// A body for who reads it at the desk.
async fn text(headers: &HeaderMap, body: Body) -> Result<String, Refusal> {
    is_json(headers)?;
    let bytes = to_bytes(body, LARGEST_BODY).await.map_err(|_| too_large(LARGEST_BODY))?;
    String::from_utf8(bytes.into()).map_err(|_| {
        Problem::new(ProblemKind::InvalidInput, codes::PROMPT_UNREADABLE, "the request cannot be read")
            .because("its body is not UTF-8")
            .into()
    })
}

fn is_json(headers: &HeaderMap) -> Result<(), Refusal> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") { Ok(()) } else { Err(no_json()) }
}
