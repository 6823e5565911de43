//! Whose a region is: its worker's, which has it by a lock of its own open file (OFD). The kernel takes the lock from a process that dies.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// A region that nobody else has until this is dropped.
#[derive(Debug)]
pub(super) struct Locked<'a> {
    file: &'a File,
    region: u64,
}

impl<'a> Locked<'a> {
    /// The region, if it is nobody's.
    pub(super) fn try_take(file: &'a File, region: u64) -> io::Result<Option<Self>> {
        match lock(file, region, libc::F_WRLCK) {
            Ok(()) => Ok(Some(Self { file, region })),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The region, which nobody else has until the file is closed.
    pub(super) fn keep(self) -> u64 {
        let region = self.region;
        std::mem::forget(self);
        region
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if let Err(error) = lock(self.file, self.region, libc::F_UNLCK) {
            tracing::error!(%error, "a region of the log of requests stays locked");
        }
    }
}

/// In the stead of a region the byte of its number is locked.
fn lock(file: &File, region: u64, kind: libc::c_int) -> nix::Result<()> {
    let (l_type, l_whence) = (kind as libc::c_short, libc::SEEK_SET as libc::c_short);
    let lock = libc::flock { l_type, l_whence, l_start: region.cast_signed(), l_len: 1, l_pid: 0 };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).map(drop)
}
