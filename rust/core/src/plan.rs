//! Plans: tasks with dependencies, checked before anything is stored.

use crate::acceptance::can_fail;
use crate::error::{Problem, codes};
use crate::validation::{Finding, MOST_ENTRIES, is_inside, refuse, warn_of_vague_words};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// Seconds that an acceptance command may ask for.
const LONGEST_COMMAND: f64 = 3_600.0;

fn default_timeout() -> f64 {
    120.0
}

/// A shell command that proves a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acceptance {
    /// For `/bin/sh -c`, in the tree.
    pub command: String,
    /// Seconds.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: f64,
}

/// One task of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanTask {
    /// Unique in the plan.
    pub id: String,
    /// One line.
    pub title: String,
    /// What to do.
    #[serde(default)]
    pub description: String,
    /// Tasks that must be accepted before.
    #[serde(default)]
    pub depends_on: Vec<String>,
    /// Path prefixes it may change.
    #[serde(default)]
    pub file_scope: Vec<String>,
    /// What proves it.
    pub acceptance: Vec<Acceptance>,
}

/// The tasks that turn a full specification into files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Shell commands that prepare a fresh tree.
    #[serde(default)]
    pub setup: Vec<String>,
    /// At least one.
    pub tasks: Vec<PlanTask>,
}

impl Plan {
    /// Refuses what could never be finished; see [`Plan::findings`].
    ///
    /// # Errors
    /// All that is wrong, under the code of the first.
    pub fn validate(&self) -> Result<(), Problem> {
        refuse("plan", &self.findings())
    }

    /// Everything that is wrong with the plan: ids used twice, dependencies on nothing and in circles, then task by task
    /// its form, its scope and its proof.
    pub fn findings(&self) -> Vec<Finding> {
        if self.tasks.is_empty() || self.tasks.len() > MOST_ENTRIES {
            let message = if self.tasks.is_empty() { "there is no task" } else { "there are more than 10,000 tasks" };
            let count = self.tasks.len().to_string();
            let fix = "give 1 to 10,000 tasks; one task is done in one go by one agent";
            return vec![Finding::new(codes::PLAN_INVALID, "tasks", &count, message, fix)];
        }
        let mut found = Vec::new();
        let mut places = HashMap::with_capacity(self.tasks.len());
        for (at, task) in self.tasks.iter().enumerate() {
            if places.contains_key(task.id.as_str()) {
                let path = format!("tasks[{at}].id");
                let message = format!("the task id {:?} is used twice", task.id);
                found.push(Finding::new(codes::PLAN_DUPLICATE, path, &task.id, message, "choose another id"));
            } else {
                places.insert(task.id.as_str(), at);
            }
        }
        let mut depends_on: Vec<Vec<usize>> =
            self.tasks.iter().map(|task| Vec::with_capacity(task.depends_on.len())).collect();
        for (at, task) in self.tasks.iter().enumerate() {
            let is_first_of_its_id = places[task.id.as_str()] == at;
            for (number, id) in task.depends_on.iter().enumerate() {
                let Some(place) = places.get(id.as_str()) else {
                    let path = format!("tasks[{at}].depends_on[{number}]");
                    let message = format!("task {:?} depends on {id:?}, which is no task of the plan", task.id);
                    let fix = "name a task of the plan, or take the entry out";
                    found.push(Finding::new(codes::PLAN_DANGLING, path, id, message, fix));
                    continue;
                };
                if is_first_of_its_id {
                    depends_on[at].push(*place);
                }
            }
        }
        for cycle in cycles(&depends_on, &places) {
            let path = format!("tasks[{}].depends_on", cycle[0]);
            let ids: Vec<&str> = cycle.iter().map(|at| self.tasks[*at].id.as_str()).collect();
            let message = format!("the tasks {} depend on each other in a circle", shown(&ids));
            let fix = "take one of these dependencies out, or split a task";
            found.push(Finding::new(codes::PLAN_CYCLE, path, ids[1], message, fix));
        }
        for (at, command) in self.setup.iter().enumerate() {
            if command.trim().is_empty() || command.contains('\0') {
                let (path, fix) = (format!("setup[{at}]"), "write a shell command, or take the entry out");
                found.push(Finding::new(codes::PLAN_INVALID, path, command, "this is no command", fix));
            }
        }
        for (at, task) in self.tasks.iter().enumerate() {
            task.findings(at, &mut found);
        }
        found
    }

