//! What the node's own disk does wrong: counted by kind, logged, told in `Status`, and called current until it is mended: a disk that takes no
//! writes until a probe succeeds, lost chunks until they are here again. Knows what is to be repaired; who repairs it is the engine.

use std::collections::HashMap;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use forebay_catalog::ObjectId;
use forebay_protocol::node;
pub use forebay_protocol::node::DiskFaultKind;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{IndexError, StoreError};
use crate::told::Told;
use crate::units::ChunkIndex;

/// Most lost chunks that are remembered for repair; what is lost beyond that is fetched again when somebody wants it.
const MOST_LOST: usize = 64 << 10;

/// Every kind there is.
const KINDS: [DiskFaultKind; 6] = [
    DiskFaultKind::DiskFull,
    DiskFaultKind::ReadOnly,
    DiskFaultKind::IoError,
    DiskFaultKind::ChunkDamaged,
    DiskFaultKind::FileMissing,
    DiskFaultKind::IndexDamaged,
];

/// The faults since the start.
#[derive(Debug, Default)]
pub struct Faults {
    records: Mutex<HashMap<DiskFaultKind, Record>>,
    lost: Mutex<HashMap<(ObjectId, ChunkIndex), DiskFaultKind>>,
    news: Notify,
}

#[derive(Debug)]
struct Record {
    count: u64,
    first: i64,
    last: i64,
    message: String,
    /// The disk takes no writes because of it.
    failing: bool,
    /// A failing disk fails many times a second.
    told: Told,
}

impl Faults {
    /// Something was wrong with what the disk holds. `message` names object and cause.
    pub fn report(&self, kind: DiskFaultKind, message: &str) {
        self.record(kind, message, false);
    }

    /// A write, a sync or an unlink failed; until a probe says otherwise the disk takes none. Running out of descriptors or memory is no fault
    /// of the disk and is not counted.
    pub fn report_write(&self, error: &StoreError) {
        if let Some(kind) = kind_of(error) {
            self.record(kind, &error.to_string(), true);
        }
    }

    fn record(&self, kind: DiskFaultKind, message: &str, failing: bool) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        let message = format!("{message}; {}", next_step(kind));
        let mut records = self.records.lock();
        let record = records.entry(kind).or_insert_with(|| Record {
            count: 0,
            first: now,
            last: now,
            message: String::new(),
            failing: false,
            told: Told::default(),
        });
        if record.told.is_due() {
            tracing::error!(kind = label(kind), message, "the cache's disk is at fault");
        } else {
            tracing::debug!(kind = label(kind), message, "the cache's disk is at fault");
        }
        record.count += 1;
        record.last = now;
        record.message = message;
        record.failing |= failing;
    }

    /// A chunk that was here is not, or not as it should be: it is to be brought again.
    pub fn lost(&self, id: ObjectId, chunk: ChunkIndex, kind: DiskFaultKind) {
        let mut lost = self.lost.lock();
        if lost.len() < MOST_LOST {
            lost.insert((id, chunk), kind);
            self.news.notify_one();
        }
    }

    /// A chunk is here again, or nobody wants it any more.
    pub fn mended(&self, id: ObjectId, chunk: ChunkIndex) {
        let mut lost = self.lost.lock();
        if !lost.is_empty() {
            lost.remove(&(id, chunk));
        }
    }

    /// Whether a chunk is to be brought again.
    pub fn is_lost(&self, id: &ObjectId, chunk: ChunkIndex) -> bool {
        let lost = self.lost.lock();
        !lost.is_empty() && lost.contains_key(&(*id, chunk))
    }

    /// The chunks that are to be brought again.
    pub fn lost_chunks(&self) -> Vec<(ObjectId, ChunkIndex)> {
        self.lost.lock().keys().copied().collect()
    }

    /// Waits until a chunk is lost.
    pub async fn loss(&self) {
        self.news.notified().await;
    }

    /// A probe has written to the disk.
    pub fn writes_work(&self) {
        for (kind, record) in self.records.lock().iter_mut().filter(|(_, record)| record.failing) {
            record.failing = false;
            tracing::info!(kind = label(*kind), count = record.count, "the cache's disk takes writes again");
        }
    }

    /// Whether the last that is known of the disk is that it takes no writes.
    pub fn writes_fail(&self) -> bool {
        self.records.lock().values().any(|record| record.failing)
    }

    /// How often each kind happened, under the name that metrics have for it.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let counts: HashMap<_, _> = self.records.lock().iter().map(|(kind, record)| (*kind, record.count)).collect();
        KINDS.into_iter().map(move |kind| (label(kind), counts.get(&kind).copied().unwrap_or(0)))
    }

    /// As the node API tells it.
    pub fn status(&self) -> Vec<node::DiskFault> {
        let lost: Vec<_> = self.lost.lock().values().copied().collect();
        let records = self.records.lock();
        let told = KINDS.into_iter().filter_map(|kind| Some((kind, records.get(&kind)?)));
        told.map(|(kind, record)| node::DiskFault {
            kind: kind.into(),
            count: record.count,
            first_unix_seconds: record.first,
            last_unix_seconds: record.last,
            message: record.message.clone(),
            current: record.failing || lost.contains(&kind),
        })
        .collect()
    }
}

