//! Making room: keeps the store below its capacity, each dataset below its own, and each namespace below its quota. Above the high watermark objects are
//! evicted until the low one is reached; a write waits only when there is no room at all.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use forebay_catalog::ObjectId;
use tokio::time::Instant;

use super::commit::Op;
use super::eviction::{Class, Request, Standing, View};
use super::record::DatasetSlot;
use super::slot::Slots;
use super::usage::{Over, Quota, Reservation, Scope, Writing, share};
use super::{Classes, Store, StoreError, patience};

/// Eviction begins above this share of the capacity, in percent, ...
const HIGH: u64 = 95;
/// ... and ends below this one.
const LOW: u64 = 90;

/// A write evicts at most so many times its own bytes on the way down to the low watermark: no write pays for all the others.
const PACE: u64 = 8;

/// What is in use may be let go at any time, which nobody tells: who waits looks again so soon.
const LOOK: Duration = Duration::from_millis(100);

impl Store {
    /// Changes the capacity; what is above it goes at once.
    pub fn set_capacity(&self, capacity: u64) {
        self.capacity.store(capacity, Ordering::Relaxed);
        // Looked at once: another call may change the capacity meanwhile.
        let (used, room) = (self.usage.remaining(), self.room());
        if used > share(room, HIGH) {
            let low = share(room, LOW);
            self.evict(used - low, low, &Scope::All, Class::Pinned);
        }
    }

    /// Room for so many bytes of a preload, or none. Evicts copies of what other nodes own, and nothing else. Ends where eviction ends, so
    /// that what is loaded ahead and what is read do not drive each other out for ever.
    pub fn reserve(&self, dataset: DatasetSlot, bytes: u64) -> Option<Reservation> {
        loop {
            match self.usage.reserve(dataset, bytes, self.room(), LOW) {
                Ok(reservation) => return Some(reservation),
                Err(Over { scope, bytes, low }) => {
                    if self.evict(bytes, low, &scope, Class::Copy) == 0 {
                        return None;
                    }
                }
            }
        }
    }

    /// Room for so many bytes, or none; nothing is evicted for it. For what is loaded ahead on a guess.
    pub fn reserve_free(&self, dataset: DatasetSlot, bytes: u64) -> Option<Reservation> {
        self.usage.reserve(dataset, bytes, self.room(), LOW).ok()
    }

    /// Lets a copy go that nobody reads any more; false when it is in use, or this node's own.
    pub fn release_copy(&self, id: &ObjectId) -> bool {
        let classes = self.classes.read().clone();
        classes(id) == Class::Copy && self.mark(id)
    }

    /// Says from now on which class an object is of. All objects are asked about anew, a few with each eviction.
    pub fn set_classes(&self, classes: Classes) {
        *self.classes.write() = classes;
        self.sort_again();
    }

    /// Objects may be of other classes than before, by the same rule.
    pub fn sort_again(&self) {
        self.eviction.lock().sort_again();
    }

    /// How many bytes a dataset's objects may take on this node.
    pub fn set_dataset_limit(&self, dataset: DatasetSlot, limit: Option<u64>) {
        self.usage.set_limit(dataset, limit);
        self.evict_to_limits(dataset, 0, u64::MAX);
    }

    /// What groups of datasets may take on this node.
    pub fn set_quotas(&self, quotas: &[Quota]) {
        self.usage.set_quotas(quotas.to_vec());
        for quota in quotas {
            if let Some(any) = quota.datasets.iter().next() {
                self.evict_to_limits(*any, 0, u64::MAX);
            }
        }
    }

    /// Bytes that are unlinked and still on the disk; see [`super::held`].
    pub fn held_bytes(&self) -> u64 {
        self.held.bytes()
    }

    /// Whether somebody can't write before there is room.
    pub fn room_is_waited_for(&self) -> bool {
        self.patience.is_tried()
    }

    /// What files may take: the capacity without what readers hold of files that are gone.
    fn room(&self) -> u64 {
        self.capacity().saturating_sub(self.held_bytes())
    }

