//! Fetching: makes chunks of objects present on this node, each once however many ask, from the member that owns it or from the source. What
//! arrives is verified before it is kept.
//!
//! Nobody waits for ever, whatever config the others have: a reader's flight may wait for one that relays, that for one that brings, and that
//! for nobody but the source. Each has memory of its own.

pub mod failure;
pub mod peers;
pub mod placement;
mod probes;
#[cfg(test)]
mod simulation;
pub mod single_flight;
pub mod turns;
pub mod worlds;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_catalog::ObjectId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::dataset::CatalogObject;
use crate::metrics::{Metrics, Origin};
use crate::store::StoreError;
use crate::units::ChunkIndex;
pub use failure::FetchError;
use failure::Kind;
use peers::{PeerAnswer, Reach};
use probes::Probes;
use single_flight::SingleFlight;
use turns::Turns;
use worlds::{Chunks, Content, Link, Live, World};

/// Memory for chunks on their way from a source, as much again for those from peers, and for those from the cache to peers: separate, so
/// that nodes that wait for each other always have room for what the other reads from the source.
const IN_FLIGHT_BYTES: usize = 128 << 20;
/// For chunks that are relayed; only where there are replicas in several zones.
const RELAYED_BYTES: usize = 64 << 20;
const PERMIT_BYTES: u64 = 4096;

/// How long a member may take for a chunk before the next one is asked: longer than a source's retries.
const LONGEST_ANSWER: Duration = Duration::from_secs(60);

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

/// A share of the memory for chunks, until the last holder is gone.
pub type Memory = Arc<OwnedSemaphorePermit>;

/// How a chunk came to be present.
#[derive(Clone, Debug)]
pub enum Ensured {
    /// It was here.
    Present,
    /// It was fetched.
    Fetched(Fetched),
}

/// Whom a fetch is for, and so whom it may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A reader of this machine, one who is about to read, or a preload: any member may be asked.
    Reader,
    /// A peer in this node's zone: what is not here is asked of the first owner.
    Relay,
    /// A peer: what is not here is read from the source.
    Owner,
}

impl From<Reach> for Purpose {
    /// What is done for a peer that asks so.
    fn from(reach: Reach) -> Self {
        match reach {
            Reach::Relay => Self::Relay,
            Reach::Source | Reach::Cache => Self::Owner,
        }
    }
}

/// A chunk as a peer gets it.
#[derive(Clone, Debug)]
pub struct ChunkRead {
    /// Its bytes, verified.
    pub bytes: Bytes,
    /// Their crc32c.
    pub crc: u32,
    /// It was here before.
    pub was_cached: bool,
    /// To be held while the bytes are on their way.
    pub memory: Memory,
}

/// Fetches chunks for one node.
#[derive(Debug)]
pub struct Fetcher<W: World = Live> {
    store: Arc<W::Chunks>,
    peers: W::Link,
    /// A flight that may ask peers is not one that a peer may wait for: two nodes could wait for each other.
    flights: SingleFlight<(ObjectId, ChunkIndex, Purpose), Result<Ensured, FetchError>>,
    probes: Probes,
    from_source: Arc<Semaphore>,
    from_peers: Arc<Semaphore>,
    relayed: Arc<Semaphore>,
    from_cache: Arc<Semaphore>,
    turns: Turns,
    metrics: Arc<Metrics>,
}

impl<W: World> Fetcher<W> {
    /// A fetcher into `store`.
    pub fn new(store: Arc<W::Chunks>, peers: W::Link, metrics: Arc<Metrics>) -> Self {
        let memory = |bytes: usize| Arc::new(Semaphore::new(bytes / PERMIT_BYTES as usize));
        Self {
            store,
            peers,
            flights: SingleFlight::default(),
            probes: Probes::default(),
            from_source: memory(IN_FLIGHT_BYTES),
            from_peers: memory(IN_FLIGHT_BYTES),
            relayed: memory(RELAYED_BYTES),
            from_cache: memory(IN_FLIGHT_BYTES),
            turns: Turns::default(),
            metrics,
        }
    }

    /// The peers' connections.
    pub fn peers(&self) -> &W::Link {
        &self.peers
    }

    /// What may be loaded ahead at once.
    pub fn turns(&self) -> &Turns {
        &self.turns
    }

