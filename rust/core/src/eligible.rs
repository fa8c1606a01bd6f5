//! Which of the candidates may be claimed now. Pure: the store finds candidates by index, this decides.

use crate::state::{AgentRole, ItemKind};

/// What `eligible` needs to know of an item that could be claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The item.
    pub id: String,
    /// Whose run.
    pub run: Option<String>,
    /// Whose task.
    pub task: Option<String>,
    /// What it asks for.
    pub kind: ItemKind,
    /// Who does it.
    pub role: AgentRole,
    /// See [`rank`]; the lowest goes first.
    pub rank: i64,
    /// Order of arrival.
    pub order: u64,
    /// Dependencies that are not done.
    pub open_dependencies: u32,
    /// Path prefixes.
    pub file_scope: Vec<String>,
    /// Milliseconds; not before this time.
    pub not_before: Option<i64>,
}

/// What one step of priority is worth in milliseconds of waiting: priority 10 overtakes what came at most ten minutes
/// earlier with priority 0, so nothing waits for ever behind what is more urgent.
pub const PRIORITY_WORTH_MS: i64 = 60_000;

/// The place of an item in its role's queue: when it came, less what its priority is worth.
pub const fn rank(enqueued_at: i64, priority: u8) -> i64 {
    enqueued_at.saturating_sub(priority as i64 * PRIORITY_WORTH_MS)
}

/// A file scope in use, or an acceptance under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// Whose run.
    pub run: Option<String>,
    /// Whose task.
    pub task: Option<String>,
    /// What the running item asks for; `None` where the task holds its scope between items.
    pub kind: Option<ItemKind>,
    /// Path prefixes.
    pub file_scope: Vec<String>,
}

/// Picks the item that `role` should do next: dependencies done, not delayed, its file scope free, and at most one
/// acceptance per run; then the lowest rank, then the oldest.
pub fn eligible<'a>(
    candidates: &'a [Candidate],
    holdings: &[Holding],
    role: AgentRole,
    now: i64,
) -> Option<&'a Candidate> {
    candidates
        .iter()
        .filter(|item| item.role == role)
        .filter(|item| item.open_dependencies == 0)
        .filter(|item| item.not_before.is_none_or(|at| at <= now))
        .filter(|item| holdings.iter().all(|holding| !in_the_way(item, holding)))
        .min_by_key(|item| (item.rank, item.order))
}

/// A task holds its scope across its items and attempts, so it is never in its own way.
fn in_the_way(item: &Candidate, holding: &Holding) -> bool {
    if item.run != holding.run {
        return false;
    }
    if item.kind == ItemKind::Accept && holding.kind == Some(ItemKind::Accept) {
        return true;
    }
    let two_tasks = item.task.is_some() && holding.task.is_some();
    if two_tasks && item.task == holding.task {
        return false;
    }
    // A task that names no scope may change everything, and the gates let it; an item without a task changes no files
    // that we know of.
    let whole = two_tasks && (item.file_scope.is_empty() || holding.file_scope.is_empty());
    whole || scopes_overlap(&item.file_scope, &holding.file_scope)
}

/// Whether a path of one is a path of the other, or lies below it.
pub fn scopes_overlap(left: &[String], right: &[String]) -> bool {
    left.iter().any(|one| right.iter().any(|other| path_overlap(one, other)))
}

fn path_overlap(one: &str, other: &str) -> bool {
    let (one, other) = (normal(one), normal(other));
    if one.is_empty() || other.is_empty() {
        return true; // the whole workspace
    }
    one == other || one.starts_with(&format!("{other}/")) || other.starts_with(&format!("{one}/"))
}

