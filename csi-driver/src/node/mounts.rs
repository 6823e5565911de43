//! The mounts behind staged volumes: the object FUSE that all share; in mode Kernel a catalog image each, and the overlay of both, in mode Fuse a
//! folder of the object FUSE. Those that no record needs are taken away; those that a predecessor left are taken up.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use forebay_catalog::{CATALOG_IMAGE, CATALOG_TABLE};
use forebay_fuse::handshake::Agreed;
use forebay_fuse::passthrough::OpenTable;
use forebay_fuse::tree_folder;
use forebay_protocol::broker::Tree;
use forebay_protocol::layout::CacheLayout;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::Shared;
use super::error::{NodeError, blocking, file_error};
use crate::mount::{self, mountinfo};
use crate::volumes::{Shown, Volume, read_json, remove_if_there, write_json};

/// How long staging waits for a daemon to serve the object FUSE, and with it the volume's catalog.
const DAEMON_PATIENCE: Duration = Duration::from_secs(15);

/// A folder to mount from or over.
pub(super) const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

/// The object FUSE's session, as it is remembered for the next plugin.
#[derive(Debug, Default, Serialize, Deserialize)]
struct SessionRecord {
    session: String,
    device: (u32, u32),
    /// Where the search for a free slot begins: a slot rests as long as can be, while the kernel forgets its last tree.
    #[serde(default)]
    next_slot: u16,
}

impl Shared {
    /// Makes a volume's mounts, those that are there and good excepted.
    pub(super) async fn mount(self: Arc<Self>, mut volume: Volume) -> Result<(), NodeError> {
        self.record(&volume)?;
        {
            let _shared = self.common_mounts.lock().await;
            volume.session = self.mount_object_fuse().await?;
            match &mut volume.shown {
                Shown::Overlay => self.mount_catalog(&volume).await?,
                Shown::Tree { slot } => {
                    *slot = Some(self.slot_for(&volume.dataset_uid, &volume.catalog_id)?);
                    self.record(&volume)?;
                }
            }
            self.announce(&volume)?;
        }
        self.broker.wait_catalogs(DAEMON_PATIENCE).await?;
        self.record(&volume)?;
        let node = Arc::clone(&self);
        blocking(move || {
            mount::make_mount_point(&volume.staging_path)?;
            // What is there already is of an attempt that was broken off, or of a session that is dead.
            mount::unmount(&volume.staging_path)?;
            match volume.shown {
                Shown::Overlay => node.mount_overlay(&volume),
                Shown::Tree { slot } => {
                    let folder = node.paths.object_fuse().join(tree_folder(slot.unwrap_or_default()));
                    Ok(mount::bind(&folder, Path::new(""), &volume.staging_path)?)
                }
            }
        })
        .await
    }

    fn mount_overlay(&self, volume: &Volume) -> Result<(), NodeError> {
        let catalog = open_folder(&self.paths.catalog(&volume.dataset_uid, &volume.catalog_id))?;
        let rest = open_folder(&self.paths.object_fuse())?;
        let objects = self.object_folders(volume)?;
        let layers: Vec<_> = objects.iter().chain([&rest]).map(AsFd::as_fd).collect();
        Ok(mount::overlay::mount(&volume_source(volume), catalog, &layers, &volume.staging_path)?)
    }

    /// The folders of complete objects of the volume's cache, the fastest first.
    fn object_folders(&self, volume: &Volume) -> Result<Vec<OwnedFd>, NodeError> {
        let memory = volume.memory.as_deref().map(|memory| (self.paths.memory_root.as_path(), memory));
        let folders = memory.into_iter().chain([(volume.cache_root.as_path(), volume.cache.as_path())]);
        let open = |(root, cache): (&Path, &Path)| {
            let objects = CacheLayout::new(cache).objects();
            mount::open_beneath(root, &objects, FOLDER).map_err(file_error("opening", &objects))
        };
        folders.map(open).collect()
    }

    /// The slot of a catalog's tree: the one that it has, or a free one. Called with `common_mounts` held.
    fn slot_for(&self, dataset_uid: &str, catalog_id: &str) -> Result<u16, NodeError> {
        let volumes = self.all_volumes()?;
        if let Some(slot) = slot_of(&volumes, dataset_uid, catalog_id) {
            return Ok(slot);
        }
        let mut record = self.session_record()?.unwrap_or_default();
        let slot = free_slot(&volumes, record.next_slot).ok_or_else(|| {
            NodeError::NotYet("65,536 catalogs are mounted on this node, which are all it can".into())
        })?;
        record.next_slot = slot.wrapping_add(1);
        write_json(&self.paths.session(), &record).map_err(file_error("writing", &self.paths.session()))?;
        Ok(slot)
    }

    pub(super) fn record(&self, volume: &Volume) -> Result<(), NodeError> {
        self.volumes.put(volume).map_err(file_error("writing the record of volume", Path::new(&volume.id)))
    }

    /// The record of a volume.
    pub(super) fn volume(&self, id: &str) -> Result<Option<Volume>, NodeError> {
        self.volumes.get(id).map_err(file_error("reading the record of volume", Path::new(id)))
    }

