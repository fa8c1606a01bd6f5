//! The one thread that writes, with group commit.
//!
//! It takes all operations that have arrived, runs them in one IMMEDIATE transaction, commits, and only then answers
//! everybody (**DUR-1**). While it waits for the disk the next group gathers, so one sync pays for as many operations as
//! there are callers; a lone caller does not wait for anybody.
//!
//! One refusal does not undo its neighbours (**DUR-2**). Nearly always who is refused has written nothing yet, and nothing
//! is to be undone. Where it has, the transaction is rolled back and the group run again, each operation in a savepoint of
//! its own. To have these always took 12 % of the thread's time, so an operation is one that can be run twice.
//!
//! What a group made claimable is claimed at once for the agents that wait for it (`standing`).
//!
//! A commit that fails, say on a full disk, is answered to all of its group and changes nothing; the thread goes on.

use super::failure::Failure;
use super::standing::{Found, Given, Standing};
use super::write::{self, News, Write};
use crate::boot::Boot;
use crate::clock::Clock;
use crate::types::{ClaimRequest, Ready};
use crate::waiting::Waiting;
use mnemosyne_core::{AgentRole, Problem};
use rusqlite::Connection;
use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use tokio::sync::{oneshot, watch};

/// More would only make the first of them wait longer.
const GROUP: usize = 1_024;

/// One operation on its way.
pub(crate) trait Job: Send {
    /// Runs it, and once more where what it did the first time was rolled back; an error if it must be undone.
    fn run(&mut self, write: &Write<'_>) -> Result<(), Problem>;
    /// Says how it went, after the commit.
    fn answer(self: Box<Self>, committed: Result<(), Problem>);
}

/// A job from a function and the place where its answer goes.
pub(crate) struct Operation<F, T> {
    pub(crate) run: F,
    pub(crate) outcome: Option<Result<T, Problem>>,
    pub(crate) reply: oneshot::Sender<Result<T, Problem>>,
}

impl<F, T> Job for Operation<F, T>
where
    F: Fn(&Write<'_>) -> Result<T, Failure> + Send,
    T: Send,
{
    fn run(&mut self, write: &Write<'_>) -> Result<(), Problem> {
        let outcome = (self.run)(write).map_err(|failure| failure.into_problem(write.path));
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

/// One claim of an agent that waits; nobody waits for its answer.
struct StandingClaim<'a> {
    request: &'a ClaimRequest,
    found: Found,
}

impl Job for StandingClaim<'_> {
    fn run(&mut self, write: &Write<'_>) -> Result<(), Problem> {
        let claimed = write::claim_next(write, self.request).map_err(|failure| failure.into_problem(write.path))?;
        self.found = claimed.map_or(Found::Nothing, |claimed| Found::Item(Box::new(claimed)));
        Ok(())
    }

    fn answer(self: Box<Self>, _: Result<(), Problem>) {}
}

/// What a transaction did.
struct Done {
    /// Sequence of the last event.
    last: u64,
    news: News,
    given: Vec<Given>,
}

/// How what a refused operation has written is undone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Undo {
    /// With all of its group, which is then run again.
    Group,
    /// By a savepoint of its own.
    Savepoint,
}

/// Why a transaction did not come to its commit.
enum Halt {
    Failed(Failure),
    /// An operation was refused that had written, and had no savepoint.
    Again,
}

impl<E: Into<Failure>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// What the thread owns.
pub(crate) struct Writer {
    pub(crate) connection: Connection,
    pub(crate) jobs: Receiver<Box<dyn Job>>,
    pub(crate) changed: watch::Sender<u64>,
    pub(crate) ready: watch::Sender<Ready>,
    pub(crate) waiting: Waiting,
    pub(crate) standing: Standing,
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
            let (committed, done) = match outcome {
                Ok(done) => (Ok(()), done),
                Err(problem) => (Err(problem), None),
            };
            let (told, given) = done.map_or_else(Default::default, |done| (Some((done.last, done.news)), done.given));
            // First, so that whoever cancels finds what was given out before in the hands of its agent.
            given.into_iter().for_each(Given::give);
            for job in group {
                job.answer(committed.clone());
            }
            if let Some((last, mut news)) = told {
                // Told even where the number is the same: a commit without an event can make work claimable.
                self.changed.send_replace(last);
                self.waiting.tell(std::mem::take(&mut news.ended));
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
    }

