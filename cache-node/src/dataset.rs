//! A Dataset as this node serves it: its sources, its catalog once there is one, what is held of it, and what was read.

use std::sync::Arc;

use forebay_catalog::{Catalog, CatalogOptions, CatalogSource, ObjectId, ObjectRecord, TreeAttributes};
use forebay_protocol::config::DatasetConfig;
use forebay_protocol::node;
use parking_lot::{Mutex, RwLock};

use crate::counters::ReadCounters;
use crate::fetch::placement::Placement;
use crate::holdings::Holdings;
use crate::metrics::{Counter, Metrics, Origin};
use crate::preload::Failures;
use crate::problem::{Problem, Reason};
use crate::source::ObjectVersion;
use crate::source::slot::{SourceCounters, SourceSlot};
use crate::store::{DatasetSlot, ObjectRef};

/// One Dataset under one configuration. A changed configuration makes a new one, which takes over the catalog and the counters.
#[derive(Debug)]
pub struct Dataset {
    /// What the config says.
    pub config: DatasetConfig,
    /// Its number in the store.
    pub slot: DatasetSlot,
    /// Who keeps what of it.
    pub placement: Placement,
    /// What was read; shared with earlier and later configurations.
    pub counters: Arc<ReadCounters>,
    /// Why something could not be preloaded.
    pub preload_failures: Failures,
    sources: Vec<Result<Arc<SourceSlot>, Problem>>,
    served: [Counter; 3],
    catalog: RwLock<Option<Arc<Catalog>>>,
    catalog_problem: Mutex<Option<Problem>>,
    holdings: RwLock<Option<Arc<Holdings>>>,
}

/// An object of a catalog, with all that is needed to read it.
#[derive(Clone, Debug)]
pub struct CatalogObject {
    /// As the store knows it.
    pub stored: ObjectRef,
    /// Which of the dataset's sources has it.
    pub source: usize,
    /// Its version there.
    pub version: ObjectVersion,
}

impl Dataset {
    /// The Dataset that `config` describes. Sources that can't be used become problems, not errors.
    pub fn new(
        config: DatasetConfig,
        slot: DatasetSlot,
        placement: Placement,
        counters: Arc<ReadCounters>,
        metrics: &Metrics,
    ) -> Self {
        let sources = config.mounts.iter().map(|mount| {
            let [source] = mount.sources.as_slice() else {
                let message = format!("mount {}: has {} sources; give it exactly one", mount.path, mount.sources.len());
                return Err(Problem::new(Reason::InvalidSource, message));
            };
            let counters = SourceCounters::new(metrics, &source.url, Arc::clone(&counters));
            SourceSlot::open(mount, source, counters).map(Arc::new).map_err(|error| error.to_problem())
        });
        let name = config.full_name();
        Self {
            slot,
            placement,
            sources: sources.collect(),
            served: [Origin::Local, Origin::Peer, Origin::Source].map(|origin| metrics.read_bytes(&name, origin)),
            counters,
            preload_failures: Failures::default(),
            catalog: RwLock::default(),
            catalog_problem: Mutex::default(),
            holdings: RwLock::default(),
            config,
        }
    }

    /// Its UID.
    pub fn uid(&self) -> &str {
        &self.config.uid
    }

    /// All sources in the order of the mounts, or the first problem with one.
    pub fn sources(&self) -> Result<Vec<&SourceSlot>, Problem> {
        self.sources.iter().map(|source| source.as_deref().map_err(Clone::clone)).collect()
    }

    /// One source.
    pub fn source(&self, index: usize) -> Option<&Arc<SourceSlot>> {
        self.sources.get(index)?.as_ref().ok()
    }

    /// What the catalog is to be made of.
    pub fn catalog_options(&self) -> Result<CatalogOptions, Problem> {
        let access = &self.config.access;
        let attributes = TreeAttributes {
            uid: access.uid,
            gid: access.gid,
            file_mode: (access.file_mode & 0o7777) as u16,
            dir_mode: (access.dir_mode & 0o7777) as u16,
        };
        let sources = self.sources()?.into_iter().map(|source| source.catalog_source().clone()).collect();
        Ok(CatalogOptions { sources, attributes })
    }

    /// Whether a catalog is of these sources with these modes, and the published one if one is published.
    pub fn accepts(&self, catalog: &Catalog) -> Result<(), Problem> {
        let options = self.catalog_options()?;
        let table = catalog.table();
        let same = |ours: &CatalogSource, theirs: &CatalogSource| {
            ours.identity == theirs.identity
                && ours.prefix == theirs.prefix
                && ours.mount_path.trim_matches('/') == theirs.mount_path.trim_matches('/')
        };
        let same_sources = options.sources.len() == table.sources().len()
            && options.sources.iter().zip(table.sources()).all(|(ours, theirs)| same(ours, theirs));
        if !same_sources || options.attributes != table.attributes() {
            return Err(Problem::new(
                Reason::CatalogMismatch,
                format!("catalog {} was made for other sources or modes than the dataset has now", catalog.id()),
            ));
        }
        match &self.config.catalog {
            Some(published) if *published != catalog.id().to_string() => Err(Problem::new(
                Reason::CatalogMismatch,
                format!(
                    "the sources now give catalog {}, not the published {published}: they have changed; delete the Dataset and create it anew to see what is there now",
                    catalog.id()
                ),
            )),
            _ => Ok(()),
        }
    }

