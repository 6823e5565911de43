//! A bucket's objects as files: keys of all kinds, empty files and folders, deep trees, and where each file says that it comes from.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::LARGE;
use crate::support::mounted::MODES;
use crate::support::program::{Foreground, mount};
use crate::support::s3::{KEY_ID, S3, SECRET};
use crate::support::{Scratch, bytes, can_mount, digest, digests, wait_for};

const BUCKET: &str = "odd-keys";

/// Keys below the source's prefix, and their content. Those that S3's XML or its clients can't say (not UTF-8, line breaks) are in `problems.rs` of
/// `cache-node/tests/node`.
fn objects() -> Vec<(String, Vec<u8>)> {
    let names = [
        "größe 日本語 🦀",
        "e\u{301} as two characters",
        "a+b&c=d;e,f%2Fg%zz?h#i@j!k~l",
        "'quotes' \"double\" `back` <tag> & $HOME",
        "back\\slash",
        "[*?{}]",
        "-rf",
        "...",
        " ",
        "ends with a blank ",
        ".hidden",
    ];
    let mut all: Vec<_> = names.iter().map(|name| ((*name).to_owned(), name.as_bytes().to_vec())).collect();
    all.extend(names.iter().map(|name| (format!("in/{name}/{name}"), format!("in a folder: {name}").into_bytes())));
    all.push(("n".repeat(255), b"255 bytes".to_vec()));
    all.push((format!("long/{}/{}", "d".repeat(255), "ü".repeat(127)), b"254 bytes in a folder of 255".to_vec()));
    // A key has at most 1024 bytes.
    all.push((format!("deep/{}leaf", "d/".repeat(490)), b"deep".to_vec()));
    all.push(("empty".to_owned(), Vec::new()));
    all.push(("void/empty".to_owned(), Vec::new()));
    all.push(("large".to_owned(), bytes(1, LARGE)));
    all
}

fn attribute(path: &Path, name: &str) -> String {
    let mut value = vec![0; 4096];
    let length =
        rustix::fs::getxattr(path, name, &mut value).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    value.truncate(length);
    String::from_utf8(value).unwrap()
}

#[test]
fn keys_of_all_kinds_are_files_and_say_where_they_come_from() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::in_memory();
    let server = S3::start(&scratch.folder("s3"));
    server.make_bucket(BUCKET);
    let objects = objects();
    let keyed: Vec<_> = objects.iter().map(|(key, content)| (format!("data/{key}"), content.clone())).collect();
    server.upload(BUCKET, &keyed.iter().map(|(key, content)| (key.as_str(), content.clone())).collect::<Vec<_>>());
    server.make_folder(BUCKET, "data/nothing in it");
    server.make_folder(BUCKET, "data/void/inner");

    let mut expected: BTreeMap<PathBuf, Option<String>> =
        objects.iter().map(|(key, content)| (PathBuf::from(key), Some(digest(content)))).collect();
    for (key, _) in &objects {
        for folder in Path::new(key).ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()) {
            expected.insert(folder.to_owned(), None);
        }
    }
    expected.extend(["nothing in it", "void/inner"].map(|folder| (folder.into(), None)));

    for mode in MODES {
        for (preload, cold) in [("", true), ("  preload: {}\n", false)] {
            println!("mode {}, {}", mode.0, if cold { "cold" } else { "complete" });
            let manifest = format!(
                "apiVersion: forebay.dev/v1alpha1
kind: Dataset
metadata: {{name: keys}}
spec:
{preload}  mounts: [{{path: /, sources: [{{url: 's3://{BUCKET}/data/', endpoint: '{}'}}]}}]
",
                server.endpoint()
            );
            let manifest = scratch.file("dataset.yaml", manifest);
            let name = format!("{}-{cold}", mode.0);
            let tree = scratch.folder(&format!("tree-{name}"));
            let mut command = mount(mode, &manifest, &tree, &scratch.path().join(format!("cache-{name}")));
            command.env("AWS_ACCESS_KEY_ID", KEY_ID).env("AWS_SECRET_ACCESS_KEY", SECRET);
            let mut process = Foreground::start(&mut command, &scratch);
            assert!(!process.said().contains("skipped"), "{}", process.said());
            if !cold {
                wait_for("the preload", Duration::from_secs(60), || process.said().contains("preload complete"));
            }
            let found = digests(&tree);
            for (path, content) in &expected {
                assert_eq!(found.get(path), Some(content), "{path:?}");
            }
            assert_eq!(found.len(), expected.len(), "and no more: {:?}", found.keys());
            for (key, content) in &objects {
                let (path, stored) = (tree.join(key), server.path(BUCKET, &format!("data/{key}")));
                assert_eq!(attribute(&path, "user.forebay.source"), format!("s3://{BUCKET}/data/{key}"));
                let etag = attribute(&stored, "user.etag");
                assert_eq!(attribute(&path, "user.forebay.etag"), etag.trim_matches('"'), "{key}");
                let (shown, stored) = (path.metadata().unwrap(), stored.metadata().unwrap());
                assert_eq!((shown.len(), shown.mtime()), (content.len() as u64, stored.mtime()), "{key}");
            }
            assert_eq!(fs::read_dir(tree.join("nothing in it")).unwrap().count(), 0);
            process.signal(rustix::process::Signal::INT);
            assert!(process.wait().success(), "{}", process.said());
        }
    }
}
