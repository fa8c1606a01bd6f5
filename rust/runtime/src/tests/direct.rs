//! Direct work: supervised, not durable.

use super::*;
use crate::WorkError;
use mnemosyne_core::ProblemKind;

fn kind_of(error: &WorkError) -> Option<ProblemKind> {
    match error {
        WorkError::Problem { problem, .. } => Some(problem.kind),
        WorkError::Agent(_) => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_result_comes_back_and_the_store_never_held_the_item() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Now(ok_with(json!({"answer": 42}))))).await;
    let result = soon(world.agent().send_work(item("direct"), None)).await.unwrap();
    assert_eq!(result.data["answer"], 42);
    assert!(world.store.item("direct").await.unwrap().is_none());
    let assignment = locked(&world.host.submissions)[0].clone();
    assert!(matches!(&assignment.work, Work::Direct(item) if item.id == "direct"));
    world.until_events(EventKind::AgentCompleted, 1).await;
    assert_eq!(world.of_kind(EventKind::AgentStartedWithTask).await[0].data["description"], "do direct");
}

#[tokio::test(start_paused = true)]
async fn an_exception_comes_back_whole_and_is_counted() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Now(raised()))).await;
    let error = soon(world.agent().send_work(item("direct"), None)).await.unwrap_err();
    assert!(matches!(&error, WorkError::Agent(error) if error.type_name == "ValueError"), "{error}");
    assert_eq!(world.agent().health().error_count, 1);
}

#[tokio::test(start_paused = true)]
async fn sup_4_the_error_after_the_fifth_is_already_the_next_generation_s() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Now(raised()))).await;
    let agent = world.agent();
    for _ in 0..6 {
        soon(agent.send_work(item("direct"), None)).await.unwrap_err();
    }
    let generations: Vec<u64> = locked(&world.host.submissions).iter().map(|work| work.generation).collect();
    assert_eq!(generations, [1, 1, 1, 1, 1, 2]);
    assert_eq!(agent.health().error_count, 1);
    let stops = locked(&world.host.stops).clone();
    assert_eq!(stops, [("executor-1".to_owned(), 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_second_item_is_refused_at_once_or_waits_for_the_place() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::After(1_000, ok()))).await;
    let agent = world.agent();
    let first = agent.try_send_work(item("first"), None).unwrap();
    let refused = agent.try_send_work(item("second"), None).map(|_| ()).unwrap_err();
    assert_eq!(kind_of(&refused), Some(ProblemKind::Full));
    let began = Instant::now();
    let (first, waited) = tokio::join!(first, agent.send_work(item("third"), None));
    assert!(first.is_ok() && waited.is_ok());
    assert!(began.elapsed() >= Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_full_tree_refuses_at_once_or_waits_and_takes_the_next_when_there_is_room() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Now(ok()))).await;
    let agent = world.agent();
    let room = world.tree.record().room.clone();
    let all = u32::try_from(crate::record::DIRECT_LIMIT).unwrap();
    let taken = room.clone().acquire_many_owned(all).await.unwrap();
    let refused = agent.try_send_work(item("refused"), None).map(|_| ()).unwrap_err();
    assert_eq!(kind_of(&refused), Some(ProblemKind::Full));
    let late = soon(agent.send_work(item("late"), Some(Duration::from_secs(1)))).await.unwrap_err();
    assert_eq!(kind_of(&late), Some(ProblemKind::Timeout));
    let waiting = tokio::spawn({
        let agent = agent.clone();
        async move { agent.send_work(item("waits"), None).await }
    });
    settle().await;
    assert_eq!(world.host.submitted(), 0);
    drop(taken);
    assert!(soon(waiting).await.unwrap().is_ok());
    eventually("the room is given back", async || room.available_permits() == crate::record::DIRECT_LIMIT).await;
}

#[tokio::test(start_paused = true)]
async fn down_1_a_stuck_bridge_makes_its_agents_suspect_and_its_roles_degraded_until_it_goes_on() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Now(ok()))).await;
    let (tree, agent) = (&world.tree, world.agent());
    tree.bridge_stuck(Some("it is busy".to_owned()));
    world.until_events(EventKind::RoleDegraded, 1).await;
    assert_eq!(world.of_kind(EventKind::RoleDegraded).await[0].data["reason"], "it is busy");
    assert_eq!((agent.health().state, agent.health().is_healthy), (AgentState::Suspect, false));
    tree.bridge_stuck(None);
    world.until_events(EventKind::RoleRecovered, 1).await;
    assert_eq!((agent.health().state, agent.health().is_healthy), (AgentState::Idle, true));
    assert_eq!(agent.generation(), 1);
}

#[tokio::test(start_paused = true)]
async fn kill_1_a_timeout_cancels_the_work_and_counts_as_an_error() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Hang)).await;
    let agent = world.agent();
    let began = Instant::now();
    let error = soon(agent.send_work(item("slow"), Some(Duration::from_secs(2)))).await.unwrap_err();
    assert_eq!(kind_of(&error), Some(ProblemKind::Timeout));
    assert_eq!(began.elapsed().as_secs(), 2);
    assert_eq!(*locked(&world.host.cancels), ["deadline"]);
    assert_eq!(agent.health().error_count, 1);
    assert!(agent.health().last_error.unwrap().starts_with("WorkTimeout"));
}

