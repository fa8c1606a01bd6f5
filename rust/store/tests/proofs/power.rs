//! Power cuts: the load of the kill test on a disk that forgets what was not synced (`disk`), cut at random moments. What
//! was acknowledged before the cut must be in what is left of the files, and they must open.

use crate::chaos::work;
use crate::checker::{Acknowledged, check};
use crate::disk::{self, Disk, Happened};
use crate::random::{Random, seed};
use mnemosyne_store::SqliteStore;
use std::sync::{Arc, OnceLock};

/// The store is closed and opened between the two halves.
const STEPS_PER_WORKER: u64 = 150;

/// One recorded run, for all tests here.
fn recording() -> &'static [Happened] {
    static RECORDING: OnceLock<Vec<Happened>> = OnceLock::new();
    RECORDING.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        disk::record(folder.path());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
        for half in 0..2 {
            runtime.block_on(async {
                let store = Arc::new(SqliteStore::open(&folder.path().join("store.db")).unwrap());
                work(store, seed().wrapping_add(half), Arc::new(disk::say), Some(STEPS_PER_WORKER)).await;
            });
        }
        disk::stop()
    })
}

/// Cuts the power at so many moments; what was wrong after each.
fn cut(points: u64, seed: u64, lies: bool) -> Vec<String> {
    let happened = recording();
    let mut random = Random::new(seed);
    let mut moments: Vec<u64> = (0..points).map(|_| random.below(happened.len() as u64)).collect();
    moments.sort_unstable();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (mut disk, mut said, mut wrong) = (Disk::new(lies), Vec::<Acknowledged>::new(), Vec::new());
    let mut moments = moments.into_iter().peekable();
    for (number, next) in (0..).zip(happened) {
        disk.follow(next);
        if let Happened::Said(acknowledged) = next {
            said.push(acknowledged.clone());
        }
        while moments.next_if_eq(&number).is_some() {
            let folder = crate::memory_folder();
            disk.lose_power(&mut random, folder.path());
            let found = runtime.block_on(check(&folder.path().join("store.db"), &said));
            wrong.extend(found.into_iter().map(|line| format!("moment {number} of {}: {line}", happened.len())));
        }
    }
    wrong
}

#[test]
fn dur_1_a_power_cut_at_any_moment_loses_nothing_that_was_acknowledged() {
    let (points, seed) = (crate::length("MNEMOSYNE_STORE_POWER_CUTS", 25), seed());
    let wrong = cut(points, seed, false);
    assert!(wrong.is_empty(), "MNEMOSYNE_SEED={seed}: {}", wrong.join("\n"));
    let syncs = recording().iter().filter(|happened| matches!(happened, Happened::Sync { .. })).count();
    let writes = recording().iter().filter(|happened| matches!(happened, Happened::Write { .. })).count();
    let said = recording().iter().filter(|happened| matches!(happened, Happened::Said(_))).count();
    println!("{points} power cuts in {writes} writes, {syncs} syncs and {said} acknowledgements, seed {seed}");
    assert!(said > 100 && syncs > 50, "the load did nothing");
}

#[test]
fn on_a_disk_that_lies_about_syncs_the_same_cuts_lose_acknowledged_work() {
    assert!(!cut(10, seed(), true).is_empty(), "a store that never syncs would pass");
}
