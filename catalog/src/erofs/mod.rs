//! Writes a tree as an EROFS image without file data, for overlayfs to lay over the folders of objects.
//!
//! Layout: the superblock in block 0; from block 1 on all inodes, a folder's children side by side, so that `ls -l` reads forward; then the
//! blocks of large folders. An inode's number is its position in units of 32 bytes, hence the same for the same tree. Files are chunk-based with null
//! chunks: a size and holes. Two passes over the tree: one places the inodes, one writes; neither keeps more than a number a node.

mod directory;
mod format;
mod reader;
mod xattr;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{I64, U16, U32, U64};

use crate::tree::{Node, NodeIndex, Tree};
use crate::{CatalogSource, Mtime, TreeAttributes};
use directory::{Named, Shape};
use format::{BLOCK, INODE_SLOT, Inode, SuperBlock};
pub use reader::{Damaged, ImageError, TreeEntry, TreeImage, TreeNode, Xattr};

/// Writes bytes at a place of its own in a file that others write too.
pub(crate) struct WriteAt<'a> {
    pub(crate) file: &'a File,
    pub(crate) offset: u64,
}

impl Write for WriteAt<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write_at(bytes, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A tree and what its inodes say beside it.
pub(crate) struct Image<'a> {
    pub(crate) tree: &'a Tree<'a>,
    pub(crate) sources: &'a [CatalogSource],
    pub(crate) attributes: TreeAttributes,
}

impl Image<'_> {
    /// Writes the whole image into an empty file; the caller syncs it.
    pub(crate) fn write(&self, file: &File) -> io::Result<()> {
        let layout = Layout::of(self);
        let mut pass = WritePass {
            image: self,
            layout: &layout,
            inodes: BufWriter::with_capacity(1 << 20, WriteAt { file, offset: BLOCK }),
            position: BLOCK,
            blocks: BufWriter::with_capacity(1 << 18, WriteAt { file, offset: layout.first_block * BLOCK }),
            next_block: layout.first_block,
            xattrs: Vec::new(),
        };
        pass.folder(0)?;
        for folder in self.tree.folders() {
            for (index, node) in self.tree.children(folder) {
                if node.is_dir {
                    pass.folder(index)?;
                } else {
                    pass.file(index, node)?;
                }
            }
        }
        let WritePass { mut inodes, mut blocks, position, .. } = pass;
        debug_assert_eq!(position, layout.inodes_end);
        inodes.flush()?;
        blocks.flush()?;
        file.set_len(layout.blocks * BLOCK)?;
        file.write_all_at(&self.first_block(&layout)?, 0)
    }

    fn first_block(&self, layout: &Layout) -> io::Result<Vec<u8>> {
        let too_large = |_| io::Error::new(io::ErrorKind::FileTooLarge, "the image would exceed 16 TiB");
        let mut superblock = SuperBlock {
            magic: U32::new(format::MAGIC),
            feature_compat: U32::new(format::COMPAT_SB_CHECKSUM | format::COMPAT_MTIME),
            block_bits: format::BLOCK_BITS,
            root_nid: U16::new(layout.nids[0] as u16),
            inodes: U64::new(self.tree.len() as u64),
            blocks: U32::new(self.shown_blocks(layout.blocks).map_err(too_large)?),
            feature_incompat: U32::new(format::INCOMPAT_CHUNKED_FILE),
            ..SuperBlock::default()
        };
        superblock.volume_name[..7].copy_from_slice(b"forebay");
        let mut block = vec![0; BLOCK as usize];
        let end = format::SUPER_OFFSET + size_of::<SuperBlock>();
        block[format::SUPER_OFFSET..end].copy_from_slice(superblock.as_bytes());
        // The kernel's crc32c does not invert its result.
        superblock.checksum = U32::new(!crc32c::crc32c(&block[format::SUPER_OFFSET..]));
        block[format::SUPER_OFFSET..end].copy_from_slice(superblock.as_bytes());
        Ok(block)
    }

    /// What statfs shows as the size: the files', because the kernel uses the number for nothing else; no smaller than the image, which is what
    /// tools for EROFS expect, and no larger than can be said (16 TiB).
    fn shown_blocks(&self, image_blocks: u64) -> Result<u32, std::num::TryFromIntError> {
        let entries = self.tree.entries();
        let files = self.tree.files().map(|index| entries.get(index).size.div_ceil(BLOCK));
        let shown = files.fold(0, u64::saturating_add).min(u32::MAX.into()) as u32;
        Ok(shown.max(u32::try_from(image_blocks)?))
    }

    fn xattrs(&self, node: &Node, out: &mut Vec<u8>) {
        let (entries, entry) = (self.tree.entries(), self.tree.entry(node));
        let source = &self.sources[usize::from(entry.source.0)];
        let mut url = source.object_url(&source.prefix);
        url.extend_from_slice(&entries.path(entry)[source.path_bytes_before_key()..]);
        let object = (entry.size > 0).then_some(&entry.id);
        xattr::encode(out, object, &url, entries.etag(entry));
    }

    fn shape(&self, folder: NodeIndex) -> Shape {
        // Where `.` and `..` stand matters for the shape too.
        Shape::of(self.names(folder, &[]).map(|named| named.name))
    }

    /// The names of a folder; with no inode numbers yet, they are all 0.
    fn names<'a>(&'a self, folder: NodeIndex, nids: &'a [u64]) -> impl Iterator<Item = Named<'a>> {
        let nid = |index: NodeIndex| nids.get(index as usize).copied().unwrap_or_default();
        let dots = |name, index| Named { name, nid: nid(index), file_type: format::TYPE_FOLDER };
        let parent = self.tree.node(folder).parent;
        let children = self.tree.children(folder).map(move |(index, node)| Named {
            name: self.tree.name(node),
            nid: nid(index),
            file_type: if node.is_dir { format::TYPE_FOLDER } else { format::TYPE_FILE },
        });
        directory::with_dots(dots(b".", folder), dots(b"..", parent), children)
    }
}

