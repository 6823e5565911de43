//! Files in memory for what the disk can't take: a reader of this machine reads by descriptor, so while the disk is full, read-only or broken it gets one of a
//! sparse memfd that holds what was fetched for it. What a spill file holds once stays as long as anybody has it open. All of them together are bounded.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::MemfdFlags;
use tokio::sync::Notify;

use crate::fetch::FetchError;
use crate::store::bitmap::Bitmap;
use crate::units::{ByteRange, ChunkIndex, chunk_count};

/// How long a reader waits for others to let go of theirs.
const PATIENCE: Duration = Duration::from_secs(10);

/// One file may hold this part of what all may; a reader who wants more gets a new one.
const SHARE: u64 = 8;

/// The bound on all spill files of a node.
#[derive(Debug)]
pub struct SpillPool {
    patience: Duration,
    limit: AtomicU64,
    used: Mutex<u64>,
    freed: Notify,
}

impl Default for SpillPool {
    fn default() -> Self {
        Self { patience: PATIENCE, limit: AtomicU64::new(0), used: Mutex::new(0), freed: Notify::new() }
    }
}

/// One file, for one lease. Its bytes count until it is dropped.
#[derive(Debug)]
pub struct Spill {
    pool: Arc<SpillPool>,
    file: Arc<File>,
    size: u64,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    chunks: Bitmap,
    bytes: u64,
}

impl SpillPool {
    /// All files together may hold so many bytes from now on.
    pub fn set_limit(&self, bytes: u64) {
        self.limit.store(bytes, Ordering::Relaxed);
        self.freed.notify_waiters();
    }

    /// A new file for an object of `size` bytes, and the read-only descriptor for the reader.
    pub fn open(self: &Arc<Self>, size: u64) -> io::Result<(Spill, File)> {
        let file = File::from(rustix::fs::memfd_create("forebay-spill", MemfdFlags::CLOEXEC)?);
        file.set_len(size)?;
        // Opened anew, since a descriptor can't lose its right to write.
        let reader = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        let held = Mutex::new(Held { chunks: Bitmap::new(chunk_count(size)), bytes: 0 });
        Ok((Spill { pool: Arc::clone(self), file: Arc::new(file), size, held }, reader))
    }

    /// Bytes that all files hold.
    pub fn used(&self) -> u64 {
        *self.used.lock()
    }

    fn try_take(&self, bytes: u64) -> bool {
        let mut used = self.used.lock();
        let fits = *used + bytes <= self.limit.load(Ordering::Relaxed);
        if fits {
            *used += bytes;
        }
        fits
    }

    fn give_back(&self, bytes: u64) {
        *self.used.lock() -= bytes;
        self.freed.notify_waiters();
    }

    async fn take(&self, bytes: u64) -> Result<(), FetchError> {
        let taken = tokio::time::timeout(self.patience, async {
            loop {
                let freed = self.freed.notified();
                tokio::pin!(freed);
                freed.as_mut().enable();
                if self.try_take(bytes) {
                    return;
                }
                freed.await;
            }
        });
        taken.await.map_err(|_| {
            FetchError::internal(format!(
                "the cache's disk takes no data and the {} bytes of memory for what it can't take are in use; see `diskFaults` in the node's status and mend the disk",
                self.limit.load(Ordering::Relaxed)
            ))
        })
    }
}

impl Spill {
    /// Whether it holds a chunk.
    pub fn has(&self, chunk: ChunkIndex) -> bool {
        self.held.lock().chunks.contains(chunk)
    }

    /// Whether the reader should go on with a new file, so that this one's bytes can go.
    pub fn is_used_up(&self, range: ByteRange) -> bool {
        let held = self.held.lock();
        let missing = range.chunks().filter(|chunk| !held.chunks.contains(*chunk));
        let missing: u64 = missing.map(|chunk| chunk.range(self.size).length).sum();
        missing > 0 && held.bytes > 0 && held.bytes + missing > self.pool.limit.load(Ordering::Relaxed) / SHARE
    }

    /// Keeps a chunk; waits, within bounds, until there is memory for it.
    pub async fn put(&self, chunk: ChunkIndex, bytes: Bytes) -> Result<(), FetchError> {
        let length = bytes.len() as u64;
        self.pool.take(length).await?;
        let (file, offset) = (Arc::clone(&self.file), chunk.range(self.size).offset);
        let written = tokio::task::spawn_blocking(move || file.write_all_at(&bytes, offset)).await;
        let mut held = self.held.lock();
        match written.map_err(io::Error::other).flatten() {
            Ok(()) if held.chunks.insert(chunk) => {
                held.bytes += length;
                return Ok(());
            }
            // Another request was quicker.
            Ok(()) => {}
            Err(error) => {
                self.pool.give_back(length);
                return Err(FetchError::internal(format!("keeping a chunk in memory: {error}")));
            }
        }
        self.pool.give_back(length);
        Ok(())
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        self.pool.give_back(self.held.get_mut().bytes);
    }
}

#[cfg(test)]
mod tests {
    use forebay_protocol::config::CHUNK_BYTES;

    use super::*;

    #[tokio::test]
    async fn a_spill_file_is_read_only_for_its_reader_and_its_bytes_count_until_it_goes() {
        let pool = Arc::new(SpillPool::default());
        pool.set_limit(2 * CHUNK_BYTES);
        let size = CHUNK_BYTES + 10;
        let (spill, reader) = pool.open(size).unwrap();
        spill.put(ChunkIndex(1), Bytes::from_static(b"0123456789")).await.unwrap();
        spill.put(ChunkIndex(1), Bytes::from_static(b"0123456789")).await.unwrap();
        assert!(spill.has(ChunkIndex(1)) && !spill.has(ChunkIndex(0)) && pool.used() == 10);
        let mut read = [0; 10];
        reader.read_exact_at(&mut read, CHUNK_BYTES).unwrap();
        assert_eq!(&read, b"0123456789");
        assert!(reader.write_at(b"x", 0).is_err() && reader.metadata().unwrap().len() == size);
        assert!(
            spill.is_used_up(ByteRange { offset: 0, length: 1 })
                && !spill.is_used_up(ByteRange { offset: size - 1, length: 1 })
        );
        drop(spill);
        assert_eq!(pool.used(), 0);
        reader.read_exact_at(&mut read, CHUNK_BYTES).unwrap();
        assert_eq!(&read, b"0123456789", "what was handed out stays");
    }

    #[tokio::test]
    async fn who_finds_no_memory_waits_for_a_while_and_is_told_why() {
        let pool = Arc::new(SpillPool { patience: Duration::from_millis(50), ..SpillPool::default() });
        pool.set_limit(10);
        let (first, _a) = pool.open(10).unwrap();
        let (second, _b) = pool.open(10).unwrap();
        first.put(ChunkIndex(0), Bytes::from_static(b"0123456789")).await.unwrap();
        let error = second.put(ChunkIndex(0), Bytes::from_static(b"0123456789")).await.unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
        let (put, ()) =
            tokio::join!(second.put(ChunkIndex(0), Bytes::from_static(b"0123456789")), async { drop(first) });
        put.unwrap();
        assert_eq!(pool.used(), 10);
    }
}
