//! What only this backend promises; everything else is in `conformance`.

use super::*;
use crate::conformance::{code, good, own, prompted, request};
use crate::types::{ClaimRequest, Claimed, Completion, EventQuery, Stander};
use mnemosyne_core::{AgentRole, EventKind, ItemState, WorkItem};
use rusqlite::Connection;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap().block_on(future)
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_pragmas_that_we_rely_on_are_set() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let store = SqliteStore::open(&path).unwrap();
    let (journal, synchronous, foreign_keys) = pragmas(&store);
    assert_eq!((journal.as_str(), synchronous, foreign_keys), ("wal", 2, 1));
    drop(store);
    let crash_safe = SqliteStore::open_as(&path, Durability::CrashSafe).unwrap();
    assert_eq!(pragmas(&crash_safe), ("wal".to_owned(), 1, 1), "less is promised only where less was asked for");
}

fn pragmas(store: &SqliteStore) -> (String, i64, i64) {
    block_on(store.write(|write| {
        let mode: String = write.connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
        Ok((mode, open::pragma(write.connection, "synchronous")?, open::pragma(write.connection, "foreign_keys")?))
    }))
    .unwrap()
}

#[test]
fn only_the_user_can_read_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/er/store.db");
    let store = SqliteStore::open(&path).unwrap();
    block_on(store.submit_item(own("a"), None)).unwrap();
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(&folder.path().join("deep/er/store.db-wal")), 0o600);
    assert_eq!(mode(&folder.path().join("deep/er/store.db.d")), 0o700);
    assert_eq!(mode(&folder.path().join("deep/er")), 0o700);
    drop(store);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    drop(SqliteStore::open(&path).unwrap());
    assert_eq!(mode(&path), 0o600, "a copy that was put back is closed again");
}

#[test]
fn a_file_that_is_not_ours_is_refused_and_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("notes.txt");
    std::fs::write(&text, "these are my notes, and they are longer than sixteen bytes").unwrap();
    let short = folder.path().join("short");
    std::fs::write(&short, "x").unwrap();
    let other = folder.path().join("other.db");
    let connection = Connection::open(&other).unwrap();
    connection.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE mine (a); INSERT INTO mine VALUES (1);").unwrap();
    drop(connection);
    let lying = folder.path().join("lying.db");
    std::fs::write(&lying, [&b"SQLite format 3\0"[..], &[7; 5_000]].concat()).unwrap();
    for path in [text, short, other, lying] {
        let before = std::fs::read(&path).unwrap();
        let problem = SqliteStore::open(&path).err().unwrap();
        assert_eq!(problem.code, "MN-0206", "{}: {problem}", path.display());
        assert!(!problem.hint.is_empty());
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert!(!boot::state_directory(&path).exists());
    }
}

#[test]
fn a_store_of_a_newer_version_is_refused_and_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    drop(SqliteStore::open(&path).unwrap());
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let before = std::fs::read(&path).unwrap();
    let problem = SqliteStore::open(&path).err().unwrap();
    assert_eq!(problem.code, "MN-0204");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn what_cannot_be_opened_is_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(SqliteStore::open(folder.path()).err().unwrap().code, "MN-0203", "a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let below = SqliteStore::open(&file.join("store.db")).err().unwrap();
    assert_eq!(below.code, "MN-0203", "{below}");
}

#[test]
fn an_empty_file_becomes_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    std::fs::write(&path, "").unwrap();
    drop(SqliteStore::open(&path).unwrap());
    let version = open::pragma(&Connection::open(&path).unwrap(), "user_version").unwrap();
    assert_eq!(version, open::MIGRATIONS.len() as i64);
}

