//! Keeping chunks: into the file at once, safe on the disk with the committer's next group.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{ObjectRef, Store, StoreError, blocking};
use crate::units::ChunkIndex;
use bytes::Bytes;

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

    async fn try_write_chunk(
        self: &Arc<Self>,
        object: &ObjectRef,
        chunk: ChunkIndex,
        bytes: Bytes,
        crc: u32,
    ) -> Result<(), StoreError> {
        let writing = self.make_room(object.dataset, bytes.len() as u64).await?;
        let pin = self.pin(object).await?;
        let permit = Arc::clone(&self.uncommitted).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let (this, object) = (Arc::clone(self), *object);
        blocking(move || {
            let Some(mut landing) = this.begin(&object, chunk, pin, writing)? else { return Ok(()) };
            landing.put(&bytes, crc)?;
            landing.publish(permit)
        })
        .await
    }
}
