//! The log of a session's requests under way, for kernels that can't send requests again (before Linux 6.9): what a worker had read and not
//! answered when it was killed, the next one finds here and answers. A file in memory that lives as long as the session, as the table of open
//! inodes does.
//!
//! Each worker has a region of it, whose lock the kernel takes from a worker that dies. A request is in a *slot*, into which the kernel itself
//! copied it, from before the worker knows of it until it is answered; or, when its answer takes time, in an *entry*. It is in both for a moment, and is cleared
//! after the answer; so it may be found although it was answered, and is never missing. The kernel refuses a second answer (ENOENT).

mod slot;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{MemfdFlags, SealFlags};

use crate::abi;
use slot::Slot;

/// First bytes of a log; changes with its layout.
const MAGIC: [u8; 16] = *b"forebay-reqs--01";

/// The regions begin here. The bytes before them are locked in their stead, one for each.
const HEADER: u64 = 4096;

/// Workers that may serve a session at once. In a rolling update there are two.
const REGIONS: u64 = 8;

/// Slots of a region: threads of a worker that read requests.
pub(crate) const SLOTS: usize = 4;

/// Bytes of a slot: as much as the kernel wants to have room for.
const SLOT_BYTES: usize = abi::MIN_READ_BUFFER;

/// Requests of a worker whose answers take time, all of them READs. There may be more, as many as readers wait; those are answered by the thread that
/// read them.
const ENTRIES: u32 = 4096;

/// Bytes of an entry: a READ has 80. None crosses a page.
const ENTRY_BYTES: usize = 128;

const REGION_BYTES: u64 = (SLOTS * SLOT_BYTES + ENTRIES as usize * ENTRY_BYTES) as u64;

/// How long a worker waits for a region.
const PATIENCE: Duration = Duration::from_secs(1);

/// Memory is used for what is touched.
const LENGTH: u64 = HEADER + REGIONS * REGION_BYTES;

/// A worker's region of the log, and the way to the regions of dead ones.
#[derive(Debug)]
pub struct RequestLog {
    /// As it was given. Locks are not taken by it: the plugin has the same, and would keep them.
    shared: OwnedFd,
    /// Opened anew, so that the locks are this value's alone.
    file: File,
    region: u64,
    free: Mutex<Vec<Entry>>,
}

/// What a thread reads its requests into.
#[derive(Debug)]
pub(crate) enum Buffer {
    /// Memory of the process.
    Own(Vec<u8>),
    /// Memory of the log.
    Logged(Slot),
}

impl Buffer {
    /// That of thread `number`. All its pages are there.
    pub(crate) fn of_thread(log: Option<&RequestLog>, number: usize) -> io::Result<Self> {
        match log {
            Some(log) => log.slot(number).map(Self::Logged),
            None => Ok(Self::Own(vec![1; SLOT_BYTES])),
        }
    }

    /// Its memory.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Logged(slot) => slot.bytes(),
        }
    }

    /// What was in it has been answered, or noted elsewhere in the log.
    pub(crate) fn clear(&mut self) {
        if let Self::Logged(slot) = self {
            slot.clear();
        }
    }
}

/// A place for a request whose answer takes time.
#[derive(Debug)]
pub struct Entry(u32);

/// What dead workers left.
#[derive(Debug)]
pub struct Left<'a> {
    log: &'a RequestLog,
    /// Whether other workers live, which may die later.
    pub others_live: bool,
    /// Locked until this is dropped.
    regions: Vec<u64>,
    /// The requests, and where each is. INTERRUPTs come last, after what they interrupt.
    pub requests: Vec<(Place, Vec<u8>)>,
}

/// Where in the log a request is.
#[derive(Debug)]
pub struct Place(u64);

/// Makes an empty log, for a session that has none.
pub fn create() -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("forebay-requests", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let file = File::from(fd);
    file.set_len(LENGTH)?;
    file.write_all_at(&MAGIC, 0)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file.into())
}

/// Whether a file is a log, of this version. Asks nothing that another file could make wait.
pub fn is_log(file: impl AsFd) -> bool {
    let is_sealed = |seals: SealFlags| seals.contains(SealFlags::SHRINK);
    let mut magic = [0; MAGIC.len()];
    rustix::fs::fcntl_get_seals(&file).is_ok_and(is_sealed)
        && rustix::io::pread(&file, &mut magic[..], 0) == Ok(magic.len())
        && magic == MAGIC
}

