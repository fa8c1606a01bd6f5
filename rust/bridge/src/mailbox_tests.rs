//! Beside `mailbox.rs` and not in it: a model checker compiles that file with locks of its own.

use crate::bell::Bell;
use crate::mailbox::Mailbox;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Default)]
struct Counted {
    rings: AtomicUsize,
    rung: AtomicUsize,
}

impl Bell for &Counted {
    fn ring(&self) {
        self.rings.fetch_add(1, Ordering::SeqCst);
        self.rung.store(1, Ordering::SeqCst);
    }
    fn silence(&self) {
        self.rung.store(0, Ordering::SeqCst);
    }
}

#[test]
fn the_bell_rings_once_for_each_time_that_the_queue_turns_non_empty() {
    let bell = Counted::default();
    let mailbox = Mailbox::new(&bell);
    let mut inbox = VecDeque::new();
    for round in 1..=3 {
        for message in 0..10 {
            mailbox.push(message).unwrap();
        }
        assert_eq!(bell.rings.load(Ordering::SeqCst), round);
        assert!(mailbox.take(&mut inbox));
        // The reader is awake: what comes now must not ring.
        mailbox.push(10).unwrap();
        inbox.clear();
        assert!(mailbox.take(&mut inbox));
        assert_eq!(inbox.drain(..).collect::<Vec<_>>(), [10]);
        assert!(!mailbox.take(&mut inbox));
        assert_eq!((bell.rings.load(Ordering::SeqCst), bell.rung.load(Ordering::SeqCst)), (round, 0));
    }
}

#[test]
fn a_closed_mailbox_gives_everything_back() {
    let bell = Counted::default();
    let mailbox = Mailbox::new(&bell);
    mailbox.push("waits").unwrap();
    assert_eq!(mailbox.close(), ["waits"]);
    assert_eq!(mailbox.push("late"), Err("late"));
}

#[test]
fn what_many_threads_push_is_read_once_and_in_the_order_of_each_thread() {
    const EACH: usize = 2_000;
    let mailbox = Arc::new(Mailbox::new(crate::bell::FileBell::new().expect("a descriptor")));
    let pushing: Vec<_> = (0..4)
        .map(|thread| {
            let mailbox = Arc::clone(&mailbox);
            std::thread::spawn(move || (0..EACH).for_each(|number| mailbox.push((thread, number)).unwrap()))
        })
        .collect();
    let (mut inbox, mut next) = (VecDeque::new(), [0; 4]);
    while next.iter().sum::<usize>() < 4 * EACH {
        if !mailbox.take(&mut inbox) {
            std::thread::yield_now();
        }
        for (thread, number) in inbox.drain(..) {
            assert_eq!(number, next[thread]);
            next[thread] += 1;
        }
    }
    pushing.into_iter().for_each(|thread| thread.join().unwrap());
}
