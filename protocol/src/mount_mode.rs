//! How a machine mounts, as its CSI plugin tells the cache nodes beside it: a small file in the run dir, which only programs of Forebay may enter.

use std::io;
use std::path::Path;

use crate::node::MountMode;

/// Its name.
const FILE: &str = "mount-mode";

/// Tells the cache nodes of this machine; whole or not at all.
pub fn write(run_dir: &Path, mode: &MountMode) -> io::Result<()> {
    let new = run_dir.join(format!("{FILE}.new"));
    std::fs::write(&new, format!("{}\n{}\n", mode.mode, mode.reason))?;
    std::fs::rename(new, run_dir.join(FILE))
}

/// Takes back what was told; nothing told is fine.
pub fn remove(run_dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(run_dir.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What the plugin said last; none where there is no plugin.
pub fn read(run_dir: &Path) -> Option<MountMode> {
    let text = std::fs::read_to_string(run_dir.join(FILE)).ok()?;
    let (mode, reason) = text.split_once('\n')?;
    Some(MountMode { mode: mode.to_owned(), reason: reason.trim_end().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_is_none() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()), None);
        let mode = MountMode { mode: "Fuse".into(), reason: "this kernel is old: it lacks much".into() };
        write(folder.path(), &mode).unwrap();
        assert_eq!(read(folder.path()), Some(mode));
        remove(folder.path()).unwrap();
        remove(folder.path()).unwrap();
        assert_eq!(read(folder.path()), None);
    }
}
