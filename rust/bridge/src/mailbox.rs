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

    pub(crate) fn len(&self) -> usize {
        locked(&self.queue).messages.len()
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
