//! Who waits for the end of which item: told by name, so that a commit wakes those that it concerns and nobody else.

use crate::types::ItemEnd;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// Shared by a handle and what commits for it.
#[derive(Clone, Default)]
pub(crate) struct Waiting(Arc<Mutex<HashMap<String, Vec<Teller>>>>);

type Teller = oneshot::Sender<Option<ItemEnd>>;

impl Waiting {
    pub(crate) fn wait_for(&self, item: &str) -> oneshot::Receiver<Option<ItemEnd>> {
        let (tell, told) = oneshot::channel();
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_item = waiting.entry(item.to_owned()).or_default();
        of_item.retain(|waiter| !waiter.is_closed());
        of_item.push(tell);
        told
    }

    /// Whether somebody waits for it.
    pub(crate) fn is_awaited(&self, item: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(item)
    }

    /// These items ended, and it is committed.
    pub(crate) fn tell(&self, ended: Vec<(String, Option<ItemEnd>)>) {
        if ended.is_empty() {
            return;
        }
        let tellers: Vec<_> = {
            let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            ended.into_iter().filter_map(|(item, end)| Some((waiting.remove(&item)?, end))).collect()
        };
        // Without the lock: whoever is told may go on at once, on this thread, and wait for something else.
        for (waiters, end) in tellers {
            for waiter in waiters {
                let _ = waiter.send(end.clone()); // whoever went away needs no answer
            }
        }
    }

    /// Items that somebody waits for.
    pub(crate) fn items(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}
