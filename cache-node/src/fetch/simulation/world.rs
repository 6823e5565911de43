//! The simulated world: nodes with stores in memory, a network and a source, all in one thread with virtual time. What it does is decided by a
//! seed; everything that happens goes into a trace, whose hash tells whether two runs were the same.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_catalog::ObjectId;
use forebay_protocol::config::{DEFAULT_MEMORY_BYTES, Member, PlacementConfig};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::failure::Kind;
use super::super::peers::{PeerAnswer, Reach};
use super::super::placement::{Members, Placement};
use super::super::worlds::{Chunks, Content, Link, Read, World};
use super::super::{CatalogObject, Ensured, FetchError, Fetcher};
use crate::memory::{Memory, Share, Shares};
use crate::metrics::Metrics;
use crate::problem::Reason;
use crate::source::{ObjectVersion, SourceError};
use crate::store::{DatasetSlot, ObjectRef, StoreError};
use crate::units::ChunkIndex;

/// How long one waits for a member that does not answer, as the real connections do.
const UNREACHABLE: Duration = Duration::from_millis(1500);

/// A generator whose numbers depend on nothing but the seed (splitmix64).
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// At least `from` and less than `to`.
    pub(super) fn within(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from)
    }

    /// True so many times of a thousand.
    pub(super) fn permille(&mut self, n: u64) -> bool {
        self.within(0, 1000) < n
    }
}

/// What can go wrong by itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    /// Messages that are lost, of a thousand.
    pub(super) lost: u64,
    /// Reads that the source refuses, of a thousand.
    pub(super) refused: u64,
}

/// What has happened to one chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    /// How often the source has sent it.
    pub(super) times: u64,
    /// Messages about it that were lost, or answers that took too long.
    pub(super) lost: u64,
    /// Reads that the source has refused.
    pub(super) refused: u64,
}

/// Everything that all nodes share.
pub(super) struct Simulation {
    pub(super) random: Mutex<Random>,
    trace: Mutex<blake3::Hasher>,
    began: Instant,
    pub(super) objects: Vec<CatalogObject>,
    pub(super) nodes: RwLock<BTreeMap<SocketAddr, Arc<Node>>>,
    pub(super) faults: Faults,
    pub(super) sent: Mutex<BTreeMap<([u8; 16], u32), Sent>>,
}

/// A node, through all its lives.
pub(super) struct Node {
    pub(super) member: Mutex<Member>,
    pub(super) disk: Mutex<BTreeMap<([u8; 16], u32), Bytes>>,
    /// Of its answers, on top of the line's.
    pub(super) slow: Mutex<Duration>,
    life: RwLock<Option<Arc<Life>>>,
}

/// A node from one start to its end.
pub(super) struct Life {
    pub(super) fetcher: Arc<Fetcher<Simulated>>,
    pub(super) dataset: RwLock<Arc<SimDataset>>,
    pub(super) dead: CancellationToken,
}

/// The world of the simulation.
pub(super) struct Simulated;

impl World for Simulated {
    type Chunks = SimStore;
    type Link = SimLink;
    type Content = SimDataset;
}

/// A node's store during one life.
pub(super) struct SimStore {
    simulation: Arc<Simulation>,
    node: Arc<Node>,
    dead: CancellationToken,
}

/// A node's way to the others during one life.
pub(super) struct SimLink {
    simulation: Arc<Simulation>,
    dead: CancellationToken,
}

/// The dataset as one node knows it.
pub(super) struct SimDataset {
    simulation: Arc<Simulation>,
    placement: Placement,
    dead: CancellationToken,
}

/// The bytes of a chunk: few, but like no other's.
pub(super) fn content(id: &ObjectId, chunk: ChunkIndex) -> Bytes {
    Bytes::from([id.as_bytes().as_slice(), &chunk.0.to_le_bytes()].concat())
}

fn key(id: &ObjectId, chunk: ChunkIndex) -> ([u8; 16], u32) {
    (*id.as_bytes(), chunk.0)
}

impl Simulation {
    pub(super) fn new(random: Random, objects: Vec<u64>, faults: Faults) -> Arc<Self> {
        let object = |(size, n): (u64, u32)| CatalogObject {
            stored: ObjectRef { id: ObjectId::new("sim", &n.to_le_bytes(), "e", size), size, dataset: DatasetSlot(0) },
            source: 0,
            version: ObjectVersion { key: n.to_le_bytes().to_vec(), size, etag: "e".to_owned() },
        };
        Arc::new(Self {
            random: Mutex::new(random),
            trace: Mutex::default(),
            began: Instant::now(),
            objects: objects.into_iter().zip(0..).map(object).collect(),
            nodes: RwLock::default(),
            faults,
            sent: Mutex::default(),
        })
    }

    /// Notes that something has happened.
    pub(super) fn note(&self, what: std::fmt::Arguments<'_>) {
        let at = self.began.elapsed().as_micros();
        let line = format!("{at} {what}\n");
        if std::env::var_os("FOREBAY_TRACE").is_some() {
            eprint!("{line}");
        }
        self.trace.lock().update(line.as_bytes());
    }

