//! Who gets what, and when.

use super::{World, after, code, own, planned, prompted, release, request};
use crate::LEASE_MS;
use crate::types::{Claimed, Completion, QueueCounts, Release, ReleaseReason};
use mnemosyne_core::{
    AgentRole, EventKind, ItemKind, ItemState, Problem, ProblemKind, RunState, TaskState, WorkItem, WorkResult,
};
use serde_json::json;

pub async fn the_highest_priority_goes_first_and_then_the_oldest(world: World) {
    for (id, priority) in [("low", 1), ("old", 5), ("new", 5), ("high", 10)] {
        world.submit(WorkItem { priority, ..own(id) }).await;
    }
    for id in ["high", "old", "new", "low"] {
        assert_eq!(world.next().await.as_deref(), Some(id));
    }
    assert_eq!(world.next().await, None);
}

pub async fn nothing_waits_for_ever_behind_what_is_more_urgent(world: World) {
    world.submit(WorkItem { priority: 0, ..own("patient") }).await;
    world.pass(599_999);
    world.submit(WorkItem { priority: 10, ..own("urgent") }).await;
    world.pass(1);
    world.submit(WorkItem { priority: 10, ..own("too late") }).await;
    let mut order = Vec::new();
    while let Some(id) = world.next().await {
        order.push(id);
    }
    assert_eq!(order, ["urgent", "patient", "too late"]);
}

pub async fn a_role_gets_only_its_own_items(world: World) {
    world.submit(WorkItem { role: AgentRole::Reviewer, ..own("a") }).await;
    assert!(world.claim(AgentRole::Executor).await.is_none());
    assert!(world.claim(AgentRole::Reviewer).await.is_some());
}

pub async fn a_claim_says_who_in_two_events(world: World) {
    world.submit_run(planned("r-1", &[("a", &[], "a")])).await;
    let claimed = world.store.claim(request(AgentRole::Optimizer, 3)).await.unwrap().unwrap();
    let events = world.all_events().await;
    let [started, agent] = &events[events.len() - 2..] else { panic!("two events") };
    assert_eq!((started.event.kind, agent.event.kind), (EventKind::WorkStarted, EventKind::AgentStartedWithTask));
    for event in [&started.event, &agent.event] {
        assert_eq!((event.agent.as_deref(), event.generation), (Some("optimizer-1"), Some(3)));
        assert_eq!((event.item.as_deref(), event.epoch, event.attempt), (Some("r-1.1"), Some(1), Some(1)));
        assert_eq!((event.role, event.task.as_deref()), (Some(AgentRole::Optimizer), Some("a")));
    }
    assert_eq!((started.event.run.as_deref(), agent.event.run.as_deref()), (Some("r-1"), None));
    assert_eq!(agent.event.data["agent_id"], "optimizer-1");
    assert_eq!(agent.event.data["description"], "do a");
    world.complete(&claimed).await;
    let completed = world.all_events().await.into_iter().find(|event| event.event.kind == EventKind::WorkCompleted);
    let completed = completed.unwrap().event;
    assert_eq!((completed.agent.as_deref(), completed.generation), (Some("optimizer-1"), Some(3)));
}

pub async fn a_claim_brings_its_run_its_task_and_the_joined_gate(world: World) {
    world.submit_run(planned("r-1", &[("a", &[], "a"), ("b", &["a"], "b")])).await;
    let first = world.any().await.unwrap();
    assert_eq!(first.run.as_ref().map(|run| run.id.as_str()), Some("r-1"));
    assert_eq!(first.task.as_ref().map(|task| task.state), Some(TaskState::Running));
    assert!(first.accepted.is_empty());
    world.complete(&first).await;
    let last = loop {
        let claimed = world.any().await.unwrap();
        if claimed.task.as_ref().is_some_and(|task| task.spec.id == "b") {
            break claimed;
        }
        world.complete(&claimed).await;
    };
    let gate: Vec<_> = last.accepted.iter().map(|acceptance| acceptance.command.as_str()).collect();
    assert_eq!(gate, ["test a"]);
}

pub async fn a_claimed_task_runs(world: World) {
    let run = world.submit_run(planned("r-1", &[("a", &[], "a")])).await;
    world.any().await.unwrap();
    assert_eq!(world.store.run(&run).await.unwrap().unwrap().tasks[0].state, TaskState::Running);
}

pub async fn an_item_waits_for_all_that_it_depends_on(world: World) {
    for item in [own("a"), own("b"), after("c", &["a", "b", "a"])] {
        world.submit(item).await;
    }
    assert_eq!(world.state("c").await, ItemState::Waiting);
    let (a, b) = (world.any().await.unwrap(), world.any().await.unwrap());
    world.complete(&a).await;
    assert_eq!(world.next().await, None);
    world.complete(&b).await;
    assert_eq!(world.state("c").await, ItemState::Ready);
    assert_eq!(world.next().await.as_deref(), Some("c"));
}

