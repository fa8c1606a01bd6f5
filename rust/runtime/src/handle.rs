//! The handle to one agent: stable across restarts, because it names the agent, not its actor. Everything goes through
//! the role supervisor (**SUP-4**).

use crate::agent::{Ending, GRACE, Job, Load};
use crate::dispatch::deadline_after;
use crate::finish::{closed, lost, timeout_problem};
use crate::health::AgentHealth;
use crate::host::{AgentSpec, HostError, Shutdown, WorkKey};
use crate::record::{AgentRecord, DIRECT_LIMIT, RoleRecord, TreeRecord, clip};
use crate::role_supervisor::RoleMessage;
use mnemosyne_core::error::codes;
use mnemosyne_core::{AgentRole, AgentState, Problem, ProblemKind, WorkItem, WorkResult};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

/// A boxed future, as [`AgentHandle::try_send_work`] returns it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why direct work gave no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WorkError {
    /// The agent raised.
    #[error(transparent)]
    Agent(HostError),
    /// `Timeout`, `Unavailable`, `Full` or `Closed`, or what the agent's side reported in coded form.
    #[error("{problem}")]
    Problem {
        /// What happened. Boxed, because every result of direct work has room for it.
        problem: Box<Problem>,
        /// Seconds since 1970 when trying again may help.
        retry_at: Option<f64>,
    },
}

impl From<Problem> for WorkError {
    fn from(problem: Problem) -> Self {
        WorkError::Problem { problem: Box::new(problem), retry_at: None }
    }
}

/// The agent cannot take work now; says why, and when it may.
pub(crate) fn unavailable(agent: &AgentRecord) -> WorkError {
    let book = agent.book();
    let message = format!("the agent {} cannot take work: it is {}", agent.agent_id, book.state);
    let problem = Problem::new(ProblemKind::Unavailable, codes::UNAVAILABLE, message).because(clip(&book.reason));
    let problem = match book.state {
        AgentState::Quarantined => problem.hint("correct the agent, then restart it"),
        _ => problem.hint("try again later"),
    };
    WorkError::Problem { problem: Box::new(problem), retry_at: book.next_restart_at.map(|at| at as f64 / 1_000.0) }
}

/// Handle to one supervised agent.
#[derive(Clone)]
pub struct AgentHandle {
    tree: Arc<TreeRecord>,
    role: Arc<RoleRecord>,
    record: Arc<AgentRecord>,
}

impl fmt::Debug for AgentHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "AgentHandle({} generation {})", self.agent_id(), self.generation())
    }
}

/// Cancels direct work whose caller is gone.
struct Unwanted {
    handle: AgentHandle,
    key: WorkKey,
    answered: bool,
}

impl Drop for Unwanted {
    fn drop(&mut self) {
        if !self.answered {
            let agent_id = self.handle.record.agent_id.clone();
            let reason = "its caller is gone".to_owned();
            let cancel = RoleMessage::Cancel { agent_id, key: self.key, ending: Ending::Unwanted, reason };
            self.handle.role.send(cancel);
        }
    }
}

impl AgentHandle {
    pub(crate) fn new(tree: Arc<TreeRecord>, role: Arc<RoleRecord>, record: Arc<AgentRecord>) -> Self {
        Self { tree, role, record }
    }

    /// Every agent of a tree, in start order.
    pub(crate) fn all(tree: &Arc<TreeRecord>) -> Vec<Self> {
        let of_role = |role: &Arc<RoleRecord>| {
            let handle = |agent| Self::new(tree.clone(), role.clone(), agent);
            role.agents().into_iter().map(handle).collect::<Vec<_>>()
        };
        tree.roles().flat_map(of_role).collect()
    }

    /// `executor-1`.
    pub fn agent_id(&self) -> &str {
        &self.record.agent_id
    }

    /// Its role.
    pub fn role(&self) -> AgentRole {
        self.record.role
    }

    /// From 1; one more with every restart.
    pub fn generation(&self) -> u64 {
        self.record.generation()
    }

    /// Now; never blocks.
    pub fn health(&self) -> AgentHealth {
        self.record.health(&self.tree, &self.role)
    }

