//! Against real sockets, a real store in a file or in memory, and the fold that everybody uses.

use crate::api::Window;
use crate::desk::Desk;
use crate::hub::Hub;
use crate::stream::{PATIENCE, Reader, Wanted};
use crate::{OrderKind, Server, Token, listen};
use mnemosyne_core::error::codes;
use mnemosyne_core::{AgentRole, Event, EventKind, NewEvent, Phase, Problem, StorePicture};
use mnemosyne_store::{EventQuery, MemoryStore, SqliteStore, Store};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// A window over a store, with a client's half of what it needs.
struct World {
    store: Arc<dyn Store>,
    server: Server,
    desk: Option<Desk>,
    header: String,
    _folder: TempDir,
}

impl World {
    fn over(store: Arc<dyn Store>, folder: TempDir) -> Self {
        let file = folder.path().join("authorization");
        let token = Token::at(&file).unwrap();
        let header = std::fs::read_to_string(&file).unwrap().trim().to_owned();
        let (server, desk) = Server::open(listen(0).unwrap(), Arc::clone(&store), token).unwrap();
        Self { store, server, desk: Some(desk), header, _folder: folder }
    }

    fn in_memory() -> Self {
        Self::over(Arc::new(MemoryStore::new()), TempDir::new().unwrap())
    }

    fn in_a_file() -> Self {
        let folder = TempDir::new().unwrap();
        Self::over(Arc::new(SqliteStore::open(&folder.path().join("store.db")).unwrap()), folder)
    }

    async fn send(&self, head: &str, body: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(self.server.address()).await.unwrap();
        let request = format!(
            "{head} HTTP/1.1\r\nHost: {}\r\n{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
            self.server.address(),
            self.header,
            body.len()
        );
        stream.write_all(format!("{request}Connection: close\r\n\r\n{body}").as_bytes()).await.unwrap();
        BufReader::new(stream)
    }

    /// Status and body.
    async fn ask(&self, head: &str, body: &str) -> (u16, Value) {
        let mut answer = String::new();
        self.send(head, body).await.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
    }

    async fn follow(&self, query: &str, last: Option<u64>) -> Follower {
        let last = last.map(|last| format!("\r\nLast-Event-ID: {last}")).unwrap_or_default();
        let mut stream = TcpStream::connect(self.server.address()).await.unwrap();
        let (address, header) = (self.server.address(), &self.header);
        let request = format!("GET /events{query} HTTP/1.0\r\nHost: {address}\r\n{header}{last}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        Follower { stream: BufReader::new(stream) }
    }

    async fn all_events(&self) -> Vec<Event> {
        self.store.events(EventQuery::default()).await.unwrap()
    }
}

/// One message: its name, its id, its data.
type Message = (String, Option<u64>, Value);

/// A client that reads what it is sent.
struct Follower {
    stream: BufReader<TcpStream>,
}

impl Follower {
    /// The next message; `None` at the end.
    async fn next(&mut self) -> Option<Message> {
        let (mut name, mut id, mut line) = (String::new(), None, String::new());
        loop {
            line.clear();
            if self.stream.read_line(&mut line).await.unwrap() == 0 {
                return None;
            }
            let line = line.trim_end();
            if let Some(text) = line.strip_prefix("event: ") {
                text.clone_into(&mut name);
            } else if let Some(text) = line.strip_prefix("id: ") {
                id = text.parse().ok();
            } else if let Some(text) = line.strip_prefix("data: ") {
                return Some((name, id, serde_json::from_str(text).unwrap()));
            }
        }
    }
}

fn agent(number: u64, kind: EventKind) -> NewEvent {
    NewEvent {
        agent: Some(format!("executor-{}", number % 7)),
        role: Some(AgentRole::Executor),
        generation: Some(1 + number / 1_000),
        ..NewEvent::new(kind)
    }
}

/// The work of some runs and the life of some agents, in what order may be.
fn happening(number: u64) -> NewEvent {
    let task = |kind| NewEvent {
        run: Some(format!("r-{}", number / 500)),
        phase: Some(Phase::PlanToArtifacts),
        task: Some(format!("t{}", number % 11)),
        attempt: Some(1),
        ..NewEvent::new(kind)
    };
    match number % 10 {
        0 if number.is_multiple_of(500) => NewEvent { task: None, ..task(EventKind::RunSubmitted) },
        1 => agent(number, EventKind::AgentStarted),
        2 => agent(number, EventKind::AgentErrorRecorded).with("count", number % 5).with("error", "it fell"),
        3 => agent(number, EventKind::AgentRestarted).with("reason", "errors").with("delay_seconds", 0.5),
        4 => agent(number, EventKind::AgentCompleted),
        5 => task(EventKind::TaskReady).with("title", "One of them"),
        6 => task(EventKind::StepFinished).with("usage", json!({"turns": 1, "input_tokens": number, "cost_usd": 0.25})),
        7 => task(EventKind::TaskAccepted),
        _ => task(EventKind::WorkStarted).with("kind", "execute"),
    }
}

const EVENTS: u64 = 10_000;
const CLIENTS: u64 = 20;
const RECONNECTS: u64 = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dur_3_a_thousand_reconnects_during_ten_thousand_events_see_each_event_once_and_one_picture() {
    let world = Arc::new(World::in_a_file());
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        clients.push(tokio::spawn(reconnecting(Arc::clone(&world), number)));
    }
    for first in (0..EVENTS).step_by(20) {
        world.store.append_events((first..first + 20).map(happening).collect()).await.unwrap();
    }
    let events = world.all_events().await;
    assert_eq!(events.len() as u64, EVENTS);
    let mut whole = StorePicture::default();
    events.iter().for_each(|event| whole.apply(event));
    for client in clients {
        assert_eq!(client.await.unwrap(), whole);
    }
    // A late joiner, and a full replay.
    let (_, _, snapshot) = world.follow("", None).await.next().await.unwrap();
    assert_eq!(serde_json::from_value::<StorePicture>(snapshot["picture"].clone()).unwrap(), whole);
    let (mut replay, mut replayed) = (world.follow("?since=0&follow=false", None).await, StorePicture::default());
    while let Some((_, _, event)) = replay.next().await {
        replayed.apply(&serde_json::from_value(event).unwrap());
    }
    assert_eq!(replayed, whole);
}

