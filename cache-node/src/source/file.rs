//! Folders of this machine (or of a network file system mounted on all nodes) as a source. A file's version is its inode, time of
//! modification and size, checked before and after each read. Symbolic links and special files are not followed, below the root nothing
//! else can be reached.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use forebay_catalog::Mtime;
use futures::StreamExt;
use futures::stream;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Body, Listed, Listing, ObjectVersion, Source, SourceError};
use crate::problem::Reason;
use crate::units::ByteRange;

const PAGE: usize = 1000;

/// A folder.
#[derive(Clone, Debug)]
pub struct FileSource {
    root: PathBuf,
}

impl FileSource {
    /// The folder at `root`, which need not exist yet.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn open_root(&self) -> Result<OwnedFd, SourceError> {
        rustix::fs::openat(CWD, &self.root, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| self.root_error(&errno.into()))
    }

    fn root_error(&self, error: &io::Error) -> SourceError {
        let root = self.root.display();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => SourceError::permanent(
                Reason::BucketNotFound,
                format!(
                    "file://{root}: no such folder on this node; create or mount it on every cache node, or correct the source's url"
                ),
            ),
            io::ErrorKind::PermissionDenied => SourceError::permanent(
                Reason::AccessDenied,
                format!("file://{root}: the cache node may not read the folder; give it read permission"),
            ),
            _ => SourceError::transient(Reason::SourceError, format!("file://{root}: {error}")),
        }
    }

    fn read(&self, object: &ObjectVersion, range: ByteRange) -> Result<Bytes, SourceError> {
        let name = || self.describe(object);
        let root = self.open_root()?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let file = rustix::fs::openat2(&root, object.key.as_slice(), flags, Mode::empty(), resolve)
            .map(File::from)
            .map_err(|errno| match io::Error::from(errno).kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => SourceError::permanent(
                    Reason::ObjectNotFound,
                    format!(
                        "{}: the file is gone; delete the Dataset and create it anew to see what is there now",
                        name()
                    ),
                ),
                io::ErrorKind::PermissionDenied => SourceError::permanent(
                    Reason::AccessDenied,
                    format!("{}: the cache node may not read the file; give it read permission", name()),
                ),
                _ => SourceError::transient(Reason::SourceError, format!("opening {}: {errno}", name())),
            })?;
        let failed = |error: io::Error| {
            SourceError::transient(Reason::SourceError, format!("reading {range} of {}: {error}", name()))
        };
        let check = || {
            let metadata = file.metadata().map_err(failed)?;
            if metadata.is_file() && metadata.size() == object.size && etag(&metadata) == object.etag {
                return Ok(());
            }
            Err(SourceError::permanent(
                Reason::ObjectChanged,
                format!(
                    "{}: the file has changed since the catalog was made; delete the Dataset and create it anew to see what is there now",
                    name()
                ),
            ))
        };
        check()?;
        let mut bytes = vec![0; usize::try_from(range.length).unwrap_or(0)];
        file.read_exact_at(&mut bytes, range.offset).map_err(failed)?;
        check()?;
        Ok(bytes.into())
    }
}

#[async_trait]
impl Source for FileSource {
    fn list(&self) -> Listing {
        let (send, receive) = mpsc::channel(4);
        let source = self.clone();
        tokio::task::spawn_blocking(move || {
            let mut walk = Walk { pages: send, page: Vec::new() };
            let result = source.open_root().and_then(|_| walk.run(&source));
            let last = match result {
                Ok(()) => Ok(std::mem::take(&mut walk.page)),
                Err(error) => Err(error),
            };
            // Nobody listens any more: the listing was given up.
            let _ = walk.pages.blocking_send(last);
        });
        ReceiverStream::new(receive).boxed()
    }

    async fn get(&self, object: &ObjectVersion, range: ByteRange) -> Result<Body, SourceError> {
        let (source, object) = (self.clone(), object.clone());
        let bytes = tokio::task::spawn_blocking(move || source.read(&object, range))
            .await
            .map_err(|error| SourceError::transient(Reason::SourceError, error.to_string()))??;
        Ok(stream::iter([Ok(bytes)]).boxed())
    }

    fn describe(&self, object: &ObjectVersion) -> String {
        format!("file://{}/{}", self.root.display(), String::from_utf8_lossy(&object.key))
    }
}

struct Walk {
    pages: mpsc::Sender<Result<Vec<Listed>, SourceError>>,
    page: Vec<Listed>,
}

impl Walk {
    fn run(&mut self, source: &FileSource) -> Result<(), SourceError> {
        let mut folders: Vec<Vec<u8>> = vec![Vec::new()];
        while let Some(folder) = folders.pop() {
            let path = source.root.join(Path::new(std::ffi::OsStr::from_bytes(&folder)));
            let entries = match std::fs::read_dir(&path) {
                Ok(entries) => entries,
                Err(error) if folder.is_empty() => return Err(source.root_error(&error)),
                Err(error) => {
                    self.add(Listed::Unusable { key: folder, reason: format!("can't be listed: {error}") })?;
                    continue;
                }
            };
            for entry in entries {
                let entry = entry.map_err(|error| {
                    SourceError::transient(Reason::ListingFailed, format!("listing {}: {error}", path.display()))
                })?;
                let mut key = folder.clone();
                if !key.is_empty() {
                    key.push(b'/');
                }
                key.extend_from_slice(&entry.file_name().into_vec());
                let listed = match entry.metadata() {
                    Ok(metadata) if metadata.is_dir() => {
                        folders.push(key.clone());
                        Listed::Folder { key }
                    }
                    Ok(metadata) if metadata.is_file() => Listed::Object {
                        key,
                        size: metadata.size(),
                        modified: Mtime { seconds: metadata.mtime(), nanos: metadata.mtime_nsec() as u32 },
                        etag: etag(&metadata),
                    },
                    Ok(metadata) if metadata.is_symlink() => {
                        Listed::Unusable { key, reason: "is a symbolic link".to_owned() }
                    }
                    Ok(_) => Listed::Unusable { key, reason: "is neither a file nor a folder".to_owned() },
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => Listed::Unusable { key, reason: format!("can't be read: {error}") },
                };
                self.add(listed)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, listed: Listed) -> Result<(), SourceError> {
        self.page.push(listed);
        if self.page.len() >= PAGE {
            let page = std::mem::take(&mut self.page);
            self.pages
                .blocking_send(Ok(page))
                .map_err(|_| SourceError::permanent(Reason::ListingFailed, "the listing was given up"))?;
        }
        Ok(())
    }
}

fn etag(metadata: &Metadata) -> String {
    let nanos = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    format!("{:x}-{:x}-{:x}", metadata.ino(), nanos, metadata.size())
}
