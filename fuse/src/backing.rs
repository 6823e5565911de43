//! Reading backing files: at once when the bytes are in memory, else on a thread that may wait for the disk, so that one slow disk read never
//! holds up the requests of others.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::{Errno, ReadWriteFlags};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::session::ANSWER_BYTES;

/// Answers of up to 1 MiB that are in memory at once, beside those of the session's threads: what bounds the daemon's memory.
static BUFFERS: Semaphore = Semaphore::const_new(16);

/// Buffers that wait to be used again: fresh pages cost the kernel as much as the copies into and out of them.
static WAITING: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Result of a read that does not wait.
#[derive(Debug, PartialEq, Eq)]
pub enum Now {
    /// So many bytes are in the buffer.
    Read(usize),
    /// Some of the bytes must come from the disk.
    WouldWait,
}

/// The file of an object in the cache.
#[derive(Debug)]
pub struct BackingFile {
    file: File,
    /// Its file system can't say that a read would wait: tmpfs, where none does.
    never_waits: AtomicBool,
}

impl From<OwnedFd> for BackingFile {
    fn from(fd: OwnedFd) -> Self {
        Self { file: fd.into(), never_waits: AtomicBool::new(false) }
    }
}

/// Fills `buffer` from `offset` if that needs no disk.
pub fn read_now(file: &BackingFile, offset: u64, buffer: &mut [u8]) -> io::Result<Now> {
    let BackingFile { file, never_waits } = file;
    if never_waits.load(Ordering::Relaxed) {
        return Ok(Now::Read(fill(file, offset, buffer)?));
    }
    let mut parts = [io::IoSliceMut::new(buffer)];
    match rustix::io::preadv2(file.as_fd(), &mut parts, offset, ReadWriteFlags::NOWAIT) {
        Ok(length) if length == buffer.len() => Ok(Now::Read(length)),
        // Short: the rest is not in memory. At the end of the file the slow way finds out.
        Ok(_) | Err(Errno::AGAIN) => Ok(Now::WouldWait),
        Err(Errno::OPNOTSUPP) => {
            never_waits.store(true, Ordering::Relaxed);
            Ok(Now::Read(fill(file, offset, buffer)?))
        }
        Err(error) => Err(error.into()),
    }
}

/// Bytes that were read, in one of the process's few buffers.
#[derive(Debug)]
pub struct Bytes {
    /// Of which the first `length` were read.
    buffer: Vec<u8>,
    length: usize,
    /// Held as long as the bytes are.
    _permit: SemaphorePermit<'static>,
}

impl Drop for Bytes {
    fn drop(&mut self) {
        WAITING.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut self.buffer));
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.buffer.get(..self.length).unwrap_or_default()
    }
}

/// Reads `length` bytes from `offset`; fewer only at the end of the file. Waits while all buffers are in use.
pub async fn read(file: Arc<BackingFile>, offset: u64, length: usize) -> io::Result<Bytes> {
    let permit = BUFFERS.acquire().await.map_err(io::Error::other)?;
    let waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let mut buffer = waiting.unwrap_or_else(|| vec![0; ANSWER_BYTES]);
    let place = buffer.get_mut(..length).ok_or(io::ErrorKind::InvalidInput)?;
    if read_now(&file, offset, place)? == Now::Read(length) {
        return Ok(Bytes { buffer, length, _permit: permit });
    }
    let read = tokio::task::spawn_blocking(move || {
        let length = fill(&file.file, offset, buffer.get_mut(..length).unwrap_or_default())?;
        Ok::<_, io::Error>((buffer, length))
    });
    let (buffer, length) = read.await.map_err(io::Error::other)??;
    Ok(Bytes { buffer, length, _permit: permit })
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
        let file = Arc::new(BackingFile::from(OwnedFd::from(file)));
        assert_eq!(&*read(Arc::clone(&file), 4, 3).await.unwrap(), b"456");
        assert_eq!(&*read(Arc::clone(&file), 8, 100).await.unwrap(), b"89");
        let mut buffer = [0; 4];
        assert_eq!(read_now(&file, 2, &mut buffer).unwrap(), Now::Read(4));
        assert_eq!(&buffer, b"2345");
    }
}
