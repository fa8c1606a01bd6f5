//! SUP-1 … SUP-4, FENCE-2 and DOWN-1: who restarts whom, and what that costs.

use super::*;
use crate::health::RoleState;
use crate::host::Restart;
use crate::role_supervisor::RoleMessage;
use mnemosyne_core::Exit;

fn permanent() -> HostError {
    HostError::new("ImportError", "no module named agents", true)
}

#[tokio::test(start_paused = true)]
async fn sup_1_a_supervisor_and_its_agent_answer_while_work_runs() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Hang)).await;
    world.submit("long").await;
    eventually("the work is there", async || world.host.busy() == 1).await;
    let began = Instant::now();
    let health = soon(world.agent().record_error("seen elsewhere".into())).await.unwrap();
    assert_eq!((health.error_count, health.state), (1, AgentState::Busy));
    let added = world.tree.add_agent(AgentRole::Executor, spec(), None).await.unwrap();
    until_idle(&added, 1).await;
    assert_eq!(added.agent_id(), "executor-2");
    assert!(began.elapsed() < Duration::from_millis(50));
    assert_eq!(world.host.busy(), 1);
}

#[tokio::test(start_paused = true)]
async fn sup_3_a_start_that_fails_for_the_moment_is_counted_and_tried_again_later() {
    let mut tries = 0;
    let host = MemoryHost::new(|_| Act::Now(ok())).on_start(move |_| {
        tries += 1;
        if tries <= 3 { Err(HostError::new("OSError", "busy", false)) } else { Ok(()) }
    });
    let world = World::new(executors(1), host).await;
    let agent = world.agent();
    until_idle(&agent, 4).await;
    let delays: Vec<f64> = world
        .of_kind(EventKind::AgentRestarted)
        .await
        .iter()
        .map(|event| event.data["delay_seconds"].as_f64().unwrap())
        .collect();
    assert_eq!(delays.len(), 3);
    assert_eq!(delays[0], 0.0);
    assert!(delays[1] <= 0.5 && delays[2] <= 1.0, "{delays:?}");
    let starts: Vec<u64> = locked(&world.host.starts).iter().map(|(_, start)| start.generation).collect();
    assert_eq!(starts, [1, 2, 3, 4]);
    assert_eq!(agent.health().restarts, 3);
    assert_eq!(world.count(EventKind::AgentStarted).await, 1);
    assert_eq!(world.count(EventKind::RoleDegraded).await, 0);
}

#[tokio::test(start_paused = true)]
async fn sup_3_a_host_that_panics_while_it_starts_an_agent_is_a_counted_failure() {
    let mut tries = 0;
    let host = MemoryHost::new(|_| Act::Now(ok())).on_start(move |_| {
        tries += 1;
        assert!(tries > 1, "the host was told to");
        Ok(())
    });
    let world = World::new(executors(1), host).await;
    until_idle(&world.agent(), 2).await;
    assert!(world.agent().health().last_error.unwrap().starts_with("HostPanic"));
}

#[tokio::test(start_paused = true)]
async fn sup_3_starts_that_keep_failing_end_in_quarantine_and_degrade_the_role() {
    let host = MemoryHost::new(|_| Act::Now(ok())).on_start(|_| Err(HostError::new("OSError", "busy", false)));
    let world = World::new(executors(1), host).await;
    world.until_events(EventKind::AgentQuarantined, 1).await;
    assert_eq!(world.count(EventKind::AgentRestarted).await, 5);
    assert_eq!(world.agent().health().state, AgentState::Quarantined);
    let reason = world.of_kind(EventKind::RoleDegraded).await.remove(0).data["reason"].clone();
    assert!(reason.as_str().unwrap().contains("executor-1 is quarantined"), "{reason}");
    sleep(Duration::from_secs(3_600)).await;
    assert_eq!(locked(&world.host.starts).len(), 6);
}

