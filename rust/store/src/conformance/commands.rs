//! Commands from other processes, and the commits of other processes.

use super::{World, code, own, prompted};
use crate::types::{Completion, EventQuery, NewCommand};
use mnemosyne_core::{AgentRole, EventKind, NewEvent, WorkResult};

fn cancel(run: &str) -> NewCommand {
    NewCommand { run: run.into(), kind: "cancel".into(), reason: "not needed".into() }
}

pub async fn a_command_is_taken_once_by_the_boot_that_owns_the_run(world: World) {
    world.submit_run(prompted("r-1")).await;
    let other = world.boot();
    other.post_command(cancel("r-1")).await.unwrap();
    other.post_command(NewCommand { kind: "pause".into(), ..cancel("r-1") }).await.unwrap();
    assert!(other.take_commands().await.unwrap().is_empty());
    let taken = world.store.take_commands().await.unwrap();
    assert_eq!(taken.iter().map(|command| command.kind.as_str()).collect::<Vec<_>>(), ["cancel", "pause"]);
    assert!(world.store.take_commands().await.unwrap().is_empty());
}

pub async fn a_command_that_names_nothing_is_refused(world: World) {
    assert_eq!(code(world.store.post_command(cancel("r-1")).await), "MN-0110");
    world.submit_run(prompted("r-1")).await;
    assert_eq!(code(world.store.post_command(NewCommand { kind: " ".into(), ..cancel("r-1") }).await), "MN-0117");
}

pub async fn a_command_for_a_dead_process_does_not_hit_the_next(mut world: World) {
    world.submit_run(prompted("r-1")).await;
    world.die();
    world.store.post_command(cancel("r-1")).await.unwrap();
    world.store.adopt_run("r-1", None).await.unwrap();
    assert!(world.store.take_commands().await.unwrap().is_empty());
}

pub async fn claims_under_way_are_told_by_the_boot_that_holds_them(world: World) {
    world.submit(own("a")).await;
    world.submit(own("b")).await;
    let claimed = world.claim(AgentRole::Executor).await.unwrap();
    let other = world.boot();
    assert!(world.store.under_way(other.boot()).await.unwrap().is_empty());
    let held = other.under_way(world.store.boot()).await.unwrap();
    assert_eq!(held.len(), 1);
    let under_way = &held[0];
    assert_eq!((&under_way.item, &under_way.run, under_way.generation), (&claimed.item.work.id, &None, 1));
    assert_eq!((under_way.agent.as_str(), under_way.lease_until > world.store.now()), ("executor-1", true));
    world.store.complete(Completion::new(&claimed, WorkResult::success(Default::default()))).await.unwrap();
    assert!(other.under_way(world.store.boot()).await.unwrap().is_empty());
}

pub async fn what_a_boot_said_of_its_agents_is_told_apart(world: World) {
    let other = world.boot();
    let said = |agent: &str| NewEvent { agent: Some(agent.into()), ..NewEvent::new(EventKind::AgentStarted) };
    world.store.append_events(vec![said("executor-1"), said("executor-2")]).await.unwrap();
    other.append_events(vec![said("executor-1")]).await.unwrap();
    let of = |boot: &str| EventQuery { boot: Some(boot.to_owned()), limit: 10, ..EventQuery::default() };
    let mine = other.events(of(world.store.boot())).await.unwrap();
    assert_eq!(
        mine.iter().filter_map(|event| event.event.agent.as_deref()).collect::<Vec<_>>(),
        ["executor-1", "executor-2"]
    );
    assert_eq!(world.store.events(of(other.boot())).await.unwrap().len(), 1);
    assert_eq!(other.events(EventQuery { since: mine[0].sequence, ..of(world.store.boot()) }).await.unwrap().len(), 1);
}

pub async fn commits_of_another_process_are_seen_once_and_own_ones_never(world: World) {
    world.store.poll_foreign().await.unwrap();
    world.submit(own("a")).await;
    assert!(!world.store.poll_foreign().await.unwrap());
    let other = world.boot();
    other.submit_item(own("b"), None).await.unwrap();
    let mut changed = world.store.changed();
    changed.mark_unchanged();
    assert!(world.store.poll_foreign().await.unwrap());
    assert!(!world.store.poll_foreign().await.unwrap());
    other.submit_run(prompted("r-1"), None).await.unwrap();
    assert!(world.store.poll_foreign().await.unwrap());
    changed.changed().await.unwrap();
    assert_eq!(*changed.borrow_and_update(), 2);
}
