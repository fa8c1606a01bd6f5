//! The tree and the bridge together, with the real Claude agents on the demo server: with Python, without it, and where it
//! comes later.

mod support;

use mnemosyne::{AgentRole, AgentSpec, BridgeError, ClaudeAgentBridge, EventKind, Orchestra, RoleState};
use serde_json::json;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;
use support::{
    Claude, EXECUTOR, REVIEWER, TEST, alone, initialize, is_green, is_live, python, said_alone, sample, until, within,
    work,
};

const GONE: Duration = Duration::from_secs(10);

/// In a process in which Python was never initialised: an error, not a panic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn test_bridge_error_handling() {
    if !alone("test_bridge_error_handling") {
        return;
    }
    let error = ClaudeAgentBridge::spawn(AgentRole::Executor, AgentSpec::import(EXECUTOR)).await.map(|_| ());
    assert!(matches!(error, Err(BridgeError::PythonNotInitialized)), "{error:?}");
    assert!(error.expect_err("an error").to_string().contains("mnemosyne::python::initialize"));
    assert!(matches!(mnemosyne::python::version(), Err(BridgeError::PythonNotInitialized)));
    initialize(); // what was refused before is no obstacle
    let error = ClaudeAgentBridge::spawn(AgentRole::Executor, AgentSpec::import("no_such_module:Agent")).await;
    assert!(matches!(error.map(|_| ()), Err(BridgeError::Import(text)) if text.contains("no_such_module")));
}

/// DOWN-1: the tree runs, says so, keeps the queue; and recovers by itself when Python is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn test_graceful_degradation_without_python_bridges() {
    if !alone("test_graceful_degradation_without_python_bridges") {
        return;
    }
    let (claude, folder) = (Claude::start(), tempfile::tempdir().expect("a folder"));
    let tree = sample(&folder.path().join("tree"));
    let builder = Orchestra::builder().store(folder.path().join("store.db")).max_concurrent(1);
    let builder = [AgentRole::Orchestrator, AgentRole::Optimizer, AgentRole::Reviewer, AgentRole::Executor]
        .into_iter()
        .fold(builder, |builder, role| builder.agent(role, claude.agent(EXECUTOR)));
    let orchestra = builder.start().await.expect("it starts");
    let patient = orchestra.submit_work(work("patient", Some(&tree)), None).await.expect("it is stored");
    until("all four roles are degraded", async || {
        orchestra.health().roles.values().filter(|role| role.state == RoleState::Degraded).count() == 4
    })
    .await;
    let health = orchestra.health();
    for (role, health) in &health.roles {
        assert_eq!(health.reason.as_deref(), Some("no Python bridge is registered"), "{role:?}");
    }
    // Counted several times a second, so maybe not since it was stored.
    until("the queue is kept and seen", async || orchestra.health().queue.ready == 1).await;
    let names: Vec<_> = orchestra.agents().iter().map(|agent| agent.agent_id().to_owned()).collect();
    assert_eq!(names.len(), 4, "{names:?}");

    initialize();
    let done = within(patient.result()).await.expect("it ends");
    assert!(done.result.is_some_and(|result| result.success));
    assert!(is_green(&tree));
    until("all four roles have recovered", async || {
        orchestra.health().roles.values().all(|role| role.state == RoleState::Running)
    })
    .await;
    let kept: Vec<_> =
        orchestra.agents().iter().map(|agent| (agent.agent_id().to_owned(), agent.generation())).collect();
    assert_eq!(kept, names.into_iter().map(|name| (name, 1)).collect::<Vec<_>>(), "the actors were never replaced");
    let events = orchestra.events(0).await.expect("events");
    let count = |kind| events.iter().filter(|event| event.event.kind == kind).count();
    assert_eq!((count(EventKind::RoleDegraded), count(EventKind::RoleRecovered)), (4, 4));
    assert_eq!(count(EventKind::AgentRestarted), 0);
    orchestra.shutdown(GONE).await;
}

/// DOWN-1: the same for what is missing in the other language.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_without_a_key_are_degraded_and_recover_when_one_is_kept() {
    if !alone("roles_without_a_key_are_degraded_and_recover_when_one_is_kept") || is_live() {
        return;
    }
    initialize();
    let folder = tempfile::tempdir().expect("a folder");
    let orchestra = Orchestra::builder().store(folder.path().join("store.db")).start().await.expect("it starts");
    until("the three roles that ask Claude are degraded", async || {
        orchestra.health().roles.values().filter(|role| role.state == RoleState::Degraded).count() == 3
    })
    .await;
    for (role, health) in orchestra.health().roles {
        if role == AgentRole::Optimizer {
            continue; // it asks nobody
        }
        let reason = health.reason.as_deref().unwrap_or_default();
        assert!(reason.contains("no API key was found"), "{reason}");
    }
    let mut keep = python();
    keep.args(["-m", "mnemosyne", "config", "set-key"]).stdin(Stdio::piped());
    let mut keep = keep.spawn().expect("the command runs");
    keep.stdin.take().expect("its input").write_all(b"canary-0f1e2d3c4b5a69788796").expect("it reads");
    assert!(keep.wait().expect("it ends").success());
    until("all four roles have recovered", async || {
        orchestra.health().roles.values().all(|role| role.state == RoleState::Running)
    })
    .await;
    orchestra.shutdown(GONE).await;
}

