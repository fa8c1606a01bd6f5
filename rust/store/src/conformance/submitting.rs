//! When an item may be begun, and what is submitted once.

use super::{BEGIN, World, after, code, own};
use crate::types::{ReleaseReason, Submission};
use mnemosyne_core::{EventKind, ItemState};

fn unique(key: &str) -> Submission {
    Submission { unique_key: Some(key.into()), ..Submission::default() }
}

pub async fn an_item_of_a_unique_key_is_submitted_once_as_long_as_it_lives(world: World) {
    let submit = async |id: &str| world.store.submit(own(id), unique("nightly")).await.unwrap();
    assert_eq!(submit("a").await, "a");
    assert_eq!(submit("b").await, "a", "it waits");
    let claimed = world.any().await.unwrap();
    assert_eq!(submit("b").await, "a", "it runs");
    assert!(world.store.item("b").await.unwrap().is_none());
    world.complete(&claimed).await;
    assert_eq!(submit("b").await, "b", "it has ended");
}

pub async fn a_dead_letter_is_not_requeued_beside_another_of_its_unique_key(world: World) {
    world.store.submit(own("a"), unique("k")).await.unwrap();
    for generation in 1..=3 {
        let claimed = world.any().await.unwrap();
        world.release(&claimed, ReleaseReason::Crash, generation).await;
    }
    world.store.submit(own("b"), unique("k")).await.unwrap();
    assert_eq!(code(world.store.requeue("a", "").await), "MN-0106");
    world.store.cancel_item("b", "not needed").await.unwrap();
    world.store.requeue("a", "").await.unwrap();
}

pub async fn a_delayed_item_is_begun_at_its_time_and_not_ahead_of_its_turn(world: World) {
    let later = Submission { not_before: Some(BEGIN + 1_000), ..Submission::default() };
    world.store.submit(own("later"), later).await.unwrap();
    world.pass(500);
    world.submit(own("now")).await;
    assert_eq!(world.state("later").await, ItemState::Waiting);
    world.pass(499);
    assert_eq!(world.next().await.as_deref(), Some("now"));
    assert_eq!(world.next().await, None);
    world.pass(1);
    assert_eq!(world.next().await.as_deref(), Some("later"));
}

pub async fn what_nobody_began_before_its_deadline_has_failed(world: World) {
    let by = |at| Submission { deadline: Some(BEGIN + at), ..Submission::default() };
    world.store.submit(own("begun"), by(1_000)).await.unwrap();
    world.store.submit(own("late"), by(1_000)).await.unwrap();
    world.submit(after("waits for late", &["late"])).await;
    let begun = world.any().await.unwrap();
    assert_eq!(begun.item.work.id, "begun");
    world.pass(1_000);
    assert_eq!(world.next().await, None);
    let snapshot = world.store.item("late").await.unwrap().unwrap();
    assert_eq!((snapshot.item.state, snapshot.problem.unwrap().code.as_str()), (ItemState::Failed, "MN-0219"));
    assert_eq!(world.state("waits for late").await, ItemState::Cancelled);
    let failed = world.all_events().await.into_iter().find(|event| event.event.kind == EventKind::WorkFailed).unwrap();
    assert_eq!((failed.event.item.as_deref(), &failed.event.data["code"]), (Some("late"), &"MN-0219".into()));
    world.complete(&begun).await;
    assert_eq!(world.state("begun").await, ItemState::Done, "what was begun in time has the time of its claim");
}

pub async fn a_deadline_that_leaves_no_time_is_refused(world: World) {
    let how = |not_before, deadline| Submission { not_before, deadline: Some(deadline), ..Submission::default() };
    for how in [how(None, BEGIN), how(Some(BEGIN + 5), BEGIN + 5)] {
        assert_eq!(code(world.store.submit(own("a"), how).await), "MN-0117");
    }
    assert!(world.store.item("a").await.unwrap().is_none());
}
