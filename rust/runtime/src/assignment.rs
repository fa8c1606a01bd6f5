//! What the agents' side reads of a claim beside its item: one dict.

use mnemosyne_store::Claimed;
use serde_json::{Value, json};

/// Of a claim, its run and its task. The bridge adds `run.directory`: paths are not the tree's business.
pub(crate) fn about(claimed: &Claimed) -> Value {
    let run = claimed
        .run
        .as_ref()
        .map(|run| json!({"id": run.id, "workspace": run.workspace, "prompt": run.prompt, "options": run.options}));
    let plan = claimed.run.as_ref().and_then(|run| run.plan.as_ref());
    json!({
        "kind": claimed.item.kind,
        "epoch": claimed.item.epoch,
        "run": run,
        "task": claimed.task.as_ref().map(|task| &task.spec),
        "setup": plan.map(|plan| plan.setup.clone()).unwrap_or_default(),
        "accepted": claimed.accepted,
        "depth": claimed.run.as_ref().and_then(|run| run.budget.depth(claimed.task.is_some())),
    })
}
