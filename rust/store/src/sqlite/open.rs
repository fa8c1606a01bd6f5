//! Opening: is the file ours, is it of our time, and does SQLite do what we rely on?
//!
//! A file that is not ours or that a newer version wrote is left untouched: it is looked at read-only before anything is
//! written, and without the checkpoint that closing a database otherwise makes.

use super::failure::{Failure, broken};
use mnemosyne_core::error::codes;
use mnemosyne_core::{Problem, ProblemKind};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};
use std::fs::{File, OpenOptions, Permissions};
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// `mnem`, in the header of the file.
const APPLICATION_ID: i64 = 0x6d6e_656d;
/// Applied in order; the number of those that were is the file's `user_version`.
pub(crate) const MIGRATIONS: &[&str] =
    &[include_str!("schema.sql"), include_str!("migration_parked.sql"), include_str!("migration_spending.sql")];
/// How long one process waits for another's transaction.
const BUSY: Duration = Duration::from_secs(10);
/// All statements of this crate, prepared once per connection.
const STATEMENTS: usize = 128;

/// A connection for the writer: the file exists, is ours and has the newest schema.
pub(crate) fn writer(path: &Path) -> Result<Connection, Problem> {
    look_before_touching(path)?;
    make_file(path)?;
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let prepare = || -> Result<(), Failure> {
        use_wal(&connection)?;
        set_pragmas(&connection)?;
        migrate(&connection, path)
    };
    prepare().map_err(|failure| failure.into_problem(path))?;
    Ok(connection)
}

/// A connection for reads only.
pub(crate) fn reader(path: &Path) -> Result<Connection, Problem> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.pragma_update(None, "query_only", true).map_err(|error| broken(path, &error))?;
    Ok(connection)
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection, Problem> {
    let open = || -> rusqlite::Result<Connection> {
        let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(BUSY)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        Ok(connection)
    };
    open().map_err(|error| broken(path, &error))
}

fn look_before_touching(path: &Path) -> Result<(), Problem> {
    let mut magic = Vec::new();
    match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unavailable(path, &error)),
        Ok(file) => file.take(16).read_to_end(&mut magic).map_err(|error| unavailable(path, &error))?,
    };
    if magic.is_empty() {
        return Ok(());
    }
    if magic != b"SQLite format 3\0" {
        return Err(foreign(path, "it is not a SQLite database"));
    }
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let look = || -> rusqlite::Result<(i64, i64, i64)> {
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let tables = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        Ok((pragma(&connection, "application_id")?, pragma(&connection, "user_version")?, tables))
    };
    match look() {
        // Empty: ours to be, or ours and killed while it was made.
        Ok((0, 0, 0)) => Ok(()),
        Ok((APPLICATION_ID, version, _)) => refuse_newer(path, version),
        Ok(_) => Err(foreign(path, "it is the database of another program")),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
            Err(foreign(path, "it is not a SQLite database"))
        }
        Err(error) => Err(broken(path, &error)),
    }
}

/// Made before SQLite makes it: only the user may read it. SQLite gives its other files the same mode.
fn make_file(path: &Path) -> Result<(), Problem> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        crate::boot::make_private_directory(parent)?;
    }
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(|error| unavailable(path, &error))?;
    let mode = file.metadata().map_err(|error| unavailable(path, &error))?.permissions().mode();
    if mode & 0o077 != 0 {
        // A backup that was copied back has the mode of the copy.
        file.set_permissions(Permissions::from_mode(0o600)).map_err(|error| unavailable(path, &error))?;
    }
    Ok(())
}

/// SQLite does not wait for the lock that this change needs, so two processes that make one store at once would meet.
fn use_wal(connection: &Connection) -> Result<(), Failure> {
    let begin = Instant::now();
    loop {
        match connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get::<_, String>(0)) {
            Ok(mode) => return assert_pragma("journal_mode", &mode, "wal"),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && begin.elapsed() < BUSY => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Set, read back and compared: a pragma that SQLite does not know or does not allow is silent.
fn set_pragmas(connection: &Connection) -> Result<(), Failure> {
    for (name, value) in PRAGMAS {
        connection.pragma_update(None, name, value)?;
        assert_pragma(name, &pragma(connection, name)?.to_string(), &value.to_string())?;
    }
    Ok(())
}

/// `synchronous` 2 is FULL: what was acknowledged survives the loss of power, not only of the process. The WAL is cut
/// back to 64 MiB after a burst.
const PRAGMAS: &[(&str, i64)] = &[("synchronous", 2), ("foreign_keys", 1), ("journal_size_limit", 64 << 20)];

fn assert_pragma(name: &str, is: &str, should: &str) -> Result<(), Failure> {
    if is == should {
        return Ok(());
    }
    Err(Failure::Refused(
        Problem::new(
            ProblemKind::Store,
            codes::STORE_UNAVAILABLE,
            format!("SQLite keeps {name} at {is} where {should} is needed"),
        )
        .because("without it, what is acknowledged would not be safe; some file systems do not support it")
        .hint("choose a file on a local disk with --store"),
    ))
}

fn migrate(connection: &Connection, path: &Path) -> Result<(), Failure> {
    if version(connection, path)? == MIGRATIONS.len() {
        return Ok(());
    }
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    // Asked again under the lock: another process may have done it meanwhile.
    for migration in &MIGRATIONS[version(&transaction, path)?..] {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX))?;
    Ok(transaction.commit()?)
}

fn version(connection: &Connection, path: &Path) -> Result<usize, Failure> {
    let version = pragma(connection, "user_version")?;
    refuse_newer(path, version)?;
    Ok(usize::try_from(version).unwrap_or(0))
}

/// One whole number.
pub(crate) fn pragma(connection: &Connection, name: &str) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

fn refuse_newer(path: &Path, version: i64) -> Result<(), Problem> {
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if version <= known {
        return Ok(());
    }
    Err(Problem::new(
        ProblemKind::Store,
        codes::STORE_NEWER,
        format!("the store {} was written by a newer mnemosyne", path.display()),
    )
    .because(format!("its schema is {version}, this version knows {known}; the file was not changed"))
    .hint("update mnemosyne, or choose another file with --store"))
}

fn foreign(path: &Path, reason: &str) -> Problem {
    Problem::new(ProblemKind::Store, codes::STORE_FOREIGN, format!("{} is not a store of mnemosyne", path.display()))
        .because(format!("{reason}; the file was not changed"))
        .hint("choose another file with --store")
}

fn unavailable(path: &Path, error: &std::io::Error) -> Problem {
    Problem::new(ProblemKind::Store, codes::STORE_UNAVAILABLE, format!("the store {} cannot be opened", path.display()))
        .because(error.to_string())
        .hint("check that the path names a file that you may read and write, or choose another with --store")
}
