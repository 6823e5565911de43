//! The table of open inodes: which are open, how often, and in which mode. A file in memory that the holder of the session makes, and that holder
//! and daemon give each other, so that it lives as long as the session. It is read and written as a file: nobody can be harmed by what
//! the other side does with it, and a file lock, which the kernel takes from a process that is killed, keeps two daemons apart.
//!
//! A count may be too high after a daemon was killed, and is never too low.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{MemfdFlags, SealFlags};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{BackingId, Mode};

/// First bytes of a table; changes with its layout.
const MAGIC: [u8; 16] = *b"forebay-opens-01";

/// The buckets begin here.
const HEADER: u64 = 4096;

/// Entries of a bucket.
const WAYS: usize = 15;

/// Buckets: room for some 200,000 open inodes, of which there are as many as processes have files open. Memory is used for what is touched.
const BUCKETS: u64 = 1 << 14;

/// The byte whose lock is that of the entries ...
const ENTRIES: i64 = 0;

/// ... and the one whose lock is shared by all who are moving a registration into the table or out of it.
const UNDER_WAY: i64 = 1;

/// An open inode. All zeros: a free entry.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Entry {
    node_id: u64,
    /// 0: read by way of the daemon.
    backing_id: u32,
    /// 0 with a backing id: a registration that is to be taken back.
    opens: u32,
}

/// The inodes whose ids have one hash.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Bucket {
    entries: [Entry; WAYS],
    /// Opens of inodes that found no room, all in the daemon's mode.
    unlisted: u64,
    padding: u64,
}

/// The table. One process must have only one.
#[derive(Debug)]
pub struct OpenTable {
    file: File,
    /// The file's lock is the process's, not the thread's.
    threads: Mutex<()>,
    /// Threads of this process that are moving a registration.
    under_way: Mutex<usize>,
}

/// See [`OpenTable::moving`].
pub(super) struct Moving<'a> {
    table: &'a OpenTable,
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        let mut under_way = self.table.under_way();
        *under_way -= 1;
        if *under_way == 0 {
            log_failure(set_lock(&self.table.file, UNDER_WAY, libc::F_UNLCK));
        }
    }
}

/// Both locks, until it is dropped.
struct Locked<'a> {
    table: &'a OpenTable,
    _thread: MutexGuard<'a, ()>,
}

