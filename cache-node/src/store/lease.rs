//! A hold on an object: while it lasts, the object's file is neither evicted nor replaced. Readers of this machine hold one for each open
//! file, writers for each write.

use std::sync::Arc;

use forebay_catalog::ObjectId;

use super::Store;

/// A hold on one object. Ends when dropped.
#[derive(Debug)]
pub struct Lease {
    pub(super) store: Arc<Store>,
    pub(super) id: ObjectId,
    pub(super) generation: u64,
}

impl Lease {
    /// Whether the object is still the one that was leased. It is not after its file was found damaged: what is open then is never
    /// completed, and has to be opened again.
    pub fn is_valid(&self) -> bool {
        self.store.slots.lock(&self.id).get(&self.id).is_some_and(|slot| slot.generation == self.generation)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut shard = self.store.slots.lock(&self.id);
        let Some(slot) = shard.get_mut(&self.id).filter(|slot| slot.generation == self.generation) else { return };
        slot.pins = slot.pins.saturating_sub(1);
        // Nothing was ever written: no reason to remember it, nor to keep its empty file.
        let empty = slot.pins == 0 && slot.bytes() == 0 && !slot.evicting;
        if empty {
            shard.remove(&self.id);
            if let Err(error) = self.store.backing.remove(&self.id) {
                tracing::debug!(id = %self.id, %error, "an empty file stays until the next start");
            }
        }
    }
}
