//! Sequences of operations against a model that is too plain to be wrong: one map, no index, no file. After every answer
//! and at the end, store and model must agree; both backends are held against it.
//!
//! The sequences have two boots, crashes of either, a clock that jumps both ways, and answers that come twice or long
//! after their claim.

use crate::checker::result;
use mnemosyne_core::{AgentRole, EventKind, ItemState, Phase, Problem, ProblemKind, WorkItem, WorkResult};
use mnemosyne_store::{
    ClaimRequest, Clock, Completion, EventQuery, FinishStep, MemoryStore, Release, ReleaseReason, SqliteStore,
    StartStep, Store,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

const BEGIN: i64 = 1_795_342_272_345;

/// Numbers stand for "the item of this number" and "one of the claims so far".
#[derive(Debug, Clone)]
enum Step {
    Submit { id: u8, key: Option<u8>, depends_on: Vec<u8>, priority: u8, reviewer: bool },
    Claim { boot: usize, reviewer: bool, generation: u64, lease_ms: i64 },
    Complete { boot: usize, claim: usize, success: bool },
    Release { boot: usize, claim: usize, reason: ReleaseReason, generation: u64, delay_ms: i64 },
    GiveUp { boot: usize, claim: usize },
    Renew { boot: usize, claim: usize, lease_ms: i64 },
    Progress { boot: usize, claim: usize },
    Cancel { boot: usize, id: u8 },
    Time { jump: i64 },
    Crash { boot: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let boot = 0..2_usize;
    let claim = 0..8_usize;
    let lease_ms = prop_oneof![Just(10), Just(1_000), Just(30_000)];
    let reason = prop_oneof![
        Just(ReleaseReason::Error),
        Just(ReleaseReason::Crash),
        Just(ReleaseReason::Model),
        Just(ReleaseReason::Innocent)
    ];
    prop_oneof![
        6 => (0..24_u8, proptest::option::of(0..6_u8), proptest::collection::vec(0..24_u8, 0..3), 0..12_u8, prop::bool::weighted(0.2))
            .prop_map(|(id, key, depends_on, priority, reviewer)| Step::Submit { id, key, depends_on, priority, reviewer }),
        6 => (boot.clone(), prop::bool::weighted(0.2), 1..3_u64, lease_ms.clone())
            .prop_map(|(boot, reviewer, generation, lease_ms)| Step::Claim { boot, reviewer, generation, lease_ms }),
        4 => (boot.clone(), claim.clone(), prop::bool::weighted(0.8))
            .prop_map(|(boot, claim, success)| Step::Complete { boot, claim, success }),
        3 => (boot.clone(), claim.clone(), reason, 1..3_u64, prop_oneof![Just(0), Just(5_000)])
            .prop_map(|(boot, claim, reason, generation, delay_ms)| Step::Release { boot, claim, reason, generation, delay_ms }),
        1 => (boot.clone(), claim.clone()).prop_map(|(boot, claim)| Step::GiveUp { boot, claim }),
        1 => (boot.clone(), claim.clone(), lease_ms).prop_map(|(boot, claim, lease_ms)| Step::Renew { boot, claim, lease_ms }),
        1 => (boot.clone(), claim).prop_map(|(boot, claim)| Step::Progress { boot, claim }),
        1 => (boot.clone(), 0..24_u8).prop_map(|(boot, id)| Step::Cancel { boot, id }),
        2 => prop_oneof![Just(11_i64), Just(6_000), Just(40_000), Just(3_600_000), Just(-20_000)].prop_map(|jump| Step::Time { jump }),
        1 => boot.prop_map(|boot| Step::Crash { boot }),
    ]
}

/// What a step answered, where it can be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Said(String),
    Claimed(Option<(String, u64)>),
    Refused(String),
}

/// One item as the model knows it.
#[derive(Debug, Clone, Default)]
struct Known {
    arrival: usize,
    enqueued_at: i64,
    priority: u8,
    reviewer: bool,
    waits_for: BTreeSet<String>,
    not_before: Option<i64>,
    state: Option<ItemState>,
    epoch: u64,
    crashes: u32,
    crash_generations: u32,
    last_crash: Option<(u64, u64)>,
    model_failures: u32,
    claim: Option<Claim>,
    steps: u64,
    /// What its events must say, in order.
    history: Vec<(EventKind, u64)>,
}

#[derive(Debug, Clone)]
struct Claim {
    boot: u64,
    generation: u64,
    until: i64,
    progressed: bool,
}

impl Known {
    fn state(&self) -> ItemState {
        self.state.unwrap_or(ItemState::Ready)
    }

    fn say(&mut self, kind: EventKind) {
        self.history.push((kind, self.epoch));
    }
}

struct Model {
    items: BTreeMap<String, Known>,
    keys: BTreeMap<u8, String>,
    now: i64,
    /// Which incarnation each of the two boots is.
    boots: [u64; 2],
    next_boot: u64,
    /// SQLite gives back at once what a dead boot held when the next one begins; in memory the lease has to expire.
    releases_at_boot: bool,
}

impl Model {
    fn new(releases_at_boot: bool) -> Self {
        Self {
            items: BTreeMap::new(),
            keys: BTreeMap::new(),
            now: BEGIN,
            boots: [1, 2],
            next_boot: 3,
            releases_at_boot,
        }
    }

    fn submit(&mut self, id: &str, key: Option<u8>, depends_on: &[String], priority: u8, reviewer: bool) -> Answer {
        if let Some(known) = key.and_then(|key| self.keys.get(&key)) {
            return Answer::Said(known.clone());
        }
        if priority > 10 {
            return Answer::Refused("MN-0117".into());
        }
        if depends_on.iter().any(|dependency| dependency == id) {
            return Answer::Refused("MN-0104".into());
        }
        if self.items.contains_key(id) {
            return Answer::Refused("MN-0106".into());
        }
        let mut waits_for = BTreeSet::new();
        for dependency in depends_on {
            match self.items.get(dependency).map(Known::state) {
                None => return Answer::Refused("MN-0105".into()),
                Some(ItemState::Done) => {}
                Some(state) if state.is_terminal() => return Answer::Refused("MN-0117".into()),
                Some(_) => {
                    waits_for.insert(dependency.clone());
                }
            }
        }
        let arrival = self.items.len();
        let known = Known { arrival, enqueued_at: self.now, priority, reviewer, waits_for, ..Known::default() };
        self.items.insert(id.to_owned(), known);
        if let Some(key) = key {
            self.keys.insert(key, id.to_owned());
        }
        Answer::Said(id.to_owned())
    }

    fn claim(&mut self, boot: usize, reviewer: bool, generation: u64, lease_ms: i64) -> Answer {
        self.expire();
        let (now, boot) = (self.now, self.boots[boot]);
        let free = self.items.iter_mut().filter(|(_, item)| {
            item.state() == ItemState::Ready
                && item.reviewer == reviewer
                && item.waits_for.is_empty()
                && item.not_before.is_none_or(|at| at <= now)
        });
        // One step of priority is worth a minute of waiting.
        let best = free.min_by_key(|(_, item)| (item.enqueued_at - 60_000 * i64::from(item.priority), item.arrival));
        let Some((id, item)) = best else { return Answer::Claimed(None) };
        item.state = Some(ItemState::Running);
        item.epoch += 1;
        item.not_before = None;
        item.claim = Some(Claim { boot, generation, until: now + lease_ms, progressed: false });
        item.say(EventKind::WorkStarted);
        item.say(EventKind::AgentStartedWithTask);
        Answer::Claimed(Some((id.clone(), item.epoch)))
    }

    fn expire(&mut self) {
        let now = self.now;
        let late = self.items.iter().filter(|(_, item)| item.claim.as_ref().is_some_and(|claim| claim.until <= now));
        for id in late.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            let Some((item, claim)) = self.end(&id) else { continue };
            item.say(EventKind::WorkFailed);
            self.crash(&id, (claim.boot, claim.generation));
        }
    }

    /// Ends the claim under way.
    fn end(&mut self, id: &str) -> Option<(&mut Known, Claim)> {
        let item = self.items.get_mut(id)?;
        let claim = item.claim.take()?;
        item.state = None;
        item.not_before = None;
        Some((item, claim))
    }

    fn crash(&mut self, id: &str, holder: (u64, u64)) {
        let Some(item) = self.items.get_mut(id) else { return };
        item.crashes += 1;
        if item.last_crash != Some(holder) {
            item.crash_generations += 1;
            item.last_crash = Some(holder);
        }
        if item.crashes >= 3 && item.crash_generations >= 2 {
            item.say(EventKind::WorkDead);
            self.over(id, ItemState::Dead);
        }
    }

    /// An item ended: what waits for it goes on, or is cancelled with all that waits for that.
    fn over(&mut self, id: &str, state: ItemState) {
        if let Some(item) = self.items.get_mut(id) {
            item.state = Some(state);
        }
        let waiting: Vec<String> =
            self.items.iter().filter(|(_, item)| item.waits_for.contains(id)).map(|(id, _)| id.clone()).collect();
        for dependent in waiting {
            let Some(item) = self.items.get_mut(&dependent) else { continue };
            if state == ItemState::Done {
                item.waits_for.remove(id);
            } else if !item.state().is_terminal() {
                item.say(EventKind::WorkCancelled);
                self.over(&dependent, ItemState::Cancelled);
            }
        }
    }

    /// The claim, if it is still the item's.
    fn held(&mut self, claim: &(String, u64)) -> Result<&mut Known, Answer> {
        let fenced = Answer::Refused("MN-0306".into());
        let item = self.items.get_mut(&claim.0).ok_or(fenced.clone())?;
        if item.claim.is_none() || item.epoch != claim.1 { Err(fenced) } else { Ok(item) }
    }

    fn finish(&mut self, claim: &(String, u64), state: ItemState) -> Answer {
        match self.held(claim) {
            Err(refused) => return refused,
            Ok(item) if state == ItemState::Done => item.say(EventKind::WorkCompleted),
            Ok(item) => item.say(EventKind::WorkFailed),
        }
        self.end(&claim.0);
        self.over(&claim.0, state);
        Answer::Said(String::new())
    }

    fn release(&mut self, claim: &(String, u64), reason: ReleaseReason, generation: u64, delay_ms: i64) -> Answer {
        if let Err(refused) = self.held(claim) {
            return refused;
        }
        let now = self.now;
        let Some((item, ended)) = self.end(&claim.0) else { return Answer::Said(String::new()) };
        item.say(EventKind::WorkFailed);
        item.not_before = (delay_ms > 0).then_some(now + delay_ms);
        item.model_failures += u32::from(reason == ReleaseReason::Model);
        if reason == ReleaseReason::Crash {
            self.crash(&claim.0, (ended.boot, generation));
        }
        Answer::Said(String::new())
    }

    fn progress(&mut self, claim: &(String, u64)) -> Answer {
        let item = match self.held(claim) {
            Ok(item) => item,
            Err(refused) => return refused,
        };
        item.steps += 1;
        (item.crashes, item.crash_generations, item.last_crash) = (0, 0, None);
        if let Some(claim) = &mut item.claim {
            claim.progressed = true;
        }
        item.say(EventKind::StepStarted);
        item.say(EventKind::StepFinished);
        Answer::Said(item.steps.to_string())
    }

    fn renew(&mut self, claim: &(String, u64), lease_ms: i64) -> Answer {
        let until = self.now + lease_ms;
        match self.held(claim) {
            Err(refused) => refused,
            Ok(item) => {
                if let Some(claim) = &mut item.claim {
                    claim.until = claim.until.max(until);
                }
                Answer::Said(String::new())
            }
        }
    }

    fn cancel(&mut self, id: &str) -> Answer {
        let Some(item) = self.items.get_mut(id) else { return Answer::Refused("MN-0117".into()) };
        if !item.state().is_terminal() {
            item.say(EventKind::WorkCancelled);
            self.end(id);
            self.over(id, ItemState::Cancelled);
        }
        Answer::Said(String::new())
    }

    fn die(&mut self, boot: usize) {
        let dead = self.boots[boot];
        self.boots[boot] = self.next_boot;
        self.next_boot += 1;
        if !self.releases_at_boot {
            return;
        }
        let mut held: Vec<(usize, String)> = Vec::new();
        for (id, item) in &self.items {
            if item.claim.as_ref().is_some_and(|claim| claim.boot == dead) {
                held.push((item.arrival, id.clone()));
            }
        }
        for (_, id) in held {
            let Some((_, claim)) = self.end(&id) else { continue };
            if !claim.progressed {
                self.crash(&id, (claim.boot, claim.generation));
            }
        }
    }
}

