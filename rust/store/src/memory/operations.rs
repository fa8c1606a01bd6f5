//! The writes, one method each. [`Operation::apply`] is the one door through which an `Advance` becomes rows.

use super::rows::{ArtifactRow, ClaimRow, CommandRow, Data, ItemRow, ReservationRow, ReservationState, RunRow};
use crate::budget::{self, Account, Level};
use crate::clock::timestamp;
use crate::rules::{self, Holder, ParkedFor};
use crate::types::{
    Amount, ClaimRequest, Claimed, Completion, FinishStep, NewCommand, Prune, Pruned, Release, ReleaseReason, Released,
    Reserve, RunSnapshot, StartStep, StepRecord, StepState, Submission,
};
use mnemosyne_core::advance::{self, View};
use mnemosyne_core::record::accepted_commands;
use mnemosyne_core::{
    Advance, ArtifactRef, Budget, Candidate, Event, EventKind, Holding, Item, ItemKind, ItemState, NewEvent, Problem,
    Run, RunState, Task, TaskState, Usage, WorkItem, eligible, first_items, item_dead, next_items, rank, retry_task,
};
use std::collections::BTreeSet;

/// One write under the lock.
pub(super) struct Operation<'a> {
    pub(super) data: &'a mut Data,
    pub(super) boot: &'a str,
    pub(super) now: i64,
    /// Set by what looked for work and found none: whoever waits for work must not be woken by that.
    pub(super) changed_nothing: bool,
}

