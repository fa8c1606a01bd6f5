//! What our crates log, on its way to Python's `logging`, in a process that Python started. (A Rust program has a tracing
//! subscriber of its own, and gets the same events there.)
//!
//! Whoever logs only appends to a bounded list; what does not fit is counted and said. Every 10 ms at most one task sorts
//! what has come and sends it through a loop's mailbox as one message: no log call ever attaches, and none waits.

use crate::loop_thread::living;
use crate::port::Message;
use crate::sync::locked;
use mnemosyne_core::EventKind;
use mnemosyne_store::{EventQuery, Store};
use serde::Deserialize;
use std::borrow::Cow;
use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Lines that wait at a time.
const LIMIT: usize = 2_048;
const EVERY: Duration = Duration::from_millis(10);
/// For the last events of a process.
const PATIENCE: Duration = Duration::from_secs(1);

static WAITING: Mutex<Waiting> = Mutex::new(Waiting { lines: Vec::new(), dropped: 0, sending: false });

struct Waiting {
    lines: Vec<Line>,
    dropped: u64,
    /// A task is on its way to send them.
    sending: bool,
}

/// One log record.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Line {
    /// Seconds since 1970.
    pub(crate) at: f64,
    /// As Python counts: 10 for debug to 40 for error.
    pub(crate) level: u8,
    pub(crate) logger: Cow<'static, str>,
    pub(crate) text: String,
    /// What it is about; see [`ABOUT`].
    pub(crate) about: Vec<(Cow<'static, str>, String)>,
}

/// Fields that say what a line is about, as `python/mnemosyne/logging_config.py` knows them; others are part of the text.
const ABOUT: [&str; 7] = ["run", "item", "attempt", "role", "agent", "generation", "epoch"];
/// Characters of an event's data in its line; the whole is in the store.
const DATA_LENGTH: usize = 500;

/// Forwards from now on, unless the process has a subscriber already.
pub(crate) fn install(runtime: &Handle) {
    let _ = tracing::subscriber::set_global_default(Forwarder { runtime: runtime.clone() });
}

struct Forwarder {
    runtime: Handle,
}

impl Subscriber for Forwarder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::INFO && metadata.target().starts_with("mnemosyne")
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn event(&self, event: &Event<'_>) {
        let mut said = Said::default();
        event.record(&mut said);
        let level = match *event.metadata().level() {
            Level::ERROR => 40,
            Level::WARN => 30,
            Level::INFO => 20,
            Level::DEBUG | Level::TRACE => 10,
        };
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let at = said.at.unwrap_or_else(now);
        let line = Line { at, level, logger: event.metadata().target().into(), text: said.text, about: said.about };
        if keep(line) {
            self.runtime.spawn(async {
                tokio::time::sleep(EVERY).await;
                send();
            });
        }
    }

    // Spans are not forwarded.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Whether somebody has to be sent for it.
fn keep(line: Line) -> bool {
    let mut waiting = locked(&WAITING);
    if waiting.lines.len() >= LIMIT {
        waiting.dropped += 1;
    } else {
        waiting.lines.push(line);
    }
    !std::mem::replace(&mut waiting.sending, true)
}

/// Sends what waits to the newest loop; without one it waits on, for the next line.
fn send() {
    let Some(shared) = living().pop() else {
        locked(&WAITING).sending = false;
        return;
    };
    let (mut lines, dropped) = {
        let mut waiting = locked(&WAITING);
        waiting.sending = false;
        (std::mem::take(&mut waiting.lines), std::mem::take(&mut waiting.dropped))
    };
    lines.sort_by(|one, other| one.at.total_cmp(&other.at)); // threads append in the order in which they got the lock
    if dropped > 0 {
        let at = lines.last().map_or(0.0, |line| line.at);
        let text = format!("{dropped} log records were dropped: they came faster than they could be handed over");
        lines.push(Line { at, level: 30, logger: "mnemosyne.bridge".into(), text, about: vec![] });
    }
    shared.channel.push(Message::Log(lines));
}

