//! The parts of a node that work on an open cache folder: store, fetcher, datasets with their tasks. Made when the folder is opened, closed
//! before it is erased; the servers outlive it.

mod adopt;
mod datasets;
mod drain;
mod health;
mod limits;
mod memory_tier;
mod part;
mod release;
mod serve;
mod tidy;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use forebay_protocol::config::{NodeConfig, RuntimeConfig};
use forebay_protocol::layout::CacheLayout;
use forebay_protocol::node;
use forebay_protocol::tls::Identity;
use parking_lot::{Mutex, RwLock};
use tokio_util::task::AbortOnDropHandle;

use crate::catalogue::CatalogFolders;
use crate::dataset::Dataset;
use crate::fetch::Fetcher;
use crate::fetch::peers::Peers;
use crate::fetch::placement::Members;
use crate::holdings::Holdings;
use crate::local::spill::SpillPool;
use crate::memory::{self, Shares};
use crate::metrics::Metrics;
use crate::pins::AllPins;
use crate::problem::{Problem, Reason};
use crate::siblings::Siblings;
use crate::store::{Store, StoreError};
pub use release::BorrowedCopy;
pub use serve::Brought;

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

impl Engine {
    /// Opens the cache folder; serves nothing before a config is applied.
    pub async fn open(
        layout: &CacheLayout,
        node: &NodeConfig,
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
        let (opened, capacity, tier) = (layout.clone(), node.capacity_bytes, node.memory_tier.clone());
        let store = tokio::task::spawn_blocking(move || {
            let store = Store::open(&opened, capacity, observer, move || counted.count_verification_failure())?;
            match tier {
                Some(tier) => store.use_memory(&tier.dir, tier.capacity_bytes).map(|()| store),
                None => Ok(store),
            }
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
        self.metrics.set_memory_tier(self.store.memory_tier_bytes(), self.store.memory_tier_held_bytes());
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
        memory_tier::check(&config.node)?;
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
