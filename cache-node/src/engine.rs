//! The parts of a node that work on an open cache folder: store, fetcher, datasets with their tasks. Made when the folder is opened, closed
//! before it is erased; the servers outlive it.

mod adopt;
mod drain;
mod health;
mod limits;
mod part;
mod release;
mod tidy;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use forebay_catalog::ObjectId;
use forebay_protocol::config::{DatasetConfig, RuntimeConfig};
use forebay_protocol::layout::CacheLayout;
use forebay_protocol::node;
use forebay_protocol::tls::Identity;
use parking_lot::{Mutex, RwLock};
use tokio_util::task::AbortOnDropHandle;

use crate::catalogue::{CatalogFolders, Keeper};
use crate::dataset::{CatalogObject, Dataset};
use crate::fetch::peers::{Peers, Reach};
use crate::fetch::placement::{Members, Placement};
use crate::fetch::{Ensured, FetchError, Fetched, Fetcher, Purpose};
use crate::holdings::Holdings;
use crate::local::spill::SpillPool;
use crate::memory::{self, Shares};
use crate::metrics::Metrics;
use crate::pins::AllPins;
use crate::preload::{self, Selection};
use crate::problem::{Problem, Reason};
use crate::siblings::Siblings;
use crate::store::{Class, Store, StoreError, Verdict};
use crate::units::{ByteRange, ChunkIndex, chunk_count};
pub use release::BorrowedCopy;

/// Chunks behind a range that an answer tells to be present too. Fewer than the node reads ahead: the daemon reads what it was told of without asking,
/// and the reader has to be seen again before the node's read-ahead has ended.
const TELL_AHEAD: u32 = 4;

/// The part of a node's memory that may hold what its disk can't take.
const SPILL_PART: u64 = 4;

type HoldingsByUid = RwLock<HashMap<String, Arc<Holdings>>>;
type Datasets = RwLock<HashMap<String, Running>>;

