//! One suite for every backend: each promise of the trait as a sentence. A new backend implements [`Backend`] and says
//! `conformance_tests!(its_name, ItsBackend);` in its tests; a new promise is a new sentence here, not a test there.
//!
//! Time is the suite's own ([`World::pass`]): nothing here sleeps.

// A suite that panics is how a test fails.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

pub mod budget;
pub mod claiming;
pub mod commands;
pub mod dead_letters;
pub mod durability;
pub mod fencing;
pub mod journal;
pub mod poison;
pub mod retention;
pub mod runs;
pub mod submitting;

use crate::Store;
use crate::clock::Clock;
use crate::types::{ClaimRequest, Claimed, Completion, EventQuery, LEASE_MS, Release, ReleaseReason, StartStep};
use mnemosyne_core::{
    Acceptance, AgentRole, Budget, Event, EventKind, ItemKind, ItemState, Phase, Plan, PlanTask, Problem, Run,
    RunOptions, RunState, WorkItem, WorkResult,
};
use serde_json::{Map, Value, json};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// What a backend gives to the suite: empty data, and boots on it. A boot dies when its last handle is dropped: nothing
/// is released by that, as with `kill -9`.
pub trait Backend: Send + Sync + 'static {
    fn new(clock: Clock) -> Self
    where
        Self: Sized;
    fn boot(&self) -> Arc<dyn Store>;
}

/// Empty data, one boot, and a clock that stands still.
pub struct World {
    pub store: Arc<dyn Store>,
    backend: Box<dyn Backend>,
    time: Arc<AtomicI64>,
}

/// Where the clock begins: 2026-11-22T10:11:12.345Z.
pub const BEGIN: i64 = 1_795_342_272_345;

impl World {
    fn new<B: Backend>() -> Self {
        let time = Arc::new(AtomicI64::new(BEGIN));
        let clock = Arc::clone(&time);
        let backend = Box::new(B::new(Arc::new(move || clock.load(Ordering::SeqCst))));
        Self { store: backend.boot(), backend, time }
    }

    /// Another boot on the same data.
    pub fn boot(&self) -> Arc<dyn Store> {
        self.backend.boot()
    }

    /// The boot ends without a word, and another begins.
    pub fn die(&mut self) -> String {
        let dead = self.store.boot().to_owned();
        self.store = self.backend.boot();
        assert!(self.store.is_dead(&dead));
        dead
    }

    /// Lets time pass.
    pub fn pass(&self, milliseconds: i64) {
        self.time.fetch_add(milliseconds, Ordering::SeqCst);
    }

    pub async fn submit(&self, item: WorkItem) -> String {
        self.store.submit_item(item, None).await.unwrap()
    }

    pub async fn submit_run(&self, run: Run) -> String {
        self.store.submit_run(run, None).await.unwrap()
    }

    pub async fn claim(&self, role: AgentRole) -> Option<Claimed> {
        self.store.claim(request(role, 1)).await.unwrap()
    }

    /// The id of what an executor gets next.
    pub async fn next(&self) -> Option<String> {
        self.claim(AgentRole::Executor).await.map(|claimed| claimed.item.work.id)
    }

    pub async fn state(&self, item: &str) -> ItemState {
        self.store.item(item).await.unwrap().unwrap().item.state
    }

    pub async fn complete(&self, claimed: &Claimed) {
        let result = good(claimed.item.kind);
        self.store.complete(Completion::new(claimed, result)).await.unwrap();
    }

    pub async fn release(&self, claimed: &Claimed, reason: ReleaseReason, generation: u64) -> crate::Released {
        self.store.release(release(claimed, reason, generation)).await.unwrap()
    }

    /// Begins and returns a step.
    pub async fn start_step(&self, claimed: &Claimed, name: &str) -> u64 {
        self.store.start_step(step(claimed, name)).await.unwrap()
    }

    pub async fn all_events(&self) -> Vec<Event> {
        self.store.events(EventQuery::default()).await.unwrap()
    }

    pub async fn kinds(&self, run: &str) -> Vec<EventKind> {
        let query = EventQuery { run: Some(run.to_owned()), ..EventQuery::default() };
        self.store.events(query).await.unwrap().into_iter().map(|event| event.event.kind).collect()
    }

    /// Claims what there is for any role.
    pub async fn any(&self) -> Option<Claimed> {
        for role in AgentRole::ALL {
            if let Some(claimed) = self.claim(*role).await {
                return Some(claimed);
            }
        }
        None
    }

