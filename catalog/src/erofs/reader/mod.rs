//! Reads an image that this crate wrote, mapped, for a file system in user space. Nothing in it is believed: each step is checked against
//! the file's length when it is taken, and what makes no sense is [`Damaged`], never a panic or a loop without end.

mod directory;
mod xattr;

use std::fs::File;
use std::io;
use std::path::Path;

use zerocopy::FromBytes;

use super::format::{
    self, BLOCK, BLOCK_BITS, CHUNK_BASED, FLAT_INLINE, FLAT_PLAIN, INODE_SLOT, Inode, S_IFDIR, S_IFMT, S_IFREG,
    SUPER_OFFSET, SuperBlock,
};
use super::xattr::HEADER;
use crate::map::Map;
use crate::{MAX_FILE_BYTES, Mtime};

pub use directory::TreeEntry;
pub use xattr::Xattr;

/// Numbers of inodes have so many bits at most: an image has less than 2^44 bytes.
const NID_BITS: u32 = 46;

/// Why a file can't be used as an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file can't be opened or mapped.
    #[error("opening the catalog image: {0}")]
    Io(#[from] io::Error),
    /// The file is no image, or of a kind that this version does not read.
    #[error("the file is not a catalog image: {0}")]
    Format(&'static str),
}

/// A place in the image that makes no sense: what is there can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the catalog image is damaged at inode {nid}: {what}; remove the catalog's folder from the cache, it is made anew"
)]
pub struct Damaged {
    /// The inode that was being read.
    pub nid: u64,
    /// What is wrong with it.
    pub what: &'static str,
}

/// A mapped image. Cheap to open: nothing is read but the superblock.
#[derive(Debug)]
pub struct TreeImage {
    map: Map,
    root: u64,
    /// Where inode 0 would stand, in bytes.
    inodes: u64,
    count: u64,
}

/// A file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeNode {
    /// The inode's number: the same for the same tree everywhere, below 2^46.
    pub nid: u64,
    /// Kind and permissions, as in `st_mode`.
    pub mode: u32,
    /// Bytes of a file's content; of a folder, the bytes of its entries.
    pub size: u64,
    /// Number of links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When the content was last changed.
    pub mtime: Mtime,
    layout: u16,
    /// First block of a folder's data.
    block: u64,
    /// Byte position of the attributes, and how many bytes they take.
    xattrs: (usize, usize),
}

impl TreeNode {
    /// Whether it is a folder; else it is a file.
    pub fn is_dir(&self) -> bool {
        self.mode & u32::from(S_IFMT) == u32::from(S_IFDIR)
    }

    fn damaged(&self, what: &'static str) -> Damaged {
        Damaged { nid: self.nid, what }
    }
}

impl TreeImage {
    /// Opens the image at a path.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        Self::from_file(&File::open(path)?)
    }

    /// Maps the image in an open file, which may be closed after.
    pub fn from_file(file: &File) -> Result<Self, ImageError> {
        let map = Map::of(file)?;
        let superblock = map.get(SUPER_OFFSET..).and_then(|bytes| SuperBlock::read_from_prefix(bytes).ok());
        let (superblock, _) = superblock.ok_or(ImageError::Format("it is too short"))?;
        if superblock.magic.get() != format::MAGIC {
            return Err(ImageError::Format("it does not begin like one"));
        }
        if superblock.block_bits != BLOCK_BITS || superblock.feature_incompat.get() != format::INCOMPAT_CHUNKED_FILE {
            return Err(ImageError::Format("it has features that this version does not write"));
        }
        let image = Self {
            root: superblock.root_nid.get().into(),
            inodes: u64::from(superblock.meta_block.get()) * BLOCK,
            count: superblock.inodes.get(),
            map,
        };
        match image.node(image.root) {
            Ok(root) if root.is_dir() => Ok(image),
            _ => Err(ImageError::Format("its root is no folder")),
        }
    }

    /// Number of the root's inode.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Files and folders of the tree, as the image says.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The node with this number, if something like one stands there: a number that the image did not give out may find anything.
    pub fn node(&self, nid: u64) -> Result<TreeNode, Damaged> {
        let damaged = |what| Damaged { nid, what };
        let start = (nid < 1 << NID_BITS).then(|| self.inodes + nid * INODE_SLOT);
        let start = start.and_then(|start| usize::try_from(start).ok()).ok_or(damaged("there is no such inode"))?;
        let inode = self.map.get(start..).and_then(|bytes| Inode::read_from_prefix(bytes).ok());
        let (inode, _) = inode.ok_or(damaged("it lies beyond the end"))?;
        let (mode, layout, size) = (inode.mode.get(), inode.format.get(), inode.size.get());
        match (mode & S_IFMT, layout) {
            // Entries are in the file, content is not.
            (S_IFDIR, FLAT_PLAIN | FLAT_INLINE) if size <= self.map.len() as u64 => {}
            (S_IFREG, CHUNK_BASED) if (1..=MAX_FILE_BYTES).contains(&size) => {}
            (S_IFREG, FLAT_PLAIN) if size == 0 => {}
            _ => return Err(damaged("it is neither a folder nor a file")),
        }
        let xattr_bytes = match usize::from(inode.xattr_count.get()) {
            0 => 0,
            count => HEADER + (count - 1) * 4,
        };
        Ok(TreeNode {
            nid,
            mode: mode.into(),
            size,
            nlink: inode.nlink.get(),
            uid: inode.uid.get(),
            gid: inode.gid.get(),
            mtime: Mtime { seconds: inode.mtime.get(), nanos: inode.mtime_nanos.get().min(999_999_999) },
            layout,
            block: inode.union.get().into(),
            xattrs: (start + size_of::<Inode>(), xattr_bytes),
        })
    }
}