/// How a file's holes are told: chunks as large as need be, and at most 8 TiB.
fn chunk_block_bits(size: u64) -> u32 {
    let blocks = size.div_ceil(BLOCK).max(1);
    blocks.next_power_of_two().trailing_zeros().min(format::MAX_CHUNK_BLOCK_BITS)
}

fn chunk_count(size: u64) -> u64 {
    size.div_ceil(BLOCK << chunk_block_bits(size))
}

/// Where each inode stands.
struct Layout {
    /// A node's inode number.
    nids: Vec<u64>,
    inodes_end: u64,
    /// The first block of folders' data.
    first_block: u64,
    /// All blocks of the image.
    blocks: u64,
}

impl Layout {
    fn of(image: &Image<'_>) -> Self {
        let mut nids = vec![0; image.tree.len()];
        let mut end = BLOCK;
        let mut folder_blocks = 0;
        let mut place = |index: NodeIndex, size: u64, unbroken: bool| {
            let mut start = end.next_multiple_of(INODE_SLOT);
            if unbroken && start % BLOCK + size > BLOCK {
                start = start.next_multiple_of(BLOCK);
            }
            nids[index as usize] = start / INODE_SLOT;
            end = start + size;
        };
        // An inode and the data behind it must be in one block.
        let mut place_folder = |place: &mut dyn FnMut(NodeIndex, u64, bool), index| {
            let shape = image.shape(index);
            folder_blocks += shape.blocks();
            place(index, size_of::<Inode>() as u64 + shape.inline(), true);
        };
        place_folder(&mut place, 0);
        let mut xattrs = Vec::new();
        for folder in image.tree.folders() {
            for (index, node) in image.tree.children(folder) {
                if node.is_dir {
                    place_folder(&mut place, index);
                } else {
                    image.xattrs(node, &mut xattrs);
                    let chunks = chunk_count(image.tree.entry(node).size);
                    let size = size_of::<Inode>() + xattrs.len() + format::NULL_CHUNK.len() * chunks as usize;
                    place(index, size as u64, false);
                }
            }
        }
        let first_block = end.div_ceil(BLOCK);
        Self { nids, inodes_end: end, first_block, blocks: first_block + folder_blocks }
    }
}

