//! What the store knows in memory about each object, split into shards so that threads rarely meet. The shard's lock orders everything that
//! happens to an object.
//!
//! A complete object is in the shard's [`Table`], which has its checksums. An object in use (leased, partial, being written or evicted) has a
//! [`Slot`] besides, or instead while it is not complete. The slot of a complete object goes when it is no longer in use.

mod load;

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};

use forebay_catalog::ObjectId;
use parking_lot::{Mutex, MutexGuard};

use super::bitmap::Bitmap;
use super::record::DatasetSlot;
use super::table::{Flags, Idle, Table};
use crate::units::{ChunkIndex, chunk_count};

const SHARDS: usize = 256;

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
    /// All that is here was written or verified by this process; else see [`super::verify::Checked`].
    pub(super) verified: bool,
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
    fn of_idle(idle: &Idle) -> Self {
        let Idle { size, dataset, flags } = *idle;
        let (visited, verified) = (flags.has(Flags::VISITED), flags.has(Flags::VERIFIED));
        let generation = flags.generation();
        Self { size, dataset, generation, pins: 0, visited, evicting: false, verified, body: Body::Complete }
    }

    /// Whether all there is to say about it fits into the table.
    fn is_idle(&self) -> bool {
        matches!(self.body, Body::Complete) && self.pins == 0 && !self.evicting
    }

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
    shards: Box<[Mutex<Shard>]>,
    generations: AtomicU64,
}

/// Some of the objects.
#[derive(Debug)]
struct Shard {
    complete: Table,
    in_use: HashMap<ObjectId, Slot>,
}

/// A locked shard.
#[derive(Debug)]
pub(super) struct Guard<'a> {
    shard: MutexGuard<'a, Shard>,
    generations: &'a AtomicU64,
    /// Whose slot was given out last; it may not be needed any more.
    touched: Option<ObjectId>,
}

/// An object as it is seen, without being changed.
#[derive(Debug)]
pub(super) enum Seen<'a> {
    InUse(&'a Slot),
    Idle(Slot),
}

impl Deref for Seen<'_> {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        match self {
            Self::InUse(slot) => slot,
            Self::Idle(slot) => slot,
        }
    }
}

impl Slots {
    pub(super) fn new() -> Self {
        let shard = || Mutex::new(Shard { complete: Table::new(), in_use: HashMap::new() });
        Self { shards: (0..SHARDS).map(|_| shard()).collect(), generations: AtomicU64::new(1) }
    }

    /// The shard that an object belongs to.
    pub(super) fn lock(&self, id: &ObjectId) -> Guard<'_> {
        // In range by construction.
        self.guard(&self.shards[shard_of(id)])
    }

    fn guard<'a>(&'a self, shard: &'a Mutex<Shard>) -> Guard<'a> {
        Guard { shard: shard.lock(), generations: &self.generations, touched: None }
    }

    /// How many shards there are.
    pub(super) fn shard_count(&self) -> usize {
        self.shards.len()
    }

    /// The objects of one shard, in order.
    pub(super) fn ids(&self, shard: usize) -> Vec<ObjectId> {
        let Some(shard) = self.shards.get(shard) else { return Vec::new() };
        let mut ids: Vec<_> = self.guard(shard).iter().map(|(id, _)| id).collect();
        ids.sort_unstable_by_key(|id| *id.as_bytes());
        ids
    }

    /// The shards, one after the other.
    pub(super) fn shards(&self) -> impl Iterator<Item = Guard<'_>> {
        self.shards.iter().map(|shard| self.guard(shard))
    }
}

fn shard_of(id: &ObjectId) -> usize {
    usize::from(id.as_bytes()[15]) % SHARDS
}

