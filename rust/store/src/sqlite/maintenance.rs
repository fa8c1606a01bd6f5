//! What a person asks of the file as a whole: whether it is sound, and a copy of it. Neither begins a boot, and whoever works
//! with the store goes on meanwhile (WAL: readers and the writer do not wait for each other).

use super::failure::{Failure, broken};
use super::open;
use mnemosyne_core::error::codes;
use mnemosyne_core::{Problem, ProblemKind};
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What `SQLite` and we know of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoreReport {
    /// Of the file itself.
    pub bytes: u64,
    /// Of them not used; `prune` gives them back.
    pub free_bytes: u64,
    /// Of any state.
    pub runs: u64,
    /// Of any state.
    pub items: u64,
    /// Items that have not ended.
    pub live_items: u64,
    /// That are kept.
    pub events: u64,
    /// What is wrong; empty if the store is sound.
    pub findings: Vec<String>,
}

/// More of them would say nothing new.
const MOST_FINDINGS: usize = 20;

/// Questions whose answers must be empty: each row is a finding.
const PROMISES: &[&str] = &[
    // DUR-3: no gap above the horizon.
    "SELECT 'event ' || (before + 1) || ' is missing' FROM
         (SELECT sequence, lag(sequence, 1, (SELECT sequence FROM horizon)) OVER (ORDER BY sequence) AS before
          FROM events WHERE sequence > (SELECT sequence FROM horizon))
     WHERE sequence > before + 1",
    // FENCE-1: a claim has a holder, and only a claim.
    "SELECT 'item ' || id || ' is ' || state || IIF(boot IS NULL, ' and nobody holds it', ' and is held by ' || boot)
     FROM items WHERE (state = 'running') <> (boot IS NOT NULL) OR (state = 'running') <> (lease_until IS NOT NULL)",
    // An item waits for exactly those that have not ended.
    "SELECT 'item ' || id || ' waits for ' || open_dependencies || ' others, and ' || open || ' are open' FROM
         (SELECT id, open_dependencies, (SELECT count(*) FROM item_dependencies
                 JOIN items AS other ON other.id = dependency
                 WHERE item = items.id AND other.state IN ('ready', 'running')) AS open
          FROM items WHERE state IN ('ready', 'running'))
     WHERE open_dependencies <> open",
    // BUDGET-1: what is open belongs to a claim under way.
    "SELECT 'reservation u-' || number || ' is open and its item ' || item || ' is not claimed'
     FROM usage WHERE state = 'open' AND item NOT IN (SELECT id FROM items WHERE state = 'running')",
];

/// Looks at every page, every reference and the promises that can be read off the rows.
///
/// # Errors
/// `Store`: as `SqliteStore::open`, and where there is no file. Damage is no error but a finding.
pub fn check(path: &Path) -> Result<StoreReport, Problem> {
    let connection = open::to_look(path)?;
    let report = || -> Result<StoreReport, Failure> {
        let connection = Transaction::new_unchecked(&connection, TransactionBehavior::Deferred)?;
        let mut findings = damage(&connection)?;
        if findings.is_empty() {
            for promise in PROMISES {
                findings.extend(super::rows::texts(&connection, promise, [])?);
            }
        }
        if findings.is_empty() {
            findings = unreadable(&connection)?;
        }
        findings.truncate(MOST_FINDINGS);
        // What is damaged may not let itself be counted; then the findings are what there is to say.
        let count = |sql: &str| match connection.query_row(sql, [], |row| row.get::<_, u64>(0)) {
            Err(_) if !findings.is_empty() => Ok(0),
            counted => counted,
        };
        let page = count("PRAGMA page_size")?;
        Ok(StoreReport {
            bytes: page * count("PRAGMA page_count")?,
            free_bytes: page * count("PRAGMA freelist_count")?,
            runs: count("SELECT count(*) FROM runs")?,
            items: count("SELECT count(*) FROM items")?,
            live_items: count("SELECT count(*) FROM items WHERE state IN ('ready', 'running')")?,
            events: count("SELECT count(*) FROM events")?,
            findings: findings.clone(),
        })
    };
    report().map_err(|failure| failure.into_problem(path))
}

