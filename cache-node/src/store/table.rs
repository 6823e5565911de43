//! Complete objects that nobody uses, as compactly as they can be looked up: 36 bytes each in pages that never move, found by a hash table of
//! 32-bit positions. The checksum of an object of one chunk is in its entry, those of larger ones beside. Knows nothing of locks or disks.

use std::hash::{BuildHasher, RandomState};

use forebay_catalog::ObjectId;
use hashbrown::HashTable;

use super::record::DatasetSlot;
use crate::units::{ChunkIndex, chunk_count};

/// Entries of a page. Small, so that 256 tables waste little.
const PAGE: usize = 256;

/// What is kept of a complete object. Words of 32 bits, so that nothing is lost to alignment.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Entry {
    id: [u8; 16],
    size: [u32; 2],
    dataset: u32,
    /// Of an object of one chunk its checksum, of a larger one the position of its checksums; of a free entry the next free one.
    crc: u32,
    flags: Flags,
}

/// The bits that are kept of an idle object, and its generation: 32 in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Flags(u32);

/// What the table says about an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Idle {
    pub(super) size: u64,
    pub(super) dataset: DatasetSlot,
    pub(super) flags: Flags,
}

impl Flags {
    /// Was read since eviction last looked.
    pub(super) const VISITED: Self = Self(1);
    /// Has a [`super::slot::Slot`], which says more.
    pub(super) const IN_USE: Self = Self(1 << 1);
    /// Was written or verified by this process.
    pub(super) const VERIFIED: Self = Self(1 << 2);

    /// Where the generation begins.
    const GENERATION: u32 = 8;
    /// Generations there are. Two lives of one object are never so far apart while somebody still thinks of the first.
    pub(super) const GENERATIONS: u64 = 1 << (32 - Self::GENERATION);

    pub(super) fn has(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }

    pub(super) fn set(&mut self, flag: Self, on: bool) {
        if on { self.0 |= flag.0 } else { self.0 &= !flag.0 }
    }

    /// Those of an object's life, of which there are [`Flags::GENERATIONS`].
    pub(super) fn new(generation: u64) -> Self {
        Self(((generation % Self::GENERATIONS) as u32) << Self::GENERATION)
    }

    pub(super) fn generation(self) -> u64 {
        u64::from(self.0 >> Self::GENERATION)
    }
}

impl Entry {
    fn size(&self) -> u64 {
        u64::from(self.size[0]) | u64::from(self.size[1]) << 32
    }

    fn idle(&self) -> Idle {
        Idle { size: self.size(), dataset: DatasetSlot(self.dataset), flags: self.flags }
    }
}