    /// Does everything that can be done, in the order in which it is given out.
    pub async fn walk(&self) -> Vec<ItemKind> {
        let mut kinds = Vec::new();
        while let Some(claimed) = self.any().await {
            kinds.push(claimed.item.kind);
            self.complete(&claimed).await;
        }
        kinds
    }
}

pub fn request(role: AgentRole, generation: u64) -> ClaimRequest {
    ClaimRequest { role, agent: format!("{role}-1"), generation, lease_ms: LEASE_MS }
}

pub fn release(claimed: &Claimed, reason: ReleaseReason, generation: u64) -> Release {
    Release {
        item: claimed.item.work.id.clone(),
        epoch: claimed.item.epoch,
        reason,
        generation,
        delay_ms: 0,
        error: None,
        class: None,
        events: Vec::new(),
    }
}

pub fn step(claimed: &Claimed, name: &str) -> StartStep {
    StartStep {
        item: claimed.item.work.id.clone(),
        epoch: claimed.item.epoch,
        attempt: claimed.item.work.attempt,
        name: name.to_owned(),
        kind: "turn".to_owned(),
        input_sha256: "ab".repeat(32),
        detail: Value::Null,
        reserve: None,
    }
}

/// A user's own item for an executor.
pub fn own(id: &str) -> WorkItem {
    WorkItem {
        id: id.to_owned(),
        description: format!("do {id}"),
        phase: Phase::PlanToArtifacts,
        role: AgentRole::Executor,
        priority: 5,
        depends_on: Vec::new(),
        file_scope: Vec::new(),
        context: Map::new(),
        timeout_seconds: 60.0,
        attempt: 1,
    }
}

pub fn after(id: &str, dependencies: &[&str]) -> WorkItem {
    WorkItem { depends_on: dependencies.iter().map(|text| (*text).to_owned()).collect(), ..own(id) }
}

/// A run with a plan: tasks by id, what they depend on, and the path that each may change.
pub fn planned(id: &str, tasks: &[(&str, &[&str], &str)]) -> Run {
    let tasks = tasks.iter().map(|(task, depends_on, scope)| PlanTask {
        id: (*task).to_owned(),
        title: format!("do {task}"),
        description: String::new(),
        depends_on: depends_on.iter().map(|text| (*text).to_owned()).collect(),
        file_scope: vec![(*scope).to_owned()],
        acceptance: vec![Acceptance { command: format!("test {task}"), timeout_seconds: 1.0 }],
    });
    let plan = Plan { setup: Vec::new(), tasks: tasks.collect() };
    Run { prompt: None, plan: Some(plan), ..prompted(id) }
}

/// A run with a prompt.
pub fn prompted(id: &str) -> Run {
    Run {
        id: id.to_owned(),
        prompt: Some("make it".to_owned()),
        spec: None,
        plan: None,
        workspace: format!("/workspace/{id}"),
        options: RunOptions::default(),
        budget: Budget::default(),
        state: RunState::Running,
        phase: Phase::PromptToSpec,
        boot: None,
        resumes: 0,
        error: None,
        created_at: BEGIN,
        ended_at: None,
    }
}

/// A result that leads on.
pub fn good(kind: ItemKind) -> WorkResult {
    let plan = planned("r", &[("a", &[], "a.py"), ("b", &["a"], "b.py")]).plan;
    let data = match kind {
        ItemKind::PromptToSpec => json!({"spec": {"requirements": [{"id": "R1", "text": "one"}]}}),
        ItemKind::SpecToFullSpec => json!({"full_spec": {"components": []}}),
        ItemKind::FullSpecToPlan => json!({"plan": plan}),
        ItemKind::Optimize => json!({"pack": "files"}),
        ItemKind::Execute => json!({"commit": "c1", "base_commit": "c0", "tree": "/t"}),
        ItemKind::Review => json!({"passed": true, "confidence": 0.9, "feedback": ""}),
        ItemKind::Accept => json!({"accepted": true, "commit": "c2", "files": ["a.py"]}),
        ItemKind::Work => json!({"answer": 42}),
    };
    WorkResult::success(data.as_object().cloned().unwrap_or_default())
}

pub fn code<T: std::fmt::Debug>(answer: Result<T, Problem>) -> String {
    let problem = answer.expect_err("this should have been refused");
    assert!(!problem.message.is_empty());
    problem.code
}