    /// One transaction; what it did, if it changed anything.
    fn commit(&self, group: &mut [Box<dyn Job>]) -> Result<Option<Done>, Failure> {
        let mut undo = Undo::Group;
        loop {
            let outcome = self.transaction(group, undo);
            if outcome.is_err() && !self.connection.is_autocommit() {
                // Nothing more can be done about an error here: the next BEGIN will say so.
                let _ = self.connection.execute_batch("ROLLBACK");
            }
            match outcome {
                Ok(done) => return Ok(done),
                Err(Halt::Failed(failure)) => return Err(failure),
                Err(Halt::Again) => undo = Undo::Savepoint,
            }
        }
    }

    fn transaction(&self, group: &mut [Box<dyn Job>], undo: Undo) -> Result<Option<Done>, Halt> {
        self.say("BEGIN IMMEDIATE")?;
        let (mut changed, news) = (false, RefCell::default());
        for job in group {
            changed |= self.run(job.as_mut(), &news, undo)?;
        }
        let mut given = Vec::new();
        self.serve_standing(&news, &mut given, undo)?;
        changed |= !given.is_empty();
        let last = if changed { Some(super::events::last_sequence(&self.connection)?) } else { None };
        self.say("COMMIT")?;
        Ok(last.map(|last| Done { last, news: news.into_inner(), given }))
    }

    fn serve_standing(&self, news: &RefCell<News>, given: &mut Vec<Given>, undo: Undo) -> Result<(), Halt> {
        for role in AgentRole::ALL.iter().copied() {
            if !news.borrow().ready[role as usize] {
                continue;
            }
            let emptied =
                self.standing.serve(role, given, |stander| self.claim_standing(stander.request(), news, undo))?;
            // Whoever is told now would look for nothing.
            news.borrow_mut().ready[role as usize] &= !emptied;
        }
        Ok(())
    }

    fn claim_standing(&self, request: &ClaimRequest, news: &RefCell<News>, undo: Undo) -> Result<Found, Halt> {
        let mut job = StandingClaim { request, found: Found::Trouble };
        self.run(&mut job, news, undo)?;
        Ok(job.found)
    }

    /// One operation; whether it changed anything.
    fn run(&self, job: &mut dyn Job, news: &RefCell<News>, undo: Undo) -> Result<bool, Halt> {
        let write = Write {
            connection: &self.connection,
            boot: self.boot.id(),
            now: (self.clock)(),
            path: &self.path,
            state_directory: &self.state_directory,
            news,
            waiting: &self.waiting,
        };
        let (before, ended) = (self.connection.total_changes(), news.borrow().ended.len());
        if undo == Undo::Savepoint {
            self.say("SAVEPOINT operation")?;
        }
        let outcome = job.run(&write);
        let changed = self.connection.total_changes() != before;
        if let Err(problem) = outcome {
            if self.connection.is_autocommit() {
                // SQLite undid the whole transaction (full disk, bad disk), so all of the group hear why.
                return Err(Halt::Failed(problem.into()));
            }
            match undo {
                Undo::Group if changed => return Err(Halt::Again),
                Undo::Group => {}
                Undo::Savepoint => {
                    self.say("ROLLBACK TO operation")?;
                    self.say("RELEASE operation")?;
                }
            }
            news.borrow_mut().ended.truncate(ended);
            return Ok(false);
        }
        if undo == Undo::Savepoint {
            self.say("RELEASE operation")?;
        }
        Ok(changed)
    }

    fn say(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(|_| ())
    }
}
