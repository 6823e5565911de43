//! The whole mount as a pod has it: overlayfs over the image and a folder of objects.
#![allow(clippy::unwrap_used)] // clippy.toml's permission is for `#[test]` functions alone

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use common::{Listed, Mount, folder, listed, memory_folder, names, source, write, xattr};
use forebay_catalog::{Catalog, CatalogSource, ObjectRecord};
use tempfile::TempDir;

/// The catalog's overlay, and what it stands on.
struct Overlay {
    mount: Mount,
    _image: Mount,
    catalog: Catalog,
    objects: TempDir,
    _folder: TempDir,
}

impl Overlay {
    fn new(sources: &[CatalogSource], list: &[Listed]) -> Option<Self> {
        let (folder, objects) = (folder(), memory_folder());
        let catalog = folder.path().join("catalog");
        fs::create_dir(&catalog).unwrap();
        write(sources, list, &catalog);
        let catalog = Catalog::open(&catalog).unwrap();
        for record in catalog.table().distinct() {
            put_object(objects.path(), &record);
        }
        let image = Mount::erofs(&catalog.image_path(), folder.path().join("image"))?;
        let options =
            format!("lowerdir={}::{},metacopy=on,redirect_dir=on", image.path().display(), objects.path().display());
        let mount = Mount::new(Path::new("overlay"), folder.path().join("tree"), "overlay", &options)?;
        Some(Self { mount, _image: image, catalog, objects, _folder: folder })
    }
}

/// Small objects are their key over and over; large ones are sparse and have their key at the end.
fn put_object(objects: &Path, record: &ObjectRecord<'_>) {
    let path = objects.join(record.id.relative_path());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    if record.size < 1 << 20 {
        fs::write(path, content(record.key, record.size)).unwrap();
    } else {
        let file = File::create(path).unwrap();
        file.set_len(record.size).unwrap();
        file.write_all_at(record.key, record.size - record.key.len() as u64).unwrap();
    }
}

fn content(key: &[u8], size: u64) -> Vec<u8> {
    key.iter().copied().cycle().take(size as usize).collect()
}

#[test]
fn every_file_reads_through_the_overlay_as_its_object_is() {
    let long = "n".repeat(255);
    let mut list = vec![
        listed(0, "readme.txt", 5),
        listed(0, "empty/file", 0),
        listed(0, "empty/folder/", 0),
        listed(0, b"caf\xe9/\xff\xfe\x01", 4096),
        listed(0, format!("{long}/{long}/{long}"), 4097),
        listed(0, "models/weights.safetensors", (4 << 30) + 12_345),
        listed(1, "train/labels.csv", 999),
        listed(1, "train/a b\n\"c\\d", 77),
    ];
    list.extend((0..10_000_u64).map(|i| listed(0, format!("train/{i:05}.png"), 1 + i % 9000)));
    let Some(tree) = Overlay::new(&[source("/", "data", ""), source("/labels", "labels", "train/")], &list) else {
        return;
    };
    for item in &list {
        let path = match item.source {
            0 => item.key.clone(),
            _ => [b"labels/", &item.key[6..]].concat(),
        };
        let path = tree.mount.join(path);
        if item.key.ends_with(b"/") {
            assert_eq!(names(&path), [b""; 0]);
            continue;
        }
        let mut file = File::open(&path).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!((metadata.size(), metadata.mtime()), (item.size, item.mtime.seconds), "{path:?}");
        assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o440, 1234, 70_000));
        assert_eq!(xattr(&path, "user.forebay.etag").unwrap(), item.etag.as_bytes());
        if item.size < 1 << 20 {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            assert!(bytes == content(&item.key, item.size), "{path:?}");
        } else {
            let mut end = vec![0; item.key.len()];
            file.read_exact_at(&mut end, item.size - item.key.len() as u64).unwrap();
            assert_eq!(end, item.key);
        }
    }
    assert_eq!(names(&tree.mount.join("train")).len(), 10_000);
    assert_eq!(names(&tree.mount.join("labels")), [&b"a b\n\"c\\d"[..], b"labels.csv"]);
    let refused = File::create(tree.mount.join("readme.txt")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
}

#[test]
fn an_object_that_arrives_later_is_found_by_the_next_open() {
    let Some(tree) = Overlay::new(&[source("/", "data", "")], &[listed(0, "a/late", 10), listed(0, "a/early", 10)])
    else {
        return;
    };
    let table = tree.catalog.table();
    let late = table.iter().find(|record| record.key == b"a/late").unwrap();
    let object = tree.objects.path().join(late.id.relative_path());
    fs::remove_file(&object).unwrap();
    let path = tree.mount.join("a/late");
    assert_eq!(path.metadata().unwrap().len(), 10, "sizes are the catalog's to tell");
    assert!(fs::read(&path).is_err());
    put_object(tree.objects.path(), &late);
    assert_eq!(fs::read(&path).unwrap(), content(b"a/late", 10));
}

#[test]
fn the_same_object_under_two_mounts_is_one_object_with_two_paths() {
    let sources = [source("/one", "data", ""), source("/two", "data", "")];
    let Some(tree) = Overlay::new(&sources, &[listed(0, "x", 10), listed(1, "x", 10)]) else { return };
    let table = tree.catalog.table();
    assert_eq!((table.len(), table.distinct().count()), (2, 1));
    for path in ["one/x", "two/x"] {
        assert_eq!(fs::read(tree.mount.join(path)).unwrap(), content(b"x", 10));
    }
}
