//! Crashes, and when an item is the cause.

use super::{World, after, own, planned, release, step};
use crate::types::{FinishStep, Release, ReleaseReason, Released};
use mnemosyne_core::error::codes;
use mnemosyne_core::{EventKind, ItemState, Problem, ProblemKind, RunState, TaskState};
use serde_json::json;

pub async fn three_crashes_on_two_generations_are_poison(world: World) {
    world.submit(own("a")).await;
    world.submit(after("b", &["a"])).await;
    for (generation, released) in [(1, Released::Ready), (1, Released::Ready), (2, Released::Dead)] {
        let claimed = world.any().await.unwrap();
        assert_eq!(world.release(&claimed, ReleaseReason::Crash, generation).await, released);
    }
    let snapshot = world.store.item("a").await.unwrap().unwrap();
    assert_eq!((snapshot.item.state, snapshot.item.crashes), (ItemState::Dead, 3));
    assert_eq!(snapshot.problem.unwrap().code, codes::POISON);
    assert_eq!(world.state("b").await, ItemState::Cancelled);
    let dead = world.all_events().await.into_iter().find(|event| event.event.kind == EventKind::WorkDead).unwrap();
    assert_eq!((dead.event.agent.as_deref(), dead.event.generation), (Some("executor-1"), Some(2)));
    assert!(world.any().await.is_none());
}

pub async fn crashes_on_one_generation_are_the_agents_fault(world: World) {
    world.submit(own("a")).await;
    for _ in 0..6 {
        let claimed = world.any().await.unwrap();
        assert_eq!(world.release(&claimed, ReleaseReason::Crash, 1).await, Released::Ready);
    }
    let claimed = world.any().await.unwrap();
    assert_eq!((claimed.item.crashes, claimed.item.crash_generations), (6, 1));
    assert_eq!(world.release(&claimed, ReleaseReason::Crash, 2).await, Released::Dead);
}

pub async fn only_a_crash_is_a_crash(world: World) {
    world.submit(own("a")).await;
    for generation in 1..=4 {
        for reason in [ReleaseReason::Error, ReleaseReason::Model, ReleaseReason::Innocent] {
            let claimed = world.any().await.unwrap();
            assert_eq!(world.release(&claimed, reason, generation).await, Released::Ready);
        }
    }
    let claimed = world.any().await.unwrap();
    assert_eq!((claimed.item.crashes, claimed.item.model_failures), (0, 4));
    world.complete(&claimed).await;
    assert_eq!(world.store.item("a").await.unwrap().unwrap().item.model_failures, 0);
}

pub async fn a_finished_step_counts_crashes_from_zero(world: World) {
    world.submit(own("a")).await;
    for generation in 1..=2 {
        let claimed = world.any().await.unwrap();
        world.release(&claimed, ReleaseReason::Crash, generation).await;
    }
    let claimed = world.any().await.unwrap();
    let number = world.store.start_step(step(&claimed, "x")).await.unwrap();
    let finish = FinishStep {
        item: "a".into(),
        epoch: claimed.item.epoch,
        attempt: 1,
        number,
        outcome: Ok(json!(1)),
        usage: None,
        detail: serde_json::Value::Null,
    };
    world.store.finish_step(finish).await.unwrap();
    assert_eq!(world.release(&claimed, ReleaseReason::Crash, 3).await, Released::Ready);
    let claimed = world.any().await.unwrap();
    assert_eq!((claimed.item.crashes, claimed.item.crash_generations), (1, 1));
}

pub async fn a_release_says_why_and_by_whom(world: World) {
    world.submit(own("a")).await;
    let claimed = world.any().await.unwrap();
    let before = world.all_events().await.len();
    world.release(&claimed, ReleaseReason::Innocent, 1).await;
    assert_eq!(world.all_events().await.len(), before, "without an error nothing is said");
    let claimed = world.any().await.unwrap();
    let said = Release { error: Some("boom".into()), ..release(&claimed, ReleaseReason::Error, 1) };
    world.store.release(said).await.unwrap();
    let last = world.all_events().await.pop().unwrap().event;
    assert_eq!((last.kind, last.epoch, last.generation), (EventKind::WorkFailed, Some(2), Some(1)));
    assert_eq!((last.agent.as_deref(), &last.data["error"]), (Some("executor-1"), &json!("boom")));
}

pub async fn a_dead_item_of_a_task_fails_the_task(world: World) {
    let run = world.submit_run(planned("r-1", &[("a", &[], "a"), ("b", &["a"], "b")])).await;
    for generation in 1..=3 {
        let claimed = world.any().await.unwrap();
        world.release(&claimed, ReleaseReason::Crash, generation).await;
    }
    let snapshot = world.store.run(&run).await.unwrap().unwrap();
    let states: Vec<_> = snapshot.tasks.iter().map(|task| task.state).collect();
    assert_eq!(states, [TaskState::Failed, TaskState::Skipped]);
    assert_eq!(snapshot.run.state, RunState::Failed);
    assert!(snapshot.run.ended_at.is_some());
    assert_eq!(world.kinds(&run).await.last(), Some(&EventKind::RunFailed));
}

pub async fn an_item_that_is_given_up_has_its_problem(world: World) {
    world.submit(own("a")).await;
    let claimed = world.any().await.unwrap();
    let problem = Problem::new(ProblemKind::Timeout, codes::TIMEOUT, "too long").because("60 s").hint("try again");
    world.store.give_up("a", claimed.item.epoch, problem.clone(), vec![]).await.unwrap();
    let snapshot = world.store.item("a").await.unwrap().unwrap();
    assert_eq!((snapshot.item.state, snapshot.problem), (ItemState::Failed, Some(problem)));
    let last = world.all_events().await.pop().unwrap().event;
    assert_eq!((last.kind, &last.data["code"]), (EventKind::WorkFailed, &json!("MN-0302")));
    assert_eq!((last.agent.as_deref(), last.generation), (Some("executor-1"), Some(1)));
}
