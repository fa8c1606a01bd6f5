//! A store that fails on demand: no result is lost to it.

use super::*;
use mnemosyne_core::{ArtifactRef, Attempt, Problem, ProblemKind, Usage};
use mnemosyne_store::{
    ClaimRequest, Claimed, Completion, DeadLetter, FinishStep, ItemJournal, ItemSnapshot, NewCommand, Prune, Pruned,
    QueueCounts, Release, Released, Reserve, RunSnapshot, StartStep, StepRecord, Submission, UnderWay,
};
use tokio::sync::watch;

type Fault = Box<dyn FnMut(&'static str) -> Result<(), Problem> + Send>;

/// Asks its fault before every call that the tree makes about a claim.
struct Flaky {
    inner: Arc<MemoryStore>,
    fault: Mutex<Fault>,
}

impl Flaky {
    fn check(&self, call: &'static str) -> Result<(), Problem> {
        (locked(&self.fault))(call)
    }
}

#[async_trait]
impl Store for Flaky {
    fn boot(&self) -> &str {
        self.inner.boot()
    }
    fn now(&self) -> i64 {
        self.inner.now()
    }
    fn changed(&self) -> watch::Receiver<u64> {
        self.inner.changed()
    }
    async fn poll_foreign(&self) -> Result<bool, Problem> {
        self.check("poll_foreign")?;
        self.inner.poll_foreign().await
    }
    async fn submit_run(&self, run: Run, key: Option<String>) -> Result<String, Problem> {
        self.inner.submit_run(run, key).await
    }
    async fn retry_task(
        &self,
        run: &str,
        task: &str,
        note: Option<String>,
        budget: Option<Budget>,
    ) -> Result<RunSnapshot, Problem> {
        self.inner.retry_task(run, task, note, budget).await
    }
    async fn attempts(&self, run: &str, task: &str) -> Result<Vec<Attempt>, Problem> {
        self.inner.attempts(run, task).await
    }
    async fn adopt_run(&self, run: &str, budget: Option<Budget>) -> Result<RunSnapshot, Problem> {
        self.inner.adopt_run(run, budget).await
    }
    async fn run(&self, run: &str) -> Result<Option<RunSnapshot>, Problem> {
        self.inner.run(run).await
    }
    async fn runs(&self) -> Result<Vec<Run>, Problem> {
        self.inner.runs().await
    }
    async fn stop_run(&self, run: &str, state: RunState, problem: Problem) -> Result<(), Problem> {
        self.inner.stop_run(run, state, problem).await
    }
    async fn cancel_run(&self, run: &str, reason: &str) -> Result<(), Problem> {
        self.inner.cancel_run(run, reason).await
    }
    async fn pause_run(&self, run: &str, reason: &str) -> Result<(), Problem> {
        self.check("pause_run")?;
        self.inner.pause_run(run, reason).await
    }
    async fn continue_run(&self, run: &str) -> Result<(), Problem> {
        self.inner.continue_run(run).await
    }
    async fn submit(&self, item: WorkItem, how: Submission) -> Result<String, Problem> {
        self.inner.submit(item, how).await
    }
    async fn take_back(&self) -> Result<u64, Problem> {
        self.inner.take_back().await
    }
    async fn dead_letters(&self) -> Result<Vec<DeadLetter>, Problem> {
        self.inner.dead_letters().await
    }
    async fn requeue(&self, item: &str, reason: &str) -> Result<(), Problem> {
        self.inner.requeue(item, reason).await
    }
    async fn discard(&self, item: &str, reason: &str) -> Result<(), Problem> {
        self.inner.discard(item, reason).await
    }
    async fn item(&self, item: &str) -> Result<Option<ItemSnapshot>, Problem> {
        self.inner.item(item).await
    }
    async fn cancel_item(&self, item: &str, reason: &str) -> Result<(), Problem> {
        self.inner.cancel_item(item, reason).await
    }
    async fn claim(&self, request: ClaimRequest) -> Result<Option<Claimed>, Problem> {
        self.check("claim")?;
        let claimed = self.inner.claim(request).await?;
        if claimed.is_some() && self.check("claimed").is_err() {
            sleep(Duration::from_secs(1)).await; // the answer is slow
        }
        Ok(claimed)
    }
    async fn renew(&self, item: &str, epoch: u64, lease_ms: i64) -> Result<(), Problem> {
        self.check("renew")?;
        self.inner.renew(item, epoch, lease_ms).await
    }
    async fn complete(&self, completion: Completion) -> Result<(), Problem> {
        self.check("complete")?;
        self.inner.complete(completion).await
    }
    async fn release(&self, release: Release) -> Result<Released, Problem> {
        self.check("release")?;
        self.inner.release(release).await
    }
    async fn give_up(&self, item: &str, epoch: u64, problem: Problem, events: Vec<NewEvent>) -> Result<(), Problem> {
        self.inner.give_up(item, epoch, problem, events).await
    }
    async fn journal(&self, item: &str, attempt: u32) -> Result<Vec<StepRecord>, Problem> {
        self.inner.journal(item, attempt).await
    }
    async fn journals(&self, run: &str, subject: &str) -> Result<Vec<ItemJournal>, Problem> {
        self.inner.journals(run, subject).await
    }
    async fn start_step(&self, step: StartStep) -> Result<u64, Problem> {
        self.inner.start_step(step).await
    }
    async fn finish_step(&self, step: FinishStep) -> Result<(), Problem> {
        self.inner.finish_step(step).await
    }
    async fn reserve(&self, reserve: Reserve) -> Result<String, Problem> {
        self.inner.reserve(reserve).await
    }
    async fn settle(&self, item: &str, epoch: u64, reservation: &str, usage: Usage) -> Result<(), Problem> {
        self.inner.settle(item, epoch, reservation, usage).await
    }
    async fn out_of_time(&self) -> Result<Vec<(String, Problem)>, Problem> {
        self.inner.out_of_time().await
    }
    async fn put_artifact(&self, item: &str, epoch: u64, name: &str, content: Vec<u8>) -> Result<ArtifactRef, Problem> {
        self.inner.put_artifact(item, epoch, name, content).await
    }
    async fn artifact(&self, run: &str, name: &str) -> Result<Option<Vec<u8>>, Problem> {
        self.inner.artifact(run, name).await
    }
    async fn append_events(&self, events: Vec<NewEvent>) -> Result<u64, Problem> {
        self.check("append_events")?;
        self.inner.append_events(events).await
    }
    async fn events(&self, query: EventQuery) -> Result<Vec<Event>, Problem> {
        self.inner.events(query).await
    }
    async fn horizon(&self) -> Result<u64, Problem> {
        self.inner.horizon().await
    }
    async fn post_command(&self, command: NewCommand) -> Result<(), Problem> {
        self.inner.post_command(command).await
    }
    async fn take_commands(&self) -> Result<Vec<NewCommand>, Problem> {
        self.inner.take_commands().await
    }
    async fn under_way(&self, boot: &str) -> Result<Vec<UnderWay>, Problem> {
        self.inner.under_way(boot).await
    }
    async fn queue_of(&self, boots: &[&str]) -> Result<QueueCounts, Problem> {
        self.inner.queue_of(boots).await
    }
    fn ready(&self) -> watch::Receiver<mnemosyne_store::Ready> {
        self.inner.ready()
    }
    fn ended(&self, item: &str) -> tokio::sync::oneshot::Receiver<Option<mnemosyne_store::ItemEnd>> {
        self.inner.ended(item)
    }
    async fn prune(&self, prune: Prune) -> Result<Pruned, Problem> {
        self.inner.prune(prune).await
    }
    fn is_dead(&self, boot: &str) -> bool {
        self.inner.is_dead(boot)
    }
    async fn pid_of(&self, boot: &str) -> Result<Option<u32>, Problem> {
        self.inner.pid_of(boot).await
    }
}

async fn flaky_world(host: Arc<MemoryHost>, fault: Fault) -> World {
    let store = store();
    let flaky = Arc::new(Flaky { inner: store.clone(), fault: Mutex::new(fault) });
    let tree = Tree::start(TreeConfig { store: flaky, roles: executors(1), claims: true }).await.unwrap();
    tree.register_bridge(Arc::new(Shared(host.clone())));
    World { tree, store, host }
}

fn down() -> Problem {
    Problem::new(ProblemKind::Store, "MN-0203", "the disk is full")
}

/// Fails `call` until `until` has passed.
fn fails(call: &'static str, until: Duration) -> Fault {
    let began = Instant::now();
    Box::new(move |asked| if asked == call && began.elapsed() < until { Err(down()) } else { Ok(()) })
}

#[tokio::test(start_paused = true)]
async fn once_1_a_result_waits_for_a_store_that_is_unavailable_and_its_lease_is_kept() {
    let fault = fails("complete", Duration::from_secs(100));
    let world = flaky_world(MemoryHost::new(|_| Act::Now(ok())), fault).await;
    world.submit("kept").await;
    world.until_item("kept", ItemState::Done).await;
    assert_eq!(world.host.submitted(), 1);
    let item = world.store.item("kept").await.unwrap().unwrap().item;
    assert_eq!((item.epoch, item.crashes), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_result_that_the_store_refuses_fails_its_item_and_not_the_agent() {
    let fault: Fault = Box::new(|call| match call {
        "complete" => Err(Problem::new(ProblemKind::InvalidInput, "MN-0117", "it cannot be stored")),
        _ => Ok(()),
    });
    let world = flaky_world(MemoryHost::new(|_| Act::Now(ok())), fault).await;
    world.submit("odd").await;
    world.until_item("odd", ItemState::Failed).await;
    eventually("idle", async || world.agent().health().state == AgentState::Idle).await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_a_result_is_stored_never_loses_the_claim_or_the_agent() {
    let mut panics = 2;
    let fault: Fault = Box::new(move |call| {
        if call == "complete" && panics > 0 {
            panics -= 1;
            panic!("the store was told to");
        }
        Ok(())
    });
    let world = flaky_world(MemoryHost::new(|_| Act::Now(ok())), fault).await;
    world.submit("survivor").await;
    world.until_item("survivor", ItemState::Done).await;
    assert_eq!(world.host.submitted(), 3);
    assert_eq!(world.store.item("survivor").await.unwrap().unwrap().item.crashes, 0);
    eventually("idle", async || world.agent().health().state == AgentState::Idle).await;
    assert_eq!(world.agent().generation(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_claiming_does_not_stop_the_agent_from_claiming() {
    let mut panics = 3;
    let fault: Fault = Box::new(move |call| {
        if call == "claim" && panics > 0 {
            panics -= 1;
            panic!("the store was told to");
        }
        Ok(())
    });
    let world = flaky_world(MemoryHost::new(|_| Act::Now(ok())), fault).await;
    world.submit("survivor").await;
    world.until_item("survivor", ItemState::Done).await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_is_tried_again_before_the_lease_ends() {
    let fault = fails("renew", Duration::from_secs(25));
    let world = flaky_world(MemoryHost::new(|_| Act::After(120_000, ok())), fault).await;
    world.submit("long").await;
    world.until_item("long", ItemState::Done).await;
    assert_eq!(world.store.item("long").await.unwrap().unwrap().item.epoch, 1);
}

#[tokio::test(start_paused = true)]
async fn events_of_agents_wait_for_the_store_and_keep_their_order() {
    let fault = fails("append_events", Duration::from_secs(30));
    let world = flaky_world(MemoryHost::new(|_| Act::Now(ok())), fault).await;
    eventually("idle", async || world.agent().health().state == AgentState::Idle).await;
    for _ in 0..5 {
        soon(world.agent().record_error("again".into())).await.unwrap();
    }
    world.until_events(EventKind::AgentRestarted, 1).await;
    let counts: Vec<u64> = world
        .of_kind(EventKind::AgentErrorRecorded)
        .await
        .iter()
        .map(|event| event.data["count"].as_u64().unwrap())
        .collect();
    assert_eq!(counts, [1, 2, 3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn health_says_that_the_store_is_unavailable_and_why() {
    let world = flaky_world(MemoryHost::new(|_| Act::Now(ok())), fails("poll_foreign", Duration::from_secs(10))).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.tree.health().store.reason.as_deref(), Some("the disk is full"));
    sleep(Duration::from_secs(10)).await;
    assert_eq!(world.tree.health().store.reason, None);
}

#[tokio::test(start_paused = true)]
async fn what_a_slow_claim_brings_of_a_run_that_was_cancelled_meanwhile_is_not_begun() {
    let fault: Fault = Box::new(|call| if call == "claimed" { Err(down()) } else { Ok(()) });
    let world = flaky_world(MemoryHost::new(|_| Act::Hang), fault).await;
    let roles = AgentRole::Optimizer;
    let added = world.tree.add_agent(roles, spec(), None).await.unwrap();
    eventually("idle", async || added.health().state == AgentState::Idle).await;
    let task = json!([{"id": "a", "title": "a", "acceptance": [{"command": "test -f done"}]}]);
    world.store.submit_run(run("r-1", plan(task)), None).await.unwrap();
    eventually("it is claimed", async || world.count(EventKind::WorkStarted).await == 1).await;
    world.tree.cancel_run("r-1", "requested").await.unwrap();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(world.host.submitted(), 0);
    world.store.submit_item(WorkItem { role: AgentRole::Optimizer, ..item("next") }, None).await.unwrap();
    eventually("the agent still works", async || world.host.submitted() == 1).await;
}
