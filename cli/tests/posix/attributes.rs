//! What stat, statfs and extended attributes say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::LARGE;
use crate::support::bytes;
use crate::support::mounted::{on_each_mount, write};

fn fill(root: &Path) {
    write(root, "empty", "");
    write(root, "one", "1");
    write(root, "large", bytes(1, LARGE));
    write(root, "a/b/c", "abc");
    write(root, "a/b/d", "abcd");
    fs::create_dir(root.join("a/nothing")).unwrap();
}

/// All paths of the tree but its root.
fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            folders.extend(entry.file_type().unwrap().is_dir().then(|| entry.path()));
            found.push(entry.path());
        }
    }
    found
}

#[test]
fn sizes_times_blocks_and_links_are_those_of_the_source() {
    on_each_mount(fill, |mounted| {
        let paths = walk(&mounted.tree);
        assert_eq!(paths.len(), 8);
        for path in paths {
            let name = path.strip_prefix(&mounted.tree).unwrap();
            let (shown, real) = (path.metadata().unwrap(), mounted.source.join(name).metadata().unwrap());
            if shown.is_dir() {
                assert_eq!((shown.nlink(), shown.mode() & 0o7777), (real.nlink(), 0o555), "{name:?}");
                continue;
            }
            assert_eq!((shown.len(), shown.nlink(), shown.mode() & 0o7777), (real.len(), 1, 0o444), "{name:?}");
            assert_eq!((shown.mtime(), shown.mtime_nsec()), (real.mtime(), real.mtime_nsec()), "{name:?}");
            let blocks = shown.len().div_ceil(512)..=shown.len().next_multiple_of(4096) / 512;
            assert!(blocks.contains(&shown.blocks()), "{name:?}: du adds up {} blocks", shown.blocks());
        }
        assert_eq!(mounted.path("").metadata().unwrap().nlink(), 3, "one folder in it");
    });
}

#[test]
fn inode_numbers_tell_files_apart_and_stay_over_opens_and_remounts() {
    on_each_mount(fill, |mounted| {
        let numbers = |tree: &Path| -> BTreeMap<PathBuf, u64> {
            let all = walk(tree).into_iter().chain([tree.to_owned()]);
            all.map(|path| (path.clone(), path.metadata().unwrap().ino())).collect()
        };
        let before = numbers(&mounted.tree);
        assert_eq!(before.values().collect::<BTreeSet<_>>().len(), before.len(), "{before:?}");
        let device = mounted.tree.metadata().unwrap().dev();
        for path in before.keys() {
            assert_eq!(path.metadata().unwrap().dev(), device, "{}: find -xdev and du -x stay", path.display());
        }
        for path in before.keys().filter(|path| path.is_file()) {
            assert_eq!(fs::File::open(path).unwrap().metadata().unwrap().ino(), before[path]);
            fs::read(path).unwrap();
        }
        assert_eq!(numbers(&mounted.tree), before, "after reading");
        mounted.remount();
        assert_eq!(numbers(&mounted.tree), before, "after mounting anew");
    });
}

#[test]
fn statfs_tells_the_size_of_the_dataset_and_that_there_is_no_room() {
    on_each_mount(fill, |mounted| {
        let shown = rustix::fs::statvfs(&mounted.tree).unwrap();
        let sizes = walk(&mounted.tree).into_iter().map(|path| path.metadata().unwrap());
        let sizes: Vec<u64> = sizes.filter(std::fs::Metadata::is_file).map(|metadata| metadata.len()).collect();
        // Each file by itself, or all together, in whole blocks.
        let least = sizes.iter().sum::<u64>().div_ceil(4096);
        let most: u64 = sizes.iter().map(|size| size.div_ceil(4096)).sum();
        assert_eq!((shown.f_frsize, shown.f_namemax), (4096, 255));
        assert!((least..=most).contains(&shown.f_blocks), "{} blocks, not {least} to {most}", shown.f_blocks);
        assert_eq!((shown.f_bfree, shown.f_bavail), (0, 0));
        // Five files; the kernel counts the image's folders too.
        assert!((5..=9).contains(&(shown.f_files - shown.f_ffree)));
        assert!(shown.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
        assert_eq!(rustix::fs::statvfs(mounted.path("a/b/c")).unwrap().f_blocks, shown.f_blocks);
    });
}

#[test]
fn extended_attributes_say_where_a_file_comes_from_and_nothing_of_the_machinery() {
    on_each_mount(fill, |mounted| {
        let path = mounted.path("a/b/c");
        let get = |name: &str| {
            let mut value = vec![0; 4096];
            rustix::fs::getxattr(&path, name, &mut value).map(|length| {
                value.truncate(length);
                String::from_utf8(value).unwrap()
            })
        };
        assert_eq!(get("user.forebay.source").unwrap(), format!("file://{}/a/b/c", mounted.source.display()));
        let etag = get("user.forebay.etag").unwrap();
        assert!(!etag.is_empty());
        assert_eq!(get("user.other"), Err(Errno::NODATA));
        assert_eq!(rustix::fs::getxattr(&path, "user.forebay.etag", &mut [0; 1]), Err(Errno::RANGE));

        let mut list = vec![0; 4096];
        let length = rustix::fs::listxattr(&path, &mut list).unwrap();
        let mut names: Vec<_> = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
        names.sort_unstable();
        assert_eq!(names, [&b"user.forebay.etag"[..], b"user.forebay.source"]);
        let opened = fs::File::open(&path).unwrap();
        assert_eq!(rustix::fs::flistxattr(&opened, &mut list).unwrap(), length);
        assert_eq!(rustix::fs::listxattr(mounted.path("a"), &mut list), Ok(0), "folders have none");
    });
}
