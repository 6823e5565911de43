//! Where a catalog's files come from and which path a key has in the tree. Mount paths and prefixes are brought into one form here, once;
//! everything else relies on it. A key that can't be a file gets a [`SkipReason`], never an error.

use serde::{Deserialize, Serialize};

use crate::{MAX_NAME_BYTES, MAX_PATH_BYTES, SkipReason};

/// The position of a source in [`crate::CatalogOptions::sources`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceIndex(pub u16);

/// A file's time of modification, as the source tells it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mtime {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// Nanoseconds of the second, below 10^9.
    pub nanos: u32,
}

/// One source of a tree: a bucket or a folder, and where it is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogSource {
    /// Where the source's files appear in the tree: `/` or `/labels`. Mount paths may nest and may be equal.
    pub mount_path: String,
    /// The URL of the bucket or root folder, without the prefix: `s3://bucket`. With `/` and a key it is the object's URL.
    pub url: String,
    /// What the objects' ids are made of: endpoint and bucket, or the root folder.
    pub identity: String,
    /// The part of each key that is not in its path: empty, or a folder with its `/` (which is added if it lacks).
    #[serde(with = "hex_bytes")]
    pub prefix: Vec<u8>,
}

/// Owner and modes of everything in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeAttributes {
    /// Owner of files and folders.
    pub uid: u32,
    /// Group of files and folders.
    pub gid: u32,
    /// Permission bits of files, such as `0o444`.
    pub file_mode: u16,
    /// Permission bits of folders, such as `0o555`.
    pub dir_mode: u16,
}

impl CatalogSource {
    /// The source with its mount path and prefix in their one form, or why it can't be used.
    pub(crate) fn normalized(mut self) -> Result<Self, String> {
        let path = self.mount_path.trim_matches('/');
        if !path.is_empty() {
            check_segments(path.as_bytes()).map_err(|reason| format!("mount path {:?} {reason}", self.mount_path))?;
        }
        self.mount_path = format!("/{path}");
        if !self.prefix.is_empty() && !self.prefix.ends_with(b"/") {
            self.prefix.push(b'/');
        }
        if self.prefix.len() > MAX_PATH_BYTES || self.url.len() > MAX_PATH_BYTES {
            return Err(format!("URL or prefix of {} is longer than {MAX_PATH_BYTES} bytes", self.url));
        }
        Ok(self)
    }

    /// The mount's own path in the tree, without the leading slash: empty for `/`.
    pub(crate) fn mount_point(&self) -> &[u8] {
        self.mount_path.as_bytes().strip_prefix(b"/").unwrap_or(self.mount_path.as_bytes())
    }

    /// How many bytes of a path in the tree come before the part that is the key's.
    pub(crate) fn path_bytes_before_key(&self) -> usize {
        let mount_point = self.mount_point().len();
        if mount_point == 0 { 0 } else { mount_point + 1 }
    }

    /// Puts the path in the tree of a file's key (or of a folder's, without its last slash) into `path`.
    pub(crate) fn path_of_key(&self, key: &[u8], path: &mut Vec<u8>) -> Result<(), SkipReason> {
        let rest = key.strip_prefix(self.prefix.as_slice()).ok_or(SkipReason::OutsidePrefix)?;
        check_segments(rest)?;
        self.join(rest, path);
        if path.len() > MAX_PATH_BYTES { Err(SkipReason::PathTooLong) } else { Ok(()) }
    }

    /// Whether a file can have this key, for tables that others wrote.
    pub(crate) fn accepts_key(&self, key: &[u8]) -> bool {
        let rest = key.strip_prefix(self.prefix.as_slice());
        rest.is_some_and(|rest| {
            self.path_bytes_before_key().saturating_add(rest.len()) <= MAX_PATH_BYTES && check_segments(rest).is_ok()
        })
    }

    /// The path in the tree of a key, for keys that are known to be good; none if the key is not below the prefix.
    pub(crate) fn known_path_of_key(&self, key: &[u8]) -> Option<Vec<u8>> {
        let mut path = Vec::new();
        self.join(key.strip_prefix(self.prefix.as_slice())?, &mut path);
        Some(path)
    }

    fn join(&self, rest: &[u8], path: &mut Vec<u8>) {
        path.clear();
        if !self.mount_point().is_empty() {
            path.extend_from_slice(self.mount_point());
            path.push(b'/');
        }
        path.extend_from_slice(rest);
    }