#[tokio::test(start_paused = true)]
async fn the_item_s_own_limit_holds_without_a_timeout_and_the_smaller_wins() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Hang)).await;
    for timeout in [None, Some(Duration::from_secs(50))] {
        let began = Instant::now();
        let slow = WorkItem { timeout_seconds: 3.0, ..item("slow") };
        soon(world.agent().send_work(slow, timeout)).await.unwrap_err();
        assert_eq!(began.elapsed().as_secs(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn kill_1_dropping_the_future_cancels_the_work_and_frees_the_place() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Hang)).await;
    let agent = world.agent();
    let sending = tokio::spawn({
        let agent = agent.clone();
        async move { soon(agent.send_work(item("unwanted"), None)).await }
    });
    eventually("the work is there", async || world.host.busy() == 1).await;
    sending.abort();
    eventually("the work is cancelled", async || world.host.busy() == 0).await;
    eventually("the agent is idle", async || agent.health().state == AgentState::Idle).await;
    assert_eq!(agent.health().error_count, 0);
    let dropped = agent.try_send_work(item("never polled"), None).unwrap();
    drop(dropped);
    settle().await;
    assert_eq!((world.host.busy(), agent.health().state), (0, AgentState::Idle));
}

#[tokio::test(start_paused = true)]
async fn work_that_ignores_its_cancel_is_abandoned_with_its_generation() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Deaf)).await;
    let agent = world.agent();
    let began = Instant::now();
    let error = soon(agent.send_work(item("deaf"), Some(Duration::from_secs(1)))).await.unwrap_err();
    assert_eq!((kind_of(&error), began.elapsed().as_secs()), (Some(ProblemKind::Timeout), 6));
    eventually("generation 2", async || agent.generation() == 2 && agent.health().state == AgentState::Idle).await;
    assert_eq!(*locked(&world.host.abandoned), [world.host.last_key()]);
    world.host.finish(world.host.last_key(), ok());
    world.until_events(EventKind::StaleResultDropped, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_degraded_agent_is_unavailable_with_its_reason_and_the_next_try() {
    let host = MemoryHost::new(|_| Act::Now(ok()));
    let host = host.on_start(|_| Err(HostError::new("ImportError", "no module named agents", true)));
    let world = World::new(executors(1), host).await;
    let error = soon(world.agent().send_work(item("direct"), None)).await.unwrap_err();
    let WorkError::Problem { problem, retry_at } = error else { panic!("{error}") };
    assert_eq!(problem.kind, ProblemKind::Unavailable);
    assert!(problem.reason.contains("no module named agents"));
    let seconds = retry_at.unwrap() - world.store.now() as f64 / 1_000.0;
    assert!(seconds > 0.0 && seconds <= 5.0, "{seconds}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_was_shut_down_is_closed_and_shutting_down_again_is_nothing() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::After(1_000, ok()))).await;
    let agent = world.agent();
    let running = agent.try_send_work(item("running"), None).unwrap();
    let ((), result) = tokio::join!(agent.shutdown(Some(Duration::from_secs(10))), running);
    assert!(result.is_ok());
    agent.shutdown(Some(Duration::ZERO)).await;
    assert_eq!(agent.health().state, AgentState::Stopped);
    assert_eq!(*locked(&world.host.stops), [("executor-1".to_owned(), 1)]);
    for error in [
        soon(agent.send_work(item("late"), None)).await.unwrap_err(),
        agent.try_send_work(item("late"), None).map(|_| ()).unwrap_err(),
        soon(agent.record_error("late".into())).await.unwrap_err(),
    ] {
        assert_eq!(kind_of(&error), Some(ProblemKind::Closed), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_without_patience_cancels_what_runs() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Hang)).await;
    let agent = world.agent();
    let running = agent.try_send_work(item("running"), None).unwrap();
    let ((), result) = tokio::join!(agent.shutdown(Some(Duration::ZERO)), running);
    assert_eq!(kind_of(&result.unwrap_err()), Some(ProblemKind::Closed));
    assert_eq!(world.host.busy(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_tree_without_claims_leaves_the_queue_alone() {
    let store = store();
    let config = TreeConfig { store: store.clone(), roles: executors(1), claims: false };
    let tree = Tree::start(config).await.unwrap();
    let host = MemoryHost::new(|_| Act::Now(ok()));
    tree.register_bridge(Arc::new(Shared(host.clone())));
    store.submit_item(item("durable"), None).await.unwrap();
    soon(tree.agents()[0].send_work(item("direct"), None)).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(store.item("durable").await.unwrap().unwrap().item.state, ItemState::Ready);
}

#[tokio::test(start_paused = true)]
async fn in_flight_2_runs_two_items_and_refuses_the_third() {
    let roles = vec![RoleSpec::pool(AgentRole::Executor, AgentSpec { in_flight: 2, ..spec() }, 1)];
    let world = World::new(roles, MemoryHost::new(|_| Act::After(1_000, ok()))).await;
    let agent = world.agent();
    let first = agent.try_send_work(item("1"), None).unwrap();
    let second = agent.try_send_work(item("2"), None).unwrap();
    assert!(agent.try_send_work(item("3"), None).is_err());
    let began = Instant::now();
    let (first, second) = tokio::join!(first, second);
    assert!(first.is_ok() && second.is_ok());
    assert_eq!(began.elapsed().as_secs(), 1);
}
