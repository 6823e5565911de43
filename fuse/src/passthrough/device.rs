#![allow(unsafe_code)]
//! Registering files at /dev/fuse. Needs CAP_SYS_ADMIN.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::BackingId;

/// The kernel's `struct fuse_backing_map`.
#[repr(C)]
pub struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

#[allow(missing_docs)]
mod ioctl {
    nix::ioctl_write_ptr!(backing_open, 229, 1, super::BackingMap);
    nix::ioctl_write_ptr!(backing_close, 229, 2, u32);
}

/// Has a session's kernel side know `file`. It stays open there until it is taken back or the session ends.
pub fn register(session: impl AsFd, file: impl AsFd) -> io::Result<BackingId> {
    let map = BackingMap { fd: file.as_fd().as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: both descriptors are open as long as they are borrowed, and the kernel only reads `map`, which has its layout.
    let id = unsafe { ioctl::backing_open(session.as_fd().as_raw_fd(), &raw const map) }?;
    u32::try_from(id)
        .ok()
        .and_then(BackingId::new)
        .ok_or_else(|| io::Error::other(format!("the kernel gave the id {id}")))
}

/// Takes a registration back.
pub fn unregister(session: impl AsFd, id: BackingId) -> io::Result<()> {
    let id = id.get();
    // SAFETY: the descriptor is open as long as it is borrowed, and the kernel only reads the number.
    unsafe { ioctl::backing_close(session.as_fd().as_raw_fd(), &raw const id) }?;
    Ok(())
}
