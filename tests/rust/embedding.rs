//! Python inside a Rust program: the same bridge, on the interpreter that this build was made with.

mod conversion;
mod hangs;

use mnemosyne::{
    AgentRole, AgentSpec, BridgeError, ClaudeAgentBridge, EventKind, Orchestra, Phase, RunRequest, RunState, WorkItem,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::time::Duration;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn initialize() {
    static CALLBACKS: Once = Once::new();
    CALLBACKS.call_once(|| {
        use hangs::rust_callbacks;
        pyo3::append_to_inittab!(rust_callbacks);
    });
    let paths = ["python", "rust/mnemosyne/examples", "tests/rust/agents"].map(|path| repository().join(path)).into();
    mnemosyne::python::initialize(mnemosyne::python::Config { paths, api_key: None }).expect("Python starts");
}

fn item(id: &str) -> WorkItem {
    serde_json::from_value(serde_json::json!({
        "id": id, "description": "say hello", "phase": "plan_to_artifacts", "role": "executor",
    }))
    .expect("a work item")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_agent_works_for_a_rust_program() {
    initialize();
    let bridge = ClaudeAgentBridge::spawn(AgentRole::Executor, AgentSpec::import("greeter:Greeter")).await;
    let bridge = bridge.expect("the agent starts");
    let result = bridge.send_work(item("w-1"), None).await.expect("a result");
    assert_eq!(result.data["greeting"], "asked to say hello: hello from Python");
    assert_eq!(item("w-1").phase, Phase::PlanToArtifacts);
    bridge.shutdown(Duration::from_secs(5)).await;
    assert!(matches!(
        bridge.send_work(item("w-2"), None).await,
        Err(BridgeError::Closed(_) | BridgeError::Unavailable(_))
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_cannot_be_imported_is_an_import_error_that_names_it() {
    initialize();
    let error = ClaudeAgentBridge::spawn(AgentRole::Executor, AgentSpec::import("no_such_module:Agent")).await;
    match error.map(|_| ()) {
        Err(BridgeError::Import(text)) => assert!(text.contains("no_such_module"), "{text}"),
        other => panic!("{other:?}"),
    }
}

/// Without the library path, embedded tests would pass on another Python than the one that was asked for.
#[test]
fn the_embedded_interpreter_is_the_one_this_build_was_made_with() {
    initialize();
    let Some(wanted) = std::env::var_os("PYO3_PYTHON") else {
        eprintln!("skipped: PYO3_PYTHON names no interpreter to compare with");
        return;
    };
    let show = "import sys; print(sys.version, sys.base_prefix)";
    let printed = Command::new(wanted).args(["-c", show]).output().expect("the interpreter runs");
    let expected = String::from_utf8_lossy(&printed.stdout).trim().to_owned();
    let ours = mnemosyne::python::version().expect("Python answers");
    assert_eq!(ours, expected);
}

/// Cargo builds examples beside the tests; where only this test was asked for, it is not there.
#[test]
fn the_example_of_the_readme_runs_and_says_what_it_should() {
    let myself = std::env::current_exe().expect("this binary");
    let example = myself.parent().and_then(Path::parent).expect("the target folder").join("examples/embed");
    if !example.exists() {
        eprintln!("skipped: {} was not built; cargo test without --test builds it", example.display());
        return;
    }
    let output = Command::new(example).output().expect("the example runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("executor-1 (generation 1)") && said.contains("hello from Python"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dur_1_an_orchestra_in_rust_does_durable_work_once_for_one_key() {
    initialize();
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().join("store.db");
    let greeter = AgentSpec::import("greeter:Greeter");
    let builder = Orchestra::builder().store(&store).agent(AgentRole::Executor, greeter);
    let orchestra = builder.start().await.expect("it starts");
    let first = orchestra.submit_work(item("w-1"), Some("key".into())).await.expect("it is stored");
    let again = orchestra.submit_work(item("w-2"), Some("key".into())).await.expect("it is known");
    assert_eq!(first.id(), again.id());
    let done = first.result().await.expect("it ends");
    let greeting = done.result.expect("a result").data["greeting"].clone();
    assert_eq!(greeting, "asked to say hello: hello from Python");
    orchestra.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orchestra_in_rust_refuses_what_can_never_be_done_and_cancels_what_it_is_told_to() {
    initialize();
    let folder = tempfile::tempdir().expect("a folder");
    let sleeper = AgentSpec::import("sleeper:Sleeper");
    let builder = Orchestra::builder().store(folder.path().join("store.db"));
    let orchestra = builder.agent(AgentRole::Orchestrator, sleeper).start().await.expect("it starts");
    let refused = orchestra.submit(RunRequest::prompt("  ", folder.path())).await.map(|_| ());
    assert_eq!(refused.expect_err("an empty prompt").code, "MN-0101");
    let refused = orchestra.submit(RunRequest::prompt("do it", folder.path().join("nowhere"))).await.map(|_| ());
    assert_eq!(refused.expect_err("no workspace").code, "MN-0107");

    // Its agent sleeps, so the run waits until it is cancelled.
    let run = orchestra.submit(RunRequest::prompt("do it", folder.path())).await.expect("it is stored");
    run.cancel("the test is over").await.expect("it is cancelled");
    let result = run.result().await.expect("it ended");
    assert_eq!(result.run.state, RunState::Cancelled);
    // Agents may say something after it: their events belong to the boot, not to the run.
    let mut own = run.events(0).await.expect("events").into_iter().filter(|event| event.event.run.is_some());
    assert_eq!(own.next_back().map(|event| event.event.kind), Some(EventKind::RunCancelled));
    orchestra.shutdown(Duration::ZERO).await;
}
