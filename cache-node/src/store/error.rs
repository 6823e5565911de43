//! Why the store could not do what it was asked.

use std::io;

use super::IndexError;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// The index failed.
    #[error("the cache's index: {0}")]
    Index(#[source] IndexError),
    /// No room, and nothing to evict.
    #[error(
        "the cache is full: of {capacity} bytes {used} are in use, {held} more are held by readers of evicted files, and nothing can be evicted; give it more capacity"
    )]
    Full {
        /// Bytes used.
        used: u64,
        /// Bytes of files that are gone for all but who has them open.
        held: u64,
        /// Bytes there are.
        capacity: u64,
    },
    /// The store was closed.
    #[error("the cache is closed")]
    Closed,
}

impl From<IndexError> for StoreError {
    fn from(error: IndexError) -> Self {
        match error {
            IndexError::Closed => Self::Closed,
            error => Self::Index(error),
        }
    }
}

impl StoreError {
    pub(super) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }

    /// The same error once more, for another object that it hit.
    pub(super) fn again(&self) -> Self {
        match self {
            Self::Full { used, held, capacity } => Self::Full { used: *used, held: *held, capacity: *capacity },
            Self::Closed => Self::Closed,
            Self::Io { what, source } => Self::Io { what: what.clone(), source: same(source) },
            Self::Index(IndexError::Io { what, source }) => {
                Self::Io { what: format!("the cache's index: {what}"), source: same(source) }
            }
            Self::Index(error) => Self::io("the cache's index", io::Error::other(error.to_string())),
        }
    }

    /// Whether the disk is full, whatever the capacity says.
    pub(super) fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// An error of a system call once more.
fn same(error: &io::Error) -> io::Error {
    let anew = || io::Error::new(error.kind(), error.to_string());
    error.raw_os_error().map_or_else(anew, io::Error::from_raw_os_error)
}
