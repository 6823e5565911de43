//! The log of a session's requests under way, for kernels that can't send requests again (before Linux 6.9): what a worker had read and not
//! answered when it was killed, the next one finds here and answers. A file in memory that lives as long as the session, as the table of open
//! inodes does.
//!
//! Each worker has a region of it, whose lock the kernel takes from a worker that dies. A request is in a *slot*, into which the kernel itself
//! copied it, from before the worker knows of it until it is answered; or, when its answer takes time, in an *entry*. It is in both for a moment, and is cleared
//! after the answer; so it may be found although it was answered, and is never missing. The kernel refuses a second answer (ENOENT).

mod layout;
mod locks;
mod slot;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::abi;
pub(crate) use layout::{ENTRIES, SLOTS};
use layout::{ENTRY_BYTES, REGIONS, SLOT_BYTES};
pub use layout::{Place, create, is_log};
use locks::Locked;
use slot::Slot;

/// How long a worker waits for a region.
const PATIENCE: Duration = Duration::from_secs(1);

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
    /// Whether other workers live, which may die later.
    pub others_live: bool,
    /// The requests, and where each is. INTERRUPTs come last, after what they interrupt.
    pub requests: Vec<(Place, Vec<u8>)>,
    /// Where they are, so that nobody else takes them up.
    _regions: Vec<Locked<'a>>,
}

impl RequestLog {
    /// Takes a region of the log that was made by [`create`]. None is free when too many workers live.
    pub fn open(shared: OwnedFd) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(format!("/proc/self/fd/{}", shared.as_raw_fd()))?;
        if !is_log(&file) || !layout::is_whole(&file)? {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no log of requests of this version"));
        }
        let region = Self::take_region(&file)?;
        // Low ones are taken first, and always the same, so that little memory is touched.
        let used = layout::requests(&file, region)?;
        let is_used = |number: u32| used.iter().any(|(place, _)| *place == layout::entry(region, number));
        let unused = (0..ENTRIES).rev().filter(|number| used.is_empty() || !is_used(*number));
        let free = Mutex::new(unused.map(Entry).collect());
        Ok(Self { shared, file, region, free })
    }

    fn take_region(file: &File) -> io::Result<u64> {
        let since = Instant::now();
        loop {
            // One in which nothing was left has room for all that may wait, also for what was left in others.
            let mut used = None;
            for region in 0..REGIONS {
                if let Some(locked) = Locked::try_take(file, region)? {
                    if layout::requests(file, region)?.is_empty() {
                        return Ok(locked.keep());
                    }
                    used.get_or_insert(locked);
                }
            }
            if let Some(used) = used {
                return Ok(used.keep());
            }
            // One that takes up what dead ones left has their regions for a moment.
            if since.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("{REGIONS} workers have it already")));
            }
            std::thread::sleep(PATIENCE / 100);
        }
    }

    /// The descriptor to give to others.
    pub fn shared(&self) -> BorrowedFd<'_> {
        self.shared.as_fd()
    }

    /// The buffer of thread `number`. Call [`RequestLog::left`] and clear what it finds before a thread reads into one.
    fn slot(&self, number: usize) -> io::Result<Slot> {
        assert!(number < SLOTS, "a thread without a slot");
        Slot::map(&self.file, layout::slot(self.region, number).0)
    }

    /// Notes a request whose answer takes time. `None`: there is no room.
    pub fn enter(&self, request: &[u8]) -> Option<Entry> {
        if request.len() > ENTRY_BYTES {
            return None;
        }
        let entry = self.free().pop()?;
        // One write, that a kill does not cut in half.
        match self.file.write_all_at(request, layout::entry(self.region, entry.0).0) {
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
        self.clear(&layout::entry(self.region, entry.0));
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
        let (mut others_live, mut regions, mut requests) = (false, Vec::new(), Vec::new());
        for region in 0..REGIONS {
            if region == self.region {
                if at_start {
                    requests.extend(layout::requests(&self.file, region)?);
                }
            } else if let Some(locked) = Locked::try_take(&self.file, region)? {
                let found = layout::requests(&self.file, region)?;
                // An empty one is let go of: a worker that starts may want it.
                if !found.is_empty() {
                    requests.extend(found);
                    regions.push(locked);
                }
            } else {
                others_live = true;
            }
        }
        requests.sort_by_key(|(_, request)| is_interrupt(request));
        Ok(Left { others_live, requests, _regions: regions })
    }

    fn free(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_interrupt(request: &[u8]) -> bool {
    let opcode = request.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    opcode == Some(abi::op::INTERRUPT)
}

#[cfg(test)]
mod tests {
    use rustix::fs::MemfdFlags;
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
        let worker = next(&log);
        assert_eq!(left(&worker).len(), ENTRIES as usize);
        assert!(worker.enter(&request(1, op::READ)).is_some(), "the next one has room for what it takes up");
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
