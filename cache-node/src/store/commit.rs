//! The committer: one thread that makes written chunks durable in groups. For each group, in this order: the bytes reach the disk, the index
//! says so, complete objects are renamed into `objects/`. Evictions go the same way, index first. So the index never knows more than the disk,
//! and an object is not written again before the index has forgotten its former life.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use forebay_catalog::ObjectId;
use tokio::sync::OwnedSemaphorePermit;

#[cfg(test)]
use super::crash::CrashPoint;
use super::index::Change as IndexChange;
use super::lease::Lease;
use super::slot::{Body, Presence};
use super::{Change, Store, StoreError};
use crate::units::ChunkIndex;

/// How long a group may wait for company.
const GATHER: Duration = Duration::from_millis(8);

/// Most objects and chunks of a group. A commit costs two waits for the disk, however large it is; a group of this size takes a tenth of a second.
const GROUP: usize = 4096;

/// How long after the index failed it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What the committer is asked to do.
pub(super) enum Op {
    /// A verified chunk has been written.
    Written {
        pin: Lease,
        chunk: ChunkIndex,
        file: Arc<File>,
        /// Limits how much waits for the committer.
        permit: OwnedSemaphorePermit,
    },
    /// Verified objects of one chunk have been written, and closed.
    WrittenSmall { pins: Vec<Lease>, permit: OwnedSemaphorePermit },
    /// An object was marked as evicting: unlink it.
    Evict { id: ObjectId, generation: u64 },
    /// A chunk that was in the index is there no more: it was damaged.
    Lost { id: ObjectId, generation: u64 },
    /// Everything up to here is to be committed before this is dropped.
    Barrier(tokio::sync::oneshot::Sender<()>),
}

