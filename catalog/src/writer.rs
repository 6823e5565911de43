//! Makes a catalog of a listing. Entries come in any order, one at a time, and are not read again by the caller, so that a writer
//! that spills to disk can take this one's place. A key that can't be a file is left out and counted; what remains is decided by what was listed alone, never by
//! the order or by the node that lists.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::entries::{Entries, NewFile};
use crate::erofs::Image;
use crate::map::Map;
use crate::skip::SkipLog;
use crate::table::{Collision, TableBuilder};
use crate::tree::Tree;
use crate::{
    CATALOG_IMAGE, CATALOG_SUMMARY, CATALOG_TABLE, CatalogSource, CatalogSummary, MAX_ETAG_BYTES, MAX_FILE_BYTES,
    Mtime, ObjectId, SkipReason, SourceIndex, TreeAttributes,
};

/// What a tree is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogOptions {
    /// The mounts, in the order of the Dataset: of two files at one path, the earlier mount's is taken.
    pub sources: Vec<CatalogSource>,
    /// Owner and modes.
    pub attributes: TreeAttributes,
}

/// Why no catalog could be made.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A source that can't be mounted where it says.
    #[error("{0}")]
    Source(String),
    /// More than 65,535 sources.
    #[error("a catalog can't have more than 65,535 sources")]
    TooManySources,
    /// More than 2^31 entries.
    #[error("a catalog can't have more than 2,147,483,648 entries")]
    TooManyEntries,
    /// An entry of a source that the options do not have.
    #[error("there is no source {0:?}")]
    UnknownSource(SourceIndex),
    /// Two objects that agree in the 63 bits of their FUSE node ids.
    #[error("{0} and {1} have the same FUSE node id; rename one of them")]
    Collision(String, String),
    /// A file can't be written.
    #[error("writing {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Takes a listing, then writes the catalog.
#[derive(Debug)]
pub struct CatalogWriter {
    sources: Vec<CatalogSource>,
    attributes: TreeAttributes,
    entries: Entries,
    skipped: SkipLog,
    began: i64,
    path: Vec<u8>,
}

const MAX_ENTRIES: usize = 1 << 31;

impl CatalogWriter {
    /// Begins a catalog. Each mount is a folder of the tree, even if nothing is listed in it.
    pub fn new(options: CatalogOptions) -> Result<Self, WriteError> {
        if options.sources.len() > usize::from(u16::MAX) {
            return Err(WriteError::TooManySources);
        }
        let sources: Vec<_> = options
            .sources
            .into_iter()
            .map(CatalogSource::normalized)
            .collect::<Result<_, _>>()
            .map_err(WriteError::Source)?;
        let mut entries = Entries::default();
        for (index, source) in sources.iter().enumerate() {
            entries.add_directory(SourceIndex(index as u16), source.mount_point());
        }
        let began = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        let (skipped, path) = (SkipLog::default(), Vec::new());
        Ok(Self { sources, attributes: options.attributes, entries, skipped, began, path })
    }

    /// Adds an object: a file, or a folder if its key ends in `/` and it is empty.
    pub fn add_file(
        &mut self,
        source: SourceIndex,
        key: &[u8],
        size: u64,
        mtime: Mtime,
        etag: &str,
    ) -> Result<(), WriteError> {
        if key.ends_with(b"/") {
            return if size == 0 {
                self.add_directory(source, key)
            } else {
                self.skip(source, key, &SkipReason::FolderWithContent)
            };
        }
        let from = self.source(source)?;
        if size > MAX_FILE_BYTES {
            return self.skip(source, key, &SkipReason::TooLarge);
        }
        if etag.len() > MAX_ETAG_BYTES {
            return self.skip(source, key, &SkipReason::EtagTooLong);
        }
        let mut path = std::mem::take(&mut self.path);
        let from = &self.sources[from];
        let result = match from.path_of_key(key, &mut path) {
            Ok(()) => {
                let id = ObjectId::new(&from.identity, key, etag, size);
                let mtime = Mtime { nanos: mtime.nanos.min(999_999_999), ..mtime };
                self.entries.add_file(source, &path, &NewFile { id, size, mtime, etag });
                self.check_count()
            }
            Err(reason) => self.skip(source, key, &reason),
        };
        self.path = path;
        result
    }

