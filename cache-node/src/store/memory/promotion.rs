//! Bringing objects into memory: one thread copies what was opened again, what is pinned first. The queue is short; what does not get in is
//! asked for with its next use.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use forebay_catalog::ObjectId;
use parking_lot::{Condvar, Mutex};

use super::super::slot::{Body, Guard};
use super::super::verify::{PIECE, with_buffer};
use super::super::{Class, Store, StoreError, Verdict, backing};
use super::MemoryTier;
use crate::units::{ByteRange, ChunkIndex, chunk_count};

/// Most objects that wait.
const WAITING: usize = 1024;

/// An object that is to be brought into memory.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    id: ObjectId,
    /// The last class of which copies may go for it.
    upto: Class,
}

/// What is to be brought into memory.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    pinned: VecDeque<Wanted>,
    others: VecDeque<Wanted>,
    known: HashSet<ObjectId>,
    closed: bool,
}

impl Queue {
    /// False when it is full.
    fn push(&self, wanted: Wanted, is_pinned: bool) -> bool {
        let mut state = self.state.lock();
        let state = &mut *state;
        let queue = if is_pinned { &mut state.pinned } else { &mut state.others };
        if queue.len() >= WAITING {
            return false;
        }
        if state.known.insert(wanted.id) {
            queue.push_back(wanted);
            self.changed.notify_one();
        }
        true
    }

    /// Waits for the next; none when the store is closed.
    fn next(&self) -> Option<Wanted> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(wanted) = state.pinned.pop_front().or_else(|| state.others.pop_front()) {
                return Some(wanted);
            }
            self.changed.wait(&mut state);
        }
    }

    /// Nothing waits and nothing is being copied.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.state.lock().known.is_empty()
    }

    fn done(&self, id: &ObjectId) {
        self.state.lock().known.remove(id);
    }
}

impl MemoryTier {
    /// Nothing is copied from now on.
    pub(in super::super) fn close(&self) {
        self.queue.state.lock().closed = true;
        self.queue.changed.notify_all();
    }
}

/// The thread that copies. It ends when the tier is closed or the store is gone.
pub(super) fn start(store: &Arc<Store>, tier: Arc<MemoryTier>) -> io::Result<JoinHandle<()>> {
    let store = Arc::downgrade(store);
    std::thread::Builder::new().name("promoter".to_owned()).spawn(move || run(&store, &tier))
}

fn run(store: &Weak<Store>, tier: &MemoryTier) {
    while let Some(wanted) = tier.queue.next() {
        let Some(store) = store.upgrade() else { return };
        if let Err(error) = store.promote(tier, wanted) {
            tracing::warn!(id = %wanted.id, %error, "an object could not be copied into memory; it is read from the disk");
        }
        tier.queue.done(&wanted.id);
    }
}

impl Store {
    /// An object that is here was opened by a reader of this machine: worth a copy in memory.
    pub(in super::super) fn want_in_memory(&self, id: &ObjectId) {
        let Some(tier) = self.memory.get() else { return };
        if tier.touch(id) || !is_complete(&self.slots.lock(id), id) {
            return;
        }
        let classes = self.classes.read().clone();
        let is_pinned = classes(id) == Class::Pinned;
        let upto = if is_pinned { Class::Pinned } else { Class::Owned };
        tier.queue.push(Wanted { id: *id, upto }, is_pinned);
    }

    /// An object is complete from now on: if it is pinned it need not wait for its next use.
    pub(in super::super) fn note_complete(&self, id: &ObjectId) {
        let Some(tier) = self.memory.get() else { return };
        let classes = self.classes.read().clone();
        if classes(id) == Class::Pinned {
            tier.queue.push(Wanted { id: *id, upto: Class::Owned }, true);
        }
    }