/// A cache folder at work.
#[derive(Debug)]
pub struct Engine {
    store: Arc<Store>,
    fetcher: Arc<Fetcher>,
    siblings: Siblings,
    folders: CatalogFolders,
    metrics: Arc<Metrics>,
    holdings: Arc<HoldingsByUid>,
    datasets: Arc<Datasets>,
    members: RwLock<Arc<Members>>,
    /// When the folder was opened.
    opened_at_unix_seconds: i64,
    /// A config has been applied since then.
    configured: AtomicBool,
    drain: Mutex<Option<drain::Drain>>,
    releaser: release::Releaser,
    spills: Arc<SpillPool>,
    pins: Arc<AllPins>,
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

/// How a chunk came to be here for a peer.
#[derive(Clone, Debug)]
pub enum Brought {
    /// It is in the cache.
    Kept {
        /// It, or what it was fetched from, was on some cache node before.
        was_cached: bool,
    },
    /// It was fetched and could not be kept.
    Passing(Fetched),
}

impl Engine {
    /// Opens the cache folder; serves nothing before a config is applied.
    pub async fn open(
        layout: &CacheLayout,
        capacity: u64,
        identity: Option<Identity>,
        memory: Shares,
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
        let peers = Peers::new(identity, memory.buffers.clone());
        let fetcher = Arc::new(Fetcher::new(Arc::clone(&store), peers, memory, Arc::clone(&metrics)));
        let engine = Self {
            folders: CatalogFolders::open(layout).map_err(EngineError::Catalogs)?,
            siblings: Siblings::start(Arc::clone(&fetcher), Arc::clone(&store)),
            fetcher,
            datasets: Arc::default(),
            members: RwLock::new(Arc::new(Members::new(&[], "", &[]))),
            opened_at_unix_seconds: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(i64::MAX, |since| since.as_secs() as i64),
            configured: AtomicBool::new(false),
            drain: Mutex::default(),
            releaser: release::Releaser::start(Arc::clone(&store)),
            spills: Arc::default(),
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

    /// Files in memory for what the disk can't take.
    pub fn spills(&self) -> &Arc<SpillPool> {
        &self.spills
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
        let same_members = **self.members.read() == *members;
        if !same_members {
            if !members.includes_me() {
                tracing::warn!(node_id, ?addresses, "this node is not among the members: it owns nothing");
            }
            let others: Vec<_> = config.members.iter().map(|member| member.address).collect();
            self.fetcher.peers().retain(&others);
            *self.members.write() = Arc::clone(&members);
        }
        self.spills.set_limit(config.node.memory_bytes / SPILL_PART);
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
        self.configured.store(true, Ordering::Relaxed);
        self.drain_if_leaving(&members);
        self.tidy().await;
        Ok(())
    }

    /// Tells the store what goes first, and what the node and the namespaces may have.
    fn set_limits(&self, config: &RuntimeConfig, members: &Arc<Members>) {
        let wanted = |dataset: &Arc<Dataset>| config.datasets.iter().any(|config| config.uid == dataset.uid());
        let datasets: Vec<_> = self.all_datasets().into_iter().filter(wanted).collect();
        self.pins.set(&datasets);
        let (running, pins) = (Arc::clone(&self.datasets), Arc::clone(&self.pins));
        self.store.set_classes(Arc::new(move |id| {
            if pins.have(id) {
                Class::Pinned
            } else if keeps(&running, id) {
                Class::Owned
            } else {
                Class::Copy
            }
        }));
        let slot = |uid: &str| datasets.iter().find(|dataset| dataset.uid() == uid).map(|dataset| dataset.slot);
        self.store.set_quotas(&limits::quotas(config, members, slot));
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
        let placement = match before {
            Some(before) => before.placement.changed(Arc::clone(members), config.placement),
            None if !self.configured.load(Ordering::Relaxed) => {
                Placement::after_start(Arc::clone(members), config.placement)
            }
            None => Placement::new(Arc::clone(members), config.placement),
        };
        self.fetcher.forget_probes(&config.uid);
        let dataset = Arc::new(Dataset::new(config.clone(), slot, placement, counters, &self.metrics));
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
        if catalog.summary().observed_at_unix_seconds > self.opened_at_unix_seconds {
            dataset.placement.note_new();
        }
        dataset.set_catalog(Arc::clone(&catalog));
        // What it has, and pins, is known only now.
        self.store.sort_again();
        if let Err(error) = self.folders.remove_others(dataset.uid(), Some(catalog.id())) {
            tracing::warn!(dataset = dataset.config.full_name(), %error, "an earlier catalog could not be removed");
        }
        let selection = Selection::of(dataset.config.preload.as_ref(), dataset.placement.mode()).or_else(|error| {
            tracing::error!(dataset = dataset.config.full_name(), %error, "nothing is preloaded: a pattern can't be used");
            Selection::new(None)
        });
        let Ok(selection) = selection else { return };
        let holdings = Arc::new(Holdings::new(catalog, dataset.placement.clone(), selection));
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

    /// Makes a chunk present for a reader of this machine, and known to be right. What could not be kept is in the answer only.
    pub async fn ensure_for_reader(
        &self,
        dataset: &Arc<Dataset>,
        object: &CatalogObject,
        chunk: ChunkIndex,
    ) -> Result<Ensured, FetchError> {
        self.siblings.observe(dataset, object, !self.store.has(&object.stored.id, chunk));
        // Present and then not: evicted, or found damaged, between two looks.
        for _ in 0..5 {
            let ensured = self.fetcher.ensure(dataset, object, chunk, Purpose::Reader).await?;
            if matches!(ensured, Ensured::Fetched(_)) {
                return Ok(ensured);
            }
            match self.store.check_chunk(&object.stored, chunk).await {
                Ok(Verdict::Good) => return Ok(ensured),
                Ok(Verdict::Absent | Verdict::Lost) => {}
                Err(error) => return Err(FetchError::store(&error)),
            }
        }
        Err(FetchError::internal(format!("object {} does not stay in the cache", object.stored.id)))
    }

    /// A reader of this machine has opened an object that is here: it will not ask for chunks.
    pub fn opened_complete(&self, dataset: &Arc<Dataset>, object: &CatalogObject) {
        self.siblings.observe(dataset, object, false);
    }

    /// Makes a chunk present for a peer, as far as its question reaches.
    pub async fn bring_for_peer(
        &self,
        dataset: &Arc<Dataset>,
        object: &CatalogObject,
        chunk: ChunkIndex,
        reach: Reach,
    ) -> Result<Brought, FetchError> {
        self.siblings.observe(dataset, object, !self.store.has(&object.stored.id, chunk));
        match self.fetcher.ensure(dataset, object, chunk, reach.into()).await? {
            Ensured::Present => Ok(Brought::Kept { was_cached: true }),
            Ensured::Fetched(fetched) if fetched.kept.is_ok() => Ok(Brought::Kept { was_cached: fetched.was_cached }),
            Ensured::Fetched(fetched) => Ok(Brought::Passing(fetched)),
        }
    }

    /// The node's memory.
    pub fn memory(&self) -> &Shares {
        self.fetcher.memory()
    }

    /// The present range around one that is present.
    pub fn present_around(&self, object: &CatalogObject, range: ByteRange) -> ByteRange {
        let (size, id) = (object.stored.size, &object.stored.id);
        let (Some(first), Some(last)) = (range.chunks().next(), range.chunks().next_back()) else { return range };
        let further = (last.0 + 1..chunk_count(size).min(last.0 + 1 + TELL_AHEAD)).map(ChunkIndex);
        let last = further.take_while(|chunk| self.store.is_verified(id, *chunk)).last().unwrap_or(last);
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
        for (kind, count) in self.store.faults().counts() {
            self.metrics.set_disk_faults(kind, count);
        }
        self.metrics.set_scrubbed_bytes(self.store.scrubbed_bytes());
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
        if config.node.memory_bytes < memory::LEAST {
            let message = format!(
                "node.memoryBytes is {}, and a node needs at least {}; raise it or leave it out",
                config.node.memory_bytes,
                memory::LEAST
            );
            return Err(Problem::new(Reason::InvalidSource, message));
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
        drop(self.drain.lock().take());
        self.datasets.write().clear();
        self.holdings.write().clear();
        self.store.close().await;
    }
}

/// Whether this node is to keep an object, for any dataset that has it. Of what no catalog tells anything, it is.
fn keeps(datasets: &Datasets, id: &ObjectId) -> bool {
    let datasets = datasets.read();
    let mut known = false;
    for Running { dataset, .. } in datasets.values() {
        let Some(catalog) = dataset.catalog() else { return true };
        if let Some(record) = catalog.table().find(id) {
            known = true;
            if dataset.placement.keeps_any(id, record.size) {
                return true;
            }
        }
    }
    !known
}