    /// Hands every object of `from` to the dataset that `heir` names, or evicts it when it names none. Those in use are left for the next call;
    /// false if there were any.
    pub fn bequeath(&self, from: DatasetSlot, heir: impl Fn(&ObjectId) -> Option<DatasetSlot>) -> bool {
        let mut orphans = Vec::new();
        for mut shard in self.slots.shards() {
            let theirs: Vec<_> = shard.iter().filter(|(_, slot)| slot.dataset == from).map(|(id, _)| id).collect();
            for id in theirs {
                let Some(slot) = shard.get_mut(&id) else { continue };
                match heir(&id) {
                    Some(heir) => {
                        if !slot.evicting {
                            self.usage.sub(from, slot.bytes(), false);
                            self.usage.add(heir, slot.bytes());
                            slot.dataset = heir;
                        }
                    }
                    None => orphans.push(id),
                }
            }
        }
        let all = orphans.len();
        orphans.into_iter().filter(|id| self.mark(id)).count() == all
    }

    /// Evicts a few percent of what there is.
    pub(super) fn evict_some(&self) {
        let used = self.usage.remaining();
        let some = share(used, 100 - HIGH);
        self.evict(some, used - some, &Scope::All, Class::Pinned);
    }

    /// Room for so many bytes that are about to be written, as soon as there is some.
    pub(super) async fn make_room(self: &Arc<Self>, dataset: DatasetSlot, bytes: u64) -> Result<Writing, StoreError> {
        if let Some(writing) = self.find_room(dataset, bytes) {
            return Ok(writing);
        }
        let began = Instant::now();
        let _waiting = self.patience.wait();
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(writing) = self.usage.begin_writing(bytes, self.room()) {
                return Ok(writing);
            }
            self.evict_to_watermark(bytes);
            let held = self.held_bytes();
            // Without what is being evicted: that is let go in a moment.
            let taken = self.usage.coming().saturating_add(held);
            let no_use = self.patience.is_no_use(taken);
            if no_use || began.elapsed() >= patience::LONGEST {
                if !no_use {
                    self.patience.end(taken);
                }
                return Err(StoreError::Full { used: self.used_bytes(), held, capacity: self.capacity() });
            }
            let _ = tokio::time::timeout(LOOK, changed).await;
        }
    }

    /// The same, if there is some now. Evicts what is due; what that frees may be there a moment later.
    pub(super) fn find_room(&self, dataset: DatasetSlot, bytes: u64) -> Option<Writing> {
        self.evict_to_limits(dataset, bytes, bytes.saturating_mul(PACE));
        self.evict_to_watermark(bytes);
        self.usage.begin_writing(bytes, self.room())
    }

    /// From the high watermark down to the low one, over several writes.
    fn evict_to_watermark(&self, incoming: u64) {
        let (used, room) = (self.usage.coming() + incoming, self.room());
        let (high, low) = (share(room, HIGH), share(room, LOW));
        if used > high {
            self.draining.store(true, Ordering::Relaxed);
        } else if used <= low {
            self.draining.store(false, Ordering::Relaxed);
        }
        if self.draining.load(Ordering::Relaxed) {
            let paced = incoming.saturating_mul(PACE).max(used.saturating_sub(high));
            self.evict(used.saturating_sub(low).min(paced), low, &Scope::All, Class::Pinned);
        }
    }

    fn evict_to_limits(&self, dataset: DatasetSlot, incoming: u64, most: u64) {
        for (over, excess) in self.usage.over(dataset, incoming, HIGH, LOW) {
            self.evict(over.bytes.min(most.max(excess)), over.low, &over.scope, Class::Pinned);
        }
    }

    /// Evicts so many bytes, or what there is, on the way to `target` bytes in the scope; how many it was.
    fn evict(&self, need: u64, target: u64, scope: &Scope, upto: Class) -> u64 {
        let classes = self.classes.read().clone();
        let (mut freed, mut idle) = (0, 0);
        while freed < need {
            let (plan, all) = {
                let mut order = self.eviction.lock();
                order.note_hits(self.hits.swap(0, Ordering::Relaxed));
                let request = Request { bytes: need - freed, target, upto, scope: &|dataset| scope.has(dataset) };
                (order.plan(&request, &mut Look { slots: &self.slots, classes: &classes }), order.len())
            };
            for victim in &plan.victims {
                if self.mark(&victim.id) {
                    freed += victim.bytes;
                } else {
                    // In use since the plan was made.
                    self.eviction.lock().take_back(victim);
                }
            }
            // Everything was looked at, and then some, and all of it is in use.
            idle = if plan.victims.is_empty() { idle + plan.steps } else { 0 };
            if plan.exhausted || idle > 4 * all {
                break;
            }
        }
        freed
    }

    /// Marks an object as evicting and has it unlinked; false when it is in use.
    fn mark(&self, id: &ObjectId) -> bool {
        let mut shard = self.slots.lock(id);
        let Some(slot) = shard.get_mut(id) else { return true };
        if slot.evicting {
            return true;
        }
        if slot.pins > 0 {
            return false;
        }
        slot.evicting = true;
        self.usage.mark(slot.dataset, slot.bytes());
        // A store that is closing evicts nothing.
        self.send(Op::Evict { id: *id, generation: slot.generation }).is_ok()
    }
}

