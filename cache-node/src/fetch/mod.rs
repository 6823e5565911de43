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

use crate::dataset::CatalogObject;
use crate::memory::{Memory, Share, Shares};
use crate::metrics::{Metrics, Origin};
use crate::store::StoreError;
use crate::told::Told;
use crate::units::ChunkIndex;
pub use failure::FetchError;
use failure::Kind;
use peers::{PeerAnswer, Reach};
use probes::Probes;
use single_flight::SingleFlight;
use turns::Turns;
use worlds::{Chunks, Content, Link, Live, Read, World};

/// Most members that are asked for a chunk that is lost, the likely ones first: behind these hardly anybody has a copy.
const MOST_ASKED: usize = 8;

/// How long a member may take for a chunk before the next one is asked: longer than a source's retries.
const LONGEST_ANSWER: Duration = Duration::from_secs(60);

/// A chunk that has just been fetched.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Its bytes, verified. None: they were written to its file as they came, and it is kept.
    pub bytes: Option<Bytes>,
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

/// Whom a fetch is for, and so whom it may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A reader of this machine, one who is about to read, or a preload: any member may be asked.
    Reader,
    /// A peer in this node's zone: what is not here is asked of the first owner.
    Relay,
    /// A peer: what is not here is read from the source.
    Owner,
    /// A chunk that was here and is lost: any member is asked for what it has, nobody asks further.
    Repair,
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

/// Fetches chunks for one node.
#[derive(Debug)]
pub struct Fetcher<W: World = Live> {
    store: Arc<W::Chunks>,
    peers: W::Link,
    /// A flight that may ask peers is not one that a peer may wait for: two nodes could wait for each other.
    flights: SingleFlight<(ObjectId, ChunkIndex, Purpose), Result<Ensured, FetchError>>,
    probes: Probes,
    memory: Shares,
    turns: Turns,
    metrics: Arc<Metrics>,
    /// That a chunk could not be kept: where readers hold all of a cache none can.
    not_kept: Told,
}

impl<W: World> Fetcher<W> {
    /// A fetcher into `store`.
    pub fn new(store: Arc<W::Chunks>, peers: W::Link, memory: Shares, metrics: Arc<Metrics>) -> Self {
        Self {
            store,
            peers,
            flights: SingleFlight::default(),
            probes: Probes::default(),
            memory,
            turns: Turns::default(),
            metrics,
            not_kept: Told::default(),
        }
    }

    /// The peers' connections.
    pub fn peers(&self) -> &W::Link {
        &self.peers
    }

    /// The node's memory.
    pub fn memory(&self) -> &Shares {
        &self.memory
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
        // It was here: whoever has it is asked before the source is.
        if self.store.is_lost(&id, chunk)
            && let Some(ensured) = self.from_any_holder(dataset, object, chunk).await
        {
            return Ok(ensured);
        }
        let route = dataset.placement().route(&id, chunk, purpose);
        if route.is_empty() {
            return self.bring(dataset, object, chunk).await;
        }
        let work = || {
            let (this, dataset, object) = (Arc::clone(self), Arc::clone(dataset), object.clone());
            async move {
                // It may have come between the last look and the beginning of this flight.
                if this.store.has(&object.stored.id, chunk) {
                    return Ok(Ensured::Present);
                }
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

    /// A chunk that was here and is lost, from any member that holds it. Nobody who is asked asks further, so any flight may wait for this one.
    async fn from_any_holder(
        self: &Arc<Self>,
        dataset: &Arc<W::Content>,
        object: &CatalogObject,
        chunk: ChunkIndex,
    ) -> Option<Ensured> {
        let id = object.stored.id;
        let work = || {
            let (this, dataset, object) = (Arc::clone(self), Arc::clone(dataset), object.clone());
            async move {
                for address in dataset.placement().all_holders(&id, chunk).into_iter().take(MOST_ASKED) {
                    if this.store.has(&id, chunk) {
                        return Ok(Ensured::Present);
                    }
                    let step = placement::Step { address, reach: Reach::Cache };
                    if let Some(fetched) = this.ask(&dataset, &object, chunk, step, Purpose::Repair).await? {
                        return Ok(Ensured::Fetched(fetched));
                    }
                }
                Err(FetchError::not_found(format!("no member has chunk {} of object {id}", chunk.0)))
            }
        };
        flown(self.flights.run((id, chunk, Purpose::Repair), work).await).ok()
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
                if let Some(fetched) = this.fetch_from_holders(&dataset, &object, chunk).await? {
                    return Ok(Ensured::Fetched(fetched));
                }
                this.fetch_from_source(&dataset, &object, chunk).await.map(Ensured::Fetched)
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
    ) -> Result<Option<Fetched>, FetchError> {
        for address in dataset.placement().holders(&object.stored.id, chunk) {
            if !self.probes.is_worth(dataset.uid(), address) {
                continue;
            }
            // Who brings waits for no memory that a reader's flight may hold.
            let memory = reserve(&self.memory.from_source, chunk.range(object.stored.size).length).await?;
            let answer = self.question(dataset, object, chunk, placement::Step { address, reach: Reach::Cache }).await;
            match answer {
                PeerAnswer::Chunk { .. } => self.probes.note(dataset.uid(), address, true),
                PeerAnswer::Lacking => self.probes.note(dataset.uid(), address, false),
                _ => {}
            }
            if let Ok(Some(fetched)) = self.take(dataset, object, chunk, answer, &memory).await {
                return Ok(Some(fetched));
            }
        }
        Ok(None)
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
        let pool = match purpose {
            Purpose::Reader => &self.memory.from_peers,
            Purpose::Relay => &self.memory.relayed,
            Purpose::Owner | Purpose::Repair => &self.memory.from_source,
        };
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
        let (bytes, memory) = (Some(bytes), Arc::clone(memory));
        Ok(Some(Fetched { bytes, crc, origin: Origin::Peer, was_cached, kept, memory }))
    }

    async fn fetch_from_source(
        &self,
        dataset: &W::Content,
        object: &CatalogObject,
        chunk: ChunkIndex,
    ) -> Result<Fetched, FetchError> {
        let (read, memory) = dataset.read_chunk(object, chunk, &self.memory.from_source, &self.store).await?;
        let (bytes, crc, kept) = match read {
            Read::Bytes(bytes) => {
                let crc = crc32c::crc32c(&bytes);
                let kept = self.keep(object, chunk, &bytes, crc).await;
                (Some(bytes), crc, kept)
            }
            Read::Landed(landing) => {
                let crc = landing.crc();
                landing.end().await.map_err(|error| FetchError::store(&error))?;
                (None, crc, Ok(()))
            }
        };
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
        match &kept {
            Ok(()) => {}
            Err(error) if self.not_kept.is_due() => {
                tracing::warn!(id = %object.stored.id, %error, "a chunk could not be kept, and perhaps others");
            }
            Err(error) => tracing::debug!(id = %object.stored.id, %error, "a chunk could not be kept"),
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
