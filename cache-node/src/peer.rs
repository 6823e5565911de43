//! The node API's server: decodes a request, calls the engine, encodes its answer. Serves from the cache or the source, never from a peer.

use std::sync::Arc;

use bytes::Bytes;
use forebay_catalog::ObjectId;
use forebay_protocol::node::node_server::Node;
use forebay_protocol::node::{
    AdoptRequest, AdoptResponse, ReadCatalogRequest, ReadCatalogResponse, ReadObjectRequest, ReadObjectResponse,
    StatusRequest, StatusResponse,
};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::catalogue::transfer;
use crate::engine::Engine;
use crate::fetch::FetchError;
use crate::fetch::peers::Reach;
use crate::node::Shared;
use crate::units::{ByteRange, ChunkIndex};

/// Largest piece of a chunk in one message.
const PIECE: usize = 1 << 20;

/// Chunks of one request that are fetched at once.
const READ_AHEAD: usize = 2;

/// Serves what the node has.
#[derive(Clone, Debug)]
pub struct PeerServer {
    shared: Arc<Shared>,
}

impl PeerServer {
    /// A server for the node.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn engine(&self) -> Result<Arc<Engine>, Status> {
        self.shared.engine().ok_or_else(|| Status::unavailable("the node's cache is closed"))
    }
}

#[tonic::async_trait]
impl Node for PeerServer {
    type ReadCatalogStream = BoxStream<'static, Result<ReadCatalogResponse, Status>>;
    type ReadObjectStream = BoxStream<'static, Result<ReadObjectResponse, Status>>;

    async fn status(&self, _request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(self.shared.status()))
    }

    async fn read_catalog(
        &self,
        request: Request<ReadCatalogRequest>,
    ) -> Result<Response<Self::ReadCatalogStream>, Status> {
        let uid = request.into_inner().dataset_uid;
        let dataset = self.engine()?.dataset(&uid);
        let catalog = dataset.and_then(|dataset| dataset.catalog());
        let catalog = catalog.ok_or_else(|| Status::not_found(format!("no catalog of dataset {uid:?} here")))?;
        let (send, receive) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = transfer::send(&catalog, &send) {
                // The receiver may be gone; then there is nobody to tell.
                let _ = send.blocking_send(Err(Status::internal(error.to_string())));
            }
        });
        Ok(Response::new(ReceiverStream::new(receive).boxed()))
    }

    async fn read_object(
        &self,
        request: Request<ReadObjectRequest>,
    ) -> Result<Response<Self::ReadObjectStream>, Status> {
        let ReadObjectRequest { dataset_uid, object_id, offset, length, cached_only, relay } = request.into_inner();
        let id: [u8; 16] =
            object_id.as_ref().try_into().map_err(|_| Status::invalid_argument("an object id has 16 bytes"))?;
        let id = ObjectId::from_bytes(id);
        let engine = self.engine()?;
        let (dataset, object) = engine.object(&dataset_uid, &id).map_err(|error| error.to_status())?;
        let range = ByteRange { offset, length }.within(object.stored.size);
        if ChunkIndex::containing(range.offset).range(object.stored.size).offset != range.offset || range.is_empty() {
            return Err(Status::invalid_argument(format!("{range} does not begin at a chunk of object {id}")));
        }
        let reach = match (cached_only, relay) {
            (true, _) => Reach::Cache,
            (false, true) => Reach::Relay,
            (false, false) => Reach::Source,
        };
        let chunks = stream::iter(range.chunks()).map(move |chunk| {
            let (engine, dataset, object) = (Arc::clone(&engine), Arc::clone(&dataset), object.clone());
            async move { engine.chunk_for_peer(&dataset, &object, chunk, reach).await.map(|read| (chunk, read)) }
        });
        let pieces = chunks.buffered(READ_AHEAD).flat_map(|chunk| match chunk {
            Ok((_, None)) => stream::empty().boxed(),
            Ok((chunk, Some(read))) => {
                let pieces = pieces(chunk, &read.bytes, read.crc, read.was_cached);
                // Held until the last piece is taken.
                stream::iter(pieces).inspect(move |_| _ = &read.memory).boxed()
            }
            Err(error) => stream::iter([Err(FetchError::to_status(&error))]).boxed(),
        });
        Ok(Response::new(pieces.boxed()))
    }

    async fn adopt(&self, request: Request<AdoptRequest>) -> Result<Response<AdoptResponse>, Status> {
        let engine = self.engine()?;
        engine.adopt(request.into_inner()).await.map(Response::new)
    }
}

fn pieces(chunk: ChunkIndex, bytes: &Bytes, crc: u32, was_cached: bool) -> Vec<Result<ReadObjectResponse, Status>> {
    let begin = chunk.range(u64::MAX).offset;
    let starts = (0..bytes.len()).step_by(PIECE);
    let piece = |start: usize| {
        let end = (start + PIECE).min(bytes.len());
        let chunk_crc32c = (end == bytes.len()).then_some(crc);
        ReadObjectResponse { offset: begin + start as u64, data: bytes.slice(start..end), chunk_crc32c, was_cached }
    };
    starts.map(|start| Ok(piece(start))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_cut_into_pieces_and_the_last_has_the_checksum() {
        let bytes = Bytes::from(vec![7; 2 * PIECE + 5]);
        let pieces: Vec<_> = pieces(ChunkIndex(1), &bytes, 99, true).into_iter().map(Result::unwrap).collect();
        let shapes: Vec<_> = pieces.iter().map(|p| (p.offset - (4 << 20), p.data.len(), p.chunk_crc32c)).collect();
        assert_eq!(shapes, [(0, PIECE, None), (PIECE as u64, PIECE, None), (2 * PIECE as u64, 5, Some(99))]);
    }
}
