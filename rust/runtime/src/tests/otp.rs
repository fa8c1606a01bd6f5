//! What OTP's own test list asks of a supervisor, where nothing else here asks it: specifications as data, stopping,
//! administration, robustness. docs/supervision.md has the whole list.

use super::strategies::{add, agent, calm, family, of};
use super::*;
use crate::health::RoleState;
use crate::host::{Restart, Shutdown};
use mnemosyne_core::{ProblemKind, Strategy, SupervisorSpec};

fn names(world: &World) -> Vec<String> {
    world.tree.agents().iter().map(|agent| agent.agent_id().to_owned()).collect()
}

fn transient_failure() -> HostError {
    HostError::new("OSError", "busy", false)
}

// ---- specifications as data ---------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn specifications_are_read_back_with_every_default_and_without_a_configuration() {
    let mut secret = spec();
    secret.config.insert("api_key".into(), json!("sk-not-for-eyes"));
    let world = family(SupervisorSpec::default(), &[], calm()).await;
    add(&world, "a", secret).await;
    let view = serde_json::to_value(world.tree.supervisors()).unwrap();
    let child = json!({
        "id": "a", "role": "executor", "source": {"import": "tests:Agent"}, "in_flight": 1, "restart": "permanent",
        "shutdown": 10.0, "isolation": "thread", "limits": {"memory_mb": null, "cpu_seconds": null},
    });
    let supervisor = json!({"strategy": "pool", "intensity": 5, "period": 300.0});
    assert_eq!(view, json!({"executor": {"supervisor": supervisor, "children": [child]}}));
}

#[test]
fn each_wrong_key_of_an_agent_has_its_own_error() {
    let faulty = json!({
        "instances": 0, "in_flight": -1, "restart": "always", "shutdown": "soon", "isolation": "cell",
        "limits": {"memory_mb": 0, "disk": 1}, "config": [], "colour": "red",
    });
    let error = AgentSpec::read(faulty).unwrap_err();
    let keys: Vec<&str> = error.wrong.iter().map(|wrong| wrong.key.as_str()).collect();
    let expected = "source instances in_flight restart shutdown isolation limits.memory_mb limits.disk config colour";
    assert_eq!(keys, expected.split(' ').collect::<Vec<_>>());
    for wrong in &error.wrong {
        assert!(error.to_string().contains(&wrong.reason), "{wrong:?}");
    }
    let whole = serde_json::to_value(spec()).unwrap();
    for (key, value) in [("restart", json!(1)), ("shutdown", json!(-5)), ("in_flight", json!(0))] {
        let mut faulty = whole.clone();
        faulty[key] = value;
        let error = AgentSpec::read(faulty).unwrap_err();
        assert_eq!(error.wrong.iter().map(|wrong| wrong.key.as_str()).collect::<Vec<_>>(), [key]);
    }
    assert_eq!(AgentSpec::read(whole).unwrap(), spec());
}

#[tokio::test(start_paused = true)]
async fn a_tree_with_a_wrong_specification_does_not_start_and_leaves_nothing() {
    let roles = vec![
        RoleSpec::pool(AgentRole::Reviewer, spec(), 2),
        RoleSpec::pool(AgentRole::Executor, AgentSpec { in_flight: 0, ..spec() }, 1),
    ];
    let store = store();
    let problem = Tree::start(TreeConfig { store: store.clone(), roles, claims: true }).await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::InvalidInput);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(Arc::strong_count(&store), 1, "something still holds the store");
}

// ---- starting -----------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_tree_starts_its_roles_in_order_and_the_children_of_each_in_order() {
    let roles = [AgentRole::Reviewer, AgentRole::Executor].map(|role| RoleSpec::pool(role, spec(), 2));
    let world = World::new(roles.to_vec(), calm()).await;
    assert_eq!(names(&world), ["reviewer-1", "reviewer-2", "executor-1", "executor-2"]);
    let health = world.tree.health();
    assert!(health.roles.values().all(|role| role.state == RoleState::Running && role.agents.len() == 2));
    assert_eq!(world.count(EventKind::AgentStarted).await, 4);
}

