//! Keys that can't be files of the tree: why, how many, and the first of them by name, so that a summary is the same whatever the order
//! in which a listing arrived and however many were left out.

use std::collections::BinaryHeap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{MAX_ETAG_BYTES, MAX_FILE_BYTES, MAX_NAME_BYTES, MAX_PATH_BYTES};

/// How many skipped keys a summary names.
const NAMED: usize = 20;

/// Why a key is not in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SkipReason {
    /// `a//b`, `/a`.
    EmptySegment,
    /// `a/../b`, `./a`.
    DotSegment,
    /// A zero byte.
    NulByte,
    /// A name of more than [`MAX_NAME_BYTES`].
    NameTooLong,
    /// A path of more than [`MAX_PATH_BYTES`].
    PathTooLong,
    /// The key is a file's and a folder's; the folder is in the tree.
    FileAndFolder,
    /// Another source, earlier in the list, has a file at the same path.
    DuplicatePath,
    /// A key that ends in `/` and has content.
    FolderWithContent,
    /// The key does not begin with the source's prefix.
    OutsidePrefix,
    /// More than [`MAX_FILE_BYTES`].
    TooLarge,
    /// An ETag of more than [`MAX_ETAG_BYTES`].
    EtagTooLong,
    /// What the lister says.
    Other(String),
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptySegment => f.write_str("has an empty path segment"),
            Self::DotSegment => f.write_str("has a path segment . or .."),
            Self::NulByte => f.write_str("has a NUL byte"),
            Self::NameTooLong => write!(f, "has a name longer than {MAX_NAME_BYTES} bytes"),
            Self::PathTooLong => write!(f, "has a path longer than {MAX_PATH_BYTES} bytes"),
            Self::FileAndFolder => f.write_str("is a folder too"),
            Self::DuplicatePath => f.write_str("has the path of a file of an earlier mount"),
            Self::FolderWithContent => f.write_str("ends in / but has content"),
            Self::OutsidePrefix => f.write_str("is not below the prefix"),
            Self::TooLarge => write!(f, "is larger than {} TiB", MAX_FILE_BYTES >> 40),
            Self::EtagTooLong => write!(f, "has an ETag longer than {MAX_ETAG_BYTES} bytes"),
            Self::Other(reason) => f.write_str(reason),
        }
    }
}

/// One key that is not in the tree.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SkippedKey {
    /// The URL of the object; bytes that are not UTF-8 are replaced.
    pub url: String,
    /// Why, to be read after the URL: "has an empty path segment".
    pub reason: String,
}

/// Counts all skipped keys and keeps the first few by name.
#[derive(Debug, Default)]
pub(crate) struct SkipLog {
    count: u64,
    first: BinaryHeap<SkippedKey>,
}

impl SkipLog {
    pub(crate) fn add(&mut self, url: &[u8], reason: &SkipReason) {
        self.count += 1;
        let url = String::from_utf8_lossy(url).into_owned();
        if self.first.len() == NAMED && self.first.peek().is_some_and(|last| last.url < url) {
            return;
        }
        self.first.push(SkippedKey { url, reason: reason.to_string() });
        if self.first.len() > NAMED {
            self.first.pop();
        }
    }

    /// The count, and the first by name.
    pub(crate) fn finish(self) -> (u64, Vec<SkippedKey>) {
        (self.count, self.first.into_sorted_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_counted_and_the_same_twenty_named_in_any_order() {
        let names: Vec<_> = (0..50).map(|i| format!("s3://b/{i:02}")).collect();
        let (mut forward, mut backward) = (SkipLog::default(), SkipLog::default());
        for name in &names {
            forward.add(name.as_bytes(), &SkipReason::NulByte);
        }
        for name in names.iter().rev() {
            backward.add(name.as_bytes(), &SkipReason::NulByte);
        }
        let (count, first) = forward.finish();
        assert_eq!(count, 50);
        assert_eq!(first.iter().map(|key| &key.url).collect::<Vec<_>>(), names[..20].iter().collect::<Vec<_>>());
        assert_eq!((count, first), backward.finish());
    }
}
