//! The bridge with the real Claude agents, from Rust, against the demo server; the names are those of
//! `tests/e2e/test_python_bridge_e2e.py`. See `support` for the real API.

mod support;

use mnemosyne::{AgentRole, BridgeError, ClaudeAgentBridge};
use serde_json::{Value, json};
use std::time::Duration;
use support::{Claude, EXECUTOR, REVIEWER, TEST, initialize, is_green, is_live, item, sample, work};

const GONE: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn test_simple_work_execution_with_claude() {
    initialize();
    let (claude, folder) = (Claude::start(), tempfile::tempdir().expect("a folder"));
    let tree = sample(folder.path());
    let bridge = ClaudeAgentBridge::spawn(AgentRole::Executor, claude.agent(EXECUTOR)).await.expect("it starts");
    let result = bridge.send_work(work("w-1", Some(&tree)), None).await.expect("a result");
    assert!(result.success && result.data["summary"].as_str().is_some_and(|said| !said.is_empty()), "{result:?}");
    assert!(result.usage.output_tokens > 0);
    assert!(is_green(&tree));
    let health = bridge.health();
    assert!(health.is_healthy);
    assert_eq!((health.error_count, health.generation), (0, 1));
    bridge.shutdown(GONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn test_error_recovery_with_invalid_work() {
    initialize();
    let (claude, folder) = (Claude::start(), tempfile::tempdir().expect("a folder"));
    let tree = sample(folder.path());
    let bridge = ClaudeAgentBridge::spawn(AgentRole::Executor, claude.agent(EXECUTOR)).await.expect("it starts");
    match bridge.send_work(work("w-1", None), None).await {
        Err(BridgeError::Agent(error)) => assert!(error.to_string().contains("no tree to work in"), "{error}"),
        other => panic!("{other:?}"),
    }
    assert!(bridge.health().is_healthy);
    assert_eq!(bridge.health().error_count, 1);
    assert!(bridge.send_work(work("w-2", Some(&tree)), None).await.expect("a result").success);
    assert_eq!((bridge.health().error_count, bridge.generation()), (0, 1), "a success empties the window");
    assert!(is_green(&tree));
    bridge.shutdown(GONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn test_concurrent_work_processing() {
    initialize();
    let claude = Claude::start();
    let folders: Vec<_> = (0..4).map(|_| tempfile::tempdir().expect("a folder")).collect();
    let mut agent = claude.agent("together:Together");
    agent.in_flight = 4;
    let bridge = ClaudeAgentBridge::spawn(AgentRole::Executor, agent).await.expect("it starts");
    let sent: Vec<_> = folders
        .iter()
        .enumerate()
        .map(|(number, folder)| {
            let (bridge, item) = (bridge.clone(), work(&format!("w-{number}"), Some(&sample(folder.path()))));
            tokio::spawn(async move { bridge.send_work(item, None).await })
        })
        .collect();
    for result in sent {
        assert!(result.await.expect("no panic").expect("a result").success);
    }
    assert!(folders.iter().all(|folder| is_green(folder.path())));
    bridge.shutdown(GONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn test_reviewer_agent_quality_checks() {
    initialize();
    let claude = Claude::start();
    let bridge = ClaudeAgentBridge::spawn(AgentRole::Reviewer, claude.agent(REVIEWER)).await.expect("it starts");
    let diff = "--- a/shop/pricing.py\n+++ b/shop/pricing.py\n@@ -1,2 +1,2 @@\n def unit_price(cents, count):\n\
                -    raise NotImplementedError\n+    return cents / count\n";
    let judged = async |id: &str, exit_code: i32, diff: &str| -> Value {
        let evidence = json!([{"kind": "acceptance", "command": TEST, "exit_code": exit_code, "before_exit_code": 1}]);
        let requirements = json!([{"id": "R1", "text": "unit_price divides the cents by the count"}]);
        let context = json!({"requirements": requirements, "diff": diff, "evidence": evidence});
        let result = bridge.send_work(item(id, "reviewer", context), None).await.expect("a verdict");
        Value::Object(result.data)
    };
    let good = judged("w-1", 0, diff).await;
    assert_eq!((&good["passed"], &good["requirements"][0]["id"]), (&json!(true), &json!("R1")), "{good}");
    assert!(good["confidence"].as_f64().is_some_and(|sure| sure >= 0.5));
    for bad in [judged("w-2", 1, diff).await, judged("w-3", 0, "").await] {
        assert_eq!(bad["passed"], json!(false), "{bad}");
        assert!(bad["feedback"].as_str().is_some_and(|said| !said.is_empty()));
    }
    bridge.shutdown(GONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn test_work_timeout_handling() {
    initialize();
    let folder = tempfile::tempdir().expect("a folder");
    let faults = folder.path().join("faults.json");
    std::fs::write(&faults, json!({"faults": [{"fault": "hang", "nth": 1}]}).to_string()).expect("a fault script");
    let tree = sample(&folder.path().join("tree"));
    let claude = Claude::with_faults(Some(&faults));
    let bridge = ClaudeAgentBridge::spawn(AgentRole::Executor, claude.agent(EXECUTOR)).await.expect("it starts");
    let limit = Duration::from_millis(if is_live() { 50 } else { 1_000 });
    let late = bridge.send_work(work("w-1", Some(&tree)), Some(limit)).await;
    assert!(matches!(late, Err(BridgeError::Timeout(_))), "{late:?}");
    assert_eq!(bridge.health().error_count, 1);
    assert!(bridge.send_work(work("w-2", Some(&tree)), None).await.expect("a result").success);
    assert!(is_green(&tree));
    bridge.shutdown(GONE).await;
}
