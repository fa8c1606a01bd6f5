//! The picture of the agents as a fold of their events: what a second process sees is what `health` says.

use super::strategies::{agent, calm, family, of};
use super::*;
use crate::health::IntakeState;
use crate::host::AgentSource;
use crate::{Live, StateManager};
use mnemosyne_core::{Picture, Strategy, SupervisorSpec};

async fn manager(world: &World) -> StateManager {
    world.events().await; // everything that was announced is committed
    let mut manager = StateManager::new(world.store.boot());
    manager.catch_up(world.store.as_ref()).await.unwrap();
    manager
}

/// Compares the fold with the tree's own word, agent by agent.
async fn agrees(world: &World) {
    let mut folded = manager(world).await;
    let picture = folded.catch_up(world.store.as_ref()).await.unwrap().clone();
    for agent in world.tree.agents() {
        let (health, seen) = (agent.health(), &picture.agents[agent.agent_id()]);
        assert_eq!((seen.state, seen.generation, seen.restarts), (health.state, health.generation, health.restarts));
        assert_eq!(seen.last_error, health.last_error, "{}", agent.agent_id());
    }
    let health = world.tree.health();
    for (role, health) in &health.roles {
        assert_eq!(picture.degraded.get(role), health.reason.as_ref());
    }
    assert_eq!(picture.intake_stopped, health.intake.reason);
}

#[tokio::test(start_paused = true)]
async fn truth_2_the_picture_that_is_folded_from_the_events_is_what_the_tree_says() {
    let host = MemoryHost::new(|work| match work.key.0 % 3 {
        0 => Act::Now(raised()),
        1 => Act::After(20, ok()),
        _ => Act::Now(ok()),
    });
    let spec = SupervisorSpec { strategy: Strategy::OneForOne, intensity: 3, period: 60_000 };
    let world = family(spec, &["a", "b", "c", "d"], host).await;
    for number in 0..40 {
        world.submit(&format!("i-{number}")).await;
    }
    for name in ["a", "b", "a", "a", "a"] {
        let child = agent(&world, name);
        let before = child.generation();
        world.end(&child, Exit::Abnormal);
        eventually("it is back, or quarantined", async || match child.health().state {
            AgentState::Quarantined => true,
            AgentState::Idle | AgentState::Busy => child.generation() > before,
            _ => false,
        })
        .await;
    }
    soon(agent(&world, "d").shutdown(None)).await;
    for number in 0..40 {
        world.until_item(&format!("i-{number}"), ItemState::Done).await;
    }
    until_state(&agent(&world, "a"), AgentState::Quarantined).await;
    settle().await;
    agrees(&world).await;
    soon(agent(&world, "a").restart("repaired".into())).await.unwrap();
    until_state(&agent(&world, "a"), AgentState::Idle).await;
    agrees(&world).await;
}

#[tokio::test(start_paused = true)]
async fn a_picture_that_was_kept_and_caught_up_is_the_same_as_one_that_is_rebuilt() {
    let world = family(of(Strategy::Pool), &["a", "b"], calm()).await;
    let mut kept = manager(&world).await;
    for round in 0..6 {
        let child = agent(&world, if round % 2 == 0 { "a" } else { "b" });
        soon(child.restart(format!("round {round}"))).await.unwrap();
        until_state(&child, AgentState::Idle).await;
        world.events().await;
        kept.catch_up(world.store.as_ref()).await.unwrap();
        assert_eq!(kept, manager(&world).await);
    }
}

