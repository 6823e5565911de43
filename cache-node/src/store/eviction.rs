//! What to evict: a clock over all objects (first in, first out, with a second chance for what was read since the hand last passed).
//! Decides only; the store unlinks. Whole objects without leases are evicted, never parts.

use std::collections::VecDeque;

use forebay_catalog::ObjectId;

/// What the store says about an object under the hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// There is no such object any more.
    Gone,
    /// In use, or read since the hand last passed.
    Stays,
    /// Evicting it frees so many bytes.
    Goes(u64),
}

/// The order in which objects came, and the hand (the front).
#[derive(Debug, Default)]
pub struct Clock {
    queue: VecDeque<ObjectId>,
}

impl Clock {
    /// A new object.
    pub fn insert(&mut self, id: ObjectId) {
        self.queue.push_back(id);
    }

    /// Objects to evict, with their bytes, to free `need` bytes, or as much as can be. `standing` is asked about each object under the hand and forgets that
    /// it was read; it is asked at most twice about each.
    pub fn plan(&mut self, need: u64, mut standing: impl FnMut(&ObjectId) -> Standing) -> Vec<(ObjectId, u64)> {
        let mut victims = Vec::new();
        let mut freed = 0;
        for _ in 0..self.queue.len() * 2 {
            if freed >= need {
                break;
            }
            let Some(id) = self.queue.pop_front() else { break };
            match standing(&id) {
                Standing::Gone => {}
                Standing::Stays => self.queue.push_back(id),
                Standing::Goes(bytes) => {
                    freed += bytes;
                    victims.push((id, bytes));
                }
            }
        }
        victims
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn id(n: u8) -> ObjectId {
        ObjectId::from_bytes([n; 16])
    }

    #[test]
    fn what_was_read_gets_a_second_chance_and_what_is_in_use_stays() {
        let mut clock = Clock::default();
        (1..=5).for_each(|n| clock.insert(id(n)));
        // 1 was read, 2 is in use, 3 is gone.
        let mut read = HashMap::from([(id(1), true)]);
        let mut standing = |o: &ObjectId| match o {
            o if *o == id(2) => Standing::Stays,
            o if *o == id(3) => Standing::Gone,
            o if read.remove(o).is_some() => Standing::Stays,
            _ => Standing::Goes(10),
        };
        assert_eq!(clock.plan(15, &mut standing), [(id(4), 10), (id(5), 10)]);
        assert_eq!(clock.plan(100, &mut standing), [(id(1), 10)]);
        assert_eq!(clock.plan(100, &mut standing), []);
    }
}
