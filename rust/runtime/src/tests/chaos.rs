//! Everything at once, on real threads and the real clock: nothing is lost, nothing is done twice.

use super::*;

/// A small generator, so that a failure can be repeated by its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

fn kill_one(world: &World, dice: &mut Dice) {
    let role = world.tree.record().role(AgentRole::Executor).expect("the role");
    let Some(supervisor) = locked(&role.supervisor).clone() else { return };
    let children = supervisor.get_cell().get_children();
    if let Some(child) = children.get(dice.roll(children.len().max(1) as u64) as usize) {
        child.kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn once_1_random_kills_and_errors_lose_no_item_and_complete_none_twice() {
    const ITEMS: usize = 300;
    let dice = Mutex::new(Dice(0x9E37_79B9_7F4A_7C15));
    let host = MemoryHost::new(move |_| match locked(&dice).roll(40) {
        0 => Act::Lose,
        1 => Act::Now(raised()),
        other => Act::After(other % 4, ok()),
    });
    let store = Arc::new(MemoryStore::new());
    let config = TreeConfig { store: store.clone(), roles: executors(8), claims: true };
    let world = World { tree: Tree::start(config).await.unwrap(), store, host };
    world.tree.register_bridge(Arc::new(Shared(world.host.clone())));
    for number in 0..ITEMS {
        world.submit(&format!("item-{number}")).await;
    }
    let mut dice = Dice(0x2545_F491_4F6C_DD1D);
    for _ in 0..16 {
        sleep(Duration::from_millis(20)).await;
        kill_one(&world, &mut dice);
    }
    let all_done = async {
        for number in 0..ITEMS {
            world.until_item(&format!("item-{number}"), ItemState::Done).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all_done).await.expect("every item is done"); // the clock is real here
    assert_eq!(world.count(EventKind::WorkCompleted).await, ITEMS);
    assert!(world.count(EventKind::AgentRestarted).await >= 8);
    world.tree.shutdown().await;
    assert!(world.tree.record().background.idle(Duration::from_secs(5)).await, "a task leaked");
    assert_eq!(world.host.busy(), 0);
}
