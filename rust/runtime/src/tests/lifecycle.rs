//! Beginning, draining and ending a tree.

use super::*;
use crate::health::{RoleState, StoreState};
use mnemosyne_core::ProblemKind;

#[tokio::test(start_paused = true)]
async fn a_drain_with_patience_lets_work_finish_and_claims_nothing_new() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::After(3_000, ok()))).await;
    world.submit("first").await;
    world.submit("second").await;
    eventually("the first runs", async || world.host.busy() == 1).await;
    assert!(soon(world.tree.drain(Some(Duration::from_secs(10)))).await);
    assert_eq!(world.state_of("first").await, ItemState::Done);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(world.state_of("second").await, ItemState::Ready);
    let error = soon(world.agent().send_work(item("direct"), None)).await.unwrap_err();
    assert!(error.to_string().contains("MN-0305"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_without_patience_releases_the_work_and_burns_neither_attempt_nor_crash() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Hang)).await;
    world.submit("cut").await;
    eventually("it runs", async || world.host.busy() == 1).await;
    assert!(!soon(world.tree.drain(Some(Duration::ZERO))).await);
    let item = world.store.item("cut").await.unwrap().unwrap().item;
    assert_eq!((item.state, item.crashes, item.work.attempt), (ItemState::Ready, 0, 1));
    assert_eq!(world.agent().health().error_count, 0);
    assert_eq!(world.count(EventKind::WorkFailed).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_ever_for_work_that_does_not_stop() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Deaf)).await;
    world.submit("deaf").await;
    eventually("it runs", async || world.host.busy() == 1).await;
    let began = Instant::now();
    assert!(!soon(world.tree.drain(Some(Duration::from_secs(1)))).await);
    assert!(began.elapsed() <= Duration::from_secs(7));
    eventually("it is released", async || world.state_of("deaf").await == ItemState::Ready).await;
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_every_agent_task_and_can_be_repeated() {
    let world = World::new(executors(3), MemoryHost::new(|_| Act::Hang)).await;
    world.submit("cut").await;
    eventually("it runs", async || world.host.busy() == 1).await;
    tokio::join!(world.tree.shutdown(), world.tree.shutdown());
    world.tree.shutdown().await;
    assert_eq!(world.state_of("cut").await, ItemState::Ready);
    assert_eq!(locked(&world.host.stops).len(), 3);
    assert!(world.tree.record().background.idle(Duration::from_secs(1)).await, "a task leaked");
    let health = world.tree.health();
    assert_eq!(health.roles[&AgentRole::Executor].state, RoleState::Stopped);
    let problem = world.tree.add_agent(AgentRole::Executor, spec(), None).await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn kill_1_dropping_the_tree_cancels_what_runs_and_forgets_its_agents() {
    let World { tree, store, host } = World::new(executors(2), MemoryHost::new(|_| Act::Hang)).await;
    store.submit_item(item("cut"), None).await.unwrap();
    eventually("it runs", async || host.busy() == 1).await;
    drop(tree);
    eventually("nothing runs", async || host.busy() == 0 && locked(&host.stops).len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn health_has_exactly_the_keys_of_the_contract() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Now(ok()))).await;
    soon(world.agent().record_error("once".into())).await.unwrap();
    world.submit("done").await;
    world.until_item("done", ItemState::Done).await;
    let health = serde_json::to_value(world.tree.health()).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&health), ["intake", "queue", "roles", "store"]);
    assert_eq!(health["intake"], json!({"state": "open", "reason": null}));
    assert_eq!(keys(&health["queue"]), ["ready", "running", "waiting"]);
    assert_eq!(health["store"], json!({"state": "available", "reason": null}));
    let role = &health["roles"]["executor"];
    assert_eq!(keys(role), ["agents", "reason", "state"]);
    assert_eq!(role["state"], "running");
    let mut expected = vec![
        "agent_id",
        "role",
        "state",
        "is_healthy",
        "error_count",
        "last_error",
        "last_error_at",
        "should_restart",
        "generation",
        "restarts",
        "next_restart_at",
        "heartbeat_age_seconds",
        "progress_age_seconds",
        "pid",
    ];
    expected.sort_unstable();
    let agent = &role["agents"][0];
    assert_eq!(keys(agent), expected);
    assert_eq!(agent["state"], "idle");
    assert_eq!(agent["heartbeat_age_seconds"], 1.0);
    let at = agent["last_error_at"].as_str().unwrap();
    assert!(at.starts_with("2023-11-14T22:13:2") && at.ends_with('Z'), "{at}");
}

#[tokio::test(start_paused = true)]
async fn specifications_that_cannot_be_used_are_refused() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Now(ok()))).await;
    let none = AgentSpec { in_flight: 0, ..spec() };
    for (spec, id) in [(none, None), (spec(), Some("executor-1".to_owned())), (spec(), Some(" ".to_owned()))] {
        let problem = world.tree.add_agent(AgentRole::Reviewer, spec, id).await.unwrap_err();
        assert_eq!(problem.kind, ProblemKind::InvalidInput, "{problem}");
    }
    assert_eq!(world.tree.agents().len(), 1);
    assert!(world.tree.agent("executor-1").is_some() && world.tree.agent("executor-9").is_none());
}

#[tokio::test(start_paused = true)]
async fn an_agent_added_later_takes_work_under_its_own_name() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Hang)).await;
    world.submit("first").await;
    world.submit("second").await;
    eventually("one runs", async || world.host.busy() == 1).await;
    world.tree.add_agent(AgentRole::Executor, spec(), Some("helper".into())).await.unwrap();
    eventually("both run", async || world.host.busy() == 2).await;
    assert_eq!(locked(&world.host.submissions)[1].agent_id, "helper");
    assert_eq!(world.tree.health().store.state, StoreState::Available);
}
