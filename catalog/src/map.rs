//! A file of this crate, memory-mapped for reading: the one place with `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags};

/// A whole file as bytes. The file must stay as it is while mapped, which a catalog's files do: they are complete before they have their
/// name, and only ever unlinked. Cutting one short would end the process by SIGBUS.
#[derive(Debug)]
pub(crate) struct Map {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is read-only and belongs to this value alone.
unsafe impl Send for Map {}
// SAFETY: as above; shared reads of memory that nothing writes.
unsafe impl Sync for Map {}

impl Map {
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let len = usize::try_from(file.metadata()?.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        if len == 0 {
            return Ok(Self { start: NonNull::dangling(), len });
        }
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else refers to it.
        let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, 0)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is the start of `len` mapped, readable bytes (or dangling with a length of 0), valid until drop.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the whole of the mapping made in `of`, to which no reference is left.
            let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_is_its_bytes_and_an_empty_one_none() {
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(&*Map::of(&file).unwrap(), b"");
        file.write_all(b"bytes").unwrap();
        assert_eq!(&*Map::of(&file).unwrap(), b"bytes");
    }
}
