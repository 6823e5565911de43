//! The mounts of one Dataset. Mode Kernel: catalog image, object FUSE and the overlay of both over the cache's complete objects. Mode Fuse: a
//! folder of the object FUSE. Made with the new mount API
//! (fsopen, fsconfig, fsmount, move_mount), so that a mount is there whole or not at all, and paths have no length limit or quoting. Used by the
//! node service and by `forebay mount`; needs CAP_SYS_ADMIN.

mod beneath;
pub mod erofs;
pub mod fuse;
pub mod kernel;
mod loop_device;
pub mod mountinfo;
pub mod overlay;

use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsmount, fsopen, mount_change, move_mount, open_tree, unmount as umount2,
};

pub use beneath::open_beneath;

/// How long [`unmount`] waits for a busy mount before it detaches it.
const BUSY_PATIENCE: Duration = Duration::from_secs(2);

/// Why a mount could not be made or taken away.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel lacks something.
    #[error(transparent)]
    Kernel(#[from] kernel::MissingFeature),
    /// A system call failed.
    #[error("{what}: {source}{said}")]
    System {
        /// What was being done, with the path.
        what: String,
        /// The cause.
        source: io::Error,
        /// What the kernel wrote to the mount context's log, or nothing.
        said: String,
    },
    /// The session's handshake failed.
    #[error("{0}")]
    Handshake(#[from] forebay_fuse::handshake::HandshakeError),
}

impl MountError {
    fn new(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { what: what.into(), source: source.into(), said: String::new() }
    }
}

/// A file system being configured.
struct Context {
    fd: OwnedFd,
    filesystem: &'static str,
}

impl Context {
    fn open(filesystem: &'static str) -> Result<Self, MountError> {
        match fsopen(filesystem, FsOpenFlags::FSOPEN_CLOEXEC) {
            Ok(fd) => Ok(Self { fd, filesystem }),
            Err(Errno::NODEV) => Err(kernel::MissingFeature::FileSystem(filesystem).into()),
            Err(error) => Err(MountError::new(format!("opening file system {filesystem}"), error)),
        }
    }

    fn string(&self, key: &str, value: &str) -> Result<(), MountError> {
        rustix::mount::fsconfig_set_string(&self.fd, key, value)
            .map_err(|error| self.error(&format!("{key}={value}"), error))
    }

    fn flag(&self, key: &str) -> Result<(), MountError> {
        rustix::mount::fsconfig_set_flag(&self.fd, key).map_err(|error| self.error(key, error))
    }

    /// Creates the file system and puts it at `target`: read-only, without set-user-id and devices.
    fn mount_at(self, target: &Path) -> Result<(), MountError> {
        rustix::mount::fsconfig_create(&self.fd).map_err(|error| self.error("creating it", error))?;
        let attributes =
            MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let mount = fsmount(&self.fd, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|error| self.error("fsmount", error))?;
        attach(&mount, target)
    }

    fn error(&self, what: &str, source: Errno) -> MountError {
        let said = kernel_log(&self.fd);
        MountError::System { what: format!("mounting {}: {what}", self.filesystem), source: source.into(), said }
    }
}

/// The messages that the kernel left in a mount context: `e overlay: ...`, one a read.
fn kernel_log(context: impl AsFd) -> String {
    let mut all = String::new();
    let mut line = [0_u8; 1024];
    while let Ok(length) = rustix::io::read(&context, &mut line[..]) {
        if length == 0 {
            break;
        }
        let text = String::from_utf8_lossy(line.get(..length).unwrap_or_default()).trim().to_owned();
        all.push_str(if all.is_empty() { "; the kernel says: " } else { ", " });
        all.push_str(&text);
    }
    all
}

fn attach(mount: impl AsFd, target: &Path) -> Result<(), MountError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(mount, "", CWD, target, flags)
        .map_err(|error| MountError::new(format!("attaching the mount at {}", target.display()), error))
}

/// Makes a folder for a mount, and those above it, if they are missing. Does not look into the folder itself, which may be a mount that hangs.
pub fn make_mount_point(path: &Path) -> Result<(), MountError> {
    let mut folders = DirBuilder::new();
    folders.mode(0o750);
    let parent = path.parent().map_or(Ok(()), |parent| folders.recursive(true).create(parent));
    match parent.and_then(|()| folders.recursive(false).create(path)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(MountError::new(format!("making the folder {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// Shows the folder `path` of the tree at `source` at `target` as well, with the same mount options. `path` is relative; empty for all of the tree.
pub fn bind(source: &Path, path: &Path, target: &Path) -> Result<(), MountError> {
    attach(clone(source, path)?, target)
}

/// The same in place of what is mounted at `target`: beneath it, and then that is taken away, so that who looks meanwhile sees one of both. What is in
/// use, also by pods to which it propagates, stays below the new one, and so it does where the kernel (before 6.5) can't mount beneath.
pub fn bind_in_place(source: &Path, path: &Path, target: &Path) -> Result<(), MountError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_BENEATH;
    if move_mount(clone(source, path)?, "", CWD, target, flags).is_ok()
        && umount2(target, UnmountFlags::NOFOLLOW).is_ok()
    {
        return Ok(());
    }
    bind(source, path, target)
}

/// A mount of a folder of a tree that is not attached yet.
fn clone(source: &Path, path: &Path) -> Result<OwnedFd, MountError> {
    let failed =
        |error: io::Error| MountError::new(format!("cloning the mount at {}", source.join(path).display()), error);
    let folder = open_beneath(source, path, OFlags::PATH | OFlags::DIRECTORY).map_err(failed)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(&folder, "", flags).map_err(|error| failed(error.into()))?;
    // A clone is a peer of what it was cloned from: what is mounted over one pod's would appear over another's, and be taken away with it.
    mount_change(descriptor_path(&tree), MountPropagationFlags::PRIVATE).map_err(|error| failed(error.into()))?;
    Ok(tree)
}

/// Takes away whatever is mounted at `path`, all of it if mounts are stacked; nothing mounted is fine. A mount that stays busy is detached:
/// gone from the tree at once, and for its users when they end.
pub fn unmount(path: &Path) -> Result<(), MountError> {
    let since = Instant::now();
    loop {
        let flags = if since.elapsed() < BUSY_PATIENCE {
            UnmountFlags::NOFOLLOW
        } else {
            UnmountFlags::NOFOLLOW | UnmountFlags::DETACH
        };
        match umount2(path, flags) {
            Ok(()) => {
                if flags.contains(UnmountFlags::DETACH) {
                    tracing::warn!(path = %path.display(), "the mount is still in use; it was detached and ends with its last user");
                }
            }
            // Not a mount point (any more), or not there.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) => std::thread::sleep(Duration::from_millis(50)),
            Err(error) => return Err(MountError::new(format!("unmounting {}", path.display()), error)),
        }
    }
}

/// Unmounts `path` and removes the empty folder.
pub fn unmount_and_remove(path: &Path) -> Result<(), MountError> {
    unmount(path)?;
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(MountError::new(format!("removing the folder {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// A path through which this process reaches an open file, whatever its name.
fn descriptor_path(fd: impl AsFd) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}
