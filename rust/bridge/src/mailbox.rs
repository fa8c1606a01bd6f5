//! A queue from any thread into one reader, and the flag that saves system calls: the bell rings once for each time that
//! the queue turns from empty to non-empty, however many messages follow before the reader has seen it empty again.
//!
//! The flag is under the queue's lock, so "is anybody told" and "is anything there" change together:
//! - a push rings if and only if it is the one that sets the flag;
//! - only the reader clears it, in the critical section in which it finds the queue empty;
//! - the reader silences the bell *before* that look. A push that comes between the two finds the flag still set and does
//!   not ring, but its message is found by the look, and then the reader rings for itself.
//!
//! So whenever the reader rests with the flag cleared, the queue is empty; and whenever the queue is not empty, either the
//! reader is awake or the bell rings.

use crate::bell::Bell;
use crate::sync::{Mutex, locked};
use std::collections::VecDeque;

pub(crate) struct Mailbox<M, B> {
    queue: Mutex<Queue<M>>,
    bell: B,
}

struct Queue<M> {
    messages: VecDeque<M>,
    /// The reader was told, and has not found the queue empty since.
    signalled: bool,
    closed: bool,
}

impl<M, B: Bell> Mailbox<M, B> {
    pub(crate) fn new(bell: B) -> Self {
        Self { queue: Mutex::new(Queue { messages: VecDeque::new(), signalled: false, closed: false }), bell }
    }

    /// Never blocks for longer than another push. Gives the message back if nobody will ever read it.
    pub(crate) fn push(&self, message: M) -> Result<(), M> {
        let first = {
            let mut queue = locked(&self.queue);
            if queue.closed {
                return Err(message);
            }
            queue.messages.push_back(message);
            !std::mem::replace(&mut queue.signalled, true)
        };
        if first {
            self.bell.ring();
        }
        Ok(())
    }

    /// Moves all that waits into `inbox`, which is empty. False: nothing waits, and the next push will ring.
    pub(crate) fn take(&self, inbox: &mut VecDeque<M>) -> bool {
        if locked(&self.queue).take(inbox) {
            return true;
        }
        self.bell.silence();
        let mut queue = locked(&self.queue);
        let found = queue.take(inbox);
        queue.signalled = found;
        drop(queue);
        if found {
            self.bell.ring();
        }
        found
    }

    /// Nothing is taken any more after this one message; what waits is given back.
    pub(crate) fn close_with(&self, last: M) -> VecDeque<M> {
        let mut queue = locked(&self.queue);
        queue.closed = true;
        let waiting = std::mem::replace(&mut queue.messages, VecDeque::from([last]));
        drop(queue);
        self.bell.ring();
        waiting
    }

    /// Nothing is taken any more; what waits is given back.
    pub(crate) fn close(&self) -> VecDeque<M> {
        let mut queue = locked(&self.queue);
        queue.closed = true;
        std::mem::take(&mut queue.messages)
    }

    pub(crate) fn bell(&self) -> &B {
        &self.bell
    }
}

impl<M> Queue<M> {
    /// Swaps, so that the storage of both is used again and again.
    fn take(&mut self, inbox: &mut VecDeque<M>) -> bool {
        if self.messages.is_empty() {
            return false;
        }
        std::mem::swap(&mut self.messages, inbox);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
}
