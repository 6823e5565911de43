//! The files of complete objects, and registering them where the session's own process may.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use forebay_catalog::ObjectId;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use super::{Away, BackingId, Registrar, device};
use crate::registry::Found;

/// Opens the file of a complete object, in the first of `folders` (the `objects/` of a cache's tiers, fastest first) that has it. What is no
/// regular file of `size` bytes is not taken.
pub fn complete_file<'a>(
    folders: impl IntoIterator<Item = &'a OwnedFd>,
    id: &ObjectId,
    size: u64,
) -> io::Result<Option<File>> {
    let path = id.relative_path();
    // NONBLOCK: whatever lies there, opening it waits for nobody.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for folder in folders {
        let file = match rustix::fs::openat2(folder, &path, flags, Mode::empty(), resolve) {
            Ok(file) => file,
            Err(rustix::io::Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        let stat = rustix::fs::fstat(&file)?;
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !regular || u64::try_from(stat.st_size) != Ok(size) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no regular file of the object's size"));
        }
        return Ok(Some(file.into()));
    }
    Ok(None)
}

/// The registrar of a process that holds the session and serves it too.
#[derive(Debug)]
pub struct RegistrarInProcess {
    session: Arc<OwnedFd>,
    folders: Vec<OwnedFd>,
}

impl RegistrarInProcess {
    /// For a session whose objects lie in `folders`, see [`complete_file`].
    pub fn new(session: Arc<OwnedFd>, folders: Vec<OwnedFd>) -> Self {
        Self { session, folders }
    }
}

impl Registrar for RegistrarInProcess {
    fn register(&self, object: &Found) -> Result<Option<BackingId>, Away> {
        let registered = complete_file(&self.folders, &object.id, object.size)
            .and_then(|file| file.map(|file| device::register(self.session.as_fd(), file)).transpose());
        Ok(registered.unwrap_or_else(|error| {
            tracing::debug!(object = %object.id, %error, "the object's file can't be registered; it is read by way of this process");
            None
        }))
    }

    fn waits(&self) -> bool {
        false
    }

    fn unregister(&self, id: BackingId) -> Result<(), Away> {
        if let Err(error) = device::unregister(self.session.as_fd(), id) {
            tracing::debug!(id, %error, "taking a registration back failed");
        }
        Ok(())
    }
}
