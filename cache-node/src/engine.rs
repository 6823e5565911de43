//! The parts of a node that work on an open cache folder: store, fetcher, datasets with their tasks. Made when the folder is opened, closed
//! before it is erased; the servers outlive it.

mod limits;
mod tidy;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use forebay_catalog::ObjectId;
use forebay_protocol::config::{DatasetConfig, PlacementConfig, RuntimeConfig};
use forebay_protocol::layout::CacheLayout;
use forebay_protocol::node;
use forebay_protocol::tls::Identity;
use parking_lot::RwLock;
use tokio_util::task::AbortOnDropHandle;

use crate::catalogue::{CatalogFolders, Keeper};
use crate::dataset::{CatalogObject, Dataset};
use crate::fetch::peers::{Peers, Reach};
use crate::fetch::placement::Members;
use crate::fetch::{Ensured, FetchError, Fetched, Fetcher, Memory, Purpose};
use crate::holdings::Holdings;
use crate::metrics::Metrics;
use crate::pins::AllPins;
use crate::preload::{self, Selection};
use crate::problem::{Problem, Reason};
use crate::store::{Class, Store, StoreError};
use crate::units::{ByteRange, ChunkIndex, StripeIndex, chunk_count};

/// Chunks behind a range that an answer tells to be present too.
const TELL_AHEAD: u32 = 16;

type HoldingsByUid = RwLock<HashMap<String, Arc<Holdings>>>;

/// A cache folder at work.
#[derive(Debug)]
pub struct Engine {
    store: Arc<Store>,
    fetcher: Arc<Fetcher>,
    folders: CatalogFolders,
    metrics: Arc<Metrics>,
    holdings: Arc<HoldingsByUid>,
    pins: Arc<AllPins>,
    datasets: RwLock<HashMap<String, Running>>,
}

#[derive(Debug)]
struct Running {
    dataset: Arc<Dataset>,
    _task: AbortOnDropHandle<()>,
}