    /// What may be meant otherwise: vague words, a task without a scope beside others, and tasks that change the same files
    /// without waiting for each other.
    pub fn warnings(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        for (at, task) in self.tasks.iter().enumerate().take(MOST_ENTRIES) {
            let path = |field: &str| format!("tasks[{at}].{field}");
            if task.file_scope.is_empty() && self.tasks.len() > 1 {
                let message = "without a scope the task may change everything, and so runs alone";
                let fix = "name the paths that it may change, so that other tasks can be worked on meanwhile";
                found.push(Finding::warning(path("file_scope"), "", message, fix));
            }
            if names_one_twice(&task.depends_on) {
                let (message, fix) = ("a task is named twice", "name it once");
                found.push(Finding::warning(path("depends_on"), "", message, fix));
            }
            warn_of_vague_words(|| path("title"), &task.title, &mut found);
            warn_of_vague_words(|| path("description"), &task.description, &mut found);
        }
        self.warn_of_overlaps(&mut found);
        found
    }

    /// Two tasks that change the same files and do not wait for each other are worked on one after the other.
    fn warn_of_overlaps(&self, found: &mut Vec<Finding>) {
        let mut owners: HashMap<&str, usize> = HashMap::new();
        for (at, task) in self.tasks.iter().enumerate().take(MOST_ENTRIES) {
            for scope in &task.file_scope {
                let whole = scope.trim_matches('/');
                let ends = whole.match_indices('/').map(|(end, _)| end).chain([whole.len()]);
                let Some(owner) = ends.filter_map(|end| owners.get(&whole[..end])).next().filter(|owner| **owner != at)
                else {
                    owners.insert(whole, at);
                    continue;
                };
                let other = &self.tasks[*owner];
                if !task.depends_on.contains(&other.id) && !other.depends_on.contains(&task.id) {
                    let message =
                        format!("task {:?} changes it too, so they are worked on one after the other", other.id);
                    let fix = "give each its own files, or let one depend on the other";
                    found.push(Finding::warning(format!("tasks[{at}].file_scope"), scope, message, fix));
                }
            }
        }
    }
}

impl PlanTask {
    fn findings(&self, at: usize, found: &mut Vec<Finding>) {
        let mut add = |code, field: &str, value: &str, message: &str, fix: &str| {
            found.push(Finding::new(code, format!("tasks[{at}].{field}"), value, message, fix));
        };
        let invalid = codes::PLAN_INVALID;
        if !is_task_id(&self.id) {
            let fix = "use 1 to 64 letters, digits, dots, dashes and underscores, and a letter or digit first";
            add(invalid, "id", &self.id, "this is no id of a task", fix);
        }
        if self.title.trim().is_empty() || self.title.contains('\0') {
            add(invalid, "title", &self.title, "this is no title", "say in one line what the task makes");
        }
        if self.description.contains('\0') {
            add(invalid, "description", "", "it holds a NUL character, so it is no text", "take it out");
        }
        for (at, scope) in self.file_scope.iter().enumerate() {
            if !is_inside(scope) {
                let fix = "name a path inside the workspace, relative to it";
                let message = format!("task {:?} names the path {scope:?}, which is not inside the workspace", self.id);
                add(invalid, &format!("file_scope[{at}]"), scope, &message, fix);
            }
        }
        for (at, acceptance) in self.acceptance.iter().enumerate() {
            if acceptance.command.contains('\0') {
                let field = format!("acceptance[{at}].command");
                add(invalid, &field, "", "it holds a NUL character, so it is no command", "take it out");
            }
            let seconds = acceptance.timeout_seconds;
            if !(seconds > 0.0 && seconds <= LONGEST_COMMAND) {
                let field = format!("acceptance[{at}].timeout_seconds");
                let fix = "give a number of seconds above 0, at most 3600";
                add(invalid, &field, &seconds.to_string(), "it is no time limit", fix);
            }
        }
        if self.acceptance.iter().all(|acceptance| acceptance.command.trim().is_empty()) {
            let fix = "give a shell command that fails before the change and succeeds after it";
            add(invalid, "acceptance", "", &format!("task {:?} has no acceptance command", self.id), fix);
        } else if !self.acceptance.iter().any(|acceptance| can_fail(&acceptance.command)) {
            let command = &self.acceptance[0].command;
            let message = format!("task {:?} is proved by no command that can fail ({command})", self.id);
            let fix = "add one that fails before the change and succeeds after it, such as a test, or for a refactoring a \
                       new test, a lint rule or a size limit";
            add(codes::PLAN_PROVES_NOTHING, "acceptance", command, &message, fix);
        }
    }
}

