//! The store in one SQLite file: WAL, FULL, one thread that writes and one that reads.
//!
//! - `open`: is the file ours, and does SQLite do what we rely on.
//! - `writer`: group commit; `standing`: claims that wait for one; `write/`: one file per write, beside its SQL.
//! - `reader`: reads, off tokio's threads; `rows`, `events`, `journals`: rows into records.
//! - `maintenance`: checks and backups; `failure`: SQLite's errors, in words.

mod events;
mod failure;
mod journals;
mod maintenance;
mod open;
mod reader;
mod rows;
mod standing;
mod write;
mod writer;

#[cfg(test)]
mod tests;

use crate::Store;
use crate::boot::{self, Boot};
use crate::clock::{Clock, system_clock};
use crate::rules;
use crate::types::{
    ClaimRequest, Claimed, Completion, DeadLetter, Durability, EventQuery, FinishStep, ItemEnd, ItemJournal,
    ItemSnapshot, NewCommand, Prune, Pruned, QueueCounts, Ready, Release, Released, Reserve, RunSnapshot, Stander,
    StartStep, StepRecord, Submission, UnderWay,
};
use crate::waiting::Waiting;
use async_trait::async_trait;
use failure::Failure;
pub use maintenance::{StoreReport, backup, check};
use mnemosyne_core::{ArtifactRef, Attempt, Budget, Event, NewEvent, Problem, Run, RunState, Usage, WorkItem};
use open::Access;
use reader::{Read, Reader};
use rusqlite::Connection;
use standing::Standing;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use tokio::sync::{oneshot, watch};
use write::Write;
use writer::{Job, Operation, Writer};

/// A handle on a store in a file; one boot. Dropping it finishes what was sent, closes the file and ends the boot.
pub struct SqliteStore {
    boot: String,
    clock: Clock,
    path: PathBuf,
    state_directory: PathBuf,
    changed: watch::Sender<u64>,
    ready: watch::Sender<Ready>,
    waiting: Waiting,
    standing: Standing,
    /// What `PRAGMA data_version` was when another process's commits were last looked for.
    data_version: AtomicI64,
    /// Why nothing is written to a file that can be read.
    refusal: Option<Problem>,
    /// `None` only while the handle is dropped: the end of the channel ends the thread. And where nothing is written.
    jobs: Option<Sender<Box<dyn Job>>>,
    /// As `jobs`.
    reads: Option<Sender<Read>>,
    /// Joined on drop, the reader first, so that the writer closes last and leaves no WAL behind.
    reader: Option<JoinHandle<()>>,
    writer: Option<JoinHandle<()>>,
}

impl SqliteStore {
    /// Opens or makes the store at a path, on the wall clock.
    ///
    /// # Errors
    /// `Store`: MN-0206 for a file that is not ours, MN-0204 for one of a newer version and MN-0213 for another user's, all
    /// left untouched; MN-0203 for what cannot be opened or would not be safe. A file that is read-only (MN-0216) or was
    /// found damaged after a death (MN-0215) is opened, and every write to it refused.
    pub fn open(path: &Path) -> Result<SqliteStore, Problem> {
        Self::with_clock(path, system_clock())
    }

