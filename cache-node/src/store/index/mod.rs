//! The index on disk: what is present of each object, with checksums, and the numbers of the datasets. Only says that something is present once
//! it is safely on the disk; that order is the committer's business.
//!
//! A folder with a snapshot and the logs since: `snapshot-N` has what `log-1` to `log-(N-1)` said, `log-N` and later ones what came after. A commit
//! is one frame and one `fdatasync`. A torn last frame is cut off; a damaged one in a log means that nothing can be trusted any more
//! (removals may be lost), one in a snapshot loses the objects in it.

mod folder;
mod frame;
mod log;
pub mod snapshot;

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
#[cfg(test)]
use std::sync::Arc;

use forebay_catalog::ObjectId;
use parking_lot::Mutex;

use self::folder::Folder;
use self::log::Log;
#[cfg(test)]
use super::crash::{Crash, CrashPoint};
use super::record::{self, DatasetSlot, Entries, Entry};
use crate::units::{ChunkIndex, chunk_count};

/// Bytes of logs below which no snapshot is made, ...
#[cfg(not(test))]
const FEW_BYTES: u64 = 32 << 20;
#[cfg(test)]
const FEW_BYTES: u64 = 200;
/// ... and above which it is, as a part of the last snapshot.
const LOG_SHARE: u64 = 2;

/// Why the index could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Another process has it.
    #[error(
        "the cache folder {folder} is in use by another cache node{holder}; stop that one, or give this one a folder of its own"
    )]
    InUse {
        /// The cache folder.
        folder: PathBuf,
        /// Who it is, as far as known.
        holder: String,
    },
    /// It can't be trusted.
    #[error("{file} is damaged at byte {offset}")]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where.
        offset: u64,
    },
    /// The disk failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// It was closed.
    #[error("it is closed")]
    Closed,
}

impl IndexError {
    fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }
}

/// What to do with one object's entry.
#[derive(Debug)]
pub enum Change {
    /// These chunks are present too, with their checksums.
    Put {
        /// The dataset that brought it.
        dataset: DatasetSlot,
        /// Bytes of the object.
        size: u64,
        /// The chunks.
        chunks: Vec<(ChunkIndex, u32)>,
    },
    /// Nothing of it is present.
    Remove,
}

