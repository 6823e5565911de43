//! A catalog's folder, opened. [`Catalog::open`] is cheap and trusts the folder, which is written beside and renamed in; [`Catalog::verify`]
//! reads everything, for a folder that has just come from a peer.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::map::Map;
use crate::{CATALOG_IMAGE, CATALOG_SUMMARY, CATALOG_TABLE, CatalogId, CatalogSummary, ObjectTable, TableError};

/// Why a folder can't be used as a catalog; each names the file.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// A file is missing or can't be read.
    #[error("reading {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The summary is no summary.
    #[error("{path} is damaged")]
    Summary {
        /// The file.
        path: PathBuf,
        /// What does not parse.
        source: serde_json::Error,
    },
    /// The side table can't be used.
    #[error("{path} can't be used")]
    Table {
        /// The file.
        path: PathBuf,
        /// Why.
        source: TableError,
    },
    /// Summary and table are not of one catalog, or not of the one expected.
    #[error("{path} belongs to catalog {found}, not to {expected}")]
    OtherCatalog {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: CatalogId,
        /// What it should say.
        expected: CatalogId,
    },
    /// The image is not the one that the table was written with.
    #[error("{path} is damaged: it does not have the digest that the side table tells")]
    Image {
        /// The file.
        path: PathBuf,
    },
}

/// An open catalog.
#[derive(Debug)]
pub struct Catalog {
    folder: PathBuf,
    summary: CatalogSummary,
    table: ObjectTable,
}

impl Catalog {
    /// Opens the catalog in a folder: reads the summary, maps the table, and sees that they belong together and the image is there.
    pub fn open(folder: &Path) -> Result<Self, CatalogError> {
        let path = folder.join(CATALOG_SUMMARY);
        let bytes = fs::read(&path).map_err(|source| CatalogError::Io { path: path.clone(), source })?;
        let summary: CatalogSummary =
            serde_json::from_slice(&bytes).map_err(|source| CatalogError::Summary { path, source })?;
        let path = folder.join(CATALOG_TABLE);
        let table = ObjectTable::open(&path).map_err(|source| CatalogError::Table { path: path.clone(), source })?;
        if table.id() != summary.id {
            return Err(CatalogError::OtherCatalog { path, found: table.id(), expected: summary.id });
        }
        let catalog = Self { folder: folder.to_owned(), summary, table };
        let path = catalog.image_path();
        fs::metadata(&path).map_err(|source| CatalogError::Io { path, source })?;
        Ok(catalog)
    }

    /// Opens a catalog that has been transferred, having computed anew that table and image are those of the id.
    ///
    /// The summary is not covered by the id, apart from naming it: its counts are the sender's word.
    pub fn verify(folder: &Path, expected: CatalogId) -> Result<Self, CatalogError> {
        let catalog = Self::open(folder)?;
        let path = folder.join(CATALOG_TABLE);
        catalog.table.verify().map_err(|source| CatalogError::Table { path: path.clone(), source })?;
        if catalog.id() != expected {
            return Err(CatalogError::OtherCatalog { path, found: catalog.id(), expected });
        }
        let path = catalog.image_path();
        let digest = file_digest(&path).map_err(|source| CatalogError::Io { path: path.clone(), source })?;
        if digest == catalog.table.image_digest() { Ok(catalog) } else { Err(CatalogError::Image { path }) }
    }

    /// The catalog's id.
    pub fn id(&self) -> CatalogId {
        self.summary.id
    }

    /// The catalog's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The image, to be mounted as `erofs`: without a loop device from Linux 6.12 on, unless it lies on tmpfs, which the kernel refuses
    /// for image files with ENOTBLK.
    pub fn image_path(&self) -> PathBuf {
        self.folder.join(CATALOG_IMAGE)
    }

    /// What the catalog holds, in numbers.
    pub fn summary(&self) -> &CatalogSummary {
        &self.summary
    }

    /// The side table.
    pub fn table(&self) -> &ObjectTable {
        &self.table
    }
}

fn file_digest(path: &Path) -> io::Result<[u8; 32]> {
    Ok(*blake3::hash(&Map::of(&File::open(path)?)?).as_bytes())
}
