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
    /// The form that leaves the backend.
    pub(crate) fn into_problem(self, path: &Path) -> Problem {
        match self {
            Self::Refused(problem) => problem,
            Self::Broken(error) => broken(path, &error),
        }
    }
}

/// What SQLite said, in words that help at three in the morning.
pub(crate) fn broken(path: &Path, error: &rusqlite::Error) -> Problem {
    let (reason, hint) = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => ("the disk is full", "free some space; the store goes on by itself"),
        Some(ErrorCode::ReadOnly) => {
            ("the file or its folder is read-only", "make it writable, or choose another file with --store")
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => (
            "another process kept the store locked for more than ten seconds",
            "look for a process that hangs: fuser FILE; then try again",
        ),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            ("the file is damaged", "keep a copy, then restore a backup, or choose another file with --store")
        }
        Some(ErrorCode::CannotOpen) => {
            ("the file cannot be opened", "check that its folder exists and is yours, or choose another with --store")
        }
        Some(ErrorCode::PermissionDenied) => {
            ("you may not use the file", "check its owner, or choose another file with --store")
        }
        _ => ("the database failed", "check the disk, then try again"),
    };
    Problem::new(ProblemKind::Store, codes::STORE_UNAVAILABLE, format!("the store {} cannot be used", path.display()))
        .because(format!("{reason} ({error})"))
        .hint(hint)
}

/// The store's threads are gone.
pub(crate) fn closed(path: &Path) -> Problem {
    Problem::new(ProblemKind::Store, codes::STORE_UNAVAILABLE, format!("the store {} is closed", path.display()))
        .because("its thread has ended")
        .hint("start the program again; everything that was acknowledged is in the file")
}

/// A row that this version does not understand.
fn unreadable(reason: &str) -> Problem {
    Problem::new(ProblemKind::Store, codes::STORE_UNAVAILABLE, "a row of the store cannot be read")
        .because(reason)
        .hint("the file is damaged or was changed by hand; restore a backup")
}
