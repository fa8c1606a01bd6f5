//! Files and disks that are not as they should be: full, read-only, damaged, another user's, of an older version. New work
//! is refused with a code and a hint, what is there is shown, and what can get better does so without a restart.

use crate::checker::result;
use mnemosyne_core::{AgentRole, ItemState, Phase, Problem, WorkItem};
use mnemosyne_store::sqlite::{backup, check};
use mnemosyne_store::{ClaimRequest, Completion, LEASE_MS, SqliteStore, Store};
use rusqlite::Connection;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

pub(crate) fn item(id: &str, description: &str) -> WorkItem {
    WorkItem {
        id: id.to_owned(),
        description: description.to_owned(),
        phase: Phase::PlanToArtifacts,
        role: AgentRole::Executor,
        priority: 5,
        depends_on: Vec::new(),
        file_scope: Vec::new(),
        context: serde_json::Map::new(),
        timeout_seconds: 60.0,
        attempt: 1,
    }
}

async fn do_one(store: &SqliteStore) {
    let request = ClaimRequest { role: AgentRole::Executor, agent: "e".into(), generation: 1, lease_ms: LEASE_MS };
    let claimed = store.claim(request).await.unwrap().unwrap();
    store.complete(Completion::new(&claimed, result("t"))).await.unwrap();
}

/// A store with one item that is done and one that waits.
fn filled(path: &Path) {
    let store = SqliteStore::open(path).unwrap();
    block_on(async {
        for id in ["done", "ready"] {
            store.submit_item(item(id, "something"), None).await.unwrap();
        }
        do_one(&store).await;
    });
}

fn state(store: &SqliteStore, id: &str) -> Option<ItemState> {
    block_on(store.item(id)).unwrap().map(|snapshot| snapshot.item.state)
}

fn refused(problem: &Problem, code: &str) {
    assert_eq!(problem.code, code, "{problem}");
    assert!(!problem.reason.is_empty() && !problem.hint.is_empty(), "{problem}");
}

/// Reads go on; writes are refused with this code.
fn only_reads(store: &SqliteStore, code: &str) {
    assert_eq!((state(store, "done"), state(store, "ready")), (Some(ItemState::Done), Some(ItemState::Ready)));
    assert!(!block_on(store.events(mnemosyne_store::EventQuery::default())).unwrap().is_empty());
    assert_eq!(block_on(store.queue()).unwrap().ready, 1);
    refused(&block_on(store.submit_item(item("new", "something"), None)).unwrap_err(), code);
    let request = ClaimRequest { role: AgentRole::Executor, agent: "e".into(), generation: 1, lease_ms: LEASE_MS };
    refused(&block_on(store.claim(request)).unwrap_err(), code);
    assert!(!block_on(store.poll_foreign()).unwrap());
}

