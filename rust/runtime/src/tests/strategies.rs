//! Who restarts with whom: the strategies, their order, their windows.

use super::*;
use crate::host::Restart;
use mnemosyne_core::{Strategy, SupervisorSpec};

/// Children with these names under one supervisor, on a host that does what `script` says; an item called `crash` takes
/// its agent down.
pub(crate) async fn family(supervisor: SupervisorSpec, names: &[&str], host: Arc<MemoryHost>) -> World {
    let role = RoleSpec { role: AgentRole::Executor, spec: spec(), instances: 0, supervisor };
    let world = World::new(vec![role], host).await;
    for name in names {
        add(&world, name, spec()).await;
    }
    world
}

pub(crate) async fn add(world: &World, name: &str, spec: AgentSpec) -> AgentHandle {
    let agent = world.tree.add_agent(AgentRole::Executor, spec, Some(name.to_owned())).await.unwrap();
    eventually("it has started", async || agent.health().state != AgentState::Starting).await;
    agent
}

pub(crate) fn of(strategy: Strategy) -> SupervisorSpec {
    SupervisorSpec { strategy, ..SupervisorSpec::default() }
}

pub(crate) fn calm() -> Arc<MemoryHost> {
    MemoryHost::new(|_| Act::Now(ok()))
}

pub(crate) fn agent(world: &World, name: &str) -> AgentHandle {
    world.tree.agent(name).unwrap_or_else(|| panic!("there is no {name}"))
}

fn generations(world: &World) -> Vec<u64> {
    world.tree.agents().iter().map(AgentHandle::generation).collect()
}

fn started(world: &World) -> Vec<String> {
    locked(&world.host.starts).iter().map(|(_, start)| format!("{}.{}", start.agent_id, start.generation)).collect()
}

fn stopped(world: &World) -> Vec<String> {
    locked(&world.host.stops).iter().map(|(agent, generation)| format!("{agent}.{generation}")).collect()
}

async fn all_idle(world: &World) {
    eventually("all are idle", async || {
        world.tree.agents().iter().all(|agent| agent.health().state == AgentState::Idle)
    })
    .await;
}

async fn crash(world: &World, name: &str) {
    world.end(&agent(world, name), Exit::Abnormal);
    settle().await;
    all_idle(world).await;
}

