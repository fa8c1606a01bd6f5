//! What a person does about items that took their agents down too often.

use super::{World, after, code, own, planned};
use crate::types::{ReleaseReason, Submission};
use mnemosyne_core::{EventKind, ItemState};

/// Submits an item and lets it take down its agents until it is dead.
async fn dies(world: &World, id: &str) {
    world.submit(own(id)).await;
    kill(world).await;
}

async fn kill(world: &World) {
    for generation in 1..=3 {
        let claimed = world.any().await.unwrap();
        world.release(&claimed, ReleaseReason::Crash, generation).await;
    }
}

async fn listed(world: &World) -> Vec<String> {
    world.store.dead_letters().await.unwrap().into_iter().map(|letter| letter.item.work.id).collect()
}

pub async fn dead_letters_are_listed_with_their_reason_oldest_first(world: World) {
    assert!(listed(&world).await.is_empty());
    dies(&world, "b").await;
    world.pass(1_000);
    dies(&world, "a").await;
    world.submit(own("lives")).await;
    assert_eq!(listed(&world).await, ["b", "a"]);
    let letters = world.store.dead_letters().await.unwrap();
    assert_eq!((letters[0].item.crashes, letters[0].died_at.as_str()), (3, "2026-11-22T10:11:12.345Z"));
    assert_eq!(letters[1].died_at, "2026-11-22T10:11:13.345Z");
    assert_eq!(letters[0].problem.as_ref().unwrap().code, "MN-0308");
}

pub async fn a_requeued_item_is_done_as_if_it_had_never_crashed(world: World) {
    world.submit(own("a")).await;
    world.submit(after("b", &["a"])).await;
    kill(&world).await;
    world.store.requeue("a", "fixed").await.unwrap();
    assert!(listed(&world).await.is_empty());
    let event = world.all_events().await.pop().unwrap().event;
    assert_eq!((event.kind, event.item.as_deref()), (EventKind::WorkRequeued, Some("a")));
    assert_eq!(event.data["reason"], "fixed");
    let again = world.any().await.unwrap();
    assert_eq!((again.item.crashes, again.item.epoch), (0, 4), "whoever held it before stays fenced");
    world.complete(&again).await;
    let snapshot = world.store.item("a").await.unwrap().unwrap();
    assert_eq!((snapshot.item.state, snapshot.problem), (ItemState::Done, None));
    assert_eq!(world.state("b").await, ItemState::Cancelled, "what was cancelled because of it stays cancelled");
}

pub async fn a_requeued_item_waits_its_turn_behind_what_is_there(world: World) {
    dies(&world, "a").await;
    world.pass(1);
    world.submit(own("b")).await;
    world.pass(1);
    world.store.requeue("a", "").await.unwrap();
    assert_eq!(world.next().await.as_deref(), Some("b"));
    assert_eq!(world.next().await.as_deref(), Some("a"));
}

pub async fn a_discarded_item_is_forgotten_with_its_key(world: World) {
    let how = Submission::keyed(Some("k".into()));
    world.store.submit(own("a"), how.clone()).await.unwrap();
    kill(&world).await;
    world.store.discard("a", "of no use").await.unwrap();
    assert!(listed(&world).await.is_empty());
    assert!(world.store.item("a").await.unwrap().is_none());
    let event = world.all_events().await.pop().unwrap().event;
    assert_eq!((event.kind, event.item.as_deref()), (EventKind::WorkDiscarded, Some("a")));
    assert_eq!(world.store.submit(own("b"), how).await.unwrap(), "b");
}

pub async fn only_a_dead_letter_is_requeued_or_discarded(world: World) {
    world.submit(own("a")).await;
    for id in ["a", "nobody"] {
        assert_eq!(code(world.store.requeue(id, "").await), "MN-0218");
        assert_eq!(code(world.store.discard(id, "").await), "MN-0218");
    }
    assert_eq!(world.next().await.as_deref(), Some("a"), "and it is as it was");
}

pub async fn a_dead_letter_of_a_run_is_a_matter_of_its_task(world: World) {
    world.submit_run(planned("r-1", &[("a", &[], "a")])).await;
    kill(&world).await;
    let id = listed(&world).await.pop().unwrap();
    for answer in [world.store.requeue(&id, "").await, world.store.discard(&id, "").await] {
        let problem = answer.unwrap_err();
        assert_eq!((problem.code.as_str(), problem.hint.as_str()), ("MN-0117", "mnemosyne retry r-1 a"));
    }
}
