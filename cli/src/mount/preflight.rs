//! What can be known to be wrong before anything is started: the user, the kernel, the folder to mount at.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use forebay_csi::mode::{Chosen, Wanted};

use crate::mounted;

/// A folder that can be mounted at.
#[derive(Clone, Debug)]
pub struct Target {
    /// Absolute and without links.
    pub directory: PathBuf,
    /// It holds something that the mount hides.
    pub hides: bool,
}

/// Checks that this process may mount and the kernel can; how.
pub fn check_machine(wanted: Wanted) -> anyhow::Result<Chosen> {
    if !rustix::process::geteuid().is_root() {
        bail!("mounting needs root: run the command with sudo");
    }
    Ok(wanted.choose()?)
}

/// Checks the folder to mount at.
pub fn check_target(directory: &Path) -> anyhow::Result<Target> {
    let resolved = mounted::resolve(directory).context("the folder to mount at must exist")?;
    let shown = resolved.display();
    if let Some(mounted) = mounted::at(&resolved).context("reading /proc/self/mountinfo")? {
        let pid = mounted.pid.as_raw_pid();
        let by =
            if mounted.is_served() { format!("by process {pid}") } else { format!("by process {pid}, which is gone") };
        bail!("{shown} already has a Dataset, mounted {by}: end that first with `forebay umount {shown}`");
    }
    if !resolved.is_dir() {
        bail!("{shown} is not a folder");
    }
    let mut entries = std::fs::read_dir(&resolved).with_context(|| format!("reading {shown}"))?;
    let hides = entries.next().is_some();
    Ok(Target { directory: resolved, hides })
}

/// The cache must not be hidden by the mount, nor the mount be part of the cache.
pub fn check_apart(target: &Path, cache: &Path) -> anyhow::Result<()> {
    if target.starts_with(cache) || cache.starts_with(target) {
        bail!(
            "the cache folder {} and the folder to mount at, {}, must not be one inside the other",
            cache.display(),
            target.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_an_existing_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!check_target(folder.path()).unwrap().hides);
        let file = folder.path().join("file");
        assert!(format!("{:#}", check_target(&file).unwrap_err()).contains("must exist"));
        std::fs::write(&file, "").unwrap();
        assert!(check_target(&file).unwrap_err().to_string().contains("not a folder"));
        assert!(check_target(folder.path()).unwrap().hides);
    }

    #[test]
    fn cache_and_mount_are_apart() {
        assert!(check_apart(Path::new("/a/b"), Path::new("/a/bc")).is_ok());
        assert!(check_apart(Path::new("/a/b"), Path::new("/a/b/c")).is_err());
        assert!(check_apart(Path::new("/a/b"), Path::new("/a")).is_err());
    }
}
