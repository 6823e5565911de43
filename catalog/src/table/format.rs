//! The side table's file: a header, a JSON section (sources, owner, modes), rows of fixed size in the order of FUSE node id and object id, and a heap
//! with each row's key and ETag. All numbers little-endian.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use serde::{Deserialize, Serialize};

use crate::{CatalogSource, TreeAttributes};

pub(super) const MAGIC: [u8; 8] = *b"FOREBAYT";
pub(super) const VERSION: u32 = 2;
/// The digest is of everything from here to the end of the file.
pub(super) const DIGEST_FROM: usize = 40;

#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: [u8; 8],
    /// blake3; its first half is the catalog's id.
    pub(super) digest: [u8; 32],
    pub(super) version: U32,
    pub(super) row_bytes: U32,
    pub(super) rows: U64,
    pub(super) meta_offset: U64,
    pub(super) meta_bytes: U64,
    pub(super) rows_offset: U64,
    pub(super) heap_offset: U64,
    pub(super) heap_bytes: U64,
    /// blake3 of the image, so that the id stands for names, times and folders too.
    pub(super) image_digest: [u8; 32],
}

#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Row {
    pub(super) id: [u8; 16],
    pub(super) size: U64,
    /// In the heap; the ETag follows the key.
    pub(super) key_offset: U64,
    pub(super) key_bytes: U32,
    pub(super) etag_bytes: U16,
    pub(super) source: U16,
    /// Seconds since 1970.
    pub(super) modified: I64,
}

const _: () = assert!(size_of::<Header>() == 128 && size_of::<Row>() == 48);

/// The JSON section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) sources: Vec<CatalogSource>,
    pub(super) attributes: TreeAttributes,
}