#[test]
fn a_store_of_the_first_version_is_migrated_and_keeps_its_items() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let old = Connection::open(&path).unwrap();
    old.execute_batch(include_str!("schema.sql")).unwrap();
    old.execute_batch("PRAGMA application_id = 0x6d6e656d; PRAGMA user_version = 1").unwrap();
    old.execute(
        "INSERT INTO items (id, kind, role, priority, state, open_dependencies, file_scope, holds, work)
         VALUES ('a', 'work', 'executor', 5, 'ready', 0, '[]', 0, ?1)",
        [serde_json::to_string(&own("a")).unwrap()],
    )
    .unwrap();
    drop(old);
    let store = SqliteStore::open(&path).unwrap();
    let claimed = block_on(store.claim(request(AgentRole::Executor, 1))).unwrap().unwrap();
    assert_eq!(claimed.item.work.id, "a");
}

#[tokio::test]
async fn budget_1_what_a_run_of_an_older_store_has_spent_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    {
        let store = SqliteStore::open(&path).unwrap();
        store.submit_run(prompted("r-1"), None).await.unwrap();
    }
    // As the first version wrote it: sums in the row of the run, and nothing of what came later.
    let old = folder.path().join("old.db");
    let connection = Connection::open(&old).unwrap();
    connection.execute_batch(open::MIGRATIONS[0]).unwrap();
    connection.execute("ATTACH ?1 AS newer", [path.to_str().unwrap()]).unwrap();
    connection
        .execute_batch(
            "INSERT INTO runs (arrival, id, workspace, state, boot, record, turns, input_tokens, cost_usd)
             SELECT arrival, id, workspace, state, boot, record, 2, 50, 0.25 FROM newer.runs;
             INSERT INTO items (id, run, kind, role, priority, state, open_dependencies, file_scope, holds, work)
             SELECT id, run, kind, role, priority, state, open_dependencies, file_scope, holds, work
             FROM newer.items JOIN newer.works ON item = arrival;
             INSERT INTO usage (run, item, tokens, usd, state) VALUES ('r-1', 'r-1.1', 7, 0.5, 'unknown');
             INSERT INTO usage (run, item, tokens, usd, state) VALUES ('r-1', 'r-1.1', 60, 0.5, 'settled');
             PRAGMA application_id = 0x6d6e656d;
             PRAGMA user_version = 1;",
        )
        .unwrap();
    drop(connection);
    let snapshot = SqliteStore::open(&old).unwrap().run("r-1").await.unwrap().unwrap();
    assert_eq!((snapshot.usage.turns, snapshot.usage.tokens(), snapshot.unknown_turns), (2, 50, 1));
    assert_eq!((snapshot.spent.tokens, snapshot.spent.usd, snapshot.spent.calls), (57, 0.75, 2));
}

#[test]
fn two_that_make_one_store_at_once_both_get_it() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..10 {
        let path = folder.path().join(format!("store-{round}.db"));
        let openers: Vec<_> = (0..4)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || SqliteStore::open(&path).map(drop))
            })
            .collect();
        for opener in openers {
            opener.join().unwrap().unwrap();
        }
    }
}

#[test]
fn a_dropped_store_leaves_one_file_and_no_lock() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let store = SqliteStore::open(&path).unwrap();
    block_on(store.submit_item(own("a"), None)).unwrap();
    let lock = boot::state_directory(&path).join(format!("boots/{}.lock", store.boot()));
    assert!(lock.exists());
    drop(store);
    assert!(!lock.exists());
    assert!(!folder.path().join("store.db-wal").exists());
}

#[test]
fn opening_gives_back_at_once_what_a_dead_boot_held() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let store = SqliteStore::open(&path).unwrap();
    block_on(async {
        store.submit_item(own("a"), None).await.unwrap();
        store.claim(request(AgentRole::Executor, 1)).await.unwrap().unwrap();
    });
    let beside = SqliteStore::open(&path).unwrap();
    let item = block_on(beside.item("a")).unwrap().unwrap().item;
    assert_eq!(item.state, ItemState::Running, "its boot lives");
    drop(store);
    let after = SqliteStore::open(&path).unwrap();
    let item = block_on(after.item("a")).unwrap().unwrap().item;
    assert_eq!((item.state, item.crashes), (ItemState::Ready, 1), "no wait for the lease");
}