    /// All records.
    pub(super) fn all_volumes(&self) -> Result<Vec<Volume>, NodeError> {
        self.volumes.all().map_err(file_error("reading", &self.paths.volumes()))
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
                Ok(mount::fuse::mount(mount::fuse::SOURCE, &path)?)
            }
        })
        .await?;
        let (major, minor) = mounted.device;
        let session = format!("{major}:{minor}-{:x}", started_nanos());
        let next_slot = self.session_record()?.map_or(0, |record| record.next_slot);
        let record = SessionRecord { session: session.clone(), device: mounted.device, next_slot };
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
        Ok(())
    }

    /// Has the daemon serve the objects of the volume's catalog, and its tree if a volume shows that.
    fn announce(&self, volume: &Volume) -> Result<(), NodeError> {
        let table = catalog_file(volume, CATALOG_TABLE)?;
        let tree = match slot_of(&self.all_volumes()?, &volume.dataset_uid, &volume.catalog_id) {
            Some(slot) => {
                let tree = Tree { slot: slot.into(), files: volume.files, bytes: volume.bytes };
                Some((tree, catalog_file(volume, CATALOG_IMAGE)?))
            }
            None => None,
        };
        let objects = self.object_folders(volume)?;
        let (dataset_uid, catalog_id) = (&volume.dataset_uid, &volume.catalog_id);
        self.broker.mounted(dataset_uid, catalog_id, table, tree, &volume.node_socket, objects);
        Ok(())
    }

    fn session_record(&self) -> Result<Option<SessionRecord>, NodeError> {
        read_json(&self.paths.session()).map_err(file_error("reading", &self.paths.session()))
    }

    /// Removes a volume's record and what only it needed.
    pub(super) async fn forget(&self, id: &str) -> Result<(), NodeError> {
        let _shared = self.common_mounts.lock().await;
        self.volumes.remove(id).map_err(file_error("removing the record of volume", Path::new(id)))?;
        self.release_unused().await
    }

    /// Takes away the mounts that no record needs.
    async fn release_unused(&self) -> Result<(), NodeError> {
        let volumes = self.all_volumes()?;
        self.broker.retain(|dataset_uid, catalog_id| {
            volumes.iter().any(|it| it.dataset_uid == dataset_uid && it.catalog_id == catalog_id)
        });
        let needed: Vec<_> = volumes.iter().map(|it| self.paths.catalog(&it.dataset_uid, &it.catalog_id)).collect();
        let catalogs = self.paths.catalogs();
        let mounts = mountinfo::mounts().map_err(file_error("reading", Path::new("/proc/self/mountinfo")))?;
        let unused = mounts.into_iter().map(|mount| mount.mount_point);
        let unused: Vec<_> = unused.filter(|path| path.starts_with(&catalogs) && !needed.contains(path)).collect();
        for path in unused {
            let dataset = path.parent().map(Path::to_owned);
            blocking(move || Ok(mount::unmount_and_remove(&path)?)).await?;
            // Fails while another version of the Dataset is mounted.
            let _ = dataset.map(std::fs::remove_dir);
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
        let volumes = self.all_volumes()?;
        for volume in &volumes {
            // Gone when its mounts are: after a reboot the kubelet stages anew.
            if mounted_tree(&volume.staging_path)?.is_none() {
                tracing::info!(volume = volume.id, "the volume is not mounted any more");
                if volume.inline {
                    mount::unmount_and_remove(&volume.staging_path)?;
                }
                self.volumes
                    .remove(&volume.id)
                    .map_err(file_error("removing the record of volume", Path::new(&volume.id)))?;
            } else if let Err(error) = self.announce(volume) {
                tracing::error!(volume = volume.id, dataset = volume.dataset, %error, "files of this volume that are not cached can't be read");
            }
        }
        let mounted = object_fuse_mounted(&self.paths.object_fuse())?;
        if let (Some(record), Some(mount)) = (self.session_record()?, mounted)
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
fn volume_source(volume: &Volume) -> String {
    format!("forebay-{}-{}", volume.dataset_uid, volume.catalog_id)
}

fn mountinfo_at(path: &Path) -> Result<Option<mountinfo::Mount>, NodeError> {
    let mounted = mountinfo::mounted_at(path).map_err(file_error("reading", Path::new("/proc/self/mountinfo")))?;
    Ok(mounted.map(|(mount, _)| mount))
}

/// The tree that is mounted at a path.
pub(super) fn mounted_tree(path: &Path) -> Result<Option<mountinfo::Mount>, NodeError> {
    let ours = ["overlay", mount::fuse::FILESYSTEM];
    Ok(mountinfo_at(path)?.filter(|mount| ours.contains(&mount.filesystem.as_str())))
}

/// Whether a volume's tree, or a folder of it, is mounted at a path.
pub(super) fn is_shown_at(volume: &Volume, path: &Path) -> Result<bool, NodeError> {
    let Some(mount) = mounted_tree(path)? else { return Ok(false) };
    Ok(match volume.shown {
        Shown::Overlay => mount.source == volume_source(volume),
        Shown::Tree { slot } => slot.is_some_and(|slot| mount.root.starts_with(Path::new("/").join(tree_folder(slot)))),
    })
}

/// The slot that a catalog's tree has.
pub(super) fn slot_of(volumes: &[Volume], dataset_uid: &str, catalog_id: &str) -> Option<u16> {
    volumes.iter().filter(|it| it.dataset_uid == dataset_uid && it.catalog_id == catalog_id).find_map(slot)
}

fn slot(volume: &Volume) -> Option<u16> {
    match volume.shown {
        Shown::Overlay => None,
        Shown::Tree { slot } => slot,
    }
}

/// The first slot from `first` on that no volume has, around the end.
fn free_slot(volumes: &[Volume], first: u16) -> Option<u16> {
    let taken: HashSet<u16> = volumes.iter().filter_map(slot).collect();
    (0..=u16::MAX).map(|number| first.wrapping_add(number)).find(|slot| !taken.contains(slot))
}

fn object_fuse_mounted(path: &Path) -> Result<Option<mountinfo::Mount>, NodeError> {
    Ok(mountinfo_at(path)?.filter(|mount| mount.filesystem == mount::fuse::FILESYSTEM))
}

/// A file of the volume's catalog.
pub(super) fn catalog_file(volume: &Volume, name: &str) -> Result<OwnedFd, NodeError> {
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
