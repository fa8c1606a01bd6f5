//! Opening: is the file ours, is it of our time, and does SQLite do what we rely on?
//!
//! A file that is not ours or that a newer version wrote is left untouched: it is looked at read-only before anything is
//! written, and without the checkpoint that closing a database otherwise makes.
//!
//! A file that can only be read, or that is damaged, is opened all the same: what is in it is shown, and every write is
//! refused with the reason.

use super::failure::{Failure, broken};
use crate::types::Durability;
use mnemosyne_core::error::codes;
use mnemosyne_core::{Problem, ProblemKind};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// `mnem`, in the header of the file.
const APPLICATION_ID: i64 = 0x6d6e_656d;
/// Applied in order; the number of those that were is the file's `user_version`.
pub(crate) const MIGRATIONS: &[&str] = &[
    include_str!("schema.sql"),
    include_str!("migration_parked.sql"),
    include_str!("migration_spending.sql"),
    include_str!("migration_rank_and_retention.sql"),
    include_str!("migration_dead_letters.sql"),
    include_str!("migration_works.sql"),
];
/// SQLite's page, in bytes.
const PAGE: u64 = 4_096;
/// How long one process waits for another's transaction.
const BUSY: Duration = Duration::from_secs(10);
/// All statements of this crate, prepared once per connection.
const STATEMENTS: usize = 128;

/// What can be done with a store.
pub(crate) enum Access {
    /// Everything: the file exists, is ours, is sound and has the newest schema.
    Whole(Connection),
    /// It can be read, and this is why it is not written.
    OnlyReads(Problem),
}

/// Opens the file for the writer.
pub(crate) fn writer(path: &Path, state_directory: &Path, durability: Durability) -> Result<Access, Problem> {
    look_before_touching(path)?;
    match make_file(path) {
        Ok(()) => {}
        Err(error) if may_be_read(path, &error) => return Ok(Access::OnlyReads(read_only(path, &error))),
        Err(error) => return Err(unavailable(path, &error)),
    }
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let prepare = || -> Result<Option<String>, Failure> {
        give_pages_back(&connection)?;
        use_wal(&connection)?;
        set_pragmas(&connection, durability)?;
        migrate(&connection, path)?;
        if was_killed(&connection, state_directory)? { first_damage(&connection) } else { Ok(None) }
    };
    match prepare() {
        Ok(None) => Ok(Access::Whole(connection)),
        Ok(Some(damage)) => Ok(Access::OnlyReads(damaged(path, &damage))),
        Err(failure) => Err(failure.into_problem(path)),
    }
}

/// A connection for reads, beside a writer or where there can be none.
pub(crate) fn reader(path: &Path, beside_a_writer: bool) -> Result<Connection, Problem> {
    let connection =
        if beside_a_writer { connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)? } else { connect_to_read(path)? };
    connection.pragma_update(None, "query_only", true).map_err(|error| broken(path, &error))?;
    Ok(connection)
}

/// A connection to a store that is there, which changes nothing in it: no checkpoint, no migration.
pub(crate) fn to_look(path: &Path) -> Result<Connection, Problem> {
    if let Err(error) = std::fs::metadata(path) {
        return Err(unavailable(path, &error));
    }
    look_before_touching(path)?;
    let connection = connect_to_read(path)?;
    let known = || -> rusqlite::Result<i64> {
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        pragma(&connection, "user_version")
    };
    let version = known().map_err(|error| broken(path, &error))?;
    if usize::try_from(version) != Ok(MIGRATIONS.len()) {
        return Err(Problem::new(
            ProblemKind::Store,
            codes::STORE_UNAVAILABLE,
            format!("the store {} has the schema of an older version", path.display()),
        )
        .because(format!("its schema is {version}, this version reads {}", MIGRATIONS.len()))
        .hint("any command that works with it brings it up to date, such as: mnemosyne runs"));
    }
    Ok(connection)
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection, Problem> {
    let open = || -> rusqlite::Result<Connection> {
        let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(BUSY)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        // A statement means the same whatever is bound to it. Else SQLite makes a new plan each time that a value is bound
        // which might make a partial index usable: nearly all of our statements, at each use.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        Ok(connection)
    };
    open().map_err(|error| broken(path, &error))
}

/// Where nothing can be written there is no place for SQLite's lock file; there nobody else writes either, so no lock is
/// needed. That holds as long as no log waits to be written back.
fn connect_to_read(path: &Path) -> Result<Connection, Problem> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let barred = pragma(&connection, "schema_version").map_err(|error| error.sqlite_error_code());
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let has_log = std::fs::metadata(log).is_ok_and(|metadata| metadata.len() > 0);
    if barred != Err(Some(ErrorCode::CannotOpen)) || has_log {
        return Ok(connection);
    }
    let escaped: String = path.to_string_lossy().chars().fold(String::from("file:"), |mut uri, character| {
        match character {
            '?' | '#' | '%' => uri += &format!("%{:02x}", u32::from(character)),
            _ => uri.push(character),
        }
        uri
    });
    connect(Path::new(&(escaped + "?immutable=1")), OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI)
}

