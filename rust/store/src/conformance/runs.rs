//! Runs that are adopted, stopped, cancelled.

use super::{World, code, planned, prompted, request, step};
use crate::LEASE_MS;
use crate::types::{Completion, EventQuery, StepState};
use mnemosyne_core::error::codes;
use mnemosyne_core::{
    AgentRole, Budget, EventKind, ItemKind, ItemState, Limits, NewEvent, Phase, PhaseState, Problem, ProblemKind, Run,
    RunState, TaskState, WorkResult,
};
use serde_json::json;

fn interrupted() -> Problem {
    Problem::new(ProblemKind::Closed, codes::CLOSED, "interrupted").because("Ctrl-C").hint("mnemosyne resume")
}

pub async fn a_run_goes_on_in_another_boot_after_death(mut world: World) {
    let run = world.submit_run(prompted("r-1")).await;
    let held = world.any().await.unwrap();
    world.start_step(&held, "turn 1").await;
    world.die();
    assert!(world.any().await.is_none(), "not before it is adopted");
    let snapshot = world.store.adopt_run(&run, None).await.unwrap();
    assert_eq!((snapshot.run.resumes, snapshot.run.state), (1, RunState::Running));
    assert_eq!(snapshot.run.boot.as_deref(), Some(world.store.boot()));
    let again = world.any().await.unwrap();
    assert_eq!((again.item.work.id, again.item.epoch), (held.item.work.id, 2));
    let steps = world.store.journal("r-1.1", 1).await.unwrap();
    assert_eq!(steps[0].state, StepState::Unknown);
}

pub async fn run_resumed_is_the_first_event_of_an_adoption(mut world: World) {
    let run = world.submit_run(prompted("r-1")).await;
    for _ in 0..3 {
        world.any().await.unwrap();
        let before = world.die();
        let last = world.store.events(EventQuery::default()).await.unwrap().len() as u64;
        world.store.adopt_run(&run, None).await.unwrap();
        let query = EventQuery { since: last, ..EventQuery::default() };
        let first = world.store.events(query).await.unwrap().remove(0).event;
        assert_eq!((first.kind, first.run.as_deref()), (EventKind::RunResumed, Some("r-1")), "after {before}");
    }
    assert_eq!(world.state("r-1.1").await, ItemState::Ready);
    assert_eq!(world.store.run(&run).await.unwrap().unwrap().run.state, RunState::Running);
}

pub async fn a_run_killed_any_number_of_times_is_resumed_and_nobody_is_charged(mut world: World) {
    let run = world.submit_run(prompted("r-1")).await;
    for death in 1..=5 {
        let held = world.any().await.unwrap();
        assert_eq!(held.item.crashes, 0, "death {death}");
        world.die();
        world.store.adopt_run(&run, None).await.unwrap();
    }
    assert_eq!(world.any().await.unwrap().item.crashes, 0);
}

pub async fn a_run_whose_boot_lives_is_not_adopted(world: World) {
    let run = world.submit_run(prompted("r-1")).await;
    let other = world.boot();
    let problem = other.adopt_run(&run, None).await.unwrap_err();
    assert_eq!(problem.code, "MN-0112");
    assert!(problem.message.contains(&std::process::id().to_string()), "{problem}");
    assert_eq!(code(world.store.adopt_run(&run, None).await), "MN-0112", "nor by the boot that drives it");
    assert_eq!(world.store.run(&run).await.unwrap().unwrap().run.resumes, 0);
}

pub async fn a_run_that_ended_is_not_adopted(world: World) {
    let run = world.submit_run(prompted("r-1")).await;
    world.store.cancel_run(&run, "no").await.unwrap();
    assert_eq!(code(world.store.adopt_run(&run, None).await), "MN-0116");
    assert_eq!(code(world.store.adopt_run("r-2", None).await), "MN-0110");
}

pub async fn an_adopted_run_gets_the_budget_that_is_given(mut world: World) {
    let budget = Budget::of_run(Limits { usd: Some(1.0), tokens: Some(100), ..Limits::default() });
    let run = world.submit_run(Run { budget, ..prompted("r-1") }).await;
    world.die();
    let more = Budget::of_run(Limits { tokens: Some(200), ..Limits::default() });
    let snapshot = world.store.adopt_run(&run, Some(more)).await.unwrap();
    assert_eq!(snapshot.run.budget.run, Limits { tokens: Some(200), ..budget.run });
}

