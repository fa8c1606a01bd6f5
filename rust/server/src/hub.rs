//! The one reader of the store's events, for all who look through the window.
//!
//! A task follows the store and folds what was committed into the picture ([`StorePicture`]) and the sums ([`StatsFold`]).
//! The newest events are kept as frames, made once and shared; who is further behind reads the store. So what a client costs
//! here does not grow with how slow it is.

use bytes::Bytes;
use mnemosyne_core::{Event, Picture, Problem, RunState, StatsFold, StorePicture};
use mnemosyne_runtime::operate::{Owner, owner, visible_state};
use mnemosyne_runtime::{AgentView, Live, view_of};
use mnemosyne_store::{EventQuery, QueueCounts, Store};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Other processes' commits are looked for so often, as everywhere.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Events that are read at once by the follower.
const PAGE: u32 = 1_000;
/// Events that a client who is behind reads at once: a hundred such clients hold a few megabytes.
const CLIENT_PAGE: u32 = 64;
/// Frames that are kept.
const KEPT_FRAMES: usize = 2_048;

/// One event, ready to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) sequence: u64,
    pub(crate) bytes: Bytes,
}

impl Frame {
    fn of(event: &Event) -> Self {
        // Cannot fail: an event is text and numbers.
        let data = serde_json::to_string(event).unwrap_or_default();
        Self { sequence: event.sequence, bytes: format!("id: {}\ndata: {data}\n\n", event.sequence).into() }
    }
}

/// What everybody sees.
pub(crate) struct Hub {
    store: Arc<dyn Store>,
    inner: Mutex<Inner>,
    /// Sequence of the newest event that was read; moves after the picture has it.
    head: watch::Sender<u64>,
    /// Whether the history was read once.
    ready: watch::Sender<bool>,
    /// Told when the window closes.
    closed: watch::Sender<bool>,
}

#[derive(Default)]
struct Inner {
    picture: StorePicture,
    stats: StatsFold,
    frames: VecDeque<Frame>,
    horizon: u64,
    /// Why the store cannot be read now.
    trouble: Option<Problem>,
}

/// The picture and what can be seen now.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Snapshot {
    /// Of the newest event in the picture.
    pub(crate) sequence: u64,
    /// By the store's clock: UTC, RFC 3339.
    pub(crate) at: String,
    /// The fold of the events up to there.
    pub(crate) picture: StorePicture,
    /// Laid over it.
    pub(crate) live: Overlay,
}

/// What is no event.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Overlay {
    /// By boot: the processes that live, and those that died over a run.
    pub(crate) boots: BTreeMap<String, BootView>,
    /// By id: the state that is shown.
    pub(crate) runs: BTreeMap<String, RunState>,
    /// Items by state.
    pub(crate) queue: QueueCounts,
    /// Why the store cannot be read now; the picture is older then.
    pub(crate) trouble: Option<Problem>,
}

/// One process.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct BootView {
    #[serde(flatten)]
    pub(crate) owner: Owner,
    /// As `mnemosyne agents` shows them.
    pub(crate) agents: Vec<AgentView>,
}