#[tokio::test(start_paused = true)]
async fn truth_2_what_is_seen_is_laid_over_what_was_said() {
    let world = family(of(Strategy::Pool), &["a"], MemoryHost::new(|_| Act::Hang)).await;
    world.submit("long").await;
    eventually("it runs", async || world.host.busy() == 1).await;
    let manager = manager(&world).await;
    let claims = world.store.under_way(world.store.boot()).await.unwrap();
    let now = world.store.now();
    let seen = |alive, now| {
        let view = manager.view(&Live { alive, claims: claims.clone(), now }).remove(0);
        (view.agent.state, view.item)
    };
    assert_eq!(seen(true, now), (AgentState::Busy, Some("long".to_owned())));
    assert_eq!(seen(true, now + mnemosyne_store::LEASE_MS + 1).0, AgentState::Suspect);
    assert_eq!(seen(false, now), (AgentState::Stopped, None));
    assert_eq!(Picture::default().agents.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_ladder_ends_with_the_intake_which_opens_again_with_the_first_agent_that_works() {
    let spec = SupervisorSpec { strategy: Strategy::OneForOne, intensity: 1, period: 60_000 };
    let world = family(spec, &["a", "b"], calm()).await;
    let helper = world.tree.add_agent(AgentRole::Reviewer, super::spec(), None).await.unwrap();
    until_state(&helper, AgentState::Idle).await;
    for name in ["a", "b"] {
        let child = agent(&world, name);
        world.end(&child, Exit::Abnormal);
        until_idle(&child, 2).await;
        world.end(&child, Exit::Abnormal);
        until_state(&child, AgentState::Quarantined).await;
    }
    assert_eq!(world.count(EventKind::RoleDegraded).await, 1);
    assert_eq!(world.tree.health().intake.state, IntakeState::Open, "the reviewer still works");
    soon(helper.shutdown(None)).await;
    world.until_events(EventKind::IntakeStopped, 1).await;
    let intake = world.tree.health().intake;
    assert_eq!(intake.state, IntakeState::Stopped);
    assert!(intake.reason.unwrap().starts_with("executor: "));
    world.submit("kept").await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(world.state_of("kept").await, ItemState::Ready, "nothing exits, nothing is lost");
    soon(agent(&world, "a").restart("repaired".into())).await.unwrap();
    world.until_item("kept", ItemState::Done).await;
    world.until_events(EventKind::IntakeResumed, 1).await;
    world.until_events(EventKind::AgentRecovered, 1).await;
}

#[tokio::test(start_paused = true)]
async fn commands_of_another_process_reach_agents_pools_and_the_whole_tree() {
    let world = World::new(executors(2), MemoryHost::new(|_| Act::After(1_000, ok()))).await;
    world
        .store
        .submit_run(run("r-1", plan(json!([{"id": "t", "title": "t", "acceptance": [{"command": "false"}]}]))), None)
        .await
        .unwrap();
    let post = async |kind: &str| {
        let command = mnemosyne_store::NewCommand { run: "r-1".into(), kind: kind.into(), reason: "asked".into() };
        world.store.post_command(command).await.unwrap();
    };
    post("restart executor-1").await;
    until_idle(&agent(&world, "executor-1"), 2).await;
    post("release executor-1").await; // it is in no quarantine
    post("stop executor-2").await;
    until_state(&agent(&world, "executor-2"), AgentState::Stopped).await;
    post("scale executor 4").await;
    eventually("four work beside the one that was ended", async || world.tree.agents().len() == 5).await;
    post("add executor other:Class").await;
    eventually("a fifth", async || world.tree.agents().len() == 6).await;
    until_idle(&agent(&world, "executor-6"), 1).await;
    let children = world.tree.supervisors().remove(&AgentRole::Executor).unwrap().children;
    assert_eq!(children.last().unwrap().source, AgentSource::Import("other:Class".into()));
    post("add reviewer").await; // which was begun without an agent that another could be like
    post("add reviewer other:Reviewer").await;
    eventually("one more", async || world.tree.agents().len() == 7).await;
    until_idle(&agent(&world, "reviewer-1"), 1).await;
    assert_eq!(agent(&world, "executor-1").generation(), 2);
    world.submit("under-way").await;
    eventually("it runs", async || world.host.busy() == 1).await;
    post("dance executor-1").await; // of a newer version
    post("drain 30").await;
    world.until_item("under-way", ItemState::Done).await;
    let state = async || world.store.run("r-1").await.unwrap().unwrap().run.state;
    eventually("the run is left to be resumed", async || state().await == RunState::Interrupted).await;
    world.submit("later").await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(world.state_of("later").await, ItemState::Ready);
}

#[tokio::test(start_paused = true)]
async fn slow_work_is_told_from_a_loop_that_hangs() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Hang)).await;
    world.submit("long").await;
    eventually("it runs", async || world.host.busy() == 1).await;
    let executor = agent(&world, "executor-1");
    let say = || *locked(&world.host.progressed) = Some(Instant::now());
    say();
    sleep(crate::record::SLOW_AFTER - Duration::from_millis(1)).await;
    assert_eq!(executor.health().state, AgentState::Busy);
    sleep(Duration::from_millis(1)).await;
    let health = executor.health();
    assert_eq!((health.state, health.is_healthy, health.progress_age_seconds), (AgentState::Slow, true, Some(120.0)));
    say();
    assert_eq!(executor.health().state, AgentState::Busy, "it was only slow");
    sleep(crate::record::SLOW_AFTER).await;
    *locked(&world.host.beat_age) = Duration::from_millis(14_999);
    assert_eq!(executor.health().state, AgentState::Slow);
    *locked(&world.host.beat_age) = Duration::from_secs(15);
    assert_eq!((executor.health().state, executor.health().is_healthy), (AgentState::Suspect, false));
    *locked(&world.host.beat_age) = Duration::from_secs(1);
    world.tree.bridge_stuck(Some("the loop has done nothing for 30 s".into()));
    let health = executor.health();
    assert_eq!((health.state, health.is_healthy), (AgentState::Suspect, false), "hung is worse than slow");
    world.tree.bridge_stuck(None);
    assert_eq!((executor.health().state, executor.generation()), (AgentState::Slow, 1), "nothing was done about it");
}
