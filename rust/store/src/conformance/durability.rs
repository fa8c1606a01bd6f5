//! DUR-1, DUR-2, DUR-3.

use super::{World, after, code, good, own, planned, prompted, request};
use crate::types::{Completion, EventQuery};
use mnemosyne_core::{AgentRole, EventKind, ItemState, NewEvent, Phase, PhaseState, RunState, TaskState, WorkResult};

pub async fn dur_1_a_submitted_item_is_there_when_the_answer_is(world: World) {
    let id = world.submit(own("a")).await;
    let snapshot = world.store.item(&id).await.unwrap().unwrap();
    assert_eq!(snapshot.item.work, own("a"));
    assert_eq!((snapshot.item.state, snapshot.item.epoch), (ItemState::Ready, 0));
    assert_eq!((snapshot.result, snapshot.problem), (None, None));
    assert_eq!(world.store.item("b").await.unwrap(), None);
}

pub async fn dur_1_a_submitted_run_has_its_phases_and_events(world: World) {
    let id = world.submit_run(prompted("r-1")).await;
    let snapshot = world.store.run(&id).await.unwrap().unwrap();
    assert_eq!(snapshot.run.boot.as_deref(), Some(world.store.boot()));
    assert_eq!(snapshot.run.state, RunState::Running);
    let phases: Vec<Phase> = snapshot.phases.iter().map(|phase| phase.name).collect();
    assert_eq!(phases, Phase::ALL);
    assert_eq!(snapshot.phases[0].state, PhaseState::Running);
    assert_eq!(snapshot.phases[0].started_at, Some(super::BEGIN));
    assert_eq!(snapshot.phases[1].state, PhaseState::Pending);
    assert_eq!(snapshot.last_sequence, 2);
    assert_eq!(world.kinds(&id).await, [EventKind::RunSubmitted, EventKind::PhaseStarted]);
    assert_eq!(world.store.run("r-2").await.unwrap(), None);
}

pub async fn dur_1_a_submitted_plan_has_its_tasks_in_order(world: World) {
    let run = planned("r-1", &[("z", &[], "z"), ("a", &["z"], "a")]);
    let id = world.submit_run(run).await;
    let snapshot = world.store.run(&id).await.unwrap().unwrap();
    let tasks: Vec<_> = snapshot.tasks.iter().map(|task| (task.spec.id.as_str(), task.state)).collect();
    assert_eq!(tasks, [("z", TaskState::Ready), ("a", TaskState::Blocked)]);
    assert_eq!(snapshot.phases[0].state, PhaseState::Skipped);
}

pub async fn dur_1_runs_are_listed_oldest_first(world: World) {
    for id in ["r-9", "r-1", "r-5"] {
        world.submit_run(prompted(id)).await;
    }
    let ids: Vec<String> = world.store.runs().await.unwrap().into_iter().map(|run| run.id).collect();
    assert_eq!(ids, ["r-9", "r-1", "r-5"]);
}

pub async fn dur_1_a_refused_submission_leaves_nothing(world: World) {
    let dangling = world.store.submit_item(after("b", &["a"]), Some("key".into())).await;
    assert_eq!(code(dangling), "MN-0105");
    assert_eq!(world.store.item("b").await.unwrap(), None);
    world.submit(own("a")).await;
    let again = world.store.submit_item(after("b", &["a"]), Some("key".into())).await;
    assert_eq!(again.unwrap(), "b", "the key of a refused submission is free");
    let cycle = planned("r-1", &[("a", &["b"], "a"), ("b", &["a"], "b")]);
    assert_eq!(code(world.store.submit_run(cycle, None).await), "MN-0104");
    assert_eq!(world.store.run("r-1").await.unwrap(), None);
    assert!(world.all_events().await.is_empty());
}

pub async fn dur_1_an_item_that_cannot_be_used_is_refused(world: World) {
    let bad = [
        mnemosyne_core::WorkItem { id: " ".into(), ..own("a") },
        mnemosyne_core::WorkItem { priority: 11, ..own("a") },
        mnemosyne_core::WorkItem { timeout_seconds: f64::NAN, ..own("a") },
        mnemosyne_core::WorkItem { timeout_seconds: 0.0, ..own("a") },
    ];
    for item in bad {
        assert_eq!(code(world.store.submit_item(item, None).await), "MN-0117");
    }
}

