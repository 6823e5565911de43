//! Fetching: makes chunks of objects present on this node, each once however many ask, from the member that owns it or from the source. What
//! arrives is verified before it is kept.

pub mod failure;
pub mod peers;
pub mod placement;
mod repair;
pub mod single_flight;

use std::sync::Arc;

use bytes::Bytes;
use forebay_catalog::ObjectId;
use parking_lot::RwLock;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::dataset::{CatalogObject, Dataset};
use crate::memory::{Memory, Share, Shares};
use crate::metrics::{Metrics, Origin};
use crate::source::retry;
use crate::store::{Store, StoreError};
use crate::units::ChunkIndex;
pub use failure::FetchError;
use failure::Kind;
use peers::{PeerAnswer, Peers, Reach};
use placement::{Hop, Members};
use single_flight::SingleFlight;

/// What preloads may have in flight: so many small objects, or a quarter as many chunks.
const PRELOAD_TURNS: usize = 64;
const TURNS_OF_A_CHUNK: u32 = 4;
/// Up to this size an object is small.
const SMALL: u64 = 1 << 20;

/// A chunk that has just been fetched.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Its bytes, verified.
    pub bytes: Bytes,
    /// Their crc32c.
    pub crc: u32,
    /// Where it came from.
    pub origin: Origin,
    /// It was on some cache node before.
    pub was_cached: bool,
    /// Whether this node has kept it, or why not.
    pub kept: Result<(), Arc<StoreError>>,
    /// Its share of the memory for chunks.
    pub memory: Memory,
}

/// How a chunk came to be present.
#[derive(Clone, Debug)]
pub enum Ensured {
    /// It was here.
    Present,
    /// It was fetched.
    Fetched(Fetched),
}

/// Whom a fetch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A reader of this machine, or one who is about to read: any member may be asked.
    Reader,
    /// A peer, or a preload: what is not here is read from the source.
    Owner,
    /// A chunk that was here and is lost: any member is asked for what it has, nobody asks further.
    Repair,
}

/// Fetches chunks for one node.
#[derive(Debug)]
pub struct Fetcher {
    store: Arc<Store>,
    peers: Peers,
    members: RwLock<Arc<Members>>,
    /// A flight that may ask peers is not one that a peer may wait for: two nodes could wait for each other.
    flights: SingleFlight<(ObjectId, ChunkIndex, Purpose), Result<Ensured, FetchError>>,
    memory: Shares,
    /// Apart from the readers', so that they never queue behind preloads.
    preloads: Semaphore,
    metrics: Arc<Metrics>,
}

impl Fetcher {
    /// A fetcher into `store`.
    pub fn new(store: Arc<Store>, peers: Peers, memory: Shares, metrics: Arc<Metrics>) -> Self {
        Self {
            store,
            peers,
            members: RwLock::new(Arc::new(Members::new(&[], "", &[]))),
            flights: SingleFlight::default(),
            memory,
            preloads: Semaphore::new(PRELOAD_TURNS),
            metrics,
        }
    }

    /// The peers' connections.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Who owns what.
    pub fn members(&self) -> Arc<Members> {
        Arc::clone(&self.members.read())
    }

    /// Others own from now on.
    pub fn set_members(&self, members: Arc<Members>) {
        *self.members.write() = members;
    }

    /// Waits until a preload of so many bytes may begin; the turn ends when the result is dropped.
    pub async fn preload_turn(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        let turns = if bytes > SMALL { TURNS_OF_A_CHUNK } else { 1 };
        // Never closed.
        self.preloads.acquire_many(turns).await.ok()
    }

    /// The node's memory.
    pub fn memory(&self) -> &Shares {
        &self.memory
    }

    /// Makes a chunk present.
    pub async fn ensure(
        self: &Arc<Self>,
        dataset: &Arc<Dataset>,
        object: &CatalogObject,
        chunk: ChunkIndex,
        purpose: Purpose,
    ) -> Result<Ensured, FetchError> {
        let id = object.stored.id;
        if self.store.has(&id, chunk) {
            return Ok(Ensured::Present);
        }
        // It was here: whoever has it is asked before the source is.
        if self.store.faults().is_lost(&id, chunk) {
            return self.repair(dataset, object, chunk).await;
        }
        if purpose == Purpose::Owner || self.members().owns(&id, chunk.stripe()) {
            return self.ensure_from_source(dataset, object, chunk).await;
        }
        let work = || {
            let (this, dataset, object) = (Arc::clone(self), Arc::clone(dataset), object.clone());
            async move {
                // It may have come between the last look and the beginning of this flight.
                if this.store.has(&object.stored.id, chunk) {
                    return Ok(Ensured::Present);
                }
                if let Some(fetched) = this.fetch_from_peers(&dataset, &object, chunk).await? {
                    return Ok(Ensured::Fetched(fetched));
                }
                // A peer that has given up the owner too may have asked this node meanwhile.
                this.ensure_from_source(&dataset, &object, chunk).await
            }
        };
        flown(self.flights.run((id, chunk, Purpose::Reader), work).await)
    }

