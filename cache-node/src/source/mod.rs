//! Where data comes from: the [`Source`] trait and its implementations, [`s3`] and [`file`]. A source lists what it has and reads ranges of
//! one exact version of an object; an object that is no longer that version is an error, never other bytes. Counting, retrying, hedging,
//! limits of time and number, and health are this module's neighbours, so that the implementations only speak their protocol.

pub mod attempt;
mod checksum;
pub mod error;
pub mod file;
pub mod hedge;
pub mod limit;
pub mod location;
pub mod receiving;
pub mod retry;
pub mod s3;
pub mod slot;

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use forebay_catalog::Mtime;
use futures::stream::BoxStream;

pub use error::SourceError;

use crate::units::ByteRange;

/// One thing in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// An object that can be read.
    Object {
        /// Its key, with the prefix.
        key: Vec<u8>,
        /// Bytes.
        size: u64,
        /// When it was last changed.
        modified: Mtime,
        /// What names this version; goes into the object's id and into `If-Match`.
        etag: String,
    },
    /// A folder, which is in the tree even if nothing is in it.
    Folder {
        /// Its key, with the prefix, without the last slash.
        key: Vec<u8>,
    },
    /// Something that can't be read.
    Unusable {
        /// Its key.
        key: Vec<u8>,
        /// To be read after the key: "is a symbolic link".
        reason: String,
    },
}

/// One exact version of an object, as a catalog names it.
#[derive(Clone, PartialEq, Eq)]
pub struct ObjectVersion {
    /// Its key, with the prefix.
    pub key: Vec<u8>,
    /// Bytes.
    pub size: u64,
    /// What names the version.
    pub etag: String,
}

impl fmt::Debug for ObjectVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes, etag {})", String::from_utf8_lossy(&self.key), self.size, self.etag)
    }
}

/// Pages of a listing.
pub type Listing = BoxStream<'static, Result<Vec<Listed>, SourceError>>;

/// The bytes of a range.
pub type Body = BoxStream<'static, Result<Bytes, SourceError>>;

/// A store of objects.
#[async_trait]
pub trait Source: Send + Sync + fmt::Debug {
    /// Everything below the source's prefix, in any order, in pages of bounded size.
    fn list(&self) -> Listing;

    /// Opens a range of an object. Fails when the object is not this very version; the body may fail or be short later.
    async fn get(&self, object: &ObjectVersion, range: ByteRange) -> Result<Body, SourceError>;

    /// What messages call an object.
    fn describe(&self, object: &ObjectVersion) -> String {
        format!("{object:?}")
    }
}
