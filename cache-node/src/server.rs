//! The node API's listening side: one socket for the life of the node, for gRPC and for chunks. Which of them a connection is for says its ALPN,
//! or in plain text its first byte. The certificate can change: connections of the one before end when what they were asked for is answered.

use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use forebay_protocol::config::TlsFiles;
use forebay_protocol::node::node_server::NodeServer;
use forebay_protocol::tls::Identity;
use forebay_protocol::transfer::{ALPN, HELLO};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::node::{NodeError, Shared};
use crate::peer::PeerServer;
use crate::peer::connection::{self, Stream};

/// A request is some hundred bytes.
const MAX_REQUEST: usize = 64 << 10;
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;
/// Calls of one connection at once, and the headers of each.
const MAX_CALLS: u32 = 64;
const MAX_HEADERS: u32 = 16 << 10;
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A client that has not come through the TLS handshake, or said a first byte, by then is gone.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After an error of the socket itself, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);
const HTTP2: &[u8] = b"h2";
/// Of the HTTP/2 preface.
const HTTP2_FIRST_BYTE: u8 = b'P';

/// The listening socket and what is served on it.
#[derive(Debug)]
pub struct Api {
    listener: TcpListener,
    running: Mutex<Option<Running>>,
    closed: CancellationToken,
}

/// What is served under one identity.
#[derive(Clone, Debug)]
struct Running {
    fingerprint: Option<[u8; 32]>,
    handshake: Option<Handshake>,
    grpc: mpsc::Sender<io::Result<GrpcStream>>,
    stop: CancellationToken,
}

#[derive(Clone)]
struct Handshake(TlsAcceptor);

impl std::fmt::Debug for Handshake {
    /// Never shows the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handshake").finish_non_exhaustive()
    }
}

impl Api {
    /// Nothing is served yet. The listener must be non-blocking.
    pub fn new(listener: TcpListener) -> Self {
        Self { listener, running: Mutex::default(), closed: CancellationToken::new() }
    }

    /// Whether serving with this identity would replace what is served with another one.
    pub fn would_change(&self, files: Option<&TlsFiles>) -> bool {
        self.running.lock().as_ref().is_some_and(|running| running.fingerprint != files.and_then(fingerprint))
    }

    /// Serves with this identity, unless that is what is being done.
    pub fn serve(
        &self,
        shared: &Arc<Shared>,
        identity: Option<&Identity>,
        files: Option<&TlsFiles>,
    ) -> Result<(), NodeError> {
        let mut running = self.running.lock();
        let fingerprint = files.and_then(fingerprint);
        if running.as_ref().is_some_and(|running| running.fingerprint == fingerprint) {
            return Ok(());
        }
        let handshake = identity.map(|identity| identity.listener(&[ALPN, HTTP2])).transpose()?;
        let handshake = handshake.map(|config| Handshake(TlsAcceptor::from(config)));
        if running.is_none() {
            let listener = self.listener.try_clone().and_then(tokio::net::TcpListener::from_std);
            let listener = listener.map_err(|source| NodeError::Listen { at: "the node API".to_owned(), source })?;
            tokio::spawn(accept(listener, Arc::clone(shared), self.closed.clone()));
        }
        let (grpc, incoming) = mpsc::channel(16);
        let stop = CancellationToken::new();
        let service = NodeServer::new(PeerServer::new(Arc::clone(shared))).max_decoding_message_size(MAX_REQUEST);
        let router = Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(MAX_CALLS)
            .http2_max_header_list_size(MAX_HEADERS)
            .add_service(service);
        let stopped = stop.clone();
        tokio::spawn(async move {
            let served = router.serve_with_incoming_shutdown(ReceiverStream::new(incoming), stopped.cancelled_owned());
            if let Err(error) = served.await {
                tracing::error!(%error, "the node API's gRPC server ended");
            }
        });
        if let Some(before) = running.replace(Running { fingerprint, handshake, grpc, stop }) {
            before.stop.cancel();
        }
        Ok(())
    }

    /// Accepts no more connections.
    pub fn stop(&self) {
        self.closed.cancel();
        if let Some(running) = self.running.lock().take() {
            running.stop.cancel();
        }
    }

    fn running(&self) -> Option<Running> {
        self.running.lock().clone()
    }
}

async fn accept(listener: tokio::net::TcpListener, shared: Arc<Shared>, closed: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closed.cancelled() => return,
        };
        let (socket, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Each takes memory, whatever it does.
        let Ok(place) = Arc::clone(&shared.memory().connections).try_acquire_owned() else {
            tracing::warn!(%from, "too many connections; this one is refused. More memoryBytes allow more");
            continue;
        };
        let Some(running) = shared.api().running() else { return };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let stop = running.stop.clone();
            match tokio::time::timeout(HANDSHAKE, begin(socket, running, place)).await {
                Ok(Ok(Some((stream, _place)))) => connection::serve(shared, stream, from, stop).await,
                Ok(Ok(None)) => {}
                Ok(Err(error)) => tracing::info!(%from, %error, "a connection was refused"),
                Err(_) => tracing::info!(%from, "a connection was given up: it said nothing in time"),
            }
        });
    }
}

/// Finds out what a connection is for, and gives it to the gRPC server if it is for that.
async fn begin(
    socket: TcpStream,
    running: Running,
    place: OwnedSemaphorePermit,
) -> io::Result<Option<(Stream, OwnedSemaphorePermit)>> {
    socket.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(&socket, true)?;
    rustix::net::sockopt::set_tcp_keepidle(&socket, KEEP_ALIVE)?;
    rustix::net::sockopt::set_tcp_keepintvl(&socket, KEEP_ALIVE)?;
    let io = if let Some(Handshake(acceptor)) = running.handshake {
        let stream = acceptor.accept(socket).await?;
        if stream.get_ref().1.alpn_protocol() == Some(ALPN) {
            return Ok(Some((Stream::Tls(Box::new(stream)), place)));
        }
        Either::Right(Box::new(stream))
    } else {
        let mut first = [0];
        if socket.peek(&mut first).await? == 0 {
            return Ok(None);
        }
        if first[0] == HELLO[0] {
            return Ok(Some((Stream::Plain(socket), place)));
        }
        if first[0] != HTTP2_FIRST_BYTE {
            return Err(io::Error::other("it speaks neither HTTP/2 nor forebay/1"));
        }
        Either::Left(socket)
    };
    // The server may be on its way out.
    let _ = running.grpc.send(Ok(GrpcStream { io, _place: place })).await;
    Ok(None)
}

/// A connection for gRPC, and its place among the connections.
#[derive(Debug)]
struct GrpcStream {
    io: Either<TcpStream, Box<TlsStream<TcpStream>>>,
    _place: OwnedSemaphorePermit,
}

impl Connected for GrpcStream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for GrpcStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, to)
    }
}

impl AsyncWrite for GrpcStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, from)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
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
