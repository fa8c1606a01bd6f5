//! A claim as the agents' side reads it: one dict.

use mnemosyne_store::Claimed;
use serde_json::{Value, json};

/// A claimed item with its run and task. The bridge adds `run.directory`: paths are not the tree's business.
pub(crate) fn claimed_value(claimed: &Claimed, agent_id: &str, generation: u64) -> Value {
    let run = claimed
        .run
        .as_ref()
        .map(|run| json!({"id": run.id, "workspace": run.workspace, "prompt": run.prompt, "options": run.options}));
    let plan = claimed.run.as_ref().and_then(|run| run.plan.as_ref());
    json!({
        "item": claimed.item.work,
        "kind": claimed.item.kind,
        "epoch": claimed.item.epoch,
        "agent_id": agent_id,
        "generation": generation,
        "run": run,
        "task": claimed.task.as_ref().map(|task| &task.spec),
        "setup": plan.map(|plan| plan.setup.clone()).unwrap_or_default(),
        "accepted": claimed.accepted,
        "depth": claimed.run.as_ref().and_then(|run| run.budget.depth(claimed.task.is_some())),
    })
}