/// Why a cache folder can't be opened, or a config not be applied.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The catalogs' folder.
    #[error("the catalogs' folder: {0}")]
    Catalogs(#[source] io::Error),
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

impl Engine {
    /// Opens the cache folder; serves nothing before a config is applied.
    pub async fn open(
        layout: &CacheLayout,
        capacity: u64,
        identity: Option<Identity>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, EngineError> {
        let holdings: Arc<HoldingsByUid> = Arc::default();
        let (observed, counted) = (Arc::clone(&holdings), Arc::clone(&metrics));
        let observer = Arc::new(move |change: &crate::store::Change| {
            for holdings in observed.read().values() {
                holdings.apply(change);
            }
        });
        let opened = layout.clone();
        let store = tokio::task::spawn_blocking(move || {
            Store::open(&opened, capacity, observer, move || counted.count_verification_failure())
        });
        let store = store.await.map_err(|error| EngineError::Catalogs(io::Error::other(error)))??;
        let fetcher = Fetcher::new(Arc::clone(&store), Peers::new(identity), Arc::clone(&metrics));
        let engine = Self {
            folders: CatalogFolders::open(layout).map_err(EngineError::Catalogs)?,
            fetcher: Arc::new(fetcher),
            datasets: RwLock::default(),
            pins: Arc::default(),
            store,
            metrics,
            holdings,
        };
        let store = Arc::clone(&engine.store);
        tokio::task::spawn_blocking(move || store.sweep());
        Ok(Arc::new(engine))
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The connections to the other members.
    pub fn peers(&self) -> &Peers {
        self.fetcher.peers()
    }

    /// Makes the config's datasets and members this node's. Returns when what is gone from the config is gone from the disk, as far as nobody
    /// uses it.
    pub async fn apply(
        self: &Arc<Self>,
        config: &RuntimeConfig,
        node_id: &str,
        addresses: &[SocketAddr],
    ) -> Result<(), EngineError> {
        let members = Arc::new(Members::new(&config.members, node_id, addresses));
        let same_members = *self.fetcher.members() == *members;
        if !same_members {
            if !members.includes_me() {
                tracing::warn!(node_id, ?addresses, "this node is not among the members: it owns nothing");
            }
            let others: Vec<_> = config.members.iter().map(|member| member.address).collect();
            self.fetcher.peers().retain(&others);
            self.fetcher.set_members(Arc::clone(&members));
        }
        for dataset in &config.datasets {
            let current = self.dataset(&dataset.uid);
            let unchanged = same_members && current.as_ref().is_some_and(|current| current.config == *dataset);
            if !unchanged {
                self.start(dataset, current.as_deref(), &members)?;
            }
        }
        let gone: Vec<_> = {
            let datasets = self.datasets.read();
            datasets.keys().filter(|uid| !config.datasets.iter().any(|dataset| dataset.uid == **uid)).cloned().collect()
        };
        self.set_limits(config, &members);
        for uid in &gone {
            let running = self.datasets.write().remove(uid);
            if let Some(Running { dataset, .. }) = running {
                tracing::info!(dataset = dataset.config.full_name(), "dataset removed");
                self.metrics.forget_dataset(&dataset.config.full_name());
            }
            self.holdings.write().remove(uid);
        }
        self.tidy().await;
        Ok(())
    }

    /// Tells the store what goes first, and what the node and the namespaces may have.
    fn set_limits(&self, config: &RuntimeConfig, members: &Arc<Members>) {
        let wanted = |dataset: &Arc<Dataset>| config.datasets.iter().any(|config| config.uid == dataset.uid());
        let datasets: Vec<_> = self.all_datasets().into_iter().filter(wanted).collect();
        self.pins.set(&datasets);
        let (placed, pins) = (Arc::clone(members), Arc::clone(&self.pins));
        self.store.set_classes(Arc::new(move |id| {
            if pins.have(id) {
                Class::Pinned
            } else if placed.owns(id, StripeIndex(0)) {
                Class::Owned
            } else {
                Class::Copy
            }
        }));
        let slot = |uid: &str| datasets.iter().find(|dataset| dataset.uid() == uid).map(|dataset| dataset.slot);
        self.store.set_quotas(limits::quotas(config, members, slot));
        // Last: what is too much goes in the order of the classes.
        self.store.set_capacity(config.node.capacity_bytes);
    }

    fn start(
        self: &Arc<Self>,
        config: &DatasetConfig,
        before: Option<&Dataset>,
        members: &Arc<Members>,
    ) -> Result<(), EngineError> {
        let slot = self.store.dataset(&config.uid)?;
        let limit = config.capacity_bytes.map(|bytes| limits::part_of(bytes, members));
        self.store.set_dataset_limit(slot, limit);
        let counters = before.map(|before| Arc::clone(&before.counters)).unwrap_or_default();
        let dataset = Arc::new(Dataset::new(config.clone(), slot, counters, &self.metrics));
        let on_disk = self.folders.existing(&config.uid).map_err(EngineError::Catalogs)?;
        let known = before.and_then(Dataset::catalog).into_iter().chain(on_disk);
        if let Some(catalog) = known.into_iter().find(|catalog| dataset.accepts(catalog).is_ok()) {
            dataset.set_catalog(catalog);
        }
        // What was counted for the same catalog stands until it is counted anew.
        if let Some(holdings) = before.and_then(Dataset::holdings)
            && dataset.catalog().is_some_and(|catalog| catalog.id() == holdings.catalog.id())
        {
            dataset.set_holdings(holdings);
        }
        // Known before its task can make a folder, so that the folder is never taken for a removed dataset's.
        let mut datasets = self.datasets.write();
        let task = tokio::spawn(Arc::clone(self).look_after(Arc::clone(&dataset), Arc::clone(members)));
        let running = Running { dataset, _task: AbortOnDropHandle::new(task) };
        // The task of the configuration before ends here.
        datasets.insert(config.uid.clone(), running);
        Ok(())
    }

    /// Brings a dataset its catalog, then what is to be preloaded. Runs until the dataset's configuration changes.
    async fn look_after(self: Arc<Self>, dataset: Arc<Dataset>, members: Arc<Members>) {
        let catalog = if let Some(catalog) = dataset.catalog() {
            catalog
        } else {
            let keeper = Keeper { folders: self.folders.clone(), members: Arc::clone(&members) };
            keeper.obtain(&dataset, self.fetcher.peers()).await
        };
        dataset.set_catalog(Arc::clone(&catalog));
        if dataset.config.pin.is_some() {
            // What it pins is known only now.
            self.store.sort_again();
        }
        if let Err(error) = self.folders.remove_others(dataset.uid(), Some(catalog.id())) {
            tracing::warn!(dataset = dataset.config.full_name(), %error, "an earlier catalog could not be removed");
        }
        let selection = Selection::new(dataset.config.preload.as_ref()).or_else(|error| {
            tracing::error!(dataset = dataset.config.full_name(), %error, "nothing is preloaded: a pattern can't be used");
            Selection::new(None)
        });
        let Ok(selection) = selection else { return };
        let holdings = Arc::new(Holdings::new(catalog, members, selection));
        self.holdings.write().insert(dataset.uid().to_owned(), Arc::clone(&holdings));
        let (counted, store) = (Arc::clone(&holdings), Arc::clone(&self.store));
        if let Err(error) = tokio::task::spawn_blocking(move || counted.count(&store)).await {
            tracing::error!(%error, "counting what is held failed");
        }
        dataset.set_holdings(Arc::clone(&holdings));
        preload::run(dataset, holdings, Arc::clone(&self.fetcher), Arc::clone(&self.store)).await;
    }

    /// A dataset of the config.
    pub fn dataset(&self, uid: &str) -> Option<Arc<Dataset>> {
        self.datasets.read().get(uid).map(|running| Arc::clone(&running.dataset))
    }

    fn all_datasets(&self) -> Vec<Arc<Dataset>> {
        self.datasets.read().values().map(|running| Arc::clone(&running.dataset)).collect()
    }

    /// An object of a dataset's catalog.
    pub fn object(&self, uid: &str, id: &ObjectId) -> Result<(Arc<Dataset>, CatalogObject), FetchError> {
        let dataset =
            self.dataset(uid).ok_or_else(|| FetchError::not_found(format!("no dataset {uid:?} on this node")))?;
        match dataset.object(id) {
            Some(object) => Ok((dataset, object)),
            None if dataset.catalog().is_none() => Err(FetchError::not_found(format!(
                "dataset {} has no catalog on this node yet",
                dataset.config.full_name()
            ))),
            None => Err(FetchError::not_found(format!("dataset {} has no object {id}", dataset.config.full_name()))),
        }
    }

    /// Makes a chunk present for a reader of this machine.
    pub async fn ensure_for_reader(
        &self,
        dataset: &Arc<Dataset>,
        object: &CatalogObject,
        chunk: ChunkIndex,
    ) -> Result<Ensured, FetchError> {
        let ensured = self.fetcher.ensure(dataset, object, chunk, Purpose::Reader).await?;
        if let Ensured::Fetched(Fetched { kept: Err(error), .. }) = &ensured {
            return Err(FetchError::store(error));
        }
        Ok(ensured)
    }

    /// Reads a chunk for a peer, from this node's cache or the source; none when it is not here and the peer wants no more than that.
    pub async fn chunk_for_peer(
        &self,
        dataset: &Arc<Dataset>,
        object: &CatalogObject,
        chunk: ChunkIndex,
        reach: Reach,
    ) -> Result<Option<ChunkRead>, FetchError> {
        // Present and then not: evicted or found damaged between two looks.
        for _ in 0..5 {
            if self.store.has(&object.stored.id, chunk) {
                let memory = self.fetcher.memory_for_cached(chunk.range(object.stored.size).length).await?;
                if let Some((bytes, crc)) = self.store.read_chunk(&object.stored, chunk).await? {
                    return Ok(Some(ChunkRead { bytes, crc, was_cached: true, memory }));
                }
            }
            if reach == Reach::Cache {
                return Ok(None);
            }
            if let Ensured::Fetched(fetched) = self.fetcher.ensure(dataset, object, chunk, Purpose::Owner).await? {
                let Fetched { bytes, crc, was_cached, memory, .. } = fetched;
                return Ok(Some(ChunkRead { bytes, crc, was_cached, memory }));
            }
        }
        Err(FetchError::internal(format!("object {} does not stay in the cache", object.stored.id)))
    }

    /// The present range around one that is present.
    pub fn present_around(&self, object: &CatalogObject, range: ByteRange) -> ByteRange {
        let (size, id) = (object.stored.size, &object.stored.id);
        let (Some(first), Some(last)) = (range.chunks().next(), range.chunks().next_back()) else { return range };
        let further = (last.0 + 1..chunk_count(size).min(last.0 + 1 + TELL_AHEAD)).map(ChunkIndex);
        let last = further.take_while(|chunk| self.store.has(id, *chunk)).last().unwrap_or(last);
        let offset = first.range(size).offset;
        ByteRange { offset, length: last.range(size).end() - offset }
    }

    /// The datasets' status.
    pub fn status(&self) -> Vec<node::DatasetStatus> {
        let mut all: Vec<_> = self.all_datasets().iter().map(|dataset| dataset.status()).collect();
        all.sort_by(|a, b| a.uid.cmp(&b.uid));
        all
    }

    /// Brings the metrics up to date that are not counted as things happen.
    pub fn refresh_metrics(&self) {
        self.metrics.set_held_bytes(self.store.held_bytes());
        for dataset in self.all_datasets() {
            let tally = dataset.holdings().map(|holdings| holdings.tally()).unwrap_or_default();
            self.metrics.set_cached_bytes(&dataset.config.full_name(), tally.cached_bytes);
        }
    }

    /// A dataset that is in the config twice, or is otherwise no good.
    pub fn check(config: &RuntimeConfig) -> Result<(), Problem> {
        let mut uids: Vec<_> = config.datasets.iter().map(|dataset| dataset.uid.as_str()).collect();
        uids.sort_unstable();
        let twice = uids.array_windows().find(|[a, b]| a == b);
        if let Some([uid, _]) = twice {
            return Err(Problem::new(Reason::InvalidSource, format!("dataset {uid} is in the config twice")));
        }
        let planned = config.datasets.iter().find(|dataset| dataset.placement != PlacementConfig::default());
        if let Some(dataset) = planned {
            let message = format!("dataset {}: placement is not supported yet; leave it out", dataset.full_name());
            return Err(Problem::new(Reason::InvalidSource, message));
        }
        let leaving = config.members.iter().any(|member| !member.state.is_active());
        if leaving {
            return Err(Problem::new(Reason::InvalidSource, "leaving members are not supported yet; leave them out"));
        }
        limits::check(config)?;
        // A UID is the name of a folder.
        let bad = uids.iter().find(|uid| {
            uid.is_empty()
                || uid.starts_with('.')
                || !uid.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        });
        match bad {
            Some(uid) => Err(Problem::new(Reason::InvalidSource, format!("{uid:?} is no valid dataset uid"))),
            None => Ok(()),
        }
    }

    /// Ends all tasks and closes the cache folder.
    pub async fn close(&self) {
        self.datasets.write().clear();
        self.holdings.write().clear();
        self.store.close().await;
    }
}