pub async fn an_adopted_run_shows_the_events_of_both_boots(mut world: World) {
    world.store.append_events(vec![NewEvent::new(EventKind::AgentStarted)]).await.unwrap();
    let run = world.submit_run(prompted("r-1")).await;
    world.die();
    world.store.adopt_run(&run, None).await.unwrap();
    world.store.append_events(vec![NewEvent::new(EventKind::AgentRestarted)]).await.unwrap();
    let kinds = world.kinds(&run).await;
    assert_eq!((kinds[0], kinds[kinds.len() - 1]), (EventKind::AgentStarted, EventKind::AgentRestarted));
    assert_eq!(world.store.run(&run).await.unwrap().unwrap().restarts, 1);
}

pub async fn a_stopped_run_gives_nothing_out_and_can_be_resumed(world: World) {
    let run = world.submit_run(prompted("r-1")).await;
    world.any().await.unwrap();
    world.store.stop_run(&run, RunState::Interrupted, interrupted()).await.unwrap();
    let snapshot = world.store.run(&run).await.unwrap().unwrap();
    assert_eq!(snapshot.run.state, RunState::Interrupted);
    let error = json!({"code": "MN-0305", "message": "interrupted", "reason": "Ctrl-C", "hint": "mnemosyne resume"});
    assert_eq!(snapshot.run.error, Some(error));
    assert_eq!(world.kinds(&run).await.last(), Some(&EventKind::RunInterrupted));
    assert!(world.any().await.is_none());
    let snapshot = world.store.adopt_run(&run, None).await.unwrap();
    assert_eq!((snapshot.run.state, snapshot.run.error), (RunState::Running, None));
    let again = world.any().await.unwrap();
    assert_eq!((again.item.epoch, again.item.crashes), (2, 0), "nobody is charged for a stop");
}

pub async fn a_stopped_run_may_go_on_in_another_boot_at_once(world: World) {
    let run = world.submit_run(prompted("r-1")).await;
    world.store.stop_run(&run, RunState::Interrupted, interrupted()).await.unwrap();
    let other = world.boot();
    assert_eq!(other.adopt_run(&run, None).await.unwrap().run.resumes, 1);
    assert!(world.any().await.is_none());
}

pub async fn a_run_that_another_boot_took_over_is_not_stopped_by_the_boot_before(world: World) {
    let run = world.submit_run(prompted("r-1")).await;
    world.store.stop_run(&run, RunState::Interrupted, interrupted()).await.unwrap();
    let other = world.boot();
    other.adopt_run(&run, None).await.unwrap();
    world.store.stop_run(&run, RunState::Interrupted, interrupted()).await.unwrap();
    assert_eq!(other.run(&run).await.unwrap().unwrap().run.state, RunState::Running);
}

pub async fn the_first_reason_to_stop_is_kept(world: World) {
    let run = world.submit_run(prompted("r-1")).await;
    let budget = Problem::new(ProblemKind::Budget, codes::BUDGET, "the budget is used up");
    world.store.stop_run(&run, RunState::Budget, budget).await.unwrap();
    world.store.stop_run(&run, RunState::Interrupted, interrupted()).await.unwrap();
    let snapshot = world.store.run(&run).await.unwrap().unwrap();
    assert_eq!(snapshot.run.state, RunState::Budget);
    assert_eq!(world.kinds(&run).await.last(), Some(&EventKind::BudgetExceeded));
    assert_eq!(code(world.store.stop_run(&run, RunState::Done, interrupted()).await), "MN-0117");
    assert_eq!(code(world.store.stop_run("r-2", RunState::Interrupted, interrupted()).await), "MN-0110");
}