/// A table of complete objects.
#[derive(Debug)]
pub(super) struct Table {
    positions: HashTable<u32>,
    pages: Vec<Box<[Entry]>>,
    /// Entries taken so far; those before may be free again.
    taken: u32,
    /// The first of the free ones.
    free: Option<u32>,
    many: Vec<Box<[u32]>>,
    free_many: Vec<u32>,
    seed: u64,
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            positions: HashTable::new(),
            pages: Vec::new(),
            taken: 0,
            free: None,
            many: Vec::new(),
            free_many: Vec::new(),
            // Ids come from names that others choose: without a secret they could choose them to collide.
            seed: RandomState::new().hash_one(0_u64),
        }
    }

    /// Makes room for so many objects in all, so that loading them moves nothing.
    pub(super) fn reserve(&mut self, objects: usize) {
        let (pages, seed) = (&self.pages, self.seed);
        let more = objects.saturating_sub(self.positions.len());
        self.positions.reserve(more, |at| entry(pages, *at).map_or(0, |entry| hash(seed, &entry.id)));
    }

    pub(super) fn get(&self, id: &ObjectId) -> Option<Idle> {
        self.entry(id).map(Entry::idle)
    }

    /// Changes an object's flags.
    pub(super) fn set(&mut self, id: &ObjectId, flag: Flags, on: bool) {
        if let Some(entry) = self.entry_mut(id) {
            entry.flags.set(flag, on);
        }
    }

    pub(super) fn set_dataset(&mut self, id: &ObjectId, dataset: DatasetSlot) {
        if let Some(entry) = self.entry_mut(id) {
            entry.dataset = dataset.0;
        }
    }

    /// The checksum of a chunk; none behind the end.
    pub(super) fn crc(&self, id: &ObjectId, chunk: ChunkIndex) -> Option<u32> {
        self.crcs(self.entry(id)?).get(chunk.0 as usize).copied()
    }

    fn crcs<'a>(&'a self, entry: &'a Entry) -> &'a [u32] {
        match chunk_count(entry.size()) {
            0 => &[],
            1 => std::slice::from_ref(&entry.crc),
            _ => self.many.get(entry.crc as usize).map_or(&[], AsRef::as_ref),
        }
    }

    /// Puts an object in; replaces what was there. `crcs` are those of its chunks.
    pub(super) fn insert(&mut self, id: &ObjectId, size: u64, dataset: DatasetSlot, crcs: &[u32], flags: Flags) {
        if self.entry(id).is_some() {
            self.remove(id);
        }
        let crc = match crcs {
            [] => 0,
            [crc] => *crc,
            many => {
                if let Some(at) = self.free_many.pop() {
                    if let Some(place) = self.many.get_mut(at as usize) {
                        *place = many.into();
                    }
                    at
                } else {
                    self.many.push(many.into());
                    self.many.len() as u32 - 1
                }
            }
        };
        let new =
            Entry { id: *id.as_bytes(), size: [size as u32, (size >> 32) as u32], dataset: dataset.0, crc, flags };
        let at = self.place(new);
        let (pages, seed) = (&self.pages, self.seed);
        self.positions
            .insert_unique(hash(seed, &new.id), at, |at| entry(pages, *at).map_or(0, |entry| hash(seed, &entry.id)));
    }

    fn place(&mut self, new: Entry) -> u32 {
        if let Some(at) = self.free
            && let Some(place) = entry_mut(&mut self.pages, at)
        {
            self.free = (place.crc != u32::MAX).then_some(place.crc);
            *place = new;
            return at;
        }
        let at = self.taken;
        self.taken += 1;
        match entry_mut(&mut self.pages, at) {
            Some(place) => *place = new,
            None => self.pages.push(vec![new; PAGE].into()),
        }
        at
    }

    pub(super) fn remove(&mut self, id: &ObjectId) -> Option<Idle> {
        let pages = &self.pages;
        let is_it = |at: &u32| entry(pages, *at).is_some_and(|entry| entry.id == *id.as_bytes());
        let (at, _) = self.positions.find_entry(hash(self.seed, id.as_bytes()), is_it).ok()?.remove();
        let free = self.free.replace(at).unwrap_or(u32::MAX);
        let place = entry_mut(&mut self.pages, at)?;
        let gone = *place;
        place.crc = free;
        if chunk_count(gone.size()) > 1 {
            if let Some(crcs) = self.many.get_mut(gone.crc as usize) {
                *crcs = Box::default();
            }
            self.free_many.push(gone.crc);
        }
        Some(gone.idle())
    }

    /// All objects with their checksums, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ObjectId, Idle, &[u32])> {
        self.positions.iter().filter_map(|at| {
            let entry = entry(&self.pages, *at)?;
            Some((ObjectId::from_bytes(entry.id), entry.idle(), self.crcs(entry)))
        })
    }

    pub(super) fn len(&self) -> usize {
        self.positions.len()
    }

    fn entry(&self, id: &ObjectId) -> Option<&Entry> {
        let is_it = |at: &u32| entry(&self.pages, *at).is_some_and(|entry| entry.id == *id.as_bytes());
        let at = self.positions.find(hash(self.seed, id.as_bytes()), is_it)?;
        entry(&self.pages, *at)
    }

    fn entry_mut(&mut self, id: &ObjectId) -> Option<&mut Entry> {
        let pages = &self.pages;
        let is_it = |at: &u32| entry(pages, *at).is_some_and(|entry| entry.id == *id.as_bytes());
        let at = *self.positions.find(hash(self.seed, id.as_bytes()), is_it)?;
        entry_mut(&mut self.pages, at)
    }

    /// Bytes that the table takes.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        let many: usize = self.many.iter().map(|crcs| size_of::<Box<[u32]>>() + crcs.len() * 4).sum();
        self.positions.allocation_size() + self.pages.len() * PAGE * size_of::<Entry>() + many
    }
}