    /// Members, or the dataset's placement, have changed: who had nothing may have something now.
    pub fn forget_probes(&self, dataset_uid: &str) {
        self.probes.forget(dataset_uid);
    }

    /// Makes a chunk present.
    pub async fn ensure(
        self: &Arc<Self>,
        dataset: &Arc<W::Content>,
        object: &CatalogObject,
        chunk: ChunkIndex,
        purpose: Purpose,
    ) -> Result<Ensured, FetchError> {
        let id = object.stored.id;
        if self.store.has(&id, chunk) {
            return Ok(Ensured::Present);
        }
        let route = dataset.placement().route(&id, chunk, purpose);
        if route.is_empty() {
            return self.bring(dataset, object, chunk).await;
        }
        let work = || {
            let (this, dataset, object) = (Arc::clone(self), Arc::clone(dataset), object.clone());
            async move {
                for step in route {
                    match this.ask(&dataset, &object, chunk, step, purpose).await {
                        Ok(Some(fetched)) => return Ok(Ensured::Fetched(fetched)),
                        Ok(None) => {}
                        // It may have other credentials than this node, old or new; no third one has better ones.
                        Err(error) if error.kind() == Kind::Source => break,
                        Err(error) => return Err(error),
                    }
                }
                // A peer that has given up the others too may have asked this node meanwhile.
                this.bring(&dataset, &object, chunk).await
            }
        };
        flown(self.flights.run((id, chunk, purpose), work).await)
    }

    /// Makes a chunk present that was here and is not any more, or is damaged and forgotten: from any member that holds it, else as for a reader.
    pub async fn repair(
        self: &Arc<Self>,
        dataset: &Arc<W::Content>,
        object: &CatalogObject,
        chunk: ChunkIndex,
    ) -> Result<Ensured, FetchError> {
        for address in dataset.placement().all_holders(&object.stored.id, chunk) {
            if self.store.has(&object.stored.id, chunk) {
                return Ok(Ensured::Present);
            }
            let step = placement::Step { address, reach: Reach::Cache };
            if let Ok(Some(fetched)) = self.ask(dataset, object, chunk, step, Purpose::Reader).await {
                return Ok(Ensured::Fetched(fetched));
            }
        }
        self.ensure(dataset, object, chunk, Purpose::Reader).await
    }

    /// Takes a chunk from a member that holds it; false when it does not, or can't be reached.
    pub async fn adopt(
        self: &Arc<Self>,
        dataset: &Arc<W::Content>,
        object: &CatalogObject,
        chunk: ChunkIndex,
        holder: SocketAddr,
    ) -> Result<bool, FetchError> {
        if self.store.has(&object.stored.id, chunk) {
            return Ok(true);
        }
        let step = placement::Step { address: holder, reach: Reach::Cache };
        match self.ask(dataset, object, chunk, step, Purpose::Reader).await? {
            Some(Fetched { kept: Ok(()), .. }) => Ok(true),
            Some(Fetched { kept: Err(error), .. }) => Err(FetchError::store(&error)),
            None => Ok(false),
        }
    }

    /// A chunk for a peer, from this node's cache or as far as the peer's question reaches; none when it is not here and the peer wants no more
    /// than that.
    pub async fn serve(
        self: &Arc<Self>,
        dataset: &Arc<W::Content>,
        object: &CatalogObject,
        chunk: ChunkIndex,
        reach: Reach,
    ) -> Result<Option<ChunkRead>, FetchError> {
        // Present and then not: evicted or found damaged between two looks.
        for _ in 0..5 {
            if self.store.has(&object.stored.id, chunk) {
                let memory = reserve(&self.from_cache, chunk.range(object.stored.size).length).await?;
                if let Some((bytes, crc)) = self.store.read_chunk(&object.stored, chunk).await? {
                    return Ok(Some(ChunkRead { bytes, crc, was_cached: true, memory }));
                }
            }
            if reach == Reach::Cache {
                return Ok(None);
            }
            if let Ensured::Fetched(fetched) = self.ensure(dataset, object, chunk, reach.into()).await? {
                let Fetched { bytes, crc, was_cached, memory, .. } = fetched;
                return Ok(Some(ChunkRead { bytes, crc, was_cached, memory }));
            }
        }
        Err(FetchError::internal(format!("object {} does not stay in the cache", object.stored.id)))
    }

