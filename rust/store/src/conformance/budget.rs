//! BUDGET-1.

use super::{World, code, own, planned, prompted, request, step};
use crate::types::{Amount, ClaimRequest, Claimed, FinishStep, ReleaseReason, Reserve, Spent, StartStep};
use crate::{LEASE_MS, Store};
use mnemosyne_core::error::codes;
use mnemosyne_core::{AgentRole, Budget, EventKind, Limits, NewEvent, Problem, ProblemKind, Run, RunState, Usage};
use serde_json::{Map, Value, json};
use std::sync::Arc;

fn tokens(tokens: u64) -> Amount {
    Amount { tokens, usd: None }
}

async fn limited(world: &World, usd: Option<f64>, tokens: Option<u64>) -> Claimed {
    within(world, Budget::of_run(Limits { usd, tokens, ..Limits::default() })).await
}

async fn within(world: &World, budget: Budget) -> Claimed {
    world.submit_run(Run { budget, ..prompted("r-1") }).await;
    world.any().await.unwrap()
}

fn calls(calls: u64) -> Limits {
    Limits { calls: Some(calls), ..Limits::default() }
}

fn seconds(seconds: f64) -> Limits {
    Limits { seconds: Some(seconds), ..Limits::default() }
}

fn of_tokens(tokens: u64) -> Limits {
    Limits { tokens: Some(tokens), ..Limits::default() }
}

fn finish(claimed: &Claimed, number: u64, usage: Option<Usage>) -> FinishStep {
    FinishStep {
        item: claimed.item.work.id.clone(),
        epoch: claimed.item.epoch,
        attempt: 1,
        number,
        outcome: Ok(json!(1)),
        usage,
        detail: Value::Null,
    }
}

fn used(tokens: u64) -> Option<Usage> {
    Some(Usage { turns: 1, input_tokens: tokens, ..Usage::default() })
}

/// A turn from beginning to end.
async fn turn(world: &World, claimed: &Claimed, reserve: Amount, usage: Option<Usage>) -> Result<(), Problem> {
    let number = world.store.start_step(StartStep { reserve: Some(reserve), ..step(claimed, "x") }).await?;
    world.store.finish_step(finish(claimed, number, usage)).await
}

async fn spent(world: &World) -> Spent {
    world.store.run("r-1").await.unwrap().unwrap().spent
}

fn figures(problem: &Problem) -> &Map<String, Value> {
    problem.data.as_deref().unwrap()
}

/// `(kind, fraction, level, name)` of each warning so far.
async fn warnings(world: &World) -> Vec<(String, f64, String, String)> {
    let text = |event: &NewEvent, key: &str| event.data[key].as_str().unwrap().to_owned();
    let all = world.all_events().await.into_iter().map(|event| event.event);
    all.filter(|event| event.kind == EventKind::BudgetWarning)
        .map(|event| {
            let fraction = event.data["fraction"].as_f64().unwrap();
            (text(&event, "kind"), fraction, text(&event, "level"), text(&event, "name"))
        })
        .collect()
}

async fn claim_as(store: &Arc<dyn Store>, role: AgentRole, agent: &str) -> Option<Claimed> {
    store.claim(ClaimRequest { agent: agent.to_owned(), ..request(role, 1) }).await.unwrap()
}

fn asks(claimed: &Claimed, amount: Amount) -> Reserve {
    Reserve { item: claimed.item.work.id.clone(), epoch: claimed.item.epoch, amount }
}

pub async fn budget_1_what_does_not_fit_is_refused_and_writes_nothing(world: World) {
    let claimed = limited(&world, None, Some(100)).await;
    world.store.reserve(asks(&claimed, tokens(60))).await.unwrap();
    let events = world.all_events().await;
    let refused = world.store.reserve(asks(&claimed, tokens(41))).await.unwrap_err();
    assert_eq!((refused.kind, refused.code.as_str()), (mnemosyne_core::ProblemKind::Budget, "MN-0501"));
    assert!(refused.hint.contains("mnemosyne resume r-1 --budget-tokens"), "{refused}");
    let big = StartStep { reserve: Some(tokens(41)), ..step(&claimed, "x") };
    assert_eq!(code(world.store.start_step(big).await), "MN-0501");
    assert!(world.store.journal(&claimed.item.work.id, 1).await.unwrap().is_empty());
    assert_eq!(world.all_events().await, events);
    world.store.reserve(asks(&claimed, tokens(40))).await.unwrap();
}

