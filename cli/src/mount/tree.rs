//! The mounted tree: object FUSE, served by this process, and in mode Kernel the catalog image, at passing mount points in the cache folder; and
//! where the user wants it the overlay of both, or in mode Fuse the tree's folder of the object FUSE. Then the passing ones are detached: what is
//! at the user's place holds what it is made of, so that one mount remains, and taking it away ends everything.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use forebay_catalog::{ObjectTable, TreeImage};
use forebay_csi::mode::Mode;
use forebay_csi::mount::{self, open_beneath};
use forebay_csi::opens::Watched;
use forebay_fuse::passthrough::{OpenTable, Passthrough, RegistrarInProcess};
use forebay_fuse::{NodeClient, Registry, Server, tree_folder};
use forebay_protocol::layout::{CATALOG_IMAGE, CATALOG_TABLE, CacheLayout};
use forebay_protocol::node::CatalogInfo;
use rustix::fs::{CWD, OFlags, openat};
use rustix::mount::UnmountFlags;

use super::cache::CacheFolder;
use crate::mounted::{self, Mounted};

/// How long the kernel may take to let go of the session after the last mount of it is gone.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// The slot of the only tree there is.
const SLOT: u16 = 0;

/// A tree that is mounted and served.
#[derive(Debug)]
pub struct Tree {
    /// The mount that users see.
    pub mounted: Mounted,
    server: Server,
    registry: Registry,
    /// In mode Kernel, the Dataset's UID and the catalog's image.
    overlay: Option<(String, PathBuf)>,
}

impl Tree {
    /// Mounts a catalog of a dataset at `target`.
    pub async fn mount(
        cache: &CacheFolder,
        dataset_uid: &str,
        catalog: &CatalogInfo,
        mode: Mode,
        target: &Path,
    ) -> anyhow::Result<Self> {
        let points = Points::make(cache)?;
        let folder = CacheLayout::new(cache.root()).catalog(dataset_uid, &catalog.id);
        let table = folder.join(CATALOG_TABLE);
        let table = ObjectTable::open(&table).with_context(|| table.display().to_string())?;
        let registry = Registry::new();
        let image = folder.join(CATALOG_IMAGE);
        let shown = match mode {
            Mode::Kernel => None,
            Mode::Fuse => {
                let image = TreeImage::open(&image).with_context(|| image.display().to_string())?;
                Some(forebay_fuse::Tree::new(SLOT, &catalog.id, image, catalog.files, catalog.bytes))
            }
        };
        registry.mount(dataset_uid, &catalog.id, table, shown, &cache.socket());
        let objects = points.objects.clone();
        let fuse = blocking(move || Ok(mount::fuse::mount(&mounted::source_name(), &objects)?)).await?;
        let (session, agreed) = (Arc::new(fuse.session), fuse.agreed);
        let passthrough = agreed.passthrough.then(|| passthrough(cache, Arc::clone(&session))).transpose()?;
        let server = Server::start(session, registry.clone(), passthrough, None).context("serving the object FUSE")?;
        let overlay = (mode == Mode::Kernel).then(|| (dataset_uid.to_owned(), image.clone()));
        let (root, at) = (cache.root().to_owned(), target.to_owned());
        // While it mounts, the kernel asks the object FUSE, which this process serves.
        blocking(move || match mode {
            Mode::Kernel => mount_overlay(&root, &image, points, &at),
            Mode::Fuse => Ok(mount::bind(&points.objects.join(tree_folder(SLOT)), Path::new(""), &at)?),
        })
        .await?;
        let mounted = Mounted { directory: target.to_owned(), pid: rustix::process::getpid() };
        let tree = Self { mounted, server, registry, overlay };
        if let Err(error) = tree.check_readable().await {
            tree.mounted.detach()?;
            return Err(error);
        }
        Ok(tree)
    }

    async fn check_readable(&self) -> anyhow::Result<()> {
        let directory = self.mounted.directory.clone();
        blocking(move || {
            let mut entries =
                std::fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?;
            entries.next().transpose().with_context(|| format!("reading {}", directory.display())).map(drop)
        })
        .await
    }

    /// The overlay, for watching its opens. In mode Fuse there is none, and none is needed.
    pub fn watched(&self, node: &NodeClient) -> anyhow::Result<Option<Watched>> {
        let Some((dataset_uid, image)) = &self.overlay else { return Ok(None) };
        let (tree, image) = (self.mounted.directory.clone(), TreeImage::open(image)?);
        Ok(Some(Watched { tree, dataset_uid: dataset_uid.clone(), image, node: node.clone() }))
    }

    /// Waits until the mount is taken away, by whomever.
    pub async fn ended(&self) {
        self.server.ended().await;
    }

    /// Stops serving. False if the tree is still mounted somewhere.
    pub async fn stop(self) -> bool {
        let ended = tokio::time::timeout(END_PATIENCE, self.server.ended()).await.is_ok();
        self.registry.report_served().await;
        self.server.stop().await;
        ended
    }
}

/// The passing mount points; nothing is mounted there any more when this is dropped.
#[derive(Debug)]
struct Points {
    objects: PathBuf,
    catalog: PathBuf,
}

impl Points {
    fn make(cache: &CacheFolder) -> anyhow::Result<Self> {
        let folder = cache.mount_points();
        let points = Self { objects: folder.join("objects"), catalog: folder.join("catalog") };
        // Of a mount that was killed at the wrong moment.
        points.detach();
        for point in [&points.objects, &points.catalog] {
            mount::make_mount_point(point)?;
        }
        Ok(points)
    }

    fn detach(&self) {
        for point in [&self.objects, &self.catalog] {
            // Until nothing is mounted there.
            while rustix::mount::unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
        }
    }
}

impl Drop for Points {
    fn drop(&mut self) {
        self.detach();
    }
}

fn mount_overlay(cache: &Path, image: &Path, points: Points, target: &Path) -> anyhow::Result<()> {
    let image = open_beneath(cache, image, OFlags::RDONLY).with_context(|| format!("opening {}", image.display()))?;
    mount::erofs::mount(image, &points.catalog)?;
    let (catalog, rest) = (open_folder(&points.catalog)?, open_folder(&points.objects)?);
    let complete = open_folder(&CacheLayout::new(cache).objects())?;
    mount::overlay::mount(&mounted::source_name(), catalog, &[complete.as_fd(), rest.as_fd()], target)?;
    drop(points);
    Ok(())
}

/// This process registers the files of complete objects itself.
fn passthrough(cache: &CacheFolder, session: Arc<OwnedFd>) -> anyhow::Result<Passthrough> {
    let objects = open_folder(&CacheLayout::new(cache.root()).objects())?;
    let table = OpenTable::create().context("making the table of open inodes")?;
    Ok(Passthrough::new(table, Box::new(RegistrarInProcess::new(session, vec![objects]))))
}

fn open_folder(path: &Path) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, rustix::fs::Mode::empty()).with_context(|| format!("opening {}", path.display()))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("a thread panicked")?
}