    /// Brings what is complete here and `is_pinned` into memory, as far as there is room that nothing pinned has, before what is only hot.
    pub fn promote_pinned(&self, is_pinned: impl Fn(&ObjectId) -> bool) {
        let Some(tier) = self.memory.get() else { return };
        for shard in 0..self.slots.shard_count() {
            for id in self.slots.ids(shard) {
                let wanted = is_complete(&self.slots.lock(&id), &id) && is_pinned(&id);
                if wanted && !tier.queue.push(Wanted { id, upto: Class::Owned }, true) {
                    // The rest when it is opened.
                    return;
                }
            }
        }
    }

    fn promote(&self, tier: &MemoryTier, wanted: Wanted) -> Result<(), StoreError> {
        let id = wanted.id;
        if tier.copies.lock().objects.contains_key(&id) {
            return Ok(());
        }
        let life = {
            let shard = self.slots.lock(&id);
            shard.get(&id).filter(|_| is_complete(&shard, &id)).map(|slot| (slot.generation, slot.size))
        };
        let Some((generation, size)) = life else { return Ok(()) };
        let classes = self.classes.read().clone();
        if size == 0 || !tier.take_room(size, wanted.upto, &classes) {
            return Ok(());
        }
        let copied = self.copy(tier, &id, generation, size);
        let kept = copied.and_then(|right| {
            // Under the object's lock: it can't leave between the look and the rename.
            let shard = self.slots.lock(&id);
            let same = shard.get(&id).is_some_and(|slot| slot.generation == generation) && is_complete(&shard, &id);
            if right && same {
                tier.backing.publish(&id).map_err(|error| failed(&id, error))?;
                tier.insert(id, size);
            }
            Ok(right && same)
        });
        if !matches!(kept, Ok(true)) {
            tier.backing.remove_stray(&id);
            tier.give_room_back(size);
        }
        kept.map(drop)
    }

    /// Copies an object's file; whether every chunk of the copy is right.
    fn copy(&self, tier: &MemoryTier, id: &ObjectId, generation: u64, size: u64) -> Result<bool, StoreError> {
        let to = tier.backing.open_for_writing(id, size).map_err(|error| failed(id, error))?;
        let Some(from) = self.backing.open(id).map_err(|error| failed(id, error))? else { return Ok(false) };
        for chunk in (0..chunk_count(size)).map(ChunkIndex) {
            if tier.queue.state.lock().closed {
                return Ok(false);
            }
            let Some(expected) = self.expected(id, chunk).filter(|expected| expected.generation == generation) else {
                return Ok(false);
            };
            let read = match copy_range(&from.file, &to, chunk.range(size)) {
                Ok(crc) => Ok(crc),
                Err(CopyError::Read(error)) => Err(error),
                Err(CopyError::Write(error)) => return Err(failed(id, error)),
            };
            if self.judge(id, chunk, &expected, read)? != Verdict::Good {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn is_complete(shard: &Guard<'_>, id: &ObjectId) -> bool {
    shard.get(id).is_some_and(|slot| matches!(slot.body, Body::Complete) && !slot.evicting)
}

fn failed(id: &ObjectId, error: io::Error) -> StoreError {
    StoreError::io(format!("copying the object {id} into memory"), error)
}

enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

/// Copies a range from one file to the other; the crc32c of what was copied. Pages that were not in the page cache before are not left there.
fn copy_range(from: &File, to: &File, range: ByteRange) -> Result<u32, CopyError> {
    with_buffer(|buffer| {
        let (mut crc, mut offset) = (0, range.offset);
        while offset < range.end() {
            let length = PIECE.min((range.end() - offset) as usize);
            let Some(piece) = buffer.get_mut(..length) else { break };
            let was_cached = backing::read_piece(from, piece, offset).map_err(CopyError::Read)?;
            crc = crc32c::crc32c_append(crc, piece);
            backing::write_at(to, piece, offset).map_err(CopyError::Write)?;
            if !was_cached {
                backing::drop_pages(from, offset, length as u64);
            }
            offset += length as u64;
        }
        Ok(crc)
    })
}