pub async fn budget_1_a_settled_reservation_counts_what_was_used(world: World) {
    let claimed = limited(&world, None, Some(100)).await;
    let reservation = world.store.reserve(asks(&claimed, tokens(100))).await.unwrap();
    let used = Usage { turns: 1, input_tokens: 10, output_tokens: 20, cost_usd: 0.5, ..Usage::default() };
    let (id, epoch) = (claimed.item.work.id.as_str(), claimed.item.epoch);
    world.store.settle(id, epoch, &reservation, used.clone()).await.unwrap();
    assert_eq!(code(world.store.settle(id, epoch, &reservation, used.clone()).await), "MN-0117");
    assert_eq!(code(world.store.settle(id, epoch, "u-999", used.clone()).await), "MN-0117");
    assert_eq!(world.store.run("r-1").await.unwrap().unwrap().usage, used);
    assert_eq!(code(world.store.reserve(asks(&claimed, tokens(71))).await), "MN-0501");
    world.store.reserve(asks(&claimed, tokens(70))).await.unwrap();
}

pub async fn budget_1_a_step_settles_its_reservation_with_its_end(world: World) {
    let claimed = limited(&world, None, Some(100)).await;
    let started = StartStep { reserve: Some(tokens(100)), ..step(&claimed, "x") };
    let number = world.store.start_step(started).await.unwrap();
    assert_eq!(code(world.store.reserve(asks(&claimed, tokens(1))).await), "MN-0502", "until the step has ended");
    let finish = |number, usage| FinishStep {
        item: claimed.item.work.id.clone(),
        epoch: claimed.item.epoch,
        attempt: 1,
        number,
        outcome: Ok(json!(1)),
        usage,
        detail: serde_json::Value::Null,
    };
    let used = Usage { turns: 1, cache_read_tokens: 30, ..Usage::default() };
    world.store.finish_step(finish(number, Some(used))).await.unwrap();
    let started = StartStep { reserve: Some(tokens(70)), ..step(&claimed, "x") };
    let number = world.store.start_step(started).await.unwrap();
    world.store.finish_step(finish(number, None)).await.unwrap();
    world.store.reserve(asks(&claimed, tokens(70))).await.expect("nothing was spent, so it is free again");
    let snapshot = world.store.run("r-1").await.unwrap().unwrap();
    assert_eq!((snapshot.usage.turns, snapshot.usage.tokens(), snapshot.unknown_turns), (1, 30, 0));
}

pub async fn budget_1_a_step_that_failed_without_a_known_usage_is_charged_whole(world: World) {
    let claimed = limited(&world, None, Some(100)).await;
    let fail = |number, usage| FinishStep {
        item: claimed.item.work.id.clone(),
        epoch: claimed.item.epoch,
        attempt: 1,
        number,
        outcome: Err("the stream was cut".to_owned()),
        usage,
        detail: serde_json::Value::Null,
    };
    let started = StartStep { reserve: Some(tokens(60)), ..step(&claimed, "x") };
    let number = world.store.start_step(started.clone()).await.unwrap();
    world.store.finish_step(fail(number, Some(Usage::default()))).await.unwrap();
    let number = world.store.start_step(started).await.expect("nothing was spent, and that is known");
    world.store.finish_step(fail(number, None)).await.unwrap();
    assert_eq!(code(world.store.reserve(asks(&claimed, tokens(41))).await), "MN-0501");
    assert_eq!(world.store.run("r-1").await.unwrap().unwrap().unknown_turns, 1);
}

