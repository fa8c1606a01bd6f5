use super::*;
use crate::plan::{Acceptance, PlanTask};
use crate::record::{Budget, RunOptions};
use proptest::prelude::*;

fn run(plan: Option<Plan>) -> Run {
    Run {
        id: "r-1".into(),
        prompt: Some("make it".into()),
        spec: None,
        plan,
        workspace: "/w".into(),
        options: RunOptions::default(),
        budget: Budget::default(),
        state: RunState::Running,
        phase: Phase::PromptToSpec,
        boot: None,
        resumes: 0,
        error: None,
        created_at: 0,
        ended_at: None,
    }
}

fn plan(tasks: &[(&str, &[&str])]) -> Plan {
    let tasks = tasks.iter().map(|(id, depends_on)| PlanTask {
        id: (*id).into(),
        title: format!("do {id}"),
        description: String::new(),
        depends_on: depends_on.iter().map(|text| (*text).into()).collect(),
        file_scope: vec![format!("{id}.py")],
        acceptance: vec![Acceptance { command: format!("test {id}"), timeout_seconds: 1.0 }],
    });
    Plan { setup: vec![], tasks: tasks.collect() }
}

/// A store of a few lines: enough to walk a run through the pure function.
struct World {
    run: Run,
    tasks: Vec<Task>,
    open: Vec<Item>,
    events: Vec<EventKind>,
    attempts: Vec<Attempt>,
    number: u64,
}

impl World {
    fn new(run: Run) -> Self {
        let advance = first_items(&run).unwrap();
        let mut world = Self { run, tasks: vec![], open: vec![], events: vec![], attempts: vec![], number: 1 };
        world.apply(advance);
        world
    }

    fn view(&self) -> View<'_> {
        View { run: &self.run, tasks: &self.tasks, next_number: self.number }
    }

    fn apply(&mut self, advance: Advance) {
        self.number += advance.items.len() as u64;
        self.open.extend(advance.items);
        self.attempts.extend(advance.attempts);
        self.events.extend(advance.events.iter().map(|event| event.kind));
        for task in advance.tasks {
            match self.tasks.iter_mut().find(|known| known.spec.id == task.spec.id) {
                Some(known) => *known = task,
                None => self.tasks.push(task),
            }
        }
        if let Some(run) = advance.run {
            self.run = run;
        }
        if self.run.state.is_terminal() {
            self.open.clear();
        }
    }

    fn take(&mut self, kind: ItemKind) -> Item {
        let at = self.open.iter().position(|item| item.kind == kind).unwrap_or_else(|| panic!("no {kind} is open"));
        self.open.remove(at)
    }

    fn give(&mut self, item: &Item, result: &WorkResult) -> Advance {
        let advance = next_items(self.view(), item, result);
        self.apply(advance.clone());
        advance
    }

    fn task(&self, id: &str) -> &Task {
        self.tasks.iter().find(|task| task.spec.id == id).unwrap()
    }
}

fn data(value: Value) -> WorkResult {
    WorkResult::success(value.as_object().unwrap().clone())
}

fn good(kind: ItemKind) -> WorkResult {
    data(match kind {
        ItemKind::PromptToSpec => json!({"spec": {"requirements": [{"id": "R1", "text": "one"}]}}),
        ItemKind::SpecToFullSpec => json!({"full_spec": {}}),
        ItemKind::FullSpecToPlan => json!({"plan": plan(&[("a", &[]), ("b", &[]), ("c", &["a", "b"])])}),
        ItemKind::Optimize => json!({"pack": "files"}),
        ItemKind::Execute => json!({"commit": "c1", "base_commit": "c0", "tree": "/t"}),
        ItemKind::Review => json!({"passed": true, "confidence": 0.9, "feedback": ""}),
        ItemKind::Accept => json!({"accepted": true, "commit": "c2", "files": ["a.py"]}),
        ItemKind::Work => json!({}),
    })
}

#[test]
fn a_prompt_walks_through_all_phases_and_every_task_through_its_four_items() {
    let mut world = World::new(run(None));
    let mut kinds = Vec::new();
    while let Some(item) = world.open.pop() {
        kinds.push(item.kind);
        world.give(&item, &good(item.kind));
    }
    assert_eq!(world.run.state, RunState::Done);
    assert_eq!(world.run.phase, Phase::Complete);
    assert_eq!(kinds.len(), 3 + 3 * 4);
    assert_eq!(world.events.iter().filter(|kind| **kind == EventKind::PhaseCompleted).count(), 4);
    assert_eq!(world.events.last(), Some(&EventKind::RunCompleted));
}