pub async fn dur_1_a_used_id_is_refused(world: World) {
    world.submit(own("a")).await;
    assert_eq!(code(world.store.submit_item(own("a"), None).await), "MN-0106");
    world.submit_run(prompted("r-1")).await;
    assert_eq!(code(world.store.submit_run(prompted("r-1"), None).await), "MN-0106");
}

pub async fn dur_1_the_same_key_gives_the_same_item_and_stores_nothing(world: World) {
    let first = world.store.submit_item(own("a"), Some("key".into())).await.unwrap();
    let second = world.store.submit_item(own("b"), Some("key".into())).await.unwrap();
    assert_eq!((first.as_str(), second.as_str()), ("a", "a"));
    assert_eq!(world.store.item("b").await.unwrap(), None);
    world.next().await.unwrap();
    assert_eq!(world.store.submit_item(own("c"), Some("key".into())).await.unwrap(), "a", "for ever");
    assert_eq!(world.store.submit_item(own("c"), Some("other".into())).await.unwrap(), "c");
}

pub async fn dur_1_the_same_key_gives_the_same_run_and_stores_nothing(world: World) {
    let first = world.store.submit_run(prompted("r-1"), Some("key".into())).await.unwrap();
    let second = world.store.submit_run(prompted("r-2"), Some("key".into())).await.unwrap();
    assert_eq!((first.as_str(), second.as_str()), ("r-1", "r-1"));
    assert_eq!(world.store.runs().await.unwrap().len(), 1);
    let item = world.store.submit_item(own("a"), Some("key".into())).await.unwrap();
    assert_eq!(item, "a", "keys of runs and of items are apart");
}

pub async fn dur_1_everything_is_there_for_the_next_boot(mut world: World) {
    world.submit_run(planned("r-1", &[("a", &[], "a")])).await;
    world.submit(own("x")).await;
    let (run, events) = (world.store.run("r-1").await.unwrap(), world.all_events().await);
    world.die();
    assert_eq!(world.store.run("r-1").await.unwrap(), run);
    assert_eq!(world.all_events().await, events);
    assert_eq!(world.next().await.as_deref(), Some("x"));
}

pub async fn dur_2_a_result_its_followers_and_its_events_are_there_together(world: World) {
    let run = world.submit_run(prompted("r-1")).await;
    let claimed = world.any().await.unwrap();
    let own_event = NewEvent { agent: Some("orchestrator-1".into()), ..NewEvent::new(EventKind::AgentCompleted) };
    let result = good(claimed.item.kind);
    let completion = Completion { events: vec![own_event], ..Completion::new(&claimed, result.clone()) };
    world.store.complete(completion).await.unwrap();
    let snapshot = world.store.item(&claimed.item.work.id).await.unwrap().unwrap();
    assert_eq!((snapshot.item.state, snapshot.result), (ItemState::Done, Some(result)));
    let after = world.store.run(&run).await.unwrap().unwrap();
    assert_eq!(after.phases[0].state, PhaseState::Done);
    assert_eq!(after.phases[0].artifact.as_deref(), Some("spec.json"));
    assert_eq!(after.run.phase, Phase::SpecToFullSpec);
    assert!(world.store.artifact(&run, "spec.json").await.unwrap().is_some());
    let kinds = world.kinds(&run).await;
    let expected =
        [EventKind::AgentCompleted, EventKind::WorkCompleted, EventKind::PhaseCompleted, EventKind::PhaseStarted];
    assert_eq!(kinds[kinds.len() - 4..], expected);
    assert_eq!(world.any().await.unwrap().item.work.id, "r-1.2", "the next item follows");
}

pub async fn dur_2_a_run_walks_to_its_end_and_its_last_event_says_so(world: World) {
    let run = world.submit_run(prompted("r-1")).await;
    assert_eq!(world.walk().await.len(), 3 + 2 * 4);
    let snapshot = world.store.run(&run).await.unwrap().unwrap();
    assert_eq!(snapshot.run.state, RunState::Done);
    assert_eq!(snapshot.run.ended_at, Some(super::BEGIN));
    assert!(snapshot.tasks.iter().all(|task| task.state == TaskState::Accepted));
    assert!(snapshot.phases.iter().all(|phase| phase.state == PhaseState::Done));
    assert_eq!(world.kinds(&run).await.last(), Some(&EventKind::RunCompleted));
    assert!(world.store.artifact(&run, "artifacts.json").await.unwrap().is_some());
}

