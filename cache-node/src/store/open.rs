//! Leasing objects and opening their files, whole or still full of holes.

use std::io;
use std::sync::Arc;

use forebay_catalog::ObjectId;

use super::lease::Lease;
use super::slot::Body;
use super::{ObjectRef, Opened, Store, StoreError, briefly};

impl Store {
    /// Holds an object, which becomes known if it was not. Waits while it is on its way out, unless the disk does not let it go.
    pub(super) async fn pin(self: &Arc<Self>, object: &ObjectRef) -> Result<Lease, StoreError> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(lease) = self.try_pin(object) {
                return Ok(lease);
            }
            if let Some(error) = &*self.untold.lock() {
                return Err(error.again());
            }
            changed.await;
        }
    }

    /// The same, unless the object is on its way out.
    pub(super) fn try_pin(self: &Arc<Self>, object: &ObjectRef) -> Option<Lease> {
        let mut shard = self.slots.lock(&object.id);
        if !shard.contains_key(&object.id) {
            shard.insert(&object.id, object.size, object.dataset);
        }
        let slot = shard.get_mut(&object.id).filter(|slot| !slot.evicting)?;
        slot.pins += 1;
        Some(Lease { store: Arc::clone(self), id: object.id, generation: slot.generation })
    }

    /// Leases an object and opens its file, which may still be full of holes.
    pub async fn open_object(self: &Arc<Self>, object: &ObjectRef) -> Result<Opened, StoreError> {
        loop {
            let lease = self.pin(object).await?;
            let (this, object) = (Arc::clone(self), *object);
            let opened = briefly(move || this.open_leased(lease, &object)).await;
            let opened = opened.inspect_err(|error| self.faults.report_write(error))?;
            if let Some(opened) = opened {
                return Ok(opened);
            }
        }
    }

    /// None when the file was missing or cut and the object has been dropped.
    fn open_leased(&self, lease: Lease, object: &ObjectRef) -> Result<Option<Opened>, StoreError> {
        let id = object.id;
        let failed = |error| StoreError::io(format!("opening the cached object {id}"), error);
        if self.is_stale(&id) {
            self.put_right(&id).map_err(failed)?;
        }
        // Looked up before the file: who writes the first chunk makes the file first.
        let (complete, verified, has_bytes) = {
            let shard = self.slots.lock(&id);
            shard.get(&id).map_or((false, false, false), |slot| {
                (matches!(slot.body, Body::Complete), slot.verified, slot.bytes() > 0)
            })
        };
        let Some(found) = self.backing.open(&id).map_err(failed)? else {
            if has_bytes {
                self.lose_file(&id, lease.generation, false);
                return Ok(None);
            }
            return self.open_empty(lease, object);
        };
        let right_length = found.file.metadata().map_err(failed)?.len() == object.size;
        if !right_length && has_bytes {
            self.lose_file(&id, lease.generation, true);
            return Ok(None);
        }
        if complete && verified && !found.complete {
            // A crash came between the index and the rename.
            self.publish_late(&id);
        }
        if !complete && !right_length && !found.complete {
            // The size is set at the first write; readers may come earlier.
            self.backing.open_for_writing(&id, object.size).map_err(failed)?;
        }
        let complete = self.is_whole(&id);
        let copy = self.memory.get().filter(|_| complete).and_then(|memory| memory.open_copy(&id));
        if has_bytes {
            // Last: this use may bring a copy into memory, which is for the next one.
            self.touch(&id);
        }
        Ok(Some(Opened { complete, lease, file: copy.unwrap_or(found.file) }))
    }

    /// Opens an object of which nothing is here.
    fn open_empty(&self, lease: Lease, object: &ObjectRef) -> Result<Option<Opened>, StoreError> {
        let id = object.id;
        let failed = |error| StoreError::io(format!("making the file of the object {id}"), error);
        self.backing.open_for_writing(&id, object.size).map_err(failed)?;
        let found = self.backing.open(&id).map_err(failed)?;
        let shard = self.slots.lock(&id);
        if shard.get(&id).is_some_and(|slot| matches!(slot.body, Body::Complete)) {
            self.backing.remove_stray(&id);
        }
        drop(shard);
        Ok(found.map(|found| Opened { lease, file: found.file, complete: false }))
    }

    /// Publishes a complete object whose file still stands in `partial/`, unless it has lost a chunk meanwhile.
    fn publish_late(&self, id: &ObjectId) {
        let shard = self.slots.lock(id);
        if shard.get(id).is_some_and(|slot| matches!(slot.body, Body::Complete))
            && let Err(error) = self.backing.publish(id)
            && error.kind() != io::ErrorKind::NotFound
        {
            // It can be read where it is.
            self.faults.report_write(&StoreError::io(format!("publishing the object {id}"), error));
        }
    }
}
