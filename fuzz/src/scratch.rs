//! Files in memory for parsers that want files.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A folder in memory, gone when the value is. One that an abort leaves behind has a name that tells whose it was.
pub fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let made = tempfile::Builder::new().prefix("forebay-fuzz-").tempdir_in(base);
    made.unwrap_or_else(|error| panic!("no folder for scratch files: {error}"))
}

/// Writes a file into a folder.
pub fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    assert!(std::fs::write(&path, bytes).is_ok(), "{} can't be written", path.display());
    path
}
