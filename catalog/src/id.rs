//! The identities of the architecture page: [`ObjectId`], which names an object's bytes wherever it is mounted, and [`CatalogId`], which
//! names a listing. Both are 16 bytes, printed as 32 lower-case hex digits. An object id is also a path (`ab/cdef...`) and a FUSE node
//! id, which therefore mean the same to every process without a table.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A text that is not 32 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id of 32 hex digits")]
pub struct ParseIdError(String);

/// Names the bytes of one object of one source: source, key, ETag and size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId([u8; 16]);

/// Names one version of a dataset's tree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CatalogId([u8; 16]);

const TOP_BIT: u64 = 1 << 63;

impl ObjectId {
    /// The first half of blake3 over the four parts, each preceded by its length as a little-endian `u64`.
    ///
    /// `source_identity` is the source's endpoint and bucket (or the root folder), not its credentials and not the prefix.
    pub fn new(source_identity: &str, key: &[u8], etag: &str, size: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in [source_identity.as_bytes(), key, etag.as_bytes(), &size.to_le_bytes()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let mut id = [0; 16];
        hasher.finalize_xof().fill(&mut id);
        Self(id)
    }

    /// The path of the object below a folder of objects: `ab/cdef...`, 2 and 30 digits.
    pub fn relative_path(&self) -> String {
        let mut text = self.to_string();
        text.insert(2, '/');
        text
    }

    /// The id that a folder's and a file's name spell, `ab` and `cdef...`; lower case only, since each object has one path.
    pub fn from_folder_and_name(folder: &[u8], name: &[u8]) -> Option<Self> {
        let (folder, name): (&[u8; 2], &[u8; 30]) = (folder.try_into().ok()?, name.try_into().ok()?);
        let mut digits = [0; 32];
        digits[..2].copy_from_slice(folder);
        digits[2..].copy_from_slice(name);
        if digits.iter().any(u8::is_ascii_uppercase) {
            return None;
        }
        decode(&digits).map(Self)
    }

    /// The FUSE node id: the first 8 bytes, big-endian, with the top bit set, which keeps it apart from the folders' (1 to 257).
    pub fn fuse_node_id(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0[..8]);
        u64::from_be_bytes(first) | TOP_BIT
    }

    /// The order of a side table: by FUSE node id, so that one search finds either; then by id.
    pub(crate) fn table_order(&self) -> (u64, [u8; 16]) {
        (self.fuse_node_id(), self.0)
    }
}

fn encode(bytes: [u8; 16]) -> [u8; 32] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 32];
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    text
}

fn decode(text: &[u8]) -> Option<[u8; 16]> {
    let digit = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
    let text: &[u8; 32] = text.try_into().ok()?;
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

macro_rules! sixteen_bytes_as_hex {
    ($name:ident) => {
        impl $name {
            /// The id with these bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// The id's bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(std::str::from_utf8(&encode(self.0)).unwrap_or_default())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                decode(text.as_bytes()).map(Self).ok_or_else(|| ParseIdError(text.to_owned()))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

sixteen_bytes_as_hex!(ObjectId);
sixteen_bytes_as_hex!(CatalogId);

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> ObjectId {
        ObjectId::from_bytes([0x0a, 0xbc, 0xde, 0xf0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 255])
    }

    #[test]
    fn an_id_reads_back_from_each_of_its_forms() {
        let id = example();
        assert_eq!(id.to_string(), "0abcdef00102030405060708090a0bff");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.relative_path(), "0a/bcdef00102030405060708090a0bff");
        let path = id.relative_path();
        let (folder, name) = path.split_once('/').unwrap();
        assert_eq!(ObjectId::from_folder_and_name(folder.as_bytes(), name.as_bytes()), Some(id));
        assert_eq!(id.fuse_node_id(), 0x8abc_def0_0102_0304);
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, "\"0abcdef00102030405060708090a0bff\"");
        assert_eq!(serde_json::from_str::<ObjectId>(&json).unwrap(), id);
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        for text in
            ["", "0abc", "0abcdef00102030405060708090a0bfg", "0abcdef00102030405060708090a0bff0", "ééééééééééééééé0"]
        {
            assert!(text.parse::<ObjectId>().is_err(), "{text}");
        }
        assert_eq!(ObjectId::from_folder_and_name(b"0A", b"bcdef00102030405060708090a0bff"), None);
        assert_eq!(ObjectId::from_folder_and_name(b"0a", b"bcdef"), None);
        assert_eq!(ObjectId::from_folder_and_name(b"0a/", b"cdef00102030405060708090a0bff"), None);
    }

    #[test]
    fn every_part_counts_and_parts_do_not_run_together() {
        let ids = [
            ObjectId::new("s3", b"key", "etag", 1),
            ObjectId::new("s3", b"key", "etag", 2),
            ObjectId::new("s3", b"keye", "tag", 1),
            ObjectId::new("s3k", b"ey", "etag", 1),
            ObjectId::new("s3", b"key", "etah", 1),
        ];
        for (i, a) in ids.iter().enumerate() {
            assert!(ids[i + 1..].iter().all(|b| a != b));
        }
    }

    #[test]
    fn the_hash_stays_what_other_versions_have_cached_under() {
        assert_eq!(
            ObjectId::new("https://s3.example/bucket", b"a/b", "\"e\"", 7).to_string(),
            "8102eb05976da8c1aef2c8331ba8b4bc"
        );
    }
}