impl OpenTable {
    /// An empty table, for a new session.
    pub fn create() -> io::Result<Self> {
        let fd = rustix::fs::memfd_create("forebay-opens", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let file = File::from(fd);
        file.set_len(HEADER + BUCKETS * size_of::<Bucket>() as u64)?;
        file.write_all_at(&MAGIC, 0)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(Self { file, threads: Mutex::default(), under_way: Mutex::default() })
    }

    /// The table that another process gave.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        let mut magic = [0; MAGIC.len()];
        file.read_exact_at(&mut magic, 0)?;
        if magic != MAGIC || file.metadata()?.len() != HEADER + BUCKETS * size_of::<Bucket>() as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no table of open inodes of this version"));
        }
        Ok(Self { file, threads: Mutex::default(), under_way: Mutex::default() })
    }

    /// Closes another descriptor of the same table. Closing any takes the file's lock away from the whole process, so it waits until no thread has it.
    pub fn close(&self, other: OwnedFd) {
        let _moving = self.under_way();
        let _thread = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        drop(other);
    }

    /// One more open of an inode that is open: its mode. `None`: it is not open, and may have either mode.
    pub(super) fn join(&self, node_id: u64) -> Option<Mode> {
        self.change(node_id, |bucket| join(bucket, node_id)).unwrap_or(Some(Mode::Daemon))
    }

    /// The first open of an inode, with its registered file; or one more, when another was quicker: then in the mode of that.
    pub(super) fn enter(&self, node_id: u64, id: Option<BackingId>) -> Mode {
        let entered = self.change(node_id, |bucket| {
            if let Some(mode) = join(bucket, node_id) {
                return mode;
            }
            let entry = Entry { node_id, backing_id: id.map_or(0, BackingId::get), opens: 1 };
            if let Some(free) = bucket.entries.iter_mut().find(|entry| entry.node_id == 0) {
                *free = entry;
            }
            entry.mode()
        });
        entered.unwrap_or(Mode::Daemon)
    }

    /// One open less. With the last the inode's registration has to be taken back.
    pub(super) fn leave(&self, node_id: u64) -> Option<BackingId> {
        let left = self.change(node_id, |bucket| {
            let Some(entry) = bucket.entries.iter_mut().find(|entry| entry.node_id == node_id) else {
                bucket.unlisted = bucket.unlisted.saturating_sub(1);
                return None;
            };
            entry.opens = entry.opens.saturating_sub(1);
            if entry.opens > 0 {
                return None;
            }
            let id = BackingId::new(entry.backing_id);
            *entry = Entry::new_zeroed();
            id
        });
        left.ok().flatten()
    }

    /// Remembers a registration that nobody could take back. The next open of the inode uses it.
    pub(super) fn put_aside(&self, node_id: u64, id: BackingId) {
        // When it can't be remembered it lasts until the session ends.
        let _ = self.change(node_id, |bucket| {
            if bucket.entries.iter().any(|entry| entry.node_id == node_id) {
                return;
            }
            if let Some(free) = bucket.entries.iter_mut().find(|entry| entry.node_id == 0) {
                *free = Entry { node_id, backing_id: id.get(), opens: 0 };
            }
        });
    }

    /// Takes out the registrations that nothing uses.
    pub(super) fn take_unused(&self) -> Vec<(u64, BackingId)> {
        let mut unused = Vec::new();
        let result = (0..BUCKETS).try_for_each(|index| {
            self.lock()?.change(index, |bucket| {
                for entry in bucket.entries.iter_mut().filter(|entry| entry.opens == 0) {
                    unused.extend(BackingId::new(entry.backing_id).map(|id| (entry.node_id, id)));
                    *entry = Entry::new_zeroed();
                }
            })
        });
        log_failure(result);
        unused
    }

    /// The registrations that inodes have, or had and could not give back.
    fn registrations(&self) -> io::Result<HashSet<BackingId>> {
        let locked = self.lock()?;
        let mut ids = HashSet::new();
        for index in 0..BUCKETS {
            ids.extend(locked.read(index)?.entries.iter().filter_map(|entry| BackingId::new(entry.backing_id)));
        }
        Ok(ids)
    }

    /// Changes the bucket of an inode.
    fn change<T>(&self, node_id: u64, change: impl FnOnce(&mut Bucket) -> T) -> io::Result<T> {
        let changed = self.lock().and_then(|locked| locked.change(bucket_of(node_id), change));
        if let Err(error) = &changed {
            tracing::error!(%error, "the table of open inodes can't be used; files are read by way of the daemon");
        }
        changed
    }

    fn lock(&self) -> io::Result<Locked<'_>> {
        let thread = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        set_lock(&self.file, ENTRIES, libc::F_WRLCK)?;
        Ok(Locked { table: self, _thread: thread })
    }

    /// While a registration is on its way into the table, or out of it to be taken back: so long nobody takes it for a dead daemon's. Ends with the
    /// process, too.
    pub(super) fn moving(&self) -> Moving<'_> {
        let mut under_way = self.under_way();
        *under_way += 1;
        if *under_way == 1 {
            log_failure(set_lock(&self.file, UNDER_WAY, libc::F_RDLCK));
        }
        Moving { table: self }
    }

    /// The registrations that inodes have, or had and could not give back; handed over while no other process is moving one.
    pub fn settled<T>(&self, work: impl FnOnce(&HashSet<BackingId>) -> T) -> io::Result<T> {
        let _close = self.under_way();
        set_lock(&self.file, UNDER_WAY, libc::F_WRLCK)?;
        let result = self.registrations().map(|used| work(&used));
        set_lock(&self.file, UNDER_WAY, libc::F_UNLCK)?;
        result
    }

    fn under_way(&self) -> MutexGuard<'_, usize> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for OpenTable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Locked<'_> {
    fn read(&self, index: u64) -> io::Result<Bucket> {
        let mut bucket = Bucket::new_zeroed();
        self.table.file.read_exact_at(bucket.as_mut_bytes(), offset(index))?;
        Ok(bucket)
    }

    /// One write, that a kill does not cut in half.
    fn change<T>(&self, index: u64, change: impl FnOnce(&mut Bucket) -> T) -> io::Result<T> {
        let before = self.read(index)?;
        let mut bucket = before;
        let result = change(&mut bucket);
        if bucket.as_bytes() != before.as_bytes() {
            self.table.file.write_all_at(bucket.as_bytes(), offset(index))?;
        }
        Ok(result)
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if let Err(error) = set_lock(&self.table.file, ENTRIES, libc::F_UNLCK) {
            tracing::error!(%error, "the table of open inodes stays locked");
        }
    }
}