pub async fn budget_1_an_open_reservation_is_charged_whole_after_a_crash(mut world: World) {
    let claimed = limited(&world, None, Some(100)).await;
    let started = StartStep { reserve: Some(tokens(60)), ..step(&claimed, "x") };
    world.store.start_step(started).await.unwrap();
    world.die();
    let snapshot = world.store.adopt_run("r-1", None).await.unwrap();
    assert_eq!((snapshot.unknown_turns, snapshot.usage), (1, Usage::default()));
    let again = world.any().await.unwrap();
    assert_eq!(code(world.store.reserve(asks(&again, tokens(41))).await), "MN-0501");
    world.store.reserve(asks(&again, tokens(40))).await.unwrap();
}

pub async fn budget_1_a_reservation_that_a_claim_left_open_is_unknown(world: World) {
    let claimed = limited(&world, None, None).await;
    let reservation = world.store.reserve(asks(&claimed, tokens(60))).await.unwrap();
    world.release(&claimed, ReleaseReason::Innocent, 1).await;
    let again = world.any().await.unwrap();
    let (id, epoch) = (again.item.work.id.as_str(), again.item.epoch);
    assert_eq!(code(world.store.settle(id, epoch, &reservation, Usage::default()).await), "MN-0117");
    assert_eq!(world.store.run("r-1").await.unwrap().unwrap().unknown_turns, 1);
}

pub async fn budget_1_money_is_counted_too(world: World) {
    let claimed = limited(&world, Some(0.3), None).await;
    for _ in 0..3 {
        world.store.reserve(asks(&claimed, Amount { tokens: 1_000, usd: Some(0.1) })).await.expect("0.1 three times");
    }
    let more = Amount { tokens: 0, usd: Some(0.001) };
    let refused = world.store.reserve(asks(&claimed, more)).await.unwrap_err();
    assert!(refused.hint.contains("--budget-usd"), "{refused}");
    for usd in [f64::NAN, -1.0] {
        let nonsense = Amount { tokens: 0, usd: Some(usd) };
        assert_eq!(code(world.store.reserve(asks(&claimed, nonsense)).await), "MN-0117");
    }
}

pub async fn budget_1_an_item_without_a_run_has_no_limit(world: World) {
    world.submit(own("a")).await;
    let claimed = world.any().await.unwrap();
    let reservation = world.store.reserve(asks(&claimed, tokens(u64::from(u32::MAX)))).await.unwrap();
    world.store.settle("a", claimed.item.epoch, &reservation, Usage::default()).await.unwrap();
}

pub async fn budget_1_concurrent_reservations_never_exceed_the_budget(world: World) {
    let claimed = limited(&world, None, Some(100)).await;
    let reserving = (0..32).map(|_| {
        let (store, ask) = (std::sync::Arc::clone(&world.store), asks(&claimed, tokens(10)));
        tokio::spawn(async move { store.reserve(ask).await.is_ok() })
    });
    let mut granted = 0;
    for reservation in reserving.collect::<Vec<_>>() {
        granted += u32::from(reservation.await.unwrap());
    }
    assert_eq!(granted, 10);
}

pub async fn budget_1_a_refusal_says_what_is_left(world: World) {
    let limits = Limits { usd: Some(1.0), tokens: Some(100), ..Limits::default() };
    let claimed = within(&world, Budget::of_run(limits)).await;
    let free = Amount { tokens: 30, usd: Some(0.0) };
    turn(&world, &claimed, free, used(30)).await.unwrap();
    let held = Amount { tokens: 20, usd: Some(0.25) };
    world.store.reserve(asks(&claimed, held)).await.unwrap();
    let refused = world.store.reserve(asks(&claimed, Amount { tokens: 51, usd: Some(0.5) })).await.unwrap_err();
    assert_eq!(figures(&refused)["left"], json!({"tokens": 50, "usd": 0.75}));
    assert_eq!((&figures(&refused)["kind"], &figures(&refused)["limit"]), (&json!("tokens"), &json!(100.0)));
    assert_eq!((&figures(&refused)["level"], &figures(&refused)["spent"]), (&json!("run"), &json!(30.0)));
}