struct WritePass<'a> {
    image: &'a Image<'a>,
    layout: &'a Layout,
    inodes: BufWriter<WriteAt<'a>>,
    position: u64,
    blocks: BufWriter<WriteAt<'a>>,
    next_block: u64,
    xattrs: Vec<u8>,
}

impl WritePass<'_> {
    fn file(&mut self, index: NodeIndex, node: &Node) -> io::Result<()> {
        let entry = self.image.tree.entry(node);
        self.image.xattrs(node, &mut self.xattrs);
        let (format, union) = match entry.size {
            0 => (format::FLAT_PLAIN, 0),
            size => (format::CHUNK_BASED, chunk_block_bits(size)),
        };
        let inode = Inode {
            format: U16::new(format),
            xattr_count: U16::new(xattr::count(self.xattrs.len())),
            mode: U16::new(format::S_IFREG | self.image.attributes.file_mode & 0o7777),
            size: U64::new(entry.size),
            union: U32::new(union),
            nlink: U32::new(1),
            ..self.inode(index, entry.mtime)
        };
        self.seek(index)?;
        self.put(inode.as_bytes())?;
        self.inodes.write_all(&self.xattrs)?;
        self.position += self.xattrs.len() as u64;
        for _ in 0..chunk_count(entry.size) {
            self.put(&format::NULL_CHUNK)?;
        }
        Ok(())
    }

    fn folder(&mut self, index: NodeIndex) -> io::Result<()> {
        let facts = self.image.tree.folder_facts(index);
        let shape = self.image.shape(index);
        let blocks = &mut self.blocks;
        let mut last = directory::encode(self.image.names(index, &self.layout.nids), |block| blocks.write_all(block))?;
        if shape.inline() == 0 {
            last.resize(BLOCK as usize, 0);
            self.blocks.write_all(&last)?;
            last.clear();
        }
        let inode = Inode {
            format: U16::new(if last.is_empty() { format::FLAT_PLAIN } else { format::FLAT_INLINE }),
            mode: U16::new(format::S_IFDIR | self.image.attributes.dir_mode & 0o7777),
            size: U64::new(shape.size()),
            // Beyond 32 bits the superblock's count is refused.
            union: U32::new(self.next_block as u32),
            nlink: U32::new(2 + facts.folders),
            ..self.inode(index, facts.mtime)
        };
        self.next_block += shape.blocks();
        self.seek(index)?;
        self.put(inode.as_bytes())?;
        self.put(&last)
    }

    fn inode(&self, index: NodeIndex, mtime: Mtime) -> Inode {
        Inode {
            ino: U32::new(self.layout.nids[index as usize] as u32),
            uid: U32::new(self.image.attributes.uid),
            gid: U32::new(self.image.attributes.gid),
            mtime: I64::new(mtime.seconds),
            mtime_nanos: U32::new(mtime.nanos),
            ..Inode::default()
        }
    }

    /// Fills up to a node's place.
    fn seek(&mut self, index: NodeIndex) -> io::Result<()> {
        let start = self.layout.nids[index as usize] * INODE_SLOT;
        let gap = start - self.position;
        io::copy(&mut io::Read::take(io::repeat(0), gap), &mut self.inodes)?;
        self.position = start;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.inodes.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_grow_with_the_file_so_that_few_are_needed() {
        assert_eq!((chunk_block_bits(1), chunk_count(1)), (0, 1));
        assert_eq!((chunk_block_bits(4097), chunk_count(4097)), (1, 1));
        assert_eq!((chunk_block_bits(8 << 40), chunk_count(8 << 40)), (31, 1));
        assert_eq!((chunk_block_bits((8 << 40) + 1), chunk_count((8 << 40) + 1)), (31, 2));
        assert_eq!(chunk_count(crate::MAX_FILE_BYTES), 128);
        assert_eq!(chunk_count(0), 0);
    }
}