#[test]
fn a_full_disk_is_answered_to_everybody_and_the_store_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let store = Arc::new(SqliteStore::open(&path).unwrap());
    block_on(async {
        store.submit_item(own("before"), None).await.unwrap();
        // SQLite's own limit gives the same error as a disk without space.
        store.write(|write| Ok(write.connection.pragma_update(None, "max_page_count", 1)?)).await.unwrap();
        let big = |id: &str| {
            let mut item = own(id);
            item.description = "x".repeat(500_000);
            item
        };
        let many: Vec<_> = (0..8)
            .map(|number| {
                let (store, item) = (Arc::clone(&store), big(&format!("i-{number}")));
                tokio::spawn(async move { store.submit_item(item, None).await })
            })
            .collect();
        for refused in many {
            let problem = refused.await.unwrap().unwrap_err();
            assert_eq!(problem.code, "MN-0217");
            assert!(problem.reason.contains("full") && !problem.hint.is_empty(), "{problem}");
        }
        assert!(store.item("before").await.unwrap().is_some(), "reads go on");
        store.write(|write| Ok(write.connection.pragma_update(None, "max_page_count", 1 << 30)?)).await.unwrap();
        store.submit_item(big("i-0"), None).await.unwrap();
    });
}

#[test]
fn dur_2_a_refusal_undoes_its_own_writes_and_not_its_neighbours() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("store.db")).unwrap();
    let waits = Waits::with(1);
    store.stand(waits.clone());
    let runs = Arc::new(Mutex::new(0));
    let (begun, has_begun) = channel();
    let (go, may_go) = channel();
    block_on(async {
        // The writer is held up in a group of its own, so that all the others come into one.
        let held_up = store.write(move |_| {
            let _ = (begun.send(()), may_go.recv());
            Ok(())
        });
        let counted = Arc::clone(&runs);
        let beside = store.write(move |_| {
            *counted.lock().unwrap() += 1;
            Ok(())
        });
        let refused = store.write(|write| {
            write::append_events(write, &[NewEvent::new(EventKind::RoleDegraded)])?;
            Err::<(), Failure>(crate::rules::no_such_run("r-1").into())
        });
        let group = async {
            has_begun.recv().unwrap();
            let (a, b) = (store.submit_item(own("a"), None), store.submit_item(own("b"), None));
            tokio::join!(a, beside, refused, b, async { go.send(()).unwrap() })
        };
        let (held_up, (a, beside, refused, b, ())) = tokio::join!(held_up, group);
        assert_eq!((held_up, beside), (Ok(()), Ok(())));
        assert_eq!((a.unwrap(), code(refused), b.unwrap()), ("a".into(), "MN-0110".into(), "b".into()));
        assert_eq!(*runs.lock().unwrap(), 2, "they were one group, and it was run again");
        let kinds = |event: &Event| event.event.kind;
        let events: Vec<_> = store.events(EventQuery::default()).await.unwrap().iter().map(kinds).collect();
        assert_eq!(events, [EventKind::WorkStarted, EventKind::AgentStartedWithTask]);
        assert_eq!(waits.items(), ["a"], "given once, though its place was taken and given back before");
        assert_eq!(store.item("b").await.unwrap().unwrap().item.state, ItemState::Ready);
    });
}

#[test]
fn dur_1_a_commit_that_fails_is_an_error_for_its_whole_group() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let store = SqliteStore::open(&path).unwrap();
    block_on(async {
        // A deferred foreign key is looked at by the commit only.
        let fails = store.write(|write| {
            write.connection.execute_batch("PRAGMA defer_foreign_keys = 1")?;
            write.connection.execute("INSERT INTO run_boots (run, boot) VALUES ('nothing', 'b')", [])?;
            Ok(())
        });
        let (fails, beside) = tokio::join!(fails, store.submit_item(own("a"), None));
        assert_eq!(code(fails), "MN-0203");
        // In the same group it is undone, in the next one it is done: the answer is true in both cases.
        assert_eq!(store.item("a").await.unwrap().is_some(), beside.is_ok());
        store.submit_item(own("b"), None).await.unwrap();
    });
}