pub async fn dur_2_item_numbers_rise_within_a_run(world: World) {
    world.submit_run(planned("r-1", &[("a", &[], "a"), ("b", &[], "b")])).await;
    let mut ids = Vec::new();
    while let Some(claimed) = world.any().await {
        ids.push(claimed.item.work.id.clone());
        world.complete(&claimed).await;
    }
    ids.sort_by_key(|id| id.len() * 100 + id.bytes().last().unwrap_or_default() as usize);
    assert_eq!(ids, (1..=8).map(|number| format!("r-1.{number}")).collect::<Vec<_>>());
}

pub async fn dur_2_an_honest_failure_is_a_result(world: World) {
    world.submit(own("a")).await;
    let claimed = world.any().await.unwrap();
    let result = WorkResult::failure("no such file");
    world.store.complete(Completion::new(&claimed, result.clone())).await.unwrap();
    let snapshot = world.store.item("a").await.unwrap().unwrap();
    assert_eq!((snapshot.item.state, snapshot.result), (ItemState::Failed, Some(result)));
    let last = world.all_events().await.pop().unwrap().event;
    assert_eq!(last.kind, EventKind::WorkFailed);
    assert_eq!(last.data["error"], "no such file");
}

pub async fn dur_2_a_refused_operation_leaves_no_event(world: World) {
    world.submit(own("a")).await;
    let claimed = world.any().await.unwrap();
    let before = world.all_events().await.len();
    let completion = Completion {
        epoch: claimed.item.epoch + 1,
        events: vec![NewEvent::new(EventKind::AgentCompleted)],
        ..Completion::new(&claimed, good(claimed.item.kind))
    };
    assert_eq!(code(world.store.complete(completion).await), "MN-0306");
    assert_eq!(world.all_events().await.len(), before);
}

pub async fn dur_3_events_have_no_gaps_under_64_submitters(world: World) {
    let submitters = (0..64).map(|number| {
        let store = std::sync::Arc::clone(&world.store);
        tokio::spawn(async move {
            for round in 0..4 {
                let id = format!("i-{number}-{round}");
                let key = (round % 2 == 0).then(|| id.clone());
                store.submit_item(own(&id), key).await.unwrap();
                // Refused neighbours in the same group leave no gap.
                let _ = store.submit_item(own(&id), None).await.unwrap_err();
                let claimed = store.claim(request(AgentRole::Executor, 1)).await.unwrap().unwrap();
                store.complete(Completion::new(&claimed, good(claimed.item.kind))).await.unwrap();
            }
        })
    });
    for submitter in submitters.collect::<Vec<_>>() {
        submitter.await.unwrap();
    }
    let events = world.all_events().await;
    let sequences: Vec<u64> = events.iter().map(|event| event.sequence).collect();
    assert_eq!(sequences, (1..=64 * 4 * 3).collect::<Vec<u64>>());
    let done = events.iter().filter(|event| event.event.kind == EventKind::WorkCompleted);
    let items: std::collections::BTreeSet<_> = done.map(|event| event.event.item.clone()).collect();
    assert_eq!(items.len(), 64 * 4);
}

pub async fn dur_3_the_watch_carries_the_last_sequence_after_the_commit(world: World) {
    let mut changed = world.store.changed();
    let last = world.store.append_events(vec![NewEvent::new(EventKind::AgentStarted); 3]).await.unwrap();
    assert_eq!(last, 3);
    // Waited for by value: a backend may tell of an earlier commit, such as the start of its boot, a moment late.
    changed.wait_for(|told| *told == last).await.unwrap();
    world.submit(own("a")).await;
    changed.changed().await.unwrap();
    assert_eq!(*changed.borrow_and_update(), 3, "an item without an event wakes too");
}

pub async fn dur_3_a_claim_that_finds_nothing_wakes_nobody(world: World) {
    world.submit(own("a")).await;
    // One more answer, so that the watch has surely been told of the item.
    world.store.append_events(vec![]).await.unwrap();
    let mut changed = world.store.changed();
    changed.mark_unchanged();
    assert!(world.claim(AgentRole::Reviewer).await.is_none());
    assert!(world.store.take_commands().await.unwrap().is_empty());
    world.store.submit_item(own("a"), None).await.unwrap_err();
    world.store.append_events(vec![]).await.unwrap();
    assert!(!changed.has_changed().unwrap());
}

pub async fn who_waits_for_an_item_is_told_of_its_end(world: World) {
    world.submit(own("a")).await;
    world.submit(after("b", &["a"])).await;
    let (mut first, mut second, twice) = (world.store.ended("a"), world.store.ended("b"), world.store.ended("a"));
    let claimed = world.any().await.unwrap();
    assert!(first.try_recv().is_err(), "it has only begun");
    world.complete(&claimed).await;
    first.await.unwrap();
    twice.await.unwrap();
    assert!(second.try_recv().is_err());
    world.store.cancel_item("b", "no").await.unwrap();
    second.await.unwrap();
}

