//! The side table: finds what was listed, and never believes a damaged file.
#![allow(clippy::unwrap_used)] // clippy.toml's permission is for `#[test]` functions alone

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::sync::OnceLock;

use common::{ATTRIBUTES, folder, listed, source, write};
use forebay_catalog::{ObjectId, ObjectTable, TableError};
use proptest::prelude::*;

fn table_bytes() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let folder = folder();
        let sources = [source("/", "data", ""), source("/labels", "labels", "train")];
        let mut list: Vec<_> = (0..40_u64).map(|i| listed(0, format!("a/{i}"), i + 1)).collect();
        list.push(listed(1, b"train/\xff", 3));
        write(&sources, &list, folder.path());
        fs::read(folder.path().join("objects.table")).unwrap()
    })
}

fn open(bytes: &[u8]) -> Result<ObjectTable, TableError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    ObjectTable::from_file(&file)
}

#[test]
fn every_object_is_found_by_its_id_and_by_its_fuse_node_id() {
    let table = open(table_bytes()).unwrap();
    table.verify().unwrap();
    assert_eq!(table.len(), 41);
    assert_eq!(table.attributes(), ATTRIBUTES);
    assert_eq!(table.sources()[1].prefix, b"train/");
    for (row, record) in table.iter().enumerate() {
        assert_eq!(record.id, ObjectId::new(&record.source.identity, record.key, record.etag, record.size));
        assert_eq!(table.find(&record.id), Some(record));
        assert_eq!(table.find_by_fuse_node_id(record.id.fuse_node_id()), Some(record));
        assert_eq!(table.get(row), Some(record));
        assert_eq!(record.modified_unix_seconds, 1_700_000_000 + record.size as i64 % 1000);
        assert_eq!(table.find_all(&record.id).collect::<Vec<_>>(), [record]);
    }
    let paths: BTreeSet<_> = table.iter().map(|record| record.tree_path()).collect();
    let mut expected: BTreeSet<_> = (0..40).map(|i| format!("a/{i}").into_bytes()).collect();
    expected.insert(b"labels/\xff".to_vec());
    assert_eq!(paths, expected);
}

#[test]
fn what_is_not_in_the_table_is_not_found() {
    let table = open(table_bytes()).unwrap();
    for id in [[0; 16], [0xff; 16], [0x80; 16], [0x7f; 16]].map(ObjectId::from_bytes) {
        assert_eq!(table.find(&id), None);
        assert_eq!(table.find_by_fuse_node_id(id.fuse_node_id()), None);
    }
    assert_eq!(table.find_by_fuse_node_id(0), None);
    assert_eq!(table.find_by_fuse_node_id(257), None);
    assert_eq!(table.get(41), None);
}

#[test]
fn files_that_are_no_tables_are_refused() {
    for bytes in [&b""[..], b"FOREBAYT", &[0; 4096], &table_bytes()[..127]] {
        assert!(matches!(open(bytes), Err(TableError::Format(_))));
    }
}

/// The table with one piece of text replaced by another of the same length.
fn with(from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = table_bytes().to_vec();
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    bytes[at..at + from.len()].copy_from_slice(to);
    bytes
}

#[test]
fn a_row_whose_path_would_leave_the_tree_is_not_there() {
    for (key, bad) in
        [(b"a/39", b"../9"), (b"a/39", b"a//9"), (b"a/39", b"/a/9"), (b"a/39", b"a/\09"), (b"a/39", b"a/./")]
    {
        let table = open(&with(key, bad)).unwrap();
        assert_eq!((table.len(), table.iter().count()), (41, 40), "{}", bad.escape_ascii());
        assert!(table.iter().all(|record| record.key != bad));
    }
}

#[test]
fn a_table_that_is_mounted_outside_the_tree_is_refused() {
    for (from, to) in [(b"/labels", b"/../abc"), (b"/labels", b"labels/"), (b"/labels", b"//label")] {
        assert!(matches!(open(&with(from, to)), Err(TableError::Format(_))), "{}", to.escape_ascii());
    }
}

/// Calls everything a reader can call.
fn read_all(table: &ObjectTable) {
    let mut ids: Vec<_> = table.iter().map(|record| (record.id, record.tree_path(), record.url())).collect();
    ids.extend(open(table_bytes()).unwrap().iter().map(|record| (record.id, vec![], vec![])));
    for (id, ..) in &ids {
        table.find(id);
        table.find_by_fuse_node_id(id.fuse_node_id());
    }
    for row in 0..=table.len().min(100) {
        table.get(row);
    }
    table.distinct().count();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_table_is_noticed_and_never_panics(
        places in prop::collection::vec((prop_oneof![0..200_usize, 0..table_bytes().len()], any::<u8>()), 1..8),
        length in prop::option::weighted(0.3, 0..table_bytes().len()),
    ) {
        let mut bytes = table_bytes().to_vec();
        for (place, value) in places {
            bytes[place] = value;
        }
        bytes.truncate(length.unwrap_or(bytes.len()));
        if let Ok(table) = open(&bytes) {
            read_all(&table);
            prop_assert_eq!(table.verify().is_ok(), bytes == table_bytes());
        }
    }

    #[test]
    fn a_header_of_any_numbers_is_bounded_by_the_file(numbers in prop::collection::vec(any::<u64>(), 6), near in any::<bool>()) {
        let mut bytes = table_bytes().to_vec();
        for (i, number) in numbers.into_iter().enumerate() {
            let number = if near { number % (bytes.len() as u64 + 2) } else { number };
            bytes[48 + i * 8..][..8].copy_from_slice(&number.to_le_bytes());
        }
        if let Ok(table) = open(&bytes) {
            read_all(&table);
        }
    }

    #[test]
    fn rows_of_any_numbers_are_bounded_by_the_heap(rows in prop::collection::vec(any::<u8>(), 48 * 41), near in any::<bool>()) {
        let mut bytes = table_bytes().to_vec();
        let start = u64::from_le_bytes(bytes[72..80].try_into().unwrap()) as usize;
        bytes[start..start + rows.len()].copy_from_slice(&rows);
        if near {
            for row in bytes[start..start + rows.len()].chunks_mut(48) {
                row[26..32].fill(0);
                row[34..36].fill(0);
                row[37] = 0;
                row[39] = 0;
            }
        }
        read_all(&open(&bytes).unwrap());
    }
}
