//! Whether a store kept its word. Reads only what was acknowledged and the store; knows nothing of how the load was made.
//!
//! - **DUR-1** what was acknowledged is there, and as it was acknowledged;
//! - **DUR-3** events have no gap;
//! - **FENCE-1** no claim was given out twice, and epochs rise one by one;
//! - **ONCE-1** nothing is completed twice, and what is over has one end in the history;
//! - nothing is begun before what it depends on is done, and nothing is stuck: a drain ends every item.

use mnemosyne_core::{AgentRole, Event, EventKind, ItemState, WorkResult};
use mnemosyne_store::{ClaimRequest, Completion, EventQuery, LEASE_MS, SqliteStore, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// One answer that a client of the store got, as a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Acknowledged {
    Submitted {
        item: String,
        depends_on: Vec<String>,
    },
    Claimed {
        item: String,
        epoch: u64,
    },
    Completed {
        item: String,
        epoch: u64,
        token: String,
    },
    GivenUp {
        item: String,
    },
    Cancelled {
        item: String,
    },
    /// An error that a healthy store does not give to this load.
    Refused {
        what: String,
    },
}

impl Acknowledged {
    pub(crate) fn line(&self) -> String {
        match self {
            Self::Submitted { item, depends_on } => format!("submitted {item} {}\n", depends_on.join(",")),
            Self::Claimed { item, epoch } => format!("claimed {item} {epoch}\n"),
            Self::Completed { item, epoch, token } => format!("completed {item} {epoch} {token}\n"),
            Self::GivenUp { item } => format!("given-up {item}\n"),
            Self::Cancelled { item } => format!("cancelled {item}\n"),
            Self::Refused { what } => format!("refused {}\n", what.replace('\n', " ")),
        }
    }

    /// Nothing for a line that is none of ours: the harness of `cargo test` prints some too.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (kind, rest) = line.split_once(' ')?;
        let words: Vec<&str> = rest.split(' ').collect();
        let text = |at: usize| words.get(at).map(|word| (*word).to_owned());
        Some(match kind {
            "submitted" => Self::Submitted {
                item: text(0)?,
                depends_on: text(1)?.split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect(),
            },
            "claimed" => Self::Claimed { item: text(0)?, epoch: text(1)?.parse().ok()? },
            "completed" => Self::Completed { item: text(0)?, epoch: text(1)?.parse().ok()?, token: text(2)? },
            "given-up" => Self::GivenUp { item: text(0)? },
            "cancelled" => Self::Cancelled { item: text(0)? },
            "refused" => Self::Refused { what: rest.to_owned() },
            _ => return None,
        })
    }
}

/// Opens the store, finishes what is left, and says what is wrong; nothing if all is well.
pub(crate) async fn check(path: &Path, acknowledged: &[Acknowledged]) -> Vec<String> {
    let mut wrong = Vec::new();
    let store = match SqliteStore::open(path) {
        Ok(store) => store,
        Err(problem) => return vec![format!("the store does not open: {problem}")],
    };
    let mut acknowledged = acknowledged.to_vec();
    drain(&store, &mut acknowledged).await;
    if let Err(problem) = ask(&store, &acknowledged, &mut wrong).await {
        wrong.push(format!("the store does not answer: {problem}"));
    }
    drop(store);
    integrity(path, &mut wrong);
    wrong
}

