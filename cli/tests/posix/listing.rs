//! Names of all kinds, and folders as readdir gives them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom};

use crate::support::mounted::{on_each_mount, write};

fn names(folder: &Path) -> Vec<Vec<u8>> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().as_bytes().to_vec()).collect();
    names.sort();
    names
}

#[test]
fn any_name_that_a_file_may_have_is_there() {
    let long = vec![b'n'; 255];
    let all: Vec<Vec<u8>> = vec![
        b"caf\xe9".to_vec(),
        b"\xff\xfe\x01".to_vec(),
        "größe 日本語".as_bytes().to_vec(),
        b"a b\n\"c\\d\t*?".to_vec(),
        b"-rf".to_vec(),
        b"...".to_vec(),
        b" ".to_vec(),
        long.clone(),
    ];
    let fill = |root: &Path| {
        for name in &all {
            write(root, name, name);
            write(root, [b"in/", name.as_slice(), b"/", name].concat(), name);
        }
    };
    on_each_mount(fill, |mounted| {
        let mut expected = all.clone();
        expected.push(b"in".to_vec());
        expected.sort();
        assert_eq!(names(&mounted.tree), expected);
        for name in &all {
            for path in [name.clone(), [b"in/", name.as_slice(), b"/", name].concat()] {
                let path = mounted.path(path);
                assert_eq!(fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}")), *name);
            }
        }
    });
}

#[test]
fn trees_may_be_deep_and_files_and_folders_empty() {
    let deep = vec!["level"; 64].join("/");
    let fill = |root: &Path| {
        write(root, format!("{deep}/leaf"), "deep");
        write(root, "void/file", "");
        fs::create_dir_all(root.join("void/folder/inner")).unwrap();
    };
    on_each_mount(fill, |mounted| {
        assert_eq!(fs::read(mounted.path(format!("{deep}/leaf"))).unwrap(), b"deep");
        let up = "../".repeat(64);
        assert_eq!(fs::canonicalize(mounted.path(format!("{deep}/{up}"))).unwrap(), mounted.tree);
        assert_eq!(fs::read(mounted.path("void/file")).unwrap(), b"");
        assert_eq!(names(&mounted.path("void")), [&b"file"[..], b"folder"]);
        assert_eq!(names(&mounted.path("void/folder")), [b"inner"]);
        assert_eq!(names(&mounted.path("void/folder/inner")), Vec::<Vec<u8>>::new());
    });
}

/// An entry as getdents gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    name: Vec<u8>,
    number: u64,
    kind: FileType,
    /// Where the next one begins.
    next: u64,
}

/// What is left of an open folder, read with a small buffer.
fn rest(folder: impl AsFd) -> Vec<Listed> {
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut entries = RawDir::new(folder, &mut buffer);
    let mut found = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_bytes().to_vec();
        found.push(Listed { name, number: entry.ino(), kind: entry.file_type(), next: entry.next_entry_cookie() });
    }
    found
}

#[test]
fn a_listing_continues_from_any_place_and_agrees_with_stat() {
    let fill = |root: &Path| {
        for number in 0..3000 {
            write(root, format!("many/{number:04}-{}", "x".repeat(number % 50)), "x");
        }
        fs::create_dir(root.join("many/folder")).unwrap();
    };
    on_each_mount(fill, |mounted| {
        let path = mounted.path("many");
        let folder = rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let all = rest(&folder);
        assert_eq!(all.len(), 3003);
        let by_name: BTreeMap<_, _> = all.iter().map(|entry| (entry.name.as_slice(), entry)).collect();
        assert_eq!(by_name.len(), 3003, "none twice");
        assert_eq!(all.iter().map(|entry| entry.number).collect::<BTreeSet<_>>().len(), 3003);
        for entry in &all {
            let metadata = fs::symlink_metadata(path.join(OsStr::from_bytes(&entry.name))).unwrap();
            assert_eq!(entry.kind == FileType::Directory, metadata.is_dir(), "{entry:?}");
            if entry.name != b".." {
                assert_eq!(entry.number, metadata.ino(), "{entry:?}");
            }
        }
        for index in [0, 1, 2, 500, 1500, 2999, 3001, 3002] {
            rustix::fs::seek(&folder, SeekFrom::Start(all[index].next)).unwrap();
            assert_eq!(rest(&folder), all[index + 1..], "from entry {index}");
        }
        rustix::fs::seek(&folder, SeekFrom::Start(0)).unwrap();
        assert_eq!(rest(&folder), all, "from the beginning again");
        assert_eq!(rest(&folder), [], "at the end");
    });
}
