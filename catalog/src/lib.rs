//! One version of a dataset's tree, as two files that never change once written.
//!
//! * `image.erofs`: names, sizes, times, owner and modes as an EROFS file system that the kernel mounts. Its files have no data: each says by
//!   `trusted.overlay.redirect` which object holds it, and overlayfs finds that in its data-only layers.
//! * `objects.table`: where each object comes from (source, key, ETag, size), found by its id, memory-mapped.
//!
//! [`CatalogWriter`] makes both from a listing in any order; the same listing gives the same bytes and the same [`CatalogId`] on every node.
//! [`Catalog`] and [`ObjectTable`] read them; [`TreeImage`] reads the image where the kernel does not. The crate lists nothing, fetches nothing and mounts nothing.

mod catalog;
mod entries;
mod erofs;
mod id;
mod map;
mod skip;
mod source;
mod summary;
mod table;
mod tree;
mod writer;

pub use catalog::{Catalog, CatalogError};
pub use erofs::{Damaged, ImageError, TreeEntry, TreeImage, TreeNode, Xattr};
pub use id::{CatalogId, ObjectId, ParseIdError};
pub use skip::{SkipReason, SkippedKey};
pub use source::{CatalogSource, Mtime, SourceIndex, TreeAttributes};
pub use summary::CatalogSummary;
pub use table::{ObjectRecord, ObjectTable, TableError};
pub use writer::{CatalogOptions, CatalogWriter, WriteError};

/// File name of a catalog's EROFS image.
pub const CATALOG_IMAGE: &str = "image.erofs";
/// File name of a catalog's side table.
pub const CATALOG_TABLE: &str = "objects.table";
/// File name of a catalog's summary.
pub const CATALOG_SUMMARY: &str = "summary.json";
/// The longest path in a tree, in bytes, without the leading slash (Linux' PATH_MAX).
pub const MAX_PATH_BYTES: usize = 4096;
/// The longest name in a tree, in bytes (Linux' NAME_MAX, EROFS_NAME_LEN).
pub const MAX_NAME_BYTES: usize = 255;
/// The longest ETag, in bytes; it must fit an extended attribute.
pub const MAX_ETAG_BYTES: usize = 4096;
/// The largest file, in bytes: 1 PiB, twenty times what any object store takes.
pub const MAX_FILE_BYTES: u64 = 1 << 50;
