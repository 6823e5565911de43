//! Verified before served. What this process wrote is right; what an earlier life of it left is verified once before a reader is told that it
//! is present. Remembers that with one bit for an object, and with a bitmap only while an object is verified in part.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use forebay_catalog::ObjectId;
use parking_lot::Mutex;

use super::bitmap::Bitmap;
use super::slot::{Body, Slot};
use super::{ObjectRef, Store, StoreError, backing, blocking};
use crate::units::{ByteRange, ChunkIndex, chunk_count};

/// A chunk is read in pieces of so many bytes, into one buffer a thread.
pub(super) const PIECE: usize = 256 << 10;

/// Chunks that are verified at once; more wait.
pub(super) const VERIFICATIONS: usize = 16;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What a look at a chunk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is here and right.
    Good,
    /// It is not here (any more).
    Absent,
    /// It was here, and is not what it should be. It counts as absent from now on and waits for repair.
    Lost,
}

/// Verified chunks of objects that are not verified as a whole. The shard's lock is held around it.
#[derive(Debug)]
pub(super) struct Checked {
    objects: Mutex<HashMap<ObjectId, (u64, Bitmap)>>,
    /// How many chunks were lost, of the objects that share an id's last byte.
    losses: [AtomicU64; 256],
}

impl Default for Checked {
    fn default() -> Self {
        Self { objects: Mutex::default(), losses: [const { AtomicU64::new(0) }; 256] }
    }
}

/// What a chunk is expected to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) generation: u64,
    pub(super) size: u64,
    pub(super) crc: Option<u32>,
    /// When it changes, what was read may have been written over meanwhile.
    losses: u64,
}

impl Checked {
    fn contains(&self, id: &ObjectId, slot: &Slot, chunk: ChunkIndex) -> bool {
        slot.verified
            || self
                .objects
                .lock()
                .get(id)
                .is_some_and(|(life, chunks)| *life == slot.generation && chunks.contains(chunk))
    }

    /// A chunk is right: verified, or just written.
    pub(super) fn insert(&self, id: &ObjectId, slot: &mut Slot, chunk: ChunkIndex) {
        if slot.verified {
            return;
        }
        let mut objects = self.objects.lock();
        let new = || (slot.generation, Bitmap::new(chunk_count(slot.size)));
        let entry = objects.entry(*id).or_insert_with(new);
        if entry.0 != slot.generation {
            *entry = new();
        }
        entry.1.insert(chunk);
        let whole = match &slot.body {
            Body::Complete => entry.1.is_full(),
            Body::Partial(partial) => partial.written.iter().all(|chunk| entry.1.contains(chunk)),
        };
        if whole {
            slot.verified = true;
            objects.remove(id);
        }
    }

    fn losses(&self, id: &ObjectId) -> &AtomicU64 {
        // In range by construction.
        &self.losses[usize::from(id.as_bytes()[15])]
    }

    /// A chunk of an object is lost, and will be written over.
    pub(super) fn count_loss(&self, id: &ObjectId) {
        self.losses(id).fetch_add(1, Ordering::Relaxed);
    }

    /// The object is gone.
    pub(super) fn remove(&self, id: &ObjectId) {
        self.objects.lock().remove(id);
    }
}

impl Store {
    /// Whether a chunk is here and known to be right.
    pub fn is_verified(&self, id: &ObjectId, chunk: ChunkIndex) -> bool {
        self.look(id, chunk) == Some(true)
    }

    /// Whether every chunk is here and known to be right.
    pub fn is_whole(&self, id: &ObjectId) -> bool {
        self.slots.lock(id).get(id).is_some_and(|slot| {
            let complete = match &slot.body {
                Body::Complete => true,
                Body::Partial(partial) => partial.written.is_full(),
            };
            complete && slot.verified && !slot.evicting
        })
    }

    /// Whether a chunk that is here is known to be right; none when it is not here.
    fn look(&self, id: &ObjectId, chunk: ChunkIndex) -> Option<bool> {
        let shard = self.slots.lock(id);
        let slot = shard.get(id).filter(|slot| !slot.evicting && slot.has(chunk))?;
        Some(self.checked.contains(id, &slot, chunk))
    }

