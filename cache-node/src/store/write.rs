//! Keeping chunks: into the file at once, safe on the disk with the committer's next group.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay_catalog::ObjectId;

use super::commit::Op;
use super::lease::Lease;
use super::slot::Body;
use super::{ObjectRef, Store, StoreError, backing, blocking};
use crate::units::ChunkIndex;

/// Between two evictions because the disk is full.
const EVICTION_PAUSE: Duration = Duration::from_secs(10);

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
        // All of it: a part would be a mistake of the caller's, for the other way to refuse.
        if Self::is_small(object.size) && bytes.len() as u64 == object.size {
            return self.write_small(object, bytes, crc).await;
        }
        self.write_alone(object, chunk, bytes, crc).await
    }

    /// Keeps a chunk, evicting if the disk is full before its time.
    pub(super) async fn write_alone(
        self: &Arc<Self>,
        object: &ObjectRef,
        chunk: ChunkIndex,
        bytes: Bytes,
        crc: u32,
    ) -> Result<(), StoreError> {
        let written = self.try_write_chunk(object, chunk, bytes.clone(), crc).await;
        match written {
            Err(error) if error.is_disk_full() && self.may_evict_for_disk() => {
                tracing::warn!(
                    used = self.used_bytes(),
                    capacity = self.capacity(),
                    "the disk has less room than the capacity says; evicting"
                );
                self.faults.report_write(&error);
                self.evict_some();
                self.flush().await?;
                let written = self.try_write_chunk(object, chunk, bytes, crc).await;
                if written.is_ok() {
                    self.faults.writes_work();
                }
                written
            }
            written => written,
        }
        .inspect(|()| self.faults.mended(object.id, chunk))
        .inspect_err(|error| self.faults.report_write(error))
    }

    /// Whether objects may be evicted because the disk is full. Not at every write: room that others take is not to be won by evicting everything.
    fn may_evict_for_disk(&self) -> bool {
        let (mut made_room_at, now) = (self.made_room_at.lock(), Instant::now());
        let may = made_room_at.is_none_or(|at| now.duration_since(at) >= EVICTION_PAUSE);
        if may {
            *made_room_at = Some(now);
        }
        may
    }

    /// False when the file of an object that is here in part is gone or cut, or belongs in `partial/` and is not there: the object has been dropped.
    fn file_is_sound(&self, id: &ObjectId, pin: &Lease, size: u64) -> io::Result<bool> {
        let shard = self.slots.lock(id);
        let slot = shard.get(id).filter(|slot| slot.generation == pin.generation);
        let Some(slot) = slot.filter(|slot| matches!(slot.body, Body::Partial(_)) && slot.bytes() > 0) else {
            return Ok(true);
        };
        let mut length = self.backing.partial_length(id)?;
        if length.is_none() && !slot.verified && self.backing.unpublish(id).is_ok() {
            // The power went between the index and the directory.
            length = self.backing.partial_length(id)?;
        }
        drop(shard);
        if length == Some(size) {
            return Ok(true);
        }
        self.lose_file(id, pin.generation, length.is_some());
        Ok(false)
    }

    async fn try_write_chunk(
        self: &Arc<Self>,
        object: &ObjectRef,
        chunk: ChunkIndex,
        bytes: Bytes,
        crc: u32,
    ) -> Result<(), StoreError> {
        // Before room is made, so that it is used at once: what is on its way is not counted.
        let turn = self.writers.turn(&object.id).await;
        self.make_room(object.dataset, bytes.len() as u64).await?;
        let pin = self.pin(object).await?;
        let permit = Arc::clone(&self.uncommitted).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let (this, object) = (Arc::clone(self), *object);
        blocking(move || {
            let _turn = turn;
            let id = object.id;
            let failed = |error| StoreError::io(format!("writing the cached object {id}"), error);
            this.put_right(&id).map_err(failed)?;
            if !this.file_is_sound(&id, &pin, object.size).map_err(failed)? {
                return Ok(());
            }
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
                this.checked.insert(&id, slot, chunk);
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
