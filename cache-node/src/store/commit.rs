//! The committer: one thread that makes written chunks durable in groups. For each group, in this order: the bytes reach the disk, the index
//! says so, complete objects are renamed into `objects/`. Evictions go the same way, index first. So the index never knows more than the disk.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use forebay_catalog::ObjectId;
use tokio::sync::OwnedSemaphorePermit;

use super::backing;
use super::bitmap::Bitmap;
#[cfg(test)]
use super::crash::CrashPoint;
use super::index::Change as IndexChange;
use super::lease::Lease;
use super::record::Record;
use super::slot::{Body, Presence, Slot};
use super::{Change, Store};
use crate::units::ChunkIndex;

/// How long a group may wait for company.
const GATHER: Duration = Duration::from_millis(8);

/// Most operations of a group.
const GROUP: usize = 512;

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
    /// An object was marked as evicting: unlink it.
    Evict { id: ObjectId, generation: u64 },
    /// An object was forgotten and is gone already.
    Forgotten { id: ObjectId },
    /// Everything up to here is to be committed before this is dropped.
    Barrier(tokio::sync::oneshot::Sender<()>),
}

/// Runs until the store is gone or closed.
pub(super) fn run(store: &Weak<Store>, ops: &Receiver<Op>) {
    while let Ok(first) = ops.recv() {
        let mut group = vec![first];
        let deadline = Instant::now() + GATHER;
        while group.len() < GROUP && !matches!(group.last(), Some(Op::Barrier(_))) {
            match ops.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(op) => group.push(op),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        let Some(store) = store.upgrade() else { return };
        store.commit(group);
    }
}

/// What a group does to one object.
enum Plan {
    Put { chunks: Vec<ChunkIndex>, pin: Lease },
    Evict { generation: u64 },
    Forgotten,
}

impl Store {
    fn commit(&self, group: Vec<Op>) {
        let (mut plans, mut files, mut done, mut barriers) = (HashMap::new(), Vec::new(), Vec::new(), Vec::new());
        for op in group {
            match op {
                Op::Written { pin, chunk, file, permit } => {
                    files.push(file);
                    done.push(permit);
                    let id = pin.id;
                    match plans.remove(&id) {
                        Some(Plan::Put { mut chunks, pin: first }) if first.generation == pin.generation => {
                            chunks.push(chunk);
                            plans.insert(id, Plan::Put { chunks, pin: first });
                        }
                        // Of a life of the object that is over; what ended it stays to be done.
                        Some(earlier) if !pin.is_valid() => {
                            plans.insert(id, earlier);
                        }
                        _ => {
                            plans.insert(id, Plan::Put { chunks: vec![chunk], pin });
                        }
                    }
                }
                Op::Evict { id, generation } => {
                    plans.insert(id, Plan::Evict { generation });
                }
                Op::Forgotten { id } => {
                    plans.insert(id, Plan::Forgotten);
                }
                Op::Barrier(sender) => barriers.push(sender),
            }
        }
        #[cfg(test)]
        if self.crash.is_at(CrashPoint::Written) {
            return;
        }
        if let Err(error) = self.make_durable(&plans, &files) {
            tracing::error!(%error, objects = plans.len(), "the cache's disk fails; what was just written is forgotten");
            for (id, plan) in &plans {
                if matches!(plan, Plan::Put { .. }) {
                    self.forget(id);
                }
            }
        }
        #[cfg(test)]
        if self.crash.is_at(CrashPoint::Synced) || self.crash.is_at(CrashPoint::Indexed) {
            return;
        }
        for (id, plan) in plans {
            match plan {
                Plan::Put { chunks, pin } => self.settle(&id, &chunks, &pin),
                Plan::Evict { generation } => self.unlink(&id, generation),
                Plan::Forgotten => {}
            }
        }
        drop(done);
        drop(barriers);
        self.changed.notify_waiters();
    }

    fn make_durable(&self, plans: &HashMap<ObjectId, Plan>, files: &[Arc<File>]) -> Result<(), super::StoreError> {
        // Chunks of one object often come with several descriptors of one file.
        let mut seen = HashSet::new();
        let distinct: Vec<&File> =
            files.iter().filter(|file| seen.insert(Arc::as_ptr(file))).map(AsRef::as_ref).collect();
        #[cfg(test)]
        self.crash.note_synced(&distinct);
        backing::sync(&distinct).map_err(|error| super::StoreError::io("syncing the cache", error))?;
        #[cfg(test)]
        if self.crash.is_at(CrashPoint::Synced) {
            return Ok(());
        }
        let changes: HashMap<_, _> =
            plans.iter().filter_map(|(id, plan)| Some((*id, self.index_change(id, plan)?))).collect();
        if changes.is_empty() { Ok(()) } else { self.index.commit(&changes) }
    }

    fn index_change(&self, id: &ObjectId, plan: &Plan) -> Option<IndexChange> {
        let Plan::Put { chunks, pin } = plan else { return Some(IndexChange::Remove) };
        let shard = self.slots.lock(id);
        let slot = shard.get(id).filter(|slot| slot.generation == pin.generation)?;
        let Body::Partial(partial) = &slot.body else { return None };
        let committed = with(&partial.committed, chunks);
        // A chunk that is written but not committed yet must not leave its checksum: it belongs to a later group.
        let crcs =
            partial.crcs.iter().zip(0..).map(|(crc, i)| if committed.contains(ChunkIndex(i)) { *crc } else { 0 });
        let crcs = crcs.collect();
        let present = (!committed.is_full()).then_some(committed);
        Some(IndexChange::Put(Record { dataset: slot.dataset, size: slot.size, present, crcs }))
    }

    /// The chunks are in the index: tells the world, and publishes the object if it is complete.
    fn settle(&self, id: &ObjectId, chunks: &[ChunkIndex], pin: &Lease) {
        let mut shard = self.slots.lock(id);
        let Some(slot) = shard.get_mut(id).filter(|slot| slot.generation == pin.generation) else { return };
        let before = slot.presence();
        let Body::Partial(partial) = &mut slot.body else { return };
        partial.committed = with(&partial.committed, chunks);
        if partial.committed.is_full() {
            if let Err(error) = self.backing.publish(id) {
                // It is found in `partial/` and renamed at first use.
                tracing::error!(%id, %error, "a complete object could not be published");
            }
            slot.body = Body::Complete;
        }
        let after = slot.presence();
        (self.observer)(&Change { id: *id, size: slot.size, before, after });
    }

    /// The object is out of the index: removes its files.
    fn unlink(&self, id: &ObjectId, generation: u64) {
        let mut shard = self.slots.lock(id);
        if shard.get(id).is_none_or(|slot| slot.generation != generation) {
            return;
        }
        self.unlinking(shard.get(id).map_or(0, Slot::bytes));
        if let Err(error) = self.backing.remove(id) {
            tracing::error!(%id, %error, "an evicted object could not be removed");
        }
        if let Some(slot) = shard.remove(id) {
            self.usage.sub(slot.dataset, slot.bytes(), true);
            (self.observer)(&Change { id: *id, size: slot.size, before: slot.presence(), after: Presence::Absent });
        }
    }
}

fn with(bitmap: &Bitmap, chunks: &[ChunkIndex]) -> Bitmap {
    let mut bitmap = bitmap.clone();
    for chunk in chunks {
        bitmap.insert(*chunk);
    }
    bitmap
}