/// The thing under test: two boots on the same data.
struct Subject {
    boots: [Option<Arc<dyn Store>>; 2],
    open: Box<dyn Fn() -> Arc<dyn Store>>,
}

impl Subject {
    fn new(open: Box<dyn Fn() -> Arc<dyn Store>>) -> Self {
        Self { boots: [Some(open()), Some(open())], open }
    }

    fn boot(&self, boot: usize) -> &dyn Store {
        self.boots[boot].as_deref().unwrap()
    }

    /// As `kill -9`: nothing is released by the end of a boot.
    fn die(&mut self, boot: usize) {
        self.boots[boot] = None;
        self.boots[boot] = Some((self.open)());
    }
}

fn name(id: u8) -> String {
    format!("i-{id}")
}

fn role(reviewer: bool) -> AgentRole {
    if reviewer { AgentRole::Reviewer } else { AgentRole::Executor }
}

fn said<T>(answer: Result<T, Problem>, text: impl FnOnce(T) -> String) -> Answer {
    match answer {
        Ok(value) => Answer::Said(text(value)),
        Err(problem) => Answer::Refused(problem.code),
    }
}

/// One step in both; the claims that were given out so far.
async fn take(
    step: &Step,
    model: &mut Model,
    subject: &mut Subject,
    time: &AtomicI64,
    claims: &mut Vec<(String, u64)>,
) -> (Answer, Answer) {
    let nothing = |(): ()| String::new();
    let of = |claim: usize| claims.iter().rev().nth(claim).cloned().unwrap_or_else(|| ("i-0".into(), 99));
    match step.clone() {
        Step::Submit { id, key, depends_on, priority, reviewer } => {
            let depends_on: Vec<String> = depends_on.into_iter().map(name).collect();
            let work = WorkItem {
                id: name(id),
                description: "something".into(),
                phase: Phase::PlanToArtifacts,
                role: role(reviewer),
                priority,
                depends_on: depends_on.clone(),
                file_scope: Vec::new(),
                context: serde_json::Map::new(),
                timeout_seconds: 60.0,
                attempt: 1,
            };
            let stored = subject.boot(usize::from(id % 2)).submit_item(work, key.map(|key| format!("k-{key}"))).await;
            (said(stored, |id| id), model.submit(&name(id), key, &depends_on, priority, reviewer))
        }
        Step::Claim { boot, reviewer, generation, lease_ms } => {
            let request = ClaimRequest { role: role(reviewer), agent: "e".into(), generation, lease_ms };
            let given = subject.boot(boot).claim(request).await;
            let given = match given {
                Ok(claimed) => Answer::Claimed(claimed.map(|claimed| (claimed.item.work.id, claimed.item.epoch))),
                Err(problem) => Answer::Refused(problem.code),
            };
            if let Answer::Claimed(Some(claim)) = &given {
                claims.push(claim.clone());
            }
            (given, model.claim(boot, reviewer, generation, lease_ms))
        }
        Step::Complete { boot, claim, success } => {
            let (item, epoch) = of(claim);
            let result = if success { result("r") } else { WorkResult::failure("no") };
            let completion = Completion { item: item.clone(), epoch, result, events: Vec::new() };
            let done = subject.boot(boot).complete(completion).await;
            let state = if success { ItemState::Done } else { ItemState::Failed };
            let expected = exists(model, &item, |model| model.complete(&(item.clone(), epoch), state));
            (said(done, nothing), expected)
        }
        Step::Release { boot, claim, reason, generation, delay_ms } => {
            let (item, epoch) = of(claim);
            let error = Some("again".to_owned());
            let release = Release {
                item: item.clone(),
                epoch,
                reason,
                generation,
                delay_ms,
                error,
                class: None,
                events: Vec::new(),
            };
            let released = subject.boot(boot).release(release).await;
            let expected =
                exists(model, &item, |model| model.release(&(item.clone(), epoch), reason, generation, delay_ms));
            (said(released, |_| String::new()), expected)
        }
        Step::GiveUp { boot, claim } => {
            let (item, epoch) = of(claim);
            let problem = Problem::new(ProblemKind::Agent, "MN-0301", "no");
            let given_up = subject.boot(boot).give_up(&item, epoch, problem, Vec::new()).await;
            let expected = exists(model, &item, |model| model.finish(&(item.clone(), epoch), ItemState::Failed));
            (said(given_up, nothing), expected)
        }
        Step::Renew { boot, claim, lease_ms } => {
            let (item, epoch) = of(claim);
            let renewed = subject.boot(boot).renew(&item, epoch, lease_ms).await;
            let expected = exists(model, &item, |model| model.renew(&(item.clone(), epoch), lease_ms));
            (said(renewed, nothing), expected)
        }
        Step::Progress { boot, claim } => {
            let (item, epoch) = of(claim);
            let expected = exists(model, &item, |model| model.progress(&(item.clone(), epoch)));
            (said(progress(subject.boot(boot), item, epoch).await, |number| number.to_string()), expected)
        }
        Step::Cancel { boot, id } => {
            (said(subject.boot(boot).cancel_item(&name(id), "no").await, nothing), model.cancel(&name(id)))
        }
        Step::Time { jump } => {
            time.fetch_add(jump, Ordering::SeqCst);
            model.now += jump;
            (Answer::Said(String::new()), Answer::Said(String::new()))
        }
        Step::Crash { boot } => {
            subject.die(boot);
            model.die(boot);
            (Answer::Said(String::new()), Answer::Said(String::new()))
        }
    }
}

