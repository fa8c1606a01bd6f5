//! A Rust binary that drives a Python agent.
//!
//! `make embed` runs it. The agent is the class `Greeter` in `examples/greeter.py`.

use mnemosyne::{AgentRole, AgentSpec, ClaudeAgentBridge, Phase, WorkItem};
use std::path::PathBuf;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    mnemosyne::python::initialize(mnemosyne::python::Config {
        paths: vec![here.join("../../python"), here.join("examples")],
        api_key: None,
    })?;

    let bridge = ClaudeAgentBridge::spawn(AgentRole::Executor, AgentSpec::import("greeter:Greeter")).await?;
    let item = WorkItem {
        id: "hello-1".into(),
        description: "greet the Rust engineer".into(),
        phase: Phase::PlanToArtifacts,
        role: AgentRole::Executor,
        priority: 5,
        depends_on: vec![],
        file_scope: vec![],
        context: serde_json::Map::new(),
        timeout_seconds: 10.0,
        attempt: 1,
    };
    let result = bridge.send_work(item, None).await?;
    println!("{} (generation {}): {}", bridge.agent_id(), bridge.generation(), result.data["greeting"]);
    bridge.shutdown(std::time::Duration::from_secs(5)).await;
    Ok(())
}