/// SECRET-1: a panic that says all that it knows of an agent, and an agent that says its key, leave no piece of it in output.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secret_1_no_piece_of_a_key_is_in_a_panic_or_in_an_error() {
    const KEY: &str = "canary-6d5c4b3a29180f7e";
    if let Some(said) = said_alone("secret_1_no_piece_of_a_key_is_in_a_panic_or_in_an_error") {
        assert!(said.contains("panicked") && said.contains("talkative"), "{said}");
        assert!(!(0..=KEY.len() - 8).any(|at| said.contains(&KEY[at..at + 8])), "{said}");
        return;
    }
    initialize();
    let given = mnemosyne::python::Config { paths: vec![], api_key: Some(KEY.to_owned()) };
    let mut spec = AgentSpec::import("talkative:Talkative");
    spec.config.insert("api_key".into(), json!(KEY));
    let (shown, known) = (format!("{given:?}"), spec.clone());
    mnemosyne::python::initialize(given).expect("it takes the key");
    let panicked = tokio::spawn(async move { panic!("{shown} {known:?}") }).await;
    assert!(panicked.is_err_and(|error| error.is_panic()));
    let bridge = ClaudeAgentBridge::spawn(AgentRole::Executor, spec).await.expect("it starts");
    let error = bridge.send_work(work("w-1", None), None).await.expect_err("it raises");
    println!("{error} {error:?} {:?}", bridge.health());
    bridge.shutdown(GONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn test_python_bridge_spawn_and_registration() {
    initialize();
    let (claude, folder) = (Claude::start(), tempfile::tempdir().expect("a folder"));
    for (role, class) in [
        (AgentRole::Orchestrator, "mnemosyne.agents.orchestrator:OrchestratorAgent"),
        (AgentRole::Optimizer, "mnemosyne.agents.optimizer:OptimizerAgent"),
        (AgentRole::Reviewer, REVIEWER),
        (AgentRole::Executor, EXECUTOR),
    ] {
        let bridge = ClaudeAgentBridge::spawn(role, claude.agent(class)).await.expect("it starts");
        assert_eq!(bridge.agent_id(), format!("{}-1", role.as_str()));
        assert!(bridge.health().is_healthy);
        assert_eq!(bridge.generation(), 1);
        bridge.shutdown(GONE).await;
        assert!(matches!(
            bridge.send_work(work("late", None), None).await,
            Err(BridgeError::Closed(_) | BridgeError::Unavailable(_))
        ));
    }
    let builder = Orchestra::builder().store(folder.path().join("store.db"));
    let builder = builder.agent(AgentRole::Executor, claude.agent(EXECUTOR)).max_concurrent(2);
    let orchestra = builder.start().await.expect("it starts");
    until("the executors are registered and idle", async || {
        let events = orchestra.events(0).await.expect("events");
        let started = events.iter().filter(|event| event.event.kind == EventKind::AgentStarted);
        started.filter(|event| event.event.role == Some(AgentRole::Executor)).count() == 2
    })
    .await;
    let later = orchestra.add_agent(AgentRole::Executor, claude.agent(EXECUTOR)).await.expect("one more");
    assert_eq!(later.agent_id(), "executor-3");
    until("it is registered too", async || later.health().is_healthy).await;
    orchestra.shutdown(GONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn test_work_delegation_to_python_agent() {
    initialize();
    let (claude, folder) = (Claude::start(), tempfile::tempdir().expect("a folder"));
    let tree = sample(&folder.path().join("tree"));
    let builder = Orchestra::builder().store(folder.path().join("store.db")).max_concurrent(1);
    let orchestra = builder.agent(AgentRole::Executor, claude.agent(EXECUTOR)).start().await.expect("it starts");
    let handed = orchestra.submit_work(work("delegated", Some(&tree)), None).await.expect("it is stored");
    let done = within(handed.result()).await.expect("it ends").result.expect("a result");
    assert!(done.success && done.data.contains_key("summary"), "{done:?}");
    assert!(is_green(&tree));
    let events = orchestra.events(0).await.expect("events");
    let mine: Vec<_> = events
        .iter()
        .filter(|event| event.event.item.as_deref() == Some("delegated"))
        .map(|event| (event.event.kind, event.event.agent.as_deref()))
        .filter(|(kind, _)| matches!(kind, EventKind::WorkStarted | EventKind::WorkCompleted))
        .collect();
    assert_eq!(mine, [(EventKind::WorkStarted, Some("executor-1")), (EventKind::WorkCompleted, Some("executor-1"))]);
    orchestra.shutdown(GONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn test_concurrent_work_processing() {
    initialize();
    let (claude, folder) = (Claude::start(), tempfile::tempdir().expect("a folder"));
    let builder = Orchestra::builder().store(folder.path().join("store.db")).max_concurrent(4);
    let builder = builder.agent(AgentRole::Executor, claude.agent("together:Together"));
    let orchestra = builder.start().await.expect("it starts");
    let mut all = Vec::new();
    for number in 0..8 {
        let name = format!("tree-{number}");
        let tree = sample(&folder.path().join(&name));
        // Each has files of its own: items that may change the same file wait for each other.
        let mut item = work(&format!("w-{number}"), Some(folder.path()));
        item.file_scope = vec![format!("{name}/shop/pricing.py")];
        item.context.insert("acceptance".into(), json!([{"command": format!("cd {name} && {TEST}")}]));
        all.push((tree, orchestra.submit_work(item, None).await.expect("it is stored")));
    }
    let mut agents = std::collections::BTreeSet::new();
    for (tree, handed) in all {
        let done = within(handed.result()).await.expect("it ends");
        assert!(done.result.is_some_and(|result| result.success) && is_green(&tree));
    }
    for event in orchestra.events(0).await.expect("events") {
        if event.event.kind == EventKind::WorkStarted {
            agents.extend(event.event.agent);
        }
    }
    assert_eq!(agents.len(), 4, "four were at work at the same time, twice: {agents:?}");
    orchestra.shutdown(GONE).await;
}