    pub(super) fn trace_hash(&self) -> String {
        self.trace.lock().finalize().to_hex().to_string()
    }

    pub(super) fn within(&self, from: u64, to: u64) -> u64 {
        self.random.lock().within(from, to)
    }

    async fn pause(&self, from_micros: u64, to_micros: u64) {
        let micros = self.within(from_micros, to_micros);
        tokio::time::sleep(Duration::from_micros(micros)).await;
    }

    fn is_lost(&self, id: &ObjectId, chunk: ChunkIndex) -> bool {
        let lost = self.random.lock().permille(self.faults.lost);
        if lost {
            self.count(id, chunk, |sent| sent.lost += 1);
        }
        lost
    }

    pub(super) fn count(&self, id: &ObjectId, chunk: ChunkIndex, change: impl FnOnce(&mut Sent)) {
        change(self.sent.lock().entry(key(id, chunk)).or_default());
    }

    pub(super) fn add(&self, member: Member) -> Arc<Node> {
        let address = member.address;
        let node = Node {
            member: Mutex::new(member),
            disk: Mutex::default(),
            slow: Mutex::default(),
            life: RwLock::default(),
        };
        let node = Arc::new(node);
        self.nodes.write().insert(address, Arc::clone(&node));
        node
    }

    pub(super) fn node(&self, address: SocketAddr) -> Option<Arc<Node>> {
        self.nodes.read().get(&address).cloned()
    }

    /// The nodes that are up, in the order of their addresses.
    pub(super) fn living(&self) -> Vec<(Arc<Node>, Arc<Life>)> {
        let nodes = self.nodes.read();
        nodes.values().filter_map(|node| Some((Arc::clone(node), node.life()?))).collect()
    }
}

impl Node {
    pub(super) fn address(&self) -> SocketAddr {
        self.member.lock().address
    }

    pub(super) fn life(&self) -> Option<Arc<Life>> {
        self.life.read().clone()
    }

    /// Begins a life under a config.
    pub(super) fn start(self: &Arc<Self>, simulation: &Arc<Simulation>, members: &[Member], config: PlacementConfig) {
        let dead = CancellationToken::new();
        let store = SimStore { simulation: Arc::clone(simulation), node: Arc::clone(self), dead: dead.clone() };
        let link = SimLink { simulation: Arc::clone(simulation), dead: dead.clone() };
        let placement = Placement::after_start(self.members(members), config);
        let dataset = SimDataset { simulation: Arc::clone(simulation), placement, dead: dead.clone() };
        let life = Life {
            fetcher: Arc::new(Fetcher::new(Arc::new(store), link, Shares::of(DEFAULT_MEMORY_BYTES), Metrics::new())),
            dataset: RwLock::new(Arc::new(dataset)),
            dead,
        };
        *self.life.write() = Some(Arc::new(life));
    }

    fn members(&self, members: &[Member]) -> Arc<Members> {
        let me = self.member.lock().placement_id();
        Arc::new(Members::new(members, &me, &[]))
    }

    /// Another config, if the node is up.
    pub(super) fn apply(&self, simulation: &Arc<Simulation>, members: &[Member], config: PlacementConfig) {
        let Some(life) = self.life() else { return };
        let placement = life.dataset.read().placement.changed(self.members(members), config);
        let dataset = SimDataset { simulation: Arc::clone(simulation), placement, dead: life.dead.clone() };
        *life.dataset.write() = Arc::new(dataset);
        life.fetcher.forget_probes("sim");
    }

    /// kill -9: what is under way ends here.
    pub(super) fn kill(&self) {
        if let Some(life) = self.life.write().take() {
            life.dead.cancel();
        }
    }

    pub(super) fn holds(&self, id: &ObjectId, chunk: ChunkIndex) -> bool {
        self.disk.lock().contains_key(&key(id, chunk))
    }
}

impl Life {
    pub(super) fn dataset(&self) -> Arc<SimDataset> {
        Arc::clone(&self.dataset.read())
    }

    /// What a node does for a peer: bytes, checksum, and whether they were here; none when they are not and the peer wants no more than that.
    async fn serve(
        &self,
        object: &CatalogObject,
        chunk: ChunkIndex,
        reach: Reach,
    ) -> Result<Option<(Bytes, u32, bool)>, FetchError> {
        // Present and then not: between two looks.
        for _ in 0..5 {
            if let Some((bytes, crc)) = self.fetcher.store.read_chunk(&object.stored, chunk).await? {
                return Ok(Some((bytes, crc, true)));
            }
            if reach == Reach::Cache {
                return Ok(None);
            }
            if let Ensured::Fetched(fetched) = self.fetcher.ensure(&self.dataset(), object, chunk, reach.into()).await?
            {
                let bytes = fetched.bytes.expect("this source's bytes are gathered");
                return Ok(Some((bytes, fetched.crc, fetched.was_cached)));
            }
        }
        Err(FetchError::internal(format!("object {} does not stay in the cache", object.stored.id)))
    }
}

