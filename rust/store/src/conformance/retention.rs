//! What may be forgotten, and when.

use super::{BEGIN, World, after, code, own, planned, prompted};
use crate::types::{EventQuery, Prune, Pruned};
use mnemosyne_core::{Event, ItemState};

/// Forgets to the end; the sum of what went.
async fn prune(world: &World, ended_before: i64, runs: bool) -> Pruned {
    let (mut sum, mut events_seen) = (Pruned::default(), 0);
    loop {
        let once = world.store.prune(Prune { ended_before, runs, events_seen, limit: 2 }).await.unwrap();
        events_seen = once.events_seen;
        sum.items += once.items;
        sum.runs += once.runs;
        sum.events += once.events;
        if once.done {
            return sum;
        }
    }
}

async fn done(world: &World, id: &str) {
    world.submit(own(id)).await;
    let claimed = world.any().await.unwrap();
    assert_eq!(claimed.item.work.id, id);
    world.complete(&claimed).await;
}

async fn of_run(world: &World, run: &str) -> Vec<Event> {
    world.all_events().await.into_iter().filter(|event| event.event.run.as_deref() == Some(run)).collect()
}

pub async fn retention_forgets_what_ended_before_and_nothing_else(world: World) {
    for id in ["a", "b", "c"] {
        done(&world, id).await;
    }
    world.pass(1_000);
    done(&world, "d").await;
    assert_eq!(prune(&world, BEGIN, false).await.items, 0, "nothing ended before it began");
    assert_eq!(prune(&world, BEGIN + 1_000, false).await.items, 3);
    assert!(world.store.item("a").await.unwrap().is_none());
    assert_eq!(world.state("d").await, ItemState::Done);
    assert_eq!(prune(&world, BEGIN + 1_000, false).await.items, 0);
}

pub async fn what_has_not_ended_is_never_forgotten(world: World) {
    done(&world, "first").await;
    world.submit(own("running")).await;
    let claimed = world.any().await.unwrap();
    world.submit(own("ready")).await;
    world.submit(after("waiting", &["running", "ready"])).await;
    world.pass(1_000_000);
    world.store.renew("running", claimed.item.epoch, 1_000_000).await.unwrap();
    assert_eq!(prune(&world, BEGIN + 1_000_000, true).await.items, 1);
    world.complete(&claimed).await;
    world.walk().await;
    assert_eq!(world.state("waiting").await, ItemState::Done);
}

pub async fn a_forgotten_item_takes_its_key_along(world: World) {
    world.store.submit_item(own("a"), Some("key".to_owned())).await.unwrap();
    let claimed = world.any().await.unwrap();
    world.complete(&claimed).await;
    assert_eq!(world.store.submit_item(own("b"), Some("key".to_owned())).await.unwrap(), "a");
    world.pass(1);
    prune(&world, BEGIN + 1, false).await;
    assert_eq!(code(world.store.submit_item(after("c", &["a"]), None).await), "MN-0105", "it is not there any more");
    assert_eq!(world.store.submit_item(own("b"), Some("key".to_owned())).await.unwrap(), "b");
}

pub async fn a_forgotten_run_takes_all_that_was_its_own(world: World) {
    let old = world.submit_run(planned("r-1", &[("a", &[], "a.py")])).await;
    world.walk().await;
    let kept = world.submit_run(prompted("r-2")).await;
    world.pass(1_000);
    let kept_before = of_run(&world, &kept).await;
    assert_eq!(prune(&world, BEGIN + 1_000, false).await.items, 0, "the items of a run go with their run");
    assert_eq!(prune(&world, BEGIN + 1_000, true).await.runs, 1);
    assert!(world.store.run(&old).await.unwrap().is_none() && world.store.item("r-1.1").await.unwrap().is_none());
    assert!(world.store.artifact(&old, "plan.json").await.unwrap().is_none());
    assert_eq!(of_run(&world, &kept).await, kept_before);
    assert!(world.claim(mnemosyne_core::AgentRole::Orchestrator).await.is_some(), "the run that is kept goes on");
    let again = world.submit_run(planned("r-1", &[("a", &[], "a.py")])).await;
    assert_eq!((again.as_str(), world.store.runs().await.unwrap().len()), ("r-1", 2));
}

pub async fn dur_3_the_sequence_of_a_forgotten_event_is_not_used_again(world: World) {
    for id in ["a", "b"] {
        done(&world, id).await;
    }
    let last = world.all_events().await.last().unwrap().sequence;
    world.pass(1);
    prune(&world, BEGIN + 1, true).await;
    let horizon = world.store.horizon().await.unwrap();
    assert!(horizon <= last);
    let above: Vec<u64> =
        world.all_events().await.iter().map(|event| event.sequence).filter(|at| *at > horizon).collect();
    assert!(above.iter().copied().eq(horizon + 1..=last), "above the horizon there is no gap");
    done(&world, "c").await;
    let events = world.store.events(EventQuery { since: last, ..EventQuery::default() }).await.unwrap();
    assert!(events.iter().zip(last + 1..).all(|(event, sequence)| event.sequence == sequence));
    assert!(!events.is_empty());
}