/// A file system in memory of its own; nothing where this process may not mount one.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(megabytes: u32) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(folder)),
            other => {
                println!("skipped: a file system of its own cannot be mounted here ({other:?})");
                None
            }
        }
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("store.db")
    }

    fn remount(&self, how: &str) {
        let option = format!("remount,{how}");
        assert!(Command::new("mount").args(["-o", &option]).arg(self.0.path()).status().unwrap().success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_refuses_work_shows_what_is_there_and_goes_on_when_there_is_space_again() {
    let Some(disk) = Mounted::new(8) else { return };
    filled(&disk.path());
    let store = SqliteStore::open(&disk.path()).unwrap();
    let ballast = disk.path().with_file_name("ballast");
    std::fs::write(&ballast, vec![0; 4_000_000]).unwrap();
    let mut full = None;
    for number in 0..1_000 {
        let submitted = block_on(store.submit_item(item(&format!("big-{number}"), &"x".repeat(50_000)), None));
        if let Err(problem) = submitted {
            full = Some((number, problem));
            break;
        }
    }
    let (number, problem) = full.expect("the disk never became full");
    refused(&problem, "MN-0217");
    assert_eq!(state(&store, &format!("big-{number}")), None, "what was refused is not there");
    assert_eq!(state(&store, "done"), Some(ItemState::Done), "reads go on");
    std::fs::remove_file(&ballast).unwrap();
    disk.remount("size=64m");
    block_on(async {
        store.submit_item(item("after", "something"), None).await.unwrap();
        do_one(&store).await;
    });
    drop(store);
    let report = check(&disk.path()).unwrap();
    assert!(report.findings.is_empty(), "{report:?}");
    assert_eq!(report.items, number + 3);
}

#[test]
fn a_store_on_a_read_only_file_system_is_shown_and_not_written() {
    let Some(disk) = Mounted::new(8) else { return };
    filled(&disk.path());
    disk.remount("ro");
    let store = SqliteStore::open(&disk.path()).unwrap();
    only_reads(&store, "MN-0216");
    drop(store);
    assert!(check(&disk.path()).unwrap().findings.is_empty());
    let elsewhere = tempfile::tempdir().unwrap();
    backup(&disk.path(), &elsewhere.path().join("copy.db")).unwrap();
    disk.remount("rw");
    let store = SqliteStore::open(&disk.path()).unwrap();
    block_on(store.submit_item(item("new", "something"), None)).unwrap();
}

/// A store that was killed, as its file says.
fn killed(path: &Path) {
    let connection = Connection::open(path).unwrap();
    connection.execute("UPDATE boots SET ended_at = NULL", []).unwrap();
}

/// Overwrites the pages of the table `journal`, which no item here uses, so that everything else can still be read.
fn damage(path: &Path) {
    let connection = Connection::open(path).unwrap();
    connection.pragma_update(None, "wal_checkpoint", "truncate").ok();
    let root: u64 = connection
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'journal' AND type = 'table'", [], |row| row.get(0))
        .unwrap();
    drop(connection);
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[0xff; 4096], (root - 1) * 4096).unwrap();
}

#[test]
fn a_file_that_was_damaged_when_its_process_died_is_shown_and_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    filled(&path);
    killed(&path);
    damage(&path);
    let before = std::fs::read(&path).unwrap();
    let store = SqliteStore::open(&path).unwrap();
    only_reads(&store, "MN-0215");
    drop(store);
    assert_eq!(std::fs::read(&path).unwrap(), before, "a damaged file is left as it is");
    assert!(!check(&path).unwrap().findings.is_empty());
    let copy = folder.path().join("copy.db");
    assert_eq!(backup(&path, &copy).unwrap_err().code, "MN-0215");
    assert!(!copy.exists(), "no backup is better than a damaged one");
}

#[test]
fn a_store_that_was_killed_and_is_sound_is_looked_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    filled(&path);
    killed(&path);
    let store = SqliteStore::open(&path).unwrap();
    block_on(store.submit_item(item("new", "something"), None)).unwrap();
    let open: u64 = Connection::open(&path)
        .unwrap()
        .query_row("SELECT count(*) FROM boots WHERE ended_at IS NULL", [], |row| row.get(0))
        .unwrap();
    assert_eq!(open, 1, "only the boot that lives");
}

#[test]
fn a_store_of_another_user_is_refused_and_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    filled(&path);
    if chown(&path, Some(65_534), None).is_err() {
        println!("skipped: only the superuser can give a file away");
        return;
    }
    let before = std::fs::read(&path).unwrap();
    let problem = SqliteStore::open(&path).err().unwrap();
    refused(&problem, "MN-0213");
    refused(&check(&path).unwrap_err(), "MN-0213");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(std::fs::metadata(&path).unwrap().uid(), 65_534);
}

#[test]
fn a_store_of_the_first_version_is_brought_up_to_date_with_all_that_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let old = Connection::open(&path).unwrap();
    old.execute_batch(include_str!("../../src/sqlite/schema.sql")).unwrap();
    old.execute_batch("PRAGMA application_id = 0x6d6e656d; PRAGMA user_version = 1;").unwrap();
    for (id, priority) in [("low", 1), ("high", 9)] {
        let mut work = item(id, "something");
        work.priority = priority;
        old.execute(
            "INSERT INTO items (id, kind, role, priority, state, open_dependencies, file_scope, holds, work)
             VALUES (?1, 'work', 'executor', ?2, 'ready', 0, '[]', 0, ?3)",
            rusqlite::params![id, priority, serde_json::to_string(&work).unwrap()],
        )
        .unwrap();
    }
    drop(old);
    let store = SqliteStore::open(&path).unwrap();
    block_on(async {
        let mut urgent = item("urgent", "something");
        urgent.priority = 10;
        store.submit_item(urgent, None).await.unwrap();
        for _ in 0..2 {
            do_one(&store).await;
        }
    });
    assert_eq!((state(&store, "high"), state(&store, "low")), (Some(ItemState::Done), Some(ItemState::Done)));
    assert_eq!(state(&store, "urgent"), Some(ItemState::Ready), "what was there before goes before what comes");
}

