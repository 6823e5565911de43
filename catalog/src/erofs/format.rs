//! The on-disk structures of EROFS as the kernel's `fs/erofs/erofs_fs.h` and its documentation define them: all little-endian, none
//! padded. Only what an uncompressed, single-device image needs is here.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(super) const BLOCK_BITS: u8 = 12;
pub(super) const BLOCK: u64 = 1 << BLOCK_BITS;
/// Inodes start at multiples of this; an inode's number is its position in these units.
pub(super) const INODE_SLOT: u64 = 32;
pub(super) const SUPER_OFFSET: usize = 1024;
pub(super) const MAGIC: u32 = 0xe0f5_e1e2;

pub(super) const COMPAT_SB_CHECKSUM: u32 = 0x1;
/// Inodes tell their time of modification, not of change.
pub(super) const COMPAT_MTIME: u32 = 0x2;
pub(super) const INCOMPAT_CHUNKED_FILE: u32 = 0x4;

/// Bit 0 of an inode's format is the 64-byte form; the layout of the data follows.
const EXTENDED: u16 = 1;
pub(super) const FLAT_PLAIN: u16 = EXTENDED;
pub(super) const FLAT_INLINE: u16 = 2 << 1 | EXTENDED;
pub(super) const CHUNK_BASED: u16 = 4 << 1 | EXTENDED;

pub(super) const S_IFREG: u16 = 0o100_000;
pub(super) const S_IFDIR: u16 = 0o040_000;

/// The part of a mode that says what kind of node it is.
pub(super) const S_IFMT: u16 = 0o170_000;

pub(super) const TYPE_FILE: u8 = 1;
pub(super) const TYPE_FOLDER: u8 = 2;

/// The largest chunk that an inode's five bits can say: 8 TiB.
pub(super) const MAX_CHUNK_BLOCK_BITS: u32 = 31;
/// A chunk that is a hole.
pub(super) const NULL_CHUNK: [u8; 4] = [0xff; 4];

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Default)]
#[repr(C)]
pub(super) struct SuperBlock {
    pub(super) magic: U32,
    pub(super) checksum: U32,
    pub(super) feature_compat: U32,
    pub(super) block_bits: u8,
    pub(super) extension_slots: u8,
    pub(super) root_nid: U16,
    pub(super) inodes: U64,
    pub(super) epoch: U64,
    pub(super) epoch_nanos: U32,
    pub(super) blocks: U32,
    pub(super) meta_block: U32,
    pub(super) xattr_block: U32,
    pub(super) uuid: [u8; 16],
    pub(super) volume_name: [u8; 16],
    pub(super) feature_incompat: U32,
    pub(super) reserved: [u8; 32],
    pub(super) reserved2: [u8; 12],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Default)]
#[repr(C)]
pub(super) struct Inode {
    pub(super) format: U16,
    pub(super) xattr_count: U16,
    pub(super) mode: U16,
    pub(super) reserved: U16,
    pub(super) size: U64,
    /// First data block, or the chunk format.
    pub(super) union: U32,
    /// Only for 32-bit `stat`.
    pub(super) ino: U32,
    pub(super) uid: U32,
    pub(super) gid: U32,
    pub(super) mtime: I64,
    pub(super) mtime_nanos: U32,
    pub(super) nlink: U32,
    pub(super) reserved2: [u8; 16],
}

/// An entry of a folder's block; the names follow all entries of the block.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Dirent {
    pub(super) nid: U64,
    pub(super) name_offset: U16,
    pub(super) file_type: u8,
    pub(super) reserved: u8,
}

const _: () = assert!(size_of::<SuperBlock>() == 128 && size_of::<Inode>() == 64 && size_of::<Dirent>() == 12);
