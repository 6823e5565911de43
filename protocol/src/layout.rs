//! Paths inside a cache folder, and of the sockets: the one place that knows them, for the cache node that writes and the CSI plugin that
//! mounts. `docs/architecture.md` says what each holds.

use std::path::{Path, PathBuf};

use crate::config::RuntimeName;

/// Where the sockets are on a Kubernetes node: one folder that cache nodes, plugin and daemon all see.
pub const RUN_DIR: &str = "/var/lib/forebay/run";

/// Where storage of medium Memory is on a Kubernetes node: a tmpfs on every Linux.
pub const MEMORY_ROOT: &str = "/dev/shm/forebay";

/// File name of the broker's socket in the run dir.
pub const BROKER_SOCKET: &str = "broker.sock";

/// Group of the sockets: cache nodes, plugin and daemon are in it.
pub const FOREBAY_GID: u32 = 64200;

/// User of the cache nodes.
pub const NODE_UID: u32 = 64201;

/// User of the FUSE daemon.
pub const FUSE_UID: u32 = 64202;

/// File name of a catalog's EROFS image.
pub const CATALOG_IMAGE: &str = "image.erofs";

/// File name of a catalog's side table.
pub const CATALOG_TABLE: &str = "objects.table";

/// File name of a catalog's summary.
pub const CATALOG_SUMMARY: &str = "summary.json";

/// The cache folder of one cache node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheLayout {
    root: PathBuf,
}

impl CacheLayout {
    /// The folder itself, as `node.cacheDir` names it.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder of `runtime` under a storage's `hostPath`.
    pub fn under_host_path(host_path: &Path, runtime: &RuntimeName) -> Self {
        Self::new(host_path.join(format!("{}.{}", runtime.namespace, runtime.name)))
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// File with the node's UUID.
    pub fn node_id(&self) -> PathBuf {
        self.root.join("node-id")
    }

    /// The folder of the index.
    pub fn index(&self) -> PathBuf {
        self.root.join("index")
    }

    /// The index of versions before 0.2, which no later one reads.
    pub fn old_index(&self) -> PathBuf {
        self.root.join("index.redb")
    }

    /// How far the scrub is.
    pub fn scrub_position(&self) -> PathBuf {
        self.root.join("scrub-position")
    }

    /// Complete, verified objects: the overlay's data layer.
    pub fn objects(&self) -> PathBuf {
        self.root.join("objects")
    }

    /// Objects with chunks still missing.
    pub fn partial(&self) -> PathBuf {
        self.root.join("partial")
    }

    /// Catalogs of all datasets.
    pub fn catalogs(&self) -> PathBuf {
        self.root.join("catalogs")
    }

    /// Catalogs of one dataset: at most one version for now.
    pub fn dataset_catalogs(&self, dataset_uid: &str) -> PathBuf {
        self.catalogs().join(dataset_uid)
    }

    /// The folder of one catalog.
    pub fn catalog(&self, dataset_uid: &str, catalog_id: &str) -> PathBuf {
        self.dataset_catalogs(dataset_uid).join(catalog_id)
    }
}

/// The local socket of a runtime's cache node under the run dir.
pub fn node_socket(run_dir: &Path, runtime: &RuntimeName) -> PathBuf {
    run_dir.join(format!("{}.{}.sock", runtime.namespace, runtime.name))
}
