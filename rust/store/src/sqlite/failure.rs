//! Why an operation did not happen: it was refused, or the database failed.

use mnemosyne_core::error::codes;
use mnemosyne_core::{Problem, ProblemKind};
use rusqlite::ErrorCode;
use std::path::Path;

/// Inside the backend; outside there are only `Problem`s.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The operation itself said no.
    Refused(Problem),
    /// SQLite said no.
    Broken(rusqlite::Error),
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem)
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Broken(error)
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::Refused(unreadable(&error.to_string()))
    }
}

impl From<mnemosyne_core::state::UnknownName> for Failure {
    fn from(error: mnemosyne_core::state::UnknownName) -> Self {
        Self::Refused(unreadable(&error.to_string()))
    }
}

impl Failure {
    /// Whether one row is the trouble, and not the store: what is about many rows goes on without it.
    pub(crate) fn is_of_one_row(&self) -> bool {
        use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error};
        match self {
            Self::Refused(problem) => problem.kind == ProblemKind::Store && problem.message == UNREADABLE,
            Self::Broken(error) => matches!(
                error,
                FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) | Utf8Error(..)
            ),
        }
    }

    /// The form that leaves the backend.
    pub(crate) fn into_problem(self, path: &Path) -> Problem {
        let of_one_row = self.is_of_one_row();
        match self {
            Self::Refused(problem) => problem,
            Self::Broken(error) if of_one_row => unreadable(&error.to_string()),
            Self::Broken(error) => broken(path, &error),
        }
    }
}

/// What SQLite said, in words that help at three in the morning.
pub(crate) fn broken(path: &Path, error: &rusqlite::Error) -> Problem {
    let (code, reason, hint) = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => {
            (codes::STORE_FULL, "the disk is full", "free some space; the store goes on by itself")
        }
        Some(ErrorCode::ReadOnly) => (
            codes::STORE_READ_ONLY,
            "the file or its folder is read-only",
            "make it writable, or choose another file with --store",
        ),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => (
            codes::STORE_UNAVAILABLE,
            "another process kept the store locked for more than ten seconds",
            "look for a process that hangs: fuser FILE; then try again",
        ),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => (
            codes::STORE_DAMAGED,
            "the file is damaged",
            "keep a copy, then put a backup in its place (mnemosyne store backup made it), or choose another file with --store",
        ),
        Some(ErrorCode::CannotOpen) => (
            codes::STORE_UNAVAILABLE,
            "the file cannot be opened",
            "check that its folder exists and is yours, or choose another with --store",
        ),
        Some(ErrorCode::PermissionDenied) => (
            codes::STORE_UNAVAILABLE,
            "you may not use the file",
            "check its owner, or choose another file with --store",
        ),
        _ => (codes::STORE_UNAVAILABLE, "the database failed", "check the disk, then try again"),
    };
    Problem::new(ProblemKind::Store, code, format!("the store {} cannot be used", path.display()))
        .because(format!("{reason} ({error})"))
        .hint(hint)
}

/// The store's threads are gone.
pub(crate) fn closed(path: &Path) -> Problem {
    Problem::new(ProblemKind::Store, codes::STORE_UNAVAILABLE, format!("the store {} is closed", path.display()))
        .because("its thread has ended")
        .hint("start the program again; everything that was acknowledged is in the file")
}

const UNREADABLE: &str = "a row of the store cannot be read";

/// A row that this version does not understand.
fn unreadable(reason: &str) -> Problem {
    Problem::new(ProblemKind::Store, codes::STORE_DAMAGED, UNREADABLE).because(reason).hint(
        "the file is damaged or was changed by hand; look with: mnemosyne store check; then put a backup in its place",
    )
}
