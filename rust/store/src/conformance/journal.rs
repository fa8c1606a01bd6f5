//! The journal and artifacts.

use super::{World, code, own, planned, prompted, step};
use crate::types::{Amount, Completion, FinishStep, ReleaseReason, StartStep, StepRecord, StepState};
use mnemosyne_core::{EventKind, ItemKind, ItemState, Usage, WorkResult};
use serde_json::json;

fn finish(claimed: &crate::Claimed, number: u64, outcome: Result<serde_json::Value, String>) -> FinishStep {
    FinishStep {
        item: claimed.item.work.id.clone(),
        epoch: claimed.item.epoch,
        attempt: claimed.item.work.attempt,
        number,
        outcome,
        usage: None,
        detail: serde_json::Value::Null,
    }
}

pub async fn steps_are_numbered_within_item_and_attempt(world: World) {
    world.submit(own("a")).await;
    let claimed = world.any().await.unwrap();
    for number in 1..=3 {
        assert_eq!(world.start_step(&claimed, "x").await, number);
    }
    let second = StartStep { attempt: 2, ..step(&claimed, "x") };
    assert_eq!(world.store.start_step(second).await.unwrap(), 1);
    assert_eq!(world.store.journal("a", 1).await.unwrap().len(), 3);
    assert_eq!(world.store.journal("a", 2).await.unwrap().len(), 1);
    assert!(world.store.journal("a", 3).await.unwrap().is_empty());
    assert!(world.store.journal("b", 1).await.unwrap().is_empty());
}

pub async fn a_step_keeps_its_output_or_its_error(world: World) {
    world.submit(own("a")).await;
    let claimed = world.any().await.unwrap();
    let (one, two) = (world.start_step(&claimed, "one").await, world.start_step(&claimed, "two").await);
    world.store.finish_step(finish(&claimed, one, Ok(json!({"text": "ä", "n": null})))).await.unwrap();
    world.store.finish_step(finish(&claimed, two, Err("boom".into()))).await.unwrap();
    let record = |number, name: &str, state, output, error: Option<&str>| StepRecord {
        number,
        name: name.to_owned(),
        kind: "turn".to_owned(),
        input_sha256: "ab".repeat(32),
        state,
        output,
        error: error.map(str::to_owned),
    };
    let expected = [
        record(1, "one", StepState::Finished, Some(json!({"text": "ä", "n": null})), None),
        record(2, "two", StepState::Failed, None, Some("boom")),
    ];
    assert_eq!(world.store.journal("a", 1).await.unwrap(), expected);
}

pub async fn a_step_that_gave_nothing_is_not_one_without_output(world: World) {
    world.submit(own("a")).await;
    let claimed = world.any().await.unwrap();
    let number = world.start_step(&claimed, "one").await;
    world.store.finish_step(finish(&claimed, number, Ok(json!(null)))).await.unwrap();
    let steps = world.store.journal("a", 1).await.unwrap();
    assert_eq!((steps[0].state, &steps[0].output), (StepState::Finished, &Some(json!(null))));
}

pub async fn steps_say_when_they_begin_and_end(world: World) {
    world.submit(own("a")).await;
    let claimed = world.any().await.unwrap();
    let detail = json!({"request_sha256": "cd", "name": "not this"});
    let number = world.store.start_step(StartStep { detail, ..step(&claimed, "ask") }).await.unwrap();
    let usage = Some(Usage { turns: 1, output_tokens: 5, ..Usage::default() });
    let detail = json!({"class": "tool_error", "state": "not this"});
    world.store.finish_step(FinishStep { usage, detail, ..finish(&claimed, number, Ok(json!(1))) }).await.unwrap();
    let events = world.all_events().await;
    let [started, finished] = &events[events.len() - 2..] else { panic!("two events") };
    assert_eq!((started.event.kind, finished.event.kind), (EventKind::StepStarted, EventKind::StepFinished));
    assert_eq!(json!(started.event.data), json!({"name": "ask", "kind": "turn", "number": 1, "request_sha256": "cd"}));
    assert_eq!((&finished.event.data["number"], &finished.event.data["state"]), (&json!(1), &json!("finished")));
    assert_eq!(finished.event.data["usage"]["output_tokens"], 5);
    assert_eq!(finished.event.data["class"], "tool_error");
    for event in [&started.event, &finished.event] {
        assert_eq!((event.agent.as_deref(), event.generation, event.epoch), (Some("executor-1"), Some(1), Some(1)));
    }
}

pub async fn a_step_that_is_not_open_cannot_end(world: World) {
    world.submit(own("a")).await;
    let claimed = world.any().await.unwrap();
    assert_eq!(code(world.store.finish_step(finish(&claimed, 1, Ok(json!(1)))).await), "MN-0117");
    let number = world.start_step(&claimed, "x").await;
    world.store.finish_step(finish(&claimed, number, Ok(json!(1)))).await.unwrap();
    assert_eq!(code(world.store.finish_step(finish(&claimed, number, Ok(json!(2)))).await), "MN-0117");
    assert_eq!(world.store.journal("a", 1).await.unwrap()[0].output, Some(json!(1)));
    let list = StartStep { detail: json!([1]), ..step(&claimed, "x") };
    assert_eq!(code(world.store.start_step(list).await), "MN-0117");
}

