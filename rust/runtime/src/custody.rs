//! The claims that an agent holds. They live here, outside every actor and mailbox, so that whatever dies, each claim is
//! still known and is ended by exactly one party.
//!
//! The right to end a claim is a [`Settlement`]: [`Custody::take`] gives it once. A settlement that is dropped without
//! [`Settlement::settled`] (its task panicked, or was aborted) leaves the claim as an orphan, which the role
//! supervisor's next tick takes and releases. **FENCE-2**: so does a claim of a generation that is over.

use crate::host::WorkKey;
use crate::record::locked;
use mnemosyne_store::Claimed;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Leases are renewed this often: a third of their length.
const RENEW_EVERY_MS: u64 = 10_000;
/// A renewal that the store could not take is tried again this much later.
const RENEW_AGAIN_MS: u64 = 2_000;

/// What has to be known to end a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) item: String,
    pub(crate) epoch: u64,
    pub(crate) run: Option<String>,
    /// Of the agent that claimed it.
    pub(crate) generation: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// The agent works on it, or will.
    Working,
    /// A settlement is out.
    Settling,
    /// Its settlement was dropped.
    Orphaned,
}

struct Entry {
    claim: Claim,
    hold: Hold,
    /// Monotonic milliseconds.
    renew_at: u64,
}

/// The claims of one agent, of all its generations.
#[derive(Default)]
pub(crate) struct Custody {
    entries: Mutex<BTreeMap<WorkKey, Entry>>,
}

impl Custody {
    pub(crate) fn hold(&self, key: WorkKey, claimed: &Claimed, generation: u64, now: u64) {
        let claim = Claim {
            item: claimed.item.work.id.clone(),
            epoch: claimed.item.epoch,
            run: claimed.item.run.clone(),
            generation,
        };
        let entry = Entry { claim, hold: Hold::Working, renew_at: now + RENEW_EVERY_MS };
        locked(&self.entries).insert(key, entry);
    }

    /// The right to end this claim, if nobody has it.
    pub(crate) fn take(self: &Arc<Self>, key: WorkKey) -> Option<Settlement> {
        let mut entries = locked(&self.entries);
        let entry = entries.get_mut(&key).filter(|entry| entry.hold != Hold::Settling)?;
        entry.hold = Hold::Settling;
        Some(Settlement { custody: self.clone(), key, claim: entry.claim.clone(), settled: false })
    }

    /// The claim of an item, if the agent works on it.
    pub(crate) fn find(&self, item: &str) -> Option<WorkKey> {
        let entries = locked(&self.entries);
        let working = entries.iter().filter(|(_, entry)| entry.hold == Hold::Working);
        working.filter(|(_, entry)| entry.claim.item == item).map(|(key, _)| *key).next()
    }

    /// Whether no claim is left to be ended.
    pub(crate) fn is_empty(&self) -> bool {
        locked(&self.entries).is_empty()
    }

    /// Takes what nobody works on any more: orphans, and claims up to generation `over`.
    pub(crate) fn sweep(self: &Arc<Self>, over: u64) -> Vec<Settlement> {
        let lost: Vec<WorkKey> = locked(&self.entries)
            .iter()
            .filter(|(_, entry)| match entry.hold {
                Hold::Working => entry.claim.generation <= over,
                Hold::Settling => false,
                Hold::Orphaned => true,
            })
            .map(|(key, _)| *key)
            .collect();
        lost.into_iter().filter_map(|key| self.take(key)).collect()
    }

    /// Claims whose lease should be renewed now, claims that are being settled included: a slow store must not cost the
    /// lease of the result that waits for it.
    pub(crate) fn due(&self, now: u64) -> Vec<(WorkKey, Claim)> {
        let mut entries = locked(&self.entries);
        let due = entries.iter_mut().filter(|(_, entry)| entry.renew_at <= now);
        due.map(|(key, entry)| {
            entry.renew_at = now + RENEW_EVERY_MS;
            (*key, entry.claim.clone())
        })
        .collect()
    }

    /// A renewal did not reach the store.
    pub(crate) fn renew_soon(&self, key: WorkKey, now: u64) {
        if let Some(entry) = locked(&self.entries).get_mut(&key) {
            entry.renew_at = now + RENEW_AGAIN_MS;
        }
    }
}

/// The right to end one claim.
pub(crate) struct Settlement {
    custody: Arc<Custody>,
    key: WorkKey,
    pub(crate) claim: Claim,
    settled: bool,
}

impl Settlement {
    /// The store knows the end of the claim, or the claim was over before.
    pub(crate) fn settled(mut self) {
        self.settled = true;
        locked(&self.custody.entries).remove(&self.key);
    }
}

impl Drop for Settlement {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        if let Some(entry) = locked(&self.custody.entries).get_mut(&self.key) {
            entry.hold = Hold::Orphaned;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn custody_with(key: u64, generation: u64) -> Arc<Custody> {
        let custody = Arc::new(Custody::default());
        let claim = Claim { item: "i".into(), epoch: 1, run: None, generation };
        locked(&custody.entries).insert(WorkKey(key), Entry { claim, hold: Hold::Working, renew_at: 10 });
        custody
    }

    #[test]
    fn the_right_to_end_a_claim_is_given_once() {
        let custody = custody_with(1, 1);
        let first = custody.take(WorkKey(1)).unwrap();
        assert!(custody.take(WorkKey(1)).is_none());
        assert!(custody.sweep(9).is_empty());
        first.settled();
        assert!(custody.take(WorkKey(1)).is_none());
    }

    #[test]
    fn a_settlement_that_was_dropped_leaves_an_orphan_that_the_sweep_finds() {
        let custody = custody_with(1, 5);
        drop(custody.take(WorkKey(1)));
        let found = custody.sweep(0);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].claim.item, "i");
    }

    #[test]
    fn fence_2_claims_of_a_generation_that_is_over_are_swept_and_later_ones_are_not() {
        let custody = custody_with(1, 2);
        assert!(custody.sweep(1).is_empty());
        assert_eq!(custody.sweep(2).len(), 1);
    }

    #[test]
    fn a_lease_is_due_after_ten_seconds_and_not_twice() {
        let custody = custody_with(1, 1);
        assert!(custody.due(9).is_empty());
        assert_eq!(custody.due(10).len(), 1);
        assert!(custody.due(11).is_empty());
        custody.renew_soon(WorkKey(1), 11);
        assert_eq!(custody.due(11 + RENEW_AGAIN_MS).len(), 1);
    }
}
