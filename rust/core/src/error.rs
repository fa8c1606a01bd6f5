//! Coded errors: what happened, why, and the next command. The same codes as `python/mnemosyne/errors.py`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;

/// Which exception Python raises for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// The user gave something that cannot be used.
    InvalidInput,
    /// Something outside is missing or refuses.
    Environment,
    /// No key, or a refused one.
    Credential,
    /// The store cannot be used.
    Store,
    /// An agent raised.
    Agent,
    /// A time limit passed.
    Timeout,
    /// The agent cannot take work now.
    Unavailable,
    /// No free place.
    Full,
    /// Shut down.
    Closed,
    /// Another claim took over.
    Fenced,
    /// The model failed; never charged to the agent.
    Model,
    /// A reservation would exceed the budget.
    Budget,
}

/// A stable code, `MN-####`.
pub type Code = &'static str;

/// The codes that Rust raises; each has its page in `docs/errors`. Python's own are where they are raised.
pub mod codes {
    use super::Code;
    /// A prompt without words.
    pub const PROMPT_EMPTY: Code = "MN-0101";
    /// A prompt that no model could read.
    pub const PROMPT_UNREADABLE: Code = "MN-0102";
    /// A plan that cannot be used.
    pub const PLAN_INVALID: Code = "MN-0103";
    /// Dependencies that form a cycle.
    pub const PLAN_CYCLE: Code = "MN-0104";
    /// A dependency that names nothing.
    pub const PLAN_DANGLING: Code = "MN-0105";
    /// Two things with one id.
    pub const PLAN_DUPLICATE: Code = "MN-0106";
    /// A workspace that cannot be used.
    pub const WORKSPACE: Code = "MN-0107";
    /// An agent specification that cannot be used.
    pub const AGENT_SPEC: Code = "MN-0109";
    /// No such run.
    pub const RUN_NOT_FOUND: Code = "MN-0110";
    /// A run that lives in another process.
    pub const RUN_LIVES: Code = "MN-0112";
    /// Another live run works in the same workspace.
    pub const WORKSPACE_BUSY: Code = "MN-0113";
    /// A run that has ended.
    pub const RUN_ENDED: Code = "MN-0116";
    /// A work item that cannot be used.
    pub const ITEM_INVALID: Code = "MN-0117";
    /// A plan whose commands cannot fail.
    pub const PLAN_PROVES_NOTHING: Code = "MN-0120";
    /// No such task in the run.
    pub const TASK_NOT_FOUND: Code = "MN-0121";
    /// A task that did not fail.
    pub const TASK_NOT_FAILED: Code = "MN-0122";
    /// The store cannot be opened or written.
    pub const STORE_UNAVAILABLE: Code = "MN-0203";
    /// The store was written by a newer version.
    pub const STORE_NEWER: Code = "MN-0204";
    /// The file is not a store of ours.
    pub const STORE_FOREIGN: Code = "MN-0206";
    /// The store's file belongs to another user.
    pub const STORE_NOT_YOURS: Code = "MN-0213";
    /// A backup would overwrite something.
    pub const BACKUP_EXISTS: Code = "MN-0214";
    /// The store's file is damaged: it is read and not written.
    pub const STORE_DAMAGED: Code = "MN-0215";
    /// The store's file or file system is read-only: it is read and not written.
    pub const STORE_READ_ONLY: Code = "MN-0216";
    /// No space for the store.
    pub const STORE_FULL: Code = "MN-0217";
    /// No dead letter of that id.
    pub const NO_DEAD_LETTER: Code = "MN-0218";
    /// Nobody claimed the item before its deadline.
    pub const DEADLINE_PASSED: Code = "MN-0219";
    /// Python cannot be used.
    pub const PYTHON: Code = "MN-0209";
    /// A command of a run outlives the process that drove it.
    pub const COMMAND_LEFT: Code = "MN-0255";
    /// A process that was forked after we started.
    pub const FORKED: Code = "MN-0340";
    /// An agent raised.
    pub const AGENT: Code = "MN-0301";
    /// A time limit passed.
    pub const TIMEOUT: Code = "MN-0302";
    /// The agent cannot take work now.
    pub const UNAVAILABLE: Code = "MN-0303";
    /// No free place.
    pub const FULL: Code = "MN-0304";
    /// Shut down.
    pub const CLOSED: Code = "MN-0305";
    /// Another claim took over.
    pub const FENCED: Code = "MN-0306";
    /// A run that was interrupted, and can be resumed.
    pub const RUN_INTERRUPTED: Code = "MN-0702";
    /// A role that cannot be scaled.
    pub const NO_POOL: Code = "MN-0361";
    /// An item took its agent down three times.
    pub const POISON: Code = "MN-0308";
    /// A budget that a resume cannot go on with.
    pub const BUDGET_TOO_SMALL: Code = "MN-0140";
    /// A reservation would exceed the budget.
    pub const BUDGET: Code = "MN-0501";
    /// A reservation fits only once requests under way have ended.
    pub const BUDGET_BUSY: Code = "MN-0502";
    /// A request without a known price under a limit in dollars.
    pub const BUDGET_UNPRICED: Code = "MN-0503";
    /// Nobody works on a run that something is asked of.
    pub const NOBODY_WORKS: Code = "MN-0220";
    /// No such agent in a run's process.
    pub const NO_AGENT: Code = "MN-0362";
    /// The port of the window is taken, or may not be used.
    pub const PORT_TAKEN: Code = "MN-0710";
    /// A request without the token of the window.
    pub const NO_TOKEN: Code = "MN-0711";
    /// A request from a page of another origin, or meant for another machine.
    pub const FOREIGN_ORIGIN: Code = "MN-0712";
    /// The file of the window's token cannot be used.
    pub const TOKEN_FILE: Code = "MN-0713";
    /// No such endpoint.
    pub const NO_ENDPOINT: Code = "MN-0714";
    /// A request over HTTP that cannot be read.
    pub const REQUEST_UNREADABLE: Code = "MN-0715";
    /// Nobody takes work from a window.
    pub const NO_DESK: Code = "MN-0716";
    /// No such work item.
    pub const NO_ITEM: Code = "MN-0717";
    /// Too many connections that follow events.
    pub const TOO_MANY_STREAMS: Code = "MN-0718";
    /// The run did not reach its goal.
    pub const RUN_FAILED: Code = "MN-0701";
}

