//! Tasks beside the actors: store calls, host starts and stops. They are counted, so that a shutdown can wait for them
//! and a test can show that none leaks (**SUP-1**: whatever takes time happens here, never in an actor's `handle`).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};

/// Spawns tasks from any thread, also from one that tokio does not know (a host's loop thread).
pub(crate) struct Background {
    runtime: Handle,
    live: watch::Sender<usize>,
}

/// Counts its task as live until the task ends, returns, panics or is aborted.
struct Live(Arc<Background>);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.live.send_if_modified(|count| {
            *count -= 1;
            *count == 0 // nobody waits for another number
        });
    }
}

impl Background {
    pub(crate) fn new(runtime: Handle) -> Arc<Self> {
        Arc::new(Self { runtime, live: watch::Sender::new(0) })
    }

    pub(crate) fn spawn<T>(self: &Arc<Self>, future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T>
    where
        T: Send + 'static,
    {
        self.live.send_if_modified(|count| {
            *count += 1;
            false
        });
        let live = Live(self.clone());
        self.runtime.spawn(async move {
            let _live = live;
            future.await
        })
    }

    /// Runs `then` after `delay`, unless the timer is dropped before.
    pub(crate) fn after(self: &Arc<Self>, delay: Duration, then: impl FnOnce() + Send + 'static) -> Timer {
        let task = self.spawn(async move {
            tokio::time::sleep(delay).await;
            then();
        });
        Timer(task.abort_handle())
    }

    /// Runs `future` until it ends or what is returned is dropped.
    pub(crate) fn watch(self: &Arc<Self>, future: impl Future<Output = ()> + Send + 'static) -> Timer {
        Timer(self.spawn(future).abort_handle())
    }

    /// Waits until no task is left, at most `patience`; says whether none is.
    pub(crate) async fn idle(&self, patience: Duration) -> bool {
        let mut live = self.live.subscribe();
        tokio::time::timeout(patience, live.wait_for(|count| *count == 0)).await.is_ok()
    }
}

/// A timer, or a watch, that ends with its owner.
pub(crate) struct Timer(AbortHandle);

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}