    /// The URL of an object: the source's URL, a slash, and the key as it is.
    pub fn object_url(&self, key: &[u8]) -> Vec<u8> {
        let mut url = self.url.trim_end_matches('/').as_bytes().to_vec();
        url.push(b'/');
        url.extend_from_slice(key);
        url
    }
}

fn check_segments(path: &[u8]) -> Result<(), SkipReason> {
    if path.contains(&0) {
        return Err(SkipReason::NulByte);
    }
    for segment in path.split(|byte| *byte == b'/') {
        match segment {
            b"" => return Err(SkipReason::EmptySegment),
            b"." | b".." => return Err(SkipReason::DotSegment),
            _ if segment.len() > MAX_NAME_BYTES => return Err(SkipReason::NameTooLong),
            _ => {}
        }
    }
    Ok(())
}

/// Keys are bytes and JSON is not, so a prefix is written as hex.
mod hex_bytes {
    use std::fmt::Write;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(bytes.len() * 2);
        for byte in bytes {
            let _ = write!(text, "{byte:02x}");
        }
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digit = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
        let pairs = text.as_bytes().chunks(2);
        pairs
            .map(|pair| match pair {
                [a, b] => Some(digit(*a)? << 4 | digit(*b)?),
                _ => None,
            })
            .collect::<Option<_>>()
            .ok_or_else(|| de::Error::custom("a prefix must be hex digits, two a byte"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(mount_path: &str, prefix: &str) -> CatalogSource {
        let source = CatalogSource {
            mount_path: mount_path.into(),
            url: "s3://bucket/".into(),
            identity: "id".into(),
            prefix: prefix.into(),
        };
        source.normalized().unwrap()
    }

    fn path(source: &CatalogSource, key: &str) -> Result<String, SkipReason> {
        let mut path = b"left over".to_vec();
        source.path_of_key(key.as_bytes(), &mut path).map(|()| String::from_utf8(path).unwrap())
    }

    #[test]
    fn a_path_is_the_mount_path_and_the_key_without_the_prefix() {
        assert_eq!(path(&source("/", ""), "a/b").unwrap(), "a/b");
        assert_eq!(path(&source("labels/", "train/x"), "train/x/b").unwrap(), "labels/b");
        assert_eq!(path(&source("/a/b", "p/"), "p/c/d").unwrap(), "a/b/c/d");
        assert_eq!(source("/", "p").object_url(b"p/c"), b"s3://bucket/p/c");
    }

    #[test]
    fn keys_that_can_not_be_files_say_why() {
        let root = source("/", "p");
        assert_eq!(path(&root, "pq/a"), Err(SkipReason::OutsidePrefix));
        assert_eq!(path(&root, "p/a//b"), Err(SkipReason::EmptySegment));
        assert_eq!(path(&root, "p/"), Err(SkipReason::EmptySegment));
        assert_eq!(path(&root, "p/../b"), Err(SkipReason::DotSegment));
        assert_eq!(path(&root, "p/a/."), Err(SkipReason::DotSegment));
        assert_eq!(path(&root, "p/a\0"), Err(SkipReason::NulByte));
        assert_eq!(path(&root, &format!("p/{}", "n".repeat(256))), Err(SkipReason::NameTooLong));
        assert_eq!(path(&root, &format!("p{}", "/n".repeat(2049))), Err(SkipReason::PathTooLong));
        assert!(path(&root, &format!("p/{}", "n".repeat(255))).is_ok());
    }

    #[test]
    fn a_source_reads_back_from_json_with_any_bytes_in_its_prefix() {
        let mut source = source("/x", "");
        source.prefix = vec![0xff, b'a', b'/'];
        let json = serde_json::to_string(&source).unwrap();
        assert!(json.contains("\"ff612f\""), "{json}");
        assert_eq!(serde_json::from_str::<CatalogSource>(&json).unwrap(), source);
        assert!(serde_json::from_str::<CatalogSource>(&json.replace("ff612f", "ff6")).is_err());
        assert!(serde_json::from_str::<CatalogSource>(&json.replace("ff612f", "é")).is_err());
    }

    #[test]
    fn a_mount_path_that_leaves_the_tree_is_refused() {
        for mount_path in ["/../x", "/a//b", "/a/./b", "/a\0b"] {
            let source = CatalogSource {
                mount_path: mount_path.into(),
                url: String::new(),
                identity: String::new(),
                prefix: vec![],
            };
            assert!(source.normalized().is_err(), "{mount_path}");
        }
    }
}
