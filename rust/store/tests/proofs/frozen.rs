//! Two processes on one store, of which one stands still for longer than its leases: what it held is done by the other, and
//! when it wakes up it finds every door closed (**FENCE-1**, **ONCE-1**).

use crate::checker::{Acknowledged, check, result};
use crate::files::item;
use mnemosyne_core::{AgentRole, ItemState, ProblemKind};
use mnemosyne_store::{ClaimRequest, Completion, SqliteStore, Store};
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ITEMS: usize = 12;
const LEASE_MS: i64 = 1_000;

fn request(agent: &str) -> ClaimRequest {
    ClaimRequest { role: AgentRole::Executor, agent: agent.into(), generation: 1, lease_ms: LEASE_MS }
}

/// Not a test by itself: the process that is stopped. It claims what there is, says so, and completes it when it is told to.
#[test]
fn child_that_claims_and_is_stopped() {
    let Ok(path) = std::env::var("MNEMOSYNE_FROZEN_STORE") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let store = SqliteStore::open(Path::new(&path)).unwrap();
        let mut held = Vec::new();
        while held.len() < ITEMS {
            held.extend(store.claim(request("frozen")).await.unwrap());
        }
        println!();
        println!("claimed");
        std::io::stdin().read_line(&mut String::new()).unwrap();
        for claimed in held {
            let item = &claimed.item.work.id;
            match store.complete(Completion::new(&claimed, result("frozen"))).await {
                Ok(()) => println!("completed {item}"),
                Err(problem) if problem.kind == ProblemKind::Fenced => println!("fenced {item}"),
                Err(problem) => println!("error {item} {}", problem.code),
            }
        }
    });
}

fn signal(name: &str, pid: u32) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

#[test]
fn once_1_a_process_that_stood_still_longer_than_its_leases_is_fenced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let store = SqliteStore::open(&path).unwrap();
    let mut acknowledged = Vec::new();
    for number in 0..ITEMS {
        let item = runtime.block_on(store.submit_item(item(&format!("i-{number}"), "something"), None)).unwrap();
        acknowledged.push(Acknowledged::Submitted { item, depends_on: Vec::new() });
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "frozen::child_that_claims_and_is_stopped", "--nocapture"])
        .env("MNEMOSYNE_FROZEN_STORE", &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line == "claimed"));
    signal("-STOP", child.id());

    let (mut taken, begin) = (0, Instant::now());
    while taken < ITEMS && begin.elapsed() < Duration::from_secs(30) {
        match runtime.block_on(store.claim(request("awake"))).unwrap() {
            Some(claimed) => {
                let (item, epoch) = (claimed.item.work.id.clone(), claimed.item.epoch);
                assert!(epoch > 1, "{item} was given out while its lease ran");
                runtime.block_on(store.complete(Completion::new(&claimed, result("awake")))).unwrap();
                acknowledged.push(Acknowledged::Completed { item, epoch, token: "awake".into() });
                taken += 1;
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    assert_eq!(taken, ITEMS, "what a stopped process held comes back when its leases end");

    signal("-CONT", child.id());
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let said: Vec<String> = lines.filter(|line| line.contains(" i-")).collect();
    child.wait().unwrap();
    assert_eq!(said.len(), ITEMS);
    assert!(said.iter().all(|line| line.starts_with("fenced ")), "{said:?}");
    for number in 0..ITEMS {
        let snapshot = runtime.block_on(store.item(&format!("i-{number}"))).unwrap().unwrap();
        assert_eq!(snapshot.item.state, ItemState::Done);
        assert_eq!(snapshot.result.unwrap().text("token"), Some("awake"));
    }
    drop(store);
    let wrong = runtime.block_on(check(&path, &acknowledged));
    assert!(wrong.is_empty(), "{wrong:?}");
}