#[tokio::test(start_paused = true)]
async fn sup_3_a_permanent_failure_degrades_the_role_once_and_is_probed_every_5_s_with_the_same_generation() {
    let fixed = Arc::new(Mutex::new(false));
    let seen = fixed.clone();
    let host =
        MemoryHost::new(|_| Act::Now(ok())).on_start(move |_| if *locked(&seen) { Ok(()) } else { Err(permanent()) });
    let world = World::new(executors(3), host).await;
    world.submit("waiting").await;
    sleep(Duration::from_millis(16_000)).await;
    let health = world.tree.health().roles.remove(&AgentRole::Executor).unwrap();
    assert_eq!(health.state, RoleState::Degraded);
    assert_eq!(health.reason.as_deref(), Some("ImportError: no module named agents"));
    assert!(health.agents.iter().all(|agent| agent.state == AgentState::Degraded && agent.restarts == 0));
    let mine: Vec<Instant> = locked(&world.host.starts)
        .iter()
        .filter(|(_, start)| start.agent_id == "executor-1")
        .map(|(at, _)| *at)
        .collect();
    assert_eq!(mine.len(), 4);
    world.until_events(EventKind::AgentDegraded, 3).await; // each says it once, however often it is probed
    assert!(mine.windows(2).all(|pair| (pair[1] - pair[0]).as_millis().abs_diff(5_000) < 20));
    *locked(&fixed) = true;
    world.until_item("waiting", ItemState::Done).await;
    eventually("all idle", async || world.tree.agents().iter().all(|agent| agent.health().state == AgentState::Idle))
        .await;
    assert!(world.tree.agents().iter().all(|agent| agent.generation() == 1));
    world.until_events(EventKind::RoleDegraded, 1).await;
    world.until_events(EventKind::RoleRecovered, 1).await;
    world.until_events(EventKind::AgentStarted, 3).await;
}

#[tokio::test(start_paused = true)]
async fn sup_4_the_child_of_the_next_generation_does_the_work_that_the_last_one_could_not() {
    let host = MemoryHost::new(|work| Act::Now(if work.generation == 1 { raised() } else { ok() }));
    let world = World::new(executors(1), host).await;
    world.submit("stubborn").await;
    world.until_item("stubborn", ItemState::Done).await;
    let generations: Vec<u64> = locked(&world.host.submissions).iter().map(|work| work.generation).collect();
    assert_eq!(generations, [1, 1, 1, 1, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn fence_2_a_result_of_an_older_generation_is_dropped_counted_and_the_item_is_done_by_the_next() {
    let host = MemoryHost::new(|work| if work.generation == 1 { Act::Deaf } else { Act::Hang });
    let world = World::new(executors(1), host).await;
    world.submit("contested").await;
    eventually("generation 1 works", async || world.host.submitted() == 1).await;
    let old = world.host.last_key();
    soon(world.agent().restart("requested".into())).await.unwrap();
    eventually("generation 2 works", async || world.host.submitted() == 2).await;
    world.host.finish(old, ok_with(json!({"by": 1})));
    world.until_events(EventKind::StaleResultDropped, 1).await;
    assert_eq!(world.state_of("contested").await, ItemState::Running);
    world.host.finish(world.host.last_key(), ok_with(json!({"by": 2})));
    world.until_item("contested", ItemState::Done).await;
    let result = world.store.item("contested").await.unwrap().unwrap().result.unwrap();
    assert_eq!(result.data["by"], 2);
    assert_eq!(world.count(EventKind::StaleResultDropped).await, 1);
}

/// The last words of a generation lie in its supervisor's mailbox when its end is seen: exits come first. They say nothing
/// about the next generation, whose start is still under way.
#[tokio::test(start_paused = true)]
async fn fence_2_the_last_words_of_an_older_generation_are_not_taken_for_the_next_ones() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Now(ok()))).await;
    let agent = world.agent();
    locked(&world.host.start_delays).insert("executor-1".to_owned(), 1_000);
    soon(agent.restart("requested".into())).await.unwrap();
    eventually("generation 2 starts", async || agent.health().state == AgentState::Starting).await;
    let agent_id = || agent.agent_id().to_owned();
    world.supervisor().send_message(RoleMessage::Ready { agent_id: agent_id(), generation: 1 }).unwrap();
    let answer = tokio::spawn({
        let agent = agent.clone();
        async move { soon(agent.send_work(item("direct"), None)).await }
    });
    settle().await;
    assert_eq!(world.count(EventKind::AgentStarted).await, 1, "generation 2 has not started");
    // Work that comes meanwhile waits for the start. An actor that is not there yet would lose it.
    assert!(answer.await.unwrap().unwrap().success);
    assert_eq!(locked(&world.host.submissions).iter().map(|work| work.generation).collect::<Vec<_>>(), [2]);
    for late in [
        RoleMessage::Degraded { agent_id: agent_id(), generation: 1 },
        RoleMessage::RestartDue { agent_id: agent_id(), generation: 1 },
    ] {
        world.supervisor().send_message(late).unwrap();
    }
    settle().await;
    assert_eq!((agent.generation(), agent.health().state), (2, AgentState::Idle));
    assert!(soon(agent.send_work(item("again"), None)).await.unwrap().success);
    assert_eq!(world.count(EventKind::AgentDegraded).await, 0);
    assert_eq!(locked(&world.host.starts).len(), 2);
    // A timer that has fired when a later restart begins does not shorten that one's delay. No time passes meanwhile.
    let all_that_is_due = async || {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    };
    for _ in 0..5 {
        if agent.health().next_restart_at.is_none() {
            world.end(&agent, Exit::Abnormal);
            all_that_is_due().await;
        }
    }
    let waits = agent.generation();
    world.supervisor().send_message(RoleMessage::RestartDue { agent_id: agent_id(), generation: waits - 1 }).unwrap();
    all_that_is_due().await;
    assert_eq!((agent.generation(), agent.health().state), (waits, AgentState::Restarting));
}

