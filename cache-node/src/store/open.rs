//! Leasing objects and opening their files, whole or still full of holes.

use std::sync::Arc;

use super::lease::Lease;
use super::slot::{Body, Partial};
use super::{ObjectRef, Opened, Store, StoreError, blocking};

impl Store {
    /// Holds an object, which becomes known if it was not.
    pub(super) async fn pin(self: &Arc<Self>, object: &ObjectRef) -> Lease {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut shard = self.slots.lock(&object.id);
                let slot = shard.entry(object.id).or_insert_with(|| {
                    self.new_slot(object.size, object.dataset, Body::Partial(Box::new(Partial::new(object.size))))
                });
                if !slot.evicting {
                    slot.pins += 1;
                    return Lease { store: Arc::clone(self), id: object.id, generation: slot.generation };
                }
            }
            changed.await;
        }
    }

    /// Leases an object and opens its file, which may still be full of holes.
    pub async fn open_object(self: &Arc<Self>, object: &ObjectRef) -> Result<Opened, StoreError> {
        loop {
            let lease = self.pin(object).await;
            let (this, object) = (Arc::clone(self), *object);
            let opened = blocking(move || this.open_leased(lease, &object)).await?;
            if let Some(opened) = opened {
                return Ok(opened);
            }
        }
    }

    /// None when the file was missing and the object has been forgotten.
    fn open_leased(&self, lease: Lease, object: &ObjectRef) -> Result<Option<Opened>, StoreError> {
        let id = object.id;
        let failed = |error| StoreError::io(format!("opening the cached object {id}"), error);
        // Looked up before the file: who writes the first chunk makes the file first.
        let (complete, has_bytes) = {
            let shard = self.slots.lock(&id);
            shard.get(&id).map_or((false, false), |slot| (matches!(slot.body, Body::Complete), slot.bytes() > 0))
        };
        if has_bytes {
            self.touch(&id);
        }
        match self.backing.open(&id).map_err(failed)? {
            Some(found) if complete => {
                if !found.complete {
                    // A crash came between the index and the rename.
                    self.backing.publish(&id).map_err(failed)?;
                }
                Ok(Some(Opened { lease, file: found.file, complete: true }))
            }
            Some(found) => {
                // The size is set at the first write; readers may come earlier.
                if found.file.metadata().map_err(failed)?.len() != object.size && !found.complete {
                    self.backing.open_for_writing(&id, object.size).map_err(failed)?;
                }
                let complete = self.is_complete(&id);
                Ok(Some(Opened { lease, file: found.file, complete }))
            }
            None if has_bytes => {
                tracing::error!(%id, "a cached object's file is missing; it is fetched again");
                (self.failures)();
                self.forget(&id);
                Ok(None)
            }
            None => {
                self.backing.open_for_writing(&id, object.size).map_err(failed)?;
                let found = self.backing.open(&id).map_err(failed)?;
                let shard = self.slots.lock(&id);
                if shard.get(&id).is_some_and(|slot| matches!(slot.body, Body::Complete)) {
                    self.backing.remove_stray(&id);
                }
                drop(shard);
                Ok(found.map(|found| Opened { lease, file: found.file, complete: false }))
            }
        }
    }
}