    /// Adds a folder that is in the tree even if nothing is in it; its key may end in `/`. The prefix itself is the mount's folder.
    pub fn add_directory(&mut self, source: SourceIndex, key: &[u8]) -> Result<(), WriteError> {
        let from = self.source(source)?;
        let from = &self.sources[from];
        let bare = key.strip_suffix(b"/").unwrap_or(key);
        if !from.prefix.is_empty() && from.prefix.strip_suffix(b"/") == Some(bare) {
            return Ok(());
        }
        let mut path = std::mem::take(&mut self.path);
        let result = match from.path_of_key(bare, &mut path) {
            Ok(()) => {
                self.entries.add_directory(source, &path);
                self.check_count()
            }
            Err(reason) => self.skip(source, key, &reason),
        };
        self.path = path;
        result
    }

    /// Counts a key that the lister itself leaves out.
    pub fn skip(&mut self, source: SourceIndex, key: &[u8], reason: &SkipReason) -> Result<(), WriteError> {
        let from = self.source(source)?;
        self.skipped.add(&self.sources[from].object_url(key), reason);
        Ok(())
    }

    /// The sources as they are used: mount paths without a last slash, prefixes with one. A lister lists by these prefixes.
    pub fn sources(&self) -> &[CatalogSource] {
        &self.sources
    }

    /// How many files and folders were taken so far, for progress.
    pub fn entries(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Writes image, table and summary into an existing, empty folder, and syncs them and the folder.
    pub fn finish(self, folder: &Path) -> Result<CatalogSummary, WriteError> {
        let Self { sources, attributes, entries, mut skipped, began, .. } = self;
        let tree = Tree::new(&entries, |entry, reason| {
            let from = &sources[usize::from(entry.source.0)];
            let mut url = from.object_url(&from.prefix);
            url.extend_from_slice(&entries.path(entry)[from.path_bytes_before_key()..]);
            skipped.add(&url, &reason);
        });
        let table = TableBuilder::new(&tree, &sources).map_err(|Collision(a, b)| WriteError::Collision(a, b))?;
        let image = Image { tree: &tree, sources: &sources, attributes };
        let image_digest = create(&folder.join(CATALOG_IMAGE), |file| {
            image.write(file)?;
            Ok(*blake3::hash(&Map::of(file)?).as_bytes())
        })?;
        let id = create(&folder.join(CATALOG_TABLE), |file| table.write(file, attributes, image_digest))?;
        let (mut files, mut bytes) = (0, 0_u64);
        for index in tree.files() {
            files += 1;
            bytes = bytes.saturating_add(entries.get(index).size);
        }
        let directories = tree.len() as u64 - files - 1;
        let (skipped, skipped_keys) = skipped.finish();
        let summary =
            CatalogSummary { id, files, directories, bytes, skipped, skipped_keys, observed_at_unix_seconds: began };
        create(&folder.join(CATALOG_SUMMARY), |mut file| {
            let mut text = serde_json::to_vec_pretty(&summary)?;
            text.push(b'\n');
            file.write_all(&text)
        })?;
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|source| WriteError::Io { path: folder.to_owned(), source })?;
        Ok(summary)
    }

    fn source(&self, source: SourceIndex) -> Result<usize, WriteError> {
        let index = usize::from(source.0);
        if index < self.sources.len() { Ok(index) } else { Err(WriteError::UnknownSource(source)) }
    }

    fn check_count(&self) -> Result<(), WriteError> {
        if self.entries.len() < MAX_ENTRIES { Ok(()) } else { Err(WriteError::TooManyEntries) }
    }
}

/// Creates a file, has it written, and syncs it.
fn create<T>(path: &Path, write: impl FnOnce(&File) -> io::Result<T>) -> Result<T, WriteError> {
    let result = OpenOptions::new().read(true).write(true).create_new(true).open(path).and_then(|file| {
        let value = write(&file)?;
        file.sync_all()?;
        Ok(value)
    });
    result.map_err(|source| WriteError::Io { path: path.to_owned(), source })
}