pub async fn a_dependency_that_is_done_is_not_waited_for(world: World) {
    world.submit(own("a")).await;
    let claimed = world.any().await.unwrap();
    world.complete(&claimed).await;
    world.submit(after("b", &["a"])).await;
    assert_eq!(world.next().await.as_deref(), Some("b"));
}

pub async fn what_depends_on_a_failure_is_cancelled_and_not_left_waiting(world: World) {
    for item in [own("a"), after("b", &["a"]), after("c", &["b"]), after("d", &["a", "c"])] {
        world.submit(item).await;
    }
    let claimed = world.any().await.unwrap();
    world.store.complete(Completion::new(&claimed, WorkResult::failure("no"))).await.unwrap();
    for id in ["b", "c", "d"] {
        let snapshot = world.store.item(id).await.unwrap().unwrap();
        assert_eq!(snapshot.item.state, ItemState::Cancelled);
        assert!(snapshot.problem.unwrap().reason.contains("depends on"));
    }
    let cancelled = world.all_events().await.into_iter().filter(|event| event.event.kind == EventKind::WorkCancelled);
    assert_eq!(cancelled.count(), 3);
    assert_eq!(code(world.store.submit_item(after("e", &["a"]), None).await), "MN-0117");
}

pub async fn a_delayed_item_is_not_given_out_before_its_time(world: World) {
    world.submit(own("a")).await;
    let claimed = world.any().await.unwrap();
    let delayed = Release { delay_ms: 5_000, ..release(&claimed, ReleaseReason::Error, 1) };
    world.store.release(delayed).await.unwrap();
    assert_eq!(world.state("a").await, ItemState::Waiting);
    world.pass(4_999);
    assert_eq!(world.next().await, None);
    world.pass(1);
    assert_eq!(world.state("a").await, ItemState::Ready);
    assert_eq!(world.next().await.as_deref(), Some("a"));
}

pub async fn an_expired_lease_is_given_to_another_and_counts_as_a_crash(world: World) {
    world.submit(own("a")).await;
    world.any().await.unwrap();
    world.pass(LEASE_MS - 1);
    assert_eq!(world.next().await, None);
    world.pass(1);
    let again = world.any().await.unwrap();
    assert_eq!((again.item.epoch, again.item.crashes), (2, 1));
    let failed = world.all_events().await.into_iter().find(|event| event.event.kind == EventKind::WorkFailed).unwrap();
    assert!(failed.event.data["error"].as_str().unwrap().contains("lease"));
    assert_eq!(failed.event.agent.as_deref(), Some("executor-1"));
}

pub async fn a_renewal_extends_a_lease_and_never_shortens_it(world: World) {
    world.submit(own("a")).await;
    let claimed = world.any().await.unwrap();
    world.pass(10_000);
    world.store.renew("a", claimed.item.epoch, LEASE_MS).await.unwrap();
    world.store.renew("a", claimed.item.epoch, 1).await.unwrap();
    world.pass(LEASE_MS - 1);
    assert_eq!(world.next().await, None);
    world.pass(1);
    assert_eq!(world.next().await.as_deref(), Some("a"));
}

pub async fn a_file_scope_is_held_while_an_item_runs(world: World) {
    let scoped = |id: &str, scope: &str| WorkItem { file_scope: vec![scope.to_owned()], ..own(id) };
    for item in [scoped("a", "src"), scoped("b", "src/b.py"), scoped("c", "docs")] {
        world.submit(item).await;
    }
    let a = world.any().await.unwrap();
    assert_eq!(world.next().await.as_deref(), Some("c"), "b waits for src");
    assert_eq!(world.next().await, None);
    world.complete(&a).await;
    assert_eq!(world.next().await.as_deref(), Some("b"));
}

pub async fn a_task_holds_its_scope_between_its_items(world: World) {
    world.submit_run(planned("r-1", &[("a", &[], "src"), ("b", &[], "src/b.py"), ("c", &[], "docs")])).await;
    let a = world.any().await.unwrap();
    let c = world.any().await.unwrap();
    assert_eq!(c.item.task.as_deref(), Some("c"));
    world.complete(&a).await;
    assert!(world.claim(AgentRole::Optimizer).await.is_none(), "a is between two items and still holds src");
    let execute = world.claim(AgentRole::Executor).await.unwrap();
    assert_eq!(execute.item.task.as_deref(), Some("a"), "and is not in its own way");
}

