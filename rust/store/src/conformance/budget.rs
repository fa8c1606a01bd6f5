//! BUDGET-1.

use super::{World, code, own, prompted, step};
use crate::types::{Amount, Claimed, FinishStep, ReleaseReason, Reserve, StartStep};
use mnemosyne_core::{Budget, Run, Usage};
use serde_json::json;

fn tokens(tokens: u64) -> Amount {
    Amount { tokens, usd: None }
}

async fn limited(world: &World, usd: Option<f64>, tokens: Option<u64>) -> Claimed {
    world.submit_run(Run { budget: Budget { usd, tokens }, ..prompted("r-1") }).await;
    world.any().await.unwrap()
}

fn asks(claimed: &Claimed, amount: Amount) -> Reserve {
    Reserve { item: claimed.item.work.id.clone(), epoch: claimed.item.epoch, amount }
}

pub async fn budget_1_what_does_not_fit_is_refused_and_writes_nothing(world: World) {
    let claimed = limited(&world, None, Some(100)).await;
    world.store.reserve(asks(&claimed, tokens(60))).await.unwrap();
    let events = world.all_events().await;
    let refused = world.store.reserve(asks(&claimed, tokens(41))).await.unwrap_err();
    assert_eq!((refused.kind, refused.code.as_str()), (mnemosyne_core::ProblemKind::Budget, "MN-0501"));
    assert!(refused.hint.contains("mnemosyne resume r-1 --budget-tokens"), "{refused}");
    let big = StartStep { reserve: Some(tokens(41)), ..step(&claimed, "x") };
    assert_eq!(code(world.store.start_step(big).await), "MN-0501");
    assert!(world.store.journal(&claimed.item.work.id, 1).await.unwrap().is_empty());
    assert_eq!(world.all_events().await, events);
    world.store.reserve(asks(&claimed, tokens(40))).await.unwrap();
}

pub async fn budget_1_a_settled_reservation_counts_what_was_used(world: World) {
    let claimed = limited(&world, None, Some(100)).await;
    let reservation = world.store.reserve(asks(&claimed, tokens(100))).await.unwrap();
    let used = Usage { turns: 1, input_tokens: 10, output_tokens: 20, cost_usd: 0.5, ..Usage::default() };
    let (id, epoch) = (claimed.item.work.id.as_str(), claimed.item.epoch);
    world.store.settle(id, epoch, &reservation, used.clone()).await.unwrap();
    assert_eq!(code(world.store.settle(id, epoch, &reservation, used.clone()).await), "MN-0117");
    assert_eq!(code(world.store.settle(id, epoch, "u-999", used.clone()).await), "MN-0117");
    assert_eq!(world.store.run("r-1").await.unwrap().unwrap().usage, used);
    assert_eq!(code(world.store.reserve(asks(&claimed, tokens(71))).await), "MN-0501");
    world.store.reserve(asks(&claimed, tokens(70))).await.unwrap();
}

pub async fn budget_1_a_step_settles_its_reservation_with_its_end(world: World) {
    let claimed = limited(&world, None, Some(100)).await;
    let started = StartStep { reserve: Some(tokens(100)), ..step(&claimed, "x") };
    let number = world.store.start_step(started).await.unwrap();
    assert_eq!(code(world.store.reserve(asks(&claimed, tokens(1))).await), "MN-0501");
    let finish = |number, usage| FinishStep {
        item: claimed.item.work.id.clone(),
        epoch: claimed.item.epoch,
        attempt: 1,
        number,
        outcome: Ok(json!(1)),
        usage,
        detail: serde_json::Value::Null,
    };
    let used = Usage { turns: 1, cache_read_tokens: 30, ..Usage::default() };
    world.store.finish_step(finish(number, Some(used))).await.unwrap();
    let started = StartStep { reserve: Some(tokens(70)), ..step(&claimed, "x") };
    let number = world.store.start_step(started).await.unwrap();
    world.store.finish_step(finish(number, None)).await.unwrap();
    world.store.reserve(asks(&claimed, tokens(70))).await.expect("nothing was spent, so it is free again");
    let snapshot = world.store.run("r-1").await.unwrap().unwrap();
    assert_eq!((snapshot.usage.turns, snapshot.usage.tokens(), snapshot.unknown_turns), (1, 30, 0));
}

