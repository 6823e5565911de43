//! Reading chunks for peers, verified.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::slot::Body;
use super::{ObjectRef, Store, StoreError, backing, blocking};
use crate::units::ChunkIndex;

impl Store {
    /// Reads and verifies a chunk; none when it is not here, or was here and is damaged (and now forgotten).
    pub async fn read_chunk(
        self: &Arc<Self>,
        object: &ObjectRef,
        chunk: ChunkIndex,
    ) -> Result<Option<(Bytes, u32)>, StoreError> {
        let (this, object) = (Arc::clone(self), *object);
        blocking(move || this.read_chunk_now(&object, chunk)).await
    }

    fn read_chunk_now(&self, object: &ObjectRef, chunk: ChunkIndex) -> Result<Option<(Bytes, u32)>, StoreError> {
        let id = object.id;
        let crc = {
            let mut shard = self.slots.lock(&id);
            let Some(slot) = shard.get_mut(&id).filter(|slot| !slot.evicting && slot.has(chunk)) else {
                return Ok(None);
            };
            self.touch_slot(slot);
            match &slot.body {
                Body::Complete => None,
                Body::Partial(partial) => partial.crcs.get(chunk.0 as usize).copied(),
            }
        };
        let crc = match crc {
            Some(crc) => Some(crc),
            None => self.index.crc(&id, chunk)?,
        };
        let range = chunk.range(object.size);
        let bytes = match self.backing.open(&id) {
            Ok(Some(found)) => backing::read_at(&found.file, range.offset, range.length),
            Ok(None) => Err(io::ErrorKind::NotFound.into()),
            Err(error) => Err(error),
        };
        match bytes {
            Ok(bytes) if Some(crc32c::crc32c(&bytes)) == crc => Ok(Some((bytes.into(), crc.unwrap_or_default()))),
            // Evicted meanwhile.
            _ if !self.has(&id, chunk) => Ok(None),
            damaged => {
                let cause = damaged.err().map_or_else(|| "its checksum is wrong".to_owned(), |error| error.to_string());
                tracing::error!(%id, chunk = chunk.0, cause, "a cached chunk is damaged; the object is fetched again");
                (self.failures)();
                self.forget(&id);
                Ok(None)
            }
        }
    }
}
