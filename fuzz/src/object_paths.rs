//! Names that others choose: keys and mount paths become paths of a tree, names below `objects/` become object ids. Of each input the first
//! line is the mount path, the second the prefix, the others are keys; each line is also tried as `folder/name` of an object.

use std::collections::BTreeSet;

use forebay_catalog::{
    Catalog, CatalogOptions, CatalogSource, CatalogWriter, MAX_NAME_BYTES, MAX_PATH_BYTES, Mtime, ObjectId,
    SourceIndex, TreeAttributes,
};

use crate::scratch;

/// No path leaves the tree, whatever the key; every key is a file of the tree or counted as skipped; an id has one path.
pub fn run(data: &[u8]) {
    let lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    for line in &lines {
        object_id(line);
    }
    let [mount_path, prefix, keys @ ..] = lines.as_slice() else { return };
    let Ok(mount_path) = std::str::from_utf8(mount_path) else { return };
    let source = CatalogSource {
        mount_path: mount_path.to_owned(),
        url: "s3://b".to_owned(),
        identity: "https://h/b".to_owned(),
        prefix: prefix.to_vec(),
    };
    let attributes = TreeAttributes { uid: 0, gid: 0, file_mode: 0o444, dir_mode: 0o555 };
    let Ok(mut writer) = CatalogWriter::new(CatalogOptions { sources: vec![source], attributes }) else { return };
    for key in keys {
        assert!(writer.add_file(SourceIndex(0), key, 1, Mtime::default(), "e").is_ok());
    }
    let folder = scratch::folder();
    let Ok(summary) = writer.finish(folder.path()) else { return };
    let catalog = Catalog::verify(folder.path(), summary.id).unwrap_or_else(|error| panic!("{error:?}"));
    let mut paths = BTreeSet::new();
    for record in catalog.table().iter() {
        let path = record.tree_path();
        assert!(path.len() <= MAX_PATH_BYTES && !path.contains(&0), "{record:?}");
        let fits = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && name.len() <= MAX_NAME_BYTES;
        assert!(path.split(|byte| *byte == b'/').all(fits), "{record:?}");
        assert!(paths.insert(path), "two files at one path: {record:?}");
        assert_eq!(catalog.table().find(&record.id).map(|found| found.id), Some(record.id));
    }
    assert_eq!(paths.len() as u64, summary.files);
    assert!(summary.files <= keys.len() as u64);
}

fn object_id(line: &[u8]) {
    let Some(slash) = line.iter().position(|byte| *byte == b'/') else { return };
    if let Some(id) = ObjectId::from_folder_and_name(&line[..slash], &line[slash + 1..]) {
        assert_eq!(id.relative_path().as_bytes(), line);
    }
}

/// A tree with what trees have, one with what they must not, and the path of an object.
pub fn seeds() -> Vec<Vec<u8>> {
    vec![
        b"/\n\na\nb/c\nb/d/e".to_vec(),
        b"/labels\np/\np/a\np/../a\np//b\np/.\nq\np/c/d\np/c\np/a".to_vec(),
        b"ab/0123456789abcdef0123456789abcd\n\nab/0123456789abcdef0123456789abcd".to_vec(),
    ]
}