pub async fn budget_1_what_fits_once_requests_under_way_have_ended_is_told_apart(world: World) {
    let claimed = limited(&world, None, Some(100)).await;
    let started = StartStep { reserve: Some(tokens(60)), ..step(&claimed, "x") };
    let number = world.store.start_step(started.clone()).await.unwrap();
    let events = world.all_events().await;
    let waits = world.store.start_step(started.clone()).await.unwrap_err();
    assert_eq!((waits.kind, waits.code.as_str()), (ProblemKind::Budget, codes::BUDGET_BUSY));
    assert_eq!(world.all_events().await, events, "whoever waits has written nothing");
    let too_much = StartStep { reserve: Some(tokens(101)), ..step(&claimed, "x") };
    assert_eq!(
        code(world.store.start_step(too_much.clone()).await),
        codes::BUDGET_BUSY,
        "a refusal would stop the run"
    );
    world.store.finish_step(finish(&claimed, number, used(40))).await.unwrap();
    assert_eq!(code(world.store.start_step(too_much).await), codes::BUDGET, "and now for good");
    world.store.start_step(started).await.expect("the request under way did not use all of it");
}

pub async fn budget_1_nobody_waits_for_what_an_agent_holds_by_hand(world: World) {
    let claimed = limited(&world, None, Some(100)).await;
    world.store.reserve(asks(&claimed, tokens(60))).await.unwrap();
    let started = StartStep { reserve: Some(tokens(60)), ..step(&claimed, "x") };
    assert_eq!(code(world.store.start_step(started).await), codes::BUDGET, "who holds it may itself be waiting");
}

pub async fn budget_1_a_request_without_a_price_is_refused_under_a_limit_in_dollars(world: World) {
    let claimed = limited(&world, Some(5.0), None).await;
    let refused = world.store.reserve(asks(&claimed, tokens(1))).await.unwrap_err();
    assert_eq!((refused.kind, refused.code.as_str()), (ProblemKind::Budget, codes::BUDGET_UNPRICED));
    world.store.reserve(asks(&claimed, Amount { tokens: 1, usd: Some(0.0) })).await.expect("it costs nothing");
}

pub async fn budget_1_calls_are_counted_whatever_came_of_them(mut world: World) {
    let claimed = within(&world, Budget::of_run(calls(4))).await;
    turn(&world, &claimed, tokens(9), used(1)).await.unwrap();
    let failed = StartStep { reserve: Some(tokens(9)), ..step(&claimed, "x") };
    let number = world.store.start_step(failed).await.unwrap();
    let outcome = Err("529".to_owned());
    let usage = Some(Usage::default());
    world.store.finish_step(FinishStep { outcome, usage, ..finish(&claimed, number, None) }).await.unwrap();
    world.store.start_step(StartStep { reserve: Some(tokens(9)), ..step(&claimed, "x") }).await.unwrap();
    world.die();
    world.store.adopt_run("r-1", None).await.unwrap();
    let again = world.any().await.unwrap();
    turn(&world, &again, tokens(9), used(1)).await.unwrap();
    let refused = turn(&world, &again, tokens(9), used(1)).await.unwrap_err();
    assert_eq!((refused.code.as_str(), &figures(&refused)["kind"]), (codes::BUDGET, &json!("calls")));
    assert!(refused.hint.contains("--budget-calls 8"), "{refused}");
    assert_eq!((spent(&world).await.calls, spent(&world).await.tokens), (4, 11));
}

pub async fn budget_1_a_task_has_an_account_of_its_own(world: World) {
    let budget = Budget { per_task: of_tokens(100), ..Budget::default() };
    world.submit_run(Run { budget, ..planned("r-1", &[("a", &[], "a"), ("b", &[], "b")]) }).await;
    let first = world.claim(AgentRole::Optimizer).await.unwrap();
    let second = world.claim(AgentRole::Optimizer).await.unwrap();
    turn(&world, &first, tokens(90), used(90)).await.unwrap();
    turn(&world, &second, tokens(90), used(20)).await.expect("the other task has spent nothing");
    let refused = turn(&world, &first, tokens(20), used(1)).await.unwrap_err();
    assert!(refused.message.contains("task a of run r-1"), "{refused}");
    assert!(refused.hint.contains("--budget-per-task tokens="), "{refused}");
    world.complete(&first).await;
    let next = world.claim(AgentRole::Executor).await.unwrap();
    assert_eq!(next.item.task.as_deref(), Some("a"));
    assert_eq!(code(turn(&world, &next, tokens(20), None).await), codes::BUDGET, "all items of a task share it");
    assert_eq!(spent(&world).await.tokens, 110);
    let warned = |fraction, name: &str| ("tokens".to_owned(), fraction, "task".to_owned(), name.to_owned());
    assert_eq!(warnings(&world).await, [warned(0.8, "a")]);
}