    /// The flight that peers may wait for, since it never waits for a peer.
    async fn ensure_from_source(
        self: &Arc<Self>,
        dataset: &Arc<Dataset>,
        object: &CatalogObject,
        chunk: ChunkIndex,
    ) -> Result<Ensured, FetchError> {
        let work = || {
            let (this, dataset, object) = (Arc::clone(self), Arc::clone(dataset), object.clone());
            async move {
                // It may have come between the last look and the beginning of this flight.
                if this.store.has(&object.stored.id, chunk) {
                    return Ok(Ensured::Present);
                }
                this.fetch_from_source(&dataset, &object, chunk).await.map(Ensured::Fetched)
            }
        };
        flown(self.flights.run((object.stored.id, chunk, Purpose::Owner), work).await)
    }

    /// None when no member that comes before this node can give the chunk.
    async fn fetch_from_peers(
        &self,
        dataset: &Dataset,
        object: &CatalogObject,
        chunk: ChunkIndex,
    ) -> Result<Option<Fetched>, FetchError> {
        for hop in self.members().route(&object.stored.id, chunk.stripe()) {
            let Hop::Peer(peer) = hop else { break };
            match self.fetch_from_peer(dataset, object, chunk, peer).await {
                Ok(None) => {}
                // It may have other credentials than this node, old or new; no third one has better ones.
                Err(error) if error.kind() == Kind::Source => break,
                result => return result,
            }
        }
        Ok(None)
    }

    /// None when the peer can't be reached or can't help, and the next is to be asked.
    async fn fetch_from_peer(
        &self,
        dataset: &Dataset,
        object: &CatalogObject,
        chunk: ChunkIndex,
        peer: placement::MemberIndex,
    ) -> Result<Option<Fetched>, FetchError> {
        let Some(address) = self.members().address(peer) else { return Ok(None) };
        let length = chunk.range(object.stored.size).length;
        let memory = reserve(&self.memory.from_peers, length).await?;
        let answer = self.peers.read_chunk(address, dataset.uid(), &object.stored, chunk, Reach::Source).await;
        let (bytes, crc, was_cached) = match answer {
            PeerAnswer::Chunk { bytes, crc, was_cached } => (bytes, crc, was_cached),
            PeerAnswer::Damaged => {
                self.metrics.count_verification_failure();
                return Ok(None);
            }
            PeerAnswer::Lacking | PeerAnswer::Unavailable => return Ok(None),
            PeerAnswer::Failed(error) => return Err(error),
        };
        dataset.counters.add_peer(length);
        let kept = self.keep(object, chunk, &bytes, crc).await;
        Ok(Some(Fetched { bytes, crc, origin: Origin::Peer, was_cached, kept, memory }))
    }

    async fn fetch_from_source(
        &self,
        dataset: &Dataset,
        object: &CatalogObject,
        chunk: ChunkIndex,
    ) -> Result<Fetched, FetchError> {
        let source = dataset.source(object.source).ok_or_else(|| FetchError::no_source(dataset, object))?;
        let range = chunk.range(object.stored.size);
        // Held while bytes are on their way, not while the source is silent or is left alone before the next try.
        let memory = || async { reserve(&self.memory.from_source, range.length).await.ok() };
        let (bytes, memory) = source.read_holding(retry::READING, &object.version, range, memory).await?;
        let crc = crc32c::crc32c(&bytes);
        let kept = self.keep(object, chunk, &bytes, crc).await;
        Ok(Fetched { bytes, crc, origin: Origin::Source, was_cached: false, kept, memory })
    }

    async fn keep(
        &self,
        object: &CatalogObject,
        chunk: ChunkIndex,
        bytes: &Bytes,
        crc: u32,
    ) -> Result<(), Arc<StoreError>> {
        let kept = self.store.write_chunk(&object.stored, chunk, bytes.clone(), crc).await;
        if let Err(error) = &kept {
            tracing::warn!(id = %object.stored.id, %error, "a chunk could not be kept");
        }
        kept.map_err(Arc::new)
    }
}

fn flown(result: Option<Result<Ensured, FetchError>>) -> Result<Ensured, FetchError> {
    result.unwrap_or_else(|| Err(FetchError::internal("a fetch panicked")))
}

async fn reserve(share: &Share, bytes: u64) -> Result<Memory, FetchError> {
    share.reserve(bytes).await.ok_or_else(|| FetchError::internal("the node is stopping"))
}
