//! Plans: tasks with dependencies, checked before anything is stored.

use crate::acceptance::can_fail;
use crate::error::{Problem, ProblemKind, codes};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

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

/// Why a plan is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// There is nothing to do.
    #[error("the plan has no task")]
    Empty,
    /// Two tasks with one id.
    #[error("the task id {0:?} is used twice")]
    Duplicate(String),
    /// A dependency that names nothing.
    #[error("task {task:?} depends on {missing:?}, which is no task of the plan")]
    Dangling {
        /// Who depends.
        task: String,
        /// On what.
        missing: String,
    },
    /// A task that waits for itself.
    #[error("the tasks {} depend on each other in a circle", shown(.0))]
    Cycle(Vec<String>),
    /// A task that nothing could prove.
    #[error("task {0:?} has no acceptance command")]
    NoAcceptance(String),
    /// A task whose commands succeed whatever was done.
    #[error(
        "task {task:?} is proved by no command that can fail ({command}): it needs one that fails before the change and \
         succeeds after it, such as a test, or for a refactoring a new test, a lint rule or a size limit"
    )]
    CannotFail {
        /// Whose acceptance.
        task: String,
        /// One of its commands.
        command: String,
    },
    /// A path that leaves the workspace.
    #[error("task {task:?} names the path {path:?}, which is not inside the workspace")]
    Scope {
        /// Whose scope.
        task: String,
        /// The path.
        path: String,
    },
}

/// A circle of any length, readable.
fn shown(cycle: &[String]) -> String {
    const MOST: usize = 10;
    let ids: Vec<&str> = cycle.iter().take(MOST).map(String::as_str).collect();
    let rest = if cycle.len() > MOST { format!(" -> … ({} more)", cycle.len() - MOST) } else { String::new() };
    format!("{}{rest}", ids.join(" -> "))
}

impl From<PlanError> for Problem {
    fn from(error: PlanError) -> Self {
        let code = match &error {
            PlanError::Duplicate(_) => codes::PLAN_DUPLICATE,
            PlanError::Dangling { .. } => codes::PLAN_DANGLING,
            PlanError::Cycle(_) => codes::PLAN_CYCLE,
            PlanError::CannotFail { .. } => codes::PLAN_PROVES_NOTHING,
            PlanError::Empty | PlanError::NoAcceptance(_) | PlanError::Scope { .. } => codes::PLAN_INVALID,
        };
        Problem::new(ProblemKind::InvalidInput, code, error.to_string())
            .hint("correct the plan and run the command again; nothing was stored")
    }
}

impl Plan {
    /// Refuses what could never be finished: no task, one id twice, a dependency on nothing or in a circle, no
    /// acceptance command or none that can fail, a scope outside the workspace.
    ///
    /// # Errors
    /// The first problem found, in that order.
    pub fn validate(&self) -> Result<(), PlanError> {
        if self.tasks.is_empty() {
            return Err(PlanError::Empty);
        }
        let mut edges = BTreeMap::new();
        for task in &self.tasks {
            if edges.insert(task.id.clone(), task.depends_on.clone()).is_some() {
                return Err(PlanError::Duplicate(task.id.clone()));
            }
        }
        check_edges(&edges)?;
        for task in &self.tasks {
            if task.acceptance.iter().all(|acceptance| acceptance.command.trim().is_empty()) {
                return Err(PlanError::NoAcceptance(task.id.clone()));
            }
            if !task.acceptance.iter().any(|acceptance| can_fail(&acceptance.command)) {
                let command = task.acceptance[0].command.clone();
                return Err(PlanError::CannotFail { task: task.id.clone(), command });
            }
            if let Some(path) = task.file_scope.iter().find(|path| !is_inside(path)) {
                return Err(PlanError::Scope { task: task.id.clone(), path: path.clone() });
            }
        }
        Ok(())
    }
}

/// Refuses edges to nothing and circles. Keys are ids, values what they depend on.
///
/// # Errors
/// [`PlanError::Dangling`] or [`PlanError::Cycle`], the cycle as a closed walk.
pub fn check_edges(edges: &BTreeMap<String, Vec<String>>) -> Result<(), PlanError> {
    for (id, dependencies) in edges {
        if let Some(missing) = dependencies.iter().find(|dependency| !edges.contains_key(*dependency)) {
            return Err(PlanError::Dangling { task: id.clone(), missing: missing.clone() });
        }
    }
    // Take away what depends on nothing that is left; what cannot be taken away holds a circle.
    let mut left: BTreeSet<&String> = edges.keys().collect();
    loop {
        let free: Vec<&String> =
            left.iter().copied().filter(|id| edges[*id].iter().all(|dependency| !left.contains(dependency))).collect();
        if free.is_empty() {
            break;
        }
        for id in free {
            left.remove(id);
        }
    }
    match left.iter().next() {
        None => Ok(()),
        Some(start) => Err(PlanError::Cycle(walk_cycle(edges, &left, start))),
    }
}

