//! Rust -> Python -> Rust: the corpus that the tests in Python use too, generated values, and large ones.

use super::{initialize, item, repository};
use mnemosyne::{AgentRole, AgentSpec, ClaudeAgentBridge};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Map, Number, Value, json};
use std::time::Duration;

const MEGABYTE: usize = 1024 * 1024;

async fn echo() -> ClaudeAgentBridge {
    initialize();
    ClaudeAgentBridge::spawn(AgentRole::Executor, AgentSpec::import("echo:Echo")).await.expect("the agent starts")
}

async fn there_and_back(bridge: &ClaudeAgentBridge, value: &Value) -> Value {
    let mut item = item("w-1");
    item.context = Map::from_iter([("value".to_owned(), value.clone())]);
    let mut result = bridge.send_work(item, None).await.expect("a result");
    result.data.remove("value").expect("the value")
}

/// Numbers that are equal may still differ: `1` and `1.0`, `0.0` and `-0.0`.
fn exact(value: &Value) -> String {
    value.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_corpus_comes_back_unchanged() {
    let bridge = echo().await;
    let text = std::fs::read_to_string(repository().join("tests/shared/conversion.json")).expect("the corpus");
    let corpus: Value = serde_json::from_str(&text).expect("it is JSON");
    let cases = corpus["unchanged"].as_array().expect("a list");
    assert!(cases.len() > 20);
    for case in cases {
        let back = there_and_back(&bridge, &case["value"]).await;
        assert_eq!(exact(&back), exact(&case["value"]), "{}", case["what"]);
    }
    assert_eq!(exact(&there_and_back(&bridge, &corpus["unchanged"]).await), exact(&corpus["unchanged"]));
    bridge.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_megabytes_come_back_unchanged() {
    let bridge = echo().await;
    for text in ["x", "\0", "ü", "世", "🦀"] {
        let value = json!({text: text.repeat(10 * MEGABYTE / text.len())});
        assert!(there_and_back(&bridge, &value).await == value, "ten megabytes of {text:?}");
    }
    let value = Value::from_iter((0..200_000_u64).map(|number| json!([number, number as f64 / 3.0])));
    assert!(there_and_back(&bridge, &value).await == value, "a long list");
    bridge.shutdown(Duration::from_secs(5)).await;
}

fn values() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter_map("JSON has no word for it", |float| Number::from_f64(float).map(Value::from)),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number,
        any::<String>().prop_map(Value::from)
    ];
    leaf.prop_recursive(8, 128, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..8).prop_map(Value::from_iter),
        ]
    })
}

#[test]
fn generated_values_come_back_unchanged() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let bridge = runtime.block_on(echo());
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(256) });
    let outcome = runner.run(&values(), |value| {
        let back = runtime.block_on(there_and_back(&bridge, &value));
        prop_assert_eq!(exact(&back), exact(&value));
        Ok(())
    });
    runtime.block_on(bridge.shutdown(Duration::from_secs(5)));
    outcome.unwrap_or_else(|error| panic!("{error}"));
}
