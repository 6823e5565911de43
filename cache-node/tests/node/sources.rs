//! What every source does, shown for every implementation.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::time::Duration;

use forebay_cache_node::problem::Reason;
use forebay_cache_node::source::file::FileSource;
use forebay_cache_node::source::location::Location;
use forebay_cache_node::source::retry::{Patience, read_range};
use forebay_cache_node::source::s3::S3Source;
use forebay_cache_node::source::{Listed, ObjectVersion, Source, SourceError};
use forebay_cache_node::units::ByteRange;
use forebay_catalog::Mtime;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;

use crate::common::gateway::Gateway;
use crate::common::{content, scratch};

const ONCE: Patience = Patience { retries: 0, first_wait: Duration::from_millis(1) };

/// A source and the way to change what is behind it.
trait World {
    fn source(&self) -> Arc<dyn Source>;
    async fn put(&self, key: &str, bytes: Vec<u8>);
    async fn delete(&self, key: &str);
    /// The key in the source of a file that was put.
    fn key(&self, name: &str) -> Vec<u8>;
}

async fn list(source: &dyn Source) -> Result<BTreeMap<Vec<u8>, (ObjectVersion, Mtime)>, SourceError> {
    let pages: Vec<Vec<Listed>> = source.list().try_collect().await?;
    let objects = pages.into_iter().flatten().filter_map(|listed| match listed {
        Listed::Object { key, size, modified, etag } => {
            Some((key.clone(), (ObjectVersion { key, size, etag }, modified)))
        }
        _ => None,
    });
    Ok(objects.collect())
}

async fn read(source: &dyn Source, object: &ObjectVersion, offset: u64, length: u64) -> Result<Vec<u8>, SourceError> {
    read_range(source, ONCE, object, ByteRange { offset, length }).await.map(Into::into)
}

async fn conforms(world: &impl World) {
    let source = world.source();
    let source = source.as_ref();
    let names = ["plain", "in/a/folder", "a b+c%d&e=f?g#h", "ünïcode/日本", "new\nline", "'quotes\"", "-~_.!*()"];
    let files: BTreeMap<_, _> = names.iter().zip(1..).map(|(name, i)| (*name, content(i, 1000 * i as usize))).collect();
    for (name, bytes) in &files {
        world.put(name, bytes.clone()).await;
    }
    world.put("empty", Vec::new()).await;

    // Everything is listed, under the keys it can be read by.
    let listed = list(source).await.unwrap();
    assert_eq!(listed.len(), files.len() + 1, "{listed:?}");
    for (name, bytes) in &files {
        let (object, modified) = &listed[&world.key(name)];
        assert_eq!(object.size, bytes.len() as u64);
        assert!(modified.seconds > 1_700_000_000, "{modified:?}");
        assert!(read(source, object, 0, object.size).await.unwrap() == *bytes, "{name}");
        assert!(read(source, object, 10, 100).await.unwrap() == bytes[10..110], "{name}");
        assert!(read(source, object, object.size - 1, 1).await.unwrap() == bytes[bytes.len() - 1..], "{name}");
    }
    assert_eq!(listed[&world.key("empty")].0.size, 0);

    // The same listing gives the same versions.
    assert_eq!(list(source).await.unwrap(), listed);

    // A version that is no more is never read, not even in part.
    let before = listed[&world.key("plain")].0.clone();
    for changed in [content(100, 1000), content(101, 999), content(102, 5000), Vec::new()] {
        world.put("plain", changed).await;
        let error = read(source, &before, 0, 10).await.unwrap_err();
        assert_eq!(error.reason(), Reason::ObjectChanged, "{error}");
        assert!(error.to_string().contains("plain"), "{error}");
    }
    world.delete("plain").await;
    let error = read(source, &before, 0, 10).await.unwrap_err();
    assert_eq!(error.reason(), Reason::ObjectNotFound, "{error}");
    assert!(!error.is_transient());

    // Many objects come in pages.
    let many: Vec<_> = (0..2500).map(|i| format!("many/{i:05}")).collect();
    futures::stream::iter(&many).for_each_concurrent(32, |name| world.put(name, vec![1])).await;
    let pages: Vec<Vec<Listed>> = source.list().try_collect().await.unwrap();
    assert!(pages.len() >= 3 && pages.iter().all(|page| page.len() <= 1001), "{} pages", pages.len());
    let listed = list(source).await.unwrap();
    assert!(many.iter().all(|name| listed.contains_key(&world.key(name))));
}

