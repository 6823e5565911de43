//! Mounts that `forebay mount` made, as the mount table shows them: the source is `forebay:PID`. Finding one never touches the mounted file
//! system, so it works for one whose process was killed.

pub mod users;

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use forebay_csi::mount::{fuse, mountinfo};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::Pid;

const SOURCE_PREFIX: &str = "forebay:";

/// A mount of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Where it is.
    pub directory: PathBuf,
    /// The process that serves it, or did.
    pub pid: Pid,
}

/// What came of an attempt to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmounted {
    /// It is gone, by this attempt or before.
    Gone,
    /// Somebody uses it.
    Busy,
}

/// What the mount table is to show as the source of this process's mount.
pub fn source_name() -> String {
    format!("{SOURCE_PREFIX}{}", std::process::id())
}

/// What is mounted at `directory`, topmost: nothing of ours, or one of ours.
pub fn at(directory: &Path) -> io::Result<Option<Mounted>> {
    let top = mountinfo::mounted_at(directory)?;
    Ok(top.and_then(|(mount, _)| of(mount)))
}

/// The mount, if it is one of ours.
pub fn of(mount: mountinfo::Mount) -> Option<Mounted> {
    let pid = mount.source.strip_prefix(SOURCE_PREFIX)?.parse().ok()?;
    let pid = Pid::from_raw(pid)?;
    let ours = ["overlay", fuse::FILESYSTEM].contains(&mount.filesystem.as_str());
    ours.then_some(Mounted { directory: mount.mount_point, pid })
}

/// `directory` as the mount table has it: absolute and without links.
pub fn resolve(directory: &Path) -> anyhow::Result<PathBuf> {
    directory.canonicalize().with_context(|| directory.display().to_string())
}

impl Mounted {
    /// Takes the mount away if nobody uses it.
    pub fn unmount(&self) -> anyhow::Result<Unmounted> {
        self.unmount_with(UnmountFlags::NOFOLLOW)
    }

    /// Takes the mount out of the tree now; those who use it keep what they have.
    pub fn detach(&self) -> anyhow::Result<Unmounted> {
        self.unmount_with(UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
    }

    fn unmount_with(&self, flags: UnmountFlags) -> anyhow::Result<Unmounted> {
        let current = at(&self.directory).context("reading /proc/self/mountinfo")?;
        // Never what somebody else mounted there since.
        if current.as_ref() != Some(self) {
            return Ok(Unmounted::Gone);
        }
        match rustix::mount::unmount(&self.directory, flags) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(Unmounted::Gone),
            Err(Errno::BUSY) => Ok(Unmounted::Busy),
            Err(error) => Err(error).with_context(|| format!("unmounting {}", self.directory.display())),
        }
    }

    /// Whether the process that serves it is still there.
    pub fn is_served(&self) -> bool {
        std::fs::read_to_string(format!("/proc/{}/stat", self.pid.as_raw_pid()))
            .is_ok_and(|stat| is_running_mount(&stat))
    }
}

/// Whether a line of `/proc/PID/stat` is of a `forebay` that runs: no other program with a number used again, and no zombie, which it stays
/// where the first process of a container waits for nobody.
fn is_running_mount(stat: &str) -> bool {
    let fields = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')'));
    fields.is_some_and(|(name, rest)| name == "forebay" && !rest.trim_start().starts_with(['Z', 'X']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(filesystem: &str, source: &str) -> mountinfo::Mount {
        mountinfo::Mount {
            device: (0, 1),
            root: "/".into(),
            mount_point: "/mnt/data".into(),
            filesystem: filesystem.into(),
            source: source.into(),
        }
    }

    #[test]
    fn only_an_overlay_or_fuse_mount_with_our_source_is_ours() {
        for filesystem in ["overlay", "fuse.forebay"] {
            let ours = of(mount(filesystem, "forebay:42")).unwrap();
            assert_eq!((ours.directory.as_path(), ours.pid.as_raw_pid()), (Path::new("/mnt/data"), 42));
        }
        for (filesystem, source) in
            [("overlay", "overlay"), ("ext4", "forebay:42"), ("overlay", "forebay:x"), ("overlay", "forebay:0")]
        {
            assert_eq!(of(mount(filesystem, source)), None, "{filesystem} {source}");
        }
    }

    #[test]
    fn another_program_or_a_zombie_serves_nothing() {
        assert!(is_running_mount("42 (forebay) S 1 42 42 0 -1"));
        for stat in ["42 (forebay) Z 1 42 42 0 -1", "42 (python3) S 1 42", "42 (a) forebay) S 1", ""] {
            assert!(!is_running_mount(stat), "{stat}");
        }
    }
}
