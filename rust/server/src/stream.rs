//! `/events`: server-sent events. `snapshot` first, then every event with its sequence as id.
//!
//! With `Last-Event-ID` or `?since=` there is no snapshot but every event after that one, so a client that was cut off sees
//! each event once. Where history was forgotten above it, it is told so (`gap`) and gets a snapshot in its place.
//!
//! A client is a cursor. What it has not taken stays in the store, so nothing is kept for it; one that took nothing for
//! [`PATIENCE`] is told where it stands (`cut`) and let go, and goes on from there when it comes back.

use crate::answer::{Refusal, unreadable};
use crate::api::Window;
use crate::hub::Hub;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use mnemosyne_core::error::codes;
use mnemosyne_core::{Problem, ProblemKind};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;

/// Milliseconds after which a browser comes back.
const RETRY: u32 = 1_000;
/// A sign of life for proxies and for whoever counts seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// For so long a client may take nothing of what there is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// How a client wants its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// After which one; `None`: a snapshot, and what follows it.
    pub(crate) since: Option<u64>,
    /// Whether it stays for what is to come.
    pub(crate) follow: bool,
}

impl Wanted {
    /// `Last-Event-ID` is newer than the address that a browser comes back with.
    fn read(uri: &Uri, headers: &HeaderMap) -> Result<Self, Refusal> {
        let mut wanted = Self { since: None, follow: true };
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("since", value)) => wanted.since = Some(number("since", value)?),
                Some(("follow", "true")) => wanted.follow = true,
                Some(("follow", "false")) => wanted.follow = false,
                _ => return Err(unreadable("the query takes since=SEQUENCE and follow=true or false")),
            }
        }
        if let Some(last) = headers.get("last-event-id") {
            let last = last.to_str().map_err(|_| unreadable("Last-Event-ID is no sequence"))?;
            wanted.since = Some(number("Last-Event-ID", last.trim())?);
        }
        Ok(wanted)
    }
}

fn number(what: &str, text: &str) -> Result<u64, Refusal> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u64>() {
        Ok(number) if digits && i64::try_from(number).is_ok() => Ok(number),
        _ => Err(unreadable(format!("{what} is no sequence"))),
    }
}

/// Answers with the stream.
pub(crate) async fn events(State(window): State<Window>, uri: Uri, headers: HeaderMap) -> Result<Response, Refusal> {
    let wanted = Wanted::read(&uri, &headers)?;
    let Ok(place) = Arc::clone(&window.streams).try_acquire_owned() else {
        let message = "too many clients follow the events";
        return Err(Problem::new(ProblemKind::Full, codes::TOO_MANY_STREAMS, message)
            .hint("close some of them, or ask for /events?follow=false")
            .into());
    };
    let reader = Reader::begin(Arc::clone(&window.hub), wanted, place).await?;
    let body = Body::from_stream(stream::unfold(reader, |mut reader| async move {
        let next = reader.next().await?;
        Some((Ok::<_, std::convert::Infallible>(next), reader))
    }));
    Ok(([(header::CONTENT_TYPE, "text/event-stream")], body).into_response())
}

/// One client.
pub(crate) struct Reader {
    hub: Arc<Hub>,
    /// The last event that it was given.
    cursor: u64,
    /// Where it ends, if it does not follow.
    until: Option<u64>,
    /// What comes before the next event.
    before: VecDeque<Bytes>,
    head: watch::Receiver<u64>,
    /// When something was last handed to its connection.
    given: Option<Instant>,
    over: bool,
    _place: OwnedSemaphorePermit,
}

impl Reader {
    pub(crate) async fn begin(hub: Arc<Hub>, wanted: Wanted, place: OwnedSemaphorePermit) -> Result<Self, Problem> {
        hub.ready().await;
        let head = hub.head();
        let newest = *head.borrow();
        let mut before = VecDeque::from([Bytes::from(format!("retry: {RETRY}\n\n"))]);
        let lost = match wanted.since {
            Some(since) if since < hub.horizon() => Some(since),
            // We may be behind the store, and then the client: it was given this one by the store itself, or by the window
            // of another process. What the store does not have was said by another one.
            Some(since) if since > newest && !hub.has(since).await? => Some(since),
            _ => None,
        };
        let cursor = match wanted.since {
            Some(since) if lost.is_none() => since,
            _ => {
                let snapshot = hub.snapshot().await?;
                let sequence = snapshot.sequence;
                if let Some(since) = lost {
                    let gap = json!({"from": since.saturating_add(1), "to": sequence,
                        "reason": "history was forgotten; the snapshot that follows has what became of it"});
                    before.push_back(frame("gap", None, &gap));
                }
                before.push_back(frame("snapshot", Some(sequence), &json!(snapshot)));
                sequence
            }
        };
        let until = (!wanted.follow).then(|| newest.max(cursor));
        Ok(Self { hub, cursor, until, before, head, given: None, over: false, _place: place })
    }

    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        if self.over || self.hub.is_closed() {
            return None;
        }
        if self.given.is_some_and(|given| given.elapsed() > PATIENCE) && *self.head.borrow() > self.cursor {
            return Some(self.cut("nothing was taken for too long"));
        }
        let next = match self.before.pop_front() {
            Some(frame) => Some(frame),
            None => self.next_events().await,
        };
        self.given = Some(Instant::now());
        next
    }

    async fn next_events(&mut self) -> Option<Bytes> {
        let quiet = tokio::time::sleep(KEEP_ALIVE);
        tokio::pin!(quiet);
        loop {
            self.head.mark_unchanged();
            let mut frames = match self.hub.after(self.cursor).await {
                Ok(frames) => frames,
                Err(problem) => return Some(self.cut(&problem.to_string())),
            };
            if let Some(until) = self.until {
                frames.retain(|frame| frame.sequence <= until);
                if frames.is_empty() {
                    return None;
                }
            }
            if let Some(last) = frames.last() {
                self.cursor = last.sequence;
                let mut joined = BytesMut::with_capacity(frames.iter().map(|frame| frame.bytes.len()).sum());
                frames.iter().for_each(|frame| joined.extend_from_slice(&frame.bytes));
                return Some(joined.freeze());
            }
            tokio::select! {
                () = self.hub.closed() => return None,
                _ = self.head.changed() => {}
                () = &mut quiet => return Some(Bytes::from_static(b": keep-alive\n\n")),
            }
        }
    }

    /// The last word: where to go on.
    fn cut(&mut self, reason: &str) -> Bytes {
        self.over = true;
        frame("cut", Some(self.cursor), &json!({"resume_from": self.cursor, "reason": reason}))
    }
}

fn frame(kind: &str, id: Option<u64>, data: &Value) -> Bytes {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    format!("{id}event: {kind}\ndata: {data}\n\n").into()
}
