//! Durable work: from the store through an agent and back.

use super::*;
use crate::host::Isolation;
use mnemosyne_core::{Problem, ProblemKind, TaskState};
use mnemosyne_store::{ClaimRequest, LEASE_MS, NewCommand};

fn problem(kind: ProblemKind) -> Problem {
    Problem::new(kind, "MN-0205", "nobody answers")
}

/// Ends every kind of item well.
fn good(work: &Assignment) -> Outcome {
    match work.claim()["kind"].as_str().unwrap() {
        "optimize" => ok_with(json!({"pack": ""})),
        "execute" => ok_with(json!({"base_commit": "b", "commit": "c", "summary": "wrote it"})),
        "review" => ok_with(json!({"passed": true, "feedback": ""})),
        "accept" => ok_with(json!({"accepted": true, "files": []})),
        _ => ok(),
    }
}

fn all_roles(instances: u32) -> Vec<RoleSpec> {
    AgentRole::ALL.iter().map(|role| RoleSpec::pool(*role, spec(), instances)).collect()
}

fn two_and_one() -> Plan {
    let task = |id: &str, depends_on: &[&str]| json!({"id": id, "title": id, "depends_on": depends_on, "file_scope": [id], "acceptance": [{"command": "test -f done"}]});
    plan(json!([task("a", &[]), task("b", &[]), task("c", &["a", "b"])]))
}