pub async fn budget_1_an_agent_has_an_account_of_its_own(world: World) {
    let budget = Budget { per_agent: calls(1), ..Budget::default() };
    world.submit_run(Run { budget, ..planned("r-1", &[("a", &[], "a"), ("b", &[], "b")]) }).await;
    let first = claim_as(&world.store, AgentRole::Optimizer, "optimizer-1").await.unwrap();
    let second = claim_as(&world.store, AgentRole::Optimizer, "optimizer-2").await.unwrap();
    turn(&world, &first, tokens(9), used(1)).await.unwrap();
    turn(&world, &second, tokens(9), used(1)).await.unwrap();
    let refused = turn(&world, &first, tokens(9), used(1)).await.unwrap_err();
    assert!(refused.message.contains("optimizer-1"), "{refused}");
    assert!(refused.hint.contains("--budget-per-agent calls=2"), "{refused}");
    world.complete(&first).await;
    let next = claim_as(&world.store, AgentRole::Executor, "executor-1").await.unwrap();
    turn(&world, &next, tokens(9), used(1)).await.expect("another agent");
}

pub async fn budget_1_people_are_warned_once_at_80_and_at_95_percent_of_each_limit(world: World) {
    let limits = Limits { usd: Some(1.0), tokens: Some(100), calls: Some(5), ..Limits::default() };
    let claimed = within(&world, Budget::of_run(limits)).await;
    let free = Amount { tokens: 0, usd: Some(0.0) };
    for (tokens, usd) in [(79, 0.1), (1, 0.1), (1, 0.76), (15, 0.0), (1, 0.01)] {
        let usage = Usage { input_tokens: tokens, cost_usd: usd, ..Usage::default() };
        turn(&world, &claimed, free, Some(usage)).await.unwrap();
    }
    let run = |kind: &str, fraction| (kind.to_owned(), fraction, "run".to_owned(), String::new());
    let expected = [
        run("tokens", 0.8),
        run("usd", 0.8),
        run("usd", 0.95),
        run("calls", 0.8),
        run("tokens", 0.95),
        run("calls", 0.95),
    ];
    assert_eq!(warnings(&world).await, expected);
    let events = world.all_events().await;
    let first = events.iter().find(|event| event.event.kind == EventKind::BudgetWarning).unwrap();
    assert_eq!(first.event.run.as_deref(), Some("r-1"));
    assert_eq!((&first.event.data["spent"], &first.event.data["limit"]), (&json!(80.0), &json!(100.0)));
}

pub async fn budget_1_what_a_crash_leaves_unknown_is_warned_of_too(mut world: World) {
    let claimed = limited(&world, None, Some(100)).await;
    world.store.start_step(StartStep { reserve: Some(tokens(81)), ..step(&claimed, "x") }).await.unwrap();
    assert!(warnings(&world).await.is_empty(), "it may still turn out to be less");
    world.die();
    world.store.adopt_run("r-1", None).await.unwrap();
    assert_eq!(warnings(&world).await.len(), 1);
    assert_eq!(spent(&world).await.tokens, 81);
}