    /// Sends work past the store: supervised, not durable. Waits for a free place and for a start that is under way, no
    /// longer than the smaller of `timeout` and the item's own limit. Dropping the future cancels the work (KILL-1).
    ///
    /// # Errors
    /// [`WorkError::Agent`] when the agent raised; `Timeout`, `Unavailable`, `Closed`.
    pub async fn send_work(&self, item: WorkItem, timeout: Option<Duration>) -> Result<WorkResult, WorkError> {
        let deadline = deadline(&item, timeout);
        let place = match timeout_at(deadline, self.record.places().acquire_owned()).await {
            Ok(Ok(place)) => place,
            Ok(Err(_)) => return Err(closed().into()),
            Err(_) => return Err(timeout_problem(&item).into()),
        };
        let room = match timeout_at(deadline, self.tree.room.clone().acquire_owned()).await {
            Ok(Ok(room)) => room,
            Ok(Err(_)) => return Err(closed().into()),
            Err(_) => return Err(timeout_problem(&item).into()),
        };
        self.dispatch(item, place, room, deadline)?.await
    }

    /// As [`AgentHandle::send_work`], but never waits for a place. The work begins at once, not with the first poll.
    ///
    /// # Errors
    /// `Full` at once when the agent or its tree has no free place, `Closed` when it was shut down.
    pub fn try_send_work(
        &self,
        item: WorkItem,
        timeout: Option<Duration>,
    ) -> Result<BoxFuture<'static, Result<WorkResult, WorkError>>, WorkError> {
        let deadline = deadline(&item, timeout);
        let place = at_once(&self.record.places(), || format!("the agent {} has no free place", self.agent_id()))?;
        let room = at_once(&self.tree.room, || format!("the tree holds {DIRECT_LIMIT} pieces of direct work"))?;
        Ok(Box::pin(self.dispatch(item, place, room, deadline)?))
    }

    /// Hands the work over now; the future waits for its answer.
    fn dispatch(
        &self,
        item: WorkItem,
        place: OwnedSemaphorePermit,
        room: OwnedSemaphorePermit,
        deadline: Instant,
    ) -> Result<impl Future<Output = Result<WorkResult, WorkError>> + Send + 'static, WorkError> {
        if self.tree.is_draining() || self.record.is_closing() {
            return Err(closed().into());
        }
        let (reply, answer) = oneshot::channel();
        let key = WorkKey::next();
        let job = Job { key, place, deadline, load: Load::Direct { item: Arc::new(item), reply, room } };
        let agent_id = self.record.agent_id.clone();
        let mut unwanted = Unwanted { handle: self.clone(), key, answered: false };
        if !self.role.send(RoleMessage::Work { agent_id, job }) {
            unwanted.answered = true;
            return Err(unavailable(&self.record));
        }
        Ok(async move {
            let answer = answer.await;
            unwanted.answered = true;
            answer.unwrap_or_else(|_| Err(unwanted.handle.gone()))
        })
    }

    /// Nobody is left to answer.
    fn gone(&self) -> WorkError {
        let stopped = self.record.book().state == AgentState::Stopped;
        WorkError::from(if stopped || self.tree.is_draining() { closed() } else { lost() })
    }

    /// Counts an error that `send_work` did not see; the fifth within 60 s restarts the agent. The health is that of
    /// the moment after the count, before the restart.
    ///
    /// # Errors
    /// `Unavailable` where no actor lives that could count it, `Closed` after a shutdown.
    pub async fn record_error(&self, error: String) -> Result<AgentHealth, WorkError> {
        let (reply, answer) = oneshot::channel();
        let agent_id = self.record.agent_id.clone();
        self.role.send(RoleMessage::RecordError { agent_id, error, reply });
        answer.await.map_err(|_| self.out_of_reach())
    }

    /// Starts the agent anew, with the next generation; releases it from quarantine, and starts one that was shut down once
    /// more. Not counted as a failure.
    ///
    /// # Errors
    /// `Closed` where it is just being shut down, is not kept any more, or the tree drains.
    pub async fn restart(&self, reason: String) -> Result<AgentHealth, WorkError> {
        let (reply, answer) = oneshot::channel();
        let agent_id = self.record.agent_id.clone();
        self.role.send(RoleMessage::Restart { agent_id, reason, reply });
        answer.await.map_err(|_| self.out_of_reach())
    }

    fn out_of_reach(&self) -> WorkError {
        let stopped = self.record.book().state == AgentState::Stopped;
        if stopped || self.tree.is_draining() { closed().into() } else { unavailable(&self.record) }
    }

    /// Takes no more work, lets what runs finish for so long (`None`: as its specification says), cancels the rest, and
    /// ends the agent. It is kept, and a restart starts it once more. Idempotent.
    pub async fn shutdown(&self, patience: Option<Duration>) {
        let patience =
            patience.map(|patience| Shutdown::Within(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX)));
        self.end(patience.unwrap_or(self.record.spec.shutdown), false).await;
    }

    /// As [`AgentHandle::shutdown`] by its specification; it is not kept.
    pub(crate) async fn remove(&self) {
        self.end(self.record.spec.shutdown, true).await;
    }

    /// Ends the actor at once; what it still holds is cancelled and released without a charge.
    pub(crate) async fn stop(&self) {
        self.end(Shutdown::Kill, false).await;
    }

    async fn end(&self, shutdown: Shutdown, forget: bool) {
        self.record.closing.store(true, Ordering::SeqCst);
        let (reply, answer) = oneshot::channel();
        let agent_id = self.record.agent_id.clone();
        self.role.send(RoleMessage::StopAgent { agent_id, shutdown, forget, reply });
        let _ = answer.await;
    }

    /// Lets what runs finish, cancels what does not; `true` if nothing had to be cancelled. The actor lives on.
    pub(crate) async fn drain(&self, patience: Option<Duration>) -> bool {
        let patience = patience.or(match self.record.spec.shutdown {
            Shutdown::Kill => Some(Duration::ZERO),
            Shutdown::Within(milliseconds) => Some(Duration::from_millis(milliseconds)),
            Shutdown::Infinity => None,
        });
        let Some(patience) = patience else {
            self.all_free().await;
            return true;
        };
        if timeout(patience, self.all_free()).await.is_ok() {
            return true;
        }
        self.cancel_all("the tree is draining");
        // What does not stop is abandoned after its grace, which frees its place.
        let _ = timeout(GRACE + Duration::from_secs(1), self.all_free()).await;
        false
    }

    /// Holds no record: shows that none is held.
    #[cfg(test)]
    pub(crate) fn downgrade(&self) -> std::sync::Weak<AgentRecord> {
        Arc::downgrade(&self.record)
    }

    /// Whether it was ended, or is about to be; one that is let go may be listed for a moment after its end.
    pub(crate) fn is_ending(&self) -> bool {
        self.record.is_closing()
    }

    /// Whether it was made from this specification.
    pub(crate) fn is_like(&self, template: &AgentSpec) -> bool {
        self.record.spec == *template
    }

    /// Waits until the agent holds no work. It queues behind callers that wait for a place: those are told first that
    /// nothing more is taken.
    async fn all_free(&self) {
        let _ = self.record.places().acquire_many(self.record.spec.in_flight).await; // closed: it has ended
    }

    pub(crate) fn cancel_all(&self, reason: &str) {
        let agent_id = Some(self.record.agent_id.clone());
        self.role.send(RoleMessage::CancelAll { agent_id, reason: reason.to_owned() });
    }
}

/// A permit without waiting for one.
fn at_once(places: &Arc<Semaphore>, full: impl FnOnce() -> String) -> Result<OwnedSemaphorePermit, Problem> {
    places.clone().try_acquire_owned().map_err(|error| match error {
        TryAcquireError::Closed => closed(),
        TryAcquireError::NoPermits => {
            Problem::new(ProblemKind::Full, codes::FULL, full()).hint("wait with send_work, or add agents")
        }
    })
}

fn deadline(item: &WorkItem, timeout: Option<Duration>) -> Instant {
    let own = deadline_after(item.timeout_seconds);
    timeout.map_or(own, |timeout| own.min(deadline_after(timeout.as_secs_f64())))
}
