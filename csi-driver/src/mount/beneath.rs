//! Opening files of a cache folder by a path that its owner can't bend: the cache node may write whatever it likes below its folder, but must
//! not be able to make the privileged plugin mount something else through a symbolic link.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

/// Opens `path` below `root` without following any symbolic link after `root`. `path` may be absolute if it begins with `root`.
pub fn open_beneath(root: &Path, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let relative = if path.is_absolute() {
        path.strip_prefix(root).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not below {}", path.display(), root.display()))
        })?
    } else {
        path
    };
    let root = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(&root, relative, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_on_the_way_is_refused_and_a_link_above_the_root_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("real");
        std::fs::create_dir_all(real.join("cache/objects")).unwrap();
        std::os::unix::fs::symlink(&real, folder.path().join("root")).unwrap();
        std::os::unix::fs::symlink("/etc", real.join("cache/bent")).unwrap();
        let root = folder.path().join("root");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        assert!(open_beneath(&root, &root.join("cache/objects"), flags).is_ok());
        assert!(open_beneath(&root, Path::new("cache"), flags).is_ok());
        assert!(open_beneath(&root, &root, flags).is_ok());
        for path in ["cache/bent", "cache/bent/ssl", "../real/cache", "cache/../../real"] {
            assert!(open_beneath(&root, Path::new(path), flags).is_err(), "{path}");
        }
        assert!(open_beneath(&root, Path::new("/etc"), flags).is_err());
    }
}