impl Operation<'_> {
    pub(super) fn submit_run(&mut self, run: Run, key: Option<String>) -> Result<String, Problem> {
        if let Some(known) = self.known("run", key.as_ref()) {
            return Ok(known);
        }
        if self.data.runs.contains_key(&run.id) {
            return Err(rules::duplicate("run", &run.id));
        }
        self.refuse_busy_workspace(&run.workspace, &run.id)?;
        let run = Run { boot: Some(self.boot.to_owned()), ..run };
        let advance = first_items(&run)?;
        let id = run.id.clone();
        self.remember("run", key, &id);
        self.data.run_order.push(id.clone());
        self.data.runs.insert(
            id.clone(),
            RunRow {
                run,
                phases: rules::pending_phases(),
                tasks: Vec::new(),
                attempts: Vec::new(),
                boots: [self.boot.to_owned()].into(),
                accounts: [(Level::Run, Account { counted_at: Some(self.now), ..Account::default() })].into(),
            },
        );
        self.apply(Some(&id), None, advance);
        Ok(id)
    }

    pub(super) fn adopt_run(&mut self, id: &str, budget: Option<Budget>) -> Result<RunSnapshot, Problem> {
        let run = self.data.runs.get(id).ok_or_else(|| rules::no_such_run(id))?.run.clone();
        if run.state.is_terminal() {
            return Err(rules::run_ended(&run));
        }
        self.refuse_living(&run)?;
        self.check_resume(&run, budget, None)?;
        let run = Run { state: RunState::Running, error: None, ..rules::taken_over(run, self.boot, budget) };
        let event = rules::resumed_event(&run);
        if let Some(row) = self.data.runs.get_mut(id) {
            row.run = run;
        }
        self.emit([event]);
        self.free(id)
    }

    pub(super) fn retry_task(
        &mut self,
        id: &str,
        task: &str,
        note: Option<&str>,
        budget: Option<Budget>,
    ) -> Result<RunSnapshot, Problem> {
        let run = self.data.runs.get(id).ok_or_else(|| rules::no_such_run(id))?.run.clone();
        self.refuse_living(&run)?;
        self.check_resume(&run, budget, Some(task))?;
        let run = rules::taken_over(run, self.boot, budget);
        let advance = self.with_view(Some(id), |view| retry_task(View { run: &run, ..view }, task, note))?;
        self.apply(Some(id), None, advance);
        self.free(id)
    }

    fn refuse_living(&self, run: &Run) -> Result<(), Problem> {
        // A run that was stopped lives nowhere, even if the process that stopped it does.
        if let Some(boot) = run.boot.as_deref().filter(|boot| !self.data.is_dead(boot))
            && rules::is_under_way(run.state)
        {
            return Err(rules::run_lives(&run.id, self.data.boots.get(boot).map(|row| row.pid)));
        }
        self.refuse_busy_workspace(&run.workspace, &run.id)
    }

    /// The run is this boot's: what the boot before held or was told is not.
    fn free(&mut self, id: &str) -> Result<RunSnapshot, Problem> {
        if let Some(row) = self.data.runs.get_mut(id) {
            row.boots.insert(self.boot.to_owned());
        }
        // A cancel that the dead process never read was meant for that process: the user has asked to go on since.
        for row in self.data.commands.iter_mut().filter(|row| row.command.run == id) {
            row.taken = true;
        }
        self.forget_time(id);
        // Nobody is charged: a person asked for the run to go on.
        for item in self.running_items(id) {
            self.end_claim(&item);
        }
        self.change(id, &[Level::Run], |account, now| account.begin(now));
        self.data.snapshot(id, self.now).ok_or_else(|| rules::no_such_run(id))
    }

    pub(super) fn stop_run(&mut self, id: &str, state: RunState, problem: &Problem) -> Result<(), Problem> {
        let event = rules::stop_event(id, state, problem)?;
        let row = self.data.runs.get_mut(id).ok_or_else(|| rules::no_such_run(id))?;
        // The first reason to stop is the one that counts: a drain after the budget ran out does not hide the budget.
        // And a run that another boot took over is no longer ours to stop.
        if !rules::is_under_way(row.run.state) || row.run.boot.as_deref() != Some(self.boot) {
            self.changed_nothing = true;
            return Ok(());
        }
        row.run.state = state;
        row.run.error = Some(advance::problem_value(problem));
        for item in self.running_items(id) {
            self.end_claim(&item);
        }
        self.rest_run(id);
        self.emit([event]);
        Ok(())
    }

    pub(super) fn cancel_run(&mut self, id: &str, reason: &str) -> Result<(), Problem> {
        let row = self.data.runs.get(id).ok_or_else(|| rules::no_such_run(id))?;
        if row.run.state.is_terminal() {
            self.changed_nothing = true;
            return Ok(());
        }
        if row.run.boot.as_deref().is_some_and(|boot| self.data.is_dead(boot)) {
            self.forget_time(id);
        }
        for item in self.open_items(id) {
            self.cancel_one(&item, reason);
        }
        let advance = self.with_view(Some(id), |view| advance::cancel_run(view, reason));
        self.apply(Some(id), None, advance);
        Ok(())
    }

    pub(super) fn pause_run(&mut self, id: &str, reason: &str) -> Result<(), Problem> {
        let Some(run) = self.ours(id, RunState::Running)? else { return Ok(()) };
        let said = rules::paused_event(run, reason);
        run.state = RunState::Paused;
        self.emit([said]);
        self.rest_run(id);
        Ok(())
    }

    pub(super) fn continue_run(&mut self, id: &str) -> Result<(), Problem> {
        let Some(run) = self.ours(id, RunState::Paused)? else { return Ok(()) };
        run.state = RunState::Running;
        let said = rules::resumed_event(run);
        self.emit([said]);
        self.change(id, &[Level::Run], |account, now| account.begin(now));
        Ok(())
    }

    /// The run, if this boot drives it and it is in that state.
    fn ours(&mut self, id: &str, state: RunState) -> Result<Option<&mut Run>, Problem> {
        let run = &mut self.data.runs.get_mut(id).ok_or_else(|| rules::no_such_run(id))?.run;
        let ours = run.state == state && run.boot.as_deref() == Some(self.boot);
        self.changed_nothing = !ours;
        Ok(ours.then_some(run))
    }

    pub(super) fn submit_item(&mut self, work: WorkItem, how: Submission) -> Result<String, Problem> {
        let key = how.idempotency_key.clone();
        if let Some(known) = self.known("item", key.as_ref()) {
            return Ok(known);
        }
        if let Some(known) = self.live(how.unique_key.as_deref()) {
            self.changed_nothing = true;
            return Ok(known);
        }
        let item = rules::own_item(work);
        rules::check_item(&item)?;
        let id = item.work.id.clone();
        rules::check_times(&id, &how, self.now)?;
        if self.data.items.contains_key(&id) {
            return Err(rules::duplicate("work item", &id));
        }
        let mut open = Vec::new();
        for dependency in &item.work.depends_on {
            let row = self.data.items.get(dependency).ok_or_else(|| rules::dangling(&id, dependency))?;
            match row.item.state {
                ItemState::Done => {}
                state if state.is_terminal() => return Err(rules::dead_dependency(&id, dependency, state)),
                _ if open.contains(dependency) => {}
                _ => open.push(dependency.clone()),
            }
        }
        self.remember("item", key, &id);
        let waiting = u32::try_from(open.len()).unwrap_or(u32::MAX);
        self.insert_item(item, waiting, &how);
        for dependency in open {
            if let Some(row) = self.data.items.get_mut(&dependency) {
                row.dependents.push(id.clone());
            }
        }
        Ok(id)
    }

    pub(super) fn cancel_item(&mut self, id: &str, reason: &str) -> Result<(), Problem> {
        let row = self.data.items.get(id).ok_or_else(|| rules::no_such_item(id))?;
        if let Some(run) = &row.item.run {
            return Err(rules::item_of_a_run(id, run));
        }
        if row.item.state.is_terminal() {
            self.changed_nothing = true;
            return Ok(());
        }
        self.cancel_one(id, reason);
        self.settle_dependents(id);
        Ok(())
    }

    pub(super) fn claim(&mut self, request: &ClaimRequest) -> Option<Claimed> {
        let expired = self.expire_leases() | self.miss_deadlines();
        let (candidates, holdings) = (self.candidates(request), self.holdings());
        let picked = eligible(&candidates, &holdings, request.role, self.now).map(|candidate| candidate.id.clone());
        self.changed_nothing = picked.is_none() && !expired;
        let id = picked?;
        let holder =
            Holder { boot: self.boot.to_owned(), agent: request.agent.clone(), generation: request.generation };
        let row = self.data.items.get_mut(&id)?;
        row.item.state = ItemState::Running;
        row.item.epoch += 1;
        row.not_before = None;
        row.parked = None;
        row.claim =
            Some(ClaimRow { holder, lease_until: self.now.saturating_add(request.lease_ms), progressed: false });
        let item = row.item.clone();
        self.emit(rules::claim_events(&item, request));
        if let Some(run) = &item.run {
            self.change(run, &Level::of(&item, &request.agent), |account, now| account.begin(now));
        }
        let run = item.run.as_ref().and_then(|run| self.data.runs.get_mut(run));
        let Some(run) = run else { return Some(Claimed { item, run: None, task: None, accepted: Vec::new() }) };
        let task = item.task.as_ref().and_then(|id| run.tasks.iter_mut().find(|task| task.spec.id == *id));
        let task = task.map(|task| {
            if task.state == TaskState::Ready {
                task.state = TaskState::Running;
            }
            task.clone()
        });
        Some(Claimed { item, run: Some(run.run.clone()), task, accepted: accepted_commands(&run.tasks) })
    }

    pub(super) fn take_back(&mut self) -> u64 {
        let dead = |row: &&ItemRow| {
            row.item.run.is_none() && row.claim.as_ref().is_some_and(|claim| self.data.is_dead(&claim.holder.boot))
        };
        let mut held: Vec<(u64, String)> =
            self.data.items.values().filter(dead).map(|row| (row.arrival, row.item.work.id.clone())).collect();
        held.sort_unstable();
        for (_, id) in &held {
            // A killed process says nothing about an item that made progress.
            if let Some(claim) = self.end_claim(id).filter(|claim| !claim.progressed) {
                self.crash(id, &claim.holder);
            }
        }
        self.changed_nothing = held.is_empty();
        held.len() as u64
    }

    pub(super) fn requeue(&mut self, id: &str, reason: &str) -> Result<(), Problem> {
        let item = self.dead_letter(id)?;
        let key = self.data.items.get(id).and_then(|row| row.unique_key.clone());
        if let Some(rival) = self.live(key.as_deref()) {
            return Err(rules::key_is_taken(id, &rival));
        }
        let said = rules::dead_letter_event(EventKind::WorkRequeued, &item, reason);
        if let Some(row) = self.data.items.get_mut(id) {
            row.item = Item { state: ItemState::Ready, crashes: 0, crash_generations: 0, model_failures: 0, ..item };
            (row.ended_at, row.problem, row.last_crash) = (None, None, None);
            (row.not_before, row.deadline, row.enqueued_at) = (None, None, self.now);
        }
        self.emit([said]);
        Ok(())
    }

    pub(super) fn discard(&mut self, id: &str, reason: &str) -> Result<(), Problem> {
        let item = self.dead_letter(id)?;
        self.forget(&[id.to_owned()].into(), None);
        self.emit([rules::dead_letter_event(EventKind::WorkDiscarded, &item, reason)]);
        Ok(())
    }

    fn dead_letter(&self, id: &str) -> Result<Item, Problem> {
        let item = self.data.items.get(id).map(|row| row.item.clone());
        match item {
            Some(item) if item.state == ItemState::Dead => match &item.run {
                Some(run) => Err(rules::dead_letter_of_a_run(&item, run)),
                None => Ok(item),
            },
            other => Err(rules::no_dead_letter(id, other.map(|item| item.state))),
        }
    }

    /// The item of this unique key that has not ended.
    fn live(&self, unique_key: Option<&str>) -> Option<String> {
        let key = unique_key?;
        let mut rows = self.data.items.values();
        let found = rows.find(|row| row.unique_key.as_deref() == Some(key) && !row.item.state.is_terminal());
        found.map(|row| row.item.work.id.clone())
    }

    pub(super) fn renew(&mut self, id: &str, epoch: u64, lease_ms: i64) -> Result<(), Problem> {
        let until = self.now.saturating_add(lease_ms);
        let claim = self.claimed(id, epoch)?.claim.as_mut().ok_or_else(|| Problem::fenced(id, epoch))?;
        claim.lease_until = claim.lease_until.max(until);
        let (item, holder) = self.held(id, epoch)?;
        // A sign of life: after a crash, time is counted up to here.
        self.charge(&item, &holder.agent, None, &[]);
        Ok(())
    }

    pub(super) fn complete(&mut self, completion: Completion) -> Result<(), Problem> {
        let Completion { item: id, epoch, result, mut events } = completion;
        let item = self.claimed(&id, epoch)?.item.clone();
        let advance = self.with_view(item.run.as_deref(), |view| next_items(view, &item, &result));
        if let Some(row) = self.data.items.get_mut(&id) {
            row.item.model_failures = 0;
            row.result = Some(result);
        }
        self.finish(&item, &mut events, advance);
        Ok(())
    }

    pub(super) fn give_up(
        &mut self,
        id: &str,
        epoch: u64,
        problem: Problem,
        mut events: Vec<NewEvent>,
    ) -> Result<(), Problem> {
        let item = self.claimed(id, epoch)?.item.clone();
        let advance = self.with_view(item.run.as_deref(), |view| item_dead(view, &item, ItemState::Failed, &problem));
        if let Some(row) = self.data.items.get_mut(id) {
            row.problem = Some(problem);
        }
        self.finish(&item, &mut events, advance);
        Ok(())
    }

    pub(super) fn release(&mut self, release: Release) -> Result<Released, Problem> {
        let parked = ParkedFor::of(&release);
        let Release { item: id, epoch, reason, generation, delay_ms, error, class, mut events } = release;
        let item = self.claimed(&id, epoch)?.item.clone();
        let Some(claim) = self.end_claim(&id) else { return Err(Problem::fenced(&id, epoch)) };
        let until = self.now.saturating_add(delay_ms);
        if let Some(row) = self.data.items.get_mut(&id) {
            row.not_before = (delay_ms > 0).then_some(until);
            row.parked.clone_from(&parked);
            if reason == ReleaseReason::Model {
                row.item.model_failures += 1;
            }
        }
        match parked {
            Some(why) => {
                let run_waits = item.run.as_ref().is_some_and(|run| self.data.waits(run, self.now));
                events.push(rules::parked_event(&item, until, &why, run_waits));
            }
            None => events.extend(error.map(|text| rules::failed_event(&item, &text, class.as_deref()))),
        }
        rules::sign(&mut events, &id, &claim.holder);
        self.emit(events);
        if reason == ReleaseReason::Crash {
            return Ok(self.crash(&id, &Holder { generation, ..claim.holder }));
        }
        Ok(Released::Ready)
    }

    pub(super) fn start_step(&mut self, step: StartStep) -> Result<u64, Problem> {
        let (item, holder) = self.held(&step.item, step.epoch)?;
        let key = (step.item.clone(), step.attempt);
        let number = self.data.journal.get(&key).map_or(0, |steps| steps.len() as u64) + 1;
        let event = rules::step_started(&item, &holder, &step, number)?;
        if let Some(amount) = step.reserve {
            self.set_aside(&item, &holder, amount, Some((step.attempt, number)))?;
        }
        self.data.journal.entry(key).or_default().push(StepRecord {
            number,
            name: step.name,
            kind: step.kind,
            input_sha256: step.input_sha256,
            state: StepState::Started,
            output: None,
            error: None,
        });
        self.emit([event]);
        Ok(number)
    }

    pub(super) fn finish_step(&mut self, step: FinishStep) -> Result<(), Problem> {
        let (item, holder) = self.held(&step.item, step.epoch)?;
        let steps = self.data.journal.get_mut(&(step.item.clone(), step.attempt));
        let record = steps
            .and_then(|steps| steps.iter_mut().find(|record| record.number == step.number))
            .filter(|record| record.state == StepState::Started)
            .ok_or_else(|| rules::no_such_step(&step.item, step.number))?;
        match &step.outcome {
            Ok(output) => (record.state, record.output) = (StepState::Finished, Some(output.clone())),
            Err(error) => (record.state, record.error) = (StepState::Failed, Some(error.clone())),
        }
        let event = rules::step_finished(&item, &holder, &record.name, &record.kind, &step);
        let own = Some((step.attempt, step.number));
        let settled = if step.spent_unknown() { ReservationState::Unknown } else { ReservationState::Settled };
        let mut unknown = Vec::new();
        for held in self.data.reservations.iter_mut().filter(|held| held.item == step.item && held.step == own) {
            held.state = settled;
            if settled == ReservationState::Unknown {
                unknown.push(held.amount);
            }
        }
        if let Some(row) = self.data.items.get_mut(&step.item) {
            row.item.crashes = 0;
            row.item.crash_generations = 0;
            row.last_crash = None;
            if let Some(claim) = &mut row.claim {
                claim.progressed = true;
            }
        }
        self.emit([event]);
        self.charge(&item, &holder.agent, step.usage.as_ref(), &unknown);
        Ok(())
    }

    pub(super) fn reserve(&mut self, reserve: &Reserve) -> Result<String, Problem> {
        let (item, holder) = self.held(&reserve.item, reserve.epoch)?;
        self.set_aside(&item, &holder, reserve.amount, None)
    }

    pub(super) fn settle(&mut self, id: &str, epoch: u64, reservation: &str, usage: &Usage) -> Result<(), Problem> {
        let (item, holder) = self.held(id, epoch)?;
        let row = self.data.reservations.iter_mut().find(|row| {
            row.id == reservation && row.item == id && row.step.is_none() && row.state == ReservationState::Open
        });
        row.ok_or_else(|| rules::no_such_reservation(id, reservation))?.state = ReservationState::Settled;
        self.charge(&item, &holder.agent, Some(usage), &[]);
        Ok(())
    }

    pub(super) fn out_of_time(&mut self) -> Vec<(String, Problem)> {
        let (boot, now) = (self.boot, self.now);
        self.changed_nothing = true;
        let mut over = Vec::new();
        let ours = |id: &&String| {
            self.data.runs.get(*id).is_some_and(|row| {
                row.run.boot.as_deref() == Some(boot) && rules::is_under_way(row.run.state) && row.run.budget.is_timed()
            })
        };
        for run in self.data.run_order.iter().filter(ours).cloned().collect::<Vec<_>>() {
            let Some(row) = self.data.runs.get(&run) else { continue };
            let budget = row.run.budget;
            let due = |(level, account): &(&Level, &Account)| {
                account.counted_at.is_some() && budget::time_is_due(&budget, level, account, now)
            };
            let due: Vec<(&Level, &Account)> = row.accounts.iter().filter(due).collect();
            let why = due.iter().find_map(|(level, account)| budget::time_is_up(&run, &budget, level, account, now));
            let levels: Vec<Level> = due.iter().map(|(level, _)| (*level).clone()).collect();
            self.changed_nothing &= levels.is_empty();
            self.change(&run, &levels, Account::count_time);
            over.extend(why.map(|problem| (run, problem)));
        }
        over
    }

    pub(super) fn put_artifact(
        &mut self,
        id: &str,
        epoch: u64,
        name: &str,
        content: Vec<u8>,
    ) -> Result<ArtifactRef, Problem> {
        let (item, _) = self.held(id, epoch)?;
        Ok(self.store_artifact(item.run.as_deref(), id, name, content))
    }

    pub(super) fn append_events(&mut self, events: Vec<NewEvent>) -> u64 {
        self.changed_nothing = events.is_empty();
        self.emit(events);
        self.data.last_sequence()
    }

    pub(super) fn post_command(&mut self, command: NewCommand) -> Result<(), Problem> {
        if !self.data.runs.contains_key(&command.run) {
            return Err(rules::no_such_run(&command.run));
        }
        self.data.commands.push(CommandRow { command, taken: false });
        Ok(())
    }

    pub(super) fn take_commands(&mut self) -> Vec<NewCommand> {
        let (runs, boot) = (&self.data.runs, self.boot);
        let ours = |run: &str| runs.get(run).is_some_and(|row| row.run.boot.as_deref() == Some(boot));
        let open = self.data.commands.iter_mut().filter(|row| !row.taken && ours(&row.command.run));
        let taken: Vec<NewCommand> = open
            .map(|row| {
                row.taken = true;
                row.command.clone()
            })
            .collect();
        self.changed_nothing = taken.is_empty();
        taken
    }

    /// Events stay: this store keeps the newest only.
    pub(super) fn prune(&mut self, prune: &Prune) -> Pruned {
        let over = |at: Option<i64>| at.is_some_and(|at| at < prune.ended_before);
        let ended = self.data.items.values().filter(|row| row.item.run.is_none() && over(row.ended_at));
        let items: BTreeSet<String> = ended.take(prune.limit as usize).map(|row| row.item.work.id.clone()).collect();
        let ended = self.data.runs.values().filter(|row| row.run.state.is_terminal() && over(row.run.ended_at));
        let run = ended.map(|row| row.run.id.clone()).next().filter(|_| prune.runs && items.is_empty());
        let of_run = |row: &ItemRow| run.is_some() && row.item.run == run;
        let mut gone = items.clone();
        gone.extend(self.data.items.values().filter(|row| of_run(row)).map(|row| row.item.work.id.clone()));
        self.forget(&gone, run.as_deref());
        self.changed_nothing = gone.is_empty() && run.is_none();
        Pruned {
            items: items.len() as u64,
            runs: u64::from(run.is_some()),
            done: self.changed_nothing,
            ..Pruned::default()
        }
    }

    fn forget(&mut self, items: &BTreeSet<String>, run: Option<&str>) {
        let data = &mut *self.data;
        data.items.retain(|id, _| !items.contains(id));
        data.item_order.retain(|id| !items.contains(id));
        data.journal.retain(|(item, _), _| !items.contains(item));
        data.artifacts.retain(|row| !items.contains(&row.item));
        data.keys.retain(|(scope, _), id| !(*scope == "item" && items.contains(id) || run == Some(id.as_str())));
        if let Some(run) = run {
            data.runs.remove(run);
            data.run_order.retain(|id| id != run);
            data.commands.retain(|row| row.command.run != run);
        }
    }

    /// The one door: all that follows from one thing that happened, into rows.
    fn apply(&mut self, run: Option<&str>, item: Option<&str>, advance: Advance) {
        let Advance { item_state, items, tasks, attempts, phases, run: changed, artifacts, events } = advance;
        if let (Some(id), Some(state)) = (item, item_state)
            && let Some(row) = self.data.items.get_mut(id)
        {
            row.item.state = state;
            row.ended_at = state.is_terminal().then_some(self.now);
        }
        for new in items {
            self.insert_item(new, 0, &Submission::default());
        }
        let now = self.now;
        let mut ended = false;
        if let Some(row) = run.and_then(|run| self.data.runs.get_mut(run)) {
            for task in tasks {
                put_task(&mut row.tasks, task);
            }
            row.attempts.extend(attempts);
            for change in phases {
                if let Some(phase) = row.phases.iter_mut().find(|phase| phase.name == change.name) {
                    rules::change_phase(phase, change.state, change.artifact, now);
                }
            }
            if let Some(run) = changed {
                row.run = run;
            }
            ended = row.run.state.is_terminal();
            if ended {
                row.run.ended_at = row.run.ended_at.or(Some(now));
            }
        }
        for (name, content) in artifacts {
            let bytes = serde_json::to_vec_pretty(&content).unwrap_or_default();
            self.store_artifact(run, item.unwrap_or_default(), &name, bytes);
        }
        if let (true, Some(run)) = (ended, run) {
            for left in self.open_items(run) {
                self.end_claim(&left);
                self.set_cancelled(&left);
            }
            self.rest_run(run);
        }
        // After all that may have something to say: the run's last event must stay its last.
        self.emit(events);
        if let (Some(id), Some(_)) = (item, item_state) {
            self.settle_dependents(id);
        }
    }

    /// Ends a claim for good. The agent's own events come first: the run's last event must stay its last.
    fn finish(&mut self, item: &Item, events: &mut Vec<NewEvent>, mut advance: Advance) {
        let id = &item.work.id;
        if let Some(claim) = self.end_claim(id) {
            rules::sign(events, id, &claim.holder);
            rules::sign(&mut advance.events, id, &claim.holder);
        }
        self.emit(events.drain(..));
        self.apply(item.run.as_deref(), Some(id), advance);
    }

    /// The item under this claim; everybody else is fenced (FENCE-1).
    fn claimed(&mut self, id: &str, epoch: u64) -> Result<&mut ItemRow, Problem> {
        let row = self.data.items.get_mut(id).ok_or_else(|| rules::no_such_item(id))?;
        if row.item.state != ItemState::Running || row.item.epoch != epoch {
            return Err(Problem::fenced(id, epoch));
        }
        Ok(row)
    }

    fn held(&mut self, id: &str, epoch: u64) -> Result<(Item, Holder), Problem> {
        let row = self.claimed(id, epoch)?;
        let holder = row.claim.as_ref().map(|claim| claim.holder.clone());
        Ok((row.item.clone(), holder.ok_or_else(|| Problem::fenced(id, epoch))?))
    }

    /// Ends the claim under way, if there is one: the item is ready, what the claim left open is unknown.
    fn end_claim(&mut self, id: &str) -> Option<ClaimRow> {
        let row = self.data.items.get_mut(id)?;
        let claim = row.claim.take()?;
        row.item.state = ItemState::Ready;
        row.not_before = None;
        let steps = self.data.journal.range_mut((id.to_owned(), 0)..=(id.to_owned(), u32::MAX));
        for step in steps.flat_map(|(_, steps)| steps).filter(|step| step.state == StepState::Started) {
            step.state = StepState::Unknown;
        }
        let item = row.item.clone();
        let open = self.data.reservations.iter_mut().filter(|held| held.item == id);
        let mut left_open = Vec::new();
        for held in open.filter(|held| held.state == ReservationState::Open) {
            held.state = ReservationState::Unknown;
            left_open.push(held.amount);
        }
        self.charge(&item, &claim.holder.agent, None, &left_open);
        self.rest(&item, &claim.holder.agent);
        Some(claim)
    }

    /// Counts a crash; at the poison rule's limit the item is dead.
    fn crash(&mut self, id: &str, holder: &Holder) -> Released {
        let Some(row) = self.data.items.get_mut(id) else { return Released::Ready };
        if !rules::count_crash(&mut row.item, &mut row.last_crash, holder) {
            return Released::Ready;
        }
        let (item, problem) = (row.item.clone(), rules::poison(&row.item));
        row.problem = Some(problem.clone());
        let mut advance = self.with_view(item.run.as_deref(), |view| item_dead(view, &item, ItemState::Dead, &problem));
        rules::sign(&mut advance.events, id, holder);
        self.apply(item.run.as_deref(), Some(id), advance);
        Released::Dead
    }

    /// Claims of nobody who renews: a crash, for the agent or its whole process is gone or stuck.
    fn expire_leases(&mut self) -> bool {
        let late = |row: &&ItemRow| row.claim.as_ref().is_some_and(|claim| claim.lease_until <= self.now);
        let mut expired: Vec<(u64, String)> = self
            .data
            .items
            .values()
            .filter(late)
            .filter(|row| self.data.is_ours(&row.item, self.boot))
            .map(|row| (row.arrival, row.item.work.id.clone()))
            .collect();
        expired.sort_unstable();
        for (_, id) in &expired {
            let item = self.data.items.get(id).map(|row| row.item.clone());
            if let (Some(item), Some(claim)) = (item, self.end_claim(id)) {
                let mut events = [rules::failed_event(&item, rules::LEASE_EXPIRED, None)];
                rules::sign(&mut events, id, &claim.holder);
                self.emit(events);
                self.crash(id, &claim.holder);
            }
        }
        !expired.is_empty()
    }

    /// Ready items that nobody claimed in time; they belong to no run.
    fn miss_deadlines(&mut self) -> bool {
        let late = |row: &&ItemRow| row.item.state == ItemState::Ready && row.deadline.is_some_and(|at| at <= self.now);
        let mut missed: Vec<(Option<i64>, String)> =
            self.data.items.values().filter(late).map(|row| (row.deadline, row.item.work.id.clone())).collect();
        missed.sort_unstable();
        for (deadline, id) in &missed {
            let Some(row) = self.data.items.get_mut(id) else { continue };
            let (item, problem) = (row.item.clone(), rules::deadline_passed(&row.item, deadline.unwrap_or(self.now)));
            row.problem = Some(problem.clone());
            let advance = self.with_view(None, |view| item_dead(view, &item, ItemState::Failed, &problem));
            self.apply(None, Some(id), advance);
        }
        !missed.is_empty()
    }

    fn candidates(&self, request: &ClaimRequest) -> Vec<Candidate> {
        let rows = self.data.item_order.iter().filter_map(|id| self.data.items.get(id));
        rows.filter(|row| row.item.state == ItemState::Ready && row.item.work.role == request.role)
            .filter(|row| self.data.is_ours(&row.item, self.boot))
            .map(|row| Candidate {
                id: row.item.work.id.clone(),
                run: row.item.run.clone(),
                task: row.item.task.clone(),
                kind: row.item.kind,
                role: row.item.work.role,
                rank: rank(row.enqueued_at, row.item.work.priority),
                order: row.arrival,
                open_dependencies: row.open_dependencies,
                file_scope: row.item.work.file_scope.clone(),
                not_before: row.not_before,
            })
            .collect()
    }

    fn holdings(&self) -> Vec<Holding> {
        let running = self.data.items.values().filter(|row| row.item.state == ItemState::Running);
        let items = running.map(|row| Holding {
            run: row.item.run.clone(),
            task: row.item.task.clone(),
            kind: Some(row.item.kind).filter(|kind| *kind == ItemKind::Accept),
            file_scope: row.item.work.file_scope.clone(),
        });
        let tasks = self.data.runs.iter().flat_map(|(id, row)| {
            row.tasks.iter().filter(|task| task.state.holds_scope()).map(|task| Holding {
                run: Some(id.clone()),
                task: Some(task.spec.id.clone()),
                kind: None,
                file_scope: task.spec.file_scope.clone(),
            })
        });
        items.chain(tasks).collect()
    }

    /// Calls a pure decision with the run as it stands.
    fn with_view<T>(&self, run: Option<&str>, decide: impl FnOnce(View<'_>) -> T) -> T {
        match run.and_then(|run| self.data.runs.get(run)) {
            Some(row) => {
                let own = self.data.items.values().filter(|item| item.item.run.as_deref() == run);
                decide(View { run: &row.run, tasks: &row.tasks, next_number: own.count() as u64 + 1 })
            }
            None => decide(View { run: &rules::no_run(), tasks: &[], next_number: 1 }),
        }
    }

    fn set_cancelled(&mut self, id: &str) {
        if let Some(row) = self.data.items.get_mut(id) {
            row.item.state = ItemState::Cancelled;
            row.ended_at = Some(self.now);
        }
    }

    /// Cancels one item that has not ended; its claim, if any, is fenced from here on.
    fn cancel_one(&mut self, id: &str, reason: &str) {
        let claim = self.end_claim(id);
        self.set_cancelled(id);
        let Some(row) = self.data.items.get_mut(id) else { return };
        row.problem = Some(rules::cancelled(id, reason));
        let mut events = [rules::cancelled_event(&row.item, reason)];
        if let Some(claim) = claim {
            rules::sign(&mut events, id, &claim.holder);
        }
        self.emit(events);
    }

    /// An item ended: what waits for it may go on, or never will and is cancelled.
    fn settle_dependents(&mut self, id: &str) {
        let mut ended = vec![id.to_owned()];
        while let Some(id) = ended.pop() {
            let Some(row) = self.data.items.get_mut(&id) else { continue };
            let (state, dependents) = (row.item.state, std::mem::take(&mut row.dependents));
            for dependent in dependents {
                let Some(row) = self.data.items.get_mut(&dependent) else { continue };
                if row.item.state.is_terminal() {
                    continue;
                }
                if state == ItemState::Done {
                    row.open_dependencies = row.open_dependencies.saturating_sub(1);
                } else {
                    self.cancel_one(&dependent, &rules::lost_dependency(&id, state));
                    ended.push(dependent);
                }
            }
        }
    }

    fn insert_item(&mut self, item: Item, open_dependencies: u32, how: &Submission) {
        let id = item.work.id.clone();
        let row = ItemRow {
            item,
            arrival: self.data.arrivals,
            enqueued_at: rules::queued_from(how, self.now),
            ended_at: None,
            open_dependencies,
            dependents: Vec::new(),
            not_before: how.not_before,
            unique_key: how.unique_key.clone(),
            deadline: how.deadline,
            parked: None,
            claim: None,
            last_crash: None,
            result: None,
            problem: None,
        };
        self.data.arrivals += 1;
        self.data.item_order.push(id.clone());
        self.data.items.insert(id, row);
    }

    /// Sets an amount aside, if the budget of its run, its task and its agent allows it (BUDGET-1).
    fn set_aside(
        &mut self,
        item: &Item,
        holder: &Holder,
        amount: Amount,
        step: Option<(u32, u64)>,
    ) -> Result<String, Problem> {
        budget::check_amount(amount)?;
        let levels = Level::of(item, &holder.agent);
        if let Some(row) = item.run.as_ref().and_then(|run| self.data.runs.get(run)) {
            let accounts = levels.iter().map(|level| {
                let account = row.accounts.get(level).cloned().unwrap_or_default();
                (level.clone(), account, self.data.open(&row.run.id, level))
            });
            budget::check(&row.run.id, &row.run.budget, &accounts.collect::<Vec<_>>(), amount, self.now)?;
        }
        if let Some(run) = &item.run {
            self.change(run, &levels, |account, now| {
                account.count_time(now);
                account.calls += 1;
            });
        }
        let id = format!("u-{}", self.data.reservations.len() + 1);
        self.data.reservations.push(ReservationRow {
            id: id.clone(),
            item: item.work.id.clone(),
            run: item.run.clone(),
            levels,
            step,
            amount,
            state: ReservationState::Open,
        });
        Ok(id)
    }

    /// Changes accounts of a run, all alike, and says so where a limit comes near.
    fn change(&mut self, run: &str, levels: &[Level], change: impl Fn(&mut Account, i64)) {
        let mut warnings = Vec::new();
        if let Some(row) = self.data.runs.get_mut(run) {
            for level in levels {
                let before = row.accounts.get(level).cloned().unwrap_or_default();
                let mut after = before.clone();
                change(&mut after, self.now);
                warnings.extend(budget::warnings(run, &row.run.budget, level, &before, &after));
                row.accounts.insert(level.clone(), after);
            }
        }
        self.emit(warnings);
    }

    /// What an item's agent used, and the time until now. `unknown`: what it set aside and nobody can settle.
    fn charge(&mut self, item: &Item, agent: &str, usage: Option<&Usage>, unknown: &[Amount]) {
        let Some(run) = &item.run else { return };
        self.change(run, &Level::of(item, agent), |account, now| {
            account.count_time(now);
            if let Some(usage) = usage {
                account.usage.add(usage);
            }
            for amount in unknown {
                account.charge_unknown(*amount);
            }
        });
    }

    /// A claim has ended: its task and its agent rest, unless they hold another.
    fn rest(&mut self, item: &Item, agent: &str) {
        let Some(run) = &item.run else { return };
        let others = self.data.items.values().filter(|row| row.item.run.as_ref() == Some(run));
        let holding: Vec<&ItemRow> = others.filter(|row| row.claim.is_some()).collect();
        let rests = |level: &Level| match level {
            Level::Run => false,
            Level::Task(task) => holding.iter().all(|row| row.item.task.as_ref() != Some(task)),
            Level::Agent(agent) => {
                holding.iter().all(|row| row.claim.as_ref().is_some_and(|claim| claim.holder.agent != *agent))
            }
        };
        let resting: Vec<Level> = Level::of(item, agent).into_iter().filter(rests).collect();
        self.change(run, &resting, Account::pause);
    }

    fn rest_run(&mut self, run: &str) {
        self.change(run, &[Level::Run], Account::pause);
    }

    /// The process that worked on it is gone: the time since its last sign of life is not counted.
    fn forget_time(&mut self, run: &str) {
        for account in self.data.runs.get_mut(run).into_iter().flat_map(|row| row.accounts.values_mut()) {
            account.counted_at = None;
        }
    }

    /// Whether the budget is worth going on with; what is open will be unknown by then, and `reopened` has not ended.
    fn check_resume(&self, run: &Run, given: Option<Budget>, reopened: Option<&str>) -> Result<(), Problem> {
        let Some(row) = self.data.runs.get(&run.id) else { return Ok(()) };
        let ended = |name: &str| {
            reopened != Some(name) && row.tasks.iter().any(|task| task.spec.id == name && task.state.is_terminal())
        };
        let mut accounts = Vec::new();
        for (level, account) in &row.accounts {
            if !matches!(level, Level::Task(name) if ended(name)) {
                let (mut account, open) = (account.clone(), self.data.open(&run.id, level));
                account.charge_unknown(open.of_steps);
                account.charge_unknown(open.by_hand);
                accounts.push((level.clone(), account));
            }
        }
        budget::check_resume(run, given, &accounts)
    }

    fn store_artifact(&mut self, run: Option<&str>, item: &str, name: &str, content: Vec<u8>) -> ArtifactRef {
        let reference = rules::artifact_reference(name, &content);
        self.data.artifacts.retain(|row| !(row.item == item && row.reference.name == name));
        self.data.artifacts.push(ArtifactRow {
            run: run.map(str::to_owned),
            item: item.to_owned(),
            reference: reference.clone(),
            content,
        });
        reference
    }

    fn emit(&mut self, events: impl IntoIterator<Item = NewEvent>) {
        for event in events {
            let stored = Event {
                sequence: self.data.last_sequence() + 1,
                at: timestamp(self.now),
                boot: Some(self.boot.to_owned()),
                event,
            };
            self.data.push_event(self.boot, stored);
        }
    }

    fn running_items(&self, run: &str) -> Vec<String> {
        self.items_of(run, |state| state == ItemState::Running)
    }

    fn open_items(&self, run: &str) -> Vec<String> {
        self.items_of(run, |state| !state.is_terminal())
    }

    /// In the order of arrival.
    fn items_of(&self, run: &str, wanted: impl Fn(ItemState) -> bool) -> Vec<String> {
        let rows = self.data.item_order.iter().filter_map(|id| self.data.items.get(id));
        let of_run = rows.filter(|row| row.item.run.as_deref() == Some(run) && wanted(row.item.state));
        of_run.map(|row| row.item.work.id.clone()).collect()
    }

    fn refuse_busy_workspace(&self, workspace: &str, but: &str) -> Result<(), Problem> {
        let busy = self.data.run_order.iter().filter_map(|id| self.data.runs.get(id)).find(|row| {
            row.run.workspace == workspace
                && row.run.id != but
                && rules::is_under_way(row.run.state)
                && row.run.boot.as_deref().is_some_and(|boot| !self.data.is_dead(boot))
        });
        let Some(row) = busy else { return Ok(()) };
        let pid = row.run.boot.as_ref().and_then(|boot| self.data.boots.get(boot)).map(|row| row.pid);
        Err(rules::workspace_busy(workspace, &row.run.id, pid))
    }

    fn known(&mut self, scope: &'static str, key: Option<&String>) -> Option<String> {
        let known = self.data.keys.get(&(scope, key?.clone())).cloned();
        self.changed_nothing = known.is_some();
        known
    }

    fn remember(&mut self, scope: &'static str, key: Option<String>, id: &str) {
        if let Some(key) = key {
            self.data.keys.insert((scope, key), id.to_owned());
        }
    }
}

fn put_task(tasks: &mut Vec<Task>, task: Task) {
    match tasks.iter_mut().find(|known| known.spec.id == task.spec.id) {
        Some(known) => *known = task,
        None => tasks.push(task),
    }
    tasks.sort_by_key(|task| task.position);
}