#[tokio::test(start_paused = true)]
async fn one_for_one_restarts_the_child_that_died_and_no_other() {
    for strategy in [Strategy::OneForOne, Strategy::Pool] {
        let world = family(of(strategy), &["a", "b", "c"], calm()).await;
        crash(&world, "b").await;
        assert_eq!(generations(&world), [1, 2, 1], "{strategy:?}");
        crash(&world, "a").await;
        assert_eq!(generations(&world), [2, 2, 1], "{strategy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_for_all_stops_the_youngest_first_and_starts_the_oldest_first() {
    let world = family(of(Strategy::OneForAll), &["a", "b", "c"], calm()).await;
    crash(&world, "b").await;
    assert_eq!(generations(&world), [2, 2, 2]);
    assert_eq!(stopped(&world), ["b.1", "c.1", "a.1"]);
    assert_eq!(started(&world), ["a.1", "b.1", "c.1", "a.2", "b.2", "c.2"]);
    let reasons: Vec<Value> =
        world.of_kind(EventKind::AgentRestarted).await.iter().map(|event| event.data["reason"].clone()).collect();
    assert_eq!(reasons, ["with b: killed", "killed", "with b: killed"]);
}

#[tokio::test(start_paused = true)]
async fn rest_for_one_restarts_the_child_and_those_that_came_after_it() {
    let world = family(of(Strategy::RestForOne), &["a", "b", "c"], calm()).await;
    crash(&world, "b").await;
    assert_eq!(generations(&world), [1, 2, 2]);
    assert_eq!(stopped(&world), ["b.1", "c.1"]);
    assert_eq!(started(&world)[3..], ["b.2", "c.2"]);
    crash(&world, "c").await;
    assert_eq!(generations(&world), [1, 2, 3]);
    crash(&world, "a").await;
    assert_eq!(generations(&world), [2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_group_starts_each_child_once_the_one_before_it_has_started() {
    let host = calm();
    let world = family(of(Strategy::OneForAll), &["a", "b"], host.clone()).await;
    locked(&host.start_delays).insert("a".to_owned(), 2_000);
    let began = Instant::now();
    crash(&world, "b").await;
    let starts = locked(&world.host.starts).clone();
    assert_eq!(starts[3].1.agent_id, "b");
    assert!(starts[3].0 - began >= Duration::from_secs(2), "b did not wait for a");
}

#[tokio::test(start_paused = true)]
async fn a_group_lets_work_of_a_sibling_finish_within_its_shutdown_time_and_charges_nobody() {
    let host = MemoryHost::new(|_| Act::After(3_000, ok()));
    let world = family(of(Strategy::OneForAll), &["a", "b"], host).await;
    world.submit("under-way").await;
    eventually("it runs", async || world.host.busy() == 1).await;
    let busy = if agent(&world, "a").health().state == AgentState::Busy { ("a", "b") } else { ("b", "a") };
    crash(&world, busy.1).await;
    assert_eq!(world.state_of("under-way").await, ItemState::Done);
    assert_eq!(world.host.submitted(), 1);
    assert_eq!(generations(&world), [2, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_sibling_that_fails_while_its_group_restarts_starts_nobody_twice() {
    for strategy in [Strategy::OneForAll, Strategy::RestForOne] {
        let failed = Arc::new(Mutex::new(false));
        let seen = failed.clone();
        let host = calm().on_start(move |start| {
            let fails = start.agent_id == "b" && start.generation == 2;
            *locked(&seen) |= fails;
            if fails { Err(HostError::new("OSError", "busy", false)) } else { Ok(()) }
        });
        let world = family(of(strategy), &["a", "b", "c"], host).await;
        crash(&world, "a").await;
        assert!(*locked(&failed));
        let starts = started(&world);
        let mut once = starts.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), starts.len(), "{strategy:?}: started twice: {starts:?}");
        assert!(generations(&world).iter().all(|generation| *generation >= 2), "{strategy:?}");
        assert_eq!(locked(&world.host.stops).len() + 3, starts.len(), "{strategy:?}: one lives of each");
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_shares_one_window_and_ends_in_quarantine_together() {
    for strategy in [Strategy::OneForAll, Strategy::RestForOne] {
        let spec = SupervisorSpec { strategy, intensity: 2, period: 10_000 };
        let world = family(spec, &["a", "b", "c"], calm()).await;
        crash(&world, "c").await;
        crash(&world, "b").await;
        world.end(&agent(&world, "c"), Exit::Abnormal);
        for name in ["a", "b", "c"] {
            until_state(&agent(&world, name), AgentState::Quarantined).await;
        }
        assert_eq!(world.count(EventKind::AgentQuarantined).await, 3, "{strategy:?}");
        assert_eq!(world.count(EventKind::RoleDegraded).await, 1, "{strategy:?}");
        assert_eq!(locked(&world.host.stops).len(), locked(&world.host.starts).len(), "{strategy:?}: nobody lives");
        soon(agent(&world, "a").restart("repaired".into())).await.unwrap();
        until_state(&agent(&world, "a"), AgentState::Idle).await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_for_one_quarantines_only_the_child_whose_window_is_full() {
    for strategy in [Strategy::OneForOne, Strategy::Pool] {
        let spec = SupervisorSpec { strategy, intensity: 2, period: 10_000 };
        let world = family(spec, &["a", "b"], calm()).await;
        for _ in 0..2 {
            crash(&world, "a").await;
        }
        world.end(&agent(&world, "a"), Exit::Abnormal);
        until_state(&agent(&world, "a"), AgentState::Quarantined).await;
        assert_eq!(agent(&world, "b").health().state, AgentState::Idle, "{strategy:?}");
        assert_eq!(world.count(EventKind::RoleDegraded).await, 0, "{strategy:?}: one still works");
        world.end(&agent(&world, "b"), Exit::Abnormal);
        settle().await;
        until_idle(&agent(&world, "b"), 2).await;
    }
}

#[tokio::test(start_paused = true)]
async fn restarts_that_lie_further_apart_than_the_period_never_fill_the_window() {
    let spec = SupervisorSpec { strategy: Strategy::OneForOne, intensity: 1, period: 2_000 };
    let world = family(spec, &["a"], calm()).await;
    for generation in 2..8 {
        crash(&world, "a").await;
        assert_eq!(agent(&world, "a").generation(), generation);
        sleep(Duration::from_millis(2_100)).await;
    }
    crash(&world, "a").await;
    world.end(&agent(&world, "a"), Exit::Abnormal);
    until_state(&agent(&world, "a"), AgentState::Quarantined).await;
}

#[tokio::test(start_paused = true)]
async fn an_intensity_of_0_accepts_no_restart_at_all() {
    let spec = SupervisorSpec { strategy: Strategy::OneForOne, intensity: 0, period: 5_000 };
    let world = family(spec, &["a"], calm()).await;
    world.end(&agent(&world, "a"), Exit::Abnormal);
    until_state(&agent(&world, "a"), AgentState::Quarantined).await;
    assert_eq!(agent(&world, "a").generation(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_temporary_bystander_is_stopped_with_its_group_not_started_again_and_not_kept() {
    let world = family(of(Strategy::OneForAll), &["a"], calm()).await;
    let temporary = AgentSpec { restart: Restart::Temporary, ..spec() };
    let bystander = add(&world, "passer-by", temporary).await;
    add(&world, "c", spec()).await;
    crash(&world, "a").await;
    assert_eq!(bystander.health().state, AgentState::Stopped);
    assert_eq!(world.tree.agents().iter().map(|agent| agent.agent_id().to_owned()).collect::<Vec<_>>(), ["a", "c"]);
    assert_eq!(started(&world).iter().filter(|start| start.starts_with("passer-by")).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_child_that_died_for_good_takes_no_group_with_it() {
    for (restart, exit) in [(Restart::Temporary, Exit::Abnormal), (Restart::Transient, Exit::Normal)] {
        let world = family(of(Strategy::OneForAll), &["a", "b"], calm()).await;
        let child = add(&world, "c", AgentSpec { restart, ..spec() }).await;
        world.end(&child, exit);
        until_state(&child, AgentState::Stopped).await;
        settle().await;
        assert_eq!((agent(&world, "a").generation(), agent(&world, "b").generation()), (1, 1), "{restart:?}");
        assert_eq!(world.tree.health().roles[&AgentRole::Executor].state, crate::RoleState::Running);
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_by_a_person_is_of_one_child_whatever_the_strategy() {
    let world = family(of(Strategy::OneForAll), &["a", "b"], calm()).await;
    soon(agent(&world, "a").restart("requested".into())).await.unwrap();
    until_idle(&agent(&world, "a"), 2).await;
    assert_eq!(generations(&world), [2, 1]);
}
