//! The cache folder's file system: it must be local, and have room.

use std::path::Path;

use forebay_crds::format_bytes;
use forebay_csi::mount::mountinfo;

use super::finding::Finding;

const ABOUT: &str = "cache folder";

/// File systems whose files are on another machine, or served by a process.
const NOT_LOCAL: [&str; 8] = ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "fuse"];

/// File systems that hold no files of users.
const NOT_FOR_FILES: [&str; 6] = ["proc", "sysfs", "devtmpfs", "cgroup2", "erofs", "squashfs"];

/// The folder's file system and its room.
pub fn examine(folder: &Path) -> Finding {
    let shown = folder.display();
    let resolved = match folder.canonicalize() {
        Ok(resolved) => resolved,
        Err(error) => return Finding::missing(ABOUT, format!("{shown}: {error}"), format!("`mkdir -p {shown}`")),
    };
    let mounts = mountinfo::mounts().unwrap_or_default();
    // Of mounts at the same place the last is on top.
    let mount = mounts.iter().filter(|mount| resolved.starts_with(&mount.mount_point));
    let mount = mount.max_by_key(|mount| mount.mount_point.components().count());
    let filesystem = mount.map_or("an unknown file system", |mount| mount.filesystem.as_str());
    let room = rustix::fs::statvfs(&resolved).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
    judge(&shown.to_string(), filesystem, room)
}

fn judge(folder: &str, filesystem: &str, room: u64) -> Finding {
    let says = format!("{folder} is on {filesystem}, {} free", format_bytes(room));
    let kind = filesystem.split('.').next().unwrap_or_default();
    if NOT_FOR_FILES.contains(&kind) || room == 0 {
        return Finding::missing(ABOUT, says, "choose a folder on a local disk with room");
    }
    if NOT_LOCAL.contains(&kind) {
        return Finding::note(ABOUT, format!("{says}: it is not local, so no faster than that"), "choose a local disk");
    }
    if kind == "tmpfs" {
        return Finding::ok(ABOUT, format!("{says}: in memory, gone with the next boot"));
    }
    Finding::ok(ABOUT, says)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn a_cache_belongs_on_a_local_disk_with_room() {
        assert_eq!(judge("/c", "ext4", 1 << 30), Finding::ok(ABOUT, "/c is on ext4, 1Gi free"));
        assert_eq!(judge("/c", "tmpfs", 1 << 30).level, Level::Ok);
        assert_eq!(judge("/c", "nfs4", 1 << 30).level, Level::Note);
        assert_eq!(judge("/c", "fuse.sshfs", 1 << 30).level, Level::Note);
        assert_eq!(judge("/c", "ext4", 0).level, Level::Missing);
        assert_eq!(judge("/proc", "proc", 1 << 30).level, Level::Missing);
    }

    #[test]
    fn a_folder_that_is_not_there_is_missing() {
        let found = examine(Path::new("/nowhere/at/all"));
        assert_eq!((found.level, found.next.as_deref()), (Level::Missing, Some("`mkdir -p /nowhere/at/all`")));
    }
}