pub async fn a_task_that_names_no_scope_runs_alone(world: World) {
    let mut run = planned("r-1", &[("a", &[], ""), ("b", &[], "")]);
    for task in run.plan.iter_mut().flat_map(|plan| &mut plan.tasks) {
        task.file_scope.clear();
    }
    world.submit_run(run).await;
    let first = world.any().await.unwrap();
    assert_eq!(first.item.task.as_deref(), Some("a"));
    assert!(world.any().await.is_none(), "a may change everything");
    world.complete(&first).await;
    let next = world.any().await.unwrap();
    assert_eq!(next.item.task.as_deref(), Some("a"), "and so it is until it has ended");
}

pub async fn many_held_items_do_not_hide_a_free_one(world: World) {
    let scoped = |id: &str, scope: &str| WorkItem { file_scope: vec![scope.to_owned()], ..own(id) };
    world.submit(scoped("holder", "src")).await;
    world.any().await.unwrap();
    for number in 0..150 {
        world.submit(scoped(&format!("held-{number}"), "src/x")).await;
    }
    world.submit(scoped("free", "docs")).await;
    assert_eq!(world.next().await.as_deref(), Some("free"));
    assert_eq!(world.next().await, None);
}

pub async fn one_acceptance_at_a_time_per_run(world: World) {
    world.submit_run(planned("r-1", &[("a", &[], "a"), ("b", &[], "b")])).await;
    let mut accepting = Vec::new();
    while let Some(claimed) = world.any().await {
        if claimed.item.kind == ItemKind::Accept {
            accepting.push(claimed);
        } else {
            world.complete(&claimed).await;
        }
    }
    assert_eq!(accepting.len(), 1);
    world.complete(&accepting[0]).await;
    assert_eq!(world.any().await.unwrap().item.kind, ItemKind::Accept);
}

pub async fn items_of_a_run_go_only_to_its_boot(world: World) {
    world.submit_run(prompted("r-1")).await;
    let other = world.boot();
    assert!(other.claim(request(AgentRole::Orchestrator, 1)).await.unwrap().is_none());
    assert!(world.claim(AgentRole::Orchestrator).await.is_some());
}

pub async fn items_without_a_run_go_to_any_boot(world: World) {
    world.submit(own("a")).await;
    let other = world.boot();
    assert!(other.claim(request(AgentRole::Executor, 1)).await.unwrap().is_some());
}

pub async fn an_item_that_a_dead_boot_held_goes_to_another(mut world: World) {
    world.submit(own("a")).await;
    world.any().await.unwrap();
    world.die();
    world.pass(LEASE_MS);
    let again = world.any().await.unwrap();
    assert_eq!((again.item.epoch, again.item.crashes), (2, 1));
}

pub async fn what_a_dead_boot_held_is_taken_back_at_once_by_a_boot_that_lives(mut world: World) {
    let living = world.boot();
    world.submit(own("a")).await;
    world.any().await.unwrap();
    assert_eq!(living.take_back().await.unwrap(), 0, "its boot lives");
    drop(std::mem::replace(&mut world.store, living.clone()));
    let mut ready = living.ready();
    ready.mark_unchanged();
    assert_eq!(living.take_back().await.unwrap(), 1);
    ready.changed().await.unwrap(); // whoever waits for work is told
    let again = world.any().await.unwrap();
    assert_eq!((again.item.epoch, again.item.crashes), (2, 1));
    assert_eq!(living.take_back().await.unwrap(), 0);
}

pub async fn a_cancelled_item_is_not_given_out(world: World) {
    world.submit(own("a")).await;
    world.submit(after("b", &["a"])).await;
    world.store.cancel_item("a", "not needed").await.unwrap();
    assert_eq!(world.next().await, None);
    assert_eq!((world.state("a").await, world.state("b").await), (ItemState::Cancelled, ItemState::Cancelled));
    let snapshot = world.store.item("a").await.unwrap().unwrap();
    assert_eq!(snapshot.problem.unwrap().reason, "not needed");
    let events = world.all_events().await.len();
    world.store.cancel_item("a", "again").await.unwrap();
    assert_eq!(world.all_events().await.len(), events, "an item that ended is left alone");
}

pub async fn an_item_of_a_run_is_not_cancelled_alone(world: World) {
    world.submit_run(prompted("r-1")).await;
    assert_eq!(code(world.store.cancel_item("r-1.1", "no").await), "MN-0117");
}

pub async fn the_queue_counts_what_is_ready_running_and_waiting(world: World) {
    for item in [own("a"), own("b"), own("c"), after("d", &["a"])] {
        world.submit(item).await;
    }
    let other = world.boot();
    other.submit_run(prompted("r-1"), None).await.unwrap();
    let claimed = world.any().await.unwrap();
    world.any().await.unwrap();
    let delayed = Release { delay_ms: 1_000, ..release(&claimed, ReleaseReason::Error, 1) };
    world.store.release(delayed).await.unwrap();
    assert_eq!(world.store.queue().await.unwrap(), QueueCounts { ready: 1, running: 1, waiting: 2 });
    assert_eq!(other.queue().await.unwrap(), QueueCounts { ready: 2, running: 1, waiting: 2 });
    let both = world.store.queue_of(&[world.store.boot(), other.boot()]).await.unwrap();
    assert_eq!(both, QueueCounts { ready: 2, running: 1, waiting: 2 });
}