impl Hub {
    pub(crate) fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            store,
            inner: Mutex::default(),
            head: watch::Sender::new(0),
            ready: watch::Sender::new(false),
            closed: watch::Sender::new(false),
        })
    }

    pub(crate) fn store(&self) -> &dyn Store {
        self.store.as_ref()
    }

    /// Follows the store until the window closes.
    pub(crate) async fn follow(self: Arc<Self>) {
        let mut changed = self.store.changed();
        loop {
            changed.mark_unchanged();
            let trouble = self.catch_up().await.err();
            if trouble.is_none() {
                self.ready.send_replace(true);
            }
            self.inner().trouble = trouble;
            let quiet = tokio::select! {
                () = self.closed() => return,
                _ = changed.changed() => false,
                () = tokio::time::sleep(LOOK_AGAIN) => true,
            };
            if quiet && let Err(problem) = self.store.poll_foreign().await {
                self.inner().trouble = Some(problem);
            }
        }
    }

    async fn catch_up(&self) -> Result<(), Problem> {
        self.look_at_horizon().await?;
        loop {
            let (since, follows) = (self.inner().picture.sequence, *self.ready.borrow());
            let events = self.store.events(EventQuery { since, limit: PAGE, ..EventQuery::default() }).await?;
            let Some(last) = events.last().map(|event| event.sequence) else { return Ok(()) };
            // What is history already is read from the store by whoever asks for it.
            let frames: Vec<Frame> = if follows { events.iter().map(Frame::of).collect() } else { Vec::new() };
            {
                let mut inner = self.inner();
                for event in &events {
                    inner.picture.apply(event);
                    inner.stats.add(event);
                }
                inner.frames.extend(frames);
                let surplus = inner.frames.len().saturating_sub(KEPT_FRAMES);
                inner.frames.drain(..surplus);
            }
            self.head.send_replace(last);
        }
    }

    /// Where history was forgotten meanwhile, the picture is made anew, so that it is the one that others have.
    async fn look_at_horizon(&self) -> Result<(), Problem> {
        let horizon = self.store.horizon().await?;
        let mut inner = self.inner();
        if inner.horizon != horizon {
            *inner = Inner { horizon, ..Inner::default() };
        }
        Ok(())
    }

    /// Waits until the history was read once.
    pub(crate) async fn ready(&self) {
        // Cannot fail: the sender is ours.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// Moves with each event.
    pub(crate) fn head(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }

    /// Up to where there may be gaps.
    pub(crate) fn horizon(&self) -> u64 {
        self.inner().horizon
    }

    /// Whether the store has this event.
    pub(crate) async fn has(&self, sequence: u64) -> Result<bool, Problem> {
        let query = EventQuery { since: sequence.saturating_sub(1), limit: 1, ..EventQuery::default() };
        Ok(self.store.events(query).await?.first().is_some_and(|event| event.sequence == sequence))
    }

    /// Waits until the window closes.
    pub(crate) async fn closed(&self) {
        // Cannot fail: the sender is ours.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// Whether it has.
    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Ends the follower and all streams.
    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// The sums so far.
    pub(crate) fn with_stats<T>(&self, read: impl FnOnce(&StatsFold) -> T) -> T {
        read(&self.inner().stats)
    }

    /// The next frames after a sequence; none where there are none yet.
    pub(crate) async fn after(&self, cursor: u64) -> Result<Vec<Frame>, Problem> {
        {
            let inner = self.inner();
            if inner.frames.front().is_some_and(|first| first.sequence <= cursor + 1) {
                let at = inner.frames.partition_point(|frame| frame.sequence <= cursor);
                return Ok(inner.frames.range(at..).take(CLIENT_PAGE as usize).cloned().collect());
            }
        }
        let query = EventQuery { since: cursor, limit: CLIENT_PAGE, ..EventQuery::default() };
        Ok(self.store.events(query).await?.iter().map(Frame::of).collect())
    }

    /// The picture, with what can be seen now.
    pub(crate) async fn snapshot(&self) -> Result<Snapshot, Problem> {
        self.ready().await;
        let (picture, trouble) = {
            let inner = self.inner();
            (inner.picture.clone(), inner.trouble.clone())
        };
        let (mut picture, mut live) = (picture, Overlay { trouble, ..Overlay::default() });
        for (boot, agents) in &picture.boots {
            let seen = self.see(boot, agents).await?;
            let mourned =
                |run: &mnemosyne_core::RunPicture| run.boot.as_ref() == Some(boot) && !run.state.is_terminal();
            if seen.owner.alive || picture.runs.values().any(mourned) {
                live.boots.insert(boot.clone(), seen);
            }
        }
        // A dead boot says nothing more, so whoever goes on from here misses nothing of it.
        picture.boots.retain(|boot, _| live.boots.contains_key(boot));
        self.forget_dead(&picture);
        for (id, run) in &picture.runs {
            live.runs.insert(id.clone(), self.state_of(id, run.state, run.boot.as_deref(), &live).await?);
        }
        let living: Vec<&str> =
            live.boots.iter().filter(|(_, seen)| seen.owner.alive).map(|(boot, _)| boot.as_str()).collect();
        live.queue = self.store.queue_of(&living).await?;
        let at = mnemosyne_store::timestamp(self.store.now());
        Ok(Snapshot { sequence: picture.sequence, at, picture, live })
    }

    async fn see(&self, boot: &str, agents: &Picture) -> Result<BootView, Problem> {
        let owner = owner(self.store(), Some(boot)).await?;
        let claims = if owner.alive { self.store.under_way(boot).await? } else { Vec::new() };
        let agents = view_of(agents, &Live { alive: owner.alive, claims, now: self.store.now() });
        Ok(BootView { owner, agents })
    }

    /// What its events left it in, unless its process is gone; `waiting` is known to the store only.
    async fn state_of(
        &self,
        id: &str,
        told: RunState,
        boot: Option<&str>,
        live: &Overlay,
    ) -> Result<RunState, Problem> {
        if told != RunState::Running && told != RunState::Paused {
            return Ok(told);
        }
        let known = boot.and_then(|boot| live.boots.get(boot)).map(|seen| seen.owner.clone());
        let seen = match known {
            Some(seen) => seen,
            None => owner(self.store(), boot).await?,
        };
        let Some(snapshot) = self.store.run(id).await? else { return Ok(told) };
        Ok(visible_state(&snapshot.run, &seen))
    }

    /// Boots that are not shown are not kept either.
    fn forget_dead(&self, shown: &StorePicture) {
        let mut inner = self.inner();
        if inner.picture.sequence == shown.sequence && inner.picture.boots.len() > shown.boots.len() {
            inner.picture.boots.retain(|boot, _| shown.boots.contains_key(boot));
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