/// Runs until the store is gone or closed.
pub(super) fn run(store: &Weak<Store>, ops: &Receiver<Op>) {
    let mut group = Group::default();
    loop {
        let patience = if group.is_empty() { None } else { Some(RETRY) };
        let first = match patience {
            None => ops.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(patience) => ops.recv_timeout(patience),
        };
        match first {
            Ok(op) => group.gather(op, ops),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let Some(store) = store.upgrade() else { return };
        group = store.commit(group);
        store.compact_if_due();
    }
}

/// What is committed together. No object is both written and removed in one group: it is not written again before its removal is through.
#[derive(Default)]
struct Group {
    size: usize,
    puts: HashMap<ObjectId, Put>,
    removals: HashMap<ObjectId, u64>,
    /// Objects that have lost a chunk, with their generations.
    losses: HashMap<ObjectId, u64>,
    files: Vec<Arc<File>>,
    /// Small objects, whose files are closed.
    has_small: bool,
    permits: Vec<OwnedSemaphorePermit>,
    barriers: Vec<tokio::sync::oneshot::Sender<()>>,
}

/// Chunks of one object.
struct Put {
    chunks: Vec<ChunkIndex>,
    pin: Lease,
}

impl Group {
    fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.removals.is_empty() && self.losses.is_empty()
    }

    fn gather(&mut self, first: Op, ops: &Receiver<Op>) {
        let deadline = Instant::now() + GATHER;
        self.add(first);
        while self.size < GROUP && self.barriers.is_empty() {
            match ops.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(op) => self.add(op),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn add(&mut self, op: Op) {
        self.size += 1;
        match op {
            Op::Written { pin, chunk, file, permit } => {
                self.files.push(file);
                self.permits.push(permit);
                self.put(pin, chunk);
            }
            Op::WrittenSmall { pins, permit } => {
                self.size += pins.len();
                self.has_small = true;
                self.permits.push(permit);
                for pin in pins {
                    self.put(pin, ChunkIndex(0));
                }
            }
            Op::Evict { id, generation } => {
                self.removals.insert(id, generation);
            }
            Op::Lost { id, generation } => {
                self.losses.insert(id, generation);
            }
            Op::Barrier(sender) => self.barriers.push(sender),
        }
    }

    fn put(&mut self, pin: Lease, chunk: ChunkIndex) {
        match self.puts.get_mut(&pin.id) {
            Some(put) if put.pin.generation == pin.generation => put.chunks.push(chunk),
            // Of a life of the object that is over.
            Some(_) if !pin.is_valid() => {}
            _ => {
                self.puts.insert(pin.id, Put { chunks: vec![chunk], pin });
            }
        }
    }
}

impl Store {
    /// Commits a group. What comes back is to be tried again: removals and losses that the index could not be told.
    fn commit(&self, group: Group) -> Group {
        let Group { puts, removals, losses, files, has_small, permits, barriers, .. } = group;
        #[cfg(test)]
        if self.crash.has_stopped() || self.crash.stops_at(CrashPoint::Written) {
            return Group::default();
        }
        let synced = self.sync(&files, has_small);
        #[cfg(test)]
        if self.crash.stops_at(CrashPoint::Synced) {
            return Group::default();
        }
        let mut changes: Vec<_> = removals.keys().map(|id| (*id, IndexChange::Remove)).collect();
        // Before the puts: a chunk that was lost and written again is put again.
        changes.extend(
            losses.iter().filter(|(id, _)| !removals.contains_key(id)).flat_map(|(id, life)| self.anew(id, *life)),
        );
        if synced.is_ok() {
            changes.extend(puts.values().filter_map(|put| Some((put.pin.id, self.index_change(put)?))));
        }
        let indexed = if changes.is_empty() { Ok(()) } else { self.index.commit(&changes).map_err(StoreError::from) };
        #[cfg(test)]
        if self.crash.has_stopped() || self.crash.stops_at(CrashPoint::Indexed) {
            return Group::default();
        }
        let told = indexed.is_ok();
        *self.untold.lock() = indexed.as_ref().err().filter(|_| !removals.is_empty()).map(StoreError::again);
        match synced.and(indexed) {
            Ok(()) => puts.iter().for_each(|(id, put)| self.settle(id, put)),
            Err(error) => {
                self.faults.report_write(&error);
                let kind = super::fault::kind_of(&error).unwrap_or(super::fault::DiskFaultKind::IoError);
                for (id, put) in &puts {
                    self.retract(id, &put.chunks, put.pin.generation, kind);
                }
            }
        }
        let mut again = Group::default();
        for (id, generation) in removals {
            if told {
                self.unlink(&id, generation);
            } else {
                // The files may go before the index knows (they may be what the disk is full of), but no other life of the object may begin.
                let bytes = self.slots.lock(&id).get(&id).map_or(0, |slot| slot.bytes());
                self.remove_files(&id, bytes);
                again.removals.insert(id, generation);
            }
        }
        if !told {
            again.losses = losses;
        }
        drop((puts, permits));
        drop(barriers);
        self.changed.notify_waiters();
        again
    }

    fn sync(&self, files: &[Arc<File>], has_small: bool) -> Result<(), StoreError> {
        // Chunks of one object often come with several descriptors of one file.
        let mut seen = HashSet::new();
        let distinct: Vec<&File> =
            files.iter().filter(|file| seen.insert(Arc::as_ptr(file))).map(AsRef::as_ref).collect();
        #[cfg(test)]
        if has_small {
            self.crash.note_all_synced(self.backing.folders());
        } else {
            self.crash.note_synced(&distinct);
        }
        let synced = if has_small { self.backing.sync_all() } else { super::backing::sync(&distinct) };
        synced.map_err(|error| StoreError::io("syncing the cache", error))
    }

    fn index_change(&self, put: &Put) -> Option<IndexChange> {
        let shard = self.slots.lock(&put.pin.id);
        let slot = shard.get(&put.pin.id).filter(|slot| slot.generation == put.pin.generation)?;
        let Body::Partial(partial) = &slot.body else { return None };
        let crc = |chunk: &ChunkIndex| Some((*chunk, *partial.crcs.get(chunk.0 as usize)?));
        let chunks = put.chunks.iter().filter_map(crc).collect();
        Some(IndexChange::Put { dataset: slot.dataset, size: slot.size, chunks })
    }

    /// What the index is told of an object that has lost a chunk: entries only add, so all of it is taken back and what is left is put again.
    fn anew(&self, id: &ObjectId, generation: u64) -> Vec<(ObjectId, IndexChange)> {
        let shard = self.slots.lock(id);
        let Some(slot) = shard.get(id).filter(|slot| slot.generation == generation) else { return Vec::new() };
        // Whole again, and the index knows it.
        let Body::Partial(partial) = &slot.body else { return Vec::new() };
        let left = partial.committed.iter().filter_map(|chunk| Some((chunk, *partial.crcs.get(chunk.0 as usize)?)));
        let left = IndexChange::Put { dataset: slot.dataset, size: slot.size, chunks: left.collect() };
        vec![(*id, IndexChange::Remove), (*id, left)]
    }

    /// The chunks are in the index: tells the world, and publishes the object if it is complete.
    fn settle(&self, id: &ObjectId, put: &Put) {
        let mut shard = self.slots.lock(id);
        let Some(slot) = shard.get_mut(id).filter(|slot| slot.generation == put.pin.generation) else { return };
        let (size, before) = (slot.size, slot.presence());
        let Body::Partial(partial) = &mut slot.body else { return };
        for chunk in &put.chunks {
            partial.committed.insert(*chunk);
        }
        let after = if partial.committed.is_full() {
            if let Err(error) = self.backing.publish(id) {
                // It is found in `partial/` and renamed at first use.
                self.faults.report_write(&super::StoreError::io(format!("publishing the object {id}"), error));
            }
            shard.complete(id);
            Presence::Complete
        } else {
            slot.presence()
        };
        let is_complete = after == Presence::Complete;
        (self.observer)(&Change { id: *id, size, before, after });
        drop(shard);
        if is_complete {
            self.note_complete(id);
        }
    }

    /// The object is out of the index: removes its files.
    fn unlink(&self, id: &ObjectId, generation: u64) {
        let mut shard = self.slots.lock(id);
        if shard.get(id).is_none_or(|slot| slot.generation != generation) {
            return;
        }
        self.remove_files(id, shard.get(id).map_or(0, |slot| slot.bytes()));
        self.checked.remove(id);
        if let Some(slot) = shard.remove(id) {
            self.usage.sub(slot.dataset, slot.bytes(), true);
            (self.observer)(&Change { id: *id, size: slot.size, before: slot.presence(), after: Presence::Absent });
        }
    }
}
