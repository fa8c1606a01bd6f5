//! Work under way, by slot. A slot is an index and a generation in one number: the index is used again, the generation
//! rises each time, so a completion that comes late, or twice, finds nothing instead of another's waiter.

use mnemosyne_runtime::Ticket;

/// Where no free slot follows.
const NONE: u32 = u32::MAX;

pub(crate) struct Slots<T> {
    entries: Vec<Entry<T>>,
    /// The head of the list of free entries.
    free: u32,
    taken: usize,
}

struct Entry<T> {
    generation: u32,
    state: State<T>,
}

enum State<T> {
    Taken(T),
    Free { next: u32 },
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: NONE, taken: 0 }
    }
}

impl<T> Slots<T> {
    pub(crate) fn insert(&mut self, value: T) -> Ticket {
        self.taken += 1;
        let index = self.free;
        if let Some(entry) = self.entries.get_mut(index as usize)
            && let State::Free { next } = entry.state
        {
            self.free = next;
            entry.state = State::Taken(value);
            return ticket(index, entry.generation);
        }
        // 2^32 - 1 at once would need hundreds of gigabytes before this could wrap.
        let index = self.entries.len() as u32;
        self.entries.push(Entry { generation: 1, state: State::Taken(value) });
        ticket(index, 1)
    }

    /// Takes the value out and ends this generation of the slot.
    pub(crate) fn remove(&mut self, slot: Ticket) -> Option<T> {
        let free = self.free;
        let entry = self.entry(slot)?;
        let State::Taken(value) = std::mem::replace(&mut entry.state, State::Free { next: free }) else { return None };
        entry.generation = entry.generation.wrapping_add(1);
        self.free = index(slot);
        self.taken -= 1;
        Some(value)
    }

    pub(crate) fn get(&mut self, slot: Ticket) -> Option<&mut T> {
        match &mut self.entry(slot)?.state {
            State::Taken(value) => Some(value),
            State::Free { .. } => None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.taken
    }

    pub(crate) fn drain(&mut self) -> Vec<T> {
        let entries = self.entries.iter().enumerate();
        let tickets: Vec<Ticket> = entries.map(|(index, entry)| ticket(index as u32, entry.generation)).collect();
        tickets.into_iter().filter_map(|slot| self.remove(slot)).collect()
    }

    /// The entry of this very generation; a free one is never of the generation of a ticket that was given out.
    fn entry(&mut self, slot: Ticket) -> Option<&mut Entry<T>> {
        let entry = self.entries.get_mut(index(slot) as usize)?;
        let known = entry.generation == generation(slot) && matches!(entry.state, State::Taken(_));
        known.then_some(entry)
    }
}

fn ticket(index: u32, generation: u32) -> Ticket {
    Ticket(u64::from(generation) << 32 | u64::from(index))
}

fn index(slot: Ticket) -> u32 {
    slot.0 as u32 // the lower half
}

fn generation(slot: Ticket) -> u32 {
    (slot.0 >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::Index;
    use std::collections::HashMap;

    #[test]
    fn a_slot_is_used_again_under_another_number() {
        let mut slots = Slots::default();
        let first = slots.insert("first");
        assert_eq!(slots.remove(first), Some("first"));
        let second = slots.insert("second");
        assert_eq!(index(first), index(second));
        assert_ne!(first, second);
        assert_eq!((slots.remove(first), slots.get(first)), (None, None));
        assert_eq!(slots.remove(second), Some("second"));
        assert_eq!(slots.remove(second), None);
    }

    #[test]
    fn slots_that_are_free_are_used_before_new_ones_are_made() {
        let mut slots = Slots::default();
        let tickets: Vec<_> = (0..100).map(|number| slots.insert(number)).collect();
        tickets.iter().for_each(|slot| assert!(slots.remove(*slot).is_some()));
        for number in 0..100 {
            slots.insert(number);
        }
        assert_eq!((slots.entries.len(), slots.len()), (100, 100));
        assert_eq!(slots.drain().len(), 100);
    }

    /// What is done with the slots, and to which of the tickets that were ever given out.
    #[derive(Debug, Clone)]
    enum Step {
        Insert,
        Remove(Index),
        Look(Index),
        Drain,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => Just(Step::Insert),
            6 => any::<Index>().prop_map(Step::Remove),
            3 => any::<Index>().prop_map(Step::Look),
            1 => Just(Step::Drain),
        ];
        prop::collection::vec(step, 1..400)
    }

    proptest! {
        /// Any completion, however late and however often it comes, reaches its own waiter or nobody.
        #[test]
        fn no_completion_reaches_the_wrong_waiter(steps in steps()) {
            let mut slots = Slots::default();
            let mut given: Vec<Ticket> = Vec::new();
            let mut waiting: HashMap<u64, usize> = HashMap::new();
            for step in steps {
                match step {
                    Step::Insert => {
                        let waiter = given.len();
                        let ticket = slots.insert(waiter);
                        prop_assert!(!given.contains(&ticket), "a ticket was given out twice");
                        given.push(ticket);
                        waiting.insert(ticket.0, waiter);
                    }
                    Step::Remove(_) | Step::Look(_) if given.is_empty() => {}
                    Step::Remove(which) => {
                        let ticket = *which.get(&given);
                        prop_assert_eq!(slots.remove(ticket), waiting.remove(&ticket.0));
                    }
                    Step::Look(which) => {
                        let ticket = *which.get(&given);
                        prop_assert_eq!(slots.get(ticket).copied(), waiting.get(&ticket.0).copied());
                    }
                    Step::Drain => {
                        let mut left = slots.drain();
                        let mut expected: Vec<usize> = waiting.drain().map(|(_, waiter)| waiter).collect();
                        left.sort_unstable();
                        expected.sort_unstable();
                        prop_assert_eq!(left, expected);
                    }
                }
            }
            let most = slots.entries.len();
            prop_assert!(most <= given.len());
        }
    }
}
