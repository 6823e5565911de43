//! What a catalog holds, in a few numbers, for a Dataset's status. Beside the catalog's identity, not part of it: when a listing was made
//! differs from node to node.

use serde::{Deserialize, Serialize};

use crate::{CatalogId, SkippedKey};

/// The summary of a catalog, `summary.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogSummary {
    /// The catalog.
    pub id: CatalogId,
    /// Files in the tree, empty ones too.
    pub files: u64,
    /// Folders in the tree below its root.
    pub directories: u64,
    /// The sum of the files' sizes.
    pub bytes: u64,
    /// Keys that are not in the tree.
    pub skipped: u64,
    /// The first 20 of them, by URL.
    pub skipped_keys: Vec<SkippedKey>,
    /// When the listing began, in seconds since 1970.
    pub observed_at_unix_seconds: i64,
}
