//! The entries of folders: found by name with a binary search over the blocks and then in one, or read in order from any position.

use std::cmp::Ordering;

use zerocopy::FromBytes;

use super::{Damaged, TreeImage, TreeNode};
use crate::MAX_NAME_BYTES;
use crate::erofs::format::{BLOCK, Dirent, FLAT_INLINE, TYPE_FILE, TYPE_FOLDER};

const ENTRY: usize = size_of::<Dirent>();

/// One name of a folder, `.` and `..` among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeEntry<'a> {
    /// The name's bytes.
    pub name: &'a [u8],
    /// Number of the inode.
    pub nid: u64,
    /// Whether it is a folder.
    pub is_dir: bool,
    /// Where reading goes on after this entry.
    pub next: u64,
}

/// One block of a folder's entries: an array of them, and behind it their names.
struct Block<'a> {
    folder: &'a TreeNode,
    bytes: &'a [u8],
    count: usize,
}

impl TreeImage {
    /// The inode of a name in a folder.
    pub fn lookup(&self, folder: &TreeNode, name: &[u8]) -> Result<Option<u64>, Damaged> {
        // The last block that does not begin behind the name.
        let (mut low, mut high) = (0, block_count(folder)?);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.block(folder, middle)?.entry(0)?.0 <= name {
                low = middle;
            } else {
                high = middle;
            }
        }
        let block = self.block(folder, low)?;
        let (mut from, mut to) = (0, block.count);
        while from < to {
            let middle = from + (to - from) / 2;
            let (found, dirent) = block.entry(middle)?;
            match found.cmp(name) {
                Ordering::Less => from = middle + 1,
                Ordering::Greater => to = middle,
                Ordering::Equal => return Ok(Some(dirent.nid.get())),
            }
        }
        Ok(None)
    }

    /// The entries of a folder from a position on: 0, or an entry's [`TreeEntry::next`]. Ends after the first that makes no sense.
    pub fn entries<'a>(
        &'a self,
        folder: &'a TreeNode,
        position: u64,
    ) -> impl Iterator<Item = Result<TreeEntry<'a>, Damaged>> {
        let mut at = Some((position / BLOCK, (position % BLOCK) as usize / ENTRY));
        let mut current = None;
        std::iter::from_fn(move || {
            let (number, index) = at?;
            let entry = self.entry_at(folder, &mut current, number, index);
            at = match &entry {
                Ok(Some(entry)) => Some((entry.next / BLOCK, (entry.next % BLOCK) as usize / ENTRY)),
                Ok(None) | Err(_) => None,
            };
            entry.transpose()
        })
    }

    /// The entry at a place, or the first of the next block if the place is behind the block's last.
    fn entry_at<'a>(
        &'a self,
        folder: &'a TreeNode,
        current: &mut Option<(u64, Block<'a>)>,
        number: u64,
        index: usize,
    ) -> Result<Option<TreeEntry<'a>>, Damaged> {
        let (mut number, mut index) = (number, index);
        let blocks = block_count(folder)?;
        while number < blocks {
            let block = match current {
                Some((held, block)) if *held == number => block,
                _ => &current.insert((number, self.block(folder, number)?)).1,
            };
            if index < block.count {
                let (name, dirent) = block.entry(index)?;
                let is_dir = match dirent.file_type {
                    TYPE_FILE => false,
                    TYPE_FOLDER => true,
                    _ => return Err(folder.damaged("an entry is neither a file nor a folder")),
                };
                let next = if index + 1 < block.count {
                    number * BLOCK + ((index + 1) * ENTRY) as u64
                } else {
                    (number + 1) * BLOCK
                };
                return Ok(Some(TreeEntry { name, nid: dirent.nid.get(), is_dir, next }));
            }
            (number, index) = (number + 1, 0);
        }
        Ok(None)
    }

    fn block<'a>(&'a self, folder: &'a TreeNode, number: u64) -> Result<Block<'a>, Damaged> {
        let length = (folder.size - number * BLOCK).min(BLOCK) as usize;
        let (xattrs, xattr_bytes) = folder.xattrs;
        let start = if folder.layout == FLAT_INLINE && number + 1 == block_count(folder)? {
            Some(xattrs + xattr_bytes)
        } else {
            usize::try_from((folder.block + number) * BLOCK).ok()
        };
        let bytes = start.and_then(|start| self.map.get(start..)?.get(..length));
        let bytes = bytes.ok_or(folder.damaged("its entries lie beyond the end"))?;
        let mut block = Block { folder, bytes, count: 1 };
        // The names begin where the entries end.
        let first = usize::from(block.dirent(0)?.name_offset.get());
        block.count = first / ENTRY;
        if block.count == 0 || first % ENTRY != 0 || first > length {
            return Err(folder.damaged("a block does not say how many entries it has"));
        }
        Ok(block)
    }
}

/// Blocks of a folder's data; a folder has at least `.` and `..`.
fn block_count(folder: &TreeNode) -> Result<u64, Damaged> {
    if !folder.is_dir() || folder.size == 0 {
        return Err(folder.damaged("it has no entries"));
    }
    Ok(folder.size.div_ceil(BLOCK))
}

impl<'a> Block<'a> {
    fn dirent(&self, index: usize) -> Result<Dirent, Damaged> {
        let bytes = self.bytes.get(index * ENTRY..).and_then(|bytes| Dirent::read_from_prefix(bytes).ok());
        bytes.map(|(dirent, _)| dirent).ok_or(self.folder.damaged("a block ends in an entry"))
    }

    /// An entry and its name.
    fn entry(&self, index: usize) -> Result<(&'a [u8], Dirent), Damaged> {
        let dirent = self.dirent(index)?;
        let start = usize::from(dirent.name_offset.get());
        let name = if index + 1 < self.count {
            let end = usize::from(self.dirent(index + 1)?.name_offset.get());
            self.bytes.get(start..end)
        } else {
            // The last block is as long as its names, the others are filled up with zeros.
            let rest = self.bytes.get(start..);
            rest.map(|rest| rest.split(|byte| *byte == 0).next().unwrap_or_default())
        };
        let good =
            |name: &&[u8]| (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.contains(&b'/') && !name.contains(&0);
        let name = name.filter(good).ok_or(self.folder.damaged("an entry has no name"))?;
        Ok((name, dirent))
    }
}