pub async fn a_role_that_may_have_got_work_is_named(world: World) {
    let executor = AgentRole::Executor as usize;
    let mut ready = world.store.ready();
    let mut seen = ready.borrow_and_update()[executor];
    world.submit(own("a")).await;
    world.submit(after("b", &["a"])).await;
    for end in ["submitted", "released", "done"] {
        // More than one commit may have been told of at once.
        ready.changed().await.unwrap();
        let now = ready.borrow_and_update()[executor];
        assert!(now > seen, "{end}");
        let claimed = world.claim(AgentRole::Executor).await.unwrap();
        seen = ready.borrow_and_update()[executor];
        match end {
            "submitted" => {
                world.release(&claimed, crate::ReleaseReason::Error, 1).await;
            }
            "released" => world.complete(&claimed).await,
            _ => assert_eq!(claimed.item.work.id, "b"),
        }
    }
}

pub async fn dur_3_events_say_when_in_utc_with_milliseconds(world: World) {
    world.store.append_events(vec![NewEvent::new(EventKind::AgentStarted)]).await.unwrap();
    assert_eq!(world.all_events().await[0].at, "2026-11-22T10:11:12.345Z");
}

pub async fn dur_3_events_come_back_as_they_were_given(world: World) {
    let given = NewEvent {
        role: Some(AgentRole::Reviewer),
        agent: Some("reviewer-1".into()),
        generation: Some(7),
        ..NewEvent::new(EventKind::AgentRestarted)
    }
    .with("reason", "ünïcode \u{0} \"quoted\"");
    world.store.append_events(vec![given.clone()]).await.unwrap();
    assert_eq!(world.all_events().await[0].event, given);
}

pub async fn dur_3_events_are_read_from_a_sequence_in_portions(world: World) {
    world.store.append_events(vec![NewEvent::new(EventKind::AgentStarted); 10]).await.unwrap();
    let read = |since, limit| {
        let query = EventQuery { since, limit, ..EventQuery::default() };
        let store = &world.store;
        async move {
            let events = store.events(query).await.unwrap();
            events.iter().map(|event| event.sequence).collect::<Vec<_>>()
        }
    };
    assert_eq!(read(0, 3).await, [1, 2, 3]);
    assert_eq!(read(3, 2).await, [4, 5]);
    assert_eq!(read(8, 100).await, [9, 10]);
    assert_eq!(read(8, 0).await, [9, 10], "0 is no limit");
    assert!(read(10, 5).await.is_empty());
    assert!(read(u64::MAX, 5).await.is_empty());
}

pub async fn dur_3_events_of_a_run_are_its_own_and_those_of_its_boots(world: World) {
    let other = world.boot();
    other.append_events(vec![NewEvent::new(EventKind::RoleDegraded)]).await.unwrap();
    world.store.append_events(vec![NewEvent::new(EventKind::AgentStarted)]).await.unwrap();
    world.submit_run(planned("r-1", &[("a", &[], "a")])).await;
    other.submit_run(planned("r-2", &[("a", &[], "a")]), None).await.unwrap();
    assert_eq!(
        world.kinds("r-1").await,
        [EventKind::AgentStarted, EventKind::RunSubmitted, EventKind::PhaseStarted, EventKind::TaskReady]
    );
    assert_eq!(world.kinds("r-2").await[0], EventKind::RoleDegraded);
    let portion = EventQuery { run: Some("r-1".into()), since: 2, limit: 1, ..EventQuery::default() };
    let events = world.store.events(portion).await.unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].sequence, events[0].event.kind), (3, EventKind::RunSubmitted));
}

pub async fn dur_3_events_of_an_agent_are_those_of_this_boot(world: World) {
    let said = |agent: &str| NewEvent { agent: Some(agent.into()), ..NewEvent::new(EventKind::AgentStarted) };
    world.store.append_events(vec![said("a"), said("b"), said("a")]).await.unwrap();
    let other = world.boot();
    other.append_events(vec![said("a")]).await.unwrap();
    let query = EventQuery { agent: Some("a".into()), ..EventQuery::default() };
    assert_eq!(world.store.events(query.clone()).await.unwrap().len(), 2);
    assert_eq!(other.events(query).await.unwrap().len(), 1);
}