/// Runs one sentence on one backend.
pub fn prove<B: Backend, F: Future<Output = ()>>(sentence: impl FnOnce(World) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async { sentence(World::new::<B>()).await });
}

/// One `#[test]` per sentence, in a module named after the backend.
#[macro_export]
macro_rules! conformance_tests {
    ($module:ident, $backend:ty) => {
        mod $module {
            $crate::conformance_tests!(@ $backend;
                budget: [
                    budget_1_what_does_not_fit_is_refused_and_writes_nothing,
                    budget_1_a_settled_reservation_counts_what_was_used,
                    budget_1_a_step_settles_its_reservation_with_its_end,
                    budget_1_a_step_that_failed_without_a_known_usage_is_charged_whole,
                    budget_1_an_open_reservation_is_charged_whole_after_a_crash,
                    budget_1_a_reservation_that_a_claim_left_open_is_unknown,
                    budget_1_money_is_counted_too,
                    budget_1_an_item_without_a_run_has_no_limit,
                    budget_1_concurrent_reservations_never_exceed_the_budget,
                    budget_1_a_refusal_says_what_is_left,
                    budget_1_what_fits_once_requests_under_way_have_ended_is_told_apart,
                    budget_1_nobody_waits_for_what_an_agent_holds_by_hand,
                    budget_1_a_request_without_a_price_is_refused_under_a_limit_in_dollars,
                    budget_1_calls_are_counted_whatever_came_of_them,
                    budget_1_a_task_has_an_account_of_its_own,
                    budget_1_an_agent_has_an_account_of_its_own,
                    budget_1_people_are_warned_once_at_80_and_at_95_percent_of_each_limit,
                    budget_1_what_a_crash_leaves_unknown_is_warned_of_too,
                    budget_1_time_counts_while_a_run_is_worked_on_and_not_while_it_is_stopped,
                    budget_1_after_a_crash_time_counts_up_to_the_last_sign_of_life,
                    budget_1_the_time_of_a_task_and_of_an_agent_is_that_of_their_claims,
                    budget_1_looking_at_the_time_wakes_nobody,
                    budget_1_a_resume_with_no_more_than_what_is_spent_is_refused,
                    budget_1_a_run_that_was_interrupted_with_all_spent_may_be_finished,
                    budget_1_a_resume_counts_what_a_crash_left_open,
                    budget_1_a_task_that_has_ended_does_not_stop_a_resume,
                    budget_1_any_order_of_reserving_settling_and_crashing_keeps_the_limit,
                ]
                claiming: [
                    the_highest_priority_goes_first_and_then_the_oldest,
                    nothing_waits_for_ever_behind_what_is_more_urgent,
                    a_role_gets_only_its_own_items,
                    a_claim_says_who_in_two_events,
                    a_claim_brings_its_run_its_task_and_the_joined_gate,
                    a_claimed_task_runs,
                    an_item_waits_for_all_that_it_depends_on,
                    a_dependency_that_is_done_is_not_waited_for,
                    what_depends_on_a_failure_is_cancelled_and_not_left_waiting,
                    a_delayed_item_is_not_given_out_before_its_time,
                    an_expired_lease_is_given_to_another_and_counts_as_a_crash,
                    a_renewal_extends_a_lease_and_never_shortens_it,
                    a_file_scope_is_held_while_an_item_runs,
                    a_task_holds_its_scope_between_its_items,
                    a_task_that_names_no_scope_runs_alone,
                    many_held_items_do_not_hide_a_free_one,
                    one_acceptance_at_a_time_per_run,
                    items_of_a_run_go_only_to_its_boot,
                    items_without_a_run_go_to_any_boot,
                    an_item_that_a_dead_boot_held_goes_to_another,
                    what_a_dead_boot_held_is_taken_back_at_once_by_a_boot_that_lives,
                    a_cancelled_item_is_not_given_out,
                    an_item_of_a_run_is_not_cancelled_alone,
                    the_queue_counts_what_is_ready_running_and_waiting,
                    a_parked_item_waits_and_says_until_when_and_why,
                    a_run_waits_only_while_all_that_it_has_is_parked,
                    a_parked_item_keeps_its_time_when_its_run_is_resumed_or_stopped,
                ]
                commands: [
                    claims_under_way_are_told_by_the_boot_that_holds_them,
                    what_a_boot_said_of_its_agents_is_told_apart,
                    a_command_is_taken_once_by_the_boot_that_owns_the_run,
                    a_command_that_names_nothing_is_refused,
                    a_command_for_a_dead_process_does_not_hit_the_next,
                    commits_of_another_process_are_seen_once_and_own_ones_never,
                ]
                dead_letters: [
                    dead_letters_are_listed_with_their_reason_oldest_first,
                    a_requeued_item_is_done_as_if_it_had_never_crashed,
                    a_requeued_item_waits_its_turn_behind_what_is_there,
                    a_discarded_item_is_forgotten_with_its_key,
                    only_a_dead_letter_is_requeued_or_discarded,
                    a_dead_letter_of_a_run_is_a_matter_of_its_task,
                ]
                durability: [
                    dur_1_a_submitted_item_is_there_when_the_answer_is,
                    dur_1_a_submitted_run_has_its_phases_and_events,
                    dur_1_a_submitted_plan_has_its_tasks_in_order,
                    dur_1_runs_are_listed_oldest_first,
                    dur_1_a_refused_submission_leaves_nothing,
                    dur_1_an_item_that_cannot_be_used_is_refused,
                    dur_1_a_used_id_is_refused,
                    dur_1_the_same_key_gives_the_same_item_and_stores_nothing,
                    dur_1_the_same_key_gives_the_same_run_and_stores_nothing,
                    dur_1_everything_is_there_for_the_next_boot,
                    dur_2_a_result_its_followers_and_its_events_are_there_together,
                    dur_2_a_run_walks_to_its_end_and_its_last_event_says_so,
                    dur_2_item_numbers_rise_within_a_run,
                    dur_2_an_honest_failure_is_a_result,
                    dur_2_a_refused_operation_leaves_no_event,
                    dur_3_events_have_no_gaps_under_64_submitters,
                    dur_3_the_watch_carries_the_last_sequence_after_the_commit,
                    dur_3_a_claim_that_finds_nothing_wakes_nobody,
                    who_waits_for_an_item_is_told_of_its_end,
                    a_role_that_may_have_got_work_is_named,
                    dur_3_events_say_when_in_utc_with_milliseconds,
                    dur_3_events_come_back_as_they_were_given,
                    dur_3_events_are_read_from_a_sequence_in_portions,
                    dur_3_events_of_a_run_are_its_own_and_those_of_its_boots,
                    dur_3_events_of_an_agent_are_those_of_this_boot,
                ]
                fencing: [
                    fence_1_every_claim_raises_the_epoch,
                    fence_1_a_stale_writer_changes_nothing,
                    fence_1_a_cancelled_item_is_fenced,
                    fence_1_items_of_a_stopped_run_are_fenced,
                    fence_1_items_of_a_cancelled_run_are_fenced,
                    fence_1_an_expired_claim_is_fenced_once_another_took_over,
                    fence_1_an_unknown_item_is_an_error,
                    fence_3_a_boot_lives_until_its_handle_is_gone,
                    once_1_an_item_is_completed_once,
                    once_1_claimers_never_share_an_item,
                ]
                journal: [
                    steps_are_numbered_within_item_and_attempt,
                    a_step_keeps_its_output_or_its_error,
                    a_step_that_gave_nothing_is_not_one_without_output,
                    steps_say_when_they_begin_and_end,
                    a_step_that_is_not_open_cannot_end,
                    a_step_that_a_claim_left_open_is_unknown_and_the_number_goes_on,
                    an_artifact_is_replaced_under_its_name,
                    the_newest_artifact_of_a_name_is_read,
                    the_journals_of_a_task_are_those_of_all_its_items_and_attempts,
                    the_journal_of_a_phase_is_read_by_its_name,
                    a_journal_says_what_was_set_aside_and_whose_cost_nobody_knows,
                ]
                poison: [
                    three_crashes_on_two_generations_are_poison,
                    crashes_on_one_generation_are_the_agents_fault,
                    only_a_crash_is_a_crash,
                    a_finished_step_counts_crashes_from_zero,
                    a_release_says_why_and_by_whom,
                    a_dead_item_of_a_task_fails_the_task,
                    an_item_that_is_given_up_has_its_problem,
                ]
                retention: [
                    retention_forgets_what_ended_before_and_nothing_else,
                    what_has_not_ended_is_never_forgotten,
                    a_forgotten_item_takes_its_key_along,
                    a_forgotten_run_takes_all_that_was_its_own,
                    dur_3_the_sequence_of_a_forgotten_event_is_not_used_again,
                ]
                runs: [
                    a_run_goes_on_in_another_boot_after_death,
                    run_resumed_is_the_first_event_of_an_adoption,
                    a_run_killed_any_number_of_times_is_resumed_and_nobody_is_charged,
                    a_run_whose_boot_lives_is_not_adopted,
                    a_run_that_ended_is_not_adopted,
                    an_adopted_run_gets_the_budget_that_is_given,
                    an_adopted_run_shows_the_events_of_both_boots,
                    a_stopped_run_gives_nothing_out_and_can_be_resumed,
                    a_stopped_run_may_go_on_in_another_boot_at_once,
                    a_run_that_another_boot_took_over_is_not_stopped_by_the_boot_before,
                    the_first_reason_to_stop_is_kept,
                    a_cancelled_run_cancels_its_items_and_tasks,
                    an_interrupted_run_can_be_cancelled_from_anywhere,
                    a_workspace_has_one_live_run,
                    an_expired_lease_of_an_own_run_is_given_out_again,
                    every_attempt_is_kept_with_all_that_was_seen_and_said,
                    a_failed_task_gets_new_attempts_and_what_was_skipped_waits_again,
                    a_retried_run_belongs_to_the_boot_that_retried_it,
                    a_retry_that_cannot_be_is_refused_and_changes_nothing,
                    a_paused_run_gives_nothing_out_finishes_what_runs_and_goes_on,
                    only_the_boot_that_drives_a_run_pauses_it,
                    a_paused_run_whose_process_died_is_resumed,
                ]
                submitting: [
                    an_item_of_a_unique_key_is_submitted_once_as_long_as_it_lives,
                    a_dead_letter_is_not_requeued_beside_another_of_its_unique_key,
                    a_delayed_item_is_begun_at_its_time_and_not_ahead_of_its_turn,
                    what_nobody_began_before_its_deadline_has_failed,
                    a_deadline_that_leaves_no_time_is_refused,
                ]
            );
        }
    };
    (@ $backend:ty; $($topic:ident: [$($sentence:ident),+ $(,)?])+) => {
        $($(
            #[test]
            fn $sentence() {
                $crate::conformance::prove::<$backend, _>($crate::conformance::$topic::$sentence);
            }
        )+)+
    };
}