#[test]
fn a_backup_is_a_store_of_its_own_and_never_overwrites_anything() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("store.db"), folder.path().join("copy.db"));
    filled(&path);
    let store = SqliteStore::open(&path).unwrap();
    // While somebody works with it.
    assert!(backup(&path, &copy).unwrap() > 0);
    block_on(store.submit_item(item("after", "something"), None)).unwrap();
    assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(check(&copy).unwrap().findings.is_empty());
    refused(&backup(&path, &copy).unwrap_err(), "MN-0214");
    let copied = SqliteStore::open(&copy).unwrap();
    assert_eq!((state(&copied, "done"), state(&copied, "ready")), (Some(ItemState::Done), Some(ItemState::Ready)));
    assert_eq!(state(&copied, "after"), None);
    block_on(do_one(&copied));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("half")), "{left:?}");
}

#[test]
fn a_check_finds_what_breaks_a_promise_though_the_file_is_sound() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    filled(&path);
    assert!(check(&path).unwrap().findings.is_empty());
    for (break_it, finding) in [
        ("UPDATE events SET sequence = sequence + 5 WHERE sequence = (SELECT max(sequence) FROM events)", "is missing"),
        ("UPDATE items SET boot = 'b-1' WHERE id = 'done'", "is held by"),
        ("UPDATE items SET open_dependencies = 3 WHERE id = 'ready'", "waits for 3 others"),
        ("INSERT INTO usage (item, tokens, state) VALUES ('ready', 5, 'open')", "is not claimed"),
    ] {
        Connection::open(&path).unwrap().execute(break_it, []).unwrap();
        let report = check(&path).unwrap();
        assert!(report.findings.iter().any(|line| line.contains(finding)), "{break_it}: {report:?}");
    }
}

#[test]
fn one_row_that_cannot_be_read_stops_nobody_and_is_named_by_a_check() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    filled(&path);
    {
        let store = SqliteStore::open(&path).unwrap();
        block_on(store.submit_item(item("broken", "something"), None)).unwrap();
    }
    // Held by a process that died, and with a number that no item can have.
    Connection::open(&path)
        .unwrap()
        .execute(
            "UPDATE items SET state = 'running', boot = 'b-00000000', agent = 'e', generation = 1, lease_until = 1,
                 open_dependencies = -1 WHERE id = 'broken'",
            [],
        )
        .unwrap();
    let store = SqliteStore::open(&path).unwrap();
    block_on(do_one(&store));
    assert_eq!(state(&store, "ready"), Some(ItemState::Done));
    refused(&block_on(store.item("broken")).unwrap_err(), "MN-0215");
    let report = check(&path).unwrap();
    assert!(report.findings.iter().any(|line| line.contains("broken")), "{report:?}");
}

#[test]
fn a_store_that_was_cut_off_while_it_was_made_is_made_anew_and_a_foreign_one_is_left_alone() {
    for ours in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        let (half, journal) = (folder.path().join("half"), folder.path().join("half-journal"));
        // A copy of a database and its journal in the middle of a change is what a kill leaves.
        let connection = Connection::open(&half).unwrap();
        connection.execute_batch("CREATE TABLE theirs (a); INSERT INTO theirs VALUES (1);").unwrap();
        if ours {
            connection.execute_batch("DROP TABLE theirs; VACUUM;").unwrap();
        }
        connection.execute_batch("BEGIN IMMEDIATE; PRAGMA user_version = 5;").unwrap();
        connection.cache_flush().unwrap();
        std::fs::copy(&journal, folder.path().join("store.db-journal")).unwrap();
        std::fs::copy(&half, &path).unwrap();
        drop(connection);
        let before = std::fs::read(&path).unwrap();
        let opened = SqliteStore::open(&path).map(drop);
        if ours {
            opened.unwrap();
            assert!(check(&path).unwrap().findings.is_empty());
        } else {
            refused(&opened.unwrap_err(), "MN-0206");
            assert_eq!(std::fs::read(&path).unwrap(), before);
        }
    }
}

#[test]
fn a_check_of_what_is_not_there_makes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    refused(&check(&path).unwrap_err(), "MN-0203");
    refused(&backup(&path, &folder.path().join("copy.db")).unwrap_err(), "MN-0203");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