pub async fn budget_1_time_counts_while_a_run_is_worked_on_and_not_while_it_is_stopped(world: World) {
    let claimed = within(&world, Budget::of_run(seconds(100.0))).await;
    world.pass(60_000);
    world.store.renew(&claimed.item.work.id, claimed.item.epoch, LEASE_MS).await.unwrap();
    world.pass(10_000);
    let why = Problem::new(ProblemKind::Closed, codes::CLOSED, "interrupted");
    world.store.stop_run("r-1", RunState::Interrupted, why).await.unwrap();
    world.pass(500_000);
    assert!((spent(&world).await.seconds - 70.0).abs() < 1e-9);
    world.store.adopt_run("r-1", None).await.unwrap();
    world.pass(20_000);
    assert_eq!(world.store.out_of_time().await.unwrap(), []);
    assert_eq!(warnings(&world).await.iter().map(|warning| warning.1).collect::<Vec<_>>(), [0.8]);
    world.pass(10_000);
    let over = world.store.out_of_time().await.unwrap();
    assert_eq!((over.len(), over[0].0.as_str()), (1, "r-1"));
    assert_eq!((over[0].1.kind, &figures(&over[0].1)["kind"]), (ProblemKind::Budget, &json!("seconds")));
    assert!(over[0].1.hint.contains("--budget-seconds 200"), "{}", over[0].1);
    let again = world.any().await.unwrap();
    assert_eq!(code(turn(&world, &again, tokens(1), None).await), codes::BUDGET);
    world.store.stop_run("r-1", RunState::Budget, over[0].1.clone()).await.unwrap();
    assert_eq!(world.store.out_of_time().await.unwrap(), [], "it is stopped already");
    assert_eq!(warnings(&world).await.iter().map(|warning| warning.1).collect::<Vec<_>>(), [0.8, 0.95]);
    let last = world.all_events().await.pop().unwrap().event;
    assert_eq!((last.kind, &last.data["kind"]), (EventKind::BudgetExceeded, &json!("seconds")));
}

pub async fn budget_1_after_a_crash_time_counts_up_to_the_last_sign_of_life(mut world: World) {
    let claimed = within(&world, Budget::of_run(seconds(100.0))).await;
    world.pass(10_000);
    world.store.renew(&claimed.item.work.id, claimed.item.epoch, LEASE_MS).await.unwrap();
    world.pass(900_000);
    world.die();
    world.store.adopt_run("r-1", None).await.unwrap();
    assert!((spent(&world).await.seconds - 10.0).abs() < 1e-9);
    world.pass(50_000);
    assert_eq!(world.store.out_of_time().await.unwrap(), []);
    assert_eq!(world.boot().out_of_time().await.unwrap(), [], "another boot looks after its own");
}

pub async fn budget_1_the_time_of_a_task_and_of_an_agent_is_that_of_their_claims(world: World) {
    let budget = Budget { per_task: seconds(60.0), per_agent: seconds(80.0), ..Budget::default() };
    world.submit_run(Run { budget, ..planned("r-1", &[("a", &[], "a"), ("b", &[], "b")]) }).await;
    let first = claim_as(&world.store, AgentRole::Optimizer, "optimizer-1").await.unwrap();
    world.pass(30_000);
    world.complete(&first).await;
    world.pass(600_000);
    assert_eq!(world.store.out_of_time().await.unwrap(), [], "nobody works on it");
    let second = claim_as(&world.store, AgentRole::Optimizer, "optimizer-1").await.unwrap();
    assert_eq!(second.item.task.as_deref(), Some("b"));
    world.pass(49_000);
    assert_eq!(world.store.out_of_time().await.unwrap(), []);
    world.pass(1_000);
    let over = world.store.out_of_time().await.unwrap();
    assert_eq!((over.len(), &figures(&over[0].1)["level"]), (1, &json!("agent")), "30 and 50 seconds");
    assert_eq!(figures(&over[0].1)["name"], "optimizer-1");
    world.store.renew(&second.item.work.id, second.item.epoch, LEASE_MS).await.unwrap();
    assert_eq!(code(turn(&world, &second, tokens(1), None).await), codes::BUDGET);
}

pub async fn budget_1_looking_at_the_time_wakes_nobody(world: World) {
    within(&world, Budget::of_run(seconds(100.0))).await;
    // One more answer, so that the watch has surely been told of the claim.
    world.store.append_events(vec![]).await.unwrap();
    let mut changed = world.store.changed();
    changed.mark_unchanged();
    world.pass(10_000);
    assert_eq!(world.store.out_of_time().await.unwrap(), []);
    world.store.append_events(vec![]).await.unwrap();
    assert!(!changed.has_changed().unwrap());
}