#[test]
fn a_task_is_released_only_when_all_it_depends_on_is_accepted() {
    let mut world = World::new(run(Some(plan(&[("a", &[]), ("b", &[]), ("c", &["a", "b"])]))));
    assert_eq!(world.open.len(), 2);
    for _ in 0..2 {
        for kind in [ItemKind::Optimize, ItemKind::Execute, ItemKind::Review, ItemKind::Accept] {
            assert_eq!(world.task("c").state, TaskState::Blocked);
            let item = world.take(kind);
            world.give(&item, &good(kind));
        }
    }
    assert_eq!(world.task("c").state, TaskState::Ready);
}

#[test]
fn a_given_plan_skips_the_first_three_phases() {
    let advance = first_items(&run(Some(plan(&[("a", &[])])))).unwrap();
    let skipped = advance.phases.iter().filter(|change| change.state == PhaseState::Skipped).count();
    assert_eq!(skipped, 3);
    assert_eq!(advance.items[0].kind, ItemKind::Optimize);
}

#[test]
fn truth_1_a_rejection_is_the_next_attempts_feedback_and_the_third_is_the_last() {
    let mut world = World::new(run(Some(plan(&[("a", &[]), ("b", &["a"])]))));
    for attempt in 1..=3 {
        for kind in [ItemKind::Optimize, ItemKind::Execute] {
            let item = world.take(kind);
            assert_eq!(item.work.attempt, attempt);
            let feedback = item.work.context.get("feedback").and_then(Value::as_str);
            assert_eq!(feedback, (attempt > 1).then_some("1 != 2"));
            world.give(&item, &good(kind));
        }
        let review = world.take(ItemKind::Review);
        world.give(&review, &data(json!({"passed": false, "feedback": "1 != 2"})));
    }
    assert_eq!(world.task("a").state, TaskState::Failed);
    assert_eq!(world.task("b").state, TaskState::Skipped);
    assert_eq!(world.run.state, RunState::Failed);
    assert_eq!(world.attempts.len(), 3);
    assert!(world.open.is_empty());
}

#[test]
fn a_reviewer_that_cannot_answer_is_asked_again_and_that_is_no_rejection() {
    let mut world = World::new(run(Some(plan(&[("a", &[])]))));
    for kind in [ItemKind::Optimize, ItemKind::Execute] {
        let item = world.take(kind);
        world.give(&item, &good(kind));
    }
    for _ in 0..2 {
        let review = world.take(ItemKind::Review);
        world.give(&review, &WorkResult::failure("prose where JSON was due"));
        assert_eq!((world.task("a").attempt, world.task("a").state), (1, TaskState::Reviewing));
    }
    let review = world.take(ItemKind::Review);
    world.give(&review, &WorkResult::failure("prose where JSON was due"));
    assert_eq!(world.task("a").state, TaskState::Failed);
    assert!(world.run.error.as_ref().unwrap()["reason"].as_str().unwrap().contains("prose where JSON was due"));
}

#[test]
fn a_rework_starts_from_the_rejected_commit_unless_the_reviewer_says_start_over() {
    for start_over in [false, true] {
        let mut world = World::new(run(Some(plan(&[("a", &[])]))));
        for kind in [ItemKind::Optimize, ItemKind::Execute] {
            let item = world.take(kind);
            world.give(&item, &good(kind));
        }
        let review = world.take(ItemKind::Review);
        world.give(&review, &data(json!({"passed": false, "feedback": "no", "start_over": start_over})));
        let again = world.take(ItemKind::Optimize);
        let expected = if start_over { Value::Null } else { json!("c1") };
        assert_eq!(again.work.context["rejected_commit"], expected);
    }
}