struct Files {
    folder: tempfile::TempDir,
}

impl World for Files {
    fn source(&self) -> Arc<dyn Source> {
        Arc::new(FileSource::new(self.folder.path().to_owned()))
    }

    async fn put(&self, key: &str, bytes: Vec<u8>) {
        let path = self.folder.path().join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    async fn delete(&self, key: &str) {
        std::fs::remove_file(self.folder.path().join(key)).unwrap();
    }

    fn key(&self, name: &str) -> Vec<u8> {
        name.as_bytes().to_vec()
    }
}

struct Bucket {
    gateway: Gateway,
}

impl World for Bucket {
    fn source(&self) -> Arc<dyn Source> {
        let config = Gateway::source_at(self.gateway.address, "pre fix/");
        let Location::S3(location) = Location::parse(&config).unwrap() else { panic!() };
        Arc::new(S3Source::new(location, config.credentials.as_ref()).unwrap())
    }

    async fn put(&self, key: &str, bytes: Vec<u8>) {
        // As a file below the gateway's folder: object_store refuses to put some keys that S3 takes.
        if key.contains('\n') {
            self.gateway.put_raw(&format!("pre fix/{key}"), &bytes);
        } else {
            self.gateway.put([(format!("pre fix/{key}"), bytes)]).await;
        }
    }

    async fn delete(&self, key: &str) {
        let path = object_store::path::Path::parse(format!("pre fix/{key}")).unwrap();
        self.gateway.store("data").delete(&path).await.unwrap();
    }

    fn key(&self, name: &str) -> Vec<u8> {
        format!("pre fix/{name}").into_bytes()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_a_source() {
    conforms(&Files { folder: scratch() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_is_a_source() {
    let Some(gateway) = Gateway::start().await else { return };
    gateway.put([("outside".to_owned(), vec![1]), ("pre fixture".to_owned(), vec![1])]).await;
    conforms(&Bucket { gateway }).await;
}

#[tokio::test]
async fn links_and_special_files_are_named_and_never_followed() {
    let folder = scratch();
    let secret = scratch();
    std::fs::write(secret.path().join("secret"), "hidden").unwrap();
    std::fs::create_dir(folder.path().join("d")).unwrap();
    std::fs::write(folder.path().join("d/f"), "shown").unwrap();
    symlink(secret.path().join("secret"), folder.path().join("link")).unwrap();
    symlink(secret.path(), folder.path().join("folder-link")).unwrap();
    rustix::fs::mknodat(
        File::open(folder.path()).unwrap(),
        "pipe",
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let source = FileSource::new(folder.path().to_owned());
    let listed: Vec<Listed> = source.list().try_concat().await.unwrap();
    let mut unusable: Vec<_> = listed
        .iter()
        .filter_map(|listed| match listed {
            Listed::Unusable { key, reason } => Some((String::from_utf8_lossy(key).into_owned(), reason.as_str())),
            _ => None,
        })
        .collect();
    unusable.sort();
    let link = "is a symbolic link";
    let expected = [("folder-link", link), ("link", link), ("pipe", "is neither a file nor a folder")];
    assert_eq!(unusable, expected.map(|(name, reason)| (name.to_owned(), reason)));
    for key in ["link", "folder-link/secret", "../x", "pipe", "d/../d/f"] {
        let object = ObjectVersion { key: key.into(), size: 6, etag: "e".to_owned() };
        assert!(read(&source, &object, 0, 6).await.is_err(), "{key}");
    }
}

#[tokio::test]
async fn a_folder_that_is_not_there_says_so() {
    let folder = scratch();
    let source = FileSource::new(folder.path().join("missing"));
    let error = list(&source).await.unwrap_err();
    assert_eq!(error.reason(), Reason::BucketNotFound, "{error}");
}