fn entry(pages: &[Box<[Entry]>], at: u32) -> Option<&Entry> {
    pages.get(at as usize / PAGE)?.get(at as usize % PAGE)
}

fn entry_mut(pages: &mut [Box<[Entry]>], at: u32) -> Option<&mut Entry> {
    pages.get_mut(at as usize / PAGE)?.get_mut(at as usize % PAGE)
}

/// Ids are evenly distributed already; one multiplication mixes the seed in.
fn hash(seed: u64, id: &[u8; 16]) -> u64 {
    let id = u128::from_le_bytes(*id);
    let product = u128::from(id as u64 ^ seed) * u128::from(((id >> 64) as u64 ^ seed.rotate_left(32)) | 1);
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use forebay_protocol::config::CHUNK_BYTES;
    use proptest::prelude::*;

    use super::*;

    fn id(n: u32) -> ObjectId {
        ObjectId::new("table", &n.to_le_bytes(), "e", 1)
    }

    proptest! {
        #[test]
        fn a_table_is_a_map(steps in proptest::collection::vec((0_u32..40, 0_u32..4, any::<u32>(), any::<bool>()), 0..400)) {
            let (mut table, mut model) = (Table::new(), HashMap::new());
            for (n, chunks, seed, insert) in steps {
                if insert {
                    let size = u64::from(chunks) * CHUNK_BYTES;
                    let crcs: Vec<u32> = (0..chunks).map(|i| seed.wrapping_mul(i + 1)).collect();
                    let mut flags = Flags::default();
                    flags.set(Flags::VISITED, seed % 2 == 0);
                    table.insert(&id(n), size, DatasetSlot(seed), &crcs, flags);
                    model.insert(id(n), (Idle { size, dataset: DatasetSlot(seed), flags }, crcs));
                } else {
                    prop_assert_eq!(table.remove(&id(n)), model.remove(&id(n)).map(|(idle, _)| idle));
                }
            }
            prop_assert_eq!(table.len(), model.len());
            for (id, (idle, crcs)) in &model {
                prop_assert_eq!(table.get(id), Some(*idle));
                for chunk in 0..5 {
                    prop_assert_eq!(table.crc(id, ChunkIndex(chunk)), crcs.get(chunk as usize).copied());
                }
            }
            let all: HashMap<_, _> = table.iter().map(|(id, idle, crcs)| (id, (idle, crcs.to_vec()))).collect();
            prop_assert_eq!(all, model);
        }
    }

    #[test]
    fn an_object_of_one_chunk_takes_at_most_48_bytes() {
        let mut table = Table::new();
        let mut worst = 0;
        for n in 0..200_000_u32 {
            table.insert(&id(n), 4096, DatasetSlot(1), &[n], Flags::default());
            if n > 10_000 {
                worst = worst.max(table.bytes() * 10 / (n as usize + 1));
            }
        }
        assert!(worst <= 490, "{worst} tenths of a byte");
        // What is removed leaves room for as much again.
        let before = table.bytes();
        (0..100_000).for_each(|n| assert!(table.remove(&id(n)).is_some()));
        (0..100_000).for_each(|n| table.insert(&id(n), 4096, DatasetSlot(1), &[n], Flags::default()));
        assert_eq!(table.bytes(), before);
    }
}