#[test]
fn a_rework_knows_everything_that_was_tried() {
    let mut world = World::new(run(Some(plan(&[("a", &[])]))));
    for attempt in 1..=3 {
        let item = world.take(ItemKind::Optimize);
        let tried = item.work.context["tried"].as_array().unwrap().clone();
        assert_eq!(tried.len(), attempt - 1);
        if attempt == 3 {
            assert_eq!(tried[0], json!({"attempt": 1, "summary": "did it", "feedback": "no 1"}));
            assert_eq!(tried[1]["feedback"], "no 2");
        }
        world.give(&item, &good(ItemKind::Optimize));
        let item = world.take(ItemKind::Execute);
        assert_eq!(item.work.context["tried"], json!(tried), "the executor is told");
        world.give(&item, &data(json!({"commit": "c1", "base_commit": "c0", "tree": "/t", "summary": "did it"})));
        let review = world.take(ItemKind::Review);
        world.give(&review, &data(json!({"passed": false, "feedback": format!("no {attempt}")})));
    }
    assert_eq!(world.attempts.len(), 3);
    assert!(world.attempts.iter().all(|ended| ended.commit.as_deref() == Some("c1") && ended.base.is_some()));
    assert_eq!(world.attempts[1].review.as_ref().unwrap()["feedback"], "no 2");
}

#[test]
fn truth_1_evidence_is_of_the_attempt_that_made_it() {
    let seen = |result: WorkResult, what: &str| WorkResult { evidence: vec![json!(what)], ..result };
    let mut world = World::new(run(Some(plan(&[("a", &[])]))));
    for kind in [ItemKind::Optimize, ItemKind::Execute] {
        let item = world.take(kind);
        world.give(&item, &seen(good(kind), "file 1"));
    }
    let review = world.take(ItemKind::Review);
    world.give(&review, &seen(data(json!({"passed": false, "feedback": "no"})), "red"));
    assert_eq!(world.attempts[0].evidence, [json!("file 1"), json!("red")]);
    assert!(world.task("a").evidence.is_empty() && world.task("a").review.is_none(), "a new attempt has none yet");
    let item = world.take(ItemKind::Optimize);
    world.give(&item, &good(ItemKind::Optimize));
    let item = world.take(ItemKind::Execute);
    world.give(&item, &seen(WorkResult::failure("turn limit used up"), "nothing was changed"));
    assert_eq!(world.attempts[1].evidence, [json!("nothing was changed")]);
}

#[test]
fn truth_1_a_task_that_could_never_be_shown_is_refused_before_it_is_begun() {
    let mut world = World::new(run(Some(plan(&[("a", &[]), ("b", &["a"])]))));
    let item = world.take(ItemKind::Optimize);
    let refused = data(json!({"refused": true, "feedback": "all commands are green before"}));
    world.give(&item, &WorkResult { evidence: vec![json!("green")], ..refused });
    assert_eq!((world.task("a").state, world.task("b").state), (TaskState::Failed, TaskState::Skipped));
    assert_eq!(world.attempts[0].verdict, "refused");
    assert_eq!(world.attempts[0].evidence, [json!("green")]);
    assert!(world.run.error.as_ref().unwrap()["reason"].as_str().unwrap().contains("green before"));
}

#[test]
fn truth_1_what_was_measured_before_comes_from_the_optimize_item_and_not_from_the_executor() {
    let mut world = World::new(run(Some(plan(&[("a", &[])]))));
    let item = world.take(ItemKind::Optimize);
    world.give(&item, &data(json!({"pack": "files", "base": {"commit": "c0"}})));
    let item = world.take(ItemKind::Execute);
    let forged =
        json!({"commit": "c1", "base_commit": "c0", "tree": "/t", "base": {"commit": "c0", "exit_codes": [1]}});
    world.give(&item, &data(forged));
    assert_eq!(world.take(ItemKind::Review).work.context["base"], json!({"commit": "c0"}));
}

#[test]
fn a_rework_starts_where_the_harness_says_while_the_attempt_keeps_its_own_commit() {
    let mut world = World::new(run(Some(plan(&[("a", &[])]))));
    for kind in [ItemKind::Optimize, ItemKind::Execute] {
        let item = world.take(kind);
        world.give(&item, &good(kind));
    }
    let review = world.take(ItemKind::Review);
    world.give(&review, &data(json!({"passed": false, "feedback": "no", "rework_commit": "c1-old-tests"})));
    assert_eq!(world.attempts[0].commit.as_deref(), Some("c1"));
    assert_eq!(world.take(ItemKind::Optimize).work.context["rejected_commit"], "c1-old-tests");
}

#[test]
fn truth_1_an_execution_without_a_commit_is_never_a_success() {
    let mut world = World::new(run(Some(plan(&[("a", &[])]))));
    let item = world.take(ItemKind::Optimize);
    world.give(&item, &good(ItemKind::Optimize));
    let item = world.take(ItemKind::Execute);
    let advance = world.give(&item, &data(json!({"summary": "done, believe me"})));
    assert_eq!(advance.item_state, Some(ItemState::Failed));
    assert_eq!(world.task("a").attempt, 2);
}

