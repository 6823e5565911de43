//! The side table of a catalog: for each object its source, key, ETag and size, found by object id or FUSE node id in a mapped file.
//!
//! A table may come from a peer or through a socket, so nothing in the file is believed: sections are checked against the file's length when
//! opened, each row when it is read. A row that makes no sense is not there. [`ObjectTable::verify`] tells whether the file is as it was written.

mod build;
mod format;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use zerocopy::FromBytes;

use crate::map::Map;
use crate::{CatalogId, CatalogSource, MAX_FILE_BYTES, ObjectId, SourceIndex, TreeAttributes};
pub(crate) use build::{Collision, TableBuilder};
use format::{DIGEST_FROM, Header, MAGIC, Meta, Row, VERSION};

/// Why a file can't be used as a table.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file can't be opened or mapped.
    #[error("opening the side table")]
    Io(#[from] io::Error),
    /// The file is no table, or of another version, or cut short.
    #[error("the file is not a side table: {0}")]
    Format(&'static str),
    /// The JSON section can't be read.
    #[error("the side table's description of its sources is damaged")]
    Meta(#[source] serde_json::Error),
    /// The content is not what was written.
    #[error("the side table's content does not have the digest in its header")]
    Digest,
}

/// A mapped side table. Cheap to open: nothing is read but the header and the sources.
#[derive(Debug)]
pub struct ObjectTable {
    map: Map,
    header: Header,
    meta: Meta,
    rows: Range<usize>,
    heap: Range<usize>,
}

/// One file of the tree and the object that holds its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectRecord<'a> {
    /// The object.
    pub id: ObjectId,
    /// Its size in bytes, never 0: empty files have no object and no row.
    pub size: u64,
    /// Which of [`ObjectTable::sources`] it comes from.
    pub source_index: SourceIndex,
    /// Where it comes from.
    pub source: &'a CatalogSource,
    /// Its whole key there, prefix included.
    pub key: &'a [u8],
    /// Its ETag, as the source told it.
    pub etag: &'a str,
    /// When it was last changed in the source, in seconds since 1970.
    pub modified_unix_seconds: i64,
}

impl ObjectRecord<'_> {
    /// The file's path in the tree, without the leading slash.
    pub fn tree_path(&self) -> Vec<u8> {
        self.source.known_path_of_key(self.key).unwrap_or_default()
    }

    /// The object's URL.
    pub fn url(&self) -> Vec<u8> {
        self.source.object_url(self.key)
    }
}

impl ObjectTable {
    /// Opens the table at a path.
    pub fn open(path: &Path) -> Result<Self, TableError> {
        Self::from_file(&File::open(path)?)
    }

    /// Maps the table in an open file, which may be closed after.
    pub fn from_file(file: &File) -> Result<Self, TableError> {
        let map = Map::of(file)?;
        let (header, _) = Header::read_from_prefix(&map).map_err(|_| TableError::Format("it is too short"))?;
        if header.magic != MAGIC {
            return Err(TableError::Format("it does not begin like one"));
        }
        if header.version.get() != VERSION || header.row_bytes.get() as usize != size_of::<Row>() {
            return Err(TableError::Format("it is of another version"));
        }
        let section = |offset: u64, bytes: Option<u64>| {
            let end = offset.checked_add(bytes?)?;
            (end <= map.len() as u64).then_some(offset as usize..end as usize)
        };
        let cut = TableError::Format("a section lies beyond its end");
        let row_bytes = header.rows.get().checked_mul(size_of::<Row>() as u64);
        let sections = (
            section(header.meta_offset.get(), Some(header.meta_bytes.get())),
            section(header.rows_offset.get(), row_bytes),
            section(header.heap_offset.get(), Some(header.heap_bytes.get())),
        );
        let (Some(meta), Some(rows), Some(heap)) = sections else { return Err(cut) };
        let meta: Meta = serde_json::from_slice(map.get(meta).unwrap_or_default()).map_err(TableError::Meta)?;
        if !meta.sources.iter().all(|source| source.clone().normalized().as_ref() == Ok(source)) {
            return Err(TableError::Format("a source's mount path or prefix is none that a catalog is written with"));
        }
        Ok(Self { map, header, meta, rows, heap })
    }

    /// The catalog's id as the header says it; [`ObjectTable::verify`] shows that it is right.
    pub fn id(&self) -> CatalogId {
        catalog_id(&self.header)
    }

