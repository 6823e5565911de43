//! One writer of a file at a time. The kernel takes an inode's lock for each write, and has the others burn a processor each until they get it; here
//! they wait asleep.

use forebay_catalog::ObjectId;
use parking_lot::{Mutex, MutexGuard};

/// So many files may be written at once: more than a disk takes, and few enough to be made beforehand.
const PLACES: usize = 64;

/// Who may write.
#[derive(Debug)]
pub(super) struct Writers {
    places: [Mutex<()>; PLACES],
}

impl Default for Writers {
    fn default() -> Self {
        Self { places: [const { Mutex::new(()) }; PLACES] }
    }
}

impl Writers {
    /// Waits until nobody else writes the object's file. Objects that share a place wait for each other, too.
    pub fn turn(&self, id: &ObjectId) -> Option<MutexGuard<'_, ()>> {
        let number = id.as_bytes().last().map_or(0, |byte| usize::from(*byte) % PLACES);
        self.places.get(number).map(Mutex::lock)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_file_has_one_writer_at_a_time_and_others_are_written_meanwhile() {
        let (writers, inside) = (Writers::default(), AtomicUsize::new(0));
        let (one, other) = (ObjectId::from_bytes([1; 16]), ObjectId::from_bytes([2; 16]));
        let held = writers.turn(&other);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let _turn = writers.turn(&one);
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        drop(held);
    }
}
