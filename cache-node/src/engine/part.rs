//! The first bytes of a cold object: somebody who wants a few KiB does not wait for the whole chunk in which they are.

use std::sync::Arc;

use super::Engine;
use crate::dataset::{CatalogObject, Dataset};
use crate::fetch::{FetchError, Purpose};
use crate::store::{Lease, Presence};
use crate::units::{ByteRange, ChunkIndex};

/// What is asked of the source at once, aligned to it; who wants more waits for the chunk.
const PART: u64 = 64 << 10;

/// Smaller objects are brought whole: the part is asked for twice, and this keeps it below half a percent of what is read.
const LEAST_OBJECT: u64 = 16 << 20;

impl Engine {
    /// Brings a part with `range` in it into the file that the holder of `lease` has open, when nothing of the object is here and the source
    /// is the one to ask. Verified like a chunk: length, and ETag under `If-Match`. None: the chunk is to be waited for.
    pub async fn bring_part(
        &self,
        dataset: &Dataset,
        object: &CatalogObject,
        lease: &Lease,
        range: ByteRange,
    ) -> Result<Option<ByteRange>, FetchError> {
        let (id, size) = (&object.stored.id, object.stored.size);
        let chunk = ChunkIndex::containing(range.offset);
        let offset = range.offset / PART * PART;
        let part = ByteRange { offset, length: PART }.within(size);
        if size < LEAST_OBJECT
            || range.is_empty()
            || range.end() > part.end()
            || !self.store.with_presence(id, is_empty)
            || self.store.has(id, chunk)
            || self.store.faults().is_lost(id, chunk)
            || !dataset.placement.route(id, chunk, Purpose::Reader).is_empty()
            || !dataset.placement.holders(id, chunk).is_empty()
        {
            return Ok(None);
        }
        let (bytes, _memory) = dataset.read_source(object, part, &self.memory().from_source).await?;
        let written = Arc::clone(&self.store).write_piece(lease, &object.stored, part.offset, bytes).await;
        Ok(written.map_err(|error| FetchError::store(&error))?.then_some(part))
    }
}

fn is_empty(presence: &Presence) -> bool {
    match presence {
        Presence::Absent => true,
        Presence::Partial(chunks) => chunks.count() == 0,
        Presence::Complete => false,
    }
}
