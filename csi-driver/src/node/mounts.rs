//! The mounts behind staged volumes: the object FUSE that all share, a catalog image each, and the overlay of both. Those that no record needs are
//! taken away; those that a predecessor left are taken up.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use forebay_catalog::{CATALOG_IMAGE, CATALOG_TABLE};
use forebay_fuse::handshake::Agreed;
use forebay_fuse::passthrough::OpenTable;
use forebay_protocol::layout::CacheLayout;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::Shared;
use super::error::{NodeError, blocking, file_error};
use crate::mount::{self, mountinfo};
use crate::volumes::{Volume, read_json, remove_if_there, write_json};

/// How long staging waits for a daemon to serve the object FUSE.
const DAEMON_PATIENCE: Duration = Duration::from_secs(15);

/// A folder to mount from or over.
pub(super) const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

/// The object FUSE's session, as it is remembered for the next plugin.
#[derive(Debug, Serialize, Deserialize)]
struct SessionRecord {
    session: String,
    device: (u32, u32),
}

impl Shared {
    /// Makes a volume's mounts, those that are there and good excepted.
    pub(super) async fn mount(self: Arc<Self>, mut volume: Volume) -> Result<(), NodeError> {
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
        self.broker.hold_session(&session, mounted.session, open_table(mounted.agreed));
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
        let objects = CacheLayout::new(&volume.cache).objects();
        let objects =
            mount::open_beneath(&volume.cache_root, &objects, FOLDER).map_err(file_error("opening", &objects))?;
        self.broker.mounted(&volume.dataset_uid, &volume.catalog_id, table, &volume.node_socket, vec![objects]);
        Ok(())
    }

    /// Removes a volume's record and what only it needed.
    pub(super) async fn forget(&self, id: &str) -> Result<(), NodeError> {
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

    /// Takes up what a predecessor left, and removes what nobody needs.
    pub(super) async fn recover(&self) -> Result<(), NodeError> {
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

/// The table of open inodes of a new session, if its files can be passed through.
fn open_table(agreed: Agreed) -> Option<OpenTable> {
    let table = agreed.passthrough.then(OpenTable::create)?;
    table.inspect_err(|error| tracing::warn!(%error, "files of the object FUSE are not passed through")).ok()
}

/// What the overlay's mount table entry shows as its source.
pub(super) fn volume_source(volume: &Volume) -> String {
    format!("forebay-{}-{}", volume.dataset_uid, volume.catalog_id)
}

fn mountinfo_at(path: &Path) -> Result<Option<mountinfo::Mount>, NodeError> {
    let mounted = mountinfo::mounted_at(path).map_err(file_error("reading", Path::new("/proc/self/mountinfo")))?;
    Ok(mounted.map(|(mount, _)| mount))
}

/// The tree that is mounted at a path.
pub(super) fn mounted_tree(path: &Path) -> Result<Option<mountinfo::Mount>, NodeError> {
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