#[tokio::test(start_paused = true)]
async fn down_1_the_tree_runs_without_a_host_keeps_the_queue_and_recovers_when_one_is_registered() {
    let world = World::without_host(executors(2), MemoryHost::new(|_| Act::Now(ok()))).await;
    world.submit("patient").await;
    world.until_events(EventKind::RoleDegraded, 1).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(world.of_kind(EventKind::RoleDegraded).await[0].data["reason"], "no Python bridge is registered");
    assert_eq!(world.state_of("patient").await, ItemState::Ready);
    assert_eq!(world.tree.health().queue.ready, 1);
    assert!(world.tree.agents().iter().all(|agent| agent.health().heartbeat_age_seconds.is_none()));
    world.tree.register_bridge(Arc::new(Shared(world.host.clone())));
    world.until_item("patient", ItemState::Done).await;
    world.until_events(EventKind::RoleDegraded, 1).await;
    world.until_events(EventKind::RoleRecovered, 1).await;
    world.until_events(EventKind::AgentStarted, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_bridge_that_is_registered_at_once_makes_no_noise() {
    let world = World::without_host(executors(2), MemoryHost::new(|_| Act::Now(ok()))).await;
    settle().await; // the agents exist before their bridge
    world.tree.register_bridge(Arc::new(Shared(world.host.clone())));
    sleep(Duration::from_secs(10)).await;
    assert_eq!(world.count(EventKind::RoleDegraded).await, 0);
    assert_eq!(world.count(EventKind::AgentStarted).await, 2);
}

#[tokio::test(start_paused = true)]
async fn another_bridge_replaces_the_first_without_a_charge_and_the_same_one_changes_nothing() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Hang)).await;
    world.submit("moved").await;
    eventually("the first host works", async || world.host.busy() == 1).await;
    let role = world.tree.record().role(AgentRole::Executor).unwrap();
    let same = locked(&role.host).clone().unwrap();
    world.tree.register_bridge(same);
    settle().await;
    assert_eq!(world.agent().generation(), 1);
    let second = MemoryHost::new(|_| Act::Now(ok()));
    world.tree.register_bridge(Arc::new(Shared(second.clone())));
    world.until_item("moved", ItemState::Done).await;
    assert_eq!((second.submitted(), world.host.busy()), (1, 0));
    assert_eq!(world.agent().generation(), 2);
    assert_eq!(world.store.item("moved").await.unwrap().unwrap().item.crashes, 0);
    for generation in 3..10 {
        let next = MemoryHost::new(|_| Act::Now(ok()));
        world.tree.register_bridge(Arc::new(Shared(next)));
        until_idle(&world.agent(), generation).await;
    }
    assert_eq!(world.count(EventKind::AgentQuarantined).await, 0);
}

