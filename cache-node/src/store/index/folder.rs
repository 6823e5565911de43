//! The index's folder: the names in it, and the lock that keeps a second cache node out.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::IndexError;

const LOCK: &str = "lock";
const LOG: &str = "log-";
const SNAPSHOT: &str = "snapshot-";
const UNFINISHED: &str = ".unfinished";

/// The folder, locked while this lives.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

/// The numbers of the files that are there, ascending.
#[derive(Debug, Default)]
pub struct Listed {
    pub logs: Vec<u64>,
    pub snapshots: Vec<u64>,
}

impl Folder {
    /// Makes the folder if need be and locks it.
    pub fn open(path: &Path) -> Result<Self, IndexError> {
        let failed = |source| IndexError::io(format!("opening the index folder {}", path.display()), source);
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join(LOCK))
            .map_err(failed)?;
        lock_file(&lock, path)?;
        // For whoever is refused.
        let told = lock.set_len(0).and_then(|()| writeln!(lock, "{}", who_am_i()));
        told.map_err(failed)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub fn log(&self, number: u64) -> PathBuf {
        self.path.join(format!("{LOG}{number}"))
    }

    pub fn snapshot(&self, number: u64) -> PathBuf {
        self.path.join(format!("{SNAPSHOT}{number}"))
    }

    /// A snapshot that is being written.
    pub fn unfinished(&self, number: u64) -> PathBuf {
        self.path.join(format!("{SNAPSHOT}{number}{UNFINISHED}"))
    }

    /// What is there. Unfinished snapshots are removed.
    pub fn list(&self) -> io::Result<Listed> {
        let mut listed = Listed::default();
        for entry in std::fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.ends_with(UNFINISHED) {
                std::fs::remove_file(self.path.join(name))?;
            } else if let Some(number) = name.strip_prefix(LOG).and_then(|number| number.parse().ok()) {
                listed.logs.push(number);
            } else if let Some(number) = name.strip_prefix(SNAPSHOT).and_then(|number| number.parse().ok()) {
                listed.snapshots.push(number);
            }
        }
        listed.logs.sort_unstable();
        listed.snapshots.sort_unstable();
        Ok(listed)
    }

    /// Removes what a snapshot of this number has made superfluous.
    pub fn remove_before(&self, number: u64) -> io::Result<()> {
        let listed = self.list()?;
        let logs = listed.logs.iter().filter(|n| **n < number).map(|n| self.log(*n));
        let snapshots = listed.snapshots.iter().filter(|n| **n < number).map(|n| self.snapshot(*n));
        logs.chain(snapshots).try_for_each(std::fs::remove_file)
    }

    /// Removes all but the lock, so that nobody gets in between.
    pub fn clear(&self) -> io::Result<()> {
        self.remove_before(u64::MAX)
    }

    /// Brings names that were made, changed or removed to the disk.
    pub fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

/// Locks a file of a cache folder for this process; `path` is what lies in the cache folder.
pub fn lock_file(file: &File, path: &Path) -> Result<(), IndexError> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            let known = file.take(200).read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
            let holder = if known { format!(" ({})", holder.trim()) } else { String::new() };
            Err(IndexError::InUse { folder: path.parent().unwrap_or(path).to_owned(), holder })
        }
        Err(error) => Err(IndexError::io(format!("locking {}", path.display()), error.into())),
    }
}

fn who_am_i() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("process {} on {}", std::process::id(), host.trim())
}
