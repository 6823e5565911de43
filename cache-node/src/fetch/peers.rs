//! The other members as this node reaches them: one connection each, made when needed and again when lost. A member that can't be reached is
//! left alone for a moment, so that not every read waits for it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::{Bytes, BytesMut};
use forebay_protocol::node::{ReadObjectRequest, node_client::NodeClient};
use forebay_protocol::tls::Identity;
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::FetchError;
use crate::store::ObjectRef;
use crate::units::ChunkIndex;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A peer that is silent for twice this long is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// How long a peer that could not be reached is left alone.
const REST: Duration = Duration::from_secs(2);
/// How long a peer that can't be reached is tried ...
const PATIENCE: Duration = Duration::from_millis(1500);
/// ... and one that has no catalog yet: it looks for one every second.
const CATALOG_PATIENCE: Duration = Duration::from_secs(5);
/// Largest message that is accepted: pieces of chunks are at most 1 MiB.
const MAX_MESSAGE: usize = 2 << 20;
/// HTTP/2 windows that keep a 10 Gbit/s line of 2 ms full.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;

/// Connections to the other members.
#[derive(Debug)]
pub struct Peers {
    identity: Mutex<Option<Identity>>,
    peers: Mutex<HashMap<SocketAddr, Peer>>,
}

#[derive(Debug)]
struct Peer {
    channel: Channel,
    resting_until: Option<Instant>,
    /// Datasets that it did not know, and until when it is not asked for them.
    lacking: HashMap<String, Instant>,
}

/// How far a peer may go to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// From its cache, or else from the source.
    Source,
    /// From its cache, or else by way of the first owner, or else from the source. Never asked of the first owner, nor by one who relays.
    Relay,
    /// Only what it has.
    Cache,
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
    pub fn new(identity: Option<Identity>) -> Self {
        Self { identity: Mutex::new(identity), peers: Mutex::default() }
    }

    /// A client of the member at `address`; connects when first used.
    pub fn client(&self, address: SocketAddr) -> Result<NodeClient<Channel>, tonic::transport::Error> {
        let mut peers = self.peers.lock();
        let channel = if let Some(peer) = peers.get(&address) {
            peer.channel.clone()
        } else {
            let channel = self.endpoint(address)?.connect_lazy();
            peers.insert(address, Peer { channel: channel.clone(), resting_until: None, lacking: HashMap::new() });
            channel
        };
        Ok(NodeClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
    }

    /// Shows another certificate from now on. Calls under way go on.
    pub fn set_identity(&self, identity: Option<Identity>) {
        *self.identity.lock() = identity;
        self.peers.lock().clear();
    }

    /// Forgets connections to addresses that are nobody's any more.
    pub fn retain(&self, addresses: &[SocketAddr]) {
        self.peers.lock().retain(|address, _| addresses.contains(address));
    }

    fn endpoint(&self, address: SocketAddr) -> Result<Endpoint, tonic::transport::Error> {
        let identity = self.identity.lock().clone();
        let scheme = if identity.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        match identity {
            Some(identity) => endpoint.tls_config(identity.client()),
            None => Ok(endpoint),
        }
    }

    fn is_resting(&self, address: SocketAddr, dataset_uid: &str) -> bool {
        let (peers, now) = (self.peers.lock(), Instant::now());
        peers.get(&address).is_some_and(|peer| {
            peer.resting_until.is_some_and(|until| until > now)
                || peer.lacking.get(dataset_uid).is_some_and(|until| *until > now)
        })
    }

    /// Leaves a peer alone for a moment, altogether or for a dataset.
    fn rest(&self, address: SocketAddr, dataset_uid: Option<&str>) {
        if let Some(peer) = self.peers.lock().get_mut(&address) {
            let until = Instant::now() + REST;
            match dataset_uid {
                Some(uid) => drop(peer.lacking.insert(uid.to_owned(), until)),
                None => peer.resting_until = Some(until),
            }
        }
    }

    /// Asks a member for a chunk; tries again for some seconds.
    pub async fn read_chunk(
        &self,
        address: SocketAddr,
        dataset_uid: &str,
        object: &ObjectRef,
        chunk: ChunkIndex,
        reach: Reach,
    ) -> PeerAnswer {
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
            let status = match self.read_once(address, dataset_uid, object, chunk, reach).await {
                Ok(answer) => return answer,
                Err(status) => status,
            };
            if let Some(error) = FetchError::from_status(&status) {
                return PeerAnswer::Failed(error);
            }
            tracing::debug!(%address, %status, "a peer did not give a chunk");
            let patience = if status.code() == Code::NotFound { CATALOG_PATIENCE } else { PATIENCE };
            match waits.next() {
                Some(wait) if began.elapsed() + wait < patience => tokio::time::sleep(wait).await,
                _ => {
                    tracing::warn!(%address, %status, "a peer can't help; the next one is asked");
                    match status.code() {
                        Code::NotFound => self.rest(address, Some(dataset_uid)),
                        // Its disk fails; its answers are quick.
                        Code::ResourceExhausted => {}
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
        dataset_uid: &str,
        object: &ObjectRef,
        chunk: ChunkIndex,
        reach: Reach,
    ) -> Result<PeerAnswer, Status> {
        let range = chunk.range(object.size);
        let mut client = self.client(address).map_err(|error| Status::unavailable(error.to_string()))?;
        let request = ReadObjectRequest {
            dataset_uid: dataset_uid.to_owned(),
            object_id: Bytes::copy_from_slice(object.id.as_bytes()),
            offset: range.offset,
            length: range.length,
            cached_only: reach == Reach::Cache,
            relay: reach == Reach::Relay,
        };
        let mut pieces = client.read_object(request).await?.into_inner();
        let mut all = BytesMut::new();
        let (mut crc, mut was_cached) = (None, false);
        while let Some(piece) = pieces.message().await? {
            if piece.offset != range.offset + all.len() as u64 || (all.len() + piece.data.len()) as u64 > range.length {
                return Ok(damaged(address, object, "pieces that do not fit"));
            }
            was_cached |= piece.was_cached;
            crc = piece.chunk_crc32c.or(crc);
            if all.is_empty() {
                all.reserve(usize::try_from(range.length).unwrap_or_default());
            }
            all.extend_from_slice(&piece.data);
        }
        if all.is_empty() && reach == Reach::Cache {
            return Ok(PeerAnswer::Lacking);
        }
        if all.len() as u64 != range.length {
            return Ok(damaged(address, object, "too few bytes"));
        }
        match crc {
            Some(crc) if crc32c::crc32c(&all) == crc => Ok(PeerAnswer::Chunk { bytes: all.freeze(), crc, was_cached }),
            _ => Ok(damaged(address, object, "a wrong checksum")),
        }
    }
}

fn damaged(address: SocketAddr, object: &ObjectRef, what: &str) -> PeerAnswer {
    tracing::error!(%address, id = %object.id, "a peer sent {what}; the next one is asked");
    PeerAnswer::Damaged
}