#[tokio::test(start_paused = true)]
async fn children_are_started_in_order_and_stopped_in_reverse_one_by_one_unless_they_are_a_pool() {
    let world = family(of(Strategy::OneForOne), &["a", "b", "c", "d"], calm()).await;
    soon(world.tree.shutdown()).await;
    let starts: Vec<String> = locked(&world.host.starts).iter().map(|(_, start)| start.agent_id.clone()).collect();
    let stops: Vec<String> = locked(&world.host.stops).iter().map(|(agent, _)| agent.clone()).collect();
    assert_eq!(starts, ["a", "b", "c", "d"]);
    assert_eq!(stops, ["d", "c", "b", "a"]);
}

// ---- stopping -----------------------------------------------------------------------------------------------------

/// Ends an agent that holds an item of `work_ms`; says how long it took and what became of the item.
async fn stop_while_busy(shutdown: Shutdown, work: fn() -> Act, remove: bool) -> (Duration, World) {
    let world = family(of(Strategy::Pool), &[], MemoryHost::new(move |_| work())).await;
    let agent = add(&world, "a", AgentSpec { shutdown, ..spec() }).await;
    world.submit("held").await;
    eventually("it runs", async || world.host.busy() == 1).await;
    let began = Instant::now();
    match remove {
        true => soon(agent.remove()).await,
        false => soon(agent.shutdown(None)).await,
    }
    let took = began.elapsed();
    assert_eq!(agent.health().state, AgentState::Stopped);
    (took, world)
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_of_infinity_waits_as_long_as_the_work_takes() {
    for remove in [false, true] {
        let (took, world) = stop_while_busy(Shutdown::Infinity, || Act::After(100_000, ok()), remove).await;
        assert!(took >= Duration::from_secs(99) && took <= Duration::from_secs(100), "{took:?}");
        assert_eq!(world.state_of("held").await, ItemState::Done);
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_time_lets_polite_work_finish_and_cuts_off_the_sleeper() {
    for remove in [false, true] {
        let (took, world) = stop_while_busy(Shutdown::Within(1_000), || Act::After(500, ok()), remove).await;
        assert!(took < Duration::from_millis(700), "{took:?}");
        assert_eq!(world.state_of("held").await, ItemState::Done);
        let (took, world) = stop_while_busy(Shutdown::Within(1_000), || Act::Hang, remove).await;
        assert!(took >= Duration::from_secs(1) && took < Duration::from_millis(1_300), "{took:?}");
        let item = world.store.item("held").await.unwrap().unwrap().item;
        assert_eq!((item.state, item.crashes, item.work.attempt), (ItemState::Ready, 0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn work_that_ignores_its_cancel_is_left_behind_after_the_grace() {
    let (took, world) = stop_while_busy(Shutdown::Within(1_000), || Act::Deaf, false).await;
    assert!(took >= Duration::from_secs(6) && took <= Duration::from_secs(7), "{took:?}");
    eventually("it went back", async || world.state_of("held").await == ItemState::Ready).await;
    assert_eq!(locked(&world.host.abandoned).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_of_kill_waits_for_nothing_and_burns_no_attempt() {
    for remove in [false, true] {
        let (took, world) = stop_while_busy(Shutdown::Kill, || Act::Hang, remove).await;
        assert!(took < Duration::from_millis(10), "{took:?}");
        eventually("it went back", async || world.state_of("held").await == ItemState::Ready).await;
        let item = world.store.item("held").await.unwrap().unwrap().item;
        assert_eq!((item.crashes, item.work.attempt), (0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_child_that_dies_while_it_is_stopped_is_stopped_and_not_restarted() {
    let world = family(of(Strategy::OneForOne), &["a", "b"], MemoryHost::new(|_| Act::Hang)).await;
    for id in ["1", "2"] {
        world.submit(id).await;
    }
    eventually("both run", async || world.host.busy() == 2).await;
    let (a, b) = (agent(&world, "a"), agent(&world, "b"));
    let dies = async {
        sleep(Duration::from_millis(100)).await;
        world.end(&a, Exit::Abnormal);
    };
    soon(async { tokio::join!(a.shutdown(Some(Duration::from_secs(5))), dies) }).await;
    settle().await;
    assert_eq!((a.health().state, a.generation()), (AgentState::Stopped, 1));
    assert_eq!((b.health().state, world.count(EventKind::AgentRestarted).await), (AgentState::Busy, 0));
}

#[tokio::test(start_paused = true)]
async fn a_child_that_dies_while_the_tree_shuts_down_is_not_restarted() {
    let world = family(of(Strategy::OneForOne), &["a", "b"], MemoryHost::new(|_| Act::Deaf)).await;
    world.submit("held").await;
    eventually("it runs", async || world.host.busy() == 1).await;
    let dies = async {
        sleep(Duration::from_secs(1)).await;
        world.end(&agent(&world, "a"), Exit::Abnormal);
    };
    soon(async { tokio::join!(world.tree.shutdown(), dies) }).await;
    let health = world.tree.health();
    assert_eq!(health.roles[&AgentRole::Executor].state, RoleState::Stopped);
    assert!(world.tree.record().background.idle(Duration::from_secs(1)).await, "a task leaked");
}

#[tokio::test(start_paused = true)]
async fn a_pool_ends_side_by_side_so_that_its_slowest_child_says_how_long_it_takes() {
    let host = MemoryHost::new(|work| Act::After(if work.agent_id == "executor-1" { 3_000 } else { 1_000 }, ok()));
    let world = World::new(executors(4), host).await;
    for id in ["1", "2", "3", "4"] {
        world.submit(id).await;
    }
    eventually("all run", async || world.host.busy() == 4).await;
    let began = Instant::now();
    soon(world.tree.scale(AgentRole::Executor, 0)).await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 2 + u64::from(began.elapsed().as_millis() >= 3_000));
    assert_eq!(world.tree.agents().len(), 0);
    assert_eq!(world.count(EventKind::WorkCompleted).await, 4);
}

// ---- administration -----------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn children_are_added_stopped_started_again_and_wrong_calls_are_refused() {
    let world = family(of(Strategy::OneForOne), &["a"], calm()).await;
    let a = agent(&world, "a");
    let taken = world.tree.add_agent(AgentRole::Executor, spec(), Some("a".into())).await.unwrap_err();
    assert_eq!(taken.kind, ProblemKind::InvalidInput);
    soon(a.shutdown(None)).await;
    soon(a.shutdown(None)).await; // again is nothing
    assert_eq!((names(&world), a.health().state), (vec!["a".to_owned()], AgentState::Stopped));
    assert!(soon(a.send_work(item("no"), None)).await.is_err());
    let taken = world.tree.add_agent(AgentRole::Executor, spec(), Some("a".into())).await.unwrap_err();
    assert_eq!(taken.kind, ProblemKind::InvalidInput, "its name is still its own");
    let health = soon(a.restart("wanted again".into())).await.unwrap();
    assert_eq!(health.generation, 2);
    until_idle(&a, 2).await;
    assert!(soon(a.send_work(item("yes"), None)).await.unwrap().success);
    world.submit("durable").await;
    world.until_item("durable", ItemState::Done).await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_is_scaled_up_and_down_and_what_was_added_by_hand_stays() {
    let world = World::new(executors(2), calm()).await;
    let by_hand = AgentSpec { in_flight: 2, ..spec() };
    add(&world, "helper", by_hand).await;
    soon(world.tree.scale(AgentRole::Executor, 4)).await.unwrap();
    assert_eq!(names(&world), ["executor-1", "executor-2", "helper", "executor-3", "executor-4"]);
    eventually("all idle", async || world.tree.agents().iter().all(|agent| agent.health().state == AgentState::Idle))
        .await;
    let gone = agent(&world, "executor-4");
    soon(world.tree.scale(AgentRole::Executor, 1)).await.unwrap();
    assert_eq!(names(&world), ["executor-1", "helper"]);
    assert_eq!(gone.health().state, AgentState::Stopped);
    let error = soon(gone.restart("no".into())).await.unwrap_err();
    assert!(error.to_string().contains("MN-0305"), "{error}");
    soon(world.tree.scale(AgentRole::Executor, 2)).await.unwrap();
    assert_eq!(names(&world), ["executor-1", "helper", "executor-2"]);
    soon(agent(&world, "executor-1").shutdown(None)).await;
    soon(world.tree.scale(AgentRole::Executor, 2)).await.unwrap();
    assert_eq!(
        names(&world),
        ["executor-1", "helper", "executor-2", "executor-3"],
        "one that was ended is no part of it"
    );
    let problem = world.tree.scale(AgentRole::Reviewer, 1).await.unwrap_err();
    assert_eq!((problem.kind, problem.code.as_str()), (ProblemKind::InvalidInput, "MN-0361"));
    let line = family(of(Strategy::RestForOne), &["a"], calm()).await;
    assert!(line.tree.scale(AgentRole::Executor, 2).await.is_err(), "their order has a meaning");
}

#[tokio::test(start_paused = true)]
async fn children_are_listed_with_their_states_and_one_that_restarts_is_not_alive() {
    let world = family(of(Strategy::OneForOne), &["a", "b", "c"], calm()).await;
    soon(agent(&world, "c").shutdown(None)).await;
    for _ in 0..2 {
        world.end(&agent(&world, "a"), Exit::Abnormal); // the second restart is delayed
        settle().await;
    }
    let health = world.tree.health().roles.remove(&AgentRole::Executor).unwrap();
    let states: Vec<AgentState> = health.agents.iter().map(|agent| agent.state).collect();
    let waits = health.agents[0].next_restart_at.is_some();
    assert_eq!(states[1..], [AgentState::Idle, AgentState::Stopped]);
    assert!(states[0] == AgentState::Restarting && waits || states[0] == AgentState::Idle, "{states:?}");
    assert!(!health.agents[0].is_healthy || !waits);
    assert_eq!(world.tree.supervisors()[&AgentRole::Executor].children.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn two_thousand_children_can_be_counted_and_stay_what_they_are() {
    let world = World::new(executors(2_000), calm()).await;
    let count = |world: &World| {
        let health = world.tree.health().roles.remove(&AgentRole::Executor).unwrap();
        health.agents.iter().filter(|agent| agent.state == AgentState::Idle).count()
    };
    assert_eq!(count(&world), 2_000);
    world.end(&agent(&world, "executor-7"), Exit::Abnormal);
    until_idle(&agent(&world, "executor-7"), 2).await;
    assert_eq!(count(&world), 2_000);
    soon(world.tree.scale(AgentRole::Executor, 0)).await.unwrap();
    assert_eq!(world.tree.agents().len(), 0);
}

// ---- robustness ---------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn nothing_is_kept_of_temporary_children_that_are_over() {
    let world = family(of(Strategy::Pool), &["a"], calm()).await;
    let mut weak = Vec::new();
    for number in 0..200 {
        let mut temporary = AgentSpec { restart: Restart::Temporary, ..spec() };
        temporary.config.insert("large".into(), json!("x".repeat(10_000)));
        let child = add(&world, &format!("t-{number}"), temporary).await;
        world.end(&child, if number % 2 == 0 { Exit::Normal } else { Exit::Abnormal });
        until_state(&child, AgentState::Stopped).await;
        weak.push(child.downgrade());
    }
    locked(&world.host.starts).clear();
    eventually("they are forgotten", async || names(&world) == ["a"]).await;
    assert!(weak.iter().all(|record| record.strong_count() == 0), "a record is still held");
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_answers_and_can_be_stopped_while_a_restart_keeps_failing() {
    for strategy in [Strategy::OneForOne, Strategy::RestForOne, Strategy::OneForAll, Strategy::Pool] {
        let broken = Arc::new(Mutex::new(false));
        let seen = broken.clone();
        let host =
            calm().on_start(
                move |start| {
                    if *locked(&seen) && start.agent_id == "b" { Err(transient_failure()) } else { Ok(()) }
                },
            );
        let spec = SupervisorSpec { strategy, intensity: 1_000_000, period: 3_600_000 };
        let world = family(spec, &["a", "b", "c"], host).await;
        *locked(&broken) = true;
        world.end(&agent(&world, "b"), Exit::Abnormal);
        for round in 0..20 {
            sleep(Duration::from_millis(500)).await;
            let asked = Instant::now();
            let health = soon(agent(&world, "a").restart("asked".into())).await.unwrap();
            assert!(asked.elapsed() < Duration::from_millis(100), "{strategy:?} round {round}");
            assert!(health.generation > 1);
        }
        assert!(agent(&world, "b").health().restarts > 1, "{strategy:?}: it is no loop");
        assert_eq!(world.tree.supervisors()[&AgentRole::Executor].children.len(), 3);
        let began = Instant::now();
        soon(world.tree.shutdown()).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{strategy:?}: {:?}", began.elapsed());
        assert!(world.tree.record().background.idle(Duration::from_secs(1)).await, "{strategy:?}: a task leaked");
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_never_answers_holds_up_neither_its_supervisor_nor_the_end() {
    let host = calm();
    locked(&host.start_delays).insert("executor-1".to_owned(), u64::from(u32::MAX));
    let world = World::without_host(executors(2), host).await;
    world.tree.register_bridge(Arc::new(Shared(world.host.clone())));
    until_state(&agent(&world, "executor-2"), AgentState::Idle).await;
    assert_eq!(agent(&world, "executor-1").health().state, AgentState::Starting);
    world.submit("done-by-the-other").await;
    world.until_item("done-by-the-other", ItemState::Done).await;
    let began = Instant::now();
    soon(agent(&world, "executor-1").shutdown(None)).await;
    assert!(began.elapsed() < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn many_restarts_of_many_children_keep_their_counts_apart() {
    let spec = SupervisorSpec { strategy: Strategy::OneForOne, intensity: 50, period: 3_600_000 };
    let world = family(spec, &["a", "b", "c"], calm()).await;
    for round in 0..30 {
        let name = ["a", "b", "c"][round % 3];
        let child = agent(&world, name);
        world.end(&child, Exit::Abnormal);
        until_idle(&child, 2 + (round / 3) as u64).await;
    }
    let restarts: Vec<u32> = world.tree.agents().iter().map(|agent| agent.health().restarts).collect();
    assert_eq!(restarts, [10, 10, 10]);
    assert_eq!(world.count(EventKind::AgentRestarted).await, 30);
}

// ---- delayed restarts ---------------------------------------------------------------------------------------------

/// An agent whose next restart is delayed: its host refuses to start it for the moment.
async fn delayed() -> (World, AgentHandle) {
    let broken = Arc::new(Mutex::new(false));
    let seen = broken.clone();
    let host = calm().on_start(move |_| if *locked(&seen) { Err(transient_failure()) } else { Ok(()) });
    let spec = SupervisorSpec { strategy: Strategy::OneForOne, intensity: 1_000, period: 3_600_000 };
    let world = family(spec, &["a"], host).await;
    *locked(&broken) = true;
    let a = agent(&world, "a");
    world.end(&a, Exit::Abnormal);
    eventually("a long delay", async || {
        let due = a.health().next_restart_at;
        due.is_some_and(|due| due > mnemosyne_store::timestamp(world.store.now() + 2_000))
    })
    .await;
    (world, a)
}

#[tokio::test(start_paused = true)]
async fn a_child_that_waits_for_its_restart_is_stopped_at_once() {
    let (world, a) = delayed().await;
    let began = Instant::now();
    soon(a.shutdown(None)).await;
    assert!(began.elapsed() < Duration::from_millis(10));
    let starts = locked(&world.host.starts).len();
    sleep(Duration::from_secs(120)).await;
    assert_eq!((a.health().state, locked(&world.host.starts).len()), (AgentState::Stopped, starts));
}

#[tokio::test(start_paused = true)]
async fn work_that_comes_during_a_delay_is_refused_with_the_time_to_try_again() {
    let (world, a) = delayed().await;
    let error = soon(a.send_work(item("early"), None)).await.unwrap_err();
    let crate::WorkError::Problem { problem, retry_at } = error else { panic!("{error}") };
    assert_eq!(problem.kind, ProblemKind::Unavailable);
    assert!(retry_at.unwrap() > world.store.now() as f64 / 1_000.0);
}

#[tokio::test(start_paused = true)]
async fn work_waits_while_the_agent_starts_and_then_runs() {
    let host = calm();
    locked(&host.start_delays).insert("executor-1".to_owned(), 3_000);
    let world = World::without_host(executors(1), host).await;
    world.tree.register_bridge(Arc::new(Shared(world.host.clone())));
    let began = Instant::now();
    assert!(soon(agent(&world, "executor-1").send_work(item("early"), None)).await.unwrap().success);
    assert_eq!(began.elapsed().as_secs(), 3);
}
