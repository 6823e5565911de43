//! Putting a part of a chunk into the file of a leased object before the chunk is here. The chunk stays absent until it is written whole: only
//! who holds the lease is told of the part, and for no longer than the lease lasts.

use std::sync::Arc;

use bytes::Bytes;

use super::lease::Lease;
use super::{ObjectRef, Store, StoreError, backing, briefly};

impl Store {
    /// Writes verified bytes where they belong in the file that the holder of `lease` has open. False when that file is not there to be
    /// written any more, since the object is complete or was found damaged.
    pub async fn write_piece(
        self: &Arc<Self>,
        lease: &Lease,
        object: &ObjectRef,
        offset: u64,
        bytes: Bytes,
    ) -> Result<bool, StoreError> {
        let writing = self.make_room(object.dataset, bytes.len() as u64).await?;
        let Some(pin) = self.try_pin(object).filter(|pin| pin.generation == lease.generation) else { return Ok(false) };
        let (this, object) = (Arc::clone(self), *object);
        let written = briefly(move || {
            // Held to the end of the write.
            let (_pin, _writing) = (pin, writing);
            let failed = |error| StoreError::io(format!("writing the cached object {}", object.id), error);
            let Some(file) = this.backing.open_partial(&object.id, object.size).map_err(failed)? else {
                return Ok(false);
            };
            backing::write_at(&file, &bytes, offset).map_err(failed)?;
            Ok(true)
        });
        written.await.inspect_err(|error| self.faults.report_write(error))
    }
}