/// Follows dependencies inside `left` until an id comes back; every id in `left` has such a dependency.
fn walk_cycle(edges: &BTreeMap<String, Vec<String>>, left: &BTreeSet<&String>, start: &str) -> Vec<String> {
    let mut path = vec![start.to_owned()];
    loop {
        let here = &path[path.len() - 1];
        let Some(next) = edges[here].iter().find(|dependency| left.contains(dependency)).cloned() else {
            return path;
        };
        if let Some(first) = path.iter().position(|id| *id == next) {
            path.drain(..first);
            path.push(next);
            return path;
        }
        path.push(next);
    }
}

/// A relative path without a step upwards, and not into a repository's own files, which no tree holds.
fn is_inside(path: &str) -> bool {
    !path.starts_with('/') && !path.contains('\0') && path.split('/').all(|part| part != ".." && part != ".git")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    #[test]
    fn a_plan_without_tasks_is_refused() {
        assert_eq!(plan(vec![]).validate(), Err(PlanError::Empty));
    }

    #[test]
    fn an_id_used_twice_is_refused() {
        assert_eq!(plan(vec![task("a", &[]), task("a", &[])]).validate(), Err(PlanError::Duplicate("a".into())));
    }

    #[test]
    fn a_dependency_on_nothing_is_refused_by_name() {
        let error = plan(vec![task("a", &["b"])]).validate().unwrap_err();
        assert_eq!(error, PlanError::Dangling { task: "a".into(), missing: "b".into() });
    }

    #[test]
    fn a_circle_is_refused_and_shown_as_a_closed_walk() {
        let error = plan(vec![task("a", &["c"]), task("b", &["a"]), task("c", &["b"]), task("d", &["a"])]);
        match error.validate() {
            Err(PlanError::Cycle(path)) => {
                assert_eq!(path.first(), path.last());
                assert_eq!(path.len(), 4);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(plan(vec![task("a", &["a"])]).validate(), Err(PlanError::Cycle(vec!["a".into(), "a".into()])));
    }

    #[test]
    fn a_long_circle_is_told_in_one_readable_line() {
        let tasks = (0..1000).map(|n| task(&format!("t{n}"), &[&format!("t{}", (n + 1) % 1000)])).collect();
        let text = plan(tasks).validate().unwrap_err().to_string();
        assert!(text.len() < 200 && text.contains("991 more"), "{text}");
    }

    #[test]
    fn a_scope_outside_the_workspace_is_refused() {
        for path in ["/etc", "../x", "a/../../b", ".git/config", "a\0b"] {
            let mut bad = task("a", &[]);
            bad.file_scope = vec![path.into()];
            assert!(matches!(plan(vec![bad]).validate(), Err(PlanError::Scope { .. })), "{path}");
        }
    }

    #[test]
    fn truth_1_a_task_that_no_command_could_fail_is_refused_with_advice() {
        let with = |commands: &[&str]| {
            let mut one = task("a", &[]);
            one.acceptance = commands
                .iter()
                .map(|command| Acceptance { command: (*command).into(), timeout_seconds: 1.0 })
                .collect();
            plan(vec![one]).validate()
        };
        let refused = with(&["pytest || true", "true"]).unwrap_err();
        assert!(matches!(&refused, PlanError::CannotFail { task, .. } if task == "a"));
        let problem = Problem::from(refused);
        assert_eq!(problem.code, "MN-0120");
        assert!(problem.message.contains("pytest || true") && problem.message.contains("lint rule"), "{problem}");
        assert_eq!(with(&["true", "pytest"]), Ok(()), "one that can fail is enough");
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = serde_json::from_str::<Plan>(r#"{"tasks":[],"extra":1}"#).unwrap_err();
        assert!(error.to_string().contains("extra"));
    }

    proptest! {
        #[test]
        fn edges_that_point_backwards_never_form_a_circle(picks in proptest::collection::vec(proptest::collection::vec(0usize..40, 0..4), 1..40)) {
            let edges: BTreeMap<String, Vec<String>> = picks.iter().enumerate()
                .map(|(index, row)| (format!("{index:03}"), row.iter().filter(|to| **to < index).map(|to| format!("{to:03}")).collect()))
                .collect();
            prop_assert_eq!(check_edges(&edges), Ok(()));
        }

        #[test]
        fn a_ring_is_always_found(size in 1usize..30) {
            let edges: BTreeMap<String, Vec<String>> =
                (0..size).map(|index| (format!("{index:03}"), vec![format!("{:03}", (index + 1) % size)])).collect();
            prop_assert!(matches!(check_edges(&edges), Err(PlanError::Cycle(_))));
        }
    }
}
