//! Why calls of the node service fail.

use std::io;
use std::path::Path;

use crate::broker::NotServed;
use crate::datasets::ResolveError;
use crate::mount::MountError;
use crate::mount::kernel::MissingFeature;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The volume is not staged, or not mounted where the call says.
    #[error("{0}")]
    NotFound(String),
    /// Trying again later may help.
    #[error("{0}")]
    NotYet(String),
    /// The kernel lacks something.
    #[error("{0}")]
    Kernel(#[from] MissingFeature),
    /// Dataset or runtime can't be used.
    #[error("{0}")]
    Resolve(#[from] ResolveError),
    /// No daemon.
    #[error("{0}")]
    NotServed(#[from] NotServed),
    /// A mount failed.
    #[error("{0}")]
    Mount(#[from] MountError),
    /// A file of ours or of the cache folder.
    #[error("{what}: {source}")]
    File {
        /// What was being done.
        what: String,
        /// The cause.
        source: io::Error,
    },
}

/// Names the file that an I/O error is about.
pub(super) fn file_error(what: &str, path: &Path) -> impl FnOnce(io::Error) -> NodeError {
    let what = format!("{what} {}", path.display());
    move |source| NodeError::File { what, source }
}

/// Runs system calls that may wait on a thread of their own.
pub(super) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, NodeError> + Send + 'static,
) -> Result<T, NodeError> {
    tokio::task::spawn_blocking(call)
        .await
        .unwrap_or_else(|error| Err(NodeError::NotYet(format!("the call was broken off: {error}"))))
}