/// Begins with a snapshot or with nothing, and leaves after a number of messages that no other one takes, until all events
/// are in its picture.
async fn reconnecting(world: Arc<World>, number: u64) -> StorePicture {
    let (mut picture, mut last) = (StorePicture::default(), number.is_multiple_of(2).then_some(0));
    let mut connections = 0;
    while picture.sequence < EVENTS {
        let mut follower = world.follow("", last).await;
        connections += 1;
        // The last connection stays: it is the slowest store that decides how many there are.
        let stay = if connections > RECONNECTS { u64::MAX } else { 1 + (number * 31 + connections * 17) % 389 };
        for _ in 0..stay {
            let (name, id, data) = follower.next().await.unwrap();
            match name.as_str() {
                "snapshot" => {
                    assert_eq!(last, None, "whoever says where it stands gets events");
                    picture = serde_json::from_value(data["picture"].clone()).unwrap();
                }
                "" => {
                    let event: Event = serde_json::from_value(data).unwrap();
                    assert_eq!(event.sequence, picture.sequence + 1, "no gap and no duplicate");
                    picture.apply(&event);
                }
                other => panic!("{other}"),
            }
            assert_eq!(id, Some(picture.sequence));
            last = id;
            if picture.sequence == EVENTS {
                break;
            }
        }
    }
    assert!(connections >= RECONNECTS.min(EVENTS / 389), "{connections}");
    picture
}

#[tokio::test]
async fn where_history_was_forgotten_a_client_is_told_so_and_gets_a_snapshot() {
    let world = World::in_memory();
    for _ in 0..21 {
        world.store.append_events((0..1_000).map(happening).collect()).await.unwrap();
    }
    let horizon = world.store.horizon().await.unwrap();
    assert!(horizon > 0);
    for (since, newest) in [0, horizon - 1, 1_000_000].into_iter().zip(21_000..) {
        let mut follower = world.follow(&format!("?since={since}"), None).await;
        let (name, _, gap) = follower.next().await.unwrap();
        assert_eq!((name.as_str(), &gap["from"], &gap["to"]), ("gap", &json!(since + 1), &json!(newest)));
        let (name, id, _) = follower.next().await.unwrap();
        assert_eq!((name.as_str(), id), ("snapshot", Some(newest)));
        world.store.append_events(vec![happening(1)]).await.unwrap();
        assert_eq!(follower.next().await.unwrap().1, Some(newest + 1), "and goes on from there");
    }
}

#[tokio::test]
async fn dur_3_a_client_that_is_ahead_of_the_window_goes_on_where_it_stands() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    store.append_events(vec![happening(1)]).await.unwrap();
    let hub = Hub::new(Arc::clone(&store));
    let follower = tokio::spawn(Arc::clone(&hub).follow());
    hub.ready().await;
    follower.abort(); // so it is behind for good
    store.append_events(vec![happening(2), happening(3)]).await.unwrap();
    let window = Window::new(Arc::clone(&hub), Desk::open().0);
    for (since, next) in [(2, "id: 3\n"), (1_000, "event: gap\n")] {
        let place = Arc::clone(&window.streams).try_acquire_owned().unwrap();
        let wanted = Wanted { since: Some(since), follow: true };
        let mut reader = Reader::begin(Arc::clone(&hub), wanted, place).await.unwrap();
        reader.next().await.unwrap();
        let said = String::from_utf8(reader.next().await.unwrap().to_vec()).unwrap();
        assert!(said.contains(next), "after {since}: {said}");
    }
}

