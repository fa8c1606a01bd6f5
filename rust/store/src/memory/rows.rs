//! The "tables", and what is read from them.

use crate::budget::{Account, Level, Open};
use crate::clock::timestamp;
use crate::rules::{self, Holder, ParkedFor};
use crate::types::{
    Amount, DeadLetter, EventQuery, ItemJournal, ItemSnapshot, JournalStep, NewCommand, Parked, QueueCounts,
    RunSnapshot, StepRecord, UnderWay,
};
use mnemosyne_core::{
    ArtifactRef, Attempt, Event, EventKind, Item, ItemState, PhaseRecord, Problem, Run, RunState, Task, WorkResult,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// The newest events are kept: a standalone bridge may live for months.
const KEPT_EVENTS: usize = 20_000;

#[derive(Default)]
pub(super) struct Data {
    pub(super) boots: BTreeMap<String, BootRow>,
    pub(super) runs: HashMap<String, RunRow>,
    pub(super) run_order: Vec<String>,
    pub(super) items: HashMap<String, ItemRow>,
    /// Ids in the order of arrival.
    pub(super) item_order: Vec<String>,
    /// Items that ever arrived.
    pub(super) arrivals: u64,
    pub(super) journal: BTreeMap<(String, u32), Vec<StepRecord>>,
    pub(super) reservations: Vec<ReservationRow>,
    pub(super) artifacts: Vec<ArtifactRow>,
    pub(super) commands: Vec<CommandRow>,
    /// With the boot that wrote each.
    pub(super) events: VecDeque<(String, Event)>,
    /// Events before those, see [`KEPT_EVENTS`].
    pub(super) forgotten: u64,
    /// (scope, key) -> id.
    pub(super) keys: HashMap<(&'static str, String), String>,
    /// Of all boots.
    pub(super) commits: u64,
}

pub(super) struct BootRow {
    pub(super) pid: u32,
    pub(super) alive: bool,
    pub(super) commits: u64,
}

pub(super) struct RunRow {
    pub(super) run: Run,
    pub(super) phases: Vec<PhaseRecord>,
    pub(super) tasks: Vec<Task>,
    pub(super) attempts: Vec<Attempt>,
    pub(super) boots: BTreeSet<String>,
    pub(super) accounts: BTreeMap<Level, Account>,
}

pub(super) struct ItemRow {
    pub(super) item: Item,
    /// Place in the order of arrival.
    pub(super) arrival: u64,
    pub(super) enqueued_at: i64,
    /// Once nothing more can happen to it.
    pub(super) ended_at: Option<i64>,
    pub(super) open_dependencies: u32,
    pub(super) dependents: Vec<String>,
    pub(super) not_before: Option<i64>,
    pub(super) unique_key: Option<String>,
    pub(super) deadline: Option<i64>,
    /// Why it waits for that time, if its last claim parked it.
    pub(super) parked: Option<ParkedFor>,
    /// Of the claim under way: present exactly while the state is `Running`.
    pub(super) claim: Option<ClaimRow>,
    /// Boot and generation of the last crash, for the poison rule.
    pub(super) last_crash: Option<String>,
    pub(super) result: Option<WorkResult>,
    pub(super) problem: Option<Problem>,
}

#[derive(Clone)]
pub(super) struct ClaimRow {
    pub(super) holder: Holder,
    pub(super) lease_until: i64,
    /// Whether it finished a step: then a dead process says nothing about the item.
    pub(super) progressed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ReservationState {
    Open,
    Settled,
    /// Left open by a claim that is over: charged whole (BUDGET-1).
    Unknown,
}

pub(super) struct ReservationRow {
    pub(super) id: String,
    pub(super) item: String,
    pub(super) run: Option<String>,
    /// Whose accounts it comes from.
    pub(super) levels: Vec<Level>,
    /// Attempt and number of the step that made it.
    pub(super) step: Option<(u32, u64)>,
    pub(super) amount: Amount,
    pub(super) state: ReservationState,
}

pub(super) struct ArtifactRow {
    pub(super) run: Option<String>,
    pub(super) item: String,
    pub(super) reference: ArtifactRef,
    pub(super) content: Vec<u8>,
}

pub(super) struct CommandRow {
    pub(super) command: NewCommand,
    pub(super) taken: bool,
}

impl ItemRow {
    /// Why it waits and until when, if it is parked.
    fn parked(&self, now: i64) -> Option<Parked> {
        let until = self.not_before.filter(|until| *until > now && self.item.state == ItemState::Ready)?;
        Some(rules::parked(&self.item, until, self.parked.as_ref()?))
    }

    pub(super) fn snapshot(&self, now: i64) -> ItemSnapshot {
        let mut item = self.item.clone();
        item.state = rules::shown_state(item.state, self.open_dependencies, self.not_before, now);
        ItemSnapshot { item, result: self.result.clone(), problem: self.problem.clone() }
    }
}

impl Data {
    pub(super) fn last_sequence(&self) -> u64 {
        self.forgotten + self.events.len() as u64
    }

    pub(super) fn push_event(&mut self, boot: &str, event: Event) {
        self.events.push_back((boot.to_owned(), event));
        if self.events.len() > KEPT_EVENTS {
            self.events.pop_front();
            self.forgotten += 1;
        }
    }

    pub(super) fn is_dead(&self, boot: &str) -> bool {
        !self.boots.get(boot).is_some_and(|row| row.alive)
    }

    pub(super) fn snapshot(&self, run: &str, now: i64) -> Option<RunSnapshot> {
        let row = self.runs.get(run)?;
        let account = row.accounts.get(&Level::Run).cloned().unwrap_or_default();
        let restarts = self.events.iter().filter(|(boot, event)| {
            event.event.kind == EventKind::AgentRestarted && event.event.run.is_none() && row.boots.contains(boot)
        });
        Some(RunSnapshot {
            run: self.shown_run(row, now),
            phases: row.phases.clone(),
            tasks: row.tasks.clone(),
            spent: account.spent(),
            usage: account.usage,
            unknown_turns: account.unknown_calls,
            restarts: restarts.count() as u64,
            parked: self.parked(run, now),
            last_sequence: self.last_sequence(),
        })
    }

    /// The journals of a task, or of a phase by its name.
    pub(super) fn journals(&self, run: &str, subject: &str) -> Vec<ItemJournal> {
        let items = self.item_order.iter().filter_map(|id| self.items.get(id)).map(|row| &row.item);
        let wanted = items.filter(|item| {
            let named = item.task.as_deref().unwrap_or(item.kind.as_str());
            item.run.as_deref() == Some(run) && named == subject
        });
        wanted
            .map(|item| ItemJournal {
                item: item.work.id.clone(),
                kind: item.kind,
                role: item.work.role,
                attempt: item.work.attempt,
                state: item.state,
                claims: item.epoch,
                steps: self.steps(&item.work.id, item.work.attempt),
            })
            .collect()
    }

    fn steps(&self, item: &str, attempt: u32) -> Vec<JournalStep> {
        let records = self.journal.get(&(item.to_owned(), attempt)).cloned().unwrap_or_default();
        let costed = |record: StepRecord| {
            let step = Some((attempt, record.number));
            let held = self.reservations.iter().find(|held| held.item == item && held.step == step);
            JournalStep {
                record,
                reserved: held.map(|held| held.amount),
                spent_unknown: held.is_some_and(|held| held.state == ReservationState::Unknown),
            }
        };
        records.into_iter().map(costed).collect()
    }

    /// Oldest first.
    pub(super) fn dead_letters(&self) -> Vec<DeadLetter> {
        let mut dead: Vec<&ItemRow> = self.items.values().filter(|row| row.item.state == ItemState::Dead).collect();
        dead.sort_unstable_by_key(|row| (row.ended_at, row.arrival));
        let letter = |row: &ItemRow| DeadLetter {
            item: row.item.clone(),
            problem: row.problem.clone(),
            died_at: timestamp(row.ended_at.unwrap_or_default()),
        };
        dead.into_iter().map(letter).collect()
    }

    /// The run as people see it.
    pub(super) fn shown_run(&self, row: &RunRow, now: i64) -> Run {
        let state = if self.waits(&row.run.id, now) { RunState::Waiting } else { row.run.state };
        Run { state, ..row.run.clone() }
    }

    /// Whether all that a running run has is parked.
    pub(super) fn waits(&self, run: &str, now: i64) -> bool {
        let state = self.runs.get(run).map(|row| row.run.state);
        let open = self.items.values().filter(|row| row.item.run.as_deref() == Some(run));
        let (parked, other): (Vec<_>, Vec<_>) =
            open.filter(|row| !row.item.state.is_terminal()).partition(|row| row.parked(now).is_some());
        state.is_some_and(|state| {
            rules::shown_run_state(state, !parked.is_empty(), !other.is_empty()) == RunState::Waiting
        })
    }

    fn parked(&self, run: &str, now: i64) -> Vec<Parked> {
        let of_run = self.items.values().filter(|row| row.item.run.as_deref() == Some(run));
        let mut parked: Vec<_> =
            of_run.filter_map(|row| Some((row.not_before?, row.arrival, row.parked(now)?))).collect();
        parked.sort_by_key(|(until, arrival, _)| (*until, *arrival));
        parked.into_iter().map(|(_, _, parked)| parked).collect()
    }

    pub(super) fn events_of(&self, query: &EventQuery, own_boot: &str) -> Vec<Event> {
        let run_boots = query.run.as_ref().map(|run| self.runs.get(run).map(|row| &row.boots));
        let wanted = |boot: &String, event: &Event| {
            if let Some(asked) = &query.boot {
                return boot == asked && event.event.run.is_none();
            }
            let of_run = match (&query.run, &run_boots) {
                (Some(run), Some(boots)) => match &event.event.run {
                    Some(own) => own == run,
                    None => boots.is_some_and(|boots| boots.contains(boot)),
                },
                _ => true,
            };
            let of_agent =
                query.agent.as_ref().is_none_or(|agent| event.event.agent.as_ref() == Some(agent) && boot == own_boot);
            of_run && of_agent
        };
        let limit = if query.limit == 0 { usize::MAX } else { query.limit as usize };
        let known = usize::try_from(query.since.saturating_sub(self.forgotten)).unwrap_or(usize::MAX);
        let later = self.events.iter().skip(known).filter(|(boot, event)| wanted(boot, event));
        later.take(limit).map(|(_, event)| event.clone()).collect()
    }

    /// Items that this boot may claim: of no run, or of a running run of its own.
    pub(super) fn is_ours(&self, item: &Item, boot: &str) -> bool {
        item.run.as_ref().is_none_or(|run| {
            self.runs
                .get(run)
                .is_some_and(|row| row.run.boot.as_deref() == Some(boot) && row.run.state == RunState::Running)
        })
    }

    pub(super) fn under_way(&self, boot: &str) -> Vec<UnderWay> {
        let items = self.items.values().filter_map(|row| {
            let claim = row.claim.as_ref().filter(|claim| claim.holder.boot == boot)?;
            Some(UnderWay {
                item: row.item.work.id.clone(),
                run: row.item.run.clone(),
                agent: claim.holder.agent.clone(),
                generation: claim.holder.generation,
                lease_until: claim.lease_until,
            })
        });
        items.collect()
    }

    pub(super) fn queue(&self, boots: &[&str], now: i64) -> QueueCounts {
        let mut counts = QueueCounts::default();
        let ours = |row: &&ItemRow| boots.iter().any(|boot| self.is_ours(&row.item, boot));
        for row in self.items.values().filter(ours) {
            match row.snapshot(now).item.state {
                ItemState::Ready => counts.ready += 1,
                ItemState::Running => counts.running += 1,
                ItemState::Waiting => counts.waiting += 1,
                _ => {}
            }
        }
        counts
    }

    /// What is set aside of an account and neither settled nor charged.
    pub(super) fn open(&self, run: &str, level: &Level) -> Open {
        let mut sum = Open::default();
        let open = self.reservations.iter().filter(|held| held.state == ReservationState::Open);
        for held in open.filter(|held| held.run.as_deref() == Some(run) && held.levels.contains(level)) {
            sum.add(held.amount, held.step.is_some());
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mnemosyne_core::NewEvent;

    #[test]
    fn the_newest_events_are_kept_under_their_own_numbers() {
        let mut data = Data::default();
        for _ in 0..KEPT_EVENTS + 3 {
            let event = NewEvent::new(EventKind::AgentStarted);
            let stored = Event { sequence: data.last_sequence() + 1, at: String::new(), boot: None, event };
            data.push_event("b-1", stored);
        }
        let from = |since, limit| {
            let query = EventQuery { since, limit, ..EventQuery::default() };
            data.events_of(&query, "b-1").iter().map(|event| event.sequence).collect::<Vec<_>>()
        };
        assert_eq!(data.events.len(), KEPT_EVENTS);
        assert_eq!(from(0, 2), [4, 5]);
        assert_eq!(from(5, 1), [6]);
        assert_eq!(from(data.last_sequence() - 1, 9), [KEPT_EVENTS as u64 + 3]);
        assert!(from(u64::MAX, 9).is_empty());
    }
}