/// Takes what the index has when it is opened. Entries of a snapshot come from several threads and in no order, those of logs one after the other.
pub trait Loader: Sync {
    /// About so many objects will come.
    fn expect(&self, objects: u64);
    /// Entries of objects.
    fn load(&self, entries: &mut Entries<'_>);
}

/// The index, until it is closed.
#[derive(Debug)]
pub struct Index {
    /// Places of the snapshot that could not be read: the objects there are lost.
    damaged: usize,
    /// None when closed: then the folder's lock is gone too.
    state: Mutex<Option<State>>,
    #[cfg(test)]
    pub(super) crash: Arc<Crash>,
}

#[derive(Debug)]
struct State {
    folder: Folder,
    log: Log,
    /// Of the log.
    number: u64,
    /// Bytes of the logs between the snapshot and this one.
    behind: u64,
    /// Bytes of the snapshot.
    snapshot: u64,
    /// Bytes of logs at which the next snapshot is due.
    due: u64,
    writing_snapshot: bool,
}

impl Index {
    /// Opens or creates the index and gives everything in it to the loader; the datasets with their numbers.
    pub fn open(path: &Path, loader: &dyn Loader) -> Result<(Self, HashMap<String, DatasetSlot>), IndexError> {
        let folder = Folder::open(path)?;
        let failed = |source| IndexError::io(format!("reading the index {}", path.display()), source);
        let listed = folder.list().map_err(failed)?;
        let mut datasets = HashMap::new();
        let base = listed.snapshots.last().copied();
        let mut snapshot = 0;
        let mut damaged_places = 0;
        if let Some(number) = base {
            let file = folder.snapshot(number);
            let head = |entries: Entries<'_>| {
                for entry in entries {
                    match entry {
                        Entry::Count { objects } => loader.expect(objects),
                        entry => note_dataset(&mut datasets, &entry),
                    }
                }
            };
            match snapshot::read(&file, head, &|entries| loader.load(entries)).map_err(failed)? {
                snapshot::Read::NoHead => return Err(IndexError::Damaged { file, offset: 0 }),
                snapshot::Read::Read { length, damaged } => {
                    snapshot = length;
                    damaged_places = damaged;
                }
            }
            folder.remove_before(number).map_err(failed)?;
        }
        let first = base.unwrap_or(1);
        let mut logs: Vec<u64> = listed.logs.into_iter().filter(|number| *number >= first).collect();
        // Begun and never used: the one before is still the last, and may be torn.
        while let [.., _, last] = logs.as_slice()
            && std::fs::metadata(folder.log(*last)).map_err(failed)?.len() == 0
        {
            std::fs::remove_file(folder.log(*last)).map_err(failed)?;
            logs.pop();
        }
        let mut behind = 0;
        let mut last = None;
        for (number, expected) in logs.iter().copied().zip(first..) {
            let file = folder.log(number);
            // A log that is missing, or cut short although another was begun after it, may have held removals.
            if number != expected {
                return Err(IndexError::Damaged { file: folder.log(expected), offset: 0 });
            }
            let mut each = |mut entries: Entries<'_>| {
                let mut whole = entries.clone();
                for entry in whole.by_ref() {
                    note_dataset(&mut datasets, &entry);
                }
                loader.load(&mut entries);
                whole.is_through()
            };
            match log::read(&file, &mut each).map_err(failed)? {
                log::Read::Damaged { offset } => return Err(IndexError::Damaged { file, offset }),
                log::Read::Whole { length, sequence } => {
                    let torn = std::fs::metadata(&file).map_err(failed)?.len() > length;
                    if torn && logs.last() != Some(&number) {
                        return Err(IndexError::Damaged { file, offset: length });
                    }
                    behind += length;
                    last = Some((number, length, sequence));
                }
            }
        }
        let (number, log) = match last {
            Some((number, length, sequence)) => {
                behind -= length;
                (number, Log::resume(&folder.log(number), length, sequence).map_err(failed)?)
            }
            None if base.is_some() => return Err(IndexError::Damaged { file: folder.log(first), offset: 0 }),
            None => {
                let log = Log::create(&folder.log(first)).map_err(failed)?;
                folder.sync().map_err(failed)?;
                (first, log)
            }
        };
        let due = if damaged_places > 0 { 0 } else { due_after(snapshot) };
        #[cfg(test)]
        let crash: Arc<Crash> = Arc::default();
        #[cfg(test)]
        log.note(&crash);
        let state = State { folder, log, number, behind, snapshot, due, writing_snapshot: false };
        let index = Self {
            damaged: damaged_places,
            state: Mutex::new(Some(state)),
            #[cfg(test)]
            crash,
        };
        Ok((index, datasets))
    }

    /// Places of the snapshot that could not be read when it was opened.
    pub fn damaged_places(&self) -> usize {
        self.damaged
    }

    /// Removes an index that can't be used.
    pub fn remove(path: &Path) -> Result<(), IndexError> {
        let failed = |source| IndexError::io(format!("removing the index {}", path.display()), source);
        let folder = Folder::open(path)?;
        folder.clear().and_then(|()| folder.sync()).map_err(failed)
    }

    /// Removes an index of versions before 0.2 if there is one; whether there was.
    pub fn remove_old(path: &Path, before: impl FnOnce() -> io::Result<()>) -> Result<bool, IndexError> {
        let failed = |source| IndexError::io(format!("removing the old index {}", path.display()), source);
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed(error)),
        };
        // A node of that version may still run.
        match folder::lock_file(&file, path) {
            Err(IndexError::InUse { folder, .. }) => return Err(IndexError::InUse { folder, holder: String::new() }),
            locked => locked?,
        }
        before().and_then(|()| std::fs::remove_file(path)).map_err(failed)?;
        Ok(true)
    }

    /// Applies all changes or none; they are on the disk when this returns.
    pub fn commit(&self, changes: &[(ObjectId, Change)]) -> Result<(), IndexError> {
        let mut payload = Vec::with_capacity(changes.len() * 40);
        for (id, change) in changes {
            match change {
                Change::Put { dataset, size, chunks } => match chunks.as_slice() {
                    [(_, crc)] if chunk_count(*size) == 1 => {
                        record::put_whole(&mut payload, id, *dataset, *size, &[*crc]);
                    }
                    chunks => record::put_part(&mut payload, id, *dataset, *size, chunks.iter().copied()),
                },
                Change::Remove => record::put_removed(&mut payload, id),
            }
        }
        self.append(&payload)
    }

    /// Gives a dataset a number.
    pub fn add_dataset(&self, uid: &str, slot: DatasetSlot) -> Result<(), IndexError> {
        let mut payload = Vec::new();
        record::put_dataset(&mut payload, slot, uid);
        self.append(&payload)
    }

    fn append(&self, payload: &[u8]) -> Result<(), IndexError> {
        let mut state = self.state.lock();
        let state = state.as_mut().ok_or(IndexError::Closed)?;
        let appended = state.log.append(
            payload,
            #[cfg(test)]
            &self.crash,
        );
        appended.map_err(|source| {
            IndexError::io(format!("writing to {}", state.folder.log(state.number).display()), source)
        })
    }

    /// Begins a snapshot if one is due: from now on commits go to the next log. What is put in must have everything that was committed
    /// before, and may have what comes after.
    pub fn begin_snapshot(&self) -> Option<snapshot::Writer> {
        let mut state = self.state.lock();
        let state = state.as_mut()?;
        let logged = state.behind + state.log.length();
        if state.writing_snapshot || logged <= state.due {
            return None;
        }
        // Whatever comes of it, not at once again.
        state.due = logged + FEW_BYTES;
        let number = state.number + 1;
        let begun = Log::create(&state.folder.log(number)).and_then(|log| {
            state.folder.sync()?;
            Ok((log, snapshot::Writer::create(state.folder.unfinished(number), number)))
        });
        match begun {
            Ok((log, writer)) => {
                state.behind = logged;
                (state.log, state.number) = (log, number);
                #[cfg(test)]
                if self.crash.stops_at(CrashPoint::LogRotated) {
                    return None;
                }
                state.writing_snapshot = writer.is_ok();
                writer.inspect_err(warn_of_snapshot).ok()
            }
            Err(error) => {
                warn_of_snapshot(&error);
                None
            }
        }
    }

    /// The next snapshot is due now.
    pub fn make_due(&self) {
        if let Some(state) = self.state.lock().as_mut() {
            state.due = 0;
        }
    }

    /// Makes a snapshot the one that counts, and removes what is superfluous; without one, the begun one is given up.
    pub fn end_snapshot(&self, mut writer: snapshot::Writer, filled: io::Result<()>) {
        // The file reaches the disk before the lock is taken: commits go on meanwhile.
        let finished = filled.and_then(|()| writer.finish());
        #[cfg(test)]
        if self.crash.stops_at(CrashPoint::SnapshotWritten) || self.crash.has_stopped() {
            return;
        }
        let mut state = self.state.lock();
        let Some(state) = state.as_mut() else { return };
        state.writing_snapshot = false;
        let placed = finished.and_then(|length| {
            std::fs::rename(writer.path(), state.folder.snapshot(writer.number))?;
            state.folder.sync()?;
            Ok(length)
        });
        match placed {
            Ok(length) => {
                (state.snapshot, state.behind, state.due) = (length, 0, due_after(length));
                #[cfg(test)]
                if self.crash.stops_at(CrashPoint::SnapshotRenamed) {
                    return;
                }
                if let Err(error) = state.folder.remove_before(writer.number) {
                    tracing::warn!(%error, "superfluous files of the index stay until the next start");
                }
            }
            Err(error) => {
                warn_of_snapshot(&error);
                let _ = std::fs::remove_file(writer.path());
            }
        }
    }

    /// Closes the index and lets the folder go; everything fails from now on.
    pub fn close(&self) {
        drop(self.state.lock().take());
    }
}

fn due_after(snapshot: u64) -> u64 {
    (snapshot / LOG_SHARE).max(FEW_BYTES)
}

fn warn_of_snapshot(error: &io::Error) {
    tracing::warn!(%error, "the index can't be made smaller now; it is tried again later");
}

fn note_dataset(datasets: &mut HashMap<String, DatasetSlot>, entry: &Entry<'_>) {
    if let Entry::Dataset { slot, uid } = entry {
        datasets.insert((*uid).to_owned(), *slot);
    }
}
