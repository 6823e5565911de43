//! The tree that users see: names and attributes from the catalog, content from the first data layer that has the object.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::FsPickFlags;

use super::{Context, MountError, descriptor_path};

/// Mounts at `target` an overlay of `catalog` (the root of a mounted catalog image) over the data layers: folders with objects by path,
/// searched in order when a file is opened. `source` is what mount tables show.
///
/// The kernel asks each layer for its limits while it mounts: a FUSE layer must be served by then.
pub fn mount(source: &str, catalog: impl AsFd, data: &[BorrowedFd<'_>], target: &Path) -> Result<(), MountError> {
    let context = Context::open("overlay")?;
    context.string("source", source)?;
    context.layer("lowerdir+", catalog.as_fd())?;
    for layer in data {
        context.layer("datadir+", *layer)?;
    }
    // Files without data in the catalog are followed, by the path in their `trusted.overlay.redirect`, to the data layers.
    context.string("metacopy", "on")?;
    context.string("redirect_dir", "on")?;
    context.flag("ro")?;
    context.mount_at(target)
}

/// Has the kernel let go of everything that it caches of the tree and nobody uses: dentries and inodes, and with them the unlinked files of the data
/// layers. What is open or mapped stays as it is; what is looked up next is looked up anew.
pub fn let_go(tree: &Path) -> Result<(), MountError> {
    let failed = |error: Errno| MountError::new(format!("remounting {}", tree.display()), error);
    let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_SYMLINK_NOFOLLOW;
    let context = rustix::mount::fspick(CWD, tree, flags).map_err(failed)?;
    // A remount that changes nothing.
    rustix::mount::fsconfig_reconfigure(&context).map_err(failed)
}

impl Context {
    fn layer(&self, key: &str, folder: BorrowedFd<'_>) -> Result<(), MountError> {
        match rustix::mount::fsconfig_set_fd(&self.fd, key, folder) {
            // Before 6.13 layers are given by path only.
            Err(Errno::INVAL) => self.string(key, &descriptor_path(folder).display().to_string()),
            other => other.map_err(|error| self.error(key, error)),
        }
    }
}
