//! `kill -9` at random moments of a random load: a process with four workers that submit, claim, complete, fail, release
//! and cancel items with dependencies, with leases so short that some expire in their holder's hands.
//!
//! The process writes a line per acknowledgement to a pipe; what the pipe holds is all that the checker knows of it.

use crate::checker::{Acknowledged, check, result};
use crate::random::{Random, seed};
use mnemosyne_core::{AgentRole, Phase, Problem, ProblemKind, WorkItem};
use mnemosyne_store::{ClaimRequest, Claimed, Completion, Release, ReleaseReason, SqliteStore, Stander, Store};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

const WORKERS: u64 = 4;
/// Kills on one store before it is read whole and replaced: the check takes as long as the store is large.
const KILLS_PER_STORE: u64 = 10;
/// A dependency that was cancelled or failed: the load cannot know.
const DEPENDS_ON_THE_DEAD: &str = "MN-0117";

/// Not a test by itself: the process that is killed.
#[test]
fn child_that_works_until_it_is_killed() {
    let Ok(path) = std::env::var("MNEMOSYNE_CHAOS_STORE") else { return };
    println!(); // ends the line that the harness began
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    runtime.block_on(async {
        let store = SqliteStore::open(Path::new(&path)).unwrap();
        work(Arc::new(store), seed(), Arc::new(print), None).await;
    });
}

/// Where acknowledgements go.
pub(crate) type Say = Arc<dyn Fn(Acknowledged) + Send + Sync>;

