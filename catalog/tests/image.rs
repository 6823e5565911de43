//! The image as the kernel shows it, against a reference model of what a listing means.
#![allow(clippy::unwrap_used)] // clippy.toml's permission is for `#[test]` functions alone

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;

use common::{ATTRIBUTES, Listed, Mount, folder, listed, names, source, write, xattr, xattr_names};
use forebay_catalog::{CatalogSource, CatalogSummary, Mtime, ObjectId, TreeImage};
use proptest::prelude::*;

/// What a listing means, said as plainly as possible.
struct Model<'a> {
    folders: BTreeSet<Vec<u8>>,
    files: BTreeMap<Vec<u8>, &'a Listed>,
    skipped: u64,
}

impl<'a> Model<'a> {
    fn new(sources: &[CatalogSource], list: &'a [Listed]) -> Self {
        let mut model = Model { folders: BTreeSet::from([vec![]]), files: BTreeMap::new(), skipped: 0 };
        for source in sources {
            model.add_folder(source.mount_path.trim_matches('/').as_bytes());
        }
        let mut candidates: BTreeMap<Vec<u8>, Vec<&Listed>> = BTreeMap::new();
        for item in list {
            let source = &sources[usize::from(item.source)];
            let key = item.key.strip_prefix(source.prefix.as_slice()).unwrap();
            let bare = key.strip_suffix(b"/").unwrap_or(key);
            if key.is_empty() && !source.prefix.is_empty() && item.size == 0 {
                continue;
            }
            let bad = |s: &[u8]| matches!(s, b"" | b"." | b"..") || s.len() > 255 || s.contains(&0);
            let mount_point = source.mount_path.trim_matches('/');
            let path =
                if mount_point.is_empty() { bare.to_vec() } else { [mount_point.as_bytes(), b"/", bare].concat() };
            if bare.split(|b| *b == b'/').any(bad) || (key != bare && item.size > 0) || path.len() > 4096 {
                model.skipped += 1;
            } else if key == bare {
                let end = path.iter().rposition(|b| *b == b'/').unwrap_or(0);
                model.add_folder(&path[..end]);
                candidates.entry(path).or_default().push(item);
            } else {
                model.add_folder(&path);
            }
        }
        for (path, items) in candidates {
            let winner = items.iter().min_by_key(|i| (i.source, std::cmp::Reverse(i.mtime), i.size, &i.etag)).unwrap();
            if model.folders.contains(&path) {
                model.skipped += items.len() as u64;
            } else {
                model.skipped += items.iter().filter(|item| item.source != winner.source).count() as u64;
                model.files.insert(path, winner);
            }
        }
        model
    }

    fn add_folder(&mut self, path: &[u8]) {
        for (end, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            self.folders.insert(path[..end].to_vec());
        }
        self.folders.insert(path.to_vec());
    }

    /// Names directly in a folder, with the path of each.
    fn children(&self, folder: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let below = |path: &[u8]| {
            let name = if folder.is_empty() { path } else { path.strip_prefix(folder)?.strip_prefix(b"/")? };
            (!name.is_empty() && !name.contains(&b'/')).then(|| (name.to_vec(), path.to_vec()))
        };
        self.folders.iter().chain(self.files.keys()).filter_map(|path| below(path)).collect()
    }

    fn check(&self, sources: &[CatalogSource], mount: &Mount) {
        for folder in &self.folders {
            let children = self.children(folder);
            let path = mount.join(folder);
            assert_eq!(names(&path), children.keys().cloned().collect::<Vec<_>>(), "{}", path.display());
            let subfolders = children.values().filter(|path| self.folders.contains(*path)).count() as u64;
            let newest = children.values().filter_map(|path| self.files.get(path)).map(|item| item.mtime).max();
            let metadata = path.symlink_metadata().unwrap();
            assert!(metadata.is_dir());
            assert_eq!(metadata.mode() & 0o7777, u32::from(ATTRIBUTES.dir_mode));
            assert_eq!((metadata.uid(), metadata.gid()), (ATTRIBUTES.uid, ATTRIBUTES.gid));
            assert_eq!(metadata.nlink(), 2 + subfolders, "{}", path.display());
            assert_eq!(times(&metadata), newest.unwrap_or_default(), "{}", path.display());
            assert_eq!(xattr_names(&path), [""; 0]);
        }
        for (path, item) in &self.files {
            let source = &sources[usize::from(item.source)];
            let path = mount.join(path);
            let metadata = path.symlink_metadata().unwrap();
            assert!(metadata.is_file(), "{}", path.display());
            assert_eq!(metadata.mode() & 0o7777, u32::from(ATTRIBUTES.file_mode));
            assert_eq!((metadata.uid(), metadata.gid()), (ATTRIBUTES.uid, ATTRIBUTES.gid));
            assert_eq!((metadata.nlink(), metadata.size()), (1, item.size));
            assert_eq!(times(&metadata), item.mtime);
            let mut expected = vec!["user.forebay.source"];
            if !item.etag.is_empty() {
                expected.insert(0, "user.forebay.etag");
                assert_eq!(xattr(&path, "user.forebay.etag").unwrap(), item.etag.as_bytes());
            }
            assert_eq!(xattr(&path, "user.forebay.source").unwrap(), source.object_url(&item.key));
            let redirect = xattr(&path, "trusted.overlay.redirect");
            if item.size > 0 {
                expected.splice(0..0, ["trusted.overlay.metacopy", "trusted.overlay.redirect"]);
                let id = ObjectId::new(&source.identity, &item.key, &item.etag, item.size);
                assert_eq!(redirect.unwrap(), format!("/{}", id.relative_path()).as_bytes());
                assert_eq!(xattr(&path, "trusted.overlay.metacopy").unwrap(), b"");
            }
            assert_eq!(xattr_names(&path), expected);
        }
    }