/// Sorted, not hashed: the lists are short, and each task has one.
fn names_one_twice(ids: &[String]) -> bool {
    let mut sorted: Vec<&str> = ids.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    sorted.windows(2).any(|pair| pair[0] == pair[1])
}

fn is_task_id(id: &str) -> bool {
    let known = |char: char| char.is_ascii_alphanumeric() || matches!(char, '_' | '.' | '-');
    id.len() <= 64 && id.starts_with(|first: char| first.is_ascii_alphanumeric()) && id.chars().all(known)
}

/// A circle of any length, readable.
fn shown(cycle: &[&str]) -> String {
    const MOST: usize = 10;
    let rest = if cycle.len() > MOST { format!(" -> … ({} more)", cycle.len() - MOST) } else { String::new() };
    format!("{}{rest}", cycle[..cycle.len().min(MOST)].join(" -> "))
}

/// Circles of dependencies that share no task, each as a closed walk of places.
///
/// Tasks are taken away while they depend on nothing that is left; what cannot be taken away depends on a circle.
fn cycles(depends_on: &[Vec<usize>], places: &HashMap<&str, usize>) -> Vec<Vec<usize>> {
    let mut dependents = vec![Vec::new(); depends_on.len()];
    for (at, dependencies) in depends_on.iter().enumerate() {
        for dependency in dependencies {
            dependents[*dependency].push(at);
        }
    }
    let mut open: Vec<usize> = depends_on.iter().map(Vec::len).collect();
    let mut left = vec![true; depends_on.len()];
    let mut free: Vec<usize> = (0..depends_on.len()).filter(|at| open[*at] == 0).collect();
    let mut starts: Vec<(&&str, &usize)> = places.iter().collect();
    starts.sort_unstable(); // the same circle begins with the same task each time
    let mut found = Vec::new();
    for (_, start) in starts {
        loop {
            while let Some(at) = free.pop() {
                if std::mem::replace(&mut left[at], false) {
                    for dependent in &dependents[at] {
                        open[*dependent] -= 1;
                        if open[*dependent] == 0 {
                            free.push(*dependent);
                        }
                    }
                }
            }
            if !left[*start] {
                break;
            }
            let Some(cycle) = walk(*start, depends_on, &left) else {
                break;
            };
            free.extend(&cycle);
            found.push(cycle);
        }
    }
    for cycle in &mut found {
        cycle.push(cycle[0]);
    }
    found
}

