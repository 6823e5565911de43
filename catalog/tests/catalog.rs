//! A catalog as a whole: the same for the same listing, whatever the order; what can't be in it is told; a damaged one is noticed.
#![allow(clippy::unwrap_used)] // clippy.toml's permission is for `#[test]` functions alone

mod common;

use std::fs;
use std::os::unix::fs::FileExt;

use common::{ATTRIBUTES, Listed, folder, listed, source, write};
use forebay_catalog::{
    Catalog, CatalogError, CatalogId, CatalogOptions, CatalogWriter, Mtime, SkipReason, SourceIndex, WriteError,
};
use proptest::prelude::*;

fn files(folder: &std::path::Path) -> [Vec<u8>; 2] {
    ["image.erofs", "objects.table"].map(|name| fs::read(folder.join(name)).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_same_listing_in_any_order_is_the_same_catalog(
        list in prop::collection::vec((0..2_u16, "[ab/]{1,6}", 0..3_u64, 0..3_i64, "[ef]?"), 0..40)
            .prop_flat_map(|list| (Just(list.clone()), Just(list).prop_shuffle())),
    ) {
        let sources = [source("/", "one", ""), source("/a", "two", "")];
        let [first, second] = [list.0, list.1].map(|list| {
            let item = |(source, key, size, seconds, etag): (u16, String, _, _, _)| {
                Listed { source, key: key.into_bytes(), size, mtime: Mtime { seconds, nanos: 0 }, etag }
            };
            let list: Vec<_> = list.into_iter().map(item).collect();
            let folder = folder();
            let mut summary = write(&sources, &list, folder.path());
            summary.observed_at_unix_seconds = 0;
            (summary, files(folder.path()))
        });
        prop_assert_eq!(first, second);
    }
}

#[test]
fn whatever_shows_in_the_tree_is_part_of_the_id() {
    let id = |list: &[Listed], attributes| {
        let folder = folder();
        let options = CatalogOptions { sources: vec![source("/", "b", "")], attributes };
        let mut writer = CatalogWriter::new(options).unwrap();
        for item in list {
            writer.add_file(SourceIndex(0), &item.key, item.size, item.mtime, &item.etag).unwrap();
        }
        writer.finish(folder.path()).unwrap().id
    };
    let base = [listed(0, "a", 1), listed(0, "b", 2)];
    let mut ids = vec![id(&base, ATTRIBUTES), id(&base[..1], ATTRIBUTES)];
    let changes: [fn(&mut Listed); 4] =
        [|i| i.size = 9, |i| i.key = b"c".into(), |i| i.etag = "x".into(), |i| i.mtime.nanos = 1];
    for change in changes {
        let mut list = base.clone();
        change(&mut list[0]);
        ids.push(id(&list, ATTRIBUTES));
    }
    for key in ["empty", "folder/"] {
        ids.push(id(&[base[0].clone(), base[1].clone(), listed(0, key, 0)], ATTRIBUTES));
    }
    let mut attributes = [ATTRIBUTES; 4];
    attributes[0].uid = 0;
    attributes[1].gid = 0;
    attributes[2].file_mode = 0;
    attributes[3].dir_mode = 0;
    ids.extend(attributes.map(|attributes| id(&base, attributes)));
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count);
}