/// What kind of fault an error of a system call is; none when it says nothing of the disk.
pub fn classify(error: &io::Error) -> Option<DiskFaultKind> {
    // Too many open files, no memory, interrupted.
    if matches!(error.raw_os_error(), Some(EMFILE | ENFILE | ENOMEM | EINTR)) {
        return None;
    }
    Some(match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskFaultKind::DiskFull,
        io::ErrorKind::ReadOnlyFilesystem => DiskFaultKind::ReadOnly,
        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => DiskFaultKind::FileMissing,
        _ => DiskFaultKind::IoError,
    })
}

const EMFILE: i32 = rustix::io::Errno::MFILE.raw_os_error();
const ENFILE: i32 = rustix::io::Errno::NFILE.raw_os_error();
const ENOMEM: i32 = rustix::io::Errno::NOMEM.raw_os_error();
const EINTR: i32 = rustix::io::Errno::INTR.raw_os_error();

pub(super) fn kind_of(error: &StoreError) -> Option<DiskFaultKind> {
    match error {
        StoreError::Io { source, .. } => classify(source),
        StoreError::Index(error) => match error {
            IndexError::Io { source, .. } => classify(source),
            IndexError::Damaged { .. } => Some(DiskFaultKind::IndexDamaged),
            IndexError::InUse { .. } | IndexError::Closed => None,
        },
        StoreError::Full { .. } | StoreError::Closed => None,
    }
}

fn label(kind: DiskFaultKind) -> &'static str {
    match kind {
        DiskFaultKind::Unspecified => "unspecified",
        DiskFaultKind::DiskFull => "disk_full",
        DiskFaultKind::ReadOnly => "read_only",
        DiskFaultKind::IoError => "io_error",
        DiskFaultKind::ChunkDamaged => "chunk_damaged",
        DiskFaultKind::FileMissing => "file_missing",
        DiskFaultKind::IndexDamaged => "index_damaged",
    }
}

fn next_step(kind: DiskFaultKind) -> &'static str {
    match kind {
        DiskFaultKind::DiskFull => "free space on the cache's disk, or give the storage a lower capacity",
        DiskFaultKind::ReadOnly => {
            "see the machine's kernel log for the cause, repair the file system, and mount it writable"
        }
        DiskFaultKind::IoError => "see the machine's kernel log for its disk, and replace it if this goes on",
        DiskFaultKind::ChunkDamaged => "it is brought again; check the disk if this goes on",
        DiskFaultKind::FileMissing => {
            "it is brought again; nobody but the cache node may change files in the cache folder"
        }
        DiskFaultKind::IndexDamaged => "what it does not know any more is fetched again; check the disk",
        DiskFaultKind::Unspecified => "see the node's log",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(kind: io::ErrorKind) -> StoreError {
        StoreError::io("writing the cached object x", kind.into())
    }

    #[test]
    fn a_fault_is_counted_by_its_kind_and_current_until_the_disk_works() {
        let faults = Faults::default();
        faults.report_write(&failed(io::ErrorKind::StorageFull));
        faults.report_write(&failed(io::ErrorKind::QuotaExceeded));
        faults.report_write(&failed(io::ErrorKind::ReadOnlyFilesystem));
        faults.report_write(&StoreError::io("x", io::Error::from_raw_os_error(5)));
        assert!(faults.writes_fail());
        let status = faults.status();
        let seen: Vec<_> = status.iter().map(|fault| (fault.kind(), fault.count, fault.current)).collect();
        assert_eq!(
            seen,
            [(DiskFaultKind::DiskFull, 2, true), (DiskFaultKind::ReadOnly, 1, true), (DiskFaultKind::IoError, 1, true)]
        );
        assert!(status[0].message.contains("writing the cached object x") && status[0].message.contains("free space"));
        assert!(status[0].first_unix_seconds > 0 && status[0].last_unix_seconds >= status[0].first_unix_seconds);
        faults.writes_work();
        assert!(!faults.writes_fail() && faults.status().iter().all(|fault| !fault.current));
        assert_eq!(faults.counts().map(|(_, count)| count).collect::<Vec<_>>(), [2, 1, 1, 0, 0, 0]);
    }

    #[test]
    fn what_is_lost_is_current_until_it_is_here_again() {
        let (faults, id) = (Faults::default(), ObjectId::from_bytes([1; 16]));
        faults.report(DiskFaultKind::ChunkDamaged, "chunk 3");
        faults.lost(id, ChunkIndex(3), DiskFaultKind::ChunkDamaged);
        assert!(faults.status()[0].current && !faults.writes_fail());
        assert_eq!(faults.lost_chunks(), [(id, ChunkIndex(3))]);
        faults.mended(id, ChunkIndex(3));
        assert!(!faults.status()[0].current && faults.lost_chunks().is_empty());
    }

    #[test]
    fn running_out_of_descriptors_is_no_fault_of_the_disk() {
        let faults = Faults::default();
        faults.report_write(&StoreError::io("opening", io::Error::from_raw_os_error(EMFILE)));
        faults.report_write(&StoreError::Full { used: 1, held: 0, capacity: 1 });
        assert!(faults.status().is_empty());
    }
}
