//! The node API's listening side: one socket for the life of the node, and a server on it that is replaced when the certificate changes.
//! Connections of the server before end when their calls do.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use forebay_protocol::config::TlsFiles;
use forebay_protocol::node::node_server::NodeServer;
use forebay_protocol::tls::Identity;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::node::{NodeError, Shared};
use crate::peer::PeerServer;

/// A request is some hundred bytes.
const MAX_REQUEST: usize = 64 << 10;
const STREAM_WINDOW: u32 = 1 << 20;
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The listening socket and its server.
#[derive(Debug)]
pub struct Api {
    listener: TcpListener,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    fingerprint: Option<[u8; 32]>,
    stop: CancellationToken,
}

impl Api {
    /// Nothing is served yet. The listener must be non-blocking.
    pub fn new(listener: TcpListener) -> Self {
        Self { listener, running: Mutex::default() }
    }

    /// Whether serving with this identity would replace a server with another one.
    pub fn would_change(&self, files: Option<&TlsFiles>) -> bool {
        self.running.lock().as_ref().is_some_and(|running| running.fingerprint != files.and_then(fingerprint))
    }

    /// Serves with this identity, unless that is what is being done.
    pub fn serve(
        &self,
        shared: &Arc<Shared>,
        identity: Option<Identity>,
        files: Option<&TlsFiles>,
    ) -> Result<(), NodeError> {
        let mut running = self.running.lock();
        let fingerprint = files.and_then(fingerprint);
        if running.as_ref().is_some_and(|running| running.fingerprint == fingerprint) {
            return Ok(());
        }
        let mut builder = Server::builder();
        if let Some(identity) = identity {
            builder = builder.tls_config(identity.server())?;
        }
        let service = NodeServer::new(PeerServer::new(Arc::clone(shared))).max_decoding_message_size(MAX_REQUEST);
        let router = builder
            .tcp_nodelay(true)
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .initial_stream_window_size(STREAM_WINDOW)
            .add_service(service);
        let listener = self.listener.try_clone().and_then(tokio::net::TcpListener::from_std);
        let listener = listener.map_err(|source| NodeError::Listen { at: "the node API".to_owned(), source })?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            if let Err(error) = router.serve_with_incoming_shutdown(incoming, stopped.cancelled_owned()).await {
                tracing::error!(%error, "the node API's server ended");
            }
        });
        if let Some(before) = running.replace(Running { fingerprint, stop }) {
            before.stop.cancel();
        }
        Ok(())
    }

    /// Accepts no more connections.
    pub fn stop(&self) {
        if let Some(running) = self.running.lock().take() {
            running.stop.cancel();
        }
    }
}

/// Tells one set of TLS files from another; none when they can't be read.
pub fn fingerprint(files: &TlsFiles) -> Option<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    for path in [&files.ca, &files.cert, &files.key] {
        let content = std::fs::read(path).ok()?;
        hasher.update(&(content.len() as u64).to_le_bytes());
        hasher.update(&content);
    }
    Some(*hasher.finalize().as_bytes())
}