    /// Verifies a chunk unless it is known to be right. To be asked before a reader is told that the chunk is present.
    pub async fn check_chunk(self: &Arc<Self>, object: &ObjectRef, chunk: ChunkIndex) -> Result<Verdict, StoreError> {
        match self.look(&object.id, chunk) {
            None => return Ok(Verdict::Absent),
            Some(true) => return Ok(Verdict::Good),
            Some(false) => {}
        }
        let _turn = self.verifications.acquire().await.map_err(|_| StoreError::Closed)?;
        let (this, id) = (Arc::clone(self), object.id);
        blocking(move || this.verify_now(&id, chunk)).await
    }

    /// Reads and verifies a chunk, whatever is known of it.
    pub(super) fn verify_now(&self, id: &ObjectId, chunk: ChunkIndex) -> Result<Verdict, StoreError> {
        let Some(expected) = self.expected(id, chunk) else { return Ok(Verdict::Absent) };
        let range = chunk.range(expected.size);
        let crc = match self.backing.open(id) {
            Ok(Some(found)) => checksum(&found.file, range),
            Ok(None) => Err(io::ErrorKind::NotFound.into()),
            Err(error) => Err(error),
        };
        self.judge(id, chunk, &expected, crc)
    }

    /// What a chunk that is here should be.
    pub(super) fn expected(&self, id: &ObjectId, chunk: ChunkIndex) -> Option<Expected> {
        let shard = self.slots.lock(id);
        let slot = shard.get(id).filter(|slot| !slot.evicting && slot.has(chunk))?;
        let losses = self.checked.losses(id).load(Ordering::Relaxed);
        Some(Expected { generation: slot.generation, size: slot.size, crc: shard.crc(id, chunk), losses })
    }

    /// Compares what was read with what was expected, and remembers it.
    pub(super) fn judge(
        &self,
        id: &ObjectId,
        chunk: ChunkIndex,
        expected: &Expected,
        read: io::Result<u32>,
    ) -> Result<Verdict, StoreError> {
        {
            let mut shard = self.slots.lock(id);
            let slot = shard.get_mut(id);
            let same = |slot: &&mut Slot| slot.generation == expected.generation && !slot.evicting && slot.has(chunk);
            // Evicted or dropped meanwhile.
            let Some(slot) = slot.filter(same) else { return Ok(Verdict::Absent) };
            if read.as_ref().is_ok_and(|crc| Some(*crc) == expected.crc) {
                self.checked.insert(id, slot, chunk);
                return Ok(Verdict::Good);
            }
            // Somebody else found it damaged while it was read, and it is here again: what was read was neither the one nor the other.
            if self.checked.losses(id).load(Ordering::Relaxed) != expected.losses {
                return Ok(Verdict::Absent);
            }
        }
        match read {
            Err(error) if super::fault::classify(&error).is_none() => {
                Err(StoreError::io(format!("reading chunk {} of the cached object {id}", chunk.0), error))
            }
            read => {
                self.lose(id, chunk, expected.generation, read.err());
                Ok(Verdict::Lost)
            }
        }
    }
}

/// Gives this thread's buffer of [`PIECE`] bytes.
pub(super) fn with_buffer<T>(use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| {
        buffer.resize(PIECE, 0);
        use_it(buffer)
    })
}

/// The crc32c of a range of a file. Pages that were not in memory before are not left there: what is verified is seldom what is read next.
fn checksum(file: &File, range: ByteRange) -> io::Result<u32> {
    with_buffer(|buffer| {
        let (mut crc, mut offset) = (0, range.offset);
        while offset < range.end() {
            let length = PIECE.min((range.end() - offset) as usize);
            let Some(piece) = buffer.get_mut(..length) else { break };
            let was_cached = backing::read_piece(file, piece, offset)?;
            crc = crc32c::crc32c_append(crc, piece);
            if !was_cached {
                backing::drop_pages(file, offset, length as u64);
            }
            offset += length as u64;
        }
        Ok(crc)
    })
}
