#![allow(unsafe_code)]
//! Memory of the log into which a session's thread reads its requests: the kernel itself copies each there, so that none is ever only in the
//! memory of a process that may be killed.

use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

use super::SLOT_BYTES;

/// A thread's buffer in the log. A request in it counts as unanswered until it is cleared. The log can't be cut short, so touching the memory is
/// always allowed; only the process that has the region's lock does.
#[derive(Debug)]
pub(crate) struct Slot {
    start: NonNull<u8>,
}

// SAFETY: the mapping belongs to this value alone.
unsafe impl Send for Slot {}

impl Slot {
    /// Maps the page-aligned bytes of `file` from `offset` on. All pages are there from now on: one that is not while the kernel copies a request
    /// into it, and the process is killed just then, fails the request.
    pub(super) fn map(file: impl AsFd, offset: u64) -> io::Result<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::POPULATE);
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else in the process refers to it.
        let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), SLOT_BYTES, protection, flags, file, offset)? };
        let slot = Self { start: NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)? };
        // Nor are they to be swapped out. Where that is not allowed they are hardly ever, being in use all the time.
        // SAFETY: the whole of the mapping just made.
        let _ = unsafe { rustix::mm::mlock(start, SLOT_BYTES) };
        Ok(slot)
    }

    /// The whole of it.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped, readable and writable, until drop; borrowed as long as `self` is, which nothing else aliases.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), SLOT_BYTES) }
    }

    /// What was in it has been answered, or noted elsewhere in the log.
    pub(super) fn clear(&mut self) {
        // SAFETY: the first four of the mapped bytes, aligned as the page is; no slice of them is borrowed while `self` is.
        let length = unsafe { AtomicU32::from_ptr(self.start.as_ptr().cast()) };
        length.store(0, Ordering::Release);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: the whole of the mapping made in `map`, to which no reference is left.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), SLOT_BYTES) };
    }
}