#[test]
fn a_caller_that_goes_away_does_not_stop_the_writer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    for _ in 0..20 {
        let store = SqliteStore::open(&path).unwrap();
        block_on(async {
            drop(store.submit_item(own("never polled"), None));
            let _ = tokio::time::timeout(Duration::ZERO, store.submit_item(own("polled once"), None)).await;
        });
    }
    let store = SqliteStore::open(&path).unwrap();
    assert!(block_on(store.item("never polled")).unwrap().is_none());
    block_on(store.submit_item(own("after"), None)).unwrap();
}

/// Goes on wherever it is woken, and says when it has ended and is dropped.
struct GoesOn {
    future: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    over: std::sync::mpsc::Sender<String>,
}

impl Wake for GoesOn {
    fn wake(self: Arc<Self>) {
        let waker = Waker::from(Arc::clone(&self));
        // Locked for the whole step: another thread may wake it meanwhile, and then waits.
        let mut future = self.future.lock().unwrap();
        let Some(step) = future.as_mut() else { return };
        if step.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            return;
        }
        *future = None;
        drop(future);
        self.over.send(std::thread::current().name().unwrap_or_default().to_owned()).unwrap();
    }
}

#[test]
fn the_last_handle_may_be_dropped_by_whoever_is_told_on_the_store_s_own_threads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    for round in 0..20 {
        let store = Arc::new(SqliteStore::open(&path).unwrap());
        let (over, is_over) = channel();
        // Held up, so that the first step is over before it is told.
        let (go, may_go) = channel::<()>();
        let mut writing = Box::pin(store.write(move |_| {
            let _ = may_go.recv();
            Ok(())
        }));
        assert!(writing.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(writing);
        let own: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
            store.submit_item(own(&format!("i-{round}")), None).await.unwrap();
            if round % 2 == 1 {
                store.item("no such item").await.unwrap();
            }
        });
        Arc::new(GoesOn { future: Mutex::new(Some(own)), over }).wake();
        go.send(()).unwrap();
        let thread = is_over.recv_timeout(Duration::from_secs(30)).unwrap();
        // A read may be answered before the step that asks for it is over.
        assert!(thread == "mnemosyne-write" || round % 2 == 1 && thread == "mnemosyne-read", "{thread}");
    }
}

#[test]
fn a_claim_reads_by_index_however_many_items_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("store.db")).unwrap();
    for (sql, index) in [(write::LATE.to_owned(), "items_leased"), (write::candidates(), "items_ready")] {
        let plan: String = block_on(store.read(move |connection| {
            let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
            let (mut rows, mut plan) = (statement.raw_query(), String::new());
            while let Some(row) = rows.next()? {
                plan += &row.get::<_, String>(3)?;
                plan.push('\n');
            }
            Ok(plan)
        }))
        .unwrap();
        assert!(plan.contains(&format!("USING INDEX {index} (")), "{plan}");
        let sorts_all = index == "items_ready" && plan.contains("TEMP B-TREE");
        assert!(!plan.contains("SCAN items") && !sorts_all, "{plan}");
    }
}

#[test]
fn only_the_role_that_may_have_got_work_is_sent_to_look() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("store.db")).unwrap();
    block_on(async {
        let mut ready = store.ready();
        for round in 1..4 {
            store.submit_item(own(&format!("i-{round}")), None).await.unwrap();
            ready.changed().await.unwrap();
            let mut expected = crate::Ready::default();
            expected[AgentRole::Executor as usize] = round;
            assert_eq!(*ready.borrow_and_update(), expected, "neither a claim nor an end makes work");
            let claimed = store.claim(request(AgentRole::Executor, 1)).await.unwrap().unwrap();
            store.complete(Completion::new(&claimed, good(claimed.item.kind))).await.unwrap();
        }
    });
}

