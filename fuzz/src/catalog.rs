//! A catalog's files as a peer may send them: two bytes with the length of the summary, the summary, then the side table. The image has
//! a target of its own; here only its digest is compared, which is why it is empty.

use std::fs::File;

use forebay_catalog::{
    CATALOG_IMAGE, CATALOG_SUMMARY, CATALOG_TABLE, Catalog, CatalogOptions, CatalogSource, CatalogWriter,
    MAX_FILE_BYTES, Mtime, ObjectTable, SourceIndex, TreeAttributes,
};

use crate::scratch;

/// Where the table's header has its own digest, the summary's id, and the digest of the image.
const DIGEST: std::ops::Range<usize> = 8..40;

/// Opens the catalog as it is; then with a table whose digest is right, as an ill-meaning peer would send it.
pub fn run(data: &[u8]) {
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return };
    let Some((summary, table)) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length))) else { return };
    let folder = scratch::folder();
    scratch::write(folder.path(), CATALOG_SUMMARY, summary);
    scratch::write(folder.path(), CATALOG_IMAGE, b"");
    let path = scratch::write(folder.path(), CATALOG_TABLE, table);
    if let Ok(catalog) = Catalog::open(folder.path()) {
        look_at(catalog.table());
        assert!(Catalog::verify(folder.path(), catalog.id()).is_err() || table[DIGEST] == digest(table));
    }
    if table.len() < DIGEST.end {
        return;
    }
    let mut right = table.to_vec();
    right[DIGEST].copy_from_slice(&digest(table));
    scratch::write(folder.path(), CATALOG_TABLE, &right);
    let Ok(table) = File::open(path).map_err(Into::into).and_then(|file| ObjectTable::from_file(&file)) else { return };
    assert!(table.verify().is_ok());
    look_at(&table);
}

fn digest(table: &[u8]) -> [u8; 32] {
    *blake3::hash(&table[DIGEST.end..]).as_bytes()
}

/// Whatever the rows are, each that is given out makes sense by itself, and looking for one finds that one or none.
fn look_at(table: &ObjectTable) {
    for record in table.iter() {
        assert!(record.size > 0 && record.size <= MAX_FILE_BYTES, "{record:?}");
        let path = record.tree_path();
        let names = path.split(|byte| *byte == b'/');
        assert!(names.clone().all(|name| !name.is_empty() && name != b"." && name != b".."), "{record:?}");
        assert!(!path.contains(&0), "{record:?}");
        assert!(record.url().ends_with(record.key));
        assert!(table.find(&record.id).is_none_or(|found| found.id == record.id));
        let node_id = record.id.fuse_node_id();
        assert!(table.find_by_fuse_node_id(node_id).is_none_or(|found| found.id.fuse_node_id() == node_id));
    }
    assert!(table.distinct().count() <= table.len());
    assert!(table.get(table.len()).is_none());
}

/// Catalogs as the writer makes them: of one source, and of two of which one has a prefix.
pub fn seeds() -> Vec<Vec<u8>> {
    let source = |mount: &str, prefix: &str| CatalogSource {
        mount_path: mount.to_owned(),
        url: "s3://b".to_owned(),
        identity: "https://h/b".to_owned(),
        prefix: prefix.into(),
    };
    [vec![source("/", "")], vec![source("/", ""), source("/labels", "p/")]].into_iter().map(seed).collect()
}

fn seed(sources: Vec<CatalogSource>) -> Vec<u8> {
    let folder = scratch::folder();
    let write = || {
        let attributes = TreeAttributes { uid: 0, gid: 0, file_mode: 0o444, dir_mode: 0o555 };
        let last = SourceIndex(sources.len() as u16 - 1);
        let mut writer = CatalogWriter::new(CatalogOptions { sources, attributes }).ok()?;
        for (key, size) in [(b"p/a".as_slice(), 5), (b"p/b/c", 1 << 40), (b"p/empty", 0), (b"p/../x", 1)] {
            writer.add_file(last, key, size, Mtime::default(), "\"e\"").ok()?;
        }
        writer.finish(folder.path()).ok()?;
        let summary = std::fs::read(folder.path().join(CATALOG_SUMMARY)).ok()?;
        let table = std::fs::read(folder.path().join(CATALOG_TABLE)).ok()?;
        Some([&(summary.len() as u16).to_le_bytes(), summary.as_slice(), &table].concat())
    };
    write().unwrap_or_else(|| panic!("a catalog can't be written in {}", folder.path().display()))
}