#[tokio::test(start_paused = true)]
async fn sup_3_what_lets_one_agent_start_is_tried_for_the_others_at_once() {
    let fixed = Arc::new(Mutex::new(false));
    let seen = fixed.clone();
    let host =
        MemoryHost::new(|_| Act::Now(ok())).on_start(move |_| if *locked(&seen) { Ok(()) } else { Err(permanent()) });
    let world = World::new(executors(1), host).await;
    sleep(Duration::from_secs(2)).await;
    let later = world.tree.add_agent(AgentRole::Executor, spec(), None).await.unwrap();
    eventually("degraded", async || later.health().state == AgentState::Degraded).await;
    *locked(&fixed) = true;
    until_idle(&world.agent(), 1).await;
    let first = Instant::now();
    until_idle(&later, 1).await;
    assert!(first.elapsed() <= Duration::from_millis(20), "{:?}", first.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_child_that_panics_is_restarted_and_its_claim_goes_back_without_a_charge() {
    let host = MemoryHost::new(|work| if work.generation == 1 { Act::Panic } else { Act::Now(ok()) });
    let world = World::new(executors(1), host).await;
    world.submit("survivor").await;
    world.until_item("survivor", ItemState::Done).await;
    let restarted = world.of_kind(EventKind::AgentRestarted).await;
    assert_eq!(restarted.len(), 1);
    assert!(restarted[0].data["reason"].as_str().unwrap().contains("its actor failed"));
    assert_eq!(world.store.item("survivor").await.unwrap().unwrap().item.crashes, 0);
    let stops = locked(&world.host.stops).clone();
    assert_eq!(stops, [("executor-1".to_owned(), 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_child_that_is_killed_cancels_its_work_and_the_next_generation_does_it() {
    let host = MemoryHost::new(|work| if work.generation == 1 { Act::Hang } else { Act::Now(ok()) });
    let world = World::new(executors(1), host).await;
    world.submit("survivor").await;
    eventually("the work is there", async || world.host.busy() == 1).await;
    world.supervisor().get_cell().get_children()[0].kill();
    world.until_item("survivor", ItemState::Done).await;
    assert_eq!((world.host.busy(), world.agent().generation()), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_role_supervisor_that_panics_comes_back_with_its_agents_and_nobody_is_charged() {
    let host = MemoryHost::new(|work| if work.generation == 1 { Act::Hang } else { Act::Now(ok()) });
    let world = World::new(executors(2), host).await;
    for id in ["a", "b", "c"] {
        world.submit(id).await;
    }
    eventually("both work", async || world.host.busy() == 2).await;
    let handle = world.agent();
    world.supervisor().send_message(RoleMessage::Panic).unwrap();
    for id in ["a", "b", "c"] {
        world.until_item(id, ItemState::Done).await;
        assert_eq!(world.store.item(id).await.unwrap().unwrap().item.crashes, 0);
    }
    assert_eq!(world.host.busy(), 0);
    until_idle(&handle, 2).await;
    soon(handle.send_work(item("direct"), None)).await.unwrap();
    let reasons = world.of_kind(EventKind::AgentRestarted).await;
    assert!(reasons.iter().all(|event| event.data["reason"] == "its supervisor went down"), "{reasons:?}");
    assert_eq!(reasons.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_role_supervisor_that_keeps_dying_degrades_only_its_role_and_is_tried_again() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Now(ok()))).await;
    for _ in 0..6 {
        eventually("a supervisor lives", async || {
            let role = world.tree.record().role(AgentRole::Executor).unwrap();
            locked(&role.supervisor).is_some()
        })
        .await;
        world.supervisor().send_message(RoleMessage::Panic).unwrap();
        settle().await;
    }
    let reason = world.of_kind(EventKind::RoleDegraded).await.remove(0).data["reason"].clone();
    assert!(reason.as_str().unwrap().contains("its supervisor keeps going down"), "{reason}");
    world.submit("patient").await;
    world.until_item("patient", ItemState::Done).await;
    world.until_events(EventKind::RoleRecovered, 1).await;
}

#[tokio::test(start_paused = true)]
async fn five_restarts_in_the_window_end_in_quarantine_and_a_person_releases_it() {
    let calm = Arc::new(Mutex::new(false));
    let seen = calm.clone();
    let host = MemoryHost::new(move |_| if *locked(&seen) { Act::Now(ok()) } else { Act::Panic });
    let world = World::new(executors(1), host).await;
    world.submit("wild").await;
    world.until_events(EventKind::AgentQuarantined, 1).await;
    let agent = world.agent();
    assert_eq!((agent.health().state, agent.generation()), (AgentState::Quarantined, 6));
    let events = world.of_kind(EventKind::AgentRestarted).await;
    let delays = events.iter().map(|event| event.data["delay_seconds"].as_f64().unwrap());
    for (delay, bound) in delays.zip([0.0, 0.5, 1.0, 2.0, 4.0]) {
        assert!(delay <= bound, "{delay} > {bound}");
    }
    sleep(Duration::from_secs(100)).await;
    assert_eq!(world.state_of("wild").await, ItemState::Ready);
    *locked(&calm) = true;
    let health = soon(agent.restart("requested".into())).await.unwrap();
    assert_eq!(health.generation, 7);
    world.until_item("wild", ItemState::Done).await;
    world.until_events(EventKind::RoleRecovered, 1).await;
    assert_eq!(world.of_kind(EventKind::AgentRestarted).await.last().unwrap().data["reason"], "requested");
    world.supervisor().get_cell().get_children()[0].kill(); // within the window, but those restarts are forgiven
    until_idle(&agent, 8).await;
}

#[tokio::test(start_paused = true)]
async fn a_delayed_restart_shows_when_it_is_due_and_comes_then() {
    let host = MemoryHost::new(|_| Act::Panic);
    let world = World::new(executors(1), host).await;
    let agent = world.agent();
    let mut waited = false;
    for _ in 0..5 {
        let _ = soon(agent.send_work(item("direct"), None)).await;
        settle().await;
        if let Some(due) = agent.health().next_restart_at {
            assert_eq!(agent.health().state, AgentState::Restarting);
            assert!(due >= mnemosyne_store::timestamp(world.store.now())); // in the millisecond in which it is due
            waited = true;
        }
        eventually("it is back", async || agent.health().state == AgentState::Idle).await;
        assert_eq!(agent.health().next_restart_at, None);
    }
    assert!(waited);
}

#[tokio::test(start_paused = true)]
async fn restart_types_are_honoured_when_the_child_ends() {
    for (restart, after_kill, after_end) in [
        (Restart::Permanent, AgentState::Idle, AgentState::Idle),
        (Restart::Transient, AgentState::Idle, AgentState::Stopped),
        (Restart::Temporary, AgentState::Stopped, AgentState::Stopped),
    ] {
        for (kill, expected) in [(true, after_kill), (false, after_end)] {
            let roles = vec![RoleSpec::pool(AgentRole::Executor, AgentSpec { restart, ..spec() }, 1)];
            let world = World::new(roles, MemoryHost::new(|_| Act::Now(ok()))).await;
            let agent = world.agent();
            world.end(&agent, if kill { Exit::Abnormal } else { Exit::Normal });
            sleep(Duration::from_secs(1)).await;
            assert_eq!(agent.health().state, expected, "{restart:?}, killed: {kill}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_temporary_agent_is_still_restarted_by_a_person() {
    let roles = vec![RoleSpec::pool(AgentRole::Executor, AgentSpec { restart: Restart::Temporary, ..spec() }, 1)];
    let world = World::new(roles, MemoryHost::new(|_| Act::Now(ok()))).await;
    soon(world.agent().restart("requested".into())).await.unwrap();
    until_idle(&world.agent(), 2).await;
}