pub async fn budget_1_a_resume_with_no_more_than_what_is_spent_is_refused(world: World) {
    let claimed = limited(&world, None, Some(100)).await;
    turn(&world, &claimed, tokens(90), used(90)).await.unwrap();
    let refused = turn(&world, &claimed, tokens(20), None).await.unwrap_err();
    world.store.stop_run("r-1", RunState::Budget, refused).await.unwrap();
    let events = world.all_events().await;
    for too_small in [90, 1] {
        let given = Some(Budget::of_run(of_tokens(too_small)));
        let refused = world.store.adopt_run("r-1", given).await.unwrap_err();
        assert_eq!((refused.kind, refused.code.as_str()), (ProblemKind::InvalidInput, codes::BUDGET_TOO_SMALL));
        assert!(refused.reason.contains("90 tokens are spent"), "{refused}");
        assert!(refused.hint.starts_with("mnemosyne resume r-1 --budget-tokens "), "{refused}");
    }
    assert_eq!(world.all_events().await, events, "nothing was changed");
    assert_eq!(world.store.run("r-1").await.unwrap().unwrap().run.state, RunState::Budget);
    let snapshot = world.store.adopt_run("r-1", Some(Budget::of_run(of_tokens(91)))).await.unwrap();
    assert_eq!((snapshot.run.state, snapshot.run.budget.run.tokens), (RunState::Running, Some(91)));
}

pub async fn budget_1_a_run_that_was_interrupted_with_all_spent_may_be_finished(mut world: World) {
    let claimed = within(&world, Budget::of_run(calls(1))).await;
    turn(&world, &claimed, tokens(9), used(1)).await.unwrap();
    world.die();
    world.store.adopt_run("r-1", None).await.expect("there may be nothing left that asks a model");
}

pub async fn budget_1_a_resume_counts_what_a_crash_left_open(mut world: World) {
    let claimed = limited(&world, None, Some(100)).await;
    world.store.start_step(StartStep { reserve: Some(tokens(60)), ..step(&claimed, "x") }).await.unwrap();
    world.die();
    let given = Some(Budget::of_run(of_tokens(60)));
    assert_eq!(code(world.store.adopt_run("r-1", given).await), codes::BUDGET_TOO_SMALL);
    world.store.adopt_run("r-1", Some(Budget::of_run(of_tokens(61)))).await.unwrap();
}

pub async fn budget_1_a_task_that_has_ended_does_not_stop_a_resume(world: World) {
    let budget = Budget { per_task: calls(1), ..Budget::default() };
    let run = Run { budget, ..planned("r-1", &[("a", &[], "a"), ("b", &["a"], "b")]) };
    world.submit_run(run).await;
    let first = world.any().await.unwrap();
    turn(&world, &first, tokens(9), used(1)).await.unwrap();
    world.complete(&first).await;
    for _ in 0..3 {
        let next = world.any().await.unwrap();
        assert_eq!(next.item.task.as_deref(), Some("a"));
        world.complete(&next).await;
    }
    let next = world.any().await.unwrap();
    turn(&world, &next, tokens(9), used(1)).await.unwrap();
    let refused = turn(&world, &next, tokens(9), used(1)).await.unwrap_err();
    world.store.stop_run("r-1", RunState::Budget, refused).await.unwrap();
    let given = |number| Some(Budget { per_task: calls(number), ..Budget::default() });
    assert_eq!(code(world.store.adopt_run("r-1", given(1)).await), codes::BUDGET_TOO_SMALL, "task b has not ended");
    world.store.adopt_run("r-1", given(2)).await.unwrap();
}

/// Numbers that look random and are the same every time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// One request or reservation under way.
struct UnderWay {
    claim: usize,
    /// Of its step, or of what was reserved by hand.
    place: Result<u64, String>,
    tokens: u64,
}

