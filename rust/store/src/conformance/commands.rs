//! Commands from other processes, and the commits of other processes.

use super::{World, code, own, prompted};
use crate::types::NewCommand;

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