    /// The catalog, once there is one.
    pub fn catalog(&self) -> Option<Arc<Catalog>> {
        self.catalog.read().clone()
    }

    /// There is a catalog now.
    pub fn set_catalog(&self, catalog: Arc<Catalog>) {
        *self.catalog.write() = Some(catalog);
        *self.catalog_problem.lock() = None;
    }

    /// There is none, and this is why.
    pub fn set_catalog_problem(&self, problem: Problem) {
        let mut current = self.catalog_problem.lock();
        if current.as_ref() != Some(&problem) {
            if problem.reason == Reason::WaitingForCatalog {
                tracing::info!(dataset = self.config.full_name(), %problem, "no catalog yet");
            } else {
                tracing::warn!(dataset = self.config.full_name(), %problem, "no catalog yet");
            }
            *current = Some(problem);
        }
    }

    /// What is held, once there is a catalog.
    pub fn holdings(&self) -> Option<Arc<Holdings>> {
        self.holdings.read().clone()
    }

    /// What is held is counted here from now on.
    pub fn set_holdings(&self, holdings: Arc<Holdings>) {
        *self.holdings.write() = Some(holdings);
    }

    /// The object with this id, if the catalog has it.
    pub fn object(&self, id: &ObjectId) -> Option<CatalogObject> {
        let catalog = self.catalog()?;
        let record = catalog.table().find(id)?;
        Some(self.object_of(&record))
    }

    /// The object of a record of this dataset's catalog.
    pub fn object_of(&self, record: &ObjectRecord<'_>) -> CatalogObject {
        CatalogObject {
            stored: ObjectRef { id: record.id, size: record.size, dataset: self.slot },
            source: usize::from(record.source_index.0),
            version: ObjectVersion { key: record.key.to_vec(), size: record.size, etag: record.etag.to_owned() },
        }
    }

    /// A reader on this machine was given bytes found at `origin`.
    pub fn count_served(&self, origin: Origin, bytes: u64) {
        let [local, peer, source] = &self.served;
        match origin {
            Origin::Local => local.add(bytes),
            Origin::Peer => peer.add(bytes),
            Origin::Source => source.add(bytes),
        }
    }

    /// For the node API.
    pub fn status(&self) -> node::DatasetStatus {
        let catalog = self.catalog();
        let tally = self.holdings().map(|holdings| holdings.tally()).unwrap_or_default();
        let preload = self.config.preload.as_ref().filter(|_| self.holdings().is_some());
        node::DatasetStatus {
            uid: self.config.uid.clone(),
            catalog: catalog.as_deref().map(catalog_info),
            catalog_problem: self.catalog_problem.lock().as_ref().filter(|_| catalog.is_none()).map(Problem::to_proto),
            cached_bytes: tally.cached_bytes,
            owned_cached_bytes: tally.owned_cached_bytes,
            preload: preload.map(|_| self.preload_failures.progress(&tally, self.placement.copies())),
            total: Some(self.counters.total()),
            last_hour: Some(self.counters.last_hour()),
            sources: self
                .sources
                .iter()
                .zip(&self.config.mounts)
                .map(|(source, mount)| match source {
                    Ok(source) => source.status(),
                    Err(problem) => node::SourceStatus {
                        mount: mount.path.clone(),
                        url: mount.sources.first().map(|source| source.url.clone()).unwrap_or_default(),
                        state: node::SourceState::Unhealthy.into(),
                        problem: Some(problem.to_proto()),
                        since_unix_seconds: 0,
                    },
                })
                .collect(),
        }
    }
}

fn catalog_info(catalog: &Catalog) -> node::CatalogInfo {
    let summary = catalog.summary();
    node::CatalogInfo {
        id: summary.id.to_string(),
        files: summary.files,
        directories: summary.directories,
        bytes: summary.bytes,
        observed_at_unix_seconds: summary.observed_at_unix_seconds,
        skipped: summary.skipped,
        skipped_keys: summary
            .skipped_keys
            .iter()
            .map(|skipped| skipped_key(catalog, &skipped.url, &skipped.reason))
            .collect(),
    }
}

/// Splits an object's URL into the source's and the key.
fn skipped_key(catalog: &Catalog, url: &str, reason: &str) -> node::SkippedKey {
    let sources = catalog.table().sources();
    let parts = sources.iter().find_map(|source| {
        let key = url.strip_prefix(source.url.trim_end_matches('/'))?.strip_prefix('/')?;
        Some((source.url.clone(), key.to_owned()))
    });
    let (url, key) = parts.unwrap_or_else(|| (String::new(), url.to_owned()));
    node::SkippedKey { url, key, reason: reason.to_owned() }
}
