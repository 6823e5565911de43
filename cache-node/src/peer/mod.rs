//! The node API's server: gRPC for status and catalogs here, chunks by our own frames in [`connection`]. Serves from the cache or the source,
//! never from a peer.

mod answer;
pub mod connection;
mod send;

use std::sync::Arc;

use forebay_protocol::node::node_server::Node;
use forebay_protocol::node::{
    AdoptRequest, AdoptResponse, ReadCatalogRequest, ReadCatalogResponse, StatusRequest, StatusResponse,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::catalogue::transfer;
use crate::engine::Engine;
use crate::node::Shared;

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

    async fn adopt(&self, request: Request<AdoptRequest>) -> Result<Response<AdoptResponse>, Status> {
        let engine = self.engine()?;
        engine.adopt(request.into_inner()).await.map(Response::new)
    }
}
