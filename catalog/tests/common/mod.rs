//! What the catalog's behaviour tests share: a listing, catalogs made of it, and mounts that go away with the test.
#![allow(dead_code)]

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use forebay_catalog::{
    CatalogOptions, CatalogSource, CatalogSummary, CatalogWriter, Mtime, SourceIndex, TreeAttributes,
};
use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

pub const ATTRIBUTES: TreeAttributes = TreeAttributes { uid: 1234, gid: 70_000, file_mode: 0o440, dir_mode: 0o550 };

/// An object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub source: u16,
    pub key: Vec<u8>,
    pub size: u64,
    pub mtime: Mtime,
    pub etag: String,
}

pub fn listed(source: u16, key: impl AsRef<[u8]>, size: u64) -> Listed {
    let mtime = Mtime { seconds: 1_700_000_000 + size as i64 % 1000, nanos: 123_456_789 };
    Listed { source, key: key.as_ref().to_vec(), size, mtime, etag: format!("\"{size:x}\"") }
}

pub fn source(mount_path: &str, bucket: &str, prefix: &str) -> CatalogSource {
    CatalogSource {
        mount_path: mount_path.into(),
        url: format!("s3://{bucket}"),
        identity: format!("https://s3.example/{bucket}"),
        prefix: prefix.into(),
    }
}

/// A folder on disk: the kernel mounts no image from a file on tmpfs, which has no `read_folio` (ENOTBLK).
pub fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A folder on tmpfs where there is one.
pub fn memory_folder() -> TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { folder() }
}

pub fn write(sources: &[CatalogSource], list: &[Listed], folder: &Path) -> CatalogSummary {
    let options = CatalogOptions { sources: sources.to_vec(), attributes: ATTRIBUTES };
    let mut writer = CatalogWriter::new(options).unwrap();
    for item in list {
        writer.add_file(SourceIndex(item.source), &item.key, item.size, item.mtime, &item.etag).unwrap();
    }
    writer.finish(folder).unwrap()
}

/// A mount that is gone when this is, also when the test fails.
pub struct Mount(PathBuf);

impl Mount {
    /// None, and says so, where mounting is not possible: without root, or without the file system.
    pub fn new(source: &Path, target: PathBuf, kind: &str, options: &str) -> Option<Self> {
        std::fs::create_dir_all(&target).unwrap();
        let options = CString::new(options).unwrap();
        match rustix::mount::mount(source, &target, kind, MountFlags::RDONLY, Some(options.as_c_str())) {
            Ok(()) => Some(Self(target)),
            Err(error) => {
                eprintln!("skipped: {kind} can't be mounted here: {error}");
                assert!(std::env::var_os("FOREBAY_REQUIRE_ALL").is_none(), "no test may be skipped");
                None
            }
        }
    }

    pub fn erofs(image: &Path, target: PathBuf) -> Option<Self> {
        Self::new(image, target, "erofs", "")
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, path: impl AsRef<[u8]>) -> PathBuf {
        self.0.join(OsStr::from_bytes(path.as_ref()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("unmounting {}: {error}", self.0.display());
        }
    }
}

/// The names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().as_bytes().to_vec()).collect();
    names.sort();
    names
}

/// An extended attribute, if it is there.
pub fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 65_536];
    match rustix::fs::lgetxattr(path, name, &mut value) {
        Ok(len) => Some(value[..len].to_vec()),
        Err(rustix::io::Errno::NODATA) => None,
        Err(error) => panic!("{name} of {}: {error}", path.display()),
    }
}

/// All names of extended attributes, sorted.
pub fn xattr_names(path: &Path) -> Vec<String> {
    let mut list = vec![0; 65_536];
    let len = rustix::fs::llistxattr(path, &mut list).unwrap();
    let names = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut names: Vec<_> = names.map(|name| String::from_utf8(name.to_vec()).unwrap()).collect();
    names.sort();
    names
}