async fn until_run(world: &World, run: &str, state: RunState) {
    eventually(&format!("{run} is {state}"), async || world.store.run(run).await.unwrap().unwrap().run.state == state)
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_item_that_raises_five_times_is_done_once_by_generation_2_with_the_events_that_say_so() {
    let host = MemoryHost::new(|work| Act::Now(if work.generation == 1 { raised() } else { ok() }));
    let world = World::new(executors(1), host).await;
    world.submit("stubborn").await;
    world.until_item("stubborn", ItemState::Done).await;
    let told: Vec<String> = world
        .events()
        .await
        .into_iter()
        .map(|event| event.event)
        .filter_map(|event| match event.kind {
            EventKind::AgentErrorRecorded => Some(format!("error {}", event.data["count"])),
            EventKind::AgentHealthDegraded => Some(format!("degraded {}", event.data["count"])),
            EventKind::AgentRestarted => Some(format!("restarted {}", event.data["generation"])),
            EventKind::AgentStarted => Some(format!("started {}", event.generation.unwrap())),
            EventKind::AgentCompleted => Some("completed".to_owned()),
            EventKind::AgentRecovered => Some("recovered".to_owned()),
            EventKind::WorkCompleted => Some("done".to_owned()),
            _ => None,
        })
        .collect();
    let mut expected = vec!["started 1", "error 1", "error 2", "error 3", "degraded 3", "error 4", "error 5"];
    expected.extend(["restarted 2", "started 2"]);
    assert_eq!(told[..expected.len()], expected);
    let mut rest = told[expected.len()..].to_vec();
    rest.sort();
    assert_eq!(rest, ["completed", "done", "recovered"]);
    assert_eq!(world.count(EventKind::AgentFailed).await, 5);
    assert_eq!(world.store.item("stubborn").await.unwrap().unwrap().item.crashes, 1);
}

#[tokio::test(start_paused = true)]
async fn an_error_delays_its_item_and_not_the_others() {
    let host = MemoryHost::new(|work| {
        Act::Now(if work.claim()["item"]["id"] == "bad" && work.claim()["epoch"] == 1 { raised() } else { ok() })
    });
    let world = World::new(executors(1), host).await;
    world.store.submit_item(WorkItem { priority: 9, ..item("bad") }, None).await.unwrap();
    world.submit("good").await;
    world.until_item("bad", ItemState::Done).await;
    let order: Vec<String> = locked(&world.host.submissions)
        .iter()
        .map(|work| work.claim()["item"]["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(order, ["bad", "good", "bad"]);
}

#[tokio::test(start_paused = true)]
async fn a_poison_item_goes_to_the_dead_letters_and_the_agent_is_not_charged_further() {
    let host = MemoryHost::new(|work| Act::Now(if work.claim()["item"]["id"] == "poison" { raised() } else { ok() }));
    let world = World::new(executors(1), host).await;
    world.submit("poison").await;
    world.until_item("poison", ItemState::Dead).await;
    settle().await;
    let agent = world.agent();
    assert_eq!((agent.generation(), agent.health().restarts), (3, 2));
    assert_eq!(agent.health().error_count, 0);
    assert_eq!(world.count(EventKind::AgentErrorRecorded).await, 15);
    assert_eq!(world.count(EventKind::WorkDead).await, 1);
    world.submit("good").await;
    world.until_item("good", ItemState::Done).await;
    assert_eq!(agent.generation(), 3);
}

#[tokio::test(start_paused = true)]
async fn independent_tasks_overlap_and_dependent_ones_never_do() {
    let world = World::new(all_roles(4), MemoryHost::new(|work| Act::After(1_000, good(work)))).await;
    world.store.submit_run(run("r-1", two_and_one()), None).await.unwrap();
    until_run(&world, "r-1", RunState::Done).await;
    let mut open: Vec<String> = Vec::new();
    let mut overlap = false;
    for event in world.events().await.into_iter().map(|event| event.event) {
        let Some(task) = event.task.clone() else { continue };
        match event.kind {
            EventKind::WorkStarted => {
                assert!(task != "c" || open.is_empty(), "c ran beside {open:?}");
                assert!(!open.contains(&"c".to_owned()), "{task} ran beside c");
                overlap |= open.iter().any(|other| *other != task);
                open.push(task);
            }
            EventKind::WorkCompleted => open.retain(|other| *other != task),
            _ => {}
        }
    }
    assert!(overlap);
    let submissions = locked(&world.host.submissions);
    let accept = submissions.iter().rfind(|work| work.claim()["kind"] == "accept").unwrap();
    assert_eq!(accept.claim()["task"]["id"], "c");
    assert_eq!(accept.claim()["accepted"].as_array().unwrap().len(), 2);
    assert_eq!(accept.claim()["setup"], json!(["true"]));
    assert_eq!(accept.claim()["run"]["workspace"], "/nowhere/r-1");
    assert!(accept.claim()["run"].get("directory").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_cancels_the_work_and_counts_as_an_error_of_the_agent() {
    let host = MemoryHost::new(|work| if work.claim()["epoch"] == 1 { Act::Hang } else { Act::Now(ok()) });
    let world = World::new(executors(1), host).await;
    world.store.submit_item(WorkItem { timeout_seconds: 7.0, ..item("slow") }, None).await.unwrap();
    let began = Instant::now();
    eventually("the error", async || world.agent().health().error_count == 1).await;
    assert_eq!(began.elapsed().as_secs(), 7);
    world.until_item("slow", ItemState::Done).await;
    assert_eq!(world.agent().generation(), 1);
    let failed = world.of_kind(EventKind::AgentFailed).await.remove(0);
    assert!(failed.data["error"].as_str().unwrap().starts_with("WorkTimeout"));
    assert_eq!(world.store.item("slow").await.unwrap().unwrap().item.crashes, 0);
}

#[tokio::test(start_paused = true)]
async fn kill_1_work_that_does_not_stop_is_abandoned_after_the_grace_and_its_late_result_is_stale() {
    let host = MemoryHost::new(|work| if work.claim()["epoch"] == 1 { Act::Deaf } else { Act::Now(ok()) });
    let world = World::new(executors(1), host).await;
    world.store.submit_item(WorkItem { timeout_seconds: 7.0, ..item("deaf") }, None).await.unwrap();
    let began = Instant::now();
    eventually("generation 2", async || world.agent().generation() == 2).await;
    assert_eq!(began.elapsed().as_secs(), 12);
    world.until_item("deaf", ItemState::Done).await;
    assert_eq!(world.store.item("deaf").await.unwrap().unwrap().item.crashes, 1);
    let first = locked(&world.host.submissions)[0].key;
    world.host.finish(first, ok());
    world.until_events(EventKind::StaleResultDropped, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_result_within_the_grace_is_a_result() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Deaf)).await;
    world.store.submit_item(WorkItem { timeout_seconds: 7.0, ..item("late") }, None).await.unwrap();
    sleep(Duration::from_secs(9)).await;
    world.host.finish(world.host.last_key(), ok());
    world.until_item("late", ItemState::Done).await;
    assert_eq!((world.agent().generation(), world.agent().health().error_count), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn leases_are_renewed_while_work_runs() {
    let world = World::new(executors(2), MemoryHost::new(|_| Act::After(300_000, ok()))).await;
    world.submit("long").await;
    world.until_item("long", ItemState::Done).await;
    let item = world.store.item("long").await.unwrap().unwrap().item;
    assert_eq!((item.epoch, item.crashes), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn fence_1_work_whose_claim_was_taken_over_is_cancelled_and_its_result_is_stale() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Deaf)).await;
    world.submit("cancelled elsewhere").await;
    eventually("the work is there", async || world.host.busy() == 1).await;
    world.store.cancel_item("cancelled elsewhere", "not needed").await.unwrap();
    let cancelled = Instant::now();
    eventually("the renewal found it", async || !locked(&world.host.cancels).is_empty()).await;
    assert!(cancelled.elapsed() <= Duration::from_secs(11));
    world.host.finish(world.host.last_key(), ok());
    world.until_events(EventKind::StaleResultDropped, 1).await;
    assert_eq!(world.state_of("cancelled elsewhere").await, ItemState::Cancelled);
    eventually("idle", async || world.agent().health().state == AgentState::Idle).await;
}

#[tokio::test(start_paused = true)]
async fn a_result_that_comes_before_the_renewal_finds_the_claim_over_and_is_stale() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Deaf)).await;
    world.submit("cancelled elsewhere").await;
    eventually("the work is there", async || world.host.busy() == 1).await;
    world.store.cancel_item("cancelled elsewhere", "not needed").await.unwrap();
    world.host.finish(world.host.last_key(), ok());
    world.until_events(EventKind::StaleResultDropped, 1).await;
    assert_eq!(world.count(EventKind::AgentCompleted).await, 0);
}

#[tokio::test(start_paused = true)]
async fn cancelling_a_run_cancels_what_is_in_flight_and_charges_nobody() {
    let world = World::new(all_roles(2), MemoryHost::new(|_| Act::Hang)).await;
    world.store.submit_run(run("r-1", two_and_one()), None).await.unwrap();
    eventually("two items run", async || world.host.busy() == 2).await;
    let cancelled = Instant::now();
    world.tree.cancel_run("r-1", "requested").await.unwrap();
    eventually("nothing runs", async || world.host.busy() == 0).await;
    assert!(cancelled.elapsed() < Duration::from_millis(100), "only the lease found it");
    until_run(&world, "r-1", RunState::Cancelled).await;
    settle().await;
    assert!(world.tree.agents().iter().all(|agent| agent.health().error_count == 0 && agent.generation() == 1));
    assert!(world.tree.agents().iter().all(|agent| agent.health().state == AgentState::Idle));
    assert_eq!(world.count(EventKind::StaleResultDropped).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_command_of_another_process_is_obeyed_within_200_ms() {
    let world = World::new(all_roles(1), MemoryHost::new(|_| Act::Hang)).await;
    world.store.submit_run(run("r-1", two_and_one()), None).await.unwrap();
    eventually("an item runs", async || world.host.busy() == 1).await;
    let other = world.store.another_boot();
    let command = NewCommand { run: "r-1".into(), kind: "cancel".into(), reason: "requested".into() };
    other.post_command(command).await.unwrap();
    let posted = Instant::now();
    eventually("nothing runs", async || world.host.busy() == 0).await;
    assert!(posted.elapsed() <= Duration::from_millis(250), "{:?}", posted.elapsed());
    until_run(&world, "r-1", RunState::Cancelled).await;
}

#[tokio::test(start_paused = true)]
async fn pause_and_continue_commands_of_another_process_are_obeyed_and_what_runs_is_finished() {
    let host = MemoryHost::new(|work| Act::After(1_000, good(work)));
    let world = World::new(all_roles(1), host).await;
    world.store.submit_run(run("r-1", two_and_one()), None).await.unwrap();
    eventually("an item runs", async || world.host.busy() == 1).await;
    let other = world.store.another_boot();
    let tell = async |kind: &str| {
        let command = NewCommand { run: "r-1".into(), kind: kind.into(), reason: "requested".into() };
        other.post_command(command).await.unwrap();
    };
    tell("pause").await;
    until_run(&world, "r-1", RunState::Paused).await;
    eventually("what runs is finished", async || world.host.busy() == 0).await;
    let begun = world.host.submitted();
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert_eq!(world.host.submitted(), begun, "nothing more is begun");
    tell("something of a newer version").await;
    tell("continue").await;
    until_run(&world, "r-1", RunState::Done).await;
    assert!(world.host.submitted() > begun);
}

#[tokio::test(start_paused = true)]
async fn an_item_that_a_dead_process_held_is_done_at_once_and_not_when_its_lease_ends() {
    let world = World::new(all_roles(1), MemoryHost::new(|_| Act::Now(ok()))).await;
    let other = world.store.another_boot();
    let request = ClaimRequest { role: AgentRole::Executor, agent: "e".into(), generation: 1, lease_ms: LEASE_MS };
    let posted = item("held");
    // Claimed in the moment of its submission, before the tree can look.
    other.submit_item(posted, None).await.unwrap();
    if other.claim(request).await.unwrap().is_some() {
        other.kill_boot();
    }
    let died = Instant::now();
    world.until_item("held", ItemState::Done).await;
    assert!(died.elapsed() <= Duration::from_secs(1), "{:?}", died.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_missing_environment_interrupts_the_run_and_cancels_its_other_work() {
    let host = MemoryHost::new(|work| {
        if work.claim()["task"]["id"] == "a" {
            Act::After(1_000, Outcome::Environment(problem(ProblemKind::Environment)))
        } else {
            Act::Hang
        }
    });
    let world = World::new(all_roles(2), host).await;
    world.store.submit_run(run("r-1", two_and_one()), None).await.unwrap();
    until_run(&world, "r-1", RunState::Interrupted).await;
    let stopped = Instant::now();
    eventually("nothing runs", async || world.host.busy() == 0).await;
    assert!(stopped.elapsed() < Duration::from_millis(100), "only the lease found it");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(world.host.submitted(), 2);
    assert!(world.tree.agents().iter().all(|agent| agent.health().error_count == 0));
}

#[tokio::test(start_paused = true)]
async fn a_missing_environment_makes_a_run_less_item_wait() {
    let host = MemoryHost::new(|work| {
        Act::Now(match work.claim()["epoch"].as_u64() {
            Some(1) => Outcome::Environment(problem(ProblemKind::Environment)),
            _ => ok(),
        })
    });
    let world = World::new(executors(1), host).await;
    world.submit("own").await;
    let began = Instant::now();
    world.until_item("own", ItemState::Done).await;
    assert_eq!(began.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn budget_1_a_used_up_budget_stops_the_run() {
    let host = MemoryHost::new(|_| Act::Now(Outcome::Budget(problem(ProblemKind::Budget))));
    let world = World::new(all_roles(1), host).await;
    world.store.submit_run(run("r-1", two_and_one()), None).await.unwrap();
    until_run(&world, "r-1", RunState::Budget).await;
}

#[tokio::test(start_paused = true)]
async fn budget_1_a_run_whose_time_is_up_is_stopped_with_what_is_in_flight() {
    let world = World::new(all_roles(1), MemoryHost::new(|_| Act::Hang)).await;
    let limits = Limits { seconds: Some(100.0), ..Limits::default() };
    let timed = Run { budget: Budget::of_run(limits), ..run("r-1", two_and_one()) };
    world.store.submit_run(timed, None).await.unwrap();
    let began = Instant::now();
    until_run(&world, "r-1", RunState::Budget).await;
    assert_eq!(began.elapsed().as_secs(), 100);
    eventually("what is in flight is cancelled", async || world.host.busy() == 0).await;
    assert_eq!(world.count(EventKind::BudgetWarning).await, 2);
    let stopped = world.of_kind(EventKind::BudgetExceeded).await;
    assert_eq!((stopped.len(), &stopped[0].data["kind"]), (1, &json!("seconds")));
}

#[tokio::test(start_paused = true)]
async fn what_can_never_be_done_is_given_up() {
    let host = MemoryHost::new(|_| Act::Now(Outcome::Invalid(problem(ProblemKind::InvalidInput))));
    let world = World::new(executors(1), host).await;
    world.submit("impossible").await;
    world.until_item("impossible", ItemState::Failed).await;
    assert_eq!(world.agent().health().error_count, 0);
}

#[tokio::test(start_paused = true)]
async fn failures_of_the_model_never_charge_the_agent_and_the_fifth_is_the_attempt_s() {
    let model = |fatal| Outcome::Model { problem: problem(ProblemKind::Model), fatal, retry_after: None, class: None };
    let world = World::new(executors(1), MemoryHost::new(move |_| Act::Now(model(false)))).await;
    world.submit("unlucky").await;
    let began = Instant::now();
    world.until_item("unlucky", ItemState::Failed).await;
    assert_eq!(world.host.submitted(), 5);
    assert_eq!(began.elapsed().as_secs(), 1 + 2 + 4 + 8);
    assert_eq!((world.agent().health().error_count, world.agent().generation()), (0, 1));
    let world = World::new(executors(1), MemoryHost::new(move |_| Act::Now(model(true)))).await;
    world.submit("refused").await;
    world.until_item("refused", ItemState::Failed).await;
    assert_eq!(world.host.submitted(), 1);
    let result = world.store.item("refused").await.unwrap().unwrap().result.unwrap();
    assert_eq!(result.error.as_deref(), Some("nobody answers"));
}

#[tokio::test(start_paused = true)]
async fn what_the_server_asked_for_is_how_long_the_item_waits() {
    let host = MemoryHost::new(|work| {
        Act::Now(match work.claim()["epoch"].as_u64() {
            Some(1) => Outcome::Model {
                problem: problem(ProblemKind::Model),
                fatal: false,
                retry_after: Some(17.0),
                class: None,
            },
            _ => ok(),
        })
    });
    let world = World::new(executors(1), host).await;
    world.submit("limited").await;
    let began = Instant::now();
    world.until_item("limited", ItemState::Done).await;
    assert_eq!(began.elapsed().as_secs(), 17);
}

fn overloaded(seconds: f64) -> Outcome {
    Outcome::Parked { problem: problem(ProblemKind::Model), class: "overloaded".to_owned(), seconds }
}

#[tokio::test(start_paused = true)]
async fn parked_work_waits_for_its_time_charges_nobody_and_never_becomes_a_failure() {
    // Seven times: more often than model failures in a row would be forgiven.
    let host = MemoryHost::new(|work| {
        Act::Now(if work.claim()["epoch"].as_u64() < Some(8) { overloaded(60.0) } else { ok() })
    });
    let world = World::new(executors(1), host).await;
    world.submit("patient").await;
    world.submit("other").await;
    let began = Instant::now();
    world.until_item("patient", ItemState::Waiting).await;
    world.until_item("patient", ItemState::Done).await;
    world.until_item("other", ItemState::Done).await;
    assert!((7 * 60..8 * 60).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    let snapshot = world.store.item("patient").await.unwrap().unwrap();
    assert_eq!((snapshot.item.crashes, snapshot.item.model_failures, snapshot.item.work.attempt), (0, 0, 1));
    assert_eq!((world.agent().health().error_count, world.agent().generation()), (0, 1));
    assert_eq!(world.count(EventKind::AgentFailed).await + world.count(EventKind::WorkFailed).await, 0);
    let parked = world.of_kind(EventKind::WorkParked).await;
    assert_eq!(parked.len(), 14, "seven of each item");
    assert_eq!((&parked[0].data["class"], &parked[0].data["reason"]), (&json!("overloaded"), &json!("nobody answers")));
}

#[tokio::test(start_paused = true)]
async fn parked_work_holds_no_agent() {
    let host = MemoryHost::new(|work| {
        Act::Now(if work.claim()["item"]["id"] == "limited" { overloaded(3_600.0) } else { ok() })
    });
    let world = World::new(executors(1), host).await;
    world.store.submit_item(WorkItem { priority: 9, ..item("limited") }, None).await.unwrap();
    world.until_item("limited", ItemState::Waiting).await;
    let began = Instant::now();
    for number in 0..20 {
        world.submit(&format!("item-{number}")).await;
        world.until_item(&format!("item-{number}"), ItemState::Done).await;
    }
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!(world.state_of("limited").await, ItemState::Waiting);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_names_next_year_is_asked_again_in_an_hour() {
    let host =
        MemoryHost::new(|work| Act::Now(if work.claim()["epoch"] == 1 { overloaded(f64::INFINITY) } else { ok() }));
    let world = World::new(executors(1), host).await;
    world.submit("limited").await;
    world.until_item("limited", ItemState::Waiting).await;
    sleep(Duration::from_secs(3_590)).await;
    assert_eq!(world.state_of("limited").await, ItemState::Waiting);
    world.until_item("limited", ItemState::Done).await;
}

#[tokio::test(start_paused = true)]
async fn a_run_waits_while_all_it_has_is_parked_and_goes_on_by_itself() {
    let host = MemoryHost::new(|work| {
        let parks = work.claim()["kind"] == "execute" && work.claim()["epoch"] == 1;
        Act::Now(if parks { overloaded(600.0) } else { good(work) })
    });
    let world = World::new(all_roles(2), host).await;
    world.store.submit_run(run("r-1", two_and_one()), None).await.unwrap();
    until_run(&world, "r-1", RunState::Waiting).await;
    let parked = world.store.run("r-1").await.unwrap().unwrap().parked;
    assert_eq!(parked.iter().map(|parked| parked.task.as_deref().unwrap()).collect::<Vec<_>>(), ["a", "b"]);
    let told = world.of_kind(EventKind::WorkParked).await;
    assert_eq!(told.iter().map(|event| event.data["run_waits"] == true).collect::<Vec<_>>(), [false, true]);
    sleep(Duration::from_secs(590)).await;
    assert_eq!(world.store.run("r-1").await.unwrap().unwrap().run.state, RunState::Waiting);
    until_run(&world, "r-1", RunState::Running).await;
    until_run(&world, "r-1", RunState::Waiting).await; // c is parked in its turn
    sleep(Duration::from_secs(600)).await;
    until_run(&world, "r-1", RunState::Done).await;
    let tasks = world.store.run("r-1").await.unwrap().unwrap().tasks;
    assert!(tasks.iter().all(|task| task.attempt == 1));
}

#[tokio::test(start_paused = true)]
async fn parked_direct_work_is_told_to_its_caller_and_charges_nobody() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Now(overloaded(300.0)))).await;
    let refused = world.agent().send_work(item("direct"), None).await;
    assert!(
        matches!(refused, Err(crate::WorkError::Problem { ref problem, .. }) if problem.kind == ProblemKind::Model)
    );
    assert_eq!(world.agent().health().error_count, 0);
}

#[tokio::test(start_paused = true)]
async fn work_that_its_host_lost_goes_back_without_a_charge() {
    let host = MemoryHost::new(|work| if work.claim()["epoch"] == 1 { Act::Lose } else { Act::Now(ok()) });
    let world = World::new(executors(1), host).await;
    world.submit("lost").await;
    world.until_item("lost", ItemState::Done).await;
    assert_eq!(world.store.item("lost").await.unwrap().unwrap().item.crashes, 0);
    assert_eq!((world.agent().generation(), world.agent().health().error_count), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn tasks_that_were_accepted_stay_accepted_in_the_picture() {
    let world = World::new(all_roles(1), MemoryHost::new(|work| Act::Now(good(work)))).await;
    world.store.submit_run(run("r-1", two_and_one()), None).await.unwrap();
    until_run(&world, "r-1", RunState::Done).await;
    let snapshot = world.store.run("r-1").await.unwrap().unwrap();
    assert!(snapshot.tasks.iter().all(|task| task.state == TaskState::Accepted));
    assert_eq!(world.host.submitted(), 12);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_items_are_each_done_once_by_eight_agents() {
    let world = World::new(executors(8), MemoryHost::new(|_| Act::After(10, ok()))).await;
    for number in 0..100 {
        world.submit(&format!("item-{number}")).await;
    }
    let began = Instant::now();
    for number in 0..100 {
        world.until_item(&format!("item-{number}"), ItemState::Done).await;
    }
    assert_eq!(world.host.submitted(), 100);
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_idle_agent_begins_what_is_submitted_at_once_and_not_with_the_next_tick() {
    let world = World::new(executors(1), MemoryHost::new(|_| Act::Now(ok()))).await;
    for number in 0..5_usize {
        sleep(Duration::from_millis(70)).await;
        world.submit(&format!("item-{number}")).await;
        let submitted = Instant::now();
        eventually("it is begun", async || world.host.submitted() == number + 1).await;
        assert!(submitted.elapsed() <= Duration::from_millis(10), "{:?}", submitted.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn kill_1_an_item_that_is_cancelled_through_the_tree_stops_its_work_at_once() {
    let world = World::new(executors(2), MemoryHost::new(|_| Act::Hang)).await;
    world.submit("wanted").await;
    world.submit("cancelled").await;
    eventually("both run", async || world.host.busy() == 2).await;
    world.tree.cancel_item("cancelled", "not needed").await.unwrap();
    settle().await;
    assert_eq!(*locked(&world.host.cancels), ["not needed"]);
    assert_eq!(world.state_of("cancelled").await, ItemState::Cancelled);
    assert_eq!(world.state_of("wanted").await, ItemState::Running);
    world.tree.cancel_item("cancelled", "again").await.unwrap();
    assert!(world.tree.cancel_item("unknown", "no").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn kill_1_a_run_that_is_stopped_stops_its_work_at_once() {
    let task = json!({"id": "a", "title": "a", "acceptance": [{"command": "test -f done"}]});
    let roles = vec![RoleSpec::pool(AgentRole::Optimizer, spec(), 1)];
    let world = World::new(roles, MemoryHost::new(|_| Act::Hang)).await;
    world.store.submit_run(run("r-1", plan(json!([task]))), None).await.unwrap();
    eventually("it runs", async || world.host.busy() == 1).await;
    let why = mnemosyne_core::Problem::new(mnemosyne_core::ProblemKind::Closed, "MN-0702", "interrupted");
    world.tree.stop_run("r-1", RunState::Interrupted, why).await.unwrap();
    settle().await;
    assert_eq!(*locked(&world.host.cancels), ["interrupted"]);
    assert_eq!(world.agent().health().state, AgentState::Idle);
}

#[tokio::test(start_paused = true)]
async fn trees_that_share_a_host_keep_their_work_apart() {
    let host = MemoryHost::new(|work| {
        let id = work.claim()["item"]["id"].clone();
        Act::After(100, ok_with(json!({"id": id})))
    });
    let (one, two) = (World::new(executors(1), host.clone()).await, World::new(executors(1), host).await);
    one.submit("of one").await;
    two.submit("of two").await;
    for (world, id) in [(one, "of one"), (two, "of two")] {
        world.until_item(id, ItemState::Done).await;
        let snapshot = world.store.item(id).await.unwrap().unwrap();
        assert_eq!((snapshot.item.epoch, &snapshot.result.unwrap().data["id"]), (1, &json!(id)));
    }
}

#[tokio::test(start_paused = true)]
async fn fence_1_a_claim_that_is_over_does_not_stop_its_run() {
    let task = json!({"id": "a", "title": "a", "acceptance": [{"command": "test -f done"}]});
    let roles = vec![RoleSpec::pool(AgentRole::Optimizer, spec(), 2)];
    let world = World::new(roles, MemoryHost::new(|_| Act::Deaf)).await;
    world.store.submit_run(run("r-1", plan(json!([task]))), None).await.unwrap();
    eventually("it runs", async || world.host.busy() == 1).await;
    let stale = world.host.last_key();
    let why = mnemosyne_core::Problem::new(mnemosyne_core::ProblemKind::Environment, "MN-0201", "the key was refused");
    world.store.stop_run("r-1", RunState::Interrupted, why.clone()).await.unwrap();
    world.store.adopt_run("r-1", None).await.unwrap();
    eventually("another claim runs", async || world.host.busy() == 2).await;
    world.host.finish(stale, Outcome::Environment(why));
    settle().await;
    assert_eq!(world.store.run("r-1").await.unwrap().unwrap().run.state, RunState::Running);
    assert_eq!(world.host.busy(), 1);
}

/// What the host says when a process ends.
fn crashed() -> Outcome {
    Outcome::Crashed(HostError::new("WorkerCrashed", "its process ended with exit code 1", false))
}

fn in_processes(instances: u32) -> Vec<RoleSpec> {
    let spec = AgentSpec { isolation: Isolation::Process, ..spec() };
    executors(instances).into_iter().map(|role| RoleSpec { spec: spec.clone(), ..role }).collect()
}

#[tokio::test(start_paused = true)]
async fn kill_1_work_in_a_process_is_left_behind_half_a_second_after_its_deadline() {
    let host = MemoryHost::new(|work| if work.claim()["epoch"] == 1 { Act::Deaf } else { Act::Now(ok()) });
    let world = World::new(in_processes(1), host).await;
    world.store.submit_item(WorkItem { timeout_seconds: 7.0, ..item("deaf") }, None).await.unwrap();
    let began = Instant::now();
    world.until_item("deaf", ItemState::Done).await;
    assert!(began.elapsed() < Duration::from_secs(8), "within a second of its deadline: {:?}", began.elapsed());
    let done = world.store.item("deaf").await.unwrap().unwrap().item;
    assert_eq!((done.crashes, done.work.attempt, world.agent().generation()), (1, 1, 2));
}

#[tokio::test(start_paused = true)]
async fn the_death_of_a_process_costs_what_it_held_one_crash_and_its_agent_a_restart() {
    let host = MemoryHost::new(|work| Act::Now(if work.claim()["epoch"] == 1 { crashed() } else { ok() }));
    let world = World::new(in_processes(1), host).await;
    world.submit("held").await;
    world.until_item("held", ItemState::Done).await;
    let done = world.store.item("held").await.unwrap().unwrap().item;
    assert_eq!((done.crashes, done.work.attempt, done.epoch), (1, 1, 2));
    let [restarted] = &world.of_kind(EventKind::AgentRestarted).await[..] else { panic!("one restart") };
    assert_eq!(restarted.data["reason"], "WorkerCrashed: its process ended with exit code 1");
    assert_eq!(world.agent().health().error_count, 0, "a death is a restart, and no error of the window too");
    assert_eq!(world.count(EventKind::StaleResultDropped).await, 0);
}

#[tokio::test(start_paused = true)]
async fn an_item_that_ends_every_process_goes_to_the_dead_letters_and_the_agent_goes_on() {
    let host = MemoryHost::new(|work| Act::Now(if work.claim()["item"]["id"] == "poison" { crashed() } else { ok() }));
    let world = World::new(in_processes(1), host).await;
    world.submit("poison").await;
    world.until_item("poison", ItemState::Dead).await;
    assert_eq!(world.store.item("poison").await.unwrap().unwrap().item.crashes, 3);
    world.submit("harmless").await;
    world.until_item("harmless", ItemState::Done).await;
    assert_eq!(world.agent().generation(), 4);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_was_left_behind_twice_begins_its_next_generation_in_a_process() {
    let host = MemoryHost::new(|work| if work.generation <= 2 { Act::Deaf } else { Act::Now(ok()) });
    let world = World::new(executors(1), host).await;
    world.store.submit_item(WorkItem { timeout_seconds: 7.0, ..item("deaf") }, None).await.unwrap();
    world.until_item("deaf", ItemState::Done).await;
    let isolations: Vec<Isolation> = locked(&world.host.starts).iter().map(|(_, start)| start.spec.isolation).collect();
    assert_eq!(isolations, [Isolation::Thread, Isolation::Thread, Isolation::Process]);
    let reasons = world.of_kind(EventKind::AgentRestarted).await;
    assert!(reasons[1].data["reason"].as_str().unwrap().ends_with("it goes on in a process of its own"));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_no_other_process_could_make_stays_where_it_is() {
    let spec = AgentSpec { importable: false, ..spec() };
    let roles = vec![RoleSpec { spec, ..executors(1).remove(0) }];
    let host = MemoryHost::new(|work| if work.generation <= 2 { Act::Deaf } else { Act::Now(ok()) });
    let world = World::new(roles, host).await;
    world.store.submit_item(WorkItem { timeout_seconds: 7.0, ..item("deaf") }, None).await.unwrap();
    world.until_item("deaf", ItemState::Done).await;
    assert!(locked(&world.host.starts).iter().all(|(_, start)| start.spec.isolation == Isolation::Thread));
}