/// An agent that waits, and what it was given.
struct Waits {
    request: ClaimRequest,
    places: Arc<Semaphore>,
    given: Mutex<Vec<(String, OwnedSemaphorePermit)>>,
    over: AtomicBool,
}

impl Waits {
    fn with(places: usize) -> Arc<Self> {
        Arc::new(Self {
            request: request(AgentRole::Executor, 1),
            places: Arc::new(Semaphore::new(places)),
            given: Mutex::default(),
            over: AtomicBool::new(false),
        })
    }

    fn items(&self) -> Vec<String> {
        self.given.lock().unwrap().iter().map(|(item, _)| item.clone()).collect()
    }
}

impl Stander for Waits {
    fn request(&self) -> &ClaimRequest {
        &self.request
    }
    fn room(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().try_acquire_owned().ok()
    }
    fn take(&self, claimed: Claimed, place: OwnedSemaphorePermit) {
        self.given.lock().unwrap().push((claimed.item.work.id, place));
    }
    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

#[test]
fn who_waits_has_the_item_before_its_submission_is_answered_and_nobody_else_is_sent_to_look() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("store.db")).unwrap();
    let waits = Waits::with(2);
    store.stand(waits.clone());
    let mut ready = store.ready();
    ready.mark_unchanged();
    block_on(async {
        store.submit_item(own("a"), None).await.unwrap();
        assert_eq!(waits.items(), ["a"]);
        assert_eq!(store.item("a").await.unwrap().unwrap().item.state, ItemState::Running);
        store.submit_item(WorkItem { role: AgentRole::Reviewer, ..own("other role") }, None).await.unwrap();
        let executor = AgentRole::Executor as usize;
        let counts = *ready.wait_for(|counts| counts[AgentRole::Reviewer as usize] == 1).await.unwrap();
        assert_eq!(counts[executor], 0);
        store.submit_item(own("b"), None).await.unwrap();
        store.submit_item(own("no room"), None).await.unwrap();
        assert_eq!(waits.items(), ["a", "b"]);
        // Once with "b", when room ended before anybody saw that nothing is left, and once now.
        ready.wait_for(|counts| counts[executor] == 2).await.unwrap();
        waits.given.lock().unwrap().clear();
        waits.over.store(true, Ordering::SeqCst);
        store.submit_item(own("gone"), None).await.unwrap();
        assert!(waits.items().is_empty());
        for id in ["no room", "gone"] {
            let claimed = store.claim(request(AgentRole::Executor, 1)).await.unwrap().unwrap();
            assert_eq!(claimed.item.work.id, id);
        }
    });
    let events = block_on(store.events(EventQuery::default())).unwrap();
    let started = events.iter().filter(|event| event.event.kind == EventKind::WorkStarted).count();
    assert_eq!(started, 4, "a standing claim says what every claim says");
}

#[test]
fn once_1_those_who_wait_and_those_who_ask_never_share_an_item_and_take_turns() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(&folder.path().join("store.db")).unwrap());
    let waiting = [Waits::with(20), Waits::with(20)];
    for waits in &waiting {
        store.stand(waits.clone());
    }
    let asked = block_on(async {
        let submitting: Vec<_> = (0..100)
            .map(|number| {
                let store = Arc::clone(&store);
                tokio::spawn(async move {
                    store.submit_item(own(&format!("i-{number}")), None).await.unwrap();
                    store.claim(request(AgentRole::Executor, 1)).await.unwrap()
                })
            })
            .collect();
        let mut asked = Vec::new();
        for answer in submitting {
            asked.extend(answer.await.unwrap().map(|claimed| claimed.item.work.id));
        }
        while let Some(claimed) = store.claim(request(AgentRole::Executor, 1)).await.unwrap() {
            asked.push(claimed.item.work.id);
        }
        asked
    });
    let all: Vec<String> = waiting.iter().flat_map(|waits| waits.items()).chain(asked).collect();
    assert_eq!((all.len(), all.iter().collect::<BTreeSet<_>>().len()), (100, 100));
    assert_eq!(waiting.each_ref().map(|waits| waits.items().len()), [20, 20]);
}

