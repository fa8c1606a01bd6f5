//! The tree's own events (of agents and roles), written in the order in which they happened, by one task, in batches.
//! Actors announce and go on: they never wait for the store (**SUP-1**). Events that belong to the end of a claim do not
//! come here: they ride in its commit (**DUR-2**).

use crate::record::Retry;
use mnemosyne_core::{NewEvent, ProblemKind};
use mnemosyne_store::Store;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

enum Entry {
    Event(Box<NewEvent>),
    /// Answered once all before it is committed.
    Flush(oneshot::Sender<()>),
}

/// Where events are announced.
pub(crate) struct EventLog {
    sender: mpsc::UnboundedSender<Entry>,
}

impl EventLog {
    /// The writer ends when the log is dropped.
    pub(crate) fn start(store: Arc<dyn Store>) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(write(store, receiver));
        Self { sender }
    }

    pub(crate) fn announce(&self, event: NewEvent) {
        // Fails only when the runtime is going down, and then there is nobody left to tell.
        let _ = self.sender.send(Entry::Event(Box::new(event)));
    }

    /// Waits until everything announced so far is committed, at most `patience`.
    pub(crate) async fn flush(&self, patience: Duration) {
        let (done, wait) = oneshot::channel();
        if self.sender.send(Entry::Flush(done)).is_ok() {
            let _ = tokio::time::timeout(patience, wait).await;
        }
    }
}

async fn write(store: Arc<dyn Store>, mut receiver: mpsc::UnboundedReceiver<Entry>) {
    const BATCH: usize = 64;
    let mut entries = Vec::with_capacity(BATCH);
    while receiver.recv_many(&mut entries, BATCH).await > 0 {
        let mut events = Vec::new();
        for entry in entries.drain(..) {
            match entry {
                Entry::Event(event) => events.push(*event),
                Entry::Flush(done) => {
                    append(&store, std::mem::take(&mut events)).await;
                    let _ = done.send(());
                }
            }
        }
        append(&store, events).await;
    }
}

/// Until the store takes them; what it refuses for another reason than being unavailable it would refuse for ever.
async fn append(store: &Arc<dyn Store>, events: Vec<NewEvent>) {
    let mut retry = Retry::default();
    while !events.is_empty() {
        match store.append_events(events.clone()).await {
            Err(problem) if problem.kind == ProblemKind::Store => retry.wait().await,
            _ => return,
        }
    }
}
