//! The domain as Rust writes it equals `tests/shared/domain.json`, which the pydantic models are compared with too: so
//! neither side can drift alone. `MNEMOSYNE_BLESS=1` writes the file anew.

use mnemosyne_core::*;
use serde_json::{Map, Value, json};

fn names<T: Copy + serde::Serialize>(all: &[T]) -> Value {
    json!(all)
}

/// The smallest JSON that a type accepts, as it reads with every default filled in.
fn filled<T: serde::de::DeserializeOwned + serde::Serialize>(smallest: Value) -> Value {
    let value: T = serde_json::from_value(smallest).expect("the smallest form is accepted");
    serde_json::to_value(value).expect("it can be written")
}

/// One value of each kind that JSON and our types tell apart.
fn probes() -> Map<String, Value> {
    let probes = json!({
        "null": null, "boolean": true, "whole": 1, "fraction": 1.5, "text": "a", "texts": ["a"], "object": {}, "objects": [{}],
    });
    probes.as_object().expect("an object").clone()
}

/// Which kinds of value each field of a type accepts, and whether it accepts a field that it does not know.
fn accepted<T: serde::de::DeserializeOwned + serde::Serialize>(smallest: Value) -> Value {
    let whole = filled::<T>(smallest);
    let accepts = |field: &str, probe: &Value| {
        let mut changed = whole.clone();
        changed[field] = probe.clone();
        serde_json::from_value::<T>(changed).is_ok()
    };
    let mut table = Map::new();
    for field in whole.as_object().expect("an object").keys() {
        let kinds: Vec<String> =
            probes().iter().filter(|(_, probe)| accepts(field, probe)).map(|(kind, _)| kind.clone()).collect();
        table.insert(field.clone(), json!(kinds));
    }
    table.insert("any other key".to_owned(), json!(accepts("any other key", &Value::Null)));
    Value::Object(table)
}

fn domain() -> Value {
    let item = || json!({"id": "a", "description": "b", "phase": "complete", "role": "executor"});
    let result = || json!({"success": true});
    let artifact = || json!({"name": "a", "sha256": "b", "size": 1});
    let acceptance = || json!({"command": "a"});
    let task = || json!({"id": "a", "title": "b", "acceptance": [{"command": "c"}]});
    let plan = || json!({"tasks": [task()]});
    let event = || json!({"sequence": 1, "at": "2026-11-22T10:11:12.345Z", "kind": "run_submitted"});
    let mut results = accepted::<WorkResult>(result());
    // Rows of evidence pass through Rust unread; Python made them, and checks them.
    results.as_object_mut().expect("an object").remove("evidence");
    json!({
        "enums": {
            "AgentRole": names(AgentRole::ALL),
            "Phase": names(Phase::ALL),
            "AgentState": names(AgentState::ALL),
        },
        "models": {
            "WorkItem": filled::<WorkItem>(item()),
            "WorkResult": filled::<WorkResult>(result()),
            "Usage": filled::<Usage>(json!({})),
            "ArtifactRef": filled::<ArtifactRef>(artifact()),
            "Acceptance": filled::<Acceptance>(acceptance()),
            "PlanTask": filled::<PlanTask>(task()),
            "Plan": filled::<Plan>(plan()),
            "Budget": filled::<Budget>(json!({})),
            "Limits": filled::<Limits>(json!({})),
            "Event": filled::<Event>(event()),
        },
        "probes": probes(),
        "accepted": {
            "WorkItem": accepted::<WorkItem>(item()),
            "WorkResult": results,
            "Usage": accepted::<Usage>(json!({})),
            "ArtifactRef": accepted::<ArtifactRef>(artifact()),
            "Acceptance": accepted::<Acceptance>(acceptance()),
            "PlanTask": accepted::<PlanTask>(task()),
            "Plan": accepted::<Plan>(plan()),
            "Budget": accepted::<Budget>(json!({})),
            "Limits": accepted::<Limits>(json!({})),
        },
    })
}

#[test]
fn the_domain_is_what_the_shared_file_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/shared/domain.json");
    if std::env::var_os("MNEMOSYNE_BLESS").is_some() {
        let text = serde_json::to_string_pretty(&domain()).expect("json") + "\n";
        std::fs::write(path, text).expect("the file can be written");
    }
    let text = std::fs::read_to_string(path).expect("tests/shared/domain.json is there");
    let expected: Value = serde_json::from_str(&text).expect("it is JSON");
    assert_eq!(domain(), expected);
}

#[test]
fn unknown_keys_are_refused_where_users_write_them() {
    assert!(serde_json::from_value::<WorkResult>(json!({"success": true, "sucess": 1})).is_err());
    assert!(serde_json::from_value::<PlanTask>(json!({"id": "a", "title": "b", "acceptance": [], "x": 1})).is_err());
}
