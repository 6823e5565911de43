//! Making room: keeps the store below its capacity, and each dataset below its own. Above the high watermark objects are evicted until the
//! low one is reached; a write waits only when there is no room at all.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use forebay_catalog::ObjectId;

use super::commit::Op;
use super::eviction::Standing;
use super::record::DatasetSlot;
use super::slot::{Slot, Slots};
use super::usage::Reservation;
use super::{Ownership, Store, StoreError};

/// Eviction begins above this share of the capacity, in percent, ...
const HIGH: u64 = 95;
/// ... and ends below this one.
const LOW: u64 = 90;

/// How long a write waits for room.
const PATIENCE: Duration = Duration::from_secs(5);

impl Store {
    /// Changes the capacity; takes effect with the next write.
    pub fn set_capacity(&self, capacity: u64) {
        self.capacity.store(capacity, Ordering::Relaxed);
        self.evict_to_watermark(0);
    }

    /// Room for so many bytes more, if there is any without evicting something. Ends where eviction ends, so that what is loaded ahead and what
    /// is read do not drive each other out for ever.
    pub fn reserve(&self, dataset: DatasetSlot, bytes: u64) -> Option<Reservation> {
        let dataset_limit = percent(self.usage.limit(dataset), LOW);
        self.usage.reserve(dataset, bytes, percent(self.capacity(), LOW), dataset_limit)
    }

    /// Room as [`Self::reserve`] gives it, made by evicting copies when there is none; none when that is not enough.
    pub fn reserve_over_copies(&self, dataset: DatasetSlot, bytes: u64) -> Option<Reservation> {
        if let Some(reserved) = self.reserve(dataset, bytes) {
            return Some(reserved);
        }
        let owns = self.owns.read().clone();
        let over_limit = (self.usage.remaining_of(dataset).saturating_add(bytes))
            .saturating_sub(percent(self.usage.limit(dataset), LOW));
        let over_capacity = (self.usage.remaining() + bytes).saturating_sub(percent(self.capacity(), LOW));
        if over_limit > 0 {
            self.evict_where(over_limit, |id, slot| slot.dataset == dataset && !owns(id));
        }
        if over_capacity > over_limit {
            self.evict_where(over_capacity - over_limit, |id, _| !owns(id));
        }
        self.reserve(dataset, bytes)
    }

    /// Lets a copy go that nobody reads any more; false when it is in use, or this node's own.
    pub fn release_copy(&self, id: &ObjectId) -> bool {
        let owns = self.owns.read().clone();
        !owns(id) && self.mark(id)
    }

    /// Tells own objects from copies of others': copies are evicted first, since a peer has them too.
    pub fn set_ownership(&self, owns: Ownership) {
        *self.owns.write() = owns;
    }

    /// How many bytes a dataset's objects may take on this node; takes effect with the next write.
    pub fn set_dataset_limit(&self, dataset: DatasetSlot, limit: Option<u64>) {
        self.usage.set_limit(dataset, limit);
        self.evict_to_limit(dataset, 0);
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
        self.evict(percent(self.usage.remaining(), 100 - HIGH), None);
    }

    pub(super) async fn make_room(self: &Arc<Self>, dataset: DatasetSlot, bytes: u64) -> Result<(), StoreError> {
        self.evict_to_limit(dataset, bytes);
        self.evict_to_watermark(bytes);
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.used_bytes() + bytes <= self.capacity() {
                    return;
                }
                self.evict_to_watermark(bytes);
                // What is in use may be let go at any time, which nobody tells: look again soon.
                let _ = tokio::time::timeout(Duration::from_millis(100), changed).await;
            }
        });
        waited.await.map_err(|_| StoreError::Full { used: self.used_bytes(), capacity: self.capacity() })
    }

    fn evict_to_watermark(&self, incoming: u64) {
        let (used, capacity) = (self.usage.remaining() + incoming, self.capacity());
        if used > percent(capacity, HIGH) {
            self.evict(used - percent(capacity, LOW), None);
        }
    }

    fn evict_to_limit(&self, dataset: DatasetSlot, incoming: u64) {
        let (used, limit) = (self.usage.remaining_of(dataset).saturating_add(incoming), self.usage.limit(dataset));
        if used > percent(limit, HIGH) {
            self.evict(used - percent(limit, LOW), Some(dataset));
        }
    }

    fn evict(&self, need: u64, only: Option<DatasetSlot>) {
        let owns = self.owns.read().clone();
        let freed = self.evict_where(need, |id, slot| only.is_none_or(|only| slot.dataset == only) && !owns(id));
        if freed < need {
            self.evict_where(need - freed, |_, slot| only.is_none_or(|only| slot.dataset == only));
        }
    }

    /// Evicts up to `need` bytes of objects that may go; how many it was.
    fn evict_where(&self, need: u64, may_go: impl Fn(&ObjectId, &Slot) -> bool) -> u64 {
        let victims = {
            let mut clock = self.clock.lock();
            clock.plan(need, |id| standing(&self.slots, id, &may_go))
        };
        let mut freed = 0;
        for (id, bytes) in victims {
            if self.mark(&id) {
                freed += bytes;
            } else {
                // In use since the plan was made: back into the order.
                self.clock.lock().insert(id);
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

fn standing(slots: &Slots, id: &ObjectId, may_go: impl Fn(&ObjectId, &Slot) -> bool) -> Standing {
    let mut shard = slots.lock(id);
    let Some(slot) = shard.get_mut(id) else { return Standing::Gone };
    if slot.evicting {
        // Its bytes are as good as free.
        return Standing::Gone;
    }
    if slot.pins > 0 || !may_go(id, slot) || std::mem::take(&mut slot.visited) {
        return Standing::Stays;
    }
    Standing::Goes(slot.bytes())
}

fn percent(bytes: u64, percent: u64) -> u64 {
    bytes / 100 * percent + bytes % 100 * percent / 100
}