#[test]
fn keys_that_can_not_be_files_are_counted_and_named_with_their_reason() {
    let folder = folder();
    let sources = vec![source("/", "b", "p"), source("/", "c", "")];
    let mut writer = CatalogWriter::new(CatalogOptions { sources, attributes: ATTRIBUTES }).unwrap();
    let mut add = |source, key: &str, size| {
        let etag = if key.ends_with("tag") { "e".repeat(4097) } else { String::new() };
        writer.add_file(SourceIndex(source), key.as_bytes(), size, Mtime::default(), &etag).unwrap();
    };
    for (key, size) in
        [("p/ok", 1), ("p/", 0), ("p/a//b", 1), ("p/../x", 1), ("q", 1), ("p/d/", 3), ("p/f", 1), ("p/f/g", 1)]
    {
        add(0, key, size);
    }
    add(0, "p/etag", 1);
    add(0, "p/huge", (1 << 50) + 1);
    add(1, "ok", 1);
    writer.skip(SourceIndex(0), b"p/archive", &SkipReason::Other("is in Glacier".into())).unwrap();
    writer.add_directory(SourceIndex(0), b"p/new").unwrap();
    assert!(matches!(writer.add_directory(SourceIndex(2), b"x"), Err(WriteError::UnknownSource(SourceIndex(2)))));
    let summary = writer.finish(folder.path()).unwrap();
    let told: Vec<_> = summary.skipped_keys.iter().map(|key| format!("{} {}", key.url, key.reason)).collect();
    assert_eq!(
        told,
        [
            "s3://b/p/../x has a path segment . or ..",
            "s3://b/p/a//b has an empty path segment",
            "s3://b/p/archive is in Glacier",
            "s3://b/p/d/ ends in / but has content",
            "s3://b/p/etag has an ETag longer than 4096 bytes",
            "s3://b/p/f is a folder too",
            "s3://b/p/huge is larger than 1024 TiB",
            "s3://b/q is not below the prefix",
            "s3://c/ok has the path of a file of an earlier mount",
        ]
    );
    assert_eq!((summary.skipped, summary.files, summary.directories, summary.bytes), (9, 2, 2, 2));
    assert_eq!(Catalog::open(folder.path()).unwrap().summary(), &summary);
}

#[test]
fn a_transferred_catalog_is_verified_whole() {
    let folder = folder();
    let list: Vec<_> = (0..500).map(|i| listed(0, format!("d/{i}"), i)).collect();
    let id = write(&[source("/", "b", "")], &list, folder.path()).id;
    assert_eq!(Catalog::verify(folder.path(), id).unwrap().id(), id);
    let other = CatalogId::from_bytes([1; 16]);
    assert!(matches!(Catalog::verify(folder.path(), other), Err(CatalogError::OtherCatalog { .. })));
    for (name, place) in [("image.erofs", 5000), ("objects.table", 300), ("image.erofs", 1024)] {
        let file = fs::OpenOptions::new().read(true).write(true).open(folder.path().join(name)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        file.write_all_at(&[byte[0] ^ 1], place).unwrap();
        let error = Catalog::verify(folder.path(), id).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        file.write_all_at(&byte, place).unwrap();
    }
    assert!(Catalog::verify(folder.path(), id).is_ok());
}

#[test]
fn parts_of_two_catalogs_or_a_missing_part_are_no_catalog() {
    let (one, two) = (folder(), folder());
    write(&[source("/", "b", "")], &[listed(0, "a", 1)], one.path());
    write(&[source("/", "b", "")], &[listed(0, "b", 1)], two.path());
    fs::copy(one.path().join("summary.json"), two.path().join("summary.json")).unwrap();
    assert!(matches!(Catalog::open(two.path()), Err(CatalogError::OtherCatalog { .. })));
    fs::remove_file(one.path().join("image.erofs")).unwrap();
    assert!(matches!(Catalog::open(one.path()), Err(CatalogError::Io { .. })));
    fs::write(one.path().join("summary.json"), "{").unwrap();
    assert!(matches!(Catalog::open(one.path()), Err(CatalogError::Summary { .. })));
}

#[test]
fn a_folder_that_holds_a_catalog_is_not_written_over() {
    let folder = folder();
    write(&[source("/", "b", "")], &[], folder.path());
    let writer = CatalogWriter::new(CatalogOptions { sources: vec![], attributes: ATTRIBUTES }).unwrap();
    assert!(matches!(writer.finish(folder.path()), Err(WriteError::Io { .. })));
}