    /// The same on a clock of the caller.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub fn with_clock(path: &Path, clock: Clock) -> Result<SqliteStore, Problem> {
        Self::begin(path, clock, Durability::default())
    }

    /// Opens or makes the store at a path, with another promise than the default.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub fn open_as(path: &Path, durability: Durability) -> Result<SqliteStore, Problem> {
        Self::begin(path, system_clock(), durability)
    }

    fn begin(path: &Path, clock: Clock, durability: Durability) -> Result<SqliteStore, Problem> {
        let state_directory = boot::state_directory(path);
        match open::writer(path, &state_directory, durability)? {
            Access::Whole(connection) => Self::whole(path, clock, state_directory, connection),
            Access::OnlyReads(refusal) => Self::only_reads(path, clock, state_directory, refusal),
        }
    }

    fn whole(path: &Path, clock: Clock, state_directory: PathBuf, connection: Connection) -> Result<Self, Problem> {
        let boot = Boot::begin(&state_directory)?;
        let broken = |error| failure::broken(path, &error);
        let data_version = AtomicI64::new(open::pragma(&connection, "data_version").map_err(broken)?);
        let changed = watch::Sender::new(events::last_sequence(&connection).map_err(broken)?);
        let (ready, waiting, standing) = (watch::Sender::default(), Waiting::default(), Standing::default());
        let (jobs, taken_jobs) = channel();
        let (reads, reader) = start_reader(path, open::reader(path, true)?)?;
        let name = boot.id().to_owned();
        let writer = Writer {
            connection,
            jobs: taken_jobs,
            changed: changed.clone(),
            ready: ready.clone(),
            waiting: waiting.clone(),
            standing: standing.clone(),
            clock: clock.clone(),
            path: path.to_owned(),
            state_directory: state_directory.clone(),
            boot,
        };
        // The boot is in the file before anybody can claim with it.
        let started = queue_start(&jobs);
        let store = Self {
            boot: name,
            clock,
            path: path.to_owned(),
            state_directory,
            changed,
            ready,
            waiting,
            standing,
            data_version,
            refusal: None,
            jobs: Some(jobs),
            reads: Some(reads),
            reader: Some(reader),
            writer: Some(spawn(path, "mnemosyne-write", move || writer.work())?),
        };
        started.recv().map_err(|_| failure::closed(path))??;
        Ok(store)
    }

    /// No writer and no lock: a boot by name only.
    fn only_reads(path: &Path, clock: Clock, state_directory: PathBuf, refusal: Problem) -> Result<Self, Problem> {
        let connection = open::reader(path, false)?;
        let last = events::last_sequence(&connection).map_err(|error| failure::broken(path, &error))?;
        let (reads, reader) = start_reader(path, connection)?;
        Ok(Self {
            boot: boot::new_id()?,
            clock,
            path: path.to_owned(),
            state_directory,
            changed: watch::Sender::new(last),
            ready: watch::Sender::default(),
            waiting: Waiting::default(),
            standing: Standing::default(),
            data_version: AtomicI64::new(0),
            refusal: Some(refusal),
            jobs: None,
            reads: Some(reads),
            reader: Some(reader),
            writer: None,
        })
    }

    async fn write<T, F>(&self, run: F) -> Result<T, Problem>
    where
        F: Fn(&Write<'_>) -> Result<T, Failure> + Send + 'static,
        T: Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job: Box<dyn Job> = Box::new(Operation { run, outcome: None, reply });
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        let closed = || failure::closed(&self.path);
        self.jobs.as_ref().ok_or_else(closed)?.send(job).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    async fn read<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Problem> {
        let (reply, answer) = oneshot::channel();
        let closed = || failure::closed(&self.path);
        self.reads.as_ref().ok_or_else(closed)?.send(reader::read(run, reply)).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

/// The writer's first job. Its answer is waited for by a plain thread, so it does not need a runtime.
fn queue_start(jobs: &Sender<Box<dyn Job>>) -> Receiver<Result<(), Problem>> {
    struct Start {
        outcome: Result<(), Problem>,
        reply: Sender<Result<(), Problem>>,
    }
    impl Job for Start {
        fn run(&mut self, write: &Write<'_>) -> Result<(), Problem> {
            self.outcome = write::start_boot(write).map_err(|failure| failure.into_problem(write.path));
            self.outcome.clone()
        }
        fn answer(self: Box<Self>, committed: Result<(), Problem>) {
            let _ = self.reply.send(committed.and(self.outcome));
        }
    }
    let (reply, answer) = channel();
    // Cannot fail: the receiver is still in the hands of the caller.
    let _ = jobs.send(Box::new(Start { outcome: Ok(()), reply }));
    answer
}

fn start_reader(path: &Path, connection: Connection) -> Result<(Sender<Read>, JoinHandle<()>), Problem> {
    let (reads, taken) = channel();
    let reader = Reader { connection, reads: taken, path: path.to_owned() };
    Ok((reads, spawn(path, "mnemosyne-read", move || reader.work())?))
}

fn spawn(path: &Path, name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Problem> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|error| failure::closed(path).because(error.to_string()))
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        drop(self.reads.take());
        wait_for(self.reader.take());
        drop(self.jobs.take());
        wait_for(self.writer.take());
    }
}

/// Whoever is told something goes on on the thread that tells, and may drop the last handle there: a thread does not wait
/// for itself, and ends by itself.
fn wait_for(thread: Option<JoinHandle<()>>) {
    if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
        let _ = thread.join();
    }
}

#[async_trait]
impl Store for SqliteStore {
    fn boot(&self) -> &str {
        &self.boot
    }