pub async fn a_cancelled_run_cancels_its_items_and_tasks(world: World) {
    let run = world.submit_run(planned("r-1", &[("a", &[], "a"), ("b", &[], "b"), ("c", &["a"], "c")])).await;
    let held = world.any().await.unwrap();
    world.store.cancel_run(&run, "not needed").await.unwrap();
    let snapshot = world.store.run(&run).await.unwrap().unwrap();
    assert_eq!(snapshot.run.state, RunState::Cancelled);
    assert_eq!(snapshot.run.ended_at, Some(super::BEGIN));
    assert!(snapshot.tasks.iter().all(|task| task.state == TaskState::Cancelled));
    let running = snapshot.phases.iter().filter(|phase| phase.state == PhaseState::Running);
    assert_eq!(running.count(), 0);
    for item in ["r-1.1", "r-1.2"] {
        assert_eq!(world.state(item).await, ItemState::Cancelled);
    }
    let kinds = world.kinds(&run).await;
    let cancelled = kinds.iter().filter(|kind| **kind == EventKind::WorkCancelled);
    assert_eq!((cancelled.count(), kinds.last()), (2, Some(&EventKind::RunCancelled)));
    assert_eq!(held.item.work.id, "r-1.1");
    let events = world.all_events().await.len();
    world.store.cancel_run(&run, "again").await.unwrap();
    world.store.stop_run(&run, RunState::Interrupted, interrupted()).await.unwrap();
    assert_eq!(world.all_events().await.len(), events, "a run that ended is left alone");
    assert_eq!(code(world.store.cancel_run("r-2", "no").await), "MN-0110");
}

pub async fn an_interrupted_run_can_be_cancelled_from_anywhere(mut world: World) {
    let run = world.submit_run(prompted("r-1")).await;
    world.any().await.unwrap();
    world.die();
    world.store.cancel_run(&run, "gone").await.unwrap();
    assert_eq!(world.store.run(&run).await.unwrap().unwrap().run.state, RunState::Cancelled);
    assert_eq!(world.state("r-1.1").await, ItemState::Cancelled);
}

pub async fn a_workspace_has_one_live_run(mut world: World) {
    let at_w = |id: &str| Run { workspace: "/w".into(), ..prompted(id) };
    world.submit_run(at_w("r-1")).await;
    let problem = world.store.submit_run(at_w("r-2"), None).await.unwrap_err();
    assert_eq!(problem.code, "MN-0113");
    assert!(problem.message.contains("r-1"), "{problem}");
    let other = world.boot();
    assert_eq!(code(other.submit_run(at_w("r-2"), None).await), "MN-0113");
    drop(other);
    world.die();
    world.submit_run(at_w("r-2")).await;
    assert_eq!(code(world.store.adopt_run("r-1", None).await), "MN-0113");
    world.store.cancel_run("r-2", "no").await.unwrap();
    assert_eq!(world.store.adopt_run("r-1", None).await.unwrap().run.resumes, 1);
}

pub async fn an_expired_lease_of_an_own_run_is_given_out_again(world: World) {
    world.submit_run(prompted("r-1")).await;
    world.any().await.unwrap();
    world.pass(LEASE_MS);
    let again = world.store.claim(request(AgentRole::Orchestrator, 2)).await.unwrap().unwrap();
    assert_eq!((again.item.epoch, again.item.crashes), (2, 1));
    assert_eq!(world.store.start_step(step(&again, "x")).await.unwrap(), 1);
}

/// Rejects a task, named by its place in the plan, until its attempts are used up; does everything else.
async fn fail(world: &World, task: &str) {
    while let Some(claimed) = world.any().await {
        if claimed.task.as_ref().map(|task| task.spec.id.as_str()) == Some(task)
            && claimed.item.kind == ItemKind::Review
        {
            let no = json!({"passed": false, "feedback": format!("no {}", claimed.item.work.attempt)});
            let result = WorkResult::success(no.as_object().cloned().unwrap());
            let result = WorkResult { evidence: vec![json!({"exit_code": 1})], ..result };
            world.store.complete(Completion::new(&claimed, result)).await.unwrap();
        } else {
            world.complete(&claimed).await;
        }
    }
}

async fn states(world: &World, run: &str) -> Vec<TaskState> {
    let snapshot = world.store.run(run).await.unwrap().unwrap();
    snapshot.tasks.iter().map(|task| task.state).collect()
}