/// What a dead node still waits for never comes.
async fn unless_dead(dead: &CancellationToken) {
    if dead.is_cancelled() {
        std::future::pending::<()>().await;
    }
}

impl Chunks for SimStore {
    fn has(&self, id: &ObjectId, chunk: ChunkIndex) -> bool {
        self.node.holds(id, chunk)
    }

    fn is_lost(&self, _id: &ObjectId, _chunk: ChunkIndex) -> bool {
        false
    }

    async fn write_chunk(
        self: &Arc<Self>,
        object: &ObjectRef,
        chunk: ChunkIndex,
        bytes: Bytes,
        crc: u32,
    ) -> Result<(), StoreError> {
        self.simulation.pause(50, 2000).await;
        unless_dead(&self.dead).await;
        assert_eq!(crc32c::crc32c(&bytes), crc, "only what is verified is kept");
        self.simulation.note(format_args!("{} keeps {} {}", self.node.address(), object.id, chunk.0));
        self.node.disk.lock().insert(key(&object.id, chunk), bytes);
        Ok(())
    }

    async fn read_chunk(
        self: &Arc<Self>,
        object: &ObjectRef,
        chunk: ChunkIndex,
    ) -> Result<Option<(Bytes, u32)>, StoreError> {
        self.simulation.pause(20, 500).await;
        unless_dead(&self.dead).await;
        let bytes = self.node.disk.lock().get(&key(&object.id, chunk)).cloned();
        Ok(bytes.map(|bytes| (bytes.clone(), crc32c::crc32c(&bytes))))
    }
}

impl Link for SimLink {
    async fn read_chunk(
        &self,
        address: SocketAddr,
        _dataset_uid: &str,
        object: &ObjectRef,
        chunk: ChunkIndex,
        reach: Reach,
    ) -> PeerAnswer {
        let simulation = &self.simulation;
        simulation.pause(50, 3000).await;
        unless_dead(&self.dead).await;
        let asked = simulation.node(address).and_then(|node| Some((node.life()?, node)));
        let Some((life, node)) = asked.filter(|_| !simulation.is_lost(&object.id, chunk)) else {
            tokio::time::sleep(UNREACHABLE).await;
            unless_dead(&self.dead).await;
            return PeerAnswer::Unavailable;
        };
        simulation.note(format_args!("{address} is asked for {} {} {reach:?}", object.id, chunk.0));
        let served = async {
            let slow = *node.slow.lock();
            if !slow.is_zero() {
                simulation.count(&object.id, chunk, |sent| sent.lost += 1);
            }
            tokio::time::sleep(slow).await;
            let object = simulation.objects.iter().find(|known| known.stored.id == object.id).expect("it exists");
            life.serve(object, chunk, reach).await
        };
        let answer = tokio::select! {
            biased;
            () = life.dead.cancelled() => None,
            answer = served => Some(answer),
        };
        simulation.pause(50, 3000).await;
        unless_dead(&self.dead).await;
        match answer {
            _ if simulation.is_lost(&object.id, chunk) => PeerAnswer::Unavailable,
            None => PeerAnswer::Unavailable,
            Some(Ok(None)) => PeerAnswer::Lacking,
            Some(Ok(Some((bytes, crc, was_cached)))) => PeerAnswer::Chunk { bytes, crc, was_cached },
            Some(Err(error)) => FetchError::from_peer(error.to_peer(), &error.to_string())
                .map_or(PeerAnswer::Unavailable, PeerAnswer::Failed),
        }
    }
}

impl Content<SimStore> for SimDataset {
    fn uid(&self) -> &'static str {
        "sim"
    }

    fn placement(&self) -> &Placement {
        &self.placement
    }

    async fn read_chunk(
        &self,
        object: &CatalogObject,
        chunk: ChunkIndex,
        memory: &Share,
        _: &Arc<SimStore>,
    ) -> Result<(Read, Memory), FetchError> {
        let id = object.stored.id;
        let memory = memory.reserve(chunk.range(object.stored.size).length).await.expect("it is never closed");
        unless_dead(&self.dead).await;
        self.simulation.pause(5_000, 60_000).await;
        if self.simulation.random.lock().permille(self.simulation.faults.refused) {
            self.simulation.count(&id, chunk, |sent| sent.refused += 1);
            unless_dead(&self.dead).await;
            let error = FetchError::from(SourceError::transient(Reason::SourceError, "refused by the simulation"));
            assert_eq!(error.kind(), Kind::Source);
            return Err(error);
        }
        // It has crossed the line, also when nobody is there any more.
        self.simulation.count(&id, chunk, |sent| sent.times += 1);
        self.simulation.note(format_args!("the source sends {id} {}", chunk.0));
        unless_dead(&self.dead).await;
        Ok((Read::Bytes(content(&id, chunk)), memory))
    }

    fn count_peer_bytes(&self, _bytes: u64) {}
}