pub async fn a_step_that_a_claim_left_open_is_unknown_and_the_number_goes_on(world: World) {
    world.submit(own("a")).await;
    let first = world.any().await.unwrap();
    world.start_step(&first, "x").await;
    world.release(&first, ReleaseReason::Error, 1).await;
    let second = world.any().await.unwrap();
    assert_eq!(world.store.journal("a", 1).await.unwrap()[0].state, StepState::Unknown);
    assert_eq!(code(world.store.finish_step(finish(&second, 1, Ok(json!(1)))).await), "MN-0117");
    assert_eq!(world.start_step(&second, "x").await, 2, "asked again under the next number");
}

pub async fn an_artifact_is_replaced_under_its_name(world: World) {
    let run = world.submit_run(prompted("r-1")).await;
    let claimed = world.any().await.unwrap();
    let (id, epoch) = (claimed.item.work.id.as_str(), claimed.item.epoch);
    let first = world.store.put_artifact(id, epoch, "notes", b"hello".to_vec()).await.unwrap();
    assert_eq!((first.name.as_str(), first.size), ("notes", 5));
    assert_eq!(first.sha256, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
    world.store.put_artifact(id, epoch, "notes", vec![0, 255]).await.unwrap();
    assert_eq!(world.store.artifact(&run, "notes").await.unwrap(), Some(vec![0, 255]));
    assert_eq!(world.store.artifact(&run, "other").await.unwrap(), None);
    assert_eq!(world.store.artifact("r-2", "notes").await.unwrap(), None);
}

pub async fn the_newest_artifact_of_a_name_is_read(world: World) {
    let run = world.submit_run(prompted("r-1")).await;
    for content in ["one", "two", "three"] {
        let claimed = world.any().await.unwrap();
        let (id, epoch) = (claimed.item.work.id.clone(), claimed.item.epoch);
        world.store.put_artifact(&id, epoch, "notes", content.into()).await.unwrap();
        world.store.complete(Completion::new(&claimed, WorkResult::failure("again"))).await.unwrap();
    }
    assert_eq!(world.store.artifact(&run, "notes").await.unwrap(), Some(b"three".to_vec()));
}

pub async fn the_journals_of_a_task_are_those_of_all_its_items_and_attempts(world: World) {
    let run = world.submit_run(planned("r-1", &[("a", &[], "a.py"), ("b", &["a"], "b.py")])).await;
    for (kind, passed) in [(ItemKind::Optimize, true), (ItemKind::Execute, true), (ItemKind::Review, false)] {
        let claimed = world.any().await.unwrap();
        assert_eq!(claimed.item.kind, kind);
        let number = world.start_step(&claimed, kind.as_str()).await;
        world.store.finish_step(finish(&claimed, number, Ok(json!({"of": kind})))).await.unwrap();
        let mut result = super::good(kind);
        result.data.insert("passed".into(), json!(passed));
        world.store.complete(Completion::new(&claimed, result)).await.unwrap();
    }
    let second = world.any().await.unwrap();
    world.start_step(&second, "again").await;
    let journals = world.store.journals(&run, "a").await.unwrap();
    let seen: Vec<_> = journals.iter().map(|found| (found.kind, found.attempt, found.state, found.claims)).collect();
    assert_eq!(
        seen,
        [
            (ItemKind::Optimize, 1, ItemState::Done, 1),
            (ItemKind::Execute, 1, ItemState::Done, 1),
            (ItemKind::Review, 1, ItemState::Done, 1),
            (ItemKind::Optimize, 2, ItemState::Running, 1),
        ]
    );
    assert_eq!(journals[1].steps[0].record.output, Some(json!({"of": "execute"})));
    assert_eq!((journals[3].steps.len(), journals[3].steps[0].record.state), (1, StepState::Started));
    assert!(world.store.journals(&run, "b").await.unwrap().is_empty(), "it has not begun");
    assert!(world.store.journals(&run, "optimize").await.unwrap().is_empty(), "a task's items are no phase");
    assert!(world.store.journals("r-2", "a").await.unwrap().is_empty());
}

pub async fn the_journal_of_a_phase_is_read_by_its_name(world: World) {
    let run = world.submit_run(prompted("r-1")).await;
    let claimed = world.any().await.unwrap();
    world.start_step(&claimed, "project").await;
    let journals = world.store.journals(&run, "prompt_to_spec").await.unwrap();
    assert_eq!((journals.len(), journals[0].item.as_str()), (1, claimed.item.work.id.as_str()));
    assert_eq!((journals[0].role, journals[0].steps[0].record.name.as_str()), (claimed.item.work.role, "project"));
}

pub async fn a_journal_says_what_was_set_aside_and_whose_cost_nobody_knows(world: World) {
    let run = world.submit_run(prompted("r-1")).await;
    let reserve = Some(Amount { tokens: 70, usd: Some(0.5) });
    let first = world.any().await.unwrap();
    let number = world.store.start_step(StartStep { reserve, ..step(&first, "turn") }).await.unwrap();
    let usage = Some(Usage { turns: 1, output_tokens: 5, ..Usage::default() });
    world.store.finish_step(FinishStep { usage, ..finish(&first, number, Ok(json!(1))) }).await.unwrap();
    world.store.start_step(StartStep { reserve, ..step(&first, "turn") }).await.unwrap();
    world.start_step(&first, "free").await;
    world.release(&first, ReleaseReason::Innocent, 1).await;
    let journals = world.store.journals(&run, "prompt_to_spec").await.unwrap();
    let seen: Vec<_> =
        journals[0].steps.iter().map(|step| (step.record.state, step.reserved, step.spent_unknown)).collect();
    let expected =
        [(StepState::Finished, reserve, false), (StepState::Unknown, reserve, true), (StepState::Unknown, None, false)];
    assert_eq!(seen, expected);
}
