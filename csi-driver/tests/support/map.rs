//! Files mapped into memory.

#![allow(unsafe_code, reason = "mmap; the files of a read-only tree don't change")]

/// A file in memory, as programs map it.
pub struct Map(&'static [u8]);

/// Maps the first `length` bytes of a file, shared and read-only.
pub fn mapped(file: &std::fs::File, length: usize) -> Map {
    use std::os::fd::AsFd;
    let (protection, flags) = (rustix::mm::ProtFlags::READ, rustix::mm::MapFlags::SHARED);
    // SAFETY: a new mapping of a file that nobody writes, at an address that the kernel chooses.
    let address =
        unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, protection, flags, file.as_fd(), 0) }.unwrap();
    // SAFETY: mapped for reading, with this length, until it is dropped.
    Map(unsafe { std::slice::from_raw_parts(address.cast(), length) })
}

impl Map {
    /// Has the next access of each page ask for it again.
    pub fn forget(&self) {
        // SAFETY: a shared mapping of a file that nobody writes: what is dropped is read again.
        unsafe {
            rustix::mm::madvise(self.0.as_ptr().cast_mut().cast(), self.0.len(), rustix::mm::Advice::LinuxDontNeed)
        }
        .unwrap();
    }
}

impl std::ops::Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: it is ours and goes with this.
        unsafe { rustix::mm::munmap(self.0.as_ptr().cast_mut().cast(), self.0.len()) }.unwrap();
    }
}