/// An id that names nothing is refused as such and not as fenced.
fn exists(model: &mut Model, item: &str, run: impl FnOnce(&mut Model) -> Answer) -> Answer {
    if model.items.contains_key(item) { run(model) } else { Answer::Refused("MN-0117".into()) }
}

impl Model {
    fn complete(&mut self, claim: &(String, u64), state: ItemState) -> Answer {
        let answer = self.finish(claim, state);
        if let (Answer::Said(_), Some(item)) = (&answer, self.items.get_mut(&claim.0)) {
            item.model_failures = 0;
        }
        answer
    }
}

async fn progress(store: &dyn Store, item: String, epoch: u64) -> Result<u64, Problem> {
    let step = StartStep {
        item: item.clone(),
        epoch,
        attempt: 1,
        name: "step".into(),
        kind: "step".into(),
        input_sha256: "ab".repeat(32),
        detail: serde_json::Value::Null,
        reserve: None,
    };
    let number = store.start_step(step).await?;
    let outcome = Ok(serde_json::json!(1));
    store
        .finish_step(FinishStep {
            item,
            epoch,
            attempt: 1,
            number,
            outcome,
            usage: None,
            detail: serde_json::Value::Null,
        })
        .await?;
    Ok(number)
}

/// Everything that can be read must be as the model knows it.
async fn compare(model: &Model, store: &dyn Store) -> Result<(), TestCaseError> {
    let events = store.events(EventQuery::default()).await.unwrap();
    for (event, should) in events.iter().zip(1..) {
        prop_assert_eq!(event.sequence, should, "DUR-3");
    }
    let mut waiting = 0;
    for (id, known) in &model.items {
        let stored = store.item(id).await.unwrap().map(|snapshot| snapshot.item);
        prop_assert!(stored.is_some(), "{} is lost", id);
        let Some(stored) = stored else { continue };
        let waits = !known.waits_for.is_empty() || known.not_before.is_some_and(|at| at > model.now);
        let shown = if known.state() == ItemState::Ready && waits { ItemState::Waiting } else { known.state() };
        waiting += u64::from(shown == ItemState::Waiting);
        let is = (stored.state, stored.epoch, stored.crashes, stored.crash_generations, stored.model_failures);
        let should = (shown, known.epoch, known.crashes, known.crash_generations, known.model_failures);
        prop_assert_eq!(is, should, "{}", id);
        let of_item = events.iter().filter(|event| event.event.item.as_ref() == Some(id));
        let history: Vec<_> = of_item.map(|event| (event.event.kind, event.event.epoch.unwrap_or_default())).collect();
        prop_assert_eq!(&history, &known.history, "the history of {}", id);
        let done = history.iter().filter(|(kind, _)| *kind == EventKind::WorkCompleted).count();
        prop_assert!(done <= 1, "ONCE-1: {}", id);
    }
    prop_assert_eq!(store.queue().await.unwrap().waiting, waiting);
    Ok(())
}

