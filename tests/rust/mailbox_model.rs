//! The mailbox under a model checker: every order in which its threads can take their steps is tried, within a bound on
//! preemptions. What is compiled here is the bridge's own file, with loom's locks in the place of the standard ones.
//!
//! The reader rests only while the bell is silent, as a selector does on its descriptor. A wake-up that is lost shows as a
//! deadlock of the model.

use bell::Bell;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use mailbox::Mailbox;
use std::collections::VecDeque;
use sync::locked;

#[path = "../../rust/bridge/src/mailbox.rs"]
#[allow(dead_code)] // its user is the bridge
mod mailbox;

/// The bridge's `sync`, with loom's lock.
mod sync {
    pub(crate) use loom::sync::{Mutex, MutexGuard};
    use std::sync::PoisonError;

    pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bridge's `bell`, without its descriptors.
mod bell {
    pub(crate) trait Bell {
        fn ring(&self);
        fn silence(&self);
    }
}

/// A descriptor: readable from a ring until it is silenced, however often it was rung.
#[derive(Default)]
struct Descriptor {
    state: Mutex<Rung>,
    readable: Condvar,
}

#[derive(Default)]
struct Rung {
    now: bool,
    times: usize,
}

impl Bell for Arc<Descriptor> {
    fn ring(&self) {
        let mut rung = locked(&self.state);
        rung.now = true;
        rung.times += 1;
        self.readable.notify_one();
    }

    fn silence(&self) {
        locked(&self.state).now = false;
    }
}

impl Descriptor {
    /// What the loop does between two turns.
    fn wait(&self) {
        let mut rung = locked(&self.state);
        while !rung.now {
            rung = self.readable.wait(rung).expect("nobody panics with it");
        }
    }

    fn times(&self) -> usize {
        locked(&self.state).times
    }
}

type Modelled = Arc<Mailbox<(usize, usize), Arc<Descriptor>>>;

fn model(check: impl Fn(Modelled, Arc<Descriptor>) + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let descriptor = Arc::new(Descriptor::default());
        check(Arc::new(Mailbox::new(Arc::clone(&descriptor))), descriptor);
    });
}

/// Pushes `(thread, 0)`, `(thread, 1)`, ... from a thread of its own.
fn pushing(mailbox: &Modelled, thread: usize, messages: usize) -> thread::JoinHandle<Vec<(usize, usize)>> {
    let mailbox = Arc::clone(mailbox);
    thread::spawn(move || (0..messages).filter_map(|number| mailbox.push((thread, number)).err()).collect())
}

/// Reads as the loop does until `count` messages came: waits for the bell, delivers one message, and waits again. A tick of
/// the loop may end after any message, with others taken and not delivered; the bell must ring on for them.
fn read(mailbox: &Modelled, descriptor: &Descriptor, count: usize) -> Vec<(usize, usize)> {
    let (mut inbox, mut seen) = (VecDeque::new(), Vec::new());
    while seen.len() < count {
        descriptor.wait();
        if !inbox.is_empty() || mailbox.take(&mut inbox) {
            seen.extend(inbox.pop_front());
        }
    }
    seen.extend(inbox);
    seen
}

#[test]
fn no_wake_up_is_lost_and_no_message_of_two_threads() {
    model(|mailbox, descriptor| {
        let threads = [pushing(&mailbox, 0, 2), pushing(&mailbox, 1, 1)];
        let mut seen = read(&mailbox, &descriptor, 3);
        let own: Vec<usize> = seen.iter().filter(|(thread, _)| *thread == 0).map(|(_, number)| *number).collect();
        assert_eq!(own, [0, 1], "the order of one thread is kept");
        seen.sort_unstable();
        assert_eq!(seen, [(0, 0), (0, 1), (1, 0)]);
        for thread in threads {
            assert!(thread.join().expect("no panic").is_empty());
        }
    });
}

#[test]
fn the_bell_rings_no_more_often_than_the_queue_turns_from_empty_to_full() {
    model(|mailbox, descriptor| {
        let thread = pushing(&mailbox, 0, 2);
        read(&mailbox, &descriptor, 2);
        thread.join().expect("no panic");
        // At most one for each push, and one that the reader gives itself.
        assert!(descriptor.times() <= 3, "{} rings", descriptor.times());
        // At rest: nothing waits; the next push rings, and the one after it finds that the reader knows.
        let (mut inbox, before) = (VecDeque::new(), descriptor.times());
        assert!(!mailbox.take(&mut inbox));
        mailbox.push((9, 0)).expect("it is open");
        mailbox.push((9, 1)).expect("it is open");
        assert_eq!(descriptor.times(), before + 1);
    });
}

#[test]
fn a_message_of_a_mailbox_that_closes_is_read_or_given_back() {
    model(|mailbox, descriptor| {
        let thread = pushing(&mailbox, 0, 2);
        let mut seen = read(&mailbox, &descriptor, 1);
        seen.extend(mailbox.close());
        seen.extend(thread.join().expect("no panic"));
        seen.sort_unstable();
        assert_eq!(seen, [(0, 0), (0, 1)]);
    });
}
