//! FENCE-1, FENCE-3, ONCE-1.

use super::{World, code, good, own, planned, prompted, release, request, step};
use crate::types::{Amount, Completion, FinishStep, ReleaseReason, Reserve};
use mnemosyne_core::error::codes;
use mnemosyne_core::{AgentRole, ItemState, Problem, ProblemKind, RunState, Usage};
use serde_json::json;
use std::sync::Arc;

pub async fn fence_1_every_claim_raises_the_epoch(world: World) {
    world.submit(own("a")).await;
    for epoch in 1..=3 {
        let claimed = world.any().await.unwrap();
        assert_eq!(claimed.item.epoch, epoch);
        assert_eq!(claimed.item.state, ItemState::Running);
        world.release(&claimed, ReleaseReason::Innocent, 1).await;
    }
}

/// Every write that a claim allows, with a claim that is over: nothing changes.
async fn all_are_fenced(world: &World, stale: &crate::Claimed) {
    let (id, epoch) = (stale.item.work.id.as_str(), stale.item.epoch);
    let before = (world.store.item(id).await.unwrap(), world.all_events().await);
    let problem = Problem::new(ProblemKind::Agent, codes::AGENT, "x");
    let amount = Amount { tokens: 1, usd: None };
    let finish = FinishStep {
        item: id.into(),
        epoch,
        attempt: 1,
        number: 1,
        outcome: Ok(json!(1)),
        usage: None,
        detail: serde_json::Value::Null,
    };
    let store = &world.store;
    assert_eq!(code(store.renew(id, epoch, 1_000_000).await), codes::FENCED);
    assert_eq!(code(store.complete(Completion::new(stale, good(stale.item.kind))).await), codes::FENCED);
    assert_eq!(code(store.release(release(stale, ReleaseReason::Crash, 1)).await), codes::FENCED);
    assert_eq!(code(store.give_up(id, epoch, problem, vec![]).await), codes::FENCED);
    assert_eq!(code(store.start_step(step(stale, "x")).await), codes::FENCED);
    assert_eq!(code(store.finish_step(finish).await), codes::FENCED);
    assert_eq!(code(store.reserve(Reserve { item: id.into(), epoch, amount }).await), codes::FENCED);
    assert_eq!(code(store.settle(id, epoch, "u-1", Usage::default()).await), codes::FENCED);
    assert_eq!(code(store.put_artifact(id, epoch, "x", vec![1]).await), codes::FENCED);
    assert_eq!((world.store.item(id).await.unwrap(), world.all_events().await), before);
}

pub async fn fence_1_a_stale_writer_changes_nothing(world: World) {
    world.submit(own("a")).await;
    let stale = world.any().await.unwrap();
    world.start_step(&stale, "x").await;
    world.release(&stale, ReleaseReason::Innocent, 1).await;
    all_are_fenced(&world, &stale).await;
    let fresh = world.any().await.unwrap();
    all_are_fenced(&world, &stale).await;
    world.complete(&fresh).await;
    all_are_fenced(&world, &fresh).await;
}

pub async fn fence_1_a_cancelled_item_is_fenced(world: World) {
    world.submit(own("a")).await;
    let claimed = world.any().await.unwrap();
    world.store.cancel_item("a", "not needed").await.unwrap();
    all_are_fenced(&world, &claimed).await;
    assert_eq!(world.state("a").await, ItemState::Cancelled);
}

pub async fn fence_1_items_of_a_stopped_run_are_fenced(world: World) {
    let run = world.submit_run(prompted("r-1")).await;
    let claimed = world.any().await.unwrap();
    let problem = Problem::new(ProblemKind::Closed, codes::CLOSED, "Ctrl-C");
    world.store.stop_run(&run, RunState::Interrupted, problem).await.unwrap();
    all_are_fenced(&world, &claimed).await;
}

pub async fn fence_1_items_of_a_cancelled_run_are_fenced(world: World) {
    let run = world.submit_run(planned("r-1", &[("a", &[], "a")])).await;
    let claimed = world.any().await.unwrap();
    world.store.cancel_run(&run, "not needed").await.unwrap();
    all_are_fenced(&world, &claimed).await;
    assert_eq!(world.state(&claimed.item.work.id).await, ItemState::Cancelled);
}

pub async fn fence_1_an_expired_claim_is_fenced_once_another_took_over(world: World) {
    world.submit(own("a")).await;
    let stale = world.any().await.unwrap();
    world.pass(crate::LEASE_MS);
    let fresh = world.any().await.unwrap();
    assert_eq!(fresh.item.epoch, stale.item.epoch + 1);
    all_are_fenced(&world, &stale).await;
}

pub async fn fence_1_an_unknown_item_is_an_error(world: World) {
    assert_eq!(code(world.store.renew("x", 1, 1).await), codes::ITEM_INVALID);
    assert_eq!(code(world.store.cancel_item("x", "").await), codes::ITEM_INVALID);
}

pub async fn fence_3_a_boot_lives_until_its_handle_is_gone(world: World) {
    let other = world.boot();
    let id = other.boot().to_owned();
    assert!(id.starts_with("b-") && id.len() == 10 && id[2..].chars().all(|c| c.is_ascii_hexdigit()), "{id}");
    assert_ne!(id, world.store.boot());
    assert!(!world.store.is_dead(&id) && !other.is_dead(&id) && !other.is_dead(world.store.boot()));
    assert_eq!(world.store.pid_of(&id).await.unwrap(), Some(std::process::id()));
    drop(other);
    assert!(world.store.is_dead(&id));
    assert!(world.store.is_dead("b-ffffffff"), "a boot that nobody knows is dead");
    assert_eq!(world.store.pid_of("b-ffffffff").await.unwrap(), None);
}

pub async fn once_1_an_item_is_completed_once(world: World) {
    world.submit(own("a")).await;
    let claimed = world.any().await.unwrap();
    let completions = (0..8).map(|_| {
        let (store, claimed) = (Arc::clone(&world.store), claimed.clone());
        tokio::spawn(async move { store.complete(Completion::new(&claimed, good(claimed.item.kind))).await.is_ok() })
    });
    let mut accepted = 0;
    for completion in completions.collect::<Vec<_>>() {
        accepted += u32::from(completion.await.unwrap());
    }
    assert_eq!(accepted, 1);
    assert!(world.any().await.is_none());
}

pub async fn once_1_claimers_never_share_an_item(world: World) {
    for number in 0..40 {
        world.submit(own(&format!("i-{number}"))).await;
    }
    let other = world.boot();
    let claimers = (0..64).map(|number| {
        let store = if number % 2 == 0 { Arc::clone(&world.store) } else { Arc::clone(&other) };
        tokio::spawn(async move { store.claim(request(AgentRole::Executor, 1)).await.unwrap() })
    });
    let mut ids = Vec::new();
    for claimer in claimers.collect::<Vec<_>>() {
        ids.extend(claimer.await.unwrap().map(|claimed| claimed.item.work.id));
    }
    assert_eq!(ids.len(), 40);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 40);
}