pub async fn every_attempt_is_kept_with_all_that_was_seen_and_said(world: World) {
    let run = world.submit_run(planned("r-1", &[("a", &[], "a")])).await;
    fail(&world, "a").await;
    let attempts = world.store.attempts(&run, "a").await.unwrap();
    let numbers: Vec<u32> = attempts.iter().map(|attempt| attempt.attempt).collect();
    assert_eq!(numbers, [1, 2, 3]);
    for attempt in &attempts {
        assert_eq!((attempt.verdict.as_str(), attempt.commit.as_deref()), ("rejected", Some("c1")));
        assert_eq!(attempt.feedback, Some(format!("no {}", attempt.attempt)));
        assert_eq!(attempt.evidence, [json!({"exit_code": 1})]);
        assert_eq!(attempt.review.as_ref().unwrap()["passed"], false);
    }
    assert!(world.store.attempts(&run, "b").await.unwrap().is_empty());
    assert!(world.store.attempts("r-2", "a").await.unwrap().is_empty());
}

pub async fn a_failed_task_gets_new_attempts_and_what_was_skipped_waits_again(world: World) {
    let plan = [("a", &[] as &[&str], "a"), ("b", &["a"], "b"), ("c", &["b"], "c"), ("d", &[], "d")];
    let run = world.submit_run(planned("r-1", &plan)).await;
    fail(&world, "a").await;
    assert_eq!(
        states(&world, &run).await,
        [TaskState::Failed, TaskState::Skipped, TaskState::Skipped, TaskState::Accepted]
    );
    let last = world.all_events().await.len() as u64;
    let snapshot = world.store.retry_task(&run, "a", Some("use the other file".into()), None).await.unwrap();
    assert_eq!((snapshot.run.state, snapshot.run.ended_at, snapshot.run.error), (RunState::Running, None, None));
    let phase = snapshot.phases.iter().find(|phase| phase.name == Phase::PlanToArtifacts).unwrap();
    assert_eq!((phase.state, phase.ended_at), (PhaseState::Running, None));
    assert_eq!(
        states(&world, &run).await,
        [TaskState::Ready, TaskState::Blocked, TaskState::Blocked, TaskState::Accepted]
    );
    let query = EventQuery { since: last, ..EventQuery::default() };
    let events = world.store.events(query).await.unwrap();
    let kinds: Vec<EventKind> = events.iter().map(|event| event.event.kind).collect();
    assert_eq!(kinds, [EventKind::RunResumed, EventKind::TaskRetried]);
    assert_eq!(events[1].event.data["note"], "use the other file");
    let first = world.any().await.unwrap();
    assert_eq!((first.item.kind, first.item.work.attempt), (ItemKind::Optimize, 4));
    assert_eq!(first.item.work.context["note"], "use the other file");
    assert_eq!(first.item.work.context["tried"].as_array().unwrap().len(), 3);
    assert_eq!(first.item.work.context["rejected_commit"], "c1", "what was done is where it starts");
    world.complete(&first).await;
    world.walk().await;
    assert_eq!(states(&world, &run).await, [TaskState::Accepted; 4]);
    assert_eq!(world.store.run(&run).await.unwrap().unwrap().run.state, RunState::Done);
}

pub async fn a_retried_run_belongs_to_the_boot_that_retried_it(world: World) {
    let run = world.submit_run(planned("r-1", &[("a", &[], "a")])).await;
    fail(&world, "a").await;
    let other = world.boot();
    let more = Budget::of_run(Limits { tokens: Some(200), ..Limits::default() });
    let snapshot = other.retry_task(&run, "a", None, Some(more)).await.unwrap();
    assert_eq!((snapshot.run.boot.as_deref(), snapshot.run.resumes), (Some(other.boot()), 1));
    assert_eq!(snapshot.run.budget.run.tokens, Some(200));
    assert!(world.any().await.is_none());
    assert!(other.claim(request(AgentRole::Optimizer, 1)).await.unwrap().is_some());
    assert_eq!(code(world.store.retry_task(&run, "a", None, None).await), "MN-0112", "it lives");
}

