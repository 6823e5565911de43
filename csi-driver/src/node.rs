//! Staging and publishing volumes, as plain functions that know nothing of gRPC. What is mounted is derived from the mount table and the volumes'
//! records, never remembered, so a call may be repeated, in parallel or after a restart, and does the same.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use forebay_catalog::{CATALOG_IMAGE, CATALOG_SUMMARY, CATALOG_TABLE, CatalogSummary};
use forebay_protocol::layout::{CacheLayout, node_socket};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::broker::{Broker, NotServed};
use crate::datasets::{Datasets, ResolveError, Target};
use crate::mount::kernel::MissingFeature;
use crate::mount::{self, MountError, mountinfo};
use crate::paths::Paths;
use crate::volumes::{Volume, Volumes, read_json, remove_if_there, write_json};

/// How long staging waits for the catalog to be on this node before it gives the reason. The kubelet asks again.
const CATALOG_PATIENCE: Duration = Duration::from_secs(15);

/// How often it looks.
const CATALOG_INTERVAL: Duration = Duration::from_millis(300);

/// How long staging waits for a daemon to serve the object FUSE.
const DAEMON_PATIENCE: Duration = Duration::from_secs(15);

const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

/// Volumes on this node. Clones are the same.
#[derive(Clone)]
pub struct Node {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    paths: Paths,
    datasets: Datasets,
    broker: Broker,
    volumes: Volumes,
    /// One call at a time per volume.
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Held while mounts that volumes share are made or taken away.
    common_mounts: tokio::sync::Mutex<()>,
}

