//! What the store knows in memory about each object: a map from id to slot, split into shards so that threads rarely meet. The shard's
//! lock orders everything that happens to an object.

use std::collections::HashMap;

use forebay_catalog::ObjectId;
use parking_lot::{Mutex, MutexGuard};

use super::bitmap::Bitmap;
use super::record::DatasetSlot;
use crate::units::{ChunkIndex, chunk_count};

const SHARDS: usize = 64;

/// One object.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) size: u64,
    pub(super) dataset: DatasetSlot,
    /// Tells this life of the object from an earlier one that was forgotten.
    pub(super) generation: u64,
    /// Leases and writes under way; the object can't be evicted meanwhile.
    pub(super) pins: u32,
    /// Was used since eviction last looked at it.
    pub(super) visited: bool,
    /// On its way out: its files are about to be unlinked.
    pub(super) evicting: bool,
    pub(super) body: Body,
}

/// How much of an object is here.
#[derive(Debug)]
pub(super) enum Body {
    /// All, verified, in `objects/` (or about to be renamed there at first use).
    Complete,
    /// Some.
    Partial(Box<Partial>),
}

/// An object with chunks still missing.
#[derive(Debug)]
pub(super) struct Partial {
    /// Verified and in the file; may be read.
    pub(super) written: Bitmap,
    /// On the disk and in the index; survives a crash.
    pub(super) committed: Bitmap,
    /// Of the written chunks.
    pub(super) crcs: Vec<u32>,
}

/// What is safely here of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Nothing.
    Absent,
    /// These chunks.
    Partial(Bitmap),
    /// Everything.
    Complete,
}

impl Slot {
    pub(super) fn has(&self, chunk: ChunkIndex) -> bool {
        match &self.body {
            Body::Complete => !chunk.range(self.size).is_empty(),
            Body::Partial(partial) => partial.written.contains(chunk),
        }
    }

    /// What a crash would leave.
    pub(super) fn presence(&self) -> Presence {
        match &self.body {
            Body::Complete => Presence::Complete,
            Body::Partial(partial) => Presence::Partial(partial.committed.clone()),
        }
    }

    /// Bytes in the object's file.
    pub(super) fn bytes(&self) -> u64 {
        match &self.body {
            Body::Complete => self.size,
            Body::Partial(partial) => bytes_of(&partial.written, self.size),
        }
    }
}

impl Partial {
    pub(super) fn new(size: u64) -> Self {
        let chunks = chunk_count(size);
        Self { written: Bitmap::new(chunks), committed: Bitmap::new(chunks), crcs: vec![0; chunks as usize] }
    }
}

impl Presence {
    /// How many bytes that is of an object of `size`.
    pub fn bytes(&self, size: u64) -> u64 {
        match self {
            Self::Absent => 0,
            Self::Complete => size,
            Self::Partial(chunks) => bytes_of(chunks, size),
        }
    }
}

/// Bytes of the marked chunks of an object of `size`.
pub fn bytes_of(chunks: &Bitmap, size: u64) -> u64 {
    let full = ChunkIndex(0).range(u64::MAX).length;
    let Some(last) = chunks.len().checked_sub(1).map(ChunkIndex) else { return 0 };
    let missing_at_end = if chunks.contains(last) { full - last.range(size).length } else { 0 };
    u64::from(chunks.count()) * full - missing_at_end
}

/// All objects.
#[derive(Debug)]
pub(super) struct Slots {
    shards: Vec<Mutex<HashMap<ObjectId, Slot>>>,
}

impl Slots {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    /// The shard that an object belongs to.
    pub(super) fn lock(&self, id: &ObjectId) -> MutexGuard<'_, HashMap<ObjectId, Slot>> {
        let shard = usize::from(id.as_bytes()[15]) % SHARDS;
        // In range by construction.
        self.shards[shard].lock()
    }

    /// The shards, one after the other.
    pub(super) fn shards(&self) -> impl Iterator<Item = MutexGuard<'_, HashMap<ObjectId, Slot>>> {
        self.shards.iter().map(Mutex::lock)
    }
}

#[cfg(test)]
mod tests {
    use forebay_protocol::config::CHUNK_BYTES;

    use super::*;

    #[test]
    fn the_last_chunk_counts_as_much_as_it_holds() {
        let size = 2 * CHUNK_BYTES + 7;
        let mut chunks = Bitmap::new(chunk_count(size));
        chunks.insert(ChunkIndex(2));
        assert_eq!(bytes_of(&chunks, size), 7);
        chunks.insert(ChunkIndex(0));
        assert_eq!(bytes_of(&chunks, size), CHUNK_BYTES + 7);
        assert_eq!(bytes_of(&Bitmap::new(0), 0), 0);
    }
}