/// The objects as the order of eviction sees them.
struct Look<'a> {
    slots: &'a Slots,
    classes: &'a Classes,
}

impl View for Look<'_> {
    fn class(&mut self, id: &ObjectId) -> Option<(DatasetSlot, Class)> {
        let dataset = self.slots.lock(id).get(id).filter(|slot| !slot.evicting)?.dataset;
        // Not under the shard's lock: readers go on.
        Some((dataset, (self.classes)(id)))
    }

    fn standing(&mut self, id: &ObjectId) -> Option<Standing> {
        let mut shard = self.slots.lock(id);
        // The bytes of one that is evicting already are as good as free.
        let slot = shard.get(id).filter(|slot| !slot.evicting)?;
        let (dataset, bytes, in_use) = (slot.dataset, slot.bytes(), slot.pins > 0);
        Some(Standing { dataset, bytes, in_use, read: shard.take_visited(id) })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use forebay_protocol::config::CHUNK_BYTES;
    use forebay_protocol::layout::CacheLayout;

    use super::super::ObjectRef;
    use super::*;
    use crate::units::ChunkIndex;

    const CHUNKS: u8 = 4;

    fn object(n: u8) -> ObjectRef {
        ObjectRef { id: ObjectId::new("room", &[n], "e", CHUNK_BYTES), size: CHUNK_BYTES, dataset: DatasetSlot(0) }
    }

    #[tokio::test]
    async fn where_readers_hold_everything_one_write_waits_for_all() {
        let folder = tempfile::tempdir().unwrap();
        let capacity = u64::from(CHUNKS) * CHUNK_BYTES;
        let store = Store::open(&CacheLayout::new(folder.path()), capacity, Arc::new(|_| ()), || ()).unwrap();
        store.dataset("d").unwrap();
        let bytes = Bytes::from(vec![7; CHUNK_BYTES as usize]);
        let crc = crc32c::crc32c(&bytes);
        let write = |n| {
            let (store, bytes) = (Arc::clone(&store), bytes.clone());
            async move { store.write_chunk(&object(n), ChunkIndex(0), bytes, crc).await }
        };
        let mut leases = Vec::new();
        for n in 0..CHUNKS {
            write(n).await.unwrap();
            leases.push(store.pin(&object(n)).await.unwrap());
        }
        let began = Instant::now();
        let (first, second) = tokio::join!(write(4), write(5));
        for refused in [first, second] {
            assert!(matches!(refused, Err(StoreError::Full { .. })), "{refused:?}");
        }
        assert!(began.elapsed() >= patience::LONGEST && store.room_is_waited_for(), "{:?}", began.elapsed());
        let began = Instant::now();
        for n in 6..36 {
            assert!(matches!(write(n).await, Err(StoreError::Full { .. })));
        }
        assert!(began.elapsed() < patience::LONGEST / 2, "{:?} for 30", began.elapsed());
        assert!(store.room_is_waited_for(), "the plugin is to let go what it can");
        drop(leases.pop());
        write(4).await.unwrap();
    }
}