    /// The same of the crate's own reader.
    fn check_reader(&self, sources: &[CatalogSource], image: &TreeImage) {
        assert_eq!(image.count(), (self.folders.len() + self.files.len()) as u64);
        let find = |path: &[u8]| {
            let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
            names.fold(image.root(), |folder, name| image.lookup(&image.node(folder).unwrap(), name).unwrap().unwrap())
        };
        for folder in &self.folders {
            let node = image.node(find(folder)).unwrap();
            let children = self.children(folder);
            let entries: Vec<_> = image.entries(&node, 0).map(Result::unwrap).collect();
            let listed: Vec<_> =
                entries.iter().map(|entry| entry.name).filter(|name| !matches!(*name, b"." | b"..")).collect();
            assert_eq!(listed, children.keys().map(Vec::as_slice).collect::<Vec<_>>());
            assert_eq!(entries.len(), listed.len() + 2);
            for (index, entry) in entries.iter().enumerate() {
                assert_eq!(image.lookup(&node, entry.name).unwrap(), Some(entry.nid));
                assert_eq!(image.node(entry.nid).unwrap().is_dir(), entry.is_dir);
                // Wherever a listing is broken off, it goes on with what follows.
                let next = image.entries(&node, entry.next).next().map(Result::unwrap);
                assert_eq!(next.as_ref(), entries.get(index + 1));
            }
            for missing in [&b""[..], b"\x01", b"zz\xff", &[b'n'; 255]] {
                assert_eq!(image.lookup(&node, missing).unwrap().is_some(), children.contains_key(missing));
            }
            let subfolders = children.values().filter(|path| self.folders.contains(*path)).count() as u32;
            assert_eq!((node.is_dir(), node.mode & 0o7777), (true, ATTRIBUTES.dir_mode.into()));
            assert_eq!((node.uid, node.gid, node.nlink), (ATTRIBUTES.uid, ATTRIBUTES.gid, 2 + subfolders));
            assert_eq!(image.user_xattrs(&node).count(), 0);
            assert_eq!(image.object(&node), Ok(None));
        }
        for (path, item) in &self.files {
            let source = &sources[usize::from(item.source)];
            let node = image.node(find(path)).unwrap();
            assert_eq!((node.is_dir(), node.mode & 0o7777), (false, ATTRIBUTES.file_mode.into()));
            assert_eq!((node.size, node.nlink, node.mtime), (item.size, 1, item.mtime));
            let id = ObjectId::new(&source.identity, &item.key, &item.etag, item.size);
            assert_eq!(image.object(&node), Ok((item.size > 0).then_some(id)));
            let xattrs: Vec<_> =
                image.user_xattrs(&node).map(Result::unwrap).map(|it| (it.name, it.value.to_vec())).collect();
            let mut expected = vec![(&b"forebay.source"[..], source.object_url(&item.key))];
            if !item.etag.is_empty() {
                expected.push((b"forebay.etag", item.etag.clone().into_bytes()));
            }
            assert_eq!(xattrs, expected);
        }
    }

    fn check_summary(&self, summary: &CatalogSummary) {
        assert_eq!(summary.files, self.files.len() as u64);
        assert_eq!(summary.directories, self.folders.len() as u64 - 1);
        assert_eq!(summary.bytes, self.files.values().map(|item| item.size).sum::<u64>());
        assert_eq!(summary.skipped, self.skipped);
        assert_eq!(summary.skipped_keys.len() as u64, self.skipped.min(20));
    }
}

fn times(metadata: &std::fs::Metadata) -> Mtime {
    Mtime { seconds: metadata.mtime(), nanos: metadata.mtime_nsec() as u32 }
}

/// Builds, mounts and compares everything.
fn check(sources: &[CatalogSource], list: &[Listed]) {
    let folder = folder();
    let summary = write(sources, list, folder.path());
    let model = Model::new(sources, list);
    model.check_summary(&summary);
    model.check_reader(sources, &TreeImage::open(&folder.path().join("image.erofs")).unwrap());
    let target = folder.path().join("mnt");
    if let Some(mount) = Mount::erofs(&folder.path().join("image.erofs"), target) {
        model.check(sources, &mount);
    }
}

