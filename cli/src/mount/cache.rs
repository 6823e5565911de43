//! The cache folder as `forebay mount` uses it: one mount at a time, which a lock on `mount.lock` sees to. The lock ends with the process,
//! however that ends; what the file says is for messages only. Beside what a cache node keeps there: the log of a mount in the background,
//! the node's socket, and the points of the mounts that the tree is made of.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// A cache folder.
#[derive(Clone, Debug)]
pub struct CacheFolder {
    root: PathBuf,
}

/// The cache folder is this process's as long as this lives.
#[derive(Debug)]
pub struct CacheLock {
    _file: File,
}

impl CacheFolder {
    /// Opens the folder; makes it if it is missing.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.with_context(|| format!("making the cache folder {}", path.display()))?;
        let root = path.canonicalize().with_context(|| format!("the cache folder {}", path.display()))?;
        Ok(Self { root })
    }

    /// Where the folder is, or is going to be: absolute, and without links as far as it is there.
    pub fn place(path: &Path) -> anyhow::Result<PathBuf> {
        let absolute = std::path::absolute(path).with_context(|| format!("the cache folder {}", path.display()))?;
        for ancestor in absolute.ancestors() {
            if let (Ok(there), Ok(rest)) = (ancestor.canonicalize(), absolute.strip_prefix(ancestor)) {
                return Ok(if rest.as_os_str().is_empty() { there } else { there.join(rest) });
            }
        }
        Ok(absolute)
    }

    /// The folder, absolute and without links.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The log of a mount in the background.
    pub fn log(&self) -> PathBuf {
        self.root.join("mount.log")
    }

    /// The cache node's local socket.
    pub fn socket(&self) -> PathBuf {
        self.root.join("node.sock")
    }

    /// Where the mounts are made that the tree is made of.
    pub fn mount_points(&self) -> PathBuf {
        self.root.join("mount")
    }

    /// Takes the lock for a mount at `target`.
    pub fn lock(&self, target: &Path) -> anyhow::Result<CacheLock> {
        let path = self.root.join("mount.lock");
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = opened.with_context(|| format!("opening {}", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // Without the name the message is still right.
                let _ = file.read_to_string(&mut holder);
                bail!(
                    "the cache folder {} is in use by {}: end that mount first, or give this one another --cache-dir",
                    self.root.display(),
                    if holder.trim().is_empty() { "another `forebay mount`" } else { holder.trim() }
                );
            }
            Err(error) => return Err(error).with_context(|| format!("locking {}", path.display())),
        }
        let says = format!("process {}, which mounts at {}\n", std::process::id(), target.display());
        file.set_len(0)
            .and_then(|()| file.write_all(says.as_bytes()))
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(CacheLock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_folder_is_known_before_it_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("there")).unwrap();
        std::os::unix::fs::symlink(real.join("there"), real.join("link")).unwrap();
        for (path, place) in [("there", "there"), ("link", "there"), ("link/a/b", "there/a/b"), ("new/a", "new/a")] {
            assert_eq!(CacheFolder::place(&real.join(path)).unwrap(), real.join(place));
        }
        assert!(!real.join("new").exists() && !real.join("there/a").exists());
    }

    #[test]
    fn a_second_mount_is_told_who_has_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CacheFolder::open(&folder.path().join("a/b")).unwrap();
        let lock = cache.lock(Path::new("/mnt/data")).unwrap();
        let error = cache.lock(Path::new("/mnt/other")).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())) && error.contains("/mnt/data"), "{error}");
        drop(lock);
        assert!(cache.lock(Path::new("/mnt/other")).is_ok());
    }
}
