//! Where a run keeps its files: a folder in memory that is gone with the run. What a killed run left behind goes when the next begins.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

/// Begins the names of all that a run makes, followed by its process id.
pub const PREFIX: &str = "forebay-bench-";

const MEMORY: &str = "/dev/shm";

/// A run's folder.
#[derive(Debug)]
pub struct RunFolder(TempDir);

impl RunFolder {
    /// A new, empty folder.
    pub fn new() -> Result<Self> {
        let base = base();
        let made = tempfile::Builder::new().prefix(&format!("{PREFIX}{}-", std::process::id())).tempdir_in(&base);
        made.map(Self).with_context(|| format!("making a folder in {}", base.display()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A new folder in it, gone when the value is.
    pub fn part(&self, name: &str) -> Result<TempDir> {
        let made = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(self.path());
        made.with_context(|| format!("making a folder for {name} in {}", self.path().display()))
    }
}

fn base() -> PathBuf {
    let memory = Path::new(MEMORY);
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

/// Removes the folders of runs that are gone.
pub fn sweep() {
    let Ok(entries) = std::fs::read_dir(base()) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(is_left_over) {
            // Another run may be at it too.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether a name is of a run whose process is gone.
pub fn is_left_over(name: &str) -> bool {
    let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).and_then(|pid| pid.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_dead_run_left_is_left_over() {
        assert!(!is_left_over(&format!("{PREFIX}{}-x", std::process::id())));
        // Process ids end at 2^22.
        assert!(is_left_over(&format!("{PREFIX}4194305-x")));
        for other in ["forebay-bench-", "forebay-bench-x-1", "forebay-test-4194305-x", ""] {
            assert!(!is_left_over(other), "{other}");
        }
    }
}