fn look_before_touching(path: &Path) -> Result<(), Problem> {
    let mut magic = Vec::new();
    match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unavailable(path, &error)),
        Ok(file) => {
            refuse_foreign_owner(path, &file)?;
            file.take(16).read_to_end(&mut magic).map_err(|error| unavailable(path, &error))?
        }
    };
    if magic.is_empty() {
        return Ok(());
    }
    if magic != b"SQLite format 3\0" {
        return Err(foreign(path, "it is not a SQLite database"));
    }
    let connection = connect_to_read(path)?;
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
        // Somebody was cut off in the middle of a change, and to look would be to undo it. We change files in this way
        // only while they are made, when they have one page.
        Err(error) if is_half_changed(&error) => match std::fs::metadata(path) {
            Ok(file) if file.len() <= PAGE => Ok(()),
            _ => Err(foreign(path, "it is the database of another program, which was cut off in its work")),
        },
        Err(error) => Err(broken(path, &error)),
    }
}

fn is_half_changed(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_READONLY_ROLLBACK)
}

/// Made before SQLite makes it: only the user may read it. SQLite gives its other files the same mode.
fn make_file(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(folder) = folder {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let metadata = file.metadata()?;
    if metadata.len() == 0 {
        // A new name is on the disk once its folder is; SQLite does this for its own files only.
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        // A backup that was copied back has the mode of the copy.
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(())
}

/// As the superuser one could open everybody's store, and leave files in it that its owner cannot use.
fn refuse_foreign_owner(path: &Path, file: &File) -> Result<(), Problem> {
    let owner = file.metadata().map_err(|error| unavailable(path, &error))?.uid();
    // A process's own entry belongs to whom it acts for.
    let Ok(own) = std::fs::metadata("/proc/self") else { return Ok(()) };
    if own.uid() == owner {
        return Ok(());
    }
    Err(Problem::new(
        ProblemKind::Store,
        codes::STORE_NOT_YOURS,
        format!("the store {} belongs to another user", path.display()),
    )
    .because(format!("its owner is {owner}, and this process acts for {}; the file was not touched", own.uid()))
    .hint("run the command as its owner, or choose another file with --store"))
}

fn may_be_read(path: &Path, error: &std::io::Error) -> bool {
    let barred = matches!(error.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied);
    barred && File::open(path).is_ok_and(|file| file.metadata().is_ok_and(|metadata| metadata.len() > 0))
}

/// Pages of what is pruned can be given back later; this can be chosen only before the first table.
fn give_pages_back(connection: &Connection) -> Result<(), Failure> {
    if pragma(connection, "page_count")? != 0 {
        return Ok(());
    }
    match connection.pragma_update(None, "auto_vacuum", "incremental") {
        // Another process makes the same file at this moment, and chooses the same.
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(()),
        done => Ok(done?),
    }
}

/// Whether a boot ended without a word since the store was last found sound.
fn was_killed(connection: &Connection, state_directory: &Path) -> Result<bool, Failure> {
    let open = super::rows::texts(connection, "SELECT id FROM boots WHERE ended_at IS NULL", [])?;
    Ok(open.iter().any(|boot| crate::boot::is_dead(state_directory, boot)))
}

/// A killed process cannot damage the file, but a power cut on a disk that lies can. All but the comparison of indexes with
/// their rows, which takes several times as long: `mnemosyne store check` makes it.
fn first_damage(connection: &Connection) -> Result<Option<String>, Failure> {
    let found = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    match found {
        Ok(line) if line == "ok" => Ok(None),
        Ok(line) => Ok(Some(line)),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) => Ok(Some(error.to_string())),
        Err(error) => Err(error.into()),
    }
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
fn set_pragmas(connection: &Connection, durability: Durability) -> Result<(), Failure> {
    // FULL syncs the log with every commit, NORMAL only when it is written back into the file.
    let synchronous = match durability {
        Durability::PowerSafe => 2,
        Durability::CrashSafe => 1,
    };
    for (name, value) in [("synchronous", synchronous)].iter().chain(PRAGMAS) {
        connection.pragma_update(None, name, value)?;
        assert_pragma(name, &pragma(connection, name)?.to_string(), &value.to_string())?;
    }
    Ok(())
}

/// The WAL is cut back to 64 MiB after a burst.
const PRAGMAS: &[(&str, i64)] = &[("foreign_keys", 1), ("journal_size_limit", 64 << 20)];

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

fn read_only(path: &Path, error: &std::io::Error) -> Problem {
    Problem::new(ProblemKind::Store, codes::STORE_READ_ONLY, format!("the store {} is read-only", path.display()))
        .because(format!("{error}; what is in it can be read, nothing new is accepted"))
        .hint("make the file and its folder writable, or choose another with --store")
}

/// What is wrong with a file that is ours.
pub(crate) fn damaged(path: &Path, damage: &str) -> Problem {
    Problem::new(ProblemKind::Store, codes::STORE_DAMAGED, format!("the store {} is damaged", path.display()))
        .because(format!("{damage}; what can be read is shown, nothing new is accepted"))
        .hint(format!(
            "keep a copy of it; look with: mnemosyne store check --store {}; then put a backup in its place",
            path.display()
        ))
}

pub(crate) fn unavailable(path: &Path, error: &std::io::Error) -> Problem {
    Problem::new(ProblemKind::Store, codes::STORE_UNAVAILABLE, format!("the store {} cannot be opened", path.display()))
        .because(error.to_string())
        .hint("check that the path names a file that you may read and write, or choose another with --store")
}