/// Files and bytes of a volume, and whether something is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Files in the tree.
    pub files: u64,
    /// Sum of their sizes.
    pub bytes: u64,
    /// What is wrong, if anything.
    pub problem: Option<String>,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The volume is not staged, or not mounted where the call says.
    #[error("{0}")]
    NotFound(String),
    /// Trying again later may help.
    #[error("{0}")]
    NotYet(String),
    /// The kernel lacks something.
    #[error("{0}")]
    Kernel(#[from] MissingFeature),
    /// Dataset or runtime can't be used.
    #[error("{0}")]
    Resolve(#[from] ResolveError),
    /// No daemon.
    #[error("{0}")]
    NotServed(#[from] NotServed),
    /// A mount failed.
    #[error("{0}")]
    Mount(#[from] MountError),
    /// A file of ours or of the cache folder.
    #[error("{what}: {source}")]
    File {
        /// What was being done.
        what: String,
        /// The cause.
        source: io::Error,
    },
}

fn file_error(what: &str, path: &Path) -> impl FnOnce(io::Error) -> NodeError {
    let what = format!("{what} {}", path.display());
    move |source| NodeError::File { what, source }
}

/// The object FUSE's session, as it is remembered for the next plugin.
#[derive(Debug, Serialize, Deserialize)]
struct SessionRecord {
    session: String,
    device: (u32, u32),
}

impl Node {
    /// The node's volumes. Takes up what a predecessor left: the session, the catalogs of staged volumes; and removes what nobody needs.
    pub async fn start(name: &str, paths: Paths, datasets: Datasets, broker: Broker) -> Result<Self, NodeError> {
        for folder in [paths.volumes(), paths.catalogs(), paths.object_fuse()] {
            mount::make_mount_point(&folder)?;
        }
        let volumes = Volumes::open(&paths.volumes()).map_err(file_error("opening", &paths.volumes()))?;
        let shared = Shared {
            name: name.to_owned(),
            paths,
            datasets,
            broker,
            volumes,
            locks: Mutex::default(),
            common_mounts: tokio::sync::Mutex::default(),
        };
        let node = Self { shared: Arc::new(shared) };
        node.shared.recover().await?;
        Ok(node)
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Mounts a volume's tree at `staging_path`.
    pub async fn stage(
        &self,
        id: &str,
        attributes: HashMap<String, String>,
        staging_path: &Path,
    ) -> Result<(), NodeError> {
        let staging_path = staging_path.to_owned();
        self.exclusively(id, move |node, id| async move { node.stage(&id, &attributes, &staging_path).await }).await
    }

    /// Takes it away, and what nobody else needs.
    pub async fn unstage(&self, id: &str, staging_path: &Path) -> Result<(), NodeError> {
        let staging_path = staging_path.to_owned();
        self.exclusively(id, move |node, id| async move { node.unstage(&id, &staging_path).await }).await
    }

    /// Shows the staged tree at `target`.
    pub async fn publish(&self, id: &str, staging_path: &Path, target: &Path) -> Result<(), NodeError> {
        let (staging_path, target) = (staging_path.to_owned(), target.to_owned());
        self.exclusively(id, move |node, id| async move {
            let volume = node.staged(&id, &staging_path)?.ok_or_else(|| {
                NodeError::Invalid(format!("volume {id} is not staged at {}", staging_path.display()))
            })?;
            if mounted_tree(&target)?.is_some_and(|mount| mount.source == volume_source(&volume)) {
                return Ok(());
            }
            if !node.is_served(&volume) {
                tracing::warn!(
                    volume = id,
                    dataset = volume.dataset,
                    "the tree's object FUSE is dead; mounting it anew"
                );
                Arc::clone(&node).mount(volume).await?;
            }
            blocking(move || {
                mount::make_mount_point(&target)?;
                Ok(mount::bind(&staging_path, &target)?)
            })
            .await
        })
        .await
    }

    /// Takes it away and removes `target`.
    pub async fn unpublish(&self, id: &str, target: &Path) -> Result<(), NodeError> {
        let target = target.to_owned();
        self.exclusively(id, move |_, _| blocking(move || Ok(mount::unmount_and_remove(&target)?))).await
    }

    /// Figures of a volume, from its record: never touches the mount, so it can't hang on a slow source.
    pub fn stats(&self, id: &str, path: &Path) -> Result<Stats, NodeError> {
        let volumes = &self.shared.volumes;
        let volume = volumes.get(id).map_err(file_error("reading the record of volume", Path::new(id)))?;
        let volume = volume.ok_or_else(|| NodeError::NotFound(format!("volume {id} is not staged on this node")))?;
        let mounted = mounted_tree(path)?.is_some_and(|mount| mount.source == volume_source(&volume));
        if !mounted {
            return Err(NodeError::NotFound(format!("volume {id} is not mounted at {}", path.display())));
        }
        let problem = (!self.shared.is_served(&volume)).then(|| {
            "plugin and FUSE daemon of this node were down at once: files that are not cached can't be read; restart the pods that use the volume".to_owned()
        });
        Ok(Stats { files: volume.files, bytes: volume.bytes, problem })
    }

    /// Runs a call of one volume after those before it, to its end even if the caller gives up: half a mount helps nobody.
    async fn exclusively<F, T>(&self, id: &str, call: F) -> Result<(), NodeError>
    where
        F: FnOnce(Arc<Shared>, String) -> T + Send + 'static,
        T: Future<Output = Result<(), NodeError>> + Send + 'static,
    {
        let (node, id) = (Arc::clone(&self.shared), id.to_owned());
        let lock = {
            let mut locks = node.locks.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody waits for or holds.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(id.clone()).or_default())
        };
        let task = tokio::spawn(async move {
            let _guard = lock.lock_owned().await;
            call(node, id).await
        });
        task.await.unwrap_or_else(|error| Err(NodeError::NotYet(format!("the call was broken off: {error}"))))
    }
}

impl Shared {
    async fn stage(
        self: Arc<Self>,
        id: &str,
        attributes: &HashMap<String, String>,
        staging_path: &Path,
    ) -> Result<(), NodeError> {
        if self.staged(id, staging_path)?.is_some_and(|volume| self.is_served(&volume)) {
            return Ok(());
        }
        mount::kernel::check()?;
        let (target, summary) = self.wait_for_catalog(id, attributes).await?;
        let volume = Volume {
            id: id.to_owned(),
            dataset: target.dataset.clone(),
            dataset_uid: target.dataset_uid.clone(),
            catalog_id: target.catalog_id.clone(),
            session: String::new(),
            staging_path: staging_path.to_owned(),
            cache_root: target.cache_root.clone(),
            cache: target.cache.root().to_owned(),
            node_socket: node_socket(&self.paths.run_dir, &target.runtime),
            files: summary.files,
            bytes: summary.bytes,
        };
        match Arc::clone(&self).mount(volume).await {
            Ok(()) => {
                tracing::info!(volume = id, dataset = target.dataset, catalog = target.catalog_id, "staged");
                Ok(())
            }
            Err(error) => {
                if let Err(error) = self.forget(id).await {
                    tracing::error!(volume = id, %error, "cleaning up after a failed mount failed");
                }
                Err(error)
            }
        }
    }

    async fn unstage(self: Arc<Self>, id: &str, staging_path: &Path) -> Result<(), NodeError> {
        let path = staging_path.to_owned();
        blocking(move || Ok(mount::unmount(&path)?)).await?;
        self.forget(id).await?;
        tracing::info!(volume = id, "unstaged");
        Ok(())
    }

    /// The volume's record, if it is staged there.
    fn staged(&self, id: &str, staging_path: &Path) -> Result<Option<Volume>, NodeError> {
        let volume = self.volumes.get(id).map_err(file_error("reading the record of volume", Path::new(id)))?;
        let Some(volume) = volume.filter(|volume| volume.staging_path == staging_path) else { return Ok(None) };
        let mounted = mounted_tree(staging_path)?.is_some_and(|mount| mount.source == volume_source(&volume));
        Ok(mounted.then_some(volume))
    }

    /// Whether the object FUSE that the volume's tree reads from is still there.
    fn is_served(&self, volume: &Volume) -> bool {
        self.broker.session().is_some_and(|session| session == volume.session)
    }

    /// Waits for the Dataset to have a version and for its catalog to be on this node.
    async fn wait_for_catalog(
        &self,
        id: &str,
        attributes: &HashMap<String, String>,
    ) -> Result<(Target, CatalogSummary), NodeError> {
        let deadline = Instant::now() + CATALOG_PATIENCE;
        loop {
            let found = match self.datasets.resolve(id, attributes, &self.paths).await {
                Ok(target) => self.find_catalog(&target).map(|summary| (target, summary)),
                Err(error) => Err(error.into()),
            };
            match found {
                Err(
                    NodeError::NotYet(_) | NodeError::Resolve(ResolveError::NotYet(_) | ResolveError::ApiServer { .. }),
                ) if Instant::now() < deadline => {}
                other => return other,
            }
            tokio::time::sleep(CATALOG_INTERVAL).await;
        }
    }

    fn find_catalog(&self, target: &Target) -> Result<CatalogSummary, NodeError> {
        if let Err(error) = mount::open_beneath(&target.cache_root, target.cache.root(), FOLDER) {
            return Err(NodeError::NotYet(format!(
                "node {} runs no cache node of CacheRuntime {} (there is no {}: {error}); run the pod on a node that spec.nodes.selector of the runtime matches",
                self.name,
                target.runtime,
                target.cache.root().display(),
            )));
        }
        let folder = target.cache.catalog(&target.dataset_uid, &target.catalog_id);
        let summary = mount::open_beneath(&target.cache_root, &folder.join(CATALOG_SUMMARY), OFlags::RDONLY);
        let summary = summary.map_err(|error| {
            NodeError::NotYet(format!(
                "the catalog {} of Dataset {} has not reached node {} yet ({error}); see the cache node's log",
                target.catalog_id, target.dataset, self.name
            ))
        })?;
        serde_json::from_reader(std::fs::File::from(summary)).map_err(|error| NodeError::File {
            what: format!("reading {}", folder.join(CATALOG_SUMMARY).display()),
            source: error.into(),
        })
    }

    /// Makes a volume's mounts, those that are there and good excepted.
    async fn mount(self: Arc<Self>, mut volume: Volume) -> Result<(), NodeError> {
        self.record(&volume)?;
        {
            let _shared = self.common_mounts.lock().await;
            volume.session = self.mount_object_fuse().await?;
            self.mount_catalog(&volume).await?;
        }
        self.broker.wait_served(DAEMON_PATIENCE).await?;
        self.record(&volume)?;
        let node = Arc::clone(&self);
        blocking(move || {
            let objects = CacheLayout::new(&volume.cache).objects();
            let objects =
                mount::open_beneath(&volume.cache_root, &objects, FOLDER).map_err(file_error("opening", &objects))?;
            let catalog = open_folder(&node.paths.catalog(&volume.dataset_uid, &volume.catalog_id))?;
            let rest = open_folder(&node.paths.object_fuse())?;
            mount::make_mount_point(&volume.staging_path)?;
            // What is there already is of an attempt that was broken off, or of a session that is dead.
            mount::unmount(&volume.staging_path)?;
            let layers = [objects.as_fd(), rest.as_fd()];
            Ok(mount::overlay::mount(&volume_source(&volume), catalog, &layers, &volume.staging_path)?)
        })
        .await
    }

    fn record(&self, volume: &Volume) -> Result<(), NodeError> {
        self.volumes.put(volume).map_err(file_error("writing the record of volume", Path::new(&volume.id)))
    }

    /// Mounts the object FUSE unless it is mounted and alive; gives its session.
    async fn mount_object_fuse(&self) -> Result<String, NodeError> {
        let path = self.paths.object_fuse();
        if let Some(session) = self.broker.session().filter(|_| object_fuse_mounted(&path).is_ok_and(|it| it.is_some()))
        {
            return Ok(session);
        }
        let mounted = blocking({
            let path = path.clone();
            move || {
                mount::unmount(&path)?;
                Ok(mount::fuse::mount(&path)?)
            }
        })
        .await?;
        let (major, minor) = mounted.device;
        let session = format!("{major}:{minor}-{:x}", started_nanos());
        let record = SessionRecord { session: session.clone(), device: mounted.device };
        write_json(&self.paths.session(), &record).map_err(file_error("writing", &self.paths.session()))?;
        tracing::info!(session, passthrough = mounted.agreed.passthrough, "mounted the object FUSE");
        self.broker.hold_session(&session, mounted.session);
        Ok(session)
    }

    async fn mount_catalog(&self, volume: &Volume) -> Result<(), NodeError> {
        let target = self.paths.catalog(&volume.dataset_uid, &volume.catalog_id);
        if mountinfo_at(&target)?.is_none() {
            let image = catalog_file(volume, CATALOG_IMAGE)?;
            blocking(move || {
                mount::make_mount_point(&target)?;
                Ok(mount::erofs::mount(image, &target)?)
            })
            .await?;
        }
        self.announce(volume)
    }

    /// Has the daemon serve the objects of the volume's catalog.
    fn announce(&self, volume: &Volume) -> Result<(), NodeError> {
        let table = catalog_file(volume, CATALOG_TABLE)?;
        self.broker.mounted(&volume.dataset_uid, &volume.catalog_id, table, &volume.node_socket);
        Ok(())
    }

    async fn forget(&self, id: &str) -> Result<(), NodeError> {
        let _shared = self.common_mounts.lock().await;
        self.volumes.remove(id).map_err(file_error("removing the record of volume", Path::new(id)))?;
        self.release_unused().await
    }

    /// Takes away the mounts that no record needs.
    async fn release_unused(&self) -> Result<(), NodeError> {
        let volumes = self.volumes.all().map_err(file_error("reading", &self.paths.volumes()))?;
        let needed: Vec<_> = volumes.iter().map(|it| self.paths.catalog(&it.dataset_uid, &it.catalog_id)).collect();
        let catalogs = self.paths.catalogs();
        let mounts = mountinfo::mounts().map_err(file_error("reading", Path::new("/proc/self/mountinfo")))?;
        let unused = mounts.into_iter().map(|mount| mount.mount_point);
        let unused: Vec<_> = unused.filter(|path| path.starts_with(&catalogs) && !needed.contains(path)).collect();
        for path in unused {
            let mut parts = path.iter().rev().map(|part| part.to_string_lossy().into_owned());
            let (catalog_id, dataset_uid) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            self.broker.unmounted(&dataset_uid, &catalog_id);
            blocking(move || Ok(mount::unmount_and_remove(&path)?)).await?;
            // Fails while another version of the Dataset is mounted.
            let _ = std::fs::remove_dir(catalogs.join(dataset_uid));
        }
        if volumes.is_empty() {
            let path = self.paths.object_fuse();
            blocking(move || Ok(mount::unmount(&path)?)).await?;
            self.broker.drop_session();
            remove_if_there(&self.paths.session()).map_err(file_error("removing", &self.paths.session()))?;
        }
        Ok(())
    }

    async fn recover(&self) -> Result<(), NodeError> {
        let volumes = self.volumes.all().map_err(file_error("reading", &self.paths.volumes()))?;
        for volume in &volumes {
            // Gone when its mounts are: after a reboot the kubelet stages anew.
            if mounted_tree(&volume.staging_path)?.is_none() {
                tracing::info!(volume = volume.id, "the volume is not mounted any more");
                self.volumes
                    .remove(&volume.id)
                    .map_err(file_error("removing the record of volume", Path::new(&volume.id)))?;
            } else if let Err(error) = self.announce(volume) {
                tracing::error!(volume = volume.id, dataset = volume.dataset, %error, "files of this volume that are not cached can't be read");
            }
        }
        let record: Option<SessionRecord> =
            read_json(&self.paths.session()).map_err(file_error("reading", &self.paths.session()))?;
        let mounted = object_fuse_mounted(&self.paths.object_fuse())?;
        if let (Some(record), Some(mount)) = (record, mounted)
            && record.device == mount.device
        {
            self.broker.expect_session(&record.session);
        }
        self.release_unused().await
    }
}

/// What the overlay's mount table entry shows as its source.
fn volume_source(volume: &Volume) -> String {
    format!("forebay-{}-{}", volume.dataset_uid, volume.catalog_id)
}

fn mountinfo_at(path: &Path) -> Result<Option<mountinfo::Mount>, NodeError> {
    let mounted = mountinfo::mounted_at(path).map_err(file_error("reading", Path::new("/proc/self/mountinfo")))?;
    Ok(mounted.map(|(mount, _)| mount))
}

fn mounted_tree(path: &Path) -> Result<Option<mountinfo::Mount>, NodeError> {
    Ok(mountinfo_at(path)?.filter(|mount| mount.filesystem == "overlay"))
}

fn object_fuse_mounted(path: &Path) -> Result<Option<mountinfo::Mount>, NodeError> {
    Ok(mountinfo_at(path)?.filter(|mount| mount.filesystem == mount::fuse::FILESYSTEM))
}

/// A file of the volume's catalog in the cache folder.
fn catalog_file(volume: &Volume, name: &str) -> Result<OwnedFd, NodeError> {
    let path = CacheLayout::new(&volume.cache).catalog(&volume.dataset_uid, &volume.catalog_id).join(name);
    mount::open_beneath(&volume.cache_root, &path, OFlags::RDONLY).map_err(file_error("opening", &path))
}

fn open_folder(path: &PathBuf) -> Result<OwnedFd, NodeError> {
    rustix::fs::open(path, FOLDER | OFlags::CLOEXEC | OFlags::NOFOLLOW, rustix::fs::Mode::empty())
        .map_err(|error| file_error("opening", path)(error.into()))
}

fn started_nanos() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos()
}

/// Runs system calls that may wait on a thread of their own.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, NodeError> + Send + 'static,
) -> Result<T, NodeError> {
    tokio::task::spawn_blocking(call)
        .await
        .unwrap_or_else(|error| Err(NodeError::NotYet(format!("the call was broken off: {error}"))))
}
