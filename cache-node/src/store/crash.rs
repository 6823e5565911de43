//! Crashes at will, for the model test: the committer stops between two of its steps, as if the machine had, and of the files only what was
//! synced is left.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;

/// Where the committer stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CrashPoint {
    /// The bytes are written, not synced.
    Written = 1,
    /// The bytes are synced, the index does not know.
    Synced = 2,
    /// The index knows; files are neither published nor unlinked.
    Indexed = 3,
}

/// What a crash of one store would leave.
#[derive(Debug, Default)]
pub struct Crash {
    point: AtomicU8,
    /// The synced content by inode.
    synced: Mutex<HashMap<u64, Vec<u8>>>,
}

impl Crash {
    /// The next group of the committer stops there.
    pub fn set(&self, point: CrashPoint) {
        self.point.store(point as u8, Ordering::SeqCst);
    }

    pub(super) fn is_at(&self, point: CrashPoint) -> bool {
        self.point.load(Ordering::SeqCst) == point as u8
    }

    /// The files are about to be synced.
    pub(super) fn note_synced(&self, files: &[&File]) {
        for file in files {
            let metadata = file.metadata().unwrap();
            let mut bytes = vec![0; metadata.len() as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            self.synced.lock().insert(metadata.ino(), bytes);
        }
    }

    /// Makes a file what it would be after the power was lost.
    pub fn lose_unsynced(&self, path: &std::path::Path) {
        let length = std::fs::metadata(path).unwrap();
        let left = self.synced.lock().get(&length.ino()).cloned();
        std::fs::write(path, left.unwrap_or_else(|| vec![0; length.len() as usize])).unwrap();
    }
}
