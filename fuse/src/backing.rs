//! Reading backing files: at once when the bytes are in memory, else on a thread that may wait for the disk, so that one slow disk read never
//! holds up the requests of others.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::{Errno, ReadWriteFlags};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Answers of up to 1 MiB that are in memory at once, beside those of the session's threads: what bounds the daemon's memory.
static BUFFERS: Semaphore = Semaphore::const_new(16);

/// Result of a read that does not wait.
#[derive(Debug, PartialEq, Eq)]
pub enum Now {
    /// So many bytes are in the buffer.
    Read(usize),
    /// Some of the bytes must come from the disk.
    WouldWait,
}

/// Fills `buffer` from `offset` if that needs no disk.
pub fn read_now(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<Now> {
    let mut parts = [io::IoSliceMut::new(buffer)];
    match rustix::io::preadv2(file.as_fd(), &mut parts, offset, ReadWriteFlags::NOWAIT) {
        Ok(length) if length == buffer.len() => Ok(Now::Read(length)),
        // Short: the rest is not in memory. At the end of the file the slow way finds out.
        Ok(_) | Err(Errno::AGAIN) => Ok(Now::WouldWait),
        // tmpfs, and file systems that can't tell.
        Err(Errno::OPNOTSUPP) => Ok(Now::Read(fill(file, offset, buffer)?)),
        Err(error) => Err(error.into()),
    }
}

/// Bytes that were read, in one of the process's few buffers.
#[derive(Debug)]
pub struct Bytes {
    bytes: Vec<u8>,
    /// Held as long as the bytes are.
    #[allow(dead_code)]
    buffer: SemaphorePermit<'static>,
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads `length` bytes from `offset`; fewer only at the end of the file. Waits while all buffers are in use.
pub async fn read(file: Arc<File>, offset: u64, length: usize) -> io::Result<Bytes> {
    let buffer = BUFFERS.acquire().await.map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    if read_now(&file, offset, &mut bytes)? == Now::Read(length) {
        return Ok(Bytes { bytes, buffer });
    }
    let read = tokio::task::spawn_blocking(move || {
        let read = fill(&file, offset, &mut bytes)?;
        bytes.truncate(read);
        Ok::<_, io::Error>(bytes)
    });
    Ok(Bytes { bytes: read.await.map_err(io::Error::other)??, buffer })
}

fn fill(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pread(file, rest, offset + done as u64) {
            Ok(0) => break,
            Ok(length) => done += length,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn a_read_ends_at_the_end_of_the_file() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let file = Arc::new(file);
        assert_eq!(&*read(Arc::clone(&file), 4, 3).await.unwrap(), b"456");
        assert_eq!(&*read(Arc::clone(&file), 8, 100).await.unwrap(), b"89");
        let mut buffer = [0; 4];
        assert_eq!(read_now(&file, 2, &mut buffer).unwrap(), Now::Read(4));
        assert_eq!(&buffer, b"2345");
    }
}
