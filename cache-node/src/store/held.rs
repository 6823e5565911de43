//! Bytes that are unlinked and still on the disk, because somebody has the file open, or the kernel caches its inode. They count as used until the
//! kernel says that the inode is gone.
//!
//! No call tells who holds a file, but inotify tells when an inode without a name is deleted, which is when the last descriptor, mapping and overlay
//! has let go of it: at once when nobody has it. So a file is watched from just before it is unlinked. What an earlier process of this cache folder
//! unlinked, it does not know.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use parking_lot::Mutex;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::{self, Errno};

/// Room for the events of so many bytes in one read: 16 each.
const EVENTS: usize = 4096;

/// The bytes that are held.
#[derive(Debug, Default)]
pub(super) struct Held {
    files: Mutex<Files>,
}

/// Files whose names are gone, or about to go.
#[derive(Debug, Default)]
struct Files {
    inotify: Option<OwnedFd>,
    /// Bytes of each, by the number of its watch.
    bytes: HashMap<i32, u64>,
    /// Of all.
    sum: u64,
    /// It was said that they can't be watched.
    told: bool,
}

impl Held {
    /// A file with so many bytes is about to be unlinked: the first of these that is there.
    pub(super) fn unlinking(&self, bytes: u64, paths: &[PathBuf]) {
        let mut files = self.files.lock();
        match files.watch(bytes, paths) {
            Ok(()) => {}
            Err(error) if files.told => tracing::debug!(%error, "a file that is evicted can't be watched"),
            Err(error) => {
                files.told = true;
                tracing::warn!(
                    %error,
                    "a file that is evicted can't be watched, so it counts as gone though readers may hold its bytes; \
                     raise fs.inotify.max_user_watches and max_user_instances on this machine"
                );
            }
        }
        // Looked at here too, so that the kernel's queue of events stays short.
        files.forget_the_deleted();
    }

    /// How many bytes are held.
    pub(super) fn bytes(&self) -> u64 {
        let mut files = self.files.lock();
        // None most of the time, and then nothing is asked.
        if !files.bytes.is_empty() {
            files.forget_the_deleted();
        }
        files.sum
    }
}

impl Files {
    fn watch(&mut self, bytes: u64, paths: &[PathBuf]) -> io::Result<()> {
        let inotify = match &self.inotify {
            Some(inotify) => inotify,
            None => self.inotify.insert(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?),
        };
        for path in paths {
            match inotify::add_watch(inotify, path, WatchFlags::DELETE_SELF) {
                Ok(watch) => {
                    // Again when its unlinking failed the first time.
                    let before = self.bytes.insert(watch, bytes).unwrap_or(0);
                    self.sum = self.sum - before + bytes;
                    break;
                }
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn forget_the_deleted(&mut self) {
        let Some(inotify) = &self.inotify else { return };
        let mut buffer = [MaybeUninit::uninit(); EVENTS];
        let mut events = Reader::new(inotify, &mut buffer);
        let mut lost_some = false;
        // It ends when there are no more, as a rule with EAGAIN.
        while let Ok(event) = events.next() {
            lost_some |= event.events().contains(ReadFlags::QUEUE_OVERFLOW);
            if event.events().contains(ReadFlags::IGNORED) {
                self.sum -= self.bytes.remove(&event.wd()).unwrap_or(0);
            }
        }
        if lost_some {
            let left = watches(inotify);
            self.bytes.retain(|watch, _| left.contains(watch));
            self.sum = self.bytes.values().sum();
        }
    }
}

/// All watches that there are. None when the kernel does not tell: then what is held counts as gone.
fn watches(inotify: &OwnedFd) -> HashSet<i32> {
    let told = fs::read_to_string(format!("/proc/self/fdinfo/{}", inotify.as_raw_fd())).unwrap_or_default();
    let lines = told.lines().filter_map(|line| line.strip_prefix("inotify wd:"));
    // In hexadecimal.
    lines.filter_map(|line| i32::from_str_radix(line.split(' ').next()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Makes a file and has it unlinked under watch.
    fn unlink(held: &Held, path: PathBuf, bytes: u64) {
        let paths = [path.with_extension("not there"), path];
        held.unlinking(bytes, &paths);
        fs::remove_file(&paths[1]).unwrap();
    }

    #[test]
    fn what_somebody_has_open_is_held_until_it_is_closed_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let (held, make) = (Held::default(), |name: &str| {
            let path = folder.path().join(name);
            fs::write(&path, name).unwrap();
            path
        });
        let (one, two, three) = (make("one"), make("two"), make("three"));
        let (first, again) = (File::open(&one).unwrap(), File::open(&one).unwrap());
        let third = File::open(&three).unwrap();
        assert_eq!(held.bytes(), 0);
        unlink(&held, one, 4 * MIB);
        unlink(&held, two, 6 * MIB);
        unlink(&held, three, MIB);
        assert_eq!(held.bytes(), 5 * MIB);
        // What others do with the disk does not count.
        make("another");
        drop(first);
        assert_eq!(held.bytes(), 5 * MIB, "it is open once more");
        drop(again);
        assert_eq!(held.bytes(), MIB);
        drop(third);
        assert_eq!(held.bytes(), 0);
    }

    #[test]
    fn a_file_that_could_not_be_unlinked_counts_once() {
        let folder = tempfile::tempdir().unwrap();
        let (held, path) = (Held::default(), folder.path().join("file"));
        fs::write(&path, "bytes").unwrap();
        held.unlinking(MIB, std::slice::from_ref(&path));
        assert_eq!(held.bytes(), MIB);
        unlink(&held, path.clone(), MIB);
        assert_eq!(held.bytes(), 0);
        held.unlinking(MIB, &[path]);
        assert_eq!(held.bytes(), 0, "it is gone already");
    }

    #[test]
    fn more_deletions_than_the_kernel_tells_of_are_seen_all_the_same() {
        let most: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
        // Each tells twice: that it is gone, and that it is watched no more.
        let (folder, held, count) = (tempfile::tempdir().unwrap(), Held::default(), most / 2 + 100);
        let paths: Vec<_> = (0..count).map(|n| folder.path().join(n.to_string())).collect();
        for path in &paths {
            fs::write(path, "").unwrap();
            held.unlinking(MIB, std::slice::from_ref(path));
        }
        let open = File::open(&paths[7]).unwrap();
        // While nobody looks.
        for path in &paths {
            fs::remove_file(path).unwrap();
        }
        assert_eq!(held.bytes(), MIB);
        drop(open);
        assert_eq!(held.bytes(), 0);
    }
}
