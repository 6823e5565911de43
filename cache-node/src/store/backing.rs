//! The files behind objects: sparse ones in `partial/` while chunks are missing, whole ones in `objects/`. Knows paths and system calls,
//! nothing of what is in the files.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use forebay_catalog::ObjectId;
use forebay_protocol::layout::CacheLayout;

use super::held::Space;

/// Most files that are synced one by one; with more, one `syncfs` is cheaper.
const FEW_FILES: usize = 4;

/// The two folders of a cache folder that hold objects.
#[derive(Clone, Debug)]
pub struct Backing {
    objects: PathBuf,
    partial: PathBuf,
}

/// A file that was opened for reading, and where it was found.
#[derive(Debug)]
pub struct Found {
    /// The file, read-only.
    pub file: File,
    /// It stands in `objects/`.
    pub complete: bool,
}

impl Backing {
    /// Makes the folders and their 256 subfolders, so that no later write has to.
    pub fn create(layout: &CacheLayout) -> io::Result<Self> {
        let this = Self { objects: layout.objects(), partial: layout.partial() };
        for folder in [&this.objects, &this.partial] {
            for byte in 0..=255_u8 {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(folder.join(format!("{byte:02x}")))?;
            }
        }
        Ok(this)
    }

    fn object_path(&self, id: &ObjectId) -> PathBuf {
        self.objects.join(id.relative_path())
    }

    fn partial_path(&self, id: &ObjectId) -> PathBuf {
        self.partial.join(id.relative_path())
    }

    /// Opens the partial file of an object of `size` bytes for writing; makes it if it is not there.
    pub fn open_for_writing(&self, id: &ObjectId, size: u64) -> io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.partial_path(id))?;
        if file.metadata()?.len() != size {
            file.set_len(size)?;
        }
        Ok(file)
    }

    /// Opens an object's file for reading, wherever it is; none when it is nowhere.
    pub fn open(&self, id: &ObjectId) -> io::Result<Option<Found>> {
        // Renamed between two tries, it is found by the third.
        for (path, complete) in
            [(self.object_path(id), true), (self.partial_path(id), false), (self.object_path(id), true)]
        {
            match File::open(path) {
                Ok(file) => return Ok(Some(Found { file, complete })),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Moves a partial file, now whole, to `objects/`.
    pub fn publish(&self, id: &ObjectId) -> io::Result<()> {
        fs::rename(self.partial_path(id), self.object_path(id))
    }

    /// Removes a partial file that was made beside a complete object, by who did not know yet that it was complete.
    pub fn remove_stray(&self, id: &ObjectId) {
        match fs::remove_file(self.partial_path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%id, %error, "a stray file could not be removed");
            }
            _ => {}
        }
    }

    /// Removes an object's files. Who has one open keeps its bytes.
    pub fn remove(&self, id: &ObjectId) -> io::Result<()> {
        for path in [self.object_path(id), self.partial_path(id)] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// What the file system says of its space; none when it does not.
    pub(super) fn space(&self) -> Option<Space> {
        let facts = rustix::fs::statvfs(&self.objects).ok()?;
        let used = facts.f_blocks.saturating_sub(facts.f_bfree).saturating_mul(facts.f_frsize);
        Some(Space { used, available: facts.f_bavail.saturating_mul(facts.f_frsize) })
    }

    /// Calls `each` with every id that has a file.
    pub fn for_each_file(&self, mut each: impl FnMut(ObjectId)) -> io::Result<()> {
        for folder in [&self.objects, &self.partial] {
            for outer in fs::read_dir(folder)? {
                let outer = outer?;
                for inner in fs::read_dir(outer.path())? {
                    let name = inner?.file_name();
                    if let Some(id) = ObjectId::from_folder_and_name(outer.file_name().as_bytes(), name.as_bytes()) {
                        each(id);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Removes a folder with everything in it; one that is not there is fine.
pub fn remove_all(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes all bytes at an offset.
pub fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)
}

/// Reads exactly so many bytes at an offset.
pub fn read_at(file: &File, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// Brings what was written to these files to the disk.
pub fn sync(files: &[&File]) -> io::Result<()> {
    if files.len() <= FEW_FILES {
        return files.iter().try_for_each(|file| file.sync_data());
    }
    match files.first() {
        Some(file) => Ok(rustix::fs::syncfs(file)?),
        None => Ok(()),
    }
}
