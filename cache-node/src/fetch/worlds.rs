//! What a fetcher works with: a store, the way to the peers, and datasets with their sources. A node's own in [`Live`]; a simulated world
//! in the tests, so that the same fetcher runs over thousands of seeds.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use forebay_catalog::ObjectId;

use super::peers::{PeerAnswer, Peers, Reach};
use super::placement::Placement;
use super::{CatalogObject, FetchError};
use crate::dataset::Dataset;
use crate::memory::{Memory, Share};
use crate::source::attempt::Hold;
use crate::source::{receiving, retry};
use crate::store::{Landing, ObjectRef, Store, StoreError};
use crate::units::{ByteRange, ChunkIndex};

/// One kind of world.
pub trait World: Send + Sync + Sized + 'static {
    /// Where chunks are kept.
    type Chunks: Chunks;
    /// How the other members are asked.
    type Link: Link;
    /// Of what the objects are.
    type Content: Content<Self::Chunks>;
}

/// Keeps chunks.
pub trait Chunks: Send + Sync + 'static {
    /// Whether the chunk can be read here.
    fn has(&self, id: &ObjectId, chunk: ChunkIndex) -> bool;

    /// Whether the chunk was here and is to be brought again.
    fn is_lost(&self, id: &ObjectId, chunk: ChunkIndex) -> bool;

    /// Keeps a verified chunk.
    fn write_chunk(
        self: &Arc<Self>,
        object: &ObjectRef,
        chunk: ChunkIndex,
        bytes: Bytes,
        crc: u32,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// A chunk and its crc32c; none when it is not here.
    fn read_chunk(
        self: &Arc<Self>,
        object: &ObjectRef,
        chunk: ChunkIndex,
    ) -> impl Future<Output = Result<Option<(Bytes, u32)>, StoreError>> + Send;
}

/// Asks the other members.
pub trait Link: Send + Sync + 'static {
    /// Asks the member at `address` for a chunk.
    fn read_chunk(
        &self,
        address: SocketAddr,
        dataset_uid: &str,
        object: &ObjectRef,
        chunk: ChunkIndex,
        reach: Reach,
    ) -> impl Future<Output = PeerAnswer> + Send;
}

/// A chunk that a source has sent.
#[derive(Debug)]
pub enum Read {
    /// Its bytes.
    Bytes(Bytes),
    /// They have been written as they came.
    Landed(Landing),
}

/// A dataset, as far as a fetcher needs to know it.
pub trait Content<Store>: Send + Sync + 'static {
    /// What all nodes call it.
    fn uid(&self) -> &str;

    /// Who keeps what of it.
    fn placement(&self) -> &Placement;

    /// Reads a chunk from the source, which is tried again as long as that may help. Exactly the bytes, or an error; they may be written to the
    /// store as they come. Memory of the share is held while bytes are on their way, not while the source is silent or is left alone before the
    /// next try.
    fn read_chunk(
        &self,
        object: &CatalogObject,
        chunk: ChunkIndex,
        memory: &Share,
        store: &Arc<Store>,
    ) -> impl Future<Output = Result<(Read, Memory), FetchError>> + Send;

    /// So many bytes came from a peer.
    fn count_peer_bytes(&self, bytes: u64);
}

/// The world of a node.
#[derive(Debug)]
pub struct Live;

impl World for Live {
    type Chunks = Store;
    type Link = Peers;
    type Content = Dataset;
}

impl Chunks for Store {
    fn has(&self, id: &ObjectId, chunk: ChunkIndex) -> bool {
        Self::has(self, id, chunk)
    }

    fn is_lost(&self, id: &ObjectId, chunk: ChunkIndex) -> bool {
        self.faults().is_lost(id, chunk)
    }

    async fn write_chunk(
        self: &Arc<Self>,
        object: &ObjectRef,
        chunk: ChunkIndex,
        bytes: Bytes,
        crc: u32,
    ) -> Result<(), StoreError> {
        Self::write_chunk(self, object, chunk, bytes, crc).await
    }

    async fn read_chunk(
        self: &Arc<Self>,
        object: &ObjectRef,
        chunk: ChunkIndex,
    ) -> Result<Option<(Bytes, u32)>, StoreError> {
        Self::read_chunk(self, object, chunk).await
    }
}

impl Link for Peers {
    async fn read_chunk(
        &self,
        address: SocketAddr,
        dataset_uid: &str,
        object: &ObjectRef,
        chunk: ChunkIndex,
        reach: Reach,
    ) -> PeerAnswer {
        Self::read_chunk(self, address, dataset_uid, object, chunk, reach).await
    }
}

impl Dataset {
    /// Reads a range from the source into memory, see [`Content::read_chunk`].
    pub async fn read_source(
        &self,
        object: &CatalogObject,
        range: ByteRange,
        memory: &Share,
    ) -> Result<(Bytes, Memory), FetchError> {
        let source = self.source(object.source).ok_or_else(|| FetchError::no_source(self, object))?;
        let hold = || async { Some(Held { memory: memory.reserve(range.length).await?, landing: None }) };
        let read = source.read_holding(retry::READING, &object.version, range, memory.buffers(), hold);
        let (bytes, held) = read.await.map_err(FetchError::from)?;
        Ok((bytes, held.memory))
    }
}

/// What is held while a chunk comes.
struct Held {
    memory: Memory,
    landing: Option<Landing>,
}

impl Hold for Held {
    fn take(&mut self, piece: &[u8]) -> io::Result<bool> {
        match &mut self.landing {
            Some(landing) => landing.take(piece).map(|()| true),
            None => Ok(false),
        }
    }
}

impl Content<Store> for Dataset {
    fn uid(&self) -> &str {
        Self::uid(self)
    }

    fn placement(&self) -> &Placement {
        &self.placement
    }

    async fn read_chunk(
        &self,
        object: &CatalogObject,
        chunk: ChunkIndex,
        memory: &Share,
        store: &Arc<Store>,
    ) -> Result<(Read, Memory), FetchError> {
        let range = chunk.range(object.stored.size);
        if range.length == object.stored.size {
            let (bytes, memory) = self.read_source(object, range, memory).await?;
            return Ok((Read::Bytes(bytes), memory));
        }
        let source = self.source(object.source).ok_or_else(|| FetchError::no_source(self, object))?;
        let (source, object, share, store) = (Arc::clone(source), object.clone(), memory.clone(), Arc::clone(store));
        let work = receiving::spawn(async move {
            let hold = || async {
                let memory = share.reserve(range.length).await?;
                Some(Held { memory, landing: store.land(&object.stored, chunk) })
            };
            source.read_holding(retry::READING, &object.version, range, share.buffers(), hold).await
        });
        let (bytes, held) = work.await.map_err(|_| FetchError::internal("receiving a chunk panicked"))??;
        Ok((held.landing.map_or(Read::Bytes(bytes), Read::Landed), held.memory))
    }

    fn count_peer_bytes(&self, bytes: u64) {
        self.counters.add_peer(bytes);
    }
}