pub async fn a_retry_that_cannot_be_is_refused_and_changes_nothing(world: World) {
    let run = world.submit_run(planned("r-1", &[("a", &[], "a"), ("b", &["a"], "b"), ("c", &[], "c")])).await;
    assert_eq!(code(world.store.retry_task(&run, "a", None, None).await), "MN-0112");
    fail(&world, "a").await;
    let events = world.all_events().await.len();
    assert_eq!(code(world.store.retry_task("r-2", "a", None, None).await), "MN-0110");
    assert_eq!(code(world.store.retry_task(&run, "z", None, None).await), "MN-0121");
    let skipped = world.store.retry_task(&run, "b", None, None).await.unwrap_err();
    assert_eq!((skipped.code.as_str(), skipped.hint.as_str()), ("MN-0122", "mnemosyne retry r-1 a"));
    assert_eq!(code(world.store.retry_task(&run, "c", None, None).await), "MN-0122", "it was accepted");
    let busy = Run { workspace: "/workspace/r-1".into(), ..prompted("r-3") };
    world.submit_run(busy).await;
    assert_eq!(code(world.store.retry_task(&run, "a", None, None).await), "MN-0113");
    world.store.cancel_run("r-3", "no").await.unwrap();
    let snapshot = world.store.run(&run).await.unwrap().unwrap();
    assert_eq!((snapshot.run.state, snapshot.run.resumes), (RunState::Failed, 0));
    let own = |event: &&mnemosyne_core::Event| event.event.run.as_deref() == Some("r-1");
    let all = world.all_events().await;
    assert_eq!(all.iter().filter(own).count(), all[..events].iter().filter(own).count());
    let cancelled = world.submit_run(planned("r-4", &[("a", &[], "a")])).await;
    world.store.cancel_run(&cancelled, "no").await.unwrap();
    assert_eq!(code(world.store.retry_task(&cancelled, "a", None, None).await), "MN-0116");
}

pub async fn a_paused_run_gives_nothing_out_finishes_what_runs_and_goes_on(world: World) {
    let run = world.submit_run(planned("r-1", &[("a", &[], "a"), ("b", &[], "b")])).await;
    let claimed = world.any().await.unwrap();
    world.store.pause_run(&run, "lunch").await.unwrap();
    let state = async || world.store.run(&run).await.unwrap().unwrap().run.state;
    assert_eq!(state().await, RunState::Paused);
    assert!(world.any().await.is_none());
    world.pass(60_000);
    world.store.renew(&claimed.item.work.id, claimed.item.epoch, crate::LEASE_MS).await.unwrap();
    world.complete(&claimed).await;
    assert!(world.any().await.is_none(), "nor what follows from it");
    let seconds = world.store.run(&run).await.unwrap().unwrap().spent.seconds;
    assert!(seconds.abs() < 1e-9, "a pause is no time of work: {seconds}");
    let mut ready = world.store.ready();
    ready.mark_unchanged();
    world.store.continue_run(&run).await.unwrap();
    ready.changed().await.unwrap();
    assert_eq!(state().await, RunState::Running);
    world.walk().await;
    assert_eq!(state().await, RunState::Done);
    let kinds = world.kinds(&run).await;
    let said = |kind| kinds.iter().filter(|known| **known == kind).count();
    assert_eq!((said(EventKind::RunPaused), said(EventKind::RunResumed)), (1, 1));
}

pub async fn only_the_boot_that_drives_a_run_pauses_it(world: World) {
    let run = world.submit_run(prompted("r-1")).await;
    let other = world.boot();
    other.pause_run(&run, "no").await.unwrap();
    assert_eq!(world.store.run(&run).await.unwrap().unwrap().run.state, RunState::Running);
    assert_eq!(code(other.pause_run("r-2", "no").await), "MN-0110");
    world.store.pause_run(&run, "yes").await.unwrap();
    other.continue_run(&run).await.unwrap();
    assert_eq!(world.store.run(&run).await.unwrap().unwrap().run.state, RunState::Paused);
    assert_eq!(code(other.adopt_run(&run, None).await), "MN-0112", "it lives");
}

pub async fn a_paused_run_whose_process_died_is_resumed(mut world: World) {
    let run = world.submit_run(prompted("r-1")).await;
    world.store.pause_run(&run, "lunch").await.unwrap();
    world.die();
    let resumed = world.store.adopt_run(&run, None).await.unwrap();
    assert_eq!((resumed.run.state, resumed.run.resumes), (RunState::Running, 1));
    assert!(world.any().await.is_some());
}