impl Guard<'_> {
    /// Whether the chunk can be read.
    pub(super) fn has(&self, id: &ObjectId, chunk: ChunkIndex) -> bool {
        self.get(id).is_some_and(|slot| !slot.evicting && slot.has(chunk))
    }

    /// The checksum of a chunk that is present.
    pub(super) fn crc(&self, id: &ObjectId, chunk: ChunkIndex) -> Option<u32> {
        match self.shard.in_use.get(id) {
            Some(Slot { body: Body::Partial(partial), .. }) if partial.written.contains(chunk) => {
                partial.crcs.get(chunk.0 as usize).copied()
            }
            Some(Slot { body: Body::Partial(_), .. }) => None,
            _ => self.shard.complete.crc(id, chunk),
        }
    }

    /// An object as it is.
    pub(super) fn get(&self, id: &ObjectId) -> Option<Seen<'_>> {
        match self.shard.complete.get(id) {
            Some(idle) if !idle.flags.has(Flags::IN_USE) => Some(Seen::Idle(Slot::of_idle(&idle))),
            _ => self.shard.in_use.get(id).map(Seen::InUse),
        }
    }

    pub(super) fn contains_key(&self, id: &ObjectId) -> bool {
        self.get(id).is_some()
    }

    /// An object to be changed; it has a slot while this shard is locked, and as long after as it is in use.
    pub(super) fn get_mut(&mut self, id: &ObjectId) -> Option<&mut Slot> {
        self.tidy();
        if let Some(idle) = self.shard.complete.get(id)
            && !idle.flags.has(Flags::IN_USE)
        {
            self.shard.complete.set(id, Flags::IN_USE, true);
            self.shard.in_use.insert(*id, Slot::of_idle(&idle));
        }
        self.touched = Some(*id);
        self.shard.in_use.get_mut(id)
    }

    /// Marks an object as used; whether it was here and not marked.
    pub(super) fn touch(&mut self, id: &ObjectId) -> bool {
        self.set_visited(id, true) == Some(false)
    }

    /// Takes the mark away; whether there was one.
    pub(super) fn take_visited(&mut self, id: &ObjectId) -> bool {
        self.set_visited(id, false) == Some(true)
    }

    /// What it was before; none when it is not here.
    fn set_visited(&mut self, id: &ObjectId, visited: bool) -> Option<bool> {
        if let Some(slot) = self.shard.in_use.get_mut(id) {
            return Some(std::mem::replace(&mut slot.visited, visited));
        }
        let before = self.shard.complete.get(id)?.flags.has(Flags::VISITED);
        self.shard.complete.set(id, Flags::VISITED, visited);
        Some(before)
    }

    /// An object of which nothing is here. Whatever was known of it is forgotten.
    pub(super) fn insert(&mut self, id: &ObjectId, size: u64, dataset: DatasetSlot) -> &mut Slot {
        self.shard.complete.remove(id);
        let generation = self.generations.fetch_add(1, Ordering::Relaxed) % Flags::GENERATIONS;
        let body = Body::Partial(Box::new(Partial::new(size)));
        let slot = Slot { size, dataset, generation, pins: 0, visited: false, evicting: false, verified: true, body };
        self.shard.in_use.entry(*id).insert_entry(slot).into_mut()
    }

    /// The object has every chunk, in the file and in the index.
    pub(super) fn complete(&mut self, id: &ObjectId) {
        let Shard { complete, in_use } = &mut *self.shard;
        let Some(slot) = in_use.get_mut(id) else { return };
        if let Body::Partial(partial) = &slot.body {
            let mut flags = Flags::new(slot.generation);
            flags.set(Flags::IN_USE, true);
            complete.insert(id, slot.size, slot.dataset, &partial.crcs, flags);
            slot.body = Body::Complete;
            self.touched = Some(*id);
        }
    }

    /// A complete object has lost a chunk: it is in use until it has it again, whatever else becomes of it. False when it is not complete.
    pub(super) fn lose(&mut self, id: &ObjectId, chunk: ChunkIndex) -> bool {
        let Some(slot) = self.get_mut(id) else { return false };
        let (mut partial, size) = (Partial::new(slot.size), slot.size);
        if matches!(slot.body, Body::Partial(_)) {
            return false;
        }
        for other in (0..chunk_count(size)).map(ChunkIndex) {
            if let (Some(crc), Some(kept)) =
                (self.shard.complete.crc(id, other), partial.crcs.get_mut(other.0 as usize))
            {
                *kept = crc;
                if other != chunk {
                    partial.written.insert(other);
                    partial.committed.insert(other);
                }
            }
        }
        self.shard.complete.remove(id);
        if let Some(slot) = self.shard.in_use.get_mut(id) {
            slot.body = Body::Partial(Box::new(partial));
        }
        true
    }

    pub(super) fn remove(&mut self, id: &ObjectId) -> Option<Slot> {
        let idle = self.shard.complete.remove(id);
        self.shard.in_use.remove(id).or_else(|| Some(Slot::of_idle(&idle?)))
    }

    /// All objects as they are, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ObjectId, Seen<'_>)> {
        let idle = self.shard.complete.iter().filter(|(_, idle, _)| !idle.flags.has(Flags::IN_USE));
        let idle = idle.map(|(id, idle, _)| (id, Seen::Idle(Slot::of_idle(&idle))));
        idle.chain(self.shard.in_use.iter().map(|(id, slot)| (*id, Seen::InUse(slot))))
    }

    /// All complete objects, in use or not, with their checksums.
    pub(super) fn complete_objects(&self) -> impl Iterator<Item = (ObjectId, Idle, &[u32])> {
        self.shard.complete.iter()
    }

    /// All objects with chunks missing.
    pub(super) fn partial_objects(&self) -> impl Iterator<Item = (ObjectId, &Slot, &Partial)> {
        self.shard.in_use.iter().filter_map(|(id, slot)| match &slot.body {
            Body::Partial(partial) => Some((*id, slot, &**partial)),
            Body::Complete => None,
        })
    }

    /// How many objects there are.
    pub(super) fn len(&self) -> usize {
        let in_use = self.shard.in_use.values();
        self.shard.complete.len() + in_use.filter(|slot| matches!(slot.body, Body::Partial(_))).count()
    }

    /// Takes the slot away from an object that is no longer in use.
    fn tidy(&mut self) {
        let Some(id) = self.touched.take() else { return };
        let Shard { complete, in_use } = &mut *self.shard;
        if in_use.get(&id).is_some_and(Slot::is_idle)
            && let Some(slot) = in_use.remove(&id)
        {
            complete.set(&id, Flags::IN_USE, false);
            complete.set(&id, Flags::VISITED, slot.visited);
            complete.set(&id, Flags::VERIFIED, slot.verified);
            complete.set_dataset(&id, slot.dataset);
        }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.tidy();
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