/// Follows the first dependency that is left, from each task to the next, until one comes back.
fn walk(start: usize, depends_on: &[Vec<usize>], left: &[bool]) -> Option<Vec<usize>> {
    let mut step_of = BTreeMap::from([(start, 0)]);
    let mut path = vec![start];
    loop {
        let next = depends_on[path[path.len() - 1]].iter().copied().find(|at| left[*at])?;
        if let Some(step) = step_of.get(&next) {
            return Some(path.split_off(*step));
        }
        step_of.insert(next, path.len());
        path.push(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::{item_findings, item_warnings};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn task(id: &str, depends_on: &[&str]) -> PlanTask {
        PlanTask {
            id: id.into(),
            title: id.into(),
            description: String::new(),
            depends_on: depends_on.iter().map(|text| (*text).to_owned()).collect(),
            file_scope: vec![],
            acceptance: vec![Acceptance { command: "test -f x".into(), timeout_seconds: 1.0 }],
        }
    }

    fn plan(tasks: Vec<PlanTask>) -> Plan {
        Plan { setup: vec![], tasks }
    }

    fn told(plan: &Plan) -> Vec<(&'static str, String)> {
        plan.findings().into_iter().map(|finding| (finding.code, finding.path)).collect()
    }

    #[test]
    fn the_shared_cases_are_judged_as_they_say() {
        let text = include_str!("../../../tests/shared/validation.json");
        let cases: Vec<Value> = serde_json::from_str(text).unwrap();
        for case in &cases {
            let (name, value) = (&case["name"], case["value"].clone());
            let judged = match case["kind"].as_str().unwrap() {
                "plan" => serde_json::from_value::<Plan>(value).map(|plan| (plan.findings(), plan.warnings())),
                "work_item" => serde_json::from_value(value).map(|item| (item_findings(&item), item_warnings(&item))),
                _ => continue, // what only agents give and only Python reads
            };
            if case["form"] == json!(true) {
                assert!(judged.is_err(), "{name}: it has not the form");
                continue;
            }
            let (errors, warnings) = judged.unwrap();
            let errors: Vec<Value> = errors.iter().map(|finding| json!([finding.code, finding.path])).collect();
            assert_eq!(json!(errors), case["errors"], "{name}");
            let paths: Vec<&String> = warnings.iter().map(|finding| &finding.path).collect();
            assert_eq!(json!(paths), case["warnings"], "{name}");
        }
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once_with_value_and_fix() {
        let mut bad = task("a", &["nothing"]);
        bad.file_scope = vec!["../up".into()];
        let refused = plan(vec![bad, task("a", &[])]).validate().unwrap_err();
        assert_eq!(refused.code, codes::PLAN_DUPLICATE);
        assert!(refused.message.starts_with("the plan has 3 problems, the first at tasks[1].id: "), "{refused}");
        assert!(refused.reason.contains("tasks[0].depends_on[0]") && refused.reason.contains("\"../up\""), "{refused}");
        let told = &refused.data.unwrap()["problems"];
        assert_eq!((&told[1]["value"], told[2]["fix"].as_str().unwrap().is_empty()), (&json!("nothing"), false));
    }

    #[test]
    fn a_circle_is_shown_as_a_closed_walk_and_two_circles_are_two_findings() {
        let one = plan(vec![task("a", &["c"]), task("b", &["a"]), task("c", &["b"]), task("d", &["a"])]);
        assert_eq!(told(&one), [(codes::PLAN_CYCLE, "tasks[0].depends_on".to_owned())]);
        assert!(one.findings()[0].message.contains("a -> c -> b -> a"));
        let two = plan(vec![task("a", &["a"]), task("b", &["c"]), task("c", &["b", "a"])]);
        assert_eq!(told(&two).len(), 2);
    }

    #[test]
    fn a_long_circle_is_told_in_one_readable_line() {
        let tasks = (0..1000).map(|n| task(&format!("t{n}"), &[&format!("t{}", (n + 1) % 1000)])).collect();
        let text = plan(tasks).validate().unwrap_err().to_string();
        assert!(text.len() < 300 && text.contains("991 more"), "{text}");
    }

    #[test]
    fn truth_1_one_command_that_can_fail_is_enough() {
        let mut one = task("a", &[]);
        one.acceptance.insert(0, Acceptance { command: "true".into(), timeout_seconds: 1.0 });
        assert_eq!(plan(vec![one]).validate(), Ok(()));
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = serde_json::from_str::<Plan>(r#"{"tasks":[],"extra":1}"#).unwrap_err();
        assert!(error.to_string().contains("extra"));
    }

    fn tasks_of(edges: &[Vec<usize>]) -> Plan {
        let row = |to: &Vec<usize>| to.iter().map(|to| format!("{to:03}")).collect();
        let make = |(at, to)| PlanTask { depends_on: row(to), ..task(&format!("{at:03}"), &[]) };
        plan(edges.iter().enumerate().map(make).collect())
    }

    proptest! {
        #[test]
        fn edges_that_point_backwards_never_form_a_circle(picks in proptest::collection::vec(proptest::collection::vec(0usize..40, 0..4), 1..40)) {
            let edges: Vec<Vec<usize>> = picks.iter().enumerate()
                .map(|(index, row)| row.iter().copied().filter(|to| *to < index).collect())
                .collect();
            prop_assert_eq!(tasks_of(&edges).findings(), []);
        }

        #[test]
        fn every_ring_is_found_once(sizes in proptest::collection::vec(1usize..9, 1..6)) {
            let mut edges = Vec::new();
            for size in &sizes {
                let from = edges.len();
                edges.extend((0..*size).map(|at| vec![from + (at + 1) % size]));
            }
            prop_assert_eq!(tasks_of(&edges).findings().len(), sizes.len());
        }
    }
}