/// Does all that can still be done, as one more client.
async fn drain(store: &SqliteStore, acknowledged: &mut Vec<Acknowledged>) {
    let request = || ClaimRequest {
        role: AgentRole::Executor,
        agent: "last".into(),
        generation: 1,
        // The load ran with leases of milliseconds; a claim of it may still have to expire.
        lease_ms: LEASE_MS,
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while std::time::Instant::now() < deadline {
        match store.claim(request()).await {
            Ok(Some(claimed)) => {
                let (item, epoch) = (claimed.item.work.id.clone(), claimed.item.epoch);
                acknowledged.push(Acknowledged::Claimed { item: item.clone(), epoch });
                let token = format!("last-{item}-{epoch}");
                match store.complete(Completion::new(&claimed, result(&token))).await {
                    Ok(()) => acknowledged.push(Acknowledged::Completed { item, epoch, token }),
                    Err(problem) => acknowledged.push(Acknowledged::Refused { what: format!("drain: {problem}") }),
                }
            }
            Ok(None) => match store.queue().await {
                Ok(queue) if queue.ready + queue.running > 0 => {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
                _ => return,
            },
            Err(problem) => {
                acknowledged.push(Acknowledged::Refused { what: format!("drain: {problem}") });
                return;
            }
        }
    }
}

/// A result that can be told from every other.
pub(crate) fn result(token: &str) -> WorkResult {
    WorkResult::success([("token".to_owned(), token.into())].into_iter().collect())
}

async fn ask(
    store: &SqliteStore,
    acknowledged: &[Acknowledged],
    wrong: &mut Vec<String>,
) -> Result<(), mnemosyne_core::Problem> {
    let events = store.events(EventQuery::default()).await?;
    let history = History::of(&events, wrong);
    let (mut claims, mut completed) = (BTreeSet::new(), BTreeSet::new());
    for word in acknowledged {
        match word {
            Acknowledged::Submitted { item, depends_on } => {
                let snapshot = match store.item(item).await {
                    Ok(Some(snapshot)) => snapshot,
                    Ok(None) => {
                        wrong.push(format!("{item} was accepted and is lost"));
                        continue;
                    }
                    Err(problem) => {
                        wrong.push(format!("{item} was accepted and cannot be read: {problem}"));
                        continue;
                    }
                };
                if !snapshot.item.state.is_terminal() {
                    wrong.push(format!("{item} is {} and nothing will end it", snapshot.item.state));
                }
                history.check_order(item, depends_on, wrong);
                history.check_end(item, snapshot.item.state, wrong);
            }
            Acknowledged::Claimed { item, epoch } => {
                if !claims.insert((item, epoch)) {
                    wrong.push(format!("claim {epoch} of {item} was given out twice"));
                }
                if !history.started.contains_key(&(item.clone(), *epoch)) {
                    wrong.push(format!("claim {epoch} of {item} is not in the history"));
                }
            }
            Acknowledged::Completed { item, epoch, token } => {
                if !completed.insert(item) {
                    wrong.push(format!("{item} was accepted as done twice (again in claim {epoch})"));
                }
                let snapshot = store.item(item).await.unwrap_or_default();
                let state = snapshot.as_ref().map(|snapshot| snapshot.item.state);
                if state != Some(ItemState::Done) {
                    wrong.push(format!("{item} was accepted as done and is {state:?}"));
                }
                let stored = snapshot.and_then(|snapshot| snapshot.result);
                if stored.as_ref().and_then(|result| result.text("token")) != Some(token.as_str()) {
                    wrong.push(format!("{item} has another result than the one that was accepted"));
                }
            }
            Acknowledged::GivenUp { item } => expect(store, item, |state| state == ItemState::Failed, wrong).await,
            Acknowledged::Cancelled { item } => expect(store, item, ItemState::is_terminal, wrong).await,
            Acknowledged::Refused { what } => wrong.push(format!("an unexpected refusal: {what}")),
        }
    }
    Ok(())
}

async fn expect(store: &SqliteStore, item: &str, wanted: impl Fn(ItemState) -> bool, wrong: &mut Vec<String>) {
    let state = store.item(item).await.unwrap_or_default().map(|snapshot| snapshot.item.state);
    if !state.is_some_and(&wanted) {
        wrong.push(format!("the end of {item} was accepted, and it is {state:?}"));
    }
}

/// What the events say.
struct History {
    /// (item, epoch) -> sequence.
    started: BTreeMap<(String, u64), u64>,
    /// Item -> how it ended and at which sequence.
    ended: BTreeMap<String, Vec<(EventKind, u64)>>,
}

impl History {
    fn of(events: &[Event], wrong: &mut Vec<String>) -> Self {
        let (mut started, mut ended) = (BTreeMap::new(), BTreeMap::<String, Vec<_>>::new());
        for (event, should) in events.iter().zip(1..) {
            if event.sequence != should {
                wrong.push(format!("event {should} is missing (the next one is {})", event.sequence));
                break;
            }
        }
        for event in events {
            let Some(item) = event.event.item.clone() else { continue };
            let epoch = event.event.epoch.unwrap_or_default();
            match event.event.kind {
                EventKind::WorkStarted => {
                    if epoch > 1 && !started.contains_key(&(item.clone(), epoch - 1)) {
                        wrong.push(format!("claim {epoch} of {item} follows no claim {}", epoch - 1));
                    }
                    if started.insert((item.clone(), epoch), event.sequence).is_some() {
                        wrong.push(format!("claim {epoch} of {item} is in the history twice"));
                    }
                }
                // `work_failed` is also said of a claim that ends and may be tried again, so it is no end by itself.
                EventKind::WorkCompleted | EventKind::WorkDead | EventKind::WorkCancelled => {
                    ended.entry(item).or_default().push((event.event.kind, event.sequence));
                }
                _ => {}
            }
        }
        Self { started, ended }
    }

    fn check_order(&self, item: &str, depends_on: &[String], wrong: &mut Vec<String>) {
        let first = (item.to_owned(), 0)..(item.to_owned(), u64::MAX);
        let Some(begun) = self.started.range(first).map(|(_, sequence)| *sequence).min() else { return };
        for dependency in depends_on {
            let done = self.ended.get(dependency).and_then(|ends| {
                ends.iter().find(|(kind, _)| *kind == EventKind::WorkCompleted).map(|(_, sequence)| *sequence)
            });
            if done.is_none_or(|done| done > begun) {
                wrong.push(format!("{item} was begun before {dependency} was done"));
            }
        }
    }

    fn check_end(&self, item: &str, state: ItemState, wrong: &mut Vec<String>) {
        let expected: &[EventKind] = match state {
            ItemState::Done => &[EventKind::WorkCompleted],
            ItemState::Cancelled => &[EventKind::WorkCancelled],
            ItemState::Dead => &[EventKind::WorkDead],
            _ => &[],
        };
        let ends = self.ended.get(item).map(Vec::as_slice).unwrap_or_default();
        if ends.iter().map(|(kind, _)| *kind).ne(expected.iter().copied()) {
            wrong.push(format!("{item} is {state}, and its history says {ends:?}"));
        }
    }
}

fn integrity(path: &Path, wrong: &mut Vec<String>) {
    let asked = rusqlite::Connection::open(path)
        .and_then(|connection| connection.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)));
    match asked {
        Ok(answer) if answer == "ok" => {}
        Ok(answer) => wrong.push(format!("integrity: {answer}")),
        Err(error) => wrong.push(format!("integrity: {error}")),
    }
}
