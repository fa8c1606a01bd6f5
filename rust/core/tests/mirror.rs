//! The domain as Rust writes it equals `tests/shared/domain.json`, which the pydantic models are compared with too: so
//! neither side can drift alone. `MNEMOSYNE_BLESS=1` writes the file anew.

use mnemosyne_core::*;
use serde_json::{Value, json};

fn names<T: Copy + serde::Serialize>(all: &[T]) -> Value {
    json!(all)
}

/// The smallest JSON that a type accepts, as it reads with every default filled in.
fn filled<T: serde::de::DeserializeOwned + serde::Serialize>(smallest: Value) -> Value {
    let value: T = serde_json::from_value(smallest).expect("the smallest form is accepted");
    serde_json::to_value(value).expect("it can be written")
}

fn domain() -> Value {
    json!({
        "enums": {
            "AgentRole": names(AgentRole::ALL),
            "Phase": names(Phase::ALL),
            "AgentState": names(AgentState::ALL),
        },
        "models": {
            "WorkItem": filled::<WorkItem>(json!({"id": "a", "description": "b", "phase": "complete", "role": "executor"})),
            "WorkResult": filled::<WorkResult>(json!({"success": true})),
            "Usage": filled::<Usage>(json!({})),
            "ArtifactRef": filled::<ArtifactRef>(json!({"name": "a", "sha256": "b", "size": 1})),
            "Acceptance": filled::<Acceptance>(json!({"command": "a"})),
            "PlanTask": filled::<PlanTask>(json!({"id": "a", "title": "b", "acceptance": [{"command": "c"}]})),
            "Plan": filled::<Plan>(json!({"tasks": [{"id": "a", "title": "b", "acceptance": [{"command": "c"}]}]})),
            "Budget": filled::<Budget>(json!({})),
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