/// The message, then the fields as `name=value`; apart from them what the line is about.
#[derive(Default)]
struct Said {
    /// When it happened, where that is not now.
    at: Option<f64>,
    text: String,
    about: Vec<(Cow<'static, str>, String)>,
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        match ABOUT.iter().find(|name| **name == field.name()) {
            Some(name) => self.about.push(((*name).into(), value.to_owned())),
            None => self.record_debug(field, &value),
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        match field.name() {
            "at" => self.at = Some(value),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if let Some(name) = ABOUT.iter().find(|name| **name == field.name()) {
            self.about.push(((*name).into(), format!("{value:?}")));
            return;
        }
        // Writing to a String does not fail.
        let _ = match field.name() {
            "message" => write!(self.text, "{value:?}"),
            name => write!(self.text, " {name}={value:?}"),
        };
    }
}

/// Logs every event of a store from now on, with what it is about, until the store is closed. One place instead of a log
/// call beside each event: whatever is stored is in the log, in the order in which it was committed, and nothing else.
pub(crate) fn follow_events(store: &Arc<dyn Store>) -> Followed {
    let (weak, mut changed) = (Arc::downgrade(store), store.changed());
    let mut since = *changed.borrow_and_update();
    let (said, followed) = watch::channel(since);
    tokio::spawn(async move {
        while changed.changed().await.is_ok() {
            let Some(store) = weak.upgrade() else { return };
            let query = EventQuery { since, limit: 1_000, ..EventQuery::default() };
            // The next change comes with what was missed.
            for event in store.events(query).await.unwrap_or_default() {
                since = event.sequence;
                tell(&event);
            }
            said.send_replace(since);
        }
    });
    Followed(followed)
}

/// How far the log has come in the events of a store.
#[derive(Clone)]
pub(crate) struct Followed(watch::Receiver<u64>);

impl Followed {
    /// A process that ends must not take its last events with it: what is stored by now is on its way to the log
    /// afterwards. A store that answers no more is not waited for.
    pub(crate) async fn catch_up(&mut self, store: &dyn Store) {
        let newest = *store.changed().borrow();
        let _ = tokio::time::timeout(PATIENCE, self.0.wait_for(|said| *said >= newest)).await;
        send();
    }
}

fn tell(event: &mnemosyne_core::Event) {
    let new = &event.event;
    let data = if new.data.is_empty() { String::new() } else { serde_json::to_string(&new.data).unwrap_or_default() };
    let kind = serde_json::json!(new.kind);
    let data: String = data.chars().take(DATA_LENGTH).collect();
    // A claim comes before all that its agent says of it, and may be read after that: it has the time of its commit. What
    // else is stored follows what was said, perhaps in the same millisecond, and has the time at which it is read.
    let is_claim = matches!(new.kind, EventKind::WorkStarted | EventKind::AgentStartedWithTask);
    let at = event.at.parse::<jiff::Timestamp>().ok().filter(|_| is_claim).map(|at| at.as_millisecond() as f64 / 1e3);
    tracing::info!(
        target: "mnemosyne.events",
        at,
        run = new.run.as_deref(),
        item = new.item.as_deref(),
        attempt = new.attempt,
        role = new.role.map(|role| role.as_str()),
        agent = new.agent.as_deref(),
        generation = new.generation,
        epoch = new.epoch,
        "{} {data}",
        kind.as_str().unwrap_or_default(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_lines_than_fit_are_counted_and_one_is_sent_for_all_of_them() {
        let line =
            || Line { at: 1.0, level: 20, logger: "mnemosyne.test".into(), text: "said".to_owned(), about: vec![] };
        let sent_for = (0..LIMIT + 10).filter(|_| keep(line())).count();
        let waiting = locked(&WAITING);
        assert_eq!((sent_for, waiting.lines.len(), waiting.dropped), (1, LIMIT, 10));
    }
}
