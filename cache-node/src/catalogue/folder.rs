//! Catalogs on this node's disk. One is written beside and renamed in, so it is there whole or not at all.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use forebay_catalog::{Catalog, CatalogError, CatalogId};
use forebay_protocol::layout::CacheLayout;

/// Begins the names of folders that are still being written.
const DRAFT: &str = ".draft-";

/// The catalogs' folder of a cache folder.
#[derive(Clone, Debug)]
pub struct CatalogFolders {
    layout: CacheLayout,
}

/// A folder that is being written; removed when dropped.
#[derive(Debug)]
pub struct Draft {
    path: PathBuf,
}

impl Draft {
    /// Where to write.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "an unfinished catalog could not be removed");
        }
    }
}

impl CatalogFolders {
    /// Makes the folder and removes what an earlier run left unfinished.
    pub fn open(layout: &CacheLayout) -> io::Result<Self> {
        let this = Self { layout: layout.clone() };
        std::fs::create_dir_all(layout.catalogs())?;
        for uid in this.datasets()? {
            for name in names(&layout.dataset_catalogs(&uid))? {
                if name.starts_with(DRAFT) {
                    std::fs::remove_dir_all(layout.dataset_catalogs(&uid).join(name))?;
                }
            }
        }
        Ok(this)
    }

    /// UIDs of the datasets that have a folder here.
    pub fn datasets(&self) -> io::Result<Vec<String>> {
        names(&self.layout.catalogs())
    }

    /// A new, empty folder.
    pub fn draft(&self, uid: &str) -> io::Result<Draft> {
        let path = self.layout.dataset_catalogs(uid).join(format!("{DRAFT}{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&path)?;
        Ok(Draft { path })
    }

    /// Makes a draft, synced already, the dataset's catalog.
    pub fn publish(&self, uid: &str, draft: Draft, id: CatalogId) -> Result<Arc<Catalog>, PublishError> {
        let folder = self.layout.catalog(uid, &id.to_string());
        if !folder.exists() {
            std::fs::rename(&draft.path, &folder)?;
            std::fs::File::open(self.layout.dataset_catalogs(uid))?.sync_all()?;
        }
        drop(draft);
        Ok(Arc::new(Catalog::open(&folder)?))
    }

    /// The catalogs of a dataset that can be opened; others are removed.
    pub fn existing(&self, uid: &str) -> io::Result<Vec<Arc<Catalog>>> {
        let mut catalogs = Vec::new();
        for name in names(&self.layout.dataset_catalogs(uid))? {
            let folder = self.layout.catalog(uid, &name);
            match Catalog::open(&folder) {
                Ok(catalog) if catalog.id().to_string() == name => catalogs.push(Arc::new(catalog)),
                _ if name.starts_with(DRAFT) => {}
                other => {
                    let cause = other.err().map_or_else(|| "it has another id".to_owned(), |error| error.to_string());
                    tracing::error!(folder = %folder.display(), cause, "a catalog is damaged; it is made anew");
                    std::fs::remove_dir_all(folder)?;
                }
            }
        }
        Ok(catalogs)
    }

    /// Removes the catalogs of a dataset but one. Who has a file of them open or mounted keeps it.
    pub fn remove_others(&self, uid: &str, keep: Option<CatalogId>) -> io::Result<()> {
        let keep = keep.map(|id| id.to_string());
        for name in names(&self.layout.dataset_catalogs(uid))? {
            if Some(&name) != keep.as_ref() && !name.starts_with(DRAFT) {
                std::fs::remove_dir_all(self.layout.catalog(uid, &name))?;
            }
        }
        Ok(())
    }

    /// Removes all that there is of a dataset.
    pub fn remove(&self, uid: &str) -> io::Result<()> {
        match std::fs::remove_dir_all(self.layout.dataset_catalogs(uid)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Why a catalog could not be put in its place.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The disk.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What was written can't be read.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// Names in a folder, those that are text; none if there is no folder.
fn names(folder: &std::path::Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().into_string().ok()));
    Ok(names.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
}