/// Four workers; for ever, or for so many steps each.
pub(crate) async fn work(store: Arc<SqliteStore>, seed: u64, say: Say, steps: Option<u64>) {
    let known = Arc::new(Mutex::new(VecDeque::new()));
    let workers: Vec<_> = (0..WORKERS)
        .map(|number| {
            let name = format!("{}-{number}", store.boot());
            let waits = (number % 2 == 0).then(|| Waits::begin(&store, &name, &say));
            let mut worker = Worker {
                store: Arc::clone(&store),
                waits,
                random: Random::new(seed ^ (number << 56)),
                name,
                submitted: 0,
                known: Arc::clone(&known),
                held: Vec::new(),
                say: Arc::clone(&say),
            };
            tokio::spawn(async move {
                let mut step = 0;
                while steps.is_none_or(|steps| step < steps) {
                    worker.step().await;
                    step += 1;
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
}

/// What a worker is given by a standing claim.
struct Waits {
    request: ClaimRequest,
    places: Arc<Semaphore>,
    given: Mutex<Vec<(Claimed, OwnedSemaphorePermit)>>,
    say: Say,
}

impl Waits {
    fn begin(store: &SqliteStore, name: &str, say: &Say) -> Arc<Self> {
        let request =
            ClaimRequest { role: AgentRole::Executor, agent: name.to_owned(), generation: 1, lease_ms: 60_000 };
        let places = Arc::new(Semaphore::new(2));
        let waits = Arc::new(Self { request, places, given: Mutex::default(), say: Arc::clone(say) });
        store.stand(waits.clone());
        waits
    }
}

impl Stander for Waits {
    fn request(&self) -> &ClaimRequest {
        &self.request
    }
    fn room(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().try_acquire_owned().ok()
    }
    fn take(&self, claimed: Claimed, place: OwnedSemaphorePermit) {
        (self.say)(Acknowledged::Claimed { item: claimed.item.work.id.clone(), epoch: claimed.item.epoch });
        self.given.lock().unwrap().push((claimed, place));
    }
    fn is_over(&self) -> bool {
        false
    }
}

struct Worker {
    store: Arc<SqliteStore>,
    /// Every second worker stands too.
    waits: Option<Arc<Waits>>,
    random: Random,
    name: String,
    submitted: u64,
    /// The newest items of all workers, to depend on and to cancel.
    known: Arc<Mutex<VecDeque<String>>>,
    /// Claims that were kept, some of them past their time.
    held: Vec<Claimed>,
    say: Say,
}

impl Worker {
    async fn step(&mut self) {
        match self.random.below(100) {
            0..40 => self.submit().await,
            40..80 => self.claim().await,
            80..90 => self.finish_a_held_one().await,
            90..95 => self.renew().await,
            _ => self.cancel().await,
        }
    }

    async fn submit(&mut self) {
        self.submitted += 1;
        let id = format!("{}-{}", self.name, self.submitted);
        let mut depends_on: Vec<String> = Vec::new();
        for _ in 0..self.random.below(4) {
            let known = self.known.lock().unwrap();
            depends_on.extend(self.random.pick(known.as_slices().0).cloned());
        }
        let work = WorkItem {
            id: id.clone(),
            description: "something".into(),
            phase: Phase::PlanToArtifacts,
            role: AgentRole::Executor,
            priority: self.random.below(11) as u8,
            depends_on: depends_on.clone(),
            file_scope: Vec::new(),
            context: serde_json::Map::new(),
            timeout_seconds: 60.0,
            attempt: 1,
        };
        let key = self.random.percent(50).then(|| format!("key-{id}"));
        match self.store.submit_item(work.clone(), key.clone()).await {
            Ok(_) => {
                self.say(Acknowledged::Submitted { item: id.clone(), depends_on });
                let again = if key.is_some() { self.store.submit_item(work, key).await } else { Ok(id.clone()) };
                if again.as_ref() != Ok(&id) {
                    self.say(Acknowledged::Refused { what: format!("the same key again: {again:?}") });
                }
                let mut known = self.known.lock().unwrap();
                known.push_front(id);
                known.truncate(20);
            }
            Err(problem) if problem.code == DEPENDS_ON_THE_DEAD => {}
            Err(problem) => self.unexpected("submit", &problem),
        }
    }

    async fn claim(&mut self) {
        let given = self.waits.as_ref().and_then(|waits| waits.given.lock().unwrap().pop());
        if let Some((claimed, _place)) = given {
            return self.finish(&claimed).await;
        }
        let lease_ms = if self.random.percent(20) { 5 } else { 60_000 };
        let request = ClaimRequest { role: AgentRole::Executor, agent: self.name.clone(), generation: 1, lease_ms };
        match self.store.claim(request).await {
            Ok(Some(claimed)) => {
                self.say(Acknowledged::Claimed { item: claimed.item.work.id.clone(), epoch: claimed.item.epoch });
                if self.random.percent(20) {
                    self.held.push(claimed);
                } else {
                    self.finish(&claimed).await;
                }
            }
            Ok(None) => {}
            Err(problem) => self.unexpected("claim", &problem),
        }
    }

    /// Sometimes long after its lease, or after its end: then the store must say that it is fenced.
    async fn finish_a_held_one(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let at = self.random.below(self.held.len() as u64) as usize;
        let claimed = if self.random.percent(30) { self.held[at].clone() } else { self.held.swap_remove(at) };
        self.finish(&claimed).await;
    }

    async fn finish(&mut self, claimed: &Claimed) {
        let (item, epoch) = (claimed.item.work.id.clone(), claimed.item.epoch);
        match self.random.below(100) {
            0..75 => {
                let token = format!("{}-{epoch}-{}", self.name, self.random.next());
                let answer = self.store.complete(Completion::new(claimed, result(&token))).await;
                self.told(answer, Acknowledged::Completed { item, epoch, token });
            }
            75..80 => {
                let problem = Problem::new(ProblemKind::Agent, "MN-0301", "it cannot be done");
                let answer = self.store.give_up(&item, epoch, problem, Vec::new()).await;
                self.told(answer, Acknowledged::GivenUp { item });
            }
            _ => {
                let reasons =
                    [ReleaseReason::Error, ReleaseReason::Innocent, ReleaseReason::Model, ReleaseReason::Crash];
                let reason = self.random.pick(&reasons).copied().unwrap_or(ReleaseReason::Error);
                let delay_ms = self.random.below(3) as i64;
                let release = Release {
                    item,
                    epoch,
                    reason,
                    generation: 1,
                    delay_ms,
                    error: Some("again".into()),
                    class: None,
                    events: vec![],
                };
                if let Err(problem) = self.store.release(release).await {
                    self.unexpected("release", &problem);
                }
            }
        }
    }

    fn say(&self, acknowledged: Acknowledged) {
        (self.say)(acknowledged);
    }

    fn told(&self, answer: Result<(), Problem>, acknowledged: Acknowledged) {
        match answer {
            Ok(()) => self.say(acknowledged),
            Err(problem) => self.unexpected("finish", &problem),
        }
    }

    /// A claim that is over is fenced, and that is right; whatever else is refused is wrong.
    fn unexpected(&self, what: &str, problem: &Problem) {
        if problem.kind != ProblemKind::Fenced {
            self.say(Acknowledged::Refused { what: format!("{what}: {problem}") });
        }
    }

    async fn renew(&mut self) {
        if let Some(claimed) = self.random.pick(&self.held).cloned() {
            let renewed = self.store.renew(&claimed.item.work.id, claimed.item.epoch, 5).await;
            if let Err(problem) = renewed {
                self.unexpected("renew", &problem);
            }
        }
    }

    async fn cancel(&mut self) {
        let item = self.random.pick(self.known.lock().unwrap().as_slices().0).cloned();
        let Some(item) = item else { return };
        match self.store.cancel_item(&item, "chaos").await {
            Ok(()) => self.say(Acknowledged::Cancelled { item }),
            Err(problem) => self.unexpected("cancel", &problem),
        }
    }
}

/// One write of less than a page: a pipe takes it whole or not at all.
fn print(acknowledged: Acknowledged) {
    let mut out = std::io::stdout().lock();
    out.write_all(acknowledged.line().as_bytes()).and_then(|()| out.flush()).unwrap();
}

/// Starts the process, kills it so long after so many answers, and returns what it said.
fn live_and_die(path: &Path, seed: u64, answers: u64, and_then: Duration) -> Vec<Acknowledged> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "chaos::child_that_works_until_it_is_killed", "--nocapture"])
        .env("MNEMOSYNE_CHAOS_STORE", path)
        .env("MNEMOSYNE_SEED", seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let (enough, has_enough) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || {
        let (mut said, mut line) = (Vec::new(), String::new());
        // A last line without its end is of a write that the kill cut off.
        while out.read_line(&mut line).is_ok_and(|length| length > 0) && line.ends_with('\n') {
            said.extend(Acknowledged::parse(line.trim_end_matches('\n')));
            if said.len() as u64 >= answers {
                let _ = enough.send(());
            }
            line.clear();
        }
        said
    });
    if answers > 0 {
        has_enough.recv_timeout(Duration::from_secs(60)).expect("the child does not answer");
    }
    std::thread::sleep(and_then); // the moment of the kill, not a wait for anything
    child.kill().unwrap();
    child.wait().unwrap();
    reading.join().unwrap()
}

/// So many kills on one store; what is wrong with it, and how much was acknowledged.
fn chaos(path: &Path, seed: u64, kills: u64, at_least: u64) -> (Vec<String>, usize) {
    let mut random = Random::new(seed);
    let mut acknowledged = Vec::new();
    for _ in 0..kills {
        // One in ten dies while it opens the store.
        let answers = at_least + if random.percent(10) { 0 } else { random.below(400) };
        let and_then = Duration::from_micros(random.below(if answers == 0 { 20_000 } else { 3_000 }));
        acknowledged.extend(live_and_die(path, random.next(), answers, and_then));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    (runtime.block_on(check(path, &acknowledged)), acknowledged.len())
}

#[test]
fn dur_1_once_1_a_store_that_is_killed_at_random_loses_nothing_and_does_nothing_twice() {
    let kills = crate::length("MNEMOSYNE_STORE_KILLS", 30);
    let (seed, mut acknowledged) = (seed(), 0);
    for round in 0..kills.div_ceil(KILLS_PER_STORE) {
        let folder = tempfile::tempdir().unwrap();
        let left = (kills - round * KILLS_PER_STORE).min(KILLS_PER_STORE);
        let (wrong, said) = chaos(&folder.path().join("store.db"), seed.wrapping_add(round), left, 0);
        assert!(wrong.is_empty(), "MNEMOSYNE_SEED={seed}, round {round}: {}", wrong.join("\n"));
        acknowledged += said;
    }
    println!("{kills} kills, {acknowledged} acknowledgements, seed {seed}");
    assert!(acknowledged as u64 > kills * 50, "the load did nothing: {acknowledged} acknowledgements");
}

/// A store that breaks one promise by a trigger in its file, under the same processes and kills.
fn broken_on_purpose(trigger: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    drop(SqliteStore::open(&path).unwrap());
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute_batch(&format!("CREATE TRIGGER broken {trigger} END;")).unwrap();
    drop(connection);
    chaos(&path, seed(), 2, 400).0
}

fn complains(wrong: &[String], about: &str) {
    assert!(wrong.iter().any(|line| line.contains(about)), "the checker did not see it: {wrong:?}");
}

#[test]
fn the_checker_sees_a_store_that_loses_what_it_accepted() {
    let wrong = broken_on_purpose(
        "AFTER INSERT ON works
         WHEN abs(random()) % 10 = 0 AND (SELECT open_dependencies FROM items WHERE arrival = new.item) = 0
         BEGIN DELETE FROM works WHERE item = new.item; DELETE FROM items WHERE arrival = new.item;",
    );
    complains(&wrong, "was accepted and is lost");
}

#[test]
fn the_checker_sees_a_store_that_accepts_a_result_twice() {
    let wrong = broken_on_purpose(
        "AFTER UPDATE OF state ON items WHEN new.state = 'done' AND new.epoch = 1 AND new.arrival % 10 = 0
         BEGIN UPDATE items SET state = 'ready' WHERE id = new.id;",
    );
    complains(&wrong, "was accepted as done twice");
}

#[test]
fn the_checker_sees_a_store_whose_events_have_a_gap() {
    let wrong = broken_on_purpose(
        "AFTER INSERT ON events WHEN new.sequence = 57 BEGIN DELETE FROM events WHERE sequence = 56;",
    );
    complains(&wrong, "event 56 is missing");
}

#[test]
fn the_checker_sees_a_store_that_begins_before_a_dependency_is_done() {
    let wrong = broken_on_purpose(
        "AFTER INSERT ON item_dependencies
         BEGIN UPDATE items SET open_dependencies = 0 WHERE id = new.item;
               DELETE FROM item_dependencies WHERE item = new.item;",
    );
    complains(&wrong, "was begun before");
}

#[test]
fn the_checker_sees_a_store_whose_claims_do_not_fence() {
    let wrong = broken_on_purpose(
        "AFTER UPDATE OF epoch ON items WHEN new.epoch > 1
         BEGIN UPDATE items SET epoch = 1 WHERE id = new.id;",
    );
    complains(&wrong, "was given out twice");
}

#[test]
fn the_checker_sees_a_store_that_forgets_an_item() {
    let wrong = broken_on_purpose(
        "AFTER INSERT ON items WHEN new.arrival % 50 = 0
         BEGIN UPDATE items SET open_dependencies = open_dependencies + 1 WHERE id = new.id;",
    );
    complains(&wrong, "nothing will end it");
}