/// One error, in the form that crosses every border.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Which exception Python raises for it.
    pub kind: ProblemKind,
    /// `MN-####`.
    pub code: String,
    /// What happened.
    pub message: String,
    /// Why; empty where the message says it all.
    #[serde(default)]
    pub reason: String,
    /// The next command; empty where there is none.
    #[serde(default)]
    pub hint: String,
    /// The same in figures, for programs. Boxed, because nearly every result of ours has room for a problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<Map<String, Value>>>,
}

impl Problem {
    /// A problem without reason and hint.
    pub fn new(kind: ProblemKind, code: Code, message: impl Into<String>) -> Self {
        Self {
            kind,
            code: code.to_owned(),
            message: message.into(),
            reason: String::new(),
            hint: String::new(),
            data: None,
        }
    }

    /// Adds why it happened.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }

    /// Adds the next command.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Adds figures.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.data.get_or_insert_default().insert(key.to_owned(), value.into());
        self
    }

    /// A writer whose claim is over (FENCE-1).
    pub fn fenced(item: &str, epoch: u64) -> Self {
        Self::new(ProblemKind::Fenced, codes::FENCED, format!("claim {epoch} of {item} is over"))
            .because("another claim took the item over, or it was cancelled; nothing was changed")
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "error[{}]: {}", self.code, self.message)?;
        if !self.reason.is_empty() {
            write!(formatter, "\n  why: {}", self.reason)?;
        }
        if !self.hint.is_empty() {
            write!(formatter, "\n  hint: {}", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}
