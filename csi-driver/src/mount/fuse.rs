//! The object FUSE: one mount per node, whose /dev/fuse descriptor the mounter holds.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use forebay_fuse::handshake::{self, Agreed};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;

use super::{Context, MountError, mountinfo};

/// What mount tables show as the source of a node's object FUSE.
pub const SOURCE: &str = "forebay-objects";

/// What mount tables call the file system.
pub const FILESYSTEM: &str = "fuse.forebay";

/// A mounted object FUSE: until somebody serves the descriptor, whoever uses the mount waits.
#[derive(Debug)]
pub struct ObjectFuse {
    /// The session, after INIT.
    pub session: OwnedFd,
    /// What kernel and server agreed on.
    pub agreed: Agreed,
    /// Device numbers of the mount.
    pub device: (u32, u32),
}

/// Mounts the object FUSE at `target` and answers INIT. `source` is what mount tables show. The objects are this user's: readers come through
/// the overlay, with its mounter's rights. Trees are for all whom their modes let in, which the kernel checks.
pub fn mount(source: &str, target: &Path) -> Result<ObjectFuse, MountError> {
    let session = handshake::open_device()?;
    let context = Context::open("fuse")?;
    context.string("source", source)?;
    context.string("subtype", "forebay")?;
    context.string("fd", &std::os::fd::AsRawFd::as_raw_fd(&session).to_string())?;
    context.string("rootmode", "40000")?;
    context.string("user_id", "0")?;
    context.string("group_id", "0")?;
    context.flag("allow_other")?;
    context.flag("default_permissions")?;
    context.flag("ro")?;
    context.mount_at(target)?;
    let mounted = (|| {
        let agreed = handshake::answer_init(&session)?;
        let read = mountinfo::mounted_at(target);
        let (mount, _) =
            read.map_err(|error| MountError::new("reading /proc/self/mountinfo", error))?.ok_or_else(|| {
                MountError::new(format!("finding the mount at {}", target.display()), std::io::ErrorKind::NotFound)
            })?;
        Ok((agreed, mount.device))
    })();
    match mounted {
        Ok((agreed, device)) => {
            set_read_ahead(device);
            Ok(ObjectFuse { session, agreed, device })
        }
        Err(error) => {
            // Nobody will ever serve it.
            drop(session);
            if let Err(error) = super::unmount(target) {
                tracing::warn!(%error, "the useless mount stays");
            }
            Err(error)
        }
    }
}

/// Whether the session behind the mount is dead, because nobody has its descriptor any more. Waits for an answer while somebody has it and does not
/// serve, so call it on a thread that nobody waits for.
pub fn is_dead(mount: &Path) -> bool {
    let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW;
    matches!(statx(CWD, mount, flags, StatxFlags::BASIC_STATS), Err(Errno::NOTCONN | Errno::CONNABORTED))
}

/// Lets the kernel read ahead as far as pays; INIT can't say it. Without it sequential reads of incomplete objects are a third slower.
fn set_read_ahead((major, minor): (u32, u32)) {
    let file = PathBuf::from(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"));
    if let Err(error) = std::fs::write(&file, handshake::READ_AHEAD_KIB.to_string()) {
        tracing::warn!(file = %file.display(), %error, "the read-ahead stays at the kernel's default; is /sys mounted read-only?");
    }
}