/// Items that this version cannot read.
fn unreadable(connection: &Connection) -> Result<Vec<String>, Failure> {
    let mut items = connection.prepare(&format!("SELECT {} FROM items", super::rows::ITEM))?;
    let mut rows = items.query([])?;
    let mut findings = Vec::new();
    while let Some(row) = rows.next()? {
        if let Err(failure) = super::rows::read_item(row) {
            let id: String = row.get(0)?;
            findings.push(format!("item {id} cannot be read: {failure:?}"));
        }
    }
    Ok(findings)
}

/// What SQLite finds in its own structures and in our references.
fn damage(connection: &Connection) -> Result<Vec<String>, Failure> {
    let found = super::rows::texts(connection, &format!("PRAGMA integrity_check({MOST_FINDINGS})"), []);
    let mut findings = match found {
        Err(Failure::Broken(error)) if error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) => {
            vec![error.to_string()]
        }
        found => found?,
    };
    findings.retain(|line| line != "ok");
    if findings.is_empty() {
        let mut broken = connection.prepare("PRAGMA foreign_key_check")?;
        let mut rows = broken.query([])?;
        while let Some(row) = rows.next()? {
            let (table, parent): (String, String) = (row.get(0)?, row.get(2)?);
            findings.push(format!("a row of {table} refers to nothing in {parent}"));
        }
    }
    Ok(findings)
}

/// Copies the store as it is at one moment, without gaps and free pages, to a new file that only the user can read. The copy
/// has its name once it is on the disk and sound.
///
/// # Errors
/// `Store`: as `SqliteStore::open`; MN-0214 where there is something at `to` already; MN-0203 where it cannot be written.
pub fn backup(path: &Path, to: &Path) -> Result<u64, Problem> {
    let connection = open::to_look(path)?;
    if to.symlink_metadata().is_ok() {
        return Err(Problem::new(
            ProblemKind::Store,
            codes::BACKUP_EXISTS,
            format!("{} is there already", to.display()),
        )
        .because("a backup never overwrites anything")
        .hint("choose another name, or move the old one away"));
    }
    let half = half_name(to);
    let copied = copy(&connection, path, &half).and_then(|()| publish(&half, to));
    if copied.is_err() {
        // Half a copy helps nobody.
        let _ = std::fs::remove_file(&half);
    }
    copied
}

fn half_name(to: &Path) -> PathBuf {
    let mut name = to.as_os_str().to_owned();
    name.push(format!(".half-{}", std::process::id()));
    PathBuf::from(name)
}

fn copy(connection: &Connection, path: &Path, half: &Path) -> Result<(), Problem> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(half);
    drop(made.map_err(|error| open::unavailable(half, &error))?);
    let name = half.to_str().ok_or_else(|| {
        open::unavailable(half, &std::io::Error::new(std::io::ErrorKind::InvalidInput, "the name is not UTF-8"))
    })?;
    connection.execute("VACUUM INTO ?1", [name]).map_err(|error| broken(path, &error))?;
    let copy = open::to_look(half)?;
    let found = damage(&copy).map_err(|failure| failure.into_problem(half))?;
    match found.first() {
        None => Ok(()),
        Some(first) => Err(open::damaged(path, first)),
    }
}

fn publish(half: &Path, to: &Path) -> Result<u64, Problem> {
    let publish = || -> std::io::Result<u64> {
        let file = File::open(half)?;
        file.sync_all()?;
        std::fs::hard_link(half, to)?; // unlike a rename, it never replaces
        std::fs::remove_file(half)?;
        let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
        Ok(file.metadata()?.len())
    };
    publish().map_err(|error| open::unavailable(to, &error))
}