fn normal(path: &str) -> &str {
    let path = path.trim_start_matches("./").trim_end_matches('/');
    if path == "." { "" } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(id: &str) -> Candidate {
        Candidate {
            id: id.into(),
            run: Some("r".into()),
            task: Some(id.into()),
            kind: ItemKind::Optimize,
            role: AgentRole::Optimizer,
            rank: rank(0, 5),
            order: 0,
            open_dependencies: 0,
            file_scope: vec![],
            not_before: None,
        }
    }

    fn pick(candidates: &[Candidate], holdings: &[Holding]) -> Option<String> {
        eligible(candidates, holdings, AgentRole::Optimizer, 1_000).map(|item| item.id.clone())
    }

    #[test]
    fn an_item_with_open_dependencies_is_not_eligible() {
        let blocked = Candidate { open_dependencies: 1, ..candidate("a") };
        assert_eq!(pick(&[blocked], &[]), None);
    }

    #[test]
    fn the_highest_priority_goes_first_and_then_the_oldest() {
        let low = Candidate { order: 1, ..candidate("low") };
        let old = Candidate { rank: rank(0, 9), order: 2, ..candidate("old") };
        let new = Candidate { rank: rank(0, 9), order: 3, ..candidate("new") };
        assert_eq!(pick(&[low, new, old], &[]), Some("old".into()));
    }

    #[test]
    fn nothing_waits_for_ever_behind_what_is_more_urgent() {
        let low = Candidate { rank: rank(0, 0), order: 1, ..candidate("low") };
        let urgent = |at| Candidate { rank: rank(at, 10), order: 2, ..candidate("urgent") };
        assert_eq!(pick(&[low.clone(), urgent(599_999)], &[]), Some("urgent".into()));
        assert_eq!(pick(&[low, urgent(600_000)], &[]), Some("low".into()));
    }

    #[test]
    fn an_item_is_not_eligible_before_its_time() {
        let later = Candidate { not_before: Some(1_001), ..candidate("a") };
        assert_eq!(pick(std::slice::from_ref(&later), &[]), None);
        assert_eq!(pick(&[Candidate { not_before: Some(1_000), ..later }], &[]), Some("a".into()));
    }

    #[test]
    fn a_held_scope_stops_other_tasks_but_not_its_own() {
        let item = Candidate { file_scope: vec!["src/a".into()], ..candidate("a") };
        let mut holding =
            Holding { run: Some("r".into()), task: Some("b".into()), kind: None, file_scope: vec!["src".into()] };
        assert_eq!(pick(std::slice::from_ref(&item), std::slice::from_ref(&holding)), None);
        holding.task = Some("a".into());
        assert_eq!(pick(std::slice::from_ref(&item), std::slice::from_ref(&holding)), Some("a".into()));
        holding.task = Some("b".into());
        holding.run = Some("another run".into());
        assert_eq!(pick(&[item], &[holding]), Some("a".into()));
    }

    #[test]
    fn a_task_without_a_scope_may_change_everything_and_so_waits_for_everybody() {
        let item = Candidate { file_scope: vec![], ..candidate("a") };
        let holding =
            Holding { run: Some("r".into()), task: Some("b".into()), kind: None, file_scope: vec!["src".into()] };
        assert_eq!(pick(std::slice::from_ref(&item), std::slice::from_ref(&holding)), None);
        let own = Candidate { run: None, task: None, kind: ItemKind::Work, ..item };
        let running = Holding { run: None, task: None, kind: Some(ItemKind::Work), file_scope: vec![] };
        assert_eq!(pick(&[own], &[running]), Some("a".into()), "a user's own items do not stop each other");
    }

    #[test]
    fn one_acceptance_at_a_time_per_run() {
        let item = Candidate { kind: ItemKind::Accept, role: AgentRole::Orchestrator, ..candidate("a") };
        let busy =
            Holding { run: Some("r".into()), task: Some("b".into()), kind: Some(ItemKind::Accept), file_scope: vec![] };
        assert!(eligible(std::slice::from_ref(&item), &[busy], AgentRole::Orchestrator, 0).is_none());
        assert!(eligible(&[item], &[], AgentRole::Orchestrator, 0).is_some());
    }

    #[test]
    fn sibling_names_with_one_beginning_do_not_overlap() {
        assert!(!path_overlap("src/ab", "src/a"));
        assert!(path_overlap("src/a/", "./src/a/b.py"));
        assert!(path_overlap(".", "anything"));
    }

    proptest! {
        #[test]
        fn overlap_is_symmetric(left in proptest::collection::vec("[ab]{1,2}(/[ab]{1,2}){0,2}", 0..4), right in proptest::collection::vec("[ab]{1,2}(/[ab]{1,2}){0,2}", 0..4)) {
            prop_assert_eq!(scopes_overlap(&left, &right), scopes_overlap(&right, &left));
        }
    }
}
