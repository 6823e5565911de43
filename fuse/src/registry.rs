//! The catalogs mounted on this machine: which objects exist, how large they are, and at which cache node's socket to ask for them. An object
//! that several catalogs name is asked for in the name of the first that was mounted.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use forebay_catalog::{ObjectId, ObjectTable};

use crate::node_client::NodeClient;
use crate::tree::Tree;

/// How often the bytes that readers got without asking the cache node are reported to it.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Most opened objects that are remembered until the next report: 1 MiB of ids.
const MOST_OPENED: usize = 1 << 16;

/// Objects of one report: what a message of the local socket has room for.
const REPORT_OBJECTS: usize = 900;

/// One mounted catalog.
#[derive(Debug)]
pub struct MountedCatalog {
    /// UID of the Dataset.
    pub dataset_uid: String,
    /// Which version of it.
    pub catalog_id: String,
    /// The cache node to ask.
    pub node: NodeClient,
    /// Its tree, where FUSE serves that too.
    pub tree: Option<Arc<Tree>>,
    table: ObjectTable,
    /// Bytes that readers got without the cache node's doing, since the last report.
    served: AtomicU64,
    /// Complete objects that were opened without it, since then.
    opened: Mutex<Vec<ObjectId>>,
}

/// What is known of an object.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its id.
    pub id: ObjectId,
    /// Its size in bytes.
    pub size: u64,
    /// The catalog that names it.
    pub catalog: Arc<MountedCatalog>,
}

/// Why an object that was asked for by id is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotFound {
    /// No mounted catalog names it.
    Unknown,
    /// Another object with the same FUSE node id is served already (63 bits of their ids agree).
    Collides(ObjectId),
}

/// All mounted catalogs. Clones are the same registry. Changes are rare, lookups many.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    catalogs: Arc<Catalogs>,
}

type Catalogs = RwLock<Vec<Arc<MountedCatalog>>>;

impl Registry {
    /// No catalogs yet. Must be called within a tokio runtime, which then reports served bytes as long as the registry lives.
    pub fn new() -> Self {
        let registry = Self::default();
        tokio::spawn(report(Arc::downgrade(&registry.catalogs)));
        registry
    }

    /// Adds a catalog, or replaces the one of the same dataset and id. With a tree, that is served too.
    pub fn mount(
        &self,
        dataset_uid: &str,
        catalog_id: &str,
        table: ObjectTable,
        tree: Option<Tree>,
        node_socket: &Path,
    ) {
        let mut catalogs = self.catalogs.write().unwrap_or_else(PoisonError::into_inner);
        // One connection per cache node, however many catalogs it has.
        let node = catalogs.iter().map(|known| &known.node).find(|node| node.path() == node_socket).cloned();
        let catalog = Arc::new(MountedCatalog {
            dataset_uid: dataset_uid.to_owned(),
            catalog_id: catalog_id.to_owned(),
            node: node.unwrap_or_else(|| NodeClient::new(node_socket)),
            tree: tree.map(Arc::new),
            table,
            served: AtomicU64::new(0),
            opened: Mutex::default(),
        });
        match catalogs.iter_mut().find(|known| known.is(dataset_uid, catalog_id)) {
            Some(known) => *known = catalog,
            None => catalogs.push(catalog),
        }
    }

    /// Forgets a catalog. Objects that are open stay readable.
    pub fn unmount(&self, dataset_uid: &str, catalog_id: &str) {
        self.retain(|catalog| !catalog.is(dataset_uid, catalog_id));
    }

    /// Forgets every catalog for which `keep` says no.
    pub fn retain(&self, keep: impl FnMut(&MountedCatalog) -> bool) {
        let mut keep = keep;
        self.catalogs.write().unwrap_or_else(PoisonError::into_inner).retain(|catalog| keep(catalog));
    }

    /// Dataset UID and catalog id of all mounted catalogs.
    pub fn mounted(&self) -> Vec<(String, String)> {
        let catalogs = self.catalogs.read().unwrap_or_else(PoisonError::into_inner);
        catalogs.iter().map(|catalog| (catalog.dataset_uid.clone(), catalog.catalog_id.clone())).collect()
    }

    /// The object with this id.
    pub fn find(&self, id: &ObjectId) -> Result<Found, NotFound> {
        match self.find_by_node_id(id.fuse_node_id()) {
            Some(found) if found.id == *id => Ok(found),
            Some(other) if self.any_names(id) => Err(NotFound::Collides(other.id)),
            _ => Err(NotFound::Unknown),
        }
    }

    /// The object with this FUSE node id.
    pub fn find_by_node_id(&self, node_id: u64) -> Option<Found> {
        let catalogs = self.catalogs.read().unwrap_or_else(PoisonError::into_inner);
        catalogs.iter().find_map(|catalog| {
            let record = catalog.table.find_by_fuse_node_id(node_id)?;
            Some(Found { id: record.id, size: record.size, catalog: Arc::clone(catalog) })
        })
    }

    /// The tree in this slot, and its catalog.
    pub fn find_tree(&self, slot: u16) -> Option<(Arc<MountedCatalog>, Arc<Tree>)> {
        let catalogs = self.catalogs.read().unwrap_or_else(PoisonError::into_inner);
        catalogs.iter().find_map(|catalog| {
            let tree = catalog.tree.as_ref().filter(|tree| tree.slot() == slot)?;
            Some((Arc::clone(catalog), Arc::clone(tree)))
        })
    }

    fn any_names(&self, id: &ObjectId) -> bool {
        let catalogs = self.catalogs.read().unwrap_or_else(PoisonError::into_inner);
        catalogs.iter().any(|catalog| catalog.table.find(id).is_some())
    }

    /// Reports what has not been reported yet.
    pub async fn report_served(&self) {
        let catalogs = self.catalogs.read().unwrap_or_else(PoisonError::into_inner).clone();
        for catalog in catalogs {
            catalog.report_served().await;
        }
    }
}

impl MountedCatalog {
    /// Counts bytes that a reader got without the cache node's doing.
    pub fn count_served(&self, bytes: u64) {
        self.served.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a complete object that was opened without the cache node's doing.
    pub fn count_opened(&self, id: ObjectId) {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        // While the node is away; it then knows of so many which are in use.
        if opened.len() < MOST_OPENED {
            opened.push(id);
        }
    }

    async fn report_opened(&self) {
        let opened = std::mem::take(&mut *self.opened.lock().unwrap_or_else(PoisonError::into_inner));
        let mut reports = opened.chunks(REPORT_OBJECTS);
        while let Some(report) = reports.next() {
            if !self.node.report_opened(&self.dataset_uid, report, 1).await {
                return report.iter().chain(reports.flatten()).for_each(|id| self.count_opened(*id));
            }
        }
    }

    /// Reports what has not been reported yet.
    pub async fn report_served(&self) {
        self.report_opened().await;
        let bytes = self.served.swap(0, Ordering::Relaxed);
        if bytes > 0 && !self.node.report_served(&self.dataset_uid, bytes).await {
            self.count_served(bytes);
        }
    }

    fn is(&self, dataset_uid: &str, catalog_id: &str) -> bool {
        self.dataset_uid == dataset_uid && self.catalog_id == catalog_id
    }
}

async fn report(catalogs: Weak<Catalogs>) {
    loop {
        tokio::time::sleep(REPORT_INTERVAL).await;
        let Some(catalogs) = catalogs.upgrade() else { return };
        Registry { catalogs }.report_served().await;
    }
}