#[test]
fn opening_is_quick() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    drop(SqliteStore::open(&path).unwrap());
    let fastest = (0..10)
        .map(|_| {
            let begin = Instant::now();
            let store = SqliteStore::open(&path).unwrap();
            let elapsed = begin.elapsed();
            drop(store);
            elapsed
        })
        .min()
        .unwrap();
    // The fastest of ten: the machine may be busy, the code may not.
    assert!(fastest < Duration::from_millis(10), "{fastest:?}");
}

/// Not a test by itself: the process that `dur_1_what_was_acknowledged_survives_kill_9` kills.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Ok(path) = std::env::var("MNEMOSYNE_STORE_CHILD") else { return };
    let store = Arc::new(SqliteStore::open(Path::new(&path)).unwrap());
    let say = |line: String| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).unwrap();
    };
    let prefix = store.boot().to_owned();
    block_on(async {
        let workers = (0..4).map(|worker| {
            let (store, prefix) = (Arc::clone(&store), prefix.clone());
            tokio::spawn(async move {
                for round in 0u64.. {
                    let id = format!("{prefix}-{worker}-{round}");
                    store.submit_item(own(&id), None).await.unwrap();
                    say(format!("submitted {id}"));
                    let Some(claimed) = store.claim(request(AgentRole::Executor, 1)).await.unwrap() else { continue };
                    store.complete(Completion::new(&claimed, good(claimed.item.kind))).await.unwrap();
                    say(format!("completed {}", claimed.item.work.id));
                }
            })
        });
        for worker in workers.collect::<Vec<_>>() {
            worker.await.unwrap();
        }
    });
}

#[test]
fn dur_1_what_was_acknowledged_survives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let mut acknowledged = Vec::new();
    for milliseconds in [60, 110, 170, 230, 310] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sqlite::tests::child_that_writes_until_it_is_killed", "--nocapture"])
            .env("MNEMOSYNE_STORE_CHILD", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let reading = std::thread::spawn(move || out.lines().map_while(Result::ok).collect::<Vec<String>>());
        std::thread::sleep(Duration::from_millis(milliseconds)); // the moment of the kill, not a wait for anything
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.extend(reading.join().unwrap());
    }
    let submitted: Vec<&str> = acknowledged.iter().filter_map(|line| line.strip_prefix("submitted ")).collect();
    let completed: Vec<&str> = acknowledged.iter().filter_map(|line| line.strip_prefix("completed ")).collect();
    assert!(submitted.len() > 20 && completed.len() > 20, "the child did nothing: {acknowledged:?}");
    assert_eq!(completed.iter().collect::<BTreeSet<_>>().len(), completed.len(), "ONCE-1");

    let store = SqliteStore::open(&path).unwrap();
    block_on(async {
        for id in &submitted {
            assert!(store.item(id).await.unwrap().is_some(), "{id} was acknowledged and is lost");
        }
        for id in &completed {
            assert_eq!(store.item(id).await.unwrap().unwrap().item.state, ItemState::Done, "{id}");
        }
        let events = store.events(EventQuery::default()).await.unwrap();
        assert!(events.iter().zip(1..).all(|(event, sequence)| event.sequence == sequence), "DUR-3");
        let done = events.iter().filter(|event| event.event.kind == EventKind::WorkCompleted);
        let items: Vec<_> = done.filter_map(|event| event.event.item.clone()).collect();
        assert_eq!(items.iter().collect::<BTreeSet<_>>().len(), items.len(), "ONCE-1");
        let check: String = store
            .read(|connection| Ok(connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?))
            .await
            .unwrap();
        assert_eq!(check, "ok");
        // And it still works.
        store.submit_run(prompted("r-1"), None).await.unwrap();
    });
}