async fn follow(steps: &[Step], mut model: Model, mut subject: Subject, time: &AtomicI64) -> Result<(), TestCaseError> {
    let mut claims = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let (is, should) = take(step, &mut model, &mut subject, time, &mut claims).await;
        prop_assert_eq!(is, should, "step {}: {:?}", number, step);
        if matches!(step, Step::Crash { .. }) {
            compare(&model, subject.boot(1)).await?;
        }
    }
    compare(&model, subject.boot(0)).await
}

fn sequences(run: impl Fn(&[Step], Clock, &AtomicI64) -> Result<(), TestCaseError>) {
    let cases = crate::length("MNEMOSYNE_STORE_SEQUENCES", 150) as u32;
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let sequence = proptest::collection::vec(step(), 1..60);
    let outcome = runner.run(&sequence, |steps| {
        let time = Arc::new(AtomicI64::new(BEGIN));
        let clock = Arc::clone(&time);
        run(&steps, Arc::new(move || clock.load(Ordering::SeqCst)), &time)
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn sqlite_agrees_with_a_plain_model_over_crashes_clock_jumps_and_late_answers() {
    sequences(|steps, clock, time| {
        let folder = crate::memory_folder();
        let path = folder.path().join("store.db");
        let open = move || -> Arc<dyn Store> { Arc::new(SqliteStore::with_clock(&path, Arc::clone(&clock)).unwrap()) };
        block_on(follow(steps, Model::new(true), Subject::new(Box::new(open)), time))
    });
}

#[test]
fn the_store_in_memory_agrees_with_the_same_model() {
    sequences(|steps, clock, time| {
        let store = MemoryStore::with_clock(clock);
        let open = move || -> Arc<dyn Store> { Arc::new(store.another_boot()) };
        block_on(follow(steps, Model::new(false), Subject::new(Box::new(open)), time))
    });
}
