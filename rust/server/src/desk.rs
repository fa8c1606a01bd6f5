//! Where new work waits for who can read, judge and begin it. That is Python, which knows prompts, plans, workspaces and
//! prices; this room never sees Python, so it hands the bytes over and waits for the answer.

use mnemosyne_core::error::codes;
use mnemosyne_core::{Problem, ProblemKind};
use serde_json::Value;
use tokio::sync::{Mutex, mpsc, oneshot};

/// Orders that wait: more are refused, as everything is that nobody takes in.
const WAITING: usize = 64;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderKind {
    /// A new run.
    SubmitRun,
    /// An item for a role.
    SubmitItem,
    /// A run that was interrupted goes on here.
    ResumeRun(String),
}

/// One request that waits for an answer. Dropped, it is refused.
#[derive(Debug)]
pub struct Order {
    /// What is asked for.
    pub kind: OrderKind,
    /// The body as it came.
    pub body: String,
    reply: oneshot::Sender<Result<Value, Problem>>,
}

impl Order {
    /// Answers it.
    pub fn answer(self, answer: Result<Value, Problem>) {
        // Who asked may have gone: what was begun is begun.
        let _ = self.reply.send(answer);
    }
}

/// The side that takes orders.
#[derive(Debug)]
pub struct Desk(Mutex<mpsc::Receiver<Order>>);

impl Desk {
    /// Both sides.
    pub(crate) fn open() -> (Counter, Self) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Counter(sender), Self(Mutex::new(receiver)))
    }

    /// The next order; `None` once the window is closed.
    pub async fn take(&self) -> Option<Order> {
        self.0.lock().await.recv().await
    }
}

/// The side that is asked.
#[derive(Debug, Clone)]
pub(crate) struct Counter(mpsc::Sender<Order>);

impl Counter {
    /// Hands an order over and waits for its answer.
    ///
    /// # Errors
    /// It is refused, or nobody takes orders (MN-0716).
    pub(crate) async fn ask(&self, kind: OrderKind, body: String) -> Result<Value, Problem> {
        let (reply, answer) = oneshot::channel();
        self.0.try_send(Order { kind, body, reply }).map_err(|_| nobody())?;
        answer.await.unwrap_or_else(|_| Err(nobody()))
    }
}

fn nobody() -> Problem {
    Problem::new(ProblemKind::Closed, codes::NO_DESK, "this window takes no work now")
        .because("it is being closed, or too many orders wait")
        .hint("mnemosyne serve")
}
