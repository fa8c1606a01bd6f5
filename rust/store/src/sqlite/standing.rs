//! Agents with room that wait for work are served inside the transaction that makes work claimable.
//!
//! Whoever waits for a signal and then asks pays for a second commit and for the way there and back. A standing claim rides
//! in the commit of the submission (or of the result, or of whatever else made an item ready): one sync for both. It is a
//! claim like any other, by the same rules and with the same events.

use crate::types::{Claimed, Stander};
use mnemosyne_core::AgentRole;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OwnedSemaphorePermit;

/// All that stand; shared by a handle and its writer.
#[derive(Clone, Default)]
pub(crate) struct Standing(Arc<Mutex<All>>);

#[derive(Default)]
struct All {
    standers: Vec<Arc<dyn Stander>>,
    /// How many there were, at the last look, that still wait. Those that are over are looked for when there are twice as
    /// many: a thousand agents that start are not each asked a thousand times.
    known: usize,
}

/// A claim that is given once it is committed.
pub(crate) struct Given {
    to: Arc<dyn Stander>,
    claimed: Claimed,
    place: OwnedSemaphorePermit,
}

impl Given {
    pub(crate) fn give(self) {
        self.to.take(self.claimed, self.place);
    }
}

/// What one claim inside the transaction came to.
pub(crate) enum Found {
    Item(Box<Claimed>),
    Nothing,
    /// It failed; whoever asks for work is told why.
    Trouble,
}

impl Standing {
    pub(crate) fn stand(&self, stander: Arc<dyn Stander>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.standers.push(stander);
        if all.standers.len() > 2 * all.known {
            all.standers.retain(|stander| !stander.is_over());
            all.known = all.standers.len();
        }
    }

    /// Claims for those of one role, in turns, until there is no item or no room any more; whether it was the items that
    /// ended.
    pub(crate) fn serve<E>(
        &self,
        role: AgentRole,
        given: &mut Vec<Given>,
        mut claim: impl FnMut(&dyn Stander) -> Result<Found, E>,
    ) -> Result<bool, E> {
        let all = &mut self.0.lock().unwrap_or_else(PoisonError::into_inner).standers;
        if all.len() > 1 {
            all.rotate_left(1); // nobody is always the first
        }
        let of_role = |stander: &&Arc<dyn Stander>| stander.request().role == role && !stander.is_over();
        let mut waiting: Vec<&Arc<dyn Stander>> = all.iter().filter(of_role).collect();
        while !waiting.is_empty() {
            let mut still = Vec::with_capacity(waiting.len());
            for stander in waiting {
                let Some(place) = stander.room() else { continue };
                match claim(stander.as_ref())? {
                    Found::Item(claimed) => given.push(Given { to: Arc::clone(stander), claimed: *claimed, place }),
                    Found::Nothing => return Ok(true),
                    Found::Trouble => return Ok(false),
                }
                still.push(stander);
            }
            waiting = still;
        }
        Ok(false)
    }
}