fn parked(claimed: &Claimed, delay_ms: i64) -> Release {
    let (error, class) = (Some("529 busy".to_owned()), Some("overloaded".to_owned()));
    Release { delay_ms, error, class, ..release(claimed, ReleaseReason::Parked, 1) }
}

pub async fn a_parked_item_waits_and_says_until_when_and_why(world: World) {
    world.submit_run(planned("r-1", &[("a", &[], "a"), ("b", &[], "b")])).await;
    let claimed = world.any().await.unwrap();
    world.store.release(parked(&claimed, 3_600_000)).await.unwrap();
    let told = world.all_events().await.pop().unwrap().event;
    assert_eq!((told.kind, told.run.as_deref(), told.epoch), (EventKind::WorkParked, Some("r-1"), Some(1)));
    assert_eq!((told.agent.as_deref(), told.task.as_deref()), (Some("optimizer-1"), Some("a")));
    let data =
        json!({"until": "2026-11-22T11:11:12.345Z", "class": "overloaded", "reason": "529 busy", "run_waits": false});
    assert_eq!(json!(told.data), data);
    assert_eq!(world.state("r-1.1").await, ItemState::Waiting);
    let snapshot = world.store.run("r-1").await.unwrap().unwrap();
    assert_eq!(snapshot.run.state, RunState::Running, "b can go on");
    assert_eq!(snapshot.parked.len(), 1);
    let shown = &snapshot.parked[0];
    assert_eq!((shown.item.as_str(), shown.task.as_deref(), shown.role), ("r-1.1", Some("a"), AgentRole::Optimizer));
    assert_eq!((shown.until.as_str(), shown.class.as_str()), ("2026-11-22T11:11:12.345Z", "overloaded"));
    let item = world.store.item("r-1.1").await.unwrap().unwrap().item;
    assert_eq!((item.crashes, item.model_failures, item.work.attempt), (0, 0, 1));
}

pub async fn a_run_waits_only_while_all_that_it_has_is_parked(world: World) {
    world.submit_run(planned("r-1", &[("a", &[], "a"), ("b", &[], "b")])).await;
    let state = async || {
        let (one, all) = (world.store.run("r-1").await.unwrap().unwrap(), world.store.runs().await.unwrap());
        assert_eq!(one.run.state, all[0].state);
        one.run.state
    };
    let (a, b) = (world.any().await.unwrap(), world.any().await.unwrap());
    world.store.release(parked(&a, 1_000)).await.unwrap();
    assert_eq!(state().await, RunState::Running, "b runs");
    world.store.release(parked(&b, 5_000)).await.unwrap();
    assert_eq!(world.all_events().await.pop().unwrap().event.data["run_waits"], true);
    assert_eq!(state().await, RunState::Waiting);
    assert!(world.any().await.is_none());
    world.pass(1_000);
    assert_eq!(state().await, RunState::Running, "a's time has come");
    let again = world.any().await.unwrap();
    assert_eq!((again.item.work.id.as_str(), again.item.epoch), ("r-1.1", 2));
    let delayed = Release { delay_ms: 1_000, ..release(&again, ReleaseReason::Error, 1) };
    world.store.release(delayed).await.unwrap();
    assert_eq!(state().await, RunState::Running, "an error's short delay is no parking");
    assert_eq!(world.store.run("r-1").await.unwrap().unwrap().parked.len(), 1);
}

pub async fn a_parked_item_keeps_its_time_when_its_run_is_resumed_or_stopped(mut world: World) {
    world.submit_run(planned("r-1", &[("a", &[], "a")])).await;
    let claimed = world.any().await.unwrap();
    world.store.release(parked(&claimed, 60_000)).await.unwrap();
    world.die();
    let adopted = world.store.adopt_run("r-1", None).await.unwrap();
    assert_eq!((adopted.run.state, adopted.parked.len()), (RunState::Waiting, 1));
    assert!(world.any().await.is_none());
    let why = Problem::new(ProblemKind::Closed, "MN-0702", "interrupted");
    world.store.stop_run("r-1", RunState::Interrupted, why).await.unwrap();
    assert_eq!(world.store.run("r-1").await.unwrap().unwrap().run.state, RunState::Interrupted);
    world.store.adopt_run("r-1", None).await.unwrap();
    world.pass(59_999);
    assert!(world.any().await.is_none());
    world.pass(1);
    assert_eq!(world.any().await.unwrap().item.epoch, 2);
}
