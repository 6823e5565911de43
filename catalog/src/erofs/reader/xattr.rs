//! A node's extended attributes, and which object holds a file's content.

use super::{Damaged, TreeImage, TreeNode};
use crate::ObjectId;
use crate::erofs::xattr::{HEADER, INDEX_TRUSTED, INDEX_USER, REDIRECT};

/// Bytes before an attribute's name.
const ENTRY: usize = 4;

/// An extended attribute that users see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Xattr<'a> {
    /// Its name behind `user.`.
    pub name: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

struct Entry<'a> {
    index: u8,
    name: &'a [u8],
    value: &'a [u8],
}

impl TreeImage {
    /// The object that holds a file's content; none where there is no content.
    pub fn object(&self, file: &TreeNode) -> Result<Option<ObjectId>, Damaged> {
        if file.is_dir() || file.size == 0 {
            return Ok(None);
        }
        for entry in self.xattr_entries(file) {
            let entry = entry?;
            if (entry.index, entry.name) == (INDEX_TRUSTED, REDIRECT) {
                // `/ab/cdef...`
                let path = entry.value.strip_prefix(b"/").and_then(|path| path.split_at_checked(2));
                let id =
                    path.and_then(|(folder, name)| ObjectId::from_folder_and_name(folder, name.strip_prefix(b"/")?));
                return id.map(Some).ok_or(file.damaged("its object is none"));
            }
        }
        Err(file.damaged("it names no object"))
    }

    /// The `user.` attributes of a node.
    pub fn user_xattrs<'a>(&'a self, node: &'a TreeNode) -> impl Iterator<Item = Result<Xattr<'a>, Damaged>> {
        self.xattr_entries(node).filter_map(|entry| match entry {
            Ok(entry) if entry.index == INDEX_USER => Some(Ok(Xattr { name: entry.name, value: entry.value })),
            Ok(_) => None,
            Err(damaged) => Some(Err(damaged)),
        })
    }

    /// Ends after the first that makes no sense.
    fn xattr_entries<'a>(&'a self, node: &'a TreeNode) -> impl Iterator<Item = Result<Entry<'a>, Damaged>> {
        let (start, length) = node.xattrs;
        let bytes = self.map.get(start..).and_then(|bytes| bytes.get(HEADER.min(length)..length));
        let mut rest = bytes.ok_or(node.damaged("its attributes lie beyond the end"));
        std::iter::from_fn(move || {
            let bytes = match rest {
                Ok([]) => return None,
                Ok(bytes) => bytes,
                Err(damaged) => {
                    rest = Ok(&[]);
                    return Some(Err(damaged));
                }
            };
            let split = split_entry(bytes);
            rest = Ok(split.as_ref().map_or(&[][..], |(_, rest)| rest));
            Some(split.map(|(entry, _)| entry).ok_or(node.damaged("an attribute ends beyond the others")))
        })
    }
}

/// The first entry, and what follows it.
fn split_entry(bytes: &[u8]) -> Option<(Entry<'_>, &[u8])> {
    let (&[name_bytes, index, low, high], _) = bytes.split_first_chunk::<ENTRY>()?;
    let name_end = ENTRY + usize::from(name_bytes);
    let end = name_end + usize::from(u16::from_le_bytes([low, high]));
    let (name, value) = (bytes.get(ENTRY..name_end)?, bytes.get(name_end..end)?);
    Some((Entry { index, name, value }, bytes.get(end.next_multiple_of(ENTRY)..)?))
}