#[test]
fn a_conflict_with_the_users_file_fails_the_task_at_once() {
    let mut world = World::new(run(Some(plan(&[("a", &[]), ("b", &[])]))));
    for kind in [ItemKind::Optimize, ItemKind::Execute, ItemKind::Review] {
        let item = world.take(kind);
        world.give(&item, &good(kind));
    }
    let item = world.take(ItemKind::Accept);
    world.give(&item, &data(json!({"accepted": false, "conflict": true, "feedback": "a.py was changed"})));
    assert_eq!(world.task("a").state, TaskState::Conflict);
    assert_eq!(world.run.state, RunState::Running, "the other task goes on");
}

#[test]
fn a_plan_with_a_circle_is_sent_back_to_the_orchestrator_with_the_reason() {
    let mut world = World::new(run(None));
    for kind in [ItemKind::PromptToSpec, ItemKind::SpecToFullSpec] {
        let item = world.take(kind);
        world.give(&item, &good(kind));
    }
    for attempt in 1..=3 {
        let item = world.take(ItemKind::FullSpecToPlan);
        assert_eq!(item.work.attempt, attempt);
        world.give(&item, &data(json!({"plan": plan(&[("a", &["b"]), ("b", &["a"])])})));
    }
    assert_eq!(world.run.state, RunState::Failed);
    assert!(world.run.error.as_ref().unwrap()["reason"].as_str().unwrap().contains("circle"));
}

#[test]
fn a_dead_item_fails_its_task_and_skips_what_waits_for_it() {
    let mut world = World::new(run(Some(plan(&[("a", &[]), ("b", &["a"]), ("c", &[])]))));
    let item = world.take(ItemKind::Optimize);
    let problem = Problem::new(ProblemKind::Agent, codes::POISON, "it took its agent down 3 times");
    let advance = item_dead(world.view(), &item, ItemState::Dead, &problem);
    world.apply(advance);
    assert_eq!(world.task("a").state, TaskState::Failed);
    assert_eq!(world.task("b").state, TaskState::Skipped);
    assert_eq!(world.run.state, RunState::Running);
}

#[test]
fn a_task_gets_the_requirements_it_names_and_otherwise_itself() {
    let mut named = run(None);
    named.spec = Some(json!({"requirements": [{"id": "R1", "text": "one"}, {"id": "R12", "text": "twelve"}]}));
    let mut world = World::new(run(Some(plan(&[("a", &[])]))));
    let mut task = world.tasks.remove(0);
    assert_eq!(requirements(&named, &task), json!([{"id": "a", "text": "do a"}]));
    task.spec.description = "covers R12.".into();
    assert_eq!(requirements(&named, &task), json!([{"id": "R12", "text": "twelve"}]));
}

proptest! {
    /// Whatever agents answer, a run ends, no task gets a fourth attempt, and success means that all were accepted.
    #[test]
    fn every_run_ends_and_done_means_all_accepted(answers in proptest::collection::vec(0u8..10, 0..400)) {
        let mut world = World::new(run(Some(plan(&[("a", &[]), ("b", &[]), ("c", &["a", "b"]), ("d", &["c"])]))));
        let mut answers = answers.into_iter();
        let mut steps = 0;
        while let Some(item) = world.open.pop() {
            steps += 1;
            prop_assert!(steps <= 4 * 3 * (4 + 2));
            let result = match answers.next().unwrap_or(9) {
                0 => WorkResult::failure("no"),
                1 if item.kind == ItemKind::Review => data(json!({"passed": false, "feedback": "f"})),
                1 if item.kind == ItemKind::Accept => data(json!({"accepted": false, "feedback": "merge"})),
                2 if item.kind == ItemKind::Accept => data(json!({"accepted": false, "conflict": true})),
                _ => good(item.kind),
            };
            world.give(&item, &result);
        }
        prop_assert!(world.run.state.is_terminal());
        prop_assert!(world.tasks.iter().all(|task| task.attempt <= MAX_ATTEMPTS && task.state.is_terminal()));
        let all = world.tasks.iter().all(|task| task.state == TaskState::Accepted);
        prop_assert_eq!(world.run.state == RunState::Done, all);
    }
}
