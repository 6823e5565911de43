//! Reading chunks for peers, verified.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::{ObjectRef, Store, StoreError, Verdict, backing, blocking};
use crate::units::ChunkIndex;

impl Store {
    /// Reads and verifies a chunk; none when it is not here, or was here and is damaged (and now waits for repair).
    pub async fn read_chunk(
        self: &Arc<Self>,
        object: &ObjectRef,
        chunk: ChunkIndex,
    ) -> Result<Option<(Bytes, u32)>, StoreError> {
        let (this, object) = (Arc::clone(self), *object);
        blocking(move || this.read_chunk_now(&object, chunk)).await
    }

    pub(super) fn read_chunk_now(
        &self,
        object: &ObjectRef,
        chunk: ChunkIndex,
    ) -> Result<Option<(Bytes, u32)>, StoreError> {
        let id = object.id;
        let Some(expected) = self.expected(&id, chunk) else { return Ok(None) };
        self.note_use(&id);
        let range = chunk.range(expected.size);
        let mut bytes = match self.backing.open(&id) {
            Ok(Some(found)) => backing::read_at(&found.file, range.offset, range.length),
            Ok(None) => Err(io::ErrorKind::NotFound.into()),
            Err(error) => Err(error),
        };
        let read = match &mut bytes {
            Ok(bytes) => Ok(crc32c::crc32c(bytes)),
            Err(error) => Err(std::mem::replace(error, io::ErrorKind::Other.into())),
        };
        match (self.judge(&id, chunk, &expected, read)?, bytes) {
            (Verdict::Good, Ok(bytes)) => Ok(Some((bytes.into(), expected.crc.unwrap_or_default()))),
            _ => Ok(None),
        }
    }
}
