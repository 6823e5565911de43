//! Keeping chunks: into the file at once, safe on the disk with the committer's next group.

use std::sync::Arc;

use bytes::Bytes;

use super::commit::Op;
use super::slot::Body;
use super::{ObjectRef, Store, StoreError, backing, blocking};
use crate::units::ChunkIndex;

impl Store {
    /// Keeps a verified chunk. When this returns it can be read, also through files that are open already; it survives a crash a little later.
    pub async fn write_chunk(
        self: &Arc<Self>,
        object: &ObjectRef,
        chunk: ChunkIndex,
        bytes: Bytes,
        crc: u32,
    ) -> Result<(), StoreError> {
        if self.has(&object.id, chunk) {
            return Ok(());
        }
        let written = self.try_write_chunk(object, chunk, bytes.clone(), crc).await;
        match written {
            Err(error) if error.is_disk_full() => {
                tracing::error!(%error, used = self.used_bytes(), capacity = self.capacity(), "the disk has less room than the capacity says; evicting");
                self.evict_some();
                self.flush().await?;
                self.try_write_chunk(object, chunk, bytes, crc).await
            }
            written => written,
        }
    }

    async fn try_write_chunk(
        self: &Arc<Self>,
        object: &ObjectRef,
        chunk: ChunkIndex,
        bytes: Bytes,
        crc: u32,
    ) -> Result<(), StoreError> {
        self.make_room(object.dataset, bytes.len() as u64).await?;
        let pin = self.pin(object).await;
        let permit = Arc::clone(&self.uncommitted).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let (this, object) = (Arc::clone(self), *object);
        blocking(move || {
            let id = object.id;
            let failed = |error| StoreError::io(format!("writing the cached object {id}"), error);
            let file = this.backing.open_for_writing(&id, object.size).map_err(failed)?;
            backing::write_at(&file, &bytes, chunk.range(object.size).offset).map_err(failed)?;
            let first = {
                let mut shard = this.slots.lock(&id);
                let Some(slot) = shard.get_mut(&id).filter(|slot| slot.generation == pin.generation) else {
                    return Ok(());
                };
                let Body::Partial(partial) = &mut slot.body else {
                    this.backing.remove_stray(&id);
                    return Ok(());
                };
                let first = partial.written.count() == 0;
                if !partial.written.insert(chunk) {
                    return Ok(());
                }
                if let Some(kept) = partial.crcs.get_mut(chunk.0 as usize) {
                    *kept = crc;
                }
                this.usage.add(slot.dataset, bytes.len() as u64);
                first
            };
            if first {
                // Not under the shard's lock: the order's comes before it.
                this.eviction.lock().insert(id, object.dataset, object.size);
            }
            this.send(Op::Written { pin, chunk, file: Arc::new(file), permit })
        })
        .await
    }
}