fn segment() -> impl Strategy<Value = Vec<u8>> {
    let any_byte = any::<u8>().prop_map(|b| if b == b'/' || b == 0 { b'x' } else { b });
    prop_oneof![
        8 => "[ab]".prop_map(String::into_bytes),
        4 => "[-.!~a]{1,3}".prop_map(String::into_bytes),
        3 => prop::collection::vec(any_byte, 1..8),
        1 => (250..258_usize).prop_map(|len| vec![b'n'; len]),
        1 => prop::sample::select(vec![&b""[..], b".", b"..", b"a\0b"]).prop_map(<[u8]>::to_vec),
    ]
}

fn item() -> impl Strategy<Value = Listed> {
    let key = (prop::collection::vec(segment(), 1..6), prop::bool::weighted(0.1));
    let size = prop_oneof![2 => Just(0), 4 => 1..100_000_u64, 1 => 0..=forebay_catalog::MAX_FILE_BYTES];
    let seconds = prop_oneof![4 => 0..2_000_000_000_i64, 1 => -5_000_000_000..5_000_000_000_000_i64];
    (0..3_u16, key, size, (seconds, 0..1_000_000_000_u32), "[\"a-f0-9]{0,40}").prop_map(
        |(source, (key, is_marker), size, (seconds, nanos), etag)| {
            let mut key = [[&b""[..], b"p/", b"q/"][usize::from(source)], &key.join(&b'/')].concat();
            if is_marker {
                key.push(b'/');
            }
            Listed { source, key, size, mtime: Mtime { seconds, nanos }, etag }
        },
    )
}

fn three_sources() -> [CatalogSource; 3] {
    [source("/", "zero", ""), source("/a", "one", "p/"), source("/a/b/c", "two", "q/")]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_mounted_image_shows_exactly_what_a_listing_means(list in prop::collection::vec(item(), 0..120)) {
        check(&three_sources(), &list);
    }
}

#[test]
fn folders_of_every_size_around_a_block_are_whole() {
    // 12 bytes an entry and its name: steps of 255 and of 1 byte around one and two blocks.
    for total in (3800..4200).step_by(7).chain((8000..8300).step_by(13)) {
        let rest = total - 27; // `.` and `..`
        let (full, last) = (rest / 267, rest % 267);
        let mut list: Vec<_> = (0..full).map(|i| listed(0, format!("{i:0255}"), 1)).collect();
        if last > 12 {
            list.push(listed(0, "z".repeat(last - 12), 1));
        }
        check(&[source("/", "b", "")], &list);
    }
}

#[test]
fn a_folder_of_ten_thousand_files_lists_all_and_finds_each() {
    let list: Vec<_> = (0..10_000_u64).map(|i| listed(0, format!("train/n{:08}.JPEG", i * 7919 % 10_007), i)).collect();
    check(&[source("/", "imagenet", "")], &list);
}

#[test]
fn a_thousand_folders_and_a_deep_one_are_all_there() {
    let mut list: Vec<_> = (0..1_000).map(|i| listed(0, format!("class{i}/image"), i + 1)).collect();
    list.push(listed(0, vec!["d"; 2_000].join("/"), 1));
    list.push(listed(0, "e/".repeat(2_001), 0));
    check(&[source("/", "b", "")], &list);
}

#[test]
fn a_listing_of_nothing_is_an_empty_folder_for_each_mount() {
    check(&[source("/", "b", "")], &[]);
    check(&three_sources(), &[]);
    check(&[source("/x/y", "b", "p")], &[]);
    check(&[], &[]);
}

#[test]
fn a_reader_of_a_damaged_image_gets_errors_and_never_panics() {
    let folder = folder();
    let list: Vec<_> = (0..300).map(|i| listed(0, format!("a{}/file-with-a-name-{i}", i % 3), i)).collect();
    write(&[source("/", "b", "")], &list, folder.path());
    let path = folder.path().join("image.erofs");
    let good = std::fs::read(&path).unwrap();
    let damaged = folder.path().join("damaged");
    let mut seed = 1_u64;
    for _ in 0..400 {
        let mut bytes = good.clone();
        for _ in 0..30 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (seed >> 20) as usize % bytes.len();
            bytes[at] = (seed >> 56) as u8;
        }
        bytes.truncate(bytes.len() - (seed >> 40) as usize % 3 * 3000);
        std::fs::write(&damaged, &bytes).unwrap();
        let Ok(image) = TreeImage::open(&damaged) else { continue };
        let (mut folders, mut seen) = (vec![image.root()], BTreeSet::new());
        while let Some(node) = folders.pop().and_then(|nid| image.node(nid).ok()) {
            for entry in image.entries(&node, 0).filter_map(Result::ok) {
                let _ = image.lookup(&node, entry.name);
                let Ok(child) = image.node(entry.nid) else { continue };
                let _ = (image.object(&child), image.user_xattrs(&child).count());
                if child.is_dir() && seen.insert(entry.nid) {
                    folders.push(entry.nid);
                }
            }
        }
    }
}
