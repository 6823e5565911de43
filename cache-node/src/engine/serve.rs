//! Chunks for readers of this machine and for peers.

use std::sync::Arc;

use super::Engine;
use crate::dataset::{CatalogObject, Dataset};
use crate::fetch::peers::Reach;
use crate::fetch::{Ensured, FetchError, Fetched, Purpose};
use crate::memory::Shares;
use crate::store::Verdict;
use crate::units::{ByteRange, ChunkIndex, chunk_count};

/// Chunks behind a range that an answer tells to be present too. Fewer than the node reads ahead: the daemon reads what it was told of without asking,
/// and the reader has to be seen again before the node's read-ahead has ended.
const TELL_AHEAD: u32 = 4;

/// How a chunk came to be here for a peer.
#[derive(Clone, Debug)]
pub enum Brought {
    /// It is in the cache.
    Kept {
        /// It, or what it was fetched from, was on some cache node before.
        was_cached: bool,
    },
    /// It was fetched and could not be kept.
    Passing(Fetched),
}

impl Engine {
    /// Makes a chunk present for a reader of this machine, and known to be right. What could not be kept is in the answer only.
    pub async fn ensure_for_reader(
        &self,
        dataset: &Arc<Dataset>,
        object: &CatalogObject,
        chunk: ChunkIndex,
    ) -> Result<Ensured, FetchError> {
        self.siblings.observe(dataset, object, !self.store.has(&object.stored.id, chunk));
        // Present and then not: evicted, or found damaged, between two looks.
        for _ in 0..5 {
            let ensured = self.fetcher.ensure(dataset, object, chunk, Purpose::Reader).await?;
            if matches!(ensured, Ensured::Fetched(_)) {
                return Ok(ensured);
            }
            match self.store.check_chunk(&object.stored, chunk).await {
                Ok(Verdict::Good) => return Ok(ensured),
                Ok(Verdict::Absent | Verdict::Lost) => {}
                Err(error) => return Err(FetchError::store(&error)),
            }
        }
        Err(FetchError::internal(format!("object {} does not stay in the cache", object.stored.id)))
    }

    /// A reader of this machine has opened an object that is here: it will not ask for chunks.
    pub fn opened_complete(&self, dataset: &Arc<Dataset>, object: &CatalogObject) {
        self.siblings.observe(dataset, object, false);
    }

    /// Makes a chunk present for a peer, as far as its question reaches.
    pub async fn bring_for_peer(
        &self,
        dataset: &Arc<Dataset>,
        object: &CatalogObject,
        chunk: ChunkIndex,
        reach: Reach,
    ) -> Result<Brought, FetchError> {
        self.siblings.observe(dataset, object, !self.store.has(&object.stored.id, chunk));
        match self.fetcher.ensure(dataset, object, chunk, reach.into()).await? {
            Ensured::Present => Ok(Brought::Kept { was_cached: true }),
            Ensured::Fetched(fetched) if fetched.kept.is_ok() => Ok(Brought::Kept { was_cached: fetched.was_cached }),
            Ensured::Fetched(fetched) => Ok(Brought::Passing(fetched)),
        }
    }

    /// The node's memory.
    pub fn memory(&self) -> &Shares {
        self.fetcher.memory()
    }

    /// The present range around one that is present.
    pub fn present_around(&self, object: &CatalogObject, range: ByteRange) -> ByteRange {
        let (size, id) = (object.stored.size, &object.stored.id);
        let (Some(first), Some(last)) = (range.chunks().next(), range.chunks().next_back()) else { return range };
        let further = (last.0 + 1..chunk_count(size).min(last.0 + 1 + TELL_AHEAD)).map(ChunkIndex);
        let last = further.take_while(|chunk| self.store.is_verified(id, *chunk)).last().unwrap_or(last);
        let offset = first.range(size).offset;
        ByteRange { offset, length: last.range(size).end() - offset }
    }
}
