//! Crashes at will, for the model test: the store stops between two of its steps, as if the machine had, and of the files only what was
//! synced is left.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Where the store stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CrashPoint {
    /// The bytes are written, not synced.
    Written = 1,
    /// The bytes are synced, the index does not know.
    Synced = 2,
    /// Half of the commit is in the index's log.
    LogTorn = 3,
    /// The commit is in the log, which is not synced.
    LogUnsynced = 4,
    /// The index knows; files are neither published nor unlinked.
    Indexed = 5,
    /// The next log is begun, its snapshot is not.
    LogRotated = 6,
    /// Half of the snapshot is written.
    SnapshotHalf = 7,
    /// The snapshot is written, not renamed in.
    SnapshotWritten = 8,
    /// The snapshot is there, and so is what it replaces.
    SnapshotRenamed = 9,
}

/// What a crash of one store would leave.
#[derive(Debug, Default)]
pub struct Crash {
    point: AtomicU8,
    stopped: AtomicBool,
    stop: Notify,
    /// The synced content by inode.
    synced: Mutex<HashMap<u64, Vec<u8>>>,
    /// The synced length of the index's logs by inode.
    logs: Mutex<HashMap<u64, u64>>,
}

impl Crash {
    /// The store stops there when it next comes by.
    pub fn set(&self, point: CrashPoint) {
        self.point.store(point as u8, Ordering::SeqCst);
    }

    /// Whether the store has to stop here. It never goes on.
    pub fn stops_at(&self, point: CrashPoint) -> bool {
        let stops = self.point.load(Ordering::SeqCst) == point as u8;
        if stops {
            self.stopped.store(true, Ordering::SeqCst);
            self.stop.notify_waiters();
        }
        stops
    }

    /// Whether it has stopped.
    pub fn has_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Returns when it has stopped.
    pub async fn stopped(&self) {
        let stop = self.stop.notified();
        tokio::pin!(stop);
        stop.as_mut().enable();
        if !self.has_stopped() {
            stop.await;
        }
    }

    /// The files are about to be synced.
    pub fn note_synced(&self, files: &[&File]) {
        for file in files {
            let metadata = file.metadata().unwrap();
            let mut bytes = vec![0; metadata.len() as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            self.synced.lock().insert(metadata.ino(), bytes);
        }
    }

    /// Everything in these two-level folders is about to be synced.
    pub fn note_all_synced(&self, folders: [&Path; 2]) {
        // Files come and go meanwhile; what is not seen now counts as not synced.
        for path in folders.into_iter().flat_map(files_in) {
            if let Ok(file) = File::open(path) {
                self.note_synced(&[&file]);
            }
        }
    }

    /// A commit is about to be appended to a log; whether the store stops with it.
    pub fn log_stops(&self, log: &File, at: u64, frame: &[u8]) -> bool {
        if self.stops_at(CrashPoint::LogTorn) {
            log.write_all_at(&frame[..frame.len() / 2], at).unwrap();
        } else if self.stops_at(CrashPoint::LogUnsynced) {
            log.write_all_at(frame, at).unwrap();
        }
        self.has_stopped()
    }

    /// A log has been synced.
    pub fn note_log(&self, log: &File, length: u64) {
        self.logs.lock().insert(log.metadata().unwrap().ino(), length);
    }

    /// Makes the files of objects what they would be after the power was lost, ...
    pub fn lose_unsynced(&self, folders: [&Path; 2]) {
        for path in folders.into_iter().flat_map(files_in) {
            let metadata = std::fs::metadata(&path).unwrap();
            let left = self.synced.lock().get(&metadata.ino()).cloned();
            std::fs::write(path, left.unwrap_or_else(|| vec![0; metadata.len() as usize])).unwrap();
        }
    }

    /// ... and the index's logs: of what was not synced, the first half is left.
    pub fn lose_unsynced_logs(&self, index: &Path) {
        for entry in std::fs::read_dir(index).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_str().unwrap().starts_with("log-") {
                let metadata = entry.metadata().unwrap();
                let synced = self.logs.lock().get(&metadata.ino()).copied().unwrap_or(0).min(metadata.len());
                let file = File::options().write(true).open(entry.path()).unwrap();
                file.set_len(synced + (metadata.len() - synced) / 2).unwrap();
            }
        }
    }
}

fn files_in(folder: &Path) -> Vec<std::path::PathBuf> {
    let outer = std::fs::read_dir(folder).unwrap().map(|outer| outer.unwrap().path());
    outer.flat_map(|outer| std::fs::read_dir(outer).unwrap()).map(|file| file.unwrap().path()).collect()
}
