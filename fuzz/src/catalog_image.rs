//! A catalog's image, as the FUSE tree reads it: any bytes, walked from the root down.

use std::collections::BTreeSet;
use std::fs::File;

use forebay_catalog::{
    CATALOG_IMAGE, CatalogOptions, CatalogSource, CatalogWriter, MAX_FILE_BYTES, MAX_NAME_BYTES, Mtime, SourceIndex,
    TreeAttributes, TreeImage, TreeNode,
};

use crate::scratch;

/// Nodes that are looked at: a folder may be its own child.
const MOST_NODES: usize = 1000;

/// Opens the image; what is found below its root makes sense by itself, and nothing is read for ever.
pub fn run(data: &[u8]) {
    let folder = scratch::folder();
    let path = scratch::write(folder.path(), CATALOG_IMAGE, data);
    let Ok(image) = File::open(path).map_err(Into::into).and_then(|file| TreeImage::from_file(&file)) else { return };
    let (mut waiting, mut seen) = (vec![image.root()], BTreeSet::new());
    while let Some(nid) = waiting.pop() {
        if seen.len() >= MOST_NODES || !seen.insert(nid) {
            continue;
        }
        let Ok(node) = image.node(nid) else { continue };
        assert!(node.nid < 1 << 46 && node.size <= MAX_FILE_BYTES);
        look_at(&image, &node);
        if node.is_dir() {
            waiting.extend(list(&image, &node));
        }
    }
}

/// What a node says beside its size.
fn look_at(image: &TreeImage, node: &TreeNode) {
    if let Ok(object) = image.object(node) {
        assert_eq!(object.is_some(), !node.is_dir() && node.size > 0);
    }
    let bytes: usize = image.user_xattrs(node).flatten().map(|xattr| xattr.name.len() + xattr.value.len()).sum();
    assert!(bytes <= 4 * usize::from(u16::MAX));
}

/// The children of a folder, whose listing goes only forward; looking one up is fine, whatever is found.
fn list(image: &TreeImage, folder: &TreeNode) -> Vec<u64> {
    let mut position = 0;
    let mut children = Vec::new();
    for entry in image.entries(folder, 0).flatten().take(MOST_NODES) {
        assert!((1..=MAX_NAME_BYTES).contains(&entry.name.len()));
        assert!(!entry.name.contains(&b'/') && !entry.name.contains(&0));
        assert!(entry.next > position);
        position = entry.next;
        let _ = image.lookup(folder, entry.name);
        children.push(entry.nid);
    }
    children
}

/// Images as the writer makes them: an empty one, a folder within its inode, and folders of several blocks.
pub fn seeds() -> Vec<Vec<u8>> {
    [0, 3, 300].into_iter().map(seed).collect()
}

fn seed(files: u64) -> Vec<u8> {
    let folder = scratch::folder();
    let write = || {
        let attributes = TreeAttributes { uid: 1, gid: 2, file_mode: 0o444, dir_mode: 0o555 };
        let source = CatalogSource {
            mount_path: "/".to_owned(),
            url: "s3://b".to_owned(),
            identity: "https://h/b".to_owned(),
            prefix: Vec::new(),
        };
        let mut writer = CatalogWriter::new(CatalogOptions { sources: vec![source], attributes }).ok()?;
        for number in 0..files {
            let key = format!("folder{}/a file with a name {number}", number % 2);
            writer.add_file(SourceIndex(0), key.as_bytes(), number << 30, Mtime::default(), "\"e\"").ok()?;
        }
        writer.finish(folder.path()).ok()?;
        std::fs::read(folder.path().join(CATALOG_IMAGE)).ok()
    };
    write().unwrap_or_else(|| panic!("a catalog can't be written in {}", folder.path().display()))
}