#[tokio::test(start_paused = true)]
async fn dur_3_a_client_that_takes_nothing_is_cut_off_with_the_sequence_to_go_on_from() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    store.append_events(vec![happening(1), happening(2)]).await.unwrap();
    let hub = Hub::new(Arc::clone(&store));
    tokio::spawn(Arc::clone(&hub).follow());
    let window = Window::new(Arc::clone(&hub), Desk::open().0);
    let place = Arc::clone(&window.streams).try_acquire_owned().unwrap();
    let mut reader = Reader::begin(hub, Wanted { since: Some(0), follow: true }, place).await.unwrap();
    let text = |bytes: bytes::Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    assert!(text(reader.next().await.unwrap()).starts_with("retry: "));
    assert!(text(reader.next().await.unwrap()).contains("id: 2\n"));
    tokio::time::sleep(PATIENCE * 2).await;
    assert_eq!(text(reader.next().await.unwrap()), ": keep-alive\n\n", "there was nothing to take");
    store.append_events(vec![happening(3)]).await.unwrap();
    tokio::time::sleep(PATIENCE * 2).await;
    let last = text(reader.next().await.unwrap());
    assert!(last.starts_with("id: 2\nevent: cut\n") && last.contains("\"resume_from\":2"), "{last}");
    assert_eq!(reader.next().await, None);
    drop(reader);
    assert_eq!(window.following(), 0);
}

#[tokio::test]
async fn an_order_waits_for_its_answer_and_is_refused_where_nobody_takes_it() {
    let mut world = World::in_memory();
    let desk = world.desk.take().unwrap();
    let carried_out = async {
        let order = desk.take().await.unwrap();
        assert_eq!((order.kind.clone(), order.body.as_str()), (OrderKind::SubmitItem, "{\"item\": 1}"));
        order.answer(Ok(json!({"item": "i-1"})));
        drop(desk.take().await);
        drop(desk);
    };
    let asked = async {
        let first = world.ask("POST /items", "{\"item\": 1}").await;
        [first, world.ask("POST /runs", "{}").await, world.ask("POST /items", "{}").await]
    };
    let ([first, dropped, closed], ()) = tokio::join!(asked, carried_out);
    assert_eq!(first, (201, json!({"item": "i-1"})));
    for refused in [dropped, closed] {
        assert_eq!((refused.0, &refused.1["error"]["code"]), (503, &json!(codes::NO_DESK)));
    }
}

#[tokio::test]
async fn more_streams_than_there_are_places_are_refused() {
    let world = World::in_memory();
    let mut followers = Vec::new();
    for _ in 0..256 {
        let mut follower = world.follow("", None).await;
        assert_eq!(follower.next().await.unwrap().0, "snapshot");
        followers.push(follower);
    }
    let (status, answer) = world.ask("GET /events", "").await;
    assert_eq!((status, &answer["error"]["code"]), (503, &json!(codes::TOO_MANY_STREAMS)));
    drop(followers);
    world.server.close();
}

#[tokio::test]
async fn a_window_that_closes_ends_its_streams() {
    let world = World::in_memory();
    let mut follower = world.follow("", None).await;
    assert_eq!(follower.next().await.unwrap().0, "snapshot");
    world.server.close();
    assert_eq!(follower.next().await, None);
}

#[test]
fn secret_1_the_token_is_made_once_and_refused_where_others_may_have_read_it() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("store.db.d").join("authorization");
    let first = Token::at(&file).unwrap();
    let line = std::fs::read_to_string(&file).unwrap();
    let secret = line.trim().rsplit(' ').next().unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(first.is(secret) && first.is(&line) && !first.is("") && !first.is(&secret[1..]));
    assert!(Token::at(&file).unwrap().is(secret), "it stays the same");
    assert!(!format!("{first:?}").contains(&secret[..8]));
    let refused = |what: &str| {
        let problem: Problem = Token::at(&file).unwrap_err();
        assert_eq!(problem.code, codes::TOKEN_FILE, "{what}");
        assert!(!problem.to_string().contains(&secret[..8]), "{what}");
    };
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    refused("open to a group");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&file, "something else").unwrap();
    refused("no token");
}

#[test]
fn every_route_is_in_the_document_and_every_operation_is_a_route() {
    let document: BTreeMap<String, Value> = serde_json::from_str(include_str!("openapi.json")).unwrap();
    let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
    let code = include_str!("api.rs");
    let routes: Vec<&str> = code.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert_eq!(routes.len(), paths.len(), "{routes:?} {paths:?}");
    assert!(paths.iter().all(|path| routes.contains(&path.as_str())), "{routes:?} {paths:?}");
}
