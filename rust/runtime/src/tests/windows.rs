//! The error window through the tree: boundaries on a paused clock.

use super::*;

async fn quiet_world(instances: u32) -> World {
    World::new(executors(instances), MemoryHost::new(|_| Act::Now(ok()))).await
}

async fn errors_at(agent: &AgentHandle, times_ms: &[u64]) {
    let mut at = 0;
    for time in times_ms {
        sleep(Duration::from_millis(time - at)).await;
        at = *time;
        soon(agent.record_error(format!("error at {time}"))).await.unwrap();
    }
    settle().await;
}

#[tokio::test(start_paused = true)]
async fn four_errors_keep_the_generation_and_the_fifth_starts_the_next() {
    let world = quiet_world(1).await;
    let agent = world.agent();
    errors_at(&agent, &[0, 1, 2, 3]).await;
    assert_eq!((agent.generation(), agent.health().error_count), (1, 4));
    assert!(!agent.health().is_healthy && !agent.health().should_restart);
    let health = soon(agent.record_error("the fifth".into())).await.unwrap();
    assert!(health.should_restart);
    eventually("generation 2", async || agent.generation() == 2 && agent.health().state == AgentState::Idle).await;
    assert_eq!(agent.health().error_count, 0);
    assert_eq!(agent.health().last_error.as_deref(), Some("the fifth"));
    assert_eq!(world.count(EventKind::AgentErrorRecorded).await, 5);
    assert_eq!(world.count(EventKind::AgentRestarted).await, 1);
}

#[tokio::test(start_paused = true)]
async fn the_fifth_error_at_59_9_s_restarts_and_at_60_1_s_does_not() {
    for (fifth, generation) in [(59_900, 2), (60_100, 1)] {
        let world = quiet_world(1).await;
        let agent = world.agent();
        errors_at(&agent, &[0, 1_000, 2_000, 3_000, fifth]).await;
        assert_eq!(agent.generation(), generation, "fifth at {fifth}");
    }
}

#[tokio::test(start_paused = true)]
async fn three_errors_report_the_agent_and_a_success_between_empties_the_window() {
    let world = quiet_world(1).await;
    let agent = world.agent();
    errors_at(&agent, &[0, 1, 2, 3]).await;
    let degraded = world.of_kind(EventKind::AgentHealthDegraded).await;
    assert_eq!(degraded.len(), 1);
    assert_eq!((&degraded[0].data["count"], &degraded[0].data["healthy"]), (&json!(3), &json!(false)));
    soon(agent.send_work(item("direct"), None)).await.unwrap();
    assert!(agent.health().is_healthy);
    world.until_events(EventKind::AgentRecovered, 1).await;
    errors_at(&agent, &[0, 1, 2, 3]).await;
    assert_eq!(agent.generation(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_unsuccessful_result_neither_fills_nor_empties_the_window() {
    let failure = || Outcome::Result(Box::new(WorkResult::failure("could not")));
    let world = World::new(executors(1), MemoryHost::new(move |_| Act::Now(failure()))).await;
    let agent = world.agent();
    errors_at(&agent, &[0, 1]).await;
    let result = soon(agent.send_work(item("direct"), None)).await.unwrap();
    assert!(!result.success);
    assert_eq!(agent.health().error_count, 2);
}

#[tokio::test(start_paused = true)]
async fn two_agents_have_two_windows() {
    let world = quiet_world(2).await;
    let agents = world.tree.agents();
    for number in 0..8 {
        agents[number % 2].record_error("interleaved".into()).await.unwrap();
    }
    settle().await;
    assert_eq!(agents.iter().map(AgentHandle::generation).collect::<Vec<_>>(), [1, 1]);
    agents[0].record_error("one more".into()).await.unwrap();
    settle().await;
    assert_eq!(agents.iter().map(AgentHandle::generation).collect::<Vec<_>>(), [2, 1]);
}

#[tokio::test(start_paused = true)]
async fn fence_2_errors_of_an_older_generation_do_not_count_for_the_next() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Deaf)).await;
    let agent = world.agent();
    let answer = tokio::spawn({
        let agent = agent.clone();
        async move { soon(agent.send_work(item("old"), None)).await }
    });
    eventually("the work is there", async || world.host.busy() == 1).await;
    soon(agent.restart("requested".into())).await.unwrap();
    eventually("generation 2", async || agent.health().state == AgentState::Idle).await;
    assert!(answer.await.unwrap().is_err());
    world.host.finish(world.host.last_key(), raised());
    world.until_events(EventKind::StaleResultDropped, 1).await;
    assert_eq!(world.of_kind(EventKind::StaleResultDropped).await[0].data["generation"], 1);
    assert_eq!(agent.health().error_count, 0);
}

#[tokio::test(start_paused = true)]
async fn truth_2_errors_leave_the_snapshot_when_they_leave_the_window() {
    let world = quiet_world(1).await;
    let agent = world.agent();
    errors_at(&agent, &[0, 1, 2]).await;
    assert!(!agent.health().is_healthy);
    sleep(Duration::from_secs(61)).await;
    assert!(agent.health().is_healthy);
    assert_eq!(agent.health().error_count, 0);
}