impl Entry {
    fn mode(&self) -> Mode {
        BackingId::new(self.backing_id).map_or(Mode::Daemon, Mode::Passthrough)
    }
}

/// Node ids are hashes, or numbers in sequence: the multiplication spreads both.
fn bucket_of(node_id: u64) -> u64 {
    node_id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - BUCKETS.ilog2())
}

fn offset(index: u64) -> u64 {
    HEADER + index * size_of::<Bucket>() as u64
}

fn join(bucket: &mut Bucket, node_id: u64) -> Option<Mode> {
    if let Some(entry) = bucket.entries.iter_mut().find(|entry| entry.node_id == node_id) {
        entry.opens = entry.opens.saturating_add(1);
        return Some(entry.mode());
    }
    // It may be one of those that found no room.
    if bucket.unlisted > 0 || bucket.entries.iter().all(|entry| entry.node_id != 0) {
        bucket.unlisted = bucket.unlisted.saturating_add(1);
        return Some(Mode::Daemon);
    }
    None
}

/// Waits for the process's lock on a byte, or gives it back.
fn set_lock(file: &File, byte: i64, kind: libc::c_int) -> io::Result<()> {
    let (l_type, l_whence) = (kind as libc::c_short, libc::SEEK_SET as libc::c_short);
    let lock = libc::flock { l_type, l_whence, l_start: byte, l_len: 1, l_pid: 0 };
    loop {
        match fcntl(file, FcntlArg::F_SETLKW(&lock)) {
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn log_failure(result: io::Result<()>) {
    if let Err(error) = result {
        tracing::error!(%error, "the table of open inodes can't be read");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> BackingId {
        BackingId::new(number).unwrap()
    }

    #[test]
    fn an_inode_keeps_its_mode_until_its_last_open_is_closed() {
        let table = OpenTable::create().unwrap();
        assert_eq!(table.join(7), None);
        assert_eq!(table.enter(7, Some(id(3))), Mode::Passthrough(id(3)));
        assert_eq!(table.join(7), Some(Mode::Passthrough(id(3))));
        assert_eq!(table.enter(7, Some(id(4))), Mode::Passthrough(id(3)), "another was quicker");
        assert_eq!(table.registrations().unwrap(), HashSet::from([id(3)]));
        assert_eq!((table.leave(7), table.leave(7), table.leave(7)), (None, None, Some(id(3))));
        assert_eq!(table.enter(7, None), Mode::Daemon);
        assert_eq!(table.join(7), Some(Mode::Daemon));
        assert_eq!((table.leave(7), table.leave(7), table.leave(7)), (None, None, None));
        assert_eq!(table.join(7), None);
    }

    #[test]
    fn the_next_daemon_finds_what_the_last_one_left() {
        let first = OpenTable::create().unwrap();
        first.enter(7, Some(id(3)));
        first.put_aside(8, id(4));
        first.put_aside(9, id(5));
        let next = OpenTable::from_fd(first.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(next.join(7), Some(Mode::Passthrough(id(3))));
        assert_eq!(next.join(8), Some(Mode::Passthrough(id(4))));
        assert_eq!(next.take_unused(), [(9, id(5))]);
        assert_eq!(next.take_unused(), []);
        assert_eq!(next.leave(8), Some(id(4)));
        let other = rustix::fs::memfd_create("other", MemfdFlags::CLOEXEC).unwrap();
        assert!(OpenTable::from_fd(other).is_err());
    }

    #[test]
    fn without_room_everything_is_read_by_way_of_the_daemon_and_no_count_is_lost() {
        let table = OpenTable::create().unwrap();
        let alike: Vec<_> = (1..).filter(|node| bucket_of(*node) == 5).take(WAYS + 3).collect();
        let open = |node| table.join(node).unwrap_or_else(|| table.enter(node, BackingId::new(node as u32)));
        let modes: Vec<_> = alike.iter().map(|node| open(*node)).collect();
        assert_eq!(modes.iter().filter(|mode| **mode == Mode::Daemon).count(), 3);
        // One of those that found no room may be this one.
        assert_eq!(table.leave(alike[0]), Some(id(alike[0] as u32)));
        assert_eq!(open(alike[0]), Mode::Daemon);
        assert_eq!(table.leave(alike[0]), None);
        for (node, mode) in alike.iter().zip(modes).skip(1) {
            let expected = match mode {
                Mode::Passthrough(id) => Some(id),
                Mode::Daemon => None,
            };
            assert_eq!(table.leave(*node), expected);
        }
        assert!(alike.iter().all(|node| table.join(*node).is_none()));
    }
}
