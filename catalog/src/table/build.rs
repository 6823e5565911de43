//! Writes the side table of a tree. Rows and heap are written side by side in the rows' order, so that reading all rows reads forward.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{I64, U16, U32, U64};

use super::format::{DIGEST_FROM, Header, MAGIC, Meta, Row, VERSION};
use crate::erofs::WriteAt;
use crate::map::Map;
use crate::tree::Tree;
use crate::{CatalogId, CatalogSource, ObjectId, TreeAttributes};

/// Two objects that FUSE could not tell apart, by URL.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Collision(pub(crate) String, pub(crate) String);

/// The rows of a tree, sorted.
pub(crate) struct TableBuilder<'a> {
    tree: &'a Tree<'a>,
    sources: &'a [CatalogSource],
    /// An object and its entry.
    rows: Vec<(ObjectId, u32)>,
}

impl<'a> TableBuilder<'a> {
    /// A row for each file that has content.
    pub(crate) fn new(tree: &'a Tree<'a>, sources: &'a [CatalogSource]) -> Result<Self, Collision> {
        let entries = tree.entries();
        let files = tree.files().map(|index| (entries.get(index), index));
        let mut rows: Vec<_> =
            files.filter(|(entry, _)| entry.size > 0).map(|(entry, index)| (entry.id, index)).collect();
        rows.sort_unstable_by(|(a, a_entry), (b, b_entry)| {
            let path = |index| {
                let entry = entries.get(index);
                (entry.source, entries.path(entry))
            };
            a.table_order().cmp(&b.table_order()).then_with(|| path(*a_entry).cmp(&path(*b_entry)))
        });
        let builder = Self { tree, sources, rows };
        match builder.rows.array_windows().find(|[(a, _), (b, _)]| a != b && a.fuse_node_id() == b.fuse_node_id()) {
            Some([(_, a), (_, b)]) => Err(Collision(builder.url(*a), builder.url(*b))),
            None => Ok(builder),
        }
    }

    fn url(&self, index: u32) -> String {
        let (source, key, _) = self.parts(index);
        String::from_utf8_lossy(&self.sources[usize::from(source)].object_url(&key.concat())).into_owned()
    }

    /// An entry's source, the two parts of its key, and its ETag.
    fn parts(&self, index: u32) -> (u16, [&[u8]; 2], &[u8]) {
        let entries = self.tree.entries();
        let entry = entries.get(index);
        let source = &self.sources[usize::from(entry.source.0)];
        let rest = &entries.path(entry)[source.path_bytes_before_key()..];
        (entry.source.0, [&source.prefix, rest], entries.etag(entry))
    }

    /// Writes the table into an empty file and gives the catalog's id; the caller syncs it.
    pub(crate) fn write(
        &self,
        file: &File,
        attributes: TreeAttributes,
        image_digest: [u8; 32],
    ) -> io::Result<CatalogId> {
        let mut meta = serde_json::to_vec(&Meta { sources: self.sources.to_vec(), attributes })?;
        let meta_bytes = meta.len();
        meta.resize(meta_bytes.next_multiple_of(8), b' ');
        let rows_offset = (size_of::<Header>() + meta.len()) as u64;
        let heap_offset = rows_offset + (self.rows.len() * size_of::<Row>()) as u64;
        let mut rows = BufWriter::with_capacity(1 << 18, WriteAt { file, offset: rows_offset });
        let mut heap = BufWriter::with_capacity(1 << 18, WriteAt { file, offset: heap_offset });
        let mut heap_bytes = 0;
        for (id, index) in &self.rows {
            let (source, key, etag) = self.parts(*index);
            let entry = self.tree.entries().get(*index);
            let key_bytes = key[0].len() + key[1].len();
            let row = Row {
                id: *id.as_bytes(),
                size: U64::new(entry.size),
                key_offset: U64::new(heap_bytes),
                key_bytes: U32::new(key_bytes as u32),
                etag_bytes: U16::new(etag.len() as u16),
                source: U16::new(source),
                modified: I64::new(entry.mtime.seconds),
            };
            rows.write_all(row.as_bytes())?;
            for part in [key[0], key[1], etag] {
                heap.write_all(part)?;
            }
            heap_bytes += (key_bytes + etag.len()) as u64;
        }
        rows.flush()?;
        heap.flush()?;
        file.write_all_at(&meta, size_of::<Header>() as u64)?;
        let mut header = Header {
            magic: MAGIC,
            digest: [0; 32],
            version: U32::new(VERSION),
            row_bytes: U32::new(size_of::<Row>() as u32),
            rows: U64::new(self.rows.len() as u64),
            meta_offset: U64::new(size_of::<Header>() as u64),
            meta_bytes: U64::new(meta_bytes as u64),
            rows_offset: U64::new(rows_offset),
            heap_offset: U64::new(heap_offset),
            heap_bytes: U64::new(heap_bytes),
            image_digest,
        };
        file.write_all_at(header.as_bytes(), 0)?;
        header.digest = *blake3::hash(Map::of(file)?.get(DIGEST_FROM..).unwrap_or_default()).as_bytes();
        file.write_all_at(header.as_bytes(), 0)?;
        Ok(super::catalog_id(&header))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entries::{Entries, NewFile};
    use crate::{Mtime, SourceIndex};

    fn sources() -> Vec<CatalogSource> {
        vec![CatalogSource {
            mount_path: "/".into(),
            url: "s3://b".into(),
            identity: "b".into(),
            prefix: b"p/".to_vec(),
        }]
    }

    fn collision_of(ids: [[u8; 16]; 2]) -> Option<Collision> {
        let mut entries = Entries::default();
        for (id, path) in ids.into_iter().zip([b"x", b"y"]) {
            let new = NewFile { id: ObjectId::from_bytes(id), size: 1, mtime: Mtime::default(), etag: "" };
            entries.add_file(SourceIndex(0), path, &new);
        }
        let tree = Tree::new(&entries, |_, _| {});
        TableBuilder::new(&tree, &sources()).err()
    }

    #[test]
    fn objects_that_fuse_could_not_tell_apart_are_refused_by_name() {
        let named = Some(Collision("s3://b/p/x".into(), "s3://b/p/y".into()));
        let (mut a, mut b) = ([7; 16], [7; 16]);
        a[15] = 1;
        assert_eq!(collision_of([a, b]), named);
        b[0] |= 0x80; // the bit that a FUSE node id does not have
        assert_eq!(collision_of([a, b]), named);
        b[7] = 0;
        assert_eq!(collision_of([a, b]), None);
        assert_eq!(collision_of([a, a]), None, "one object at two paths");
    }
}