    fn now(&self) -> i64 {
        (self.clock)()
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn ready(&self) -> watch::Receiver<Ready> {
        self.ready.subscribe()
    }

    fn ended(&self, item: &str) -> oneshot::Receiver<Option<ItemEnd>> {
        self.waiting.wait_for(item)
    }

    async fn poll_foreign(&self) -> Result<bool, Problem> {
        if self.refusal.is_some() {
            return Ok(false); // what we cannot write nobody writes
        }
        // On the writer's own connection the version moves only with the commits of others.
        let (version, last) = self
            .write(|write| {
                Ok((open::pragma(write.connection, "data_version")?, events::last_sequence(write.connection)?))
            })
            .await?;
        let moved = self.data_version.swap(version, Ordering::Relaxed) != version;
        if moved {
            self.changed.send_replace(last);
            self.ready.send_modify(|counts| counts.iter_mut().for_each(|count| *count += 1));
        }
        Ok(moved)
    }

    async fn submit_run(&self, run: Run, idempotency_key: Option<String>) -> Result<String, Problem> {
        self.write(move |write| write::submit_run(write, &run, idempotency_key.as_deref())).await
    }

    async fn adopt_run(&self, run: &str, budget: Option<Budget>) -> Result<RunSnapshot, Problem> {
        let run = run.to_owned();
        self.write(move |write| write::adopt_run(write, &run, budget)).await
    }

    async fn retry_task(
        &self,
        run: &str,
        task: &str,
        note: Option<String>,
        budget: Option<Budget>,
    ) -> Result<RunSnapshot, Problem> {
        let (run, task) = (run.to_owned(), task.to_owned());
        self.write(move |write| write::retry_task(write, &run, &task, note.as_deref(), budget)).await
    }

    async fn attempts(&self, run: &str, task: &str) -> Result<Vec<Attempt>, Problem> {
        let (run, task) = (run.to_owned(), task.to_owned());
        self.read(move |connection| rows::attempts(connection, &run, &task)).await
    }

    async fn run(&self, run: &str) -> Result<Option<RunSnapshot>, Problem> {
        let (run, now) = (run.to_owned(), self.now());
        self.read(move |connection| rows::snapshot(connection, &run, now)).await
    }

    async fn runs(&self) -> Result<Vec<Run>, Problem> {
        let now = self.now();
        self.read(move |connection| rows::runs(connection, now)).await
    }

    async fn stop_run(&self, run: &str, state: RunState, problem: Problem) -> Result<(), Problem> {
        let run = run.to_owned();
        self.write(move |write| write::stop_run(write, &run, state, &problem)).await
    }

    async fn cancel_run(&self, run: &str, reason: &str) -> Result<(), Problem> {
        let (run, reason) = (run.to_owned(), reason.to_owned());
        self.write(move |write| write::cancel_run(write, &run, &reason)).await
    }

    async fn pause_run(&self, run: &str, reason: &str) -> Result<(), Problem> {
        let (run, reason) = (run.to_owned(), reason.to_owned());
        self.write(move |write| write::pause_run(write, &run, &reason)).await
    }

    async fn continue_run(&self, run: &str) -> Result<(), Problem> {
        let run = run.to_owned();
        self.write(move |write| write::continue_run(write, &run)).await
    }

    async fn submit(&self, item: WorkItem, how: Submission) -> Result<String, Problem> {
        let item = rules::own_item(item);
        self.write(move |write| write::submit_item(write, &item, &how)).await
    }

    async fn item(&self, item: &str) -> Result<Option<ItemSnapshot>, Problem> {
        let (item, now) = (item.to_owned(), self.now());
        self.read(move |connection| rows::item_snapshot(connection, &item, now)).await
    }

    async fn cancel_item(&self, item: &str, reason: &str) -> Result<(), Problem> {
        let (item, reason) = (item.to_owned(), reason.to_owned());
        self.write(move |write| write::cancel_item(write, &item, &reason)).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Option<Claimed>, Problem> {
        self.write(move |write| write::claim(write, &request)).await
    }

    fn stand(&self, stander: Arc<dyn Stander>) {
        self.standing.stand(stander);
    }

    async fn take_back(&self) -> Result<u64, Problem> {
        // A read first: this is asked several times a second, and nearly always nobody is dead.
        let holders = self.read(rows::holders_without_a_run).await?;
        if holders.iter().any(|boot| *boot != self.boot && self.is_dead(boot)) {
            return self.write(write::take_back).await;
        }
        Ok(0)
    }

    async fn dead_letters(&self) -> Result<Vec<DeadLetter>, Problem> {
        self.read(rows::dead_letters).await
    }

    async fn requeue(&self, item: &str, reason: &str) -> Result<(), Problem> {
        let (item, reason) = (item.to_owned(), reason.to_owned());
        self.write(move |write| write::requeue(write, &item, &reason)).await
    }

    async fn discard(&self, item: &str, reason: &str) -> Result<(), Problem> {
        let (item, reason) = (item.to_owned(), reason.to_owned());
        self.write(move |write| write::discard(write, &item, &reason)).await
    }

    async fn renew(&self, item: &str, epoch: u64, lease_ms: i64) -> Result<(), Problem> {
        let item = item.to_owned();
        self.write(move |write| write::renew(write, &item, epoch, lease_ms)).await
    }

    async fn complete(&self, completion: Completion) -> Result<(), Problem> {
        self.write(move |write| write::complete(write, &completion)).await
    }

    async fn release(&self, release: Release) -> Result<Released, Problem> {
        self.write(move |write| write::release(write, &release)).await
    }

    async fn give_up(&self, item: &str, epoch: u64, problem: Problem, events: Vec<NewEvent>) -> Result<(), Problem> {
        let item = item.to_owned();
        self.write(move |write| write::give_up(write, &item, epoch, &problem, &events)).await
    }

    async fn journal(&self, item: &str, attempt: u32) -> Result<Vec<StepRecord>, Problem> {
        let item = item.to_owned();
        self.read(move |connection| rows::journal(connection, &item, attempt)).await
    }

    async fn journals(&self, run: &str, subject: &str) -> Result<Vec<ItemJournal>, Problem> {
        let (run, subject) = (run.to_owned(), subject.to_owned());
        self.read(move |connection| journals::journals(connection, &run, &subject)).await
    }

    async fn start_step(&self, step: StartStep) -> Result<u64, Problem> {
        self.write(move |write| write::start_step(write, &step)).await
    }

    async fn finish_step(&self, step: FinishStep) -> Result<(), Problem> {
        self.write(move |write| write::finish_step(write, &step)).await
    }

    async fn reserve(&self, reserve: Reserve) -> Result<String, Problem> {
        self.write(move |write| write::reserve(write, &reserve)).await
    }

    async fn settle(&self, item: &str, epoch: u64, reservation: &str, usage: Usage) -> Result<(), Problem> {
        let (item, reservation) = (item.to_owned(), reservation.to_owned());
        self.write(move |write| write::settle(write, &item, epoch, &reservation, &usage)).await
    }

    async fn out_of_time(&self) -> Result<Vec<(String, Problem)>, Problem> {
        let (boot, now) = (self.boot.clone(), self.now());
        if !self.read(move |connection| write::time_is_due(connection, &boot, now)).await? {
            return Ok(Vec::new());
        }
        self.write(write::out_of_time).await
    }

    async fn put_artifact(&self, item: &str, epoch: u64, name: &str, content: Vec<u8>) -> Result<ArtifactRef, Problem> {
        let (item, name) = (item.to_owned(), name.to_owned());
        self.write(move |write| write::put_artifact(write, &item, epoch, &name, &content)).await
    }

    async fn artifact(&self, run: &str, name: &str) -> Result<Option<Vec<u8>>, Problem> {
        let (run, name) = (run.to_owned(), name.to_owned());
        self.read(move |connection| rows::artifact(connection, &run, &name)).await
    }

    async fn append_events(&self, events: Vec<NewEvent>) -> Result<u64, Problem> {
        self.write(move |write| write::append_events(write, &events)).await
    }

    async fn events(&self, query: EventQuery) -> Result<Vec<Event>, Problem> {
        let boot = self.boot.clone();
        self.read(move |connection| events::events(connection, &query, &boot)).await
    }

    async fn horizon(&self) -> Result<u64, Problem> {
        self.read(|connection| Ok(events::horizon(connection)?)).await
    }

    async fn post_command(&self, command: NewCommand) -> Result<(), Problem> {
        rules::check_command(&command)?;
        self.write(move |write| write::post_command(write, &command)).await
    }

    async fn take_commands(&self) -> Result<Vec<NewCommand>, Problem> {
        self.write(write::take_commands).await
    }

    async fn under_way(&self, boot: &str) -> Result<Vec<UnderWay>, Problem> {
        let boot = boot.to_owned();
        self.read(move |connection| rows::under_way(connection, &boot)).await
    }

    async fn queue_of(&self, boots: &[&str]) -> Result<QueueCounts, Problem> {
        let (boots, now) = (serde_json::json!(boots).to_string(), self.now());
        self.read(move |connection| rows::queue(connection, &boots, now)).await
    }

    async fn prune(&self, prune: Prune) -> Result<Pruned, Problem> {
        self.write(move |write| write::prune(write, &prune)).await
    }

    fn is_dead(&self, boot: &str) -> bool {
        boot::is_dead(&self.state_directory, boot)
    }

    async fn pid_of(&self, boot: &str) -> Result<Option<u32>, Problem> {
        let boot = boot.to_owned();
        self.read(move |connection| rows::pid_of(connection, &boot)).await
    }
}
