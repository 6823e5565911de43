//! `forebay-node prepare`: run once as root before a node that has no rights of its own, it makes the folders that the node needs.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use forebay_protocol::layout::{FOREBAY_GID, NODE_UID};

/// Why a folder could not be made.
#[derive(Debug, thiserror::Error)]
#[error("preparing {path}: {source}")]
pub struct PrepareError {
    path: PathBuf,
    source: io::Error,
}

/// Makes the cache folder and that of the memory tier (0700, the node's) and the folder of sockets (0770, root's and the forebay group's). They
/// may exist.
pub fn prepare(cache_dir: &Path, memory_dir: Option<&Path>, run_dir: &Path) -> Result<(), PrepareError> {
    for path in [Some(cache_dir), memory_dir].into_iter().flatten() {
        folder(path, NODE_UID, FOREBAY_GID, 0o700)?;
    }
    folder(run_dir, 0, FOREBAY_GID, 0o770)
}

fn folder(path: &Path, uid: u32, gid: u32, mode: u32) -> Result<(), PrepareError> {
    let made = std::fs::create_dir_all(path)
        .and_then(|()| std::os::unix::fs::chown(path, Some(uid), Some(gid)))
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)));
    made.map_err(|source| PrepareError { path: path.to_owned(), source })
}
