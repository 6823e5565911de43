//! `/proc/self/mountinfo`: what is mounted where. Reading it never touches a mounted file system, so it can't hang on one.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Device numbers of the file system.
    pub device: (u32, u32),
    /// Which folder of the file system is shown.
    pub root: PathBuf,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// `overlay`, `erofs`, `fuse.forebay`...
    pub filesystem: String,
    /// The source that its mounter named.
    pub source: String,
}

/// All mounts of this mount namespace, lower ones first.
pub fn mounts() -> io::Result<Vec<Mount>> {
    // Not UTF-8 where a mount point is not.
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// What is mounted at `path`: the topmost, and how many there are.
pub fn mounted_at(path: &Path) -> io::Result<Option<(Mount, usize)>> {
    let here: Vec<_> = mounts()?.into_iter().filter(|mount| mount.mount_point == path).collect();
    let count = here.len();
    Ok(here.into_iter().next_back().map(|mount| (mount, count)))
}

fn parse(line: &[u8]) -> Option<Mount> {
    // 36 35 98:0 /root /mount/point options optional... - filesystem source options
    let mut fields = line.split(|byte| *byte == b' ');
    let (major, minor) = std::str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
    let mut path = || Some(PathBuf::from(OsString::from_vec(unescape(fields.next()?))));
    let (root, mount_point) = (path()?, path()?);
    fields.find(|field| *field == b"-")?;
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let (filesystem, source) = (text(fields.next()?), text(fields.next()?));
    Some(Mount { device: (major.parse().ok()?, minor.parse().ok()?), root, mount_point, filesystem, source })
}

/// Blank, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let code = (*first == b'\\')
            .then(|| tail.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()))
            .flatten();
        if let Some(code) = code {
            bytes.push(code);
            rest = tail.get(3..).unwrap_or_default();
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_its_escapes_and_optional_fields() {
        let line = br"36 35 98:12 / /mnt/with\040blank rw,noatime shared:1 master:2 - fuse.forebay forebay\134x rw,errors=continue";
        let mount = parse(line).unwrap();
        assert_eq!(mount.device, (98, 12));
        assert_eq!((mount.root.as_path(), mount.mount_point.as_path()), (Path::new("/"), Path::new("/mnt/with blank")));
        assert_eq!((mount.filesystem.as_str(), mount.source.as_str()), ("fuse.forebay", r"forebay\x"));
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"36 35 98:12 / /mnt rw"), None);
    }

    #[test]
    fn proc_is_mounted_at_proc() {
        let (mount, _) = mounted_at(Path::new("/proc")).unwrap().unwrap();
        assert_eq!(mount.filesystem, "proc");
        assert_eq!(mounted_at(Path::new("/proc/nothing")).unwrap(), None);
    }
}
