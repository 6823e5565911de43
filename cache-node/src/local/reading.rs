//! One request for a range of an open object: has its chunks brought, counts what the reader gets, and begins to fetch what it will want next.

use std::sync::Arc;

use futures::{StreamExt, stream};

use super::accounts::Accounts;
use super::open_object::OpenObject;
use super::spill::Spill;
use crate::dataset::{CatalogObject, Dataset};
use crate::engine::Engine;
use crate::fetch::{Ensured, FetchError, Fetched};
use crate::metrics::Origin;
use crate::store::Lease;
use crate::units::{ByteRange, ChunkIndex};

/// Chunks of one request that are fetched at once.
const CHUNKS_AT_ONCE: usize = 8;

/// What is asked for, and of what.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub(super) engine: &'a Arc<Engine>,
    pub(super) dataset: &'a Arc<Dataset>,
    pub(super) object: &'a CatalogObject,
    pub(super) open: &'a Arc<OpenObject>,
    pub(super) accounts: &'a Accounts,
    /// Within the object.
    pub(super) range: ByteRange,
}

/// Whether what a reader wants is in the file it has.
#[derive(PartialEq)]
pub(super) enum Given {
    Yes,
    /// It has to open the object again, and gets a file in memory.
    NotKept,
}

impl Reading<'_> {
    /// What the first reader of a cold object gets before its chunk is here; the chunk is on its way then.
    pub(super) async fn first_part(&self, lease: &Lease) -> Result<Option<ByteRange>, FetchError> {
        if !self.open.is_first_read() {
            return Ok(None);
        }
        let part = self.engine.bring_part(self.dataset, self.object, lease, self.range).await?;
        if part.is_some() {
            self.dataset.counters.add_request(self.range.length, 0);
            self.dataset.count_served(Origin::Source, self.range.length);
            self.fetch_ahead(ChunkIndex::containing(self.range.offset));
        }
        Ok(part)
    }

    /// Makes the chunks present and counts what the reader gets; begins to fetch what it will want next.
    pub(super) async fn make_present(&self) -> Result<Given, FetchError> {
        let Self { engine, dataset, object, open, range, .. } = *self;
        for chunk in open.read_ahead.observe(range, object.stored.size) {
            if !engine.store().is_verified(&open.id, chunk) && !engine.store().faults().writes_fail() {
                self.fetch_ahead(chunk);
            }
        }
        let mut chunks = stream::iter(range.chunks())
            .map(|chunk| async move { (chunk, engine.ensure_for_reader(dataset, object, chunk).await) })
            .buffer_unordered(CHUNKS_AT_ONCE);
        while let Some((chunk, ensured)) = chunks.next().await {
            let (hit, origin) = match ensured? {
                Ensured::Present => open.read_ahead.take(chunk).unwrap_or((true, Origin::Local)),
                Ensured::Fetched(Fetched { kept: Err(_), .. }) => return Ok(Given::NotKept),
                Ensured::Fetched(fetched) => (fetched.was_cached, fetched.origin),
            };
            self.count(chunk, hit, origin);
        }
        Ok(Given::Yes)
    }

    /// Brings the chunks into a file in memory, from the cache as far as it has them. What is there now.
    pub(super) async fn spill(&self, spill: &Spill) -> Result<ByteRange, FetchError> {
        let Self { engine, dataset, object, range, .. } = *self;
        for chunk in range.chunks() {
            let (mut hit, mut origin) = (true, Origin::Local);
            // Present and then not: evicted or found damaged between two looks.
            for _ in 0..5 {
                if spill.has(chunk) {
                    break;
                }
                match engine.ensure_for_reader(dataset, object, chunk).await? {
                    Ensured::Fetched(fetched) => {
                        (hit, origin) = (fetched.was_cached, fetched.origin);
                        // Without bytes it is in the cache.
                        if let Some(bytes) = fetched.bytes {
                            spill.put(chunk, bytes).await?;
                        }
                    }
                    Ensured::Present => {
                        let _memory = engine.memory().local.reserve(chunk.range(object.stored.size).length).await;
                        if let Some((bytes, _)) = engine.store().read_chunk(&object.stored, chunk).await? {
                            spill.put(chunk, bytes).await?;
                        }
                    }
                }
            }
            if !spill.has(chunk) {
                return Err(FetchError::internal(format!("object {} can't be held", object.stored.id)));
            }
            self.count(chunk, hit, origin);
        }
        let (first, last) = (range.chunks().next(), range.chunks().next_back());
        let (Some(first), Some(last)) = (first, last) else {
            return Ok(ByteRange { offset: range.offset, length: 0 });
        };
        let offset = first.range(object.stored.size).offset;
        Ok(ByteRange { offset, length: last.range(object.stored.size).end() - offset })
    }

    fn count(&self, chunk: ChunkIndex, hit: bool, origin: Origin) {
        self.accounts.count(self.dataset, self.object, chunk, self.range, hit, origin);
    }

    /// Begins to fetch a chunk that the reader will want.
    fn fetch_ahead(&self, chunk: ChunkIndex) {
        let (engine, dataset) = (Arc::clone(self.engine), Arc::clone(self.dataset));
        let (object, open) = (self.object.clone(), Arc::clone(self.open));
        tokio::spawn(async move {
            // A failure is the reader's to see, when it gets there.
            if let Ok(Ensured::Fetched(fetched)) = engine.ensure_for_reader(&dataset, &object, chunk).await
                && fetched.kept.is_ok()
            {
                open.read_ahead.fetched(chunk, fetched.was_cached, fetched.origin);
            }
        });
    }
}