impl RequestLog {
    /// Takes a region of the log that was made by [`create`]. None is free when too many workers live.
    pub fn open(shared: OwnedFd) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(format!("/proc/self/fd/{}", shared.as_raw_fd()))?;
        if !is_log(&file) || file.metadata()?.len() != LENGTH {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no log of requests of this version"));
        }
        let mut log = Self { shared, file, region: 0, free: Mutex::default() };
        let since = Instant::now();
        loop {
            for region in 0..REGIONS {
                if log.try_lock(region)? {
                    log.region = region;
                    log.free = Mutex::new(log.unused_entries()?);
                    return Ok(log);
                }
            }
            // One that takes up what dead ones left has their regions for a moment.
            if since.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("{REGIONS} workers have it already")));
            }
            std::thread::sleep(PATIENCE / 100);
        }
    }

    /// Low ones are taken first, and always the same, so that little memory is touched.
    fn unused_entries(&self) -> io::Result<Vec<Entry>> {
        let used = self.requests(self.region)?;
        let is_used = |entry: &u32| used.iter().any(|(place, _)| place.0 == self.entry(*entry));
        Ok((0..ENTRIES).rev().filter(|entry| used.is_empty() || !is_used(entry)).map(Entry).collect())
    }

    /// The descriptor to give to others.
    pub fn shared(&self) -> BorrowedFd<'_> {
        self.shared.as_fd()
    }

    /// The buffer of thread `number`. Call [`RequestLog::left`] and clear what it finds before a thread reads into one.
    fn slot(&self, number: usize) -> io::Result<Slot> {
        assert!(number < SLOTS, "a thread without a slot");
        Slot::map(&self.file, offset(self.region) + (number * SLOT_BYTES) as u64)
    }

    /// Notes a request whose answer takes time. `None`: there is no room.
    pub fn enter(&self, request: &[u8]) -> Option<Entry> {
        if request.len() > ENTRY_BYTES {
            return None;
        }
        let entry = self.free().pop()?;
        // One write, that a kill does not cut in half.
        match self.file.write_all_at(request, self.entry(entry.0)) {
            Ok(()) => Some(entry),
            Err(error) => {
                tracing::error!(%error, "a request can't be noted");
                self.free().push(entry);
                None
            }
        }
    }

    /// Whether the next request may find no room, and be waited for by the thread that read it.
    pub(crate) fn is_nearly_full(&self) -> bool {
        self.free().len() <= SLOTS
    }

    /// Its request has been answered.
    pub fn answered(&self, entry: Entry) {
        self.clear(&Place(self.entry(entry.0)));
        self.free().push(entry);
    }

    /// The same of one that a dead worker left. What was an entry of this region before stays unused.
    pub fn clear(&self, place: &Place) {
        if let Err(error) = self.file.write_all_at(&0_u32.to_ne_bytes(), place.0) {
            tracing::error!(%error, "the log of requests can't be written");
        }
    }

    /// The requests that dead workers left in their regions and, at the start, in what is now ours. Nobody else takes them as long as it is there.
    pub fn left(&self, at_start: bool) -> io::Result<Left<'_>> {
        let mut left = Left { log: self, others_live: false, regions: Vec::new(), requests: Vec::new() };
        for region in 0..REGIONS {
            if region == self.region {
                if at_start {
                    left.requests.extend(self.requests(region)?);
                }
            } else if self.try_lock(region)? {
                left.regions.push(region);
                let found = self.requests(region)?;
                if found.is_empty() {
                    // A worker that starts may want it.
                    left.unlock_last();
                }
                left.requests.extend(found);
            } else {
                left.others_live = true;
            }
        }
        left.requests.sort_by_key(|(_, request)| is_interrupt(request));
        Ok(left)
    }

    fn requests(&self, region: u64) -> io::Result<Vec<(Place, Vec<u8>)>> {
        let mut bytes = vec![0; REGION_BYTES as usize];
        self.file.read_exact_at(&mut bytes, offset(region))?;
        let (slots, entries) = bytes.split_at(SLOTS * SLOT_BYTES);
        let places = slots.chunks_exact(SLOT_BYTES).chain(entries.chunks_exact(ENTRY_BYTES));
        let mut found = Vec::new();
        let mut at = offset(region);
        for place in places {
            let length = place.first_chunk().map_or(0, |length| u32::from_ne_bytes(*length)) as usize;
            if length > 0 {
                found.push((Place(at), place.get(..length).unwrap_or(place).to_vec()));
            }
            at += place.len() as u64;
        }
        Ok(found)
    }

    fn entry(&self, entry: u32) -> u64 {
        offset(self.region) + (SLOTS * SLOT_BYTES + entry as usize * ENTRY_BYTES) as u64
    }

    fn try_lock(&self, region: u64) -> io::Result<bool> {
        match self.lock(region, libc::F_WRLCK) {
            Ok(()) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn lock(&self, region: u64, kind: libc::c_int) -> nix::Result<()> {
        let (l_type, l_whence) = (kind as libc::c_short, libc::SEEK_SET as libc::c_short);
        let lock = libc::flock { l_type, l_whence, l_start: region.cast_signed(), l_len: 1, l_pid: 0 };
        fcntl(&self.file, FcntlArg::F_OFD_SETLK(&lock)).map(drop)
    }

    fn free(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Left<'_> {
    fn unlock_last(&mut self) -> bool {
        let Some(region) = self.regions.pop() else { return false };
        if let Err(error) = self.log.lock(region, libc::F_UNLCK) {
            tracing::error!(%error, "a region of the log of requests stays locked");
        }
        true
    }
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        while self.unlock_last() {}
    }
}

fn offset(region: u64) -> u64 {
    HEADER + region * REGION_BYTES
}

fn is_interrupt(request: &[u8]) -> bool {
    let opcode = request.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    opcode == Some(abi::op::INTERRUPT)
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;
    use crate::abi::{InHeader, op};

    fn request(unique: u64, opcode: u32) -> Vec<u8> {
        let header = InHeader { len: 80, opcode, unique, ..InHeader::default() };
        [header.as_bytes(), &[7; 40]].concat()
    }

    fn next(log: &OwnedFd) -> RequestLog {
        RequestLog::open(log.try_clone().unwrap()).unwrap()
    }

    fn left(log: &RequestLog) -> Vec<Vec<u8>> {
        let left = log.left(true).unwrap();
        left.requests.iter().map(|(_, request)| request.clone()).collect()
    }

    #[test]
    fn what_was_not_answered_is_found_until_it_is_cleared() {
        let log = create().unwrap();
        let first = next(&log);
        assert!(left(&first).is_empty());
        let mut slot = first.slot(1).unwrap();
        slot.bytes()[..80].copy_from_slice(&request(1, op::INTERRUPT));
        let (kept, answered) = (first.enter(&request(2, op::READ)), first.enter(&request(3, op::READ)));
        first.answered(answered.unwrap());
        assert!(kept.is_some());
        drop((first, slot));
        for _ in 0..2 {
            assert_eq!(left(&next(&log)), [request(2, op::READ), request(1, op::INTERRUPT)]);
        }
        let second = next(&log);
        let entry = second.enter(&request(4, op::READ)).unwrap();
        {
            let left = second.left(true).unwrap();
            assert_eq!(left.requests.len(), 3, "nothing is written over");
            left.requests
                .iter()
                .filter(|(_, it)| *it != request(4, op::READ))
                .for_each(|(place, _)| second.clear(place));
        }
        assert_eq!(left(&second), [request(4, op::READ)]);
        second.answered(entry);
        assert!(left(&second).is_empty());
    }

    #[test]
    fn what_is_answered_is_cleared_from_a_slot() {
        let log = create().unwrap();
        let first = next(&log);
        let mut slot = first.slot(0).unwrap();
        slot.bytes()[..80].copy_from_slice(&request(1, op::OPEN));
        assert_eq!(left(&first), [request(1, op::OPEN)]);
        slot.clear();
        assert!(left(&first).is_empty());
    }

    #[test]
    fn nothing_is_taken_from_a_worker_that_lives_and_all_from_one_that_died() {
        let log = create().unwrap();
        let (first, second) = (next(&log), next(&log));
        first.enter(&request(1, op::READ)).unwrap();
        let found = second.left(true).unwrap();
        assert!(found.others_live && found.requests.is_empty());
        drop(found);
        drop(first);
        let found = second.left(false).unwrap();
        assert_eq!((found.others_live, found.requests.len()), (false, 1));
        // A third one that comes meanwhile does not take them too.
        assert!(left(&next(&log)).is_empty());
        found.requests.iter().for_each(|(place, _)| second.clear(place));
        drop(found);
        assert!(left(&next(&log)).is_empty());
    }

    #[test]
    fn a_log_that_is_full_says_so_and_takes_more_when_something_was_answered() {
        let log = create().unwrap();
        let worker = next(&log);
        let mut entries: Vec<_> = (0..ENTRIES).map(|it| worker.enter(&request(it.into(), op::READ)).unwrap()).collect();
        assert!(worker.enter(&request(1, op::READ)).is_none());
        worker.answered(entries.pop().unwrap());
        assert!(worker.enter(&request(1, op::READ)).is_some());
        assert!(worker.enter(&[1; ENTRY_BYTES + 1]).is_none(), "longer than an entry");
        drop(worker);
        assert_eq!(left(&next(&log)).len(), ENTRIES as usize);
    }

    #[test]
    fn more_workers_than_regions_and_other_files_are_refused() {
        let log = create().unwrap();
        let workers: Vec<_> = (0..REGIONS).map(|_| next(&log)).collect();
        assert!(RequestLog::open(log.try_clone().unwrap()).is_err());
        drop(workers);
        next(&log);
        let other = rustix::fs::memfd_create("other", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(RequestLog::open(other).is_err());
    }
}