    /// The flight that peers may wait for, since it waits for nobody: questions for what somebody holds are answered at once.
    async fn bring(
        self: &Arc<Self>,
        dataset: &Arc<W::Content>,
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
                let memory = reserve(&this.from_source, chunk.range(object.stored.size).length).await?;
                if let Some(fetched) = this.fetch_from_holders(&dataset, &object, chunk, &memory).await {
                    return Ok(Ensured::Fetched(fetched));
                }
                this.fetch_from_source(&dataset, &object, chunk, memory).await.map(Ensured::Fetched)
            }
        };
        flown(self.flights.run((object.stored.id, chunk, Purpose::Owner), work).await)
    }

    /// None when nobody who may hold the chunk has it.
    async fn fetch_from_holders(
        &self,
        dataset: &W::Content,
        object: &CatalogObject,
        chunk: ChunkIndex,
        memory: &Memory,
    ) -> Option<Fetched> {
        for address in dataset.placement().holders(&object.stored.id, chunk) {
            if !self.probes.is_worth(dataset.uid(), address) {
                continue;
            }
            let answer = self.question(dataset, object, chunk, placement::Step { address, reach: Reach::Cache }).await;
            match answer {
                PeerAnswer::Chunk { .. } => self.probes.note(dataset.uid(), address, true),
                PeerAnswer::Lacking => self.probes.note(dataset.uid(), address, false),
                _ => {}
            }
            if let Ok(Some(fetched)) = self.take(dataset, object, chunk, answer, memory).await {
                return Some(fetched);
            }
        }
        None
    }

    /// None when the peer can't be reached or can't help, and the next is to be asked.
    async fn ask(
        &self,
        dataset: &W::Content,
        object: &CatalogObject,
        chunk: ChunkIndex,
        step: placement::Step,
        purpose: Purpose,
    ) -> Result<Option<Fetched>, FetchError> {
        let pool = if purpose == Purpose::Relay { &self.relayed } else { &self.from_peers };
        let memory = reserve(pool, chunk.range(object.stored.size).length).await?;
        let answer = self.question(dataset, object, chunk, step).await;
        self.take(dataset, object, chunk, answer, &memory).await
    }

    async fn question(
        &self,
        dataset: &W::Content,
        object: &CatalogObject,
        chunk: ChunkIndex,
        step: placement::Step,
    ) -> PeerAnswer {
        let answer = self.peers.read_chunk(step.address, dataset.uid(), &object.stored, chunk, step.reach);
        tokio::time::timeout(LONGEST_ANSWER, answer).await.unwrap_or_else(|_| {
            tracing::warn!(address = %step.address, id = %object.stored.id, "a peer takes too long for a chunk; the next one is asked");
            PeerAnswer::Unavailable
        })
    }

    /// Keeps what a peer has answered, if it is the chunk.
    async fn take(
        &self,
        dataset: &W::Content,
        object: &CatalogObject,
        chunk: ChunkIndex,
        answer: PeerAnswer,
        memory: &Memory,
    ) -> Result<Option<Fetched>, FetchError> {
        let (bytes, crc, was_cached) = match answer {
            PeerAnswer::Chunk { bytes, crc, was_cached } => (bytes, crc, was_cached),
            PeerAnswer::Damaged => {
                self.metrics.count_verification_failure();
                return Ok(None);
            }
            PeerAnswer::Lacking | PeerAnswer::Unavailable => return Ok(None),
            PeerAnswer::Failed(error) => return Err(error),
        };
        dataset.count_peer_bytes(bytes.len() as u64);
        let kept = self.keep(object, chunk, &bytes, crc).await;
        let memory = Arc::clone(memory);
        Ok(Some(Fetched { bytes, crc, origin: Origin::Peer, was_cached, kept, memory }))
    }

    async fn fetch_from_source(
        &self,
        dataset: &W::Content,
        object: &CatalogObject,
        chunk: ChunkIndex,
        memory: Memory,
    ) -> Result<Fetched, FetchError> {
        let bytes = dataset.read_source(object, chunk.range(object.stored.size)).await?;
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

async fn reserve(memory: &Arc<Semaphore>, bytes: u64) -> Result<Memory, FetchError> {
    let permits = u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
    let permit = Arc::clone(memory).acquire_many_owned(permits).await;
    permit.map(Arc::new).map_err(|_| FetchError::internal("the node is stopping"))
}
