//! What the mount tests share: a scratch folder on tmpfs that takes its mounts away when a test ends, however it ends; a dataset whose every
//! byte is known; and a small reference server of the local socket that fills backing files slowly.

#![allow(dead_code)]

pub mod freeze;
pub mod map;
pub mod node;
pub mod plugin;
pub mod pod;
pub mod process;
pub mod readers;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use forebay_catalog::{
    Catalog, CatalogOptions, CatalogSource, CatalogWriter, Mtime, ObjectId, SourceIndex, TreeAttributes,
};
use forebay_csi::mode::Wanted;
use forebay_csi::mount;
use forebay_e2e::content;
use forebay_e2e::skipped::kernel_lacks;
use forebay_protocol::layout::CacheLayout;
pub use map::mapped;

/// Whether the tests can run here, in the mode that the plugin chooses; says why not.
pub fn can_mount() -> bool {
    can_mount_in(Wanted::Auto)
}

/// Whether the tests can run here in a mode; says why not.
pub fn can_mount_in(mode: Wanted) -> bool {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: mounting needs root");
        assert!(std::env::var_os("FOREBAY_REQUIRE_ALL").is_none(), "no test may be skipped");
        return false;
    }
    mode.choose().map_err(kernel_lacks).is_ok()
}

/// Whether the kernel reads complete files by itself in a tree of the FUSE daemon; says so if not.
pub fn can_pass_through() -> bool {
    can_mount() && {
        let can = has_passthrough();
        if !can {
            kernel_lacks("this kernel's FUSE has no passthrough");
        }
        can
    }
}

fn has_passthrough() -> bool {
    let scratch = Scratch::new();
    mount::fuse::mount("forebay-test", &scratch.folder("fuse")).unwrap().agreed.passthrough
}

/// Whether complete files that are open need no daemon: in mode Kernel, or by passthrough.
pub fn complete_files_need_nobody() -> bool {
    mount::kernel::check().is_ok() || has_passthrough()
}

/// How long something may take that takes no longer than this on an ordinary machine: on one with emulated processors, ten times as long.
pub fn patience(ordinary: Duration) -> Duration {
    if std::env::var_os("FOREBAY_SLOW").is_some() { ordinary * 10 } else { ordinary }
}

/// Waits for a condition.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let (since, patience) = (std::time::Instant::now(), patience(Duration::from_secs(30)));
    while !condition() {
        assert!(since.elapsed() < patience, "waited {patience:?} for: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// Defines a test for each mount mode of an `async fn(Wanted)`, named after it with the mode behind.
#[macro_export]
macro_rules! in_both_modes {
    ($($test:ident)*) => { $( mod $test {
        use forebay_csi::mode::Wanted;
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn mode_kernel() {
            if $crate::support::can_mount_in(Wanted::Kernel) {
                super::$test(Wanted::Kernel).await;
            }
        }
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn mode_fuse() {
            if $crate::support::can_mount_in(Wanted::Fuse) {
                super::$test(Wanted::Fuse).await;
            }
        }
    } )* };
}

/// A folder on tmpfs. All mounts below it are taken away when it is dropped.
pub struct Scratch {
    folder: tempfile::TempDir,
}

impl Scratch {
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("forebay-test-").tempdir_in("/dev/shm").unwrap();
        // The daemon runs as another user.
        set_mode(folder.path(), 0o755);
        Self { folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// A tmpfs in a folder of its own.
    pub fn tmpfs(&self, name: &str) -> PathBuf {
        let path = self.folder(name);
        rustix::mount::mount("tmpfs", &path, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        path
    }

    /// Mount points below, lower mounts first.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let all = mount::mountinfo::mounts().unwrap().into_iter().map(|mount| mount.mount_point);
        all.filter(|path| path.starts_with(self.path())).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for path in self.mounts().iter().rev() {
            let flags = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
            let _ = rustix::mount::unmount(path, flags);
        }
    }
}

pub fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// One file of the dataset.
#[derive(Clone, Debug)]
pub struct File {
    pub path: String,
    pub size: u64,
    pub id: ObjectId,
}

/// A catalog in a cache folder, and what its files hold.
pub struct Dataset {
    pub uid: String,
    pub catalog_id: String,
    pub cache: CacheLayout,
    pub files: Vec<File>,
}

const IDENTITY: &str = "test://bucket";
const ETAG: &str = "etag";

impl Dataset {
    /// Writes a catalog of these files into the cache folder.
    pub fn new(cache: &Path, uid: &str, files: &[(&str, u64)]) -> Arc<Self> {
        let cache = CacheLayout::new(cache);
        let source = CatalogSource {
            mount_path: "/".into(),
            url: IDENTITY.into(),
            identity: IDENTITY.into(),
            prefix: Vec::new(),
        };
        let attributes = TreeAttributes { uid: 1000, gid: 1001, file_mode: 0o444, dir_mode: 0o555 };
        let mut writer = CatalogWriter::new(CatalogOptions { sources: vec![source], attributes }).unwrap();
        for (path, size) in files {
            let mtime = Mtime { seconds: 1_700_000_000, nanos: 0 };
            writer.add_file(SourceIndex(0), path.as_bytes(), *size, mtime, ETAG).unwrap();
        }
        let staging = cache.dataset_catalogs(uid).join("new");
        std::fs::create_dir_all(&staging).unwrap();
        let catalog_id = writer.finish(&staging).unwrap().id.to_string();
        std::fs::rename(staging, cache.catalog(uid, &catalog_id)).unwrap();
        for folder in [cache.objects(), cache.partial()] {
            std::fs::create_dir_all(folder).unwrap();
        }
        let files = files.iter().map(|(path, size)| File::new(path, *size));
        Arc::new(Self { uid: uid.into(), catalog_id, cache, files: files.collect() })
    }

    pub fn folder(&self) -> PathBuf {
        self.cache.catalog(&self.uid, &self.catalog_id)
    }

    pub fn catalog(&self) -> Catalog {
        Catalog::open(&self.folder()).unwrap()
    }

    pub fn file(&self, path: &str) -> &File {
        self.files.iter().find(|file| file.path == path).unwrap()
    }

    /// Puts the complete object where the overlay finds it.
    pub fn complete(&self, file: &File) {
        let path = self.cache.objects().join(file.id.relative_path());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path.with_extension("new"), file.bytes(0, file.size as usize)).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    }
}

impl File {
    pub fn new(path: &str, size: u64) -> Self {
        Self { path: path.into(), size, id: ObjectId::new(IDENTITY, path.as_bytes(), ETAG, size) }
    }

    /// What the file holds there: never zeros in a row, different in each file and place.
    pub fn bytes(&self, offset: u64, length: usize) -> Vec<u8> {
        let seed = u64::from_le_bytes(self.id.as_bytes()[..8].try_into().unwrap());
        content::bytes(seed, offset, length)
    }
}