    /// blake3 of the image that belongs to this table.
    pub fn image_digest(&self) -> [u8; 32] {
        self.header.image_digest
    }

    /// The sources, in the order of the mounts.
    pub fn sources(&self) -> &[CatalogSource] {
        &self.meta.sources
    }

    /// Owner and modes of the tree.
    pub fn attributes(&self) -> TreeAttributes {
        self.meta.attributes
    }

    /// How many rows there are: one for each path in the tree whose file has content.
    pub fn len(&self) -> usize {
        self.row_slice().len()
    }

    /// Whether no file of the tree has content.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The record of a row, counted from 0; none beyond the end, or if the row is damaged.
    pub fn get(&self, row: usize) -> Option<ObjectRecord<'_>> {
        self.record(self.row_slice().get(row)?)
    }

    /// All rows. An object that is at several paths, as under two mounts, has a row for each, one after the other.
    pub fn iter(&self) -> impl Iterator<Item = ObjectRecord<'_>> {
        self.row_slice().iter().filter_map(|row| self.record(row))
    }

    /// All objects, each once, with the first of its paths: for sums of bytes and for what is fetched by object.
    pub fn distinct(&self) -> impl Iterator<Item = ObjectRecord<'_>> {
        let mut last = None;
        self.iter().filter(move |record| last.replace(record.id) != Some(record.id))
    }

    /// The object with this id, with the first of its paths.
    pub fn find(&self, id: &ObjectId) -> Option<ObjectRecord<'_>> {
        let rows = self.row_slice();
        let at = rows.partition_point(|row| ObjectId::from_bytes(row.id).table_order() < id.table_order());
        rows.get(at).filter(|row| row.id == *id.as_bytes()).and_then(|row| self.record(row))
    }

    /// All rows of an object: one for each of its paths.
    pub fn find_all(&self, id: &ObjectId) -> impl Iterator<Item = ObjectRecord<'_>> {
        let (rows, id) = (self.row_slice(), *id);
        let first = rows.partition_point(|row| ObjectId::from_bytes(row.id).table_order() < id.table_order());
        let rows = rows.get(first..).unwrap_or_default().iter().take_while(move |row| row.id == *id.as_bytes());
        rows.filter_map(|row| self.record(row))
    }

    /// The object with this FUSE node id, of which a catalog has at most one.
    pub fn find_by_fuse_node_id(&self, node_id: u64) -> Option<ObjectRecord<'_>> {
        let rows = self.row_slice();
        let node_id_of = |row: &Row| ObjectId::from_bytes(row.id).fuse_node_id();
        let at = rows.partition_point(|row| node_id_of(row) < node_id);
        rows.get(at).filter(|row| node_id_of(row) == node_id).and_then(|row| self.record(row))
    }

    /// Reads the whole file and compares it with the digest in its header, after a transfer.
    pub fn verify(&self) -> Result<(), TableError> {
        let digest = blake3::hash(self.map.get(DIGEST_FROM..).unwrap_or_default());
        if digest == self.header.digest { Ok(()) } else { Err(TableError::Digest) }
    }

    fn row_slice(&self) -> &[Row] {
        self.map.get(self.rows.clone()).and_then(|bytes| <[Row]>::ref_from_bytes(bytes).ok()).unwrap_or_default()
    }

    fn record<'a>(&'a self, row: &Row) -> Option<ObjectRecord<'a>> {
        let heap = self.map.get(self.heap.clone())?;
        let text = heap.get(usize::try_from(row.key_offset.get()).ok()?..)?;
        let (key, rest) = text.split_at_checked(row.key_bytes.get() as usize)?;
        let etag = std::str::from_utf8(rest.get(..usize::from(row.etag_bytes.get()))?).ok()?;
        let source = self.meta.sources.get(usize::from(row.source.get()))?;
        let size = row.size.get();
        let makes_sense = (1..=MAX_FILE_BYTES).contains(&size) && source.accepts_key(key);
        makes_sense.then(|| ObjectRecord {
            id: ObjectId::from_bytes(row.id),
            size,
            source_index: SourceIndex(row.source.get()),
            source,
            key,
            etag,
            modified_unix_seconds: row.modified.get(),
        })
    }
}

fn catalog_id(header: &Header) -> CatalogId {
    let mut id = [0; 16];
    id.copy_from_slice(&header.digest[..16]);
    CatalogId::from_bytes(id)
}