pub async fn budget_1_a_step_that_failed_without_a_known_usage_is_charged_whole(world: World) {
    let claimed = limited(&world, None, Some(100)).await;
    let fail = |number, usage| FinishStep {
        item: claimed.item.work.id.clone(),
        epoch: claimed.item.epoch,
        attempt: 1,
        number,
        outcome: Err("the stream was cut".to_owned()),
        usage,
        detail: serde_json::Value::Null,
    };
    let started = StartStep { reserve: Some(tokens(60)), ..step(&claimed, "x") };
    let number = world.store.start_step(started.clone()).await.unwrap();
    world.store.finish_step(fail(number, Some(Usage::default()))).await.unwrap();
    let number = world.store.start_step(started).await.expect("nothing was spent, and that is known");
    world.store.finish_step(fail(number, None)).await.unwrap();
    assert_eq!(code(world.store.reserve(asks(&claimed, tokens(41))).await), "MN-0501");
    assert_eq!(world.store.run("r-1").await.unwrap().unwrap().unknown_turns, 1);
}

pub async fn budget_1_an_open_reservation_is_charged_whole_after_a_crash(mut world: World) {
    let claimed = limited(&world, None, Some(100)).await;
    let started = StartStep { reserve: Some(tokens(60)), ..step(&claimed, "x") };
    world.store.start_step(started).await.unwrap();
    world.die();
    let snapshot = world.store.adopt_run("r-1", None).await.unwrap();
    assert_eq!((snapshot.unknown_turns, snapshot.usage), (1, Usage::default()));
    let again = world.any().await.unwrap();
    assert_eq!(code(world.store.reserve(asks(&again, tokens(41))).await), "MN-0501");
    world.store.reserve(asks(&again, tokens(40))).await.unwrap();
}

pub async fn budget_1_a_reservation_that_a_claim_left_open_is_unknown(world: World) {
    let claimed = limited(&world, None, None).await;
    let reservation = world.store.reserve(asks(&claimed, tokens(60))).await.unwrap();
    world.release(&claimed, ReleaseReason::Innocent, 1).await;
    let again = world.any().await.unwrap();
    let (id, epoch) = (again.item.work.id.as_str(), again.item.epoch);
    assert_eq!(code(world.store.settle(id, epoch, &reservation, Usage::default()).await), "MN-0117");
    assert_eq!(world.store.run("r-1").await.unwrap().unwrap().unknown_turns, 1);
}

pub async fn budget_1_money_is_counted_too(world: World) {
    let claimed = limited(&world, Some(0.3), None).await;
    for _ in 0..3 {
        world.store.reserve(asks(&claimed, Amount { tokens: 1_000, usd: Some(0.1) })).await.expect("0.1 three times");
    }
    let more = Amount { tokens: 0, usd: Some(0.001) };
    let refused = world.store.reserve(asks(&claimed, more)).await.unwrap_err();
    assert!(refused.hint.contains("--budget-usd"), "{refused}");
    for usd in [f64::NAN, -1.0] {
        let nonsense = Amount { tokens: 0, usd: Some(usd) };
        assert_eq!(code(world.store.reserve(asks(&claimed, nonsense)).await), "MN-0117");
    }
}

pub async fn budget_1_an_item_without_a_run_has_no_limit(world: World) {
    world.submit(own("a")).await;
    let claimed = world.any().await.unwrap();
    let reservation = world.store.reserve(asks(&claimed, tokens(u64::from(u32::MAX)))).await.unwrap();
    world.store.settle("a", claimed.item.epoch, &reservation, Usage::default()).await.unwrap();
}

pub async fn budget_1_concurrent_reservations_never_exceed_the_budget(world: World) {
    let claimed = limited(&world, None, Some(100)).await;
    let reserving = (0..32).map(|_| {
        let (store, ask) = (std::sync::Arc::clone(&world.store), asks(&claimed, tokens(10)));
        tokio::spawn(async move { store.reserve(ask).await.is_ok() })
    });
    let mut granted = 0;
    for reservation in reserving.collect::<Vec<_>>() {
        granted += u32::from(reservation.await.unwrap());
    }
    assert_eq!(granted, 10);
}