#[cfg(test)]
mod on_every_backend {
    use super::Backend;
    use crate::{Clock, MemoryStore, SqliteStore, Store};
    use std::sync::Arc;

    pub(super) struct Memory(MemoryStore);

    impl Backend for Memory {
        fn new(clock: Clock) -> Self {
            Self(MemoryStore::with_clock(clock))
        }

        fn boot(&self) -> Arc<dyn Store> {
            Arc::new(self.0.another_boot())
        }
    }

    pub(super) struct Sqlite {
        folder: tempfile::TempDir,
        clock: Clock,
    }

    impl Backend for Sqlite {
        fn new(clock: Clock) -> Self {
            Self { folder: tempfile::tempdir().unwrap(), clock }
        }

        fn boot(&self) -> Arc<dyn Store> {
            let path = self.folder.path().join("store.db");
            Arc::new(SqliteStore::with_clock(&path, Arc::clone(&self.clock)).unwrap())
        }
    }

    crate::conformance_tests!(memory, crate::conformance::on_every_backend::Memory);
    crate::conformance_tests!(sqlite, crate::conformance::on_every_backend::Sqlite);

    /// A sentence that nobody lists would be proven by nobody.
    #[test]
    fn every_sentence_is_in_the_list() {
        let list = include_str!("conformance.rs");
        let topics = [
            include_str!("conformance/budget.rs"),
            include_str!("conformance/claiming.rs"),
            include_str!("conformance/commands.rs"),
            include_str!("conformance/dead_letters.rs"),
            include_str!("conformance/durability.rs"),
            include_str!("conformance/fencing.rs"),
            include_str!("conformance/journal.rs"),
            include_str!("conformance/poison.rs"),
            include_str!("conformance/retention.rs"),
            include_str!("conformance/runs.rs"),
            include_str!("conformance/submitting.rs"),
        ];
        for line in topics.iter().flat_map(|topic| topic.lines()) {
            if let Some(name) = line.strip_prefix("pub async fn ").and_then(|rest| rest.split('(').next()) {
                assert!(list.contains(&format!(" {name},")), "{name} is not in the list of conformance_tests!");
            }
        }
    }
}
