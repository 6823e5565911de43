//! Bytes that are unlinked and still on the disk, because somebody has the file open, or the kernel caches its inode. They count as used until the file
//! system says that they are free.
//!
//! No call tells who holds a file, so this is inferred: the file system's use should fall by what was unlinked; what it did not fall by is held. Exact on a
//! file system that the cache has for itself, to within what is being written at that moment. Where others write too, their growth may be
//! taken for held bytes, never more of it than was unlinked; the cache then leaves them that room, and takes it back after an hour if the disk has
//! enough. On file systems that compress or share blocks it sees less than is held.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Differences below this are the index and directories, not files.
const NOISE: u64 = 256 << 10;

/// After this long, what has not come back is forgotten if the disk has room for all that the cache may still take.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

/// What the file system says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) used: u64,
    pub(super) available: u64,
}

/// The bytes that are held.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Unlinked and not known to be free; 0 most of the time, and then nothing is asked.
    unlinked: AtomicU64,
    began: Mutex<Option<Began>>,
    /// Writers that can't go on before there is room.
    waiting: AtomicUsize,
}

/// A writer that waits for room, until this is dropped.
#[derive(Debug)]
pub(super) struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// When the first of them was unlinked.
#[derive(Clone, Copy, Debug)]
struct Began {
    at: Instant,
    /// Use of the file system beyond the cache's files.
    beside: u64,
}

impl Held {
    /// A file with so many bytes is about to be unlinked. `in_files` are the bytes in all files, this one included.
    pub(super) fn unlinking(&self, bytes: u64, in_files: u64, space: impl FnOnce() -> Option<Space>) {
        let mut began = self.began.lock();
        if began.is_none() {
            let Some(space) = space() else { return };
            *began = Some(Began { at: Instant::now(), beside: space.used.saturating_sub(in_files) });
        }
        self.unlinked.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Somebody waits for room from now on.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(&self.waiting)
    }

    /// Whether somebody waits for room.
    pub(super) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// How many bytes are held, when `in_files` are in files and the cache may have `capacity`.
    pub(super) fn bytes(&self, in_files: u64, capacity: u64, space: impl FnOnce() -> Option<Space>) -> u64 {
        if self.unlinked.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let mut began = self.began.lock();
        let (Some(first), Some(space)) = (*began, space()) else { return 0 };
        let missing = space.used.saturating_sub(in_files + first.beside);
        let mut held = self.unlinked.load(Ordering::Relaxed).min(missing);
        let harmless = space.available >= capacity.saturating_sub(in_files);
        if held < NOISE || first.at.elapsed() > FORGOTTEN_AFTER && harmless {
            held = 0;
            *began = None;
        }
        self.unlinked.store(held, Ordering::Relaxed);
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn space(used: u64) -> impl FnOnce() -> Option<Space> {
        move || Some(Space { used: used * MIB, available: 1000 * MIB })
    }

    #[test]
    fn what_does_not_come_back_is_held_until_it_does() {
        let held = Held::default();
        assert_eq!(held.bytes(50 * MIB, 100 * MIB, || panic!("nothing was unlinked")), 0);
        // 70 are used, 50 by the cache; it unlinks 10, of which 4 stay.
        held.unlinking(4 * MIB, 50 * MIB, space(70));
        held.unlinking(6 * MIB, 46 * MIB, || panic!("known already"));
        assert_eq!(held.bytes(40 * MIB, 100 * MIB, space(64)), 4 * MIB);
        // Others write 20: no more than what was unlinked and not seen to be free.
        assert_eq!(held.bytes(40 * MIB, 100 * MIB, space(84)), 4 * MIB);
        // One of the files is closed.
        assert_eq!(held.bytes(40 * MIB, 100 * MIB, space(61)), MIB);
        assert_eq!(held.bytes(40 * MIB, 100 * MIB, space(60)), 0);
        assert_eq!(held.bytes(40 * MIB, 100 * MIB, || panic!("all is back")), 0);
    }

    #[test]
    fn a_file_system_that_tells_nothing_holds_nothing() {
        let held = Held::default();
        held.unlinking(4 * MIB, 50 * MIB, || None);
        assert_eq!(held.bytes(46 * MIB, 100 * MIB, || None), 0);
    }
}