/// Three agents reserve, settle, fail, crash and are resumed, in any order. What is spent and open together never
/// exceeds the limit by more than what usage was reported above its reservation; and the sums are the sums.
pub async fn budget_1_any_order_of_reserving_settling_and_crashing_keeps_the_limit(mut world: World) {
    let seed = std::env::var("MNEMOSYNE_SEED").ok().and_then(|text| u64::from_str_radix(&text, 16).ok()).unwrap_or(7);
    let mut dice = Dice(seed);
    const LIMIT: u64 = 60_000;
    let tasks: &[(&str, &[&str], &str)] = &[("a", &[], "a"), ("b", &[], "b"), ("c", &[], "c")];
    world.submit_run(Run { budget: Budget::of_run(of_tokens(LIMIT)), ..planned("r-1", tasks) }).await;
    let mut claims = claim_three(&world).await;
    let (mut under_way, mut settled, mut unknown, mut above) = (Vec::<UnderWay>::new(), 0, 0, 0);
    let (mut granted, mut refused) = (0, 0);
    for round in 0..600 {
        match dice.below(16) {
            0..=7 => {
                let claim = usize::try_from(dice.below(3)).unwrap();
                let (amount, by_hand) = (1 + dice.below(900), dice.below(4) == 0);
                let answer = if by_hand {
                    world.store.reserve(asks(&claims[claim], tokens(amount))).await.map(Err)
                } else {
                    let started = StartStep { reserve: Some(tokens(amount)), ..step(&claims[claim], "x") };
                    world.store.start_step(started).await.map(Ok)
                };
                match answer {
                    Ok(place) => under_way.push(UnderWay { claim, place, tokens: amount }),
                    Err(problem) => {
                        assert_eq!(problem.kind, ProblemKind::Budget, "seed {seed:x}, round {round}: {problem}");
                        refused += 1;
                        continue;
                    }
                }
                granted += 1;
            }
            8..=14 if !under_way.is_empty() => {
                let ended = under_way.swap_remove(usize::try_from(dice.below(under_way.len() as u64)).unwrap());
                let claimed = &claims[ended.claim];
                // Most use less; now and then one reports more than was thought possible.
                let really = dice.below(ended.tokens + 1) + if dice.below(20) == 0 { ended.tokens } else { 0 };
                match ended.place {
                    Err(reservation) => {
                        let (id, epoch) = (claimed.item.work.id.as_str(), claimed.item.epoch);
                        world.store.settle(id, epoch, &reservation, used(really).unwrap()).await.unwrap();
                    }
                    Ok(number) if dice.below(5) == 0 => {
                        let outcome = Err("the stream was cut".to_owned());
                        let failed = FinishStep { outcome, ..finish(claimed, number, None) };
                        world.store.finish_step(failed).await.unwrap();
                        unknown += ended.tokens;
                        continue;
                    }
                    Ok(number) => world.store.finish_step(finish(claimed, number, used(really))).await.unwrap(),
                }
                settled += really;
                above += really.saturating_sub(ended.tokens);
            }
            15 if dice.below(6) == 0 => {
                world.die();
                world.store.adopt_run("r-1", None).await.unwrap();
                unknown += under_way.drain(..).map(|open| open.tokens).sum::<u64>();
                claims = claim_three(&world).await;
            }
            _ => {}
        }
        let open: u64 = under_way.iter().map(|open| open.tokens).sum();
        let snapshot = world.store.run("r-1").await.unwrap().unwrap();
        let said = format!("seed {seed:x}, round {round}");
        assert_eq!((snapshot.usage.tokens(), snapshot.spent.tokens), (settled, settled + unknown), "{said}");
        assert!(settled + unknown + open <= LIMIT + above, "{said}: {settled} + {unknown} + {open}, {above} above");
    }
    assert!(granted > 100 && refused > 20, "the limit was never near: {granted} granted, {refused} refused");
    let steps: u64 = sum_of_usages(&world).await;
    assert!(steps <= settled && steps > 0, "what the events say is part of the sum: {steps} of {settled}");
}

async fn claim_three(world: &World) -> Vec<Claimed> {
    let mut claims = Vec::new();
    for number in 1..=3 {
        claims.push(claim_as(&world.store, AgentRole::Optimizer, &format!("optimizer-{number}")).await.unwrap());
    }
    claims
}

async fn sum_of_usages(world: &World) -> u64 {
    let usages = world.all_events().await.into_iter().filter_map(|event| event.event.data.get("usage").cloned());
    usages.map(|usage: Value| usage["input_tokens"].as_u64().unwrap()).sum()
}
