//! The other members as this node reaches them: gRPC for status and catalogs, own connections for chunks, made when needed and again when
//! lost. A member that can't be reached is left alone for a moment, so that not every read waits for it.

pub mod link;
pub(crate) mod receive;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use forebay_protocol::node::node_client::NodeClient;
use forebay_protocol::tls::Identity;
pub use forebay_protocol::transfer::Reach;
use forebay_protocol::transfer::{ALPN, Item, MAX_UID, Status};
use parking_lot::Mutex;
use tokio_rustls::rustls::ClientConfig;
use tonic::transport::{Channel, Endpoint};

use super::FetchError;
use crate::memory::Buffers;
use crate::store::ObjectRef;
use crate::units::ChunkIndex;
use link::{Answered, Dial, Link, LinkError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A peer that is silent for twice this long is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// How long a peer that could not be reached is left alone.
const REST: Duration = Duration::from_secs(2);
/// How long a peer that can't be reached is tried ...
const PATIENCE: Duration = Duration::from_millis(1500);
/// ... and one that has no catalog yet: it looks for one every second.
const CATALOG_PATIENCE: Duration = Duration::from_secs(5);
/// Largest gRPC message that is accepted: pieces of catalogs are 256 KiB.
const MAX_MESSAGE: usize = 2 << 20;

/// Up to this size a chunk goes over the connection for small ones, so that it never queues behind whole chunks.
const SMALL: u64 = 256 << 10;
/// Connections to one peer for larger ones.
const LARGE_LINKS: usize = 4;
const SMALL_READ_AHEAD: usize = 256 << 10;
const LARGE_READ_AHEAD: usize = 4 << 10;

/// Connections to the other members.
#[derive(Debug)]
pub struct Peers {
    identity: Mutex<Shown>,
    known: Mutex<HashMap<SocketAddr, Peer>>,
    buffers: Buffers,
}

/// The identity that is shown to peers.
#[derive(Clone, Debug)]
struct Shown {
    identity: Option<Identity>,
    /// What connections are made with: TLS, or plain text when there is none.
    tls: Result<Option<Arc<ClientConfig>>, Unusable>,
}

/// There is an identity, and it is no good; the log says why.
#[derive(Clone, Copy, Debug)]
struct Unusable;

#[derive(Debug)]
struct Peer {
    channel: Channel,
    small: Option<Arc<Link>>,
    large: Vec<Arc<Link>>,
    resting_until: Option<Instant>,
    /// Datasets that it did not know, and until when it is not asked for them.
    lacking: HashMap<String, Instant>,
}

impl Peer {
    fn new(channel: Channel) -> Self {
        Self { channel, small: None, large: Vec::new(), resting_until: None, lacking: HashMap::new() }
    }
}

impl Shown {
    fn new(identity: Option<Identity>) -> Self {
        let tls = identity.as_ref().map(|identity| identity.connector(ALPN)).transpose().map_err(|error| {
            tracing::error!(%error, "no peer can be asked for chunks");
            Unusable
        });
        Self { identity, tls }
    }
}

/// What came of asking a peer for a chunk.
#[derive(Debug)]
pub enum PeerAnswer {
    /// The chunk, verified.
    Chunk {
        /// Its bytes.
        bytes: Bytes,
        /// Their crc32c.
        crc: u32,
        /// It was there before.
        was_cached: bool,
    },
    /// It does not have the chunk, and was asked for no more than that.
    Lacking,
    /// Something else than the chunk.
    Damaged,
    /// The peer can't be reached or can't help.
    Unavailable,
    /// The peer says why nobody can have the chunk.
    Failed(FetchError),
}

impl Peers {
    /// No connections yet. With `identity` they are made by mutual TLS, without in plain text.
    pub fn new(identity: Option<Identity>, buffers: Buffers) -> Self {
        Self { identity: Mutex::new(Shown::new(identity)), known: Mutex::default(), buffers }
    }

    /// A client of the member at `address`; connects when first used.
    pub fn client(&self, address: SocketAddr) -> Result<NodeClient<Channel>, tonic::transport::Error> {
        let channel = self.with_peer(address, |peer| peer.channel.clone())?;
        Ok(NodeClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
    }

    fn with_peer<T>(
        &self,
        address: SocketAddr,
        run: impl FnOnce(&mut Peer) -> T,
    ) -> Result<T, tonic::transport::Error> {
        let mut peers = self.known.lock();
        if let Some(peer) = peers.get_mut(&address) {
            return Ok(run(peer));
        }
        let channel = self.endpoint(address)?.connect_lazy();
        Ok(run(peers.entry(address).or_insert_with(|| Peer::new(channel))))
    }

    /// Shows another certificate from now on. Calls under way go on.
    pub fn set_identity(&self, identity: Option<Identity>) {
        *self.identity.lock() = Shown::new(identity);
        self.known.lock().clear();
    }

    /// Forgets connections to addresses that are nobody's any more.
    pub fn retain(&self, addresses: &[SocketAddr]) {
        self.known.lock().retain(|address, _| addresses.contains(address));
    }

    fn endpoint(&self, address: SocketAddr) -> Result<Endpoint, tonic::transport::Error> {
        let identity = self.identity.lock().identity.clone();
        let scheme = if identity.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        match identity {
            Some(identity) => endpoint.tls_config(identity.client()),
            None => Ok(endpoint),
        }
    }

    /// A connection for a chunk of so many bytes: the one for small ones, or of the others the one that has the least to do.
    fn link(&self, address: SocketAddr, length: u64) -> Result<Arc<Link>, Refused> {
        let tls = self.identity.lock().tls.clone();
        let tls = tls.map_err(|Unusable| Refused::unreachable("this node's TLS identity can't be used"))?;
        let dial = |read_ahead| Dial { address, tls, buffers: self.buffers.clone(), read_ahead };
        let link = self.with_peer(address, |peer| {
            if length <= SMALL {
                let usable = peer.small.take().filter(|link| !link.has_ended());
                let link = usable.unwrap_or_else(|| Arc::new(Link::open(dial(SMALL_READ_AHEAD))));
                return Arc::clone(peer.small.insert(link));
            }
            peer.large.retain(|link| !link.has_ended());
            let idlest = peer.large.iter().map(|link| (link.load(), link)).min_by_key(|(load, _)| *load);
            match idlest {
                Some((load, link)) if load == 0 || peer.large.len() >= LARGE_LINKS => Arc::clone(link),
                _ => {
                    let link = Arc::new(Link::open(dial(LARGE_READ_AHEAD)));
                    peer.large.push(Arc::clone(&link));
                    link
                }
            }
        });
        link.map_err(|error| Refused::unreachable(error.to_string()))
    }

    fn is_resting(&self, address: SocketAddr, dataset_uid: &str) -> bool {
        let (peers, now) = (self.known.lock(), Instant::now());
        peers.get(&address).is_some_and(|peer| {
            peer.resting_until.is_some_and(|until| until > now)
                || peer.lacking.get(dataset_uid).is_some_and(|until| *until > now)
        })
    }

    /// Leaves a peer alone for a moment, altogether or for a dataset.
    fn rest(&self, address: SocketAddr, dataset_uid: Option<&str>) {
        if let Some(peer) = self.known.lock().get_mut(&address) {
            let until = Instant::now() + REST;
            match dataset_uid {
                Some(uid) => drop(peer.lacking.insert(uid.to_owned(), until)),
                None => peer.resting_until = Some(until),
            }
        }
    }

    /// Asks a member for a chunk; tries again for some seconds. What is asked for while another request is being written leaves with the others in
    /// one frame. Who drops this takes nothing away from others.
    pub async fn read_chunk(
        &self,
        address: SocketAddr,
        dataset_uid: &str,
        object: &ObjectRef,
        chunk: ChunkIndex,
        reach: Reach,
    ) -> PeerAnswer {
        let dataset_uid = &Arc::from(dataset_uid);
        if self.is_resting(address, dataset_uid) {
            return PeerAnswer::Unavailable;
        }
        let began = Instant::now();
        let mut waits = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_millis(500))
            .without_max_times()
            .with_jitter()
            .build();
        loop {
            let refused = match self.read_once(address, dataset_uid, object, chunk, reach).await {
                Ok(answer) => return answer,
                Err(refused) => refused,
            };
            let Refused { status, message } = &refused;
            if let Some(error) = status.and_then(|status| FetchError::from_peer(status, message)) {
                return PeerAnswer::Failed(error);
            }
            tracing::debug!(%address, ?status, message, "a peer did not give a chunk");
            let patience = if *status == Some(Status::NotFound) { CATALOG_PATIENCE } else { PATIENCE };
            match waits.next() {
                Some(wait) if began.elapsed() + wait < patience => tokio::time::sleep(wait).await,
                _ => {
                    tracing::warn!(%address, ?status, message, "a peer can't help; the next one is asked");
                    match status {
                        Some(Status::NotFound) => self.rest(address, Some(dataset_uid)),
                        // Its disk fails; its answers are quick.
                        Some(Status::Store) => {}
                        _ => self.rest(address, None),
                    }
                    return PeerAnswer::Unavailable;
                }
            }
            // Another chunk's try may have found out meanwhile.
            if self.is_resting(address, dataset_uid) {
                return PeerAnswer::Unavailable;
            }
        }
    }

    async fn read_once(
        &self,
        address: SocketAddr,
        dataset_uid: &Arc<str>,
        object: &ObjectRef,
        chunk: ChunkIndex,
        reach: Reach,
    ) -> Result<PeerAnswer, Refused> {
        if dataset_uid.len() > MAX_UID {
            return Err(Refused::unreachable("the dataset's uid is too long"));
        }
        let length = chunk.range(object.size).length;
        let link = self.link(address, length)?;
        let item = Item { number: 0, object: *object.id.as_bytes(), chunk: chunk.0, reach };
        let mut may_ask_again = true;
        loop {
            let answered = link.ask(Arc::clone(dataset_uid), item, length as u32).await?;
            let Answered { status, was_cached, bytes, crc, sound } = answered;
            match status {
                Status::Chunk if sound => return Ok(PeerAnswer::Chunk { bytes, crc, was_cached }),
                Status::Chunk => {
                    tracing::error!(%address, id = %object.id, chunk = chunk.0, "a peer sent wrong bytes; it looks at its copy");
                    drop(bytes);
                    link.suspect(Arc::clone(dataset_uid), item).await?;
                    if !may_ask_again {
                        tracing::error!(%address, id = %object.id, "a peer sent wrong bytes twice; the next one is asked");
                        return Ok(PeerAnswer::Damaged);
                    }
                    may_ask_again = false;
                }
                Status::Lacking if reach == Reach::Cache => return Ok(PeerAnswer::Lacking),
                status => {
                    let message = String::from_utf8_lossy(&bytes).into_owned();
                    return Err(Refused { status: Some(status), message });
                }
            }
        }
    }
}

/// Why a peer did not give a chunk.
#[derive(Debug)]
struct Refused {
    /// What it answered, if it did.
    status: Option<Status>,
    message: String,
}

impl Refused {
    fn unreachable(message: impl Into<String>) -> Self {
        Self { status: None, message: message.into() }
    }
}

impl From<LinkError> for Refused {
    fn from(error: LinkError) -> Self {
        Self::unreachable(error.to_string())
    }
}
