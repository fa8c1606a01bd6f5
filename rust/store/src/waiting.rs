//! Who waits for the end of which item: told by name, so that a commit wakes those that it concerns and nobody else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// Shared by a handle and what commits for it.
#[derive(Clone, Default)]
pub(crate) struct Waiting(Arc<Mutex<HashMap<String, Vec<oneshot::Sender<()>>>>>);

impl Waiting {
    pub(crate) fn wait_for(&self, item: &str) -> oneshot::Receiver<()> {
        let (tell, told) = oneshot::channel();
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_item = waiting.entry(item.to_owned()).or_default();
        of_item.retain(|waiter| !waiter.is_closed());
        of_item.push(tell);
        told
    }

    /// These items ended, and it is committed.
    pub(crate) fn tell(&self, ended: &[String]) {
        if ended.is_empty() {
            return;
        }
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for waiter in ended.iter().filter_map(|item| waiting.remove(item)).flatten() {
            let _ = waiter.send(()); // whoever went away needs no answer
        }
    }

    /// Items that somebody waits for.
    pub(crate) fn items(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}
