//! Runs whose time is used up; what counting their time tells people on the way (**BUDGET-1**).

use super::{Write, spending};
use crate::budget;
use crate::sqlite::failure::Failure;
use crate::sqlite::rows;
use mnemosyne_core::Problem;
use rusqlite::Connection;

/// Runs of a boot that are under way and have a limit of time somewhere.
const TIMED: &str =
    "SELECT id FROM runs WHERE boot = ?1 AND timed = 1 AND state IN ('running', 'paused', 'waiting') ORDER BY arrival";

/// Whether [`out_of_time`] would do anything; a read, because it is asked several times a second.
pub(crate) fn time_is_due(connection: &Connection, boot: &str, now: i64) -> Result<bool, Failure> {
    for run in rows::texts(connection, TIMED, [boot])? {
        let budget = rows::budget(connection, &run)?;
        let accounts = rows::accounts(connection, &run)?;
        if accounts.iter().any(|(level, account)| budget::time_is_due(&budget, level, account, now)) {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(crate) fn out_of_time(write: &Write<'_>) -> Result<Vec<(String, Problem)>, Failure> {
    let mut over = Vec::new();
    for run in rows::texts(write.connection, TIMED, [write.boot])? {
        let budget = rows::budget(write.connection, &run)?;
        let mut why = None;
        for (level, account) in rows::accounts(write.connection, &run)? {
            if account.counted_at.is_some() && budget::time_is_due(&budget, &level, &account, write.now) {
                why = why.or_else(|| budget::time_is_up(&run, &budget, &level, &account, write.now));
                spending::change(write, &run, &[level], |account| account.count_time(write.now))?;
            }
        }
        over.extend(why.map(|problem| (run, problem)));
    }
    Ok(over)
}
