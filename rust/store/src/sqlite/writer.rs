//! The one thread that writes, with group commit.
//!
//! It takes all operations that have arrived, runs each in a savepoint of one IMMEDIATE transaction, commits, and only
//! then answers everybody (**DUR-1**). While it waits for the disk the next group gathers, so one sync pays for as many
//! operations as there are callers; a lone caller does not wait for anybody. A savepoint per operation (12 % of the
//! time) keeps one refusal from undoing its neighbours.
//!
//! A commit that fails, say on a full disk, is answered to all of its group and changes nothing; the thread goes on.

use super::failure::Failure;
use super::write::{News, Write};
use crate::boot::Boot;
use crate::clock::Clock;
use crate::types::Ready;
use crate::waiting::Waiting;
use mnemosyne_core::Problem;
use rusqlite::Connection;
use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use tokio::sync::{oneshot, watch};

/// More would only make the first of them wait longer.
const GROUP: usize = 1_024;

/// One operation on its way.
pub(crate) trait Job: Send {
    /// Runs it; an error if it must be undone.
    fn run(&mut self, write: &Write<'_>) -> Result<(), Problem>;
    /// Says how it went, after the commit.
    fn answer(self: Box<Self>, committed: Result<(), Problem>);
}

/// A job from a function and the place where its answer goes.
pub(crate) struct Operation<F, T> {
    pub(crate) run: Option<F>,
    pub(crate) outcome: Option<Result<T, Problem>>,
    pub(crate) reply: oneshot::Sender<Result<T, Problem>>,
}

impl<F, T> Job for Operation<F, T>
where
    F: FnOnce(&Write<'_>) -> Result<T, Failure> + Send,
    T: Send,
{
    fn run(&mut self, write: &Write<'_>) -> Result<(), Problem> {
        let Some(run) = self.run.take() else { return Ok(()) };
        let outcome = run(write).map_err(|failure| failure.into_problem(write.path));
        let said = outcome.as_ref().map(|_| ()).map_err(Clone::clone);
        self.outcome = Some(outcome);
        said
    }

    fn answer(self: Box<Self>, committed: Result<(), Problem>) {
        let answer = match (committed, self.outcome) {
            (Err(problem), _) => Err(problem),
            (Ok(()), Some(outcome)) => outcome,
            // Not reached: whoever is committed was run. Dropping the sender is an error for the caller too.
            (Ok(()), None) => return,
        };
        // A caller that went away does not undo what is committed.
        let _ = self.reply.send(answer);
    }
}

/// What the thread owns.
pub(crate) struct Writer {
    pub(crate) connection: Connection,
    pub(crate) jobs: Receiver<Box<dyn Job>>,
    pub(crate) changed: watch::Sender<u64>,
    pub(crate) ready: watch::Sender<Ready>,
    pub(crate) waiting: Waiting,
    pub(crate) clock: Clock,
    pub(crate) path: PathBuf,
    pub(crate) state_directory: PathBuf,
    /// The lock of the boot ends with the last write, not before.
    pub(crate) boot: Boot,
}

impl Writer {
    /// Until every sender is gone and everything that was sent is answered.
    pub(crate) fn work(self) {
        while let Ok(first) = self.jobs.recv() {
            let mut group = vec![first];
            while group.len() < GROUP
                && let Ok(next) = self.jobs.try_recv()
            {
                group.push(next);
            }
            let outcome = self.commit(&mut group).map_err(|failure| failure.into_problem(&self.path));
            let committed = outcome.as_ref().map(|_| ()).map_err(Clone::clone);
            for job in group {
                job.answer(committed.clone());
            }
            if let Ok(Some((last, news))) = outcome {
                // Told even where the number is the same: a commit without an event can make work claimable.
                self.changed.send_replace(last);
                self.tell(&news);
            }
        }
        // If this fails, the next one looks whether the file is sound, as after a death.
        let _ = self
            .connection
            .execute("UPDATE boots SET ended_at = ?2 WHERE id = ?1", rusqlite::params![self.boot.id(), (self.clock)()]);
    }

    fn tell(&self, news: &News) {
        if news.ready.contains(&true) {
            self.ready.send_modify(|counts| {
                for (count, ready) in counts.iter_mut().zip(news.ready) {
                    *count += u64::from(ready);
                }
            });
        }
        self.waiting.tell(&news.ended);
    }

    /// One transaction; the last sequence and the news, if anything changed.
    fn commit(&self, group: &mut [Box<dyn Job>]) -> Result<Option<(u64, News)>, Failure> {
        let outcome = self.transaction(group);
        if outcome.is_err() && !self.connection.is_autocommit() {
            // Nothing more can be done about an error here: the next BEGIN will say so.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        outcome
    }

    fn transaction(&self, group: &mut [Box<dyn Job>]) -> Result<Option<(u64, News)>, Failure> {
        self.say("BEGIN IMMEDIATE")?;
        let (mut changed, news) = (false, RefCell::default());
        for job in group {
            changed |= self.run(job.as_mut(), &news)?;
        }
        let last = if changed { Some(super::events::last_sequence(&self.connection)?) } else { None };
        self.say("COMMIT")?;
        Ok(last.map(|last| (last, news.into_inner())))
    }

    /// One operation in its savepoint; whether it changed anything.
    fn run(&self, job: &mut dyn Job, news: &RefCell<News>) -> Result<bool, Failure> {
        let write = Write {
            connection: &self.connection,
            boot: self.boot.id(),
            now: (self.clock)(),
            path: &self.path,
            state_directory: &self.state_directory,
            news,
        };
        self.say("SAVEPOINT operation")?;
        let (before, ended) = (self.connection.total_changes(), news.borrow().ended.len());
        if let Err(problem) = job.run(&write) {
            if self.connection.is_autocommit() {
                // SQLite undid the whole transaction (full disk, bad disk), so all of the group hear why.
                return Err(problem.into());
            }
            self.say("ROLLBACK TO operation")?;
            self.say("RELEASE operation")?;
            news.borrow_mut().ended.truncate(ended);
            return Ok(false);
        }
        self.say("RELEASE operation")?;
        Ok(self.connection.total_changes() != before)
    }

    fn say(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(|_| ())
    }
}
