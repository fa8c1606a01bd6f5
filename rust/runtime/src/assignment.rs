//! Work as the agents' side reads it: one dict per claim, or per direct call.

use mnemosyne_core::WorkItem;
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
        "claimed": true,
        "run": run,
        "task": claimed.task.as_ref().map(|task| &task.spec),
        "setup": plan.map(|plan| plan.setup.clone()).unwrap_or_default(),
        "accepted": claimed.accepted,
    })
}

/// Direct work: no store stands behind it.
pub(crate) fn direct_value(item: &WorkItem, agent_id: &str, generation: u64) -> Value {
    json!({
        "item": item,
        "kind": "work",
        "epoch": 0,
        "agent_id": agent_id,
        "generation": generation,
        "claimed": false,
        "run": null,
        "task": null,
        "setup": [],
        "accepted": [],
    })
}
