//! The files behind objects: sparse ones in `partial/` while chunks are missing, whole ones in `objects/`. Knows paths and system calls,
//! nothing of what is in the files.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use forebay_catalog::ObjectId;
use forebay_protocol::config::CHUNK_BYTES;
use forebay_protocol::layout::CacheLayout;
use rustix::fs::Advice;
use rustix::io::ReadWriteFlags;

/// Most files that are synced one by one; with more, one `syncfs` is cheaper.
const FEW_FILES: usize = 4;

/// The two folders of a cache folder that hold objects.
#[derive(Clone, Debug)]
pub struct Backing {
    objects: PathBuf,
    partial: PathBuf,
    /// The folder of objects, by which the file system is synced.
    root: Arc<File>,
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
        let (objects, partial) = (layout.objects(), layout.partial());
        for folder in [&objects, &partial] {
            for byte in 0..=255_u8 {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(folder.join(format!("{byte:02x}")))?;
            }
        }
        let this = Self { root: Arc::new(File::open(&objects)?), objects, partial };
        // Of a process that was killed while it probed.
        let _ = fs::remove_file(this.probe_path());
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

    /// Opens the partial file of an object of `size` bytes for writing; none when it is not there, or not of that size.
    pub fn open_partial(&self, id: &ObjectId, size: u64) -> io::Result<Option<File>> {
        match OpenOptions::new().write(true).open(self.partial_path(id)) {
            Ok(file) => Ok((file.metadata()?.len() == size).then_some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Length of the partial file of an object; none when it is not there.
    pub fn partial_length(&self, id: &ObjectId) -> io::Result<Option<u64>> {
        match fs::metadata(self.partial_path(id)) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes all of an object into its partial file, which need not be there. Who has it open sees the bytes.
    pub fn write_whole(&self, id: &ObjectId, bytes: &[u8]) -> io::Result<()> {
        // Never truncated: a reader may have mapped it.
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(self.partial_path(id))?;
        write_at(&file, bytes, 0)
    }

    /// Brings everything that was written to the disk, also what is closed.
    pub fn sync_all(&self) -> io::Result<()> {
        #[cfg(test)]
        failing::check(&self.root, failing::Call::Sync)?;
        Ok(rustix::fs::syncfs(&self.root)?)
    }

    /// The two folders.
    #[cfg(test)]
    pub fn folders(&self) -> [&Path; 2] {
        [&self.objects, &self.partial]
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

    /// Moves a published file back, since a chunk of it is to be written anew. Who has it open keeps it open.
    pub fn unpublish(&self, id: &ObjectId) -> io::Result<()> {
        match fs::rename(self.object_path(id), self.partial_path(id)) {
            // It was never published: a crash came before.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.partial_path(id).exists() => Ok(()),
            moved => moved,
        }
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
        for path in self.paths(id) {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Where an object's file is, or where else.
    pub(super) fn paths(&self, id: &ObjectId) -> [PathBuf; 2] {
        [self.object_path(id), self.partial_path(id)]
    }

    /// Bytes in use on the file system, whoever's they are.
    #[cfg(test)]
    pub(super) fn used_on_disk(&self) -> u64 {
        let facts = rustix::fs::statvfs(&self.objects).unwrap();
        (facts.f_blocks - facts.f_bfree) * facts.f_frsize
    }

    /// Whether any object was ever published and not removed. As far as the folder can be read.
    pub fn has_objects(&self) -> bool {
        let folders = fs::read_dir(&self.objects).into_iter().flatten().flatten();
        folders.filter_map(|folder| fs::read_dir(folder.path()).ok()).any(|mut files| files.next().is_some())
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

impl Backing {
    fn probe_path(&self) -> PathBuf {
        self.partial.join("00").join("probe")
    }

    /// Writes and syncs as many bytes as a chunk has, to see whether the disk takes them.
    pub fn probe(&self) -> io::Result<()> {
        let path = self.probe_path();
        let written = File::create(&path).and_then(|file| {
            file.write_all_at(&vec![0xa5; CHUNK_BYTES as usize], 0)?;
            file.sync_all()
        });
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => written.and(Err(error)),
            _ => written,
        }
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
    #[cfg(test)]
    failing::check(file, failing::Call::Write)?;
    file.write_all_at(bytes, offset)
}

/// The same for two parts, one after the other.
pub fn write_both_at(file: &File, [first, second]: [&[u8]; 2], offset: u64) -> io::Result<()> {
    if first.is_empty() {
        return write_at(file, second, offset);
    }
    #[cfg(test)]
    failing::check(file, failing::Call::Write)?;
    let written = rustix::io::pwritev(file, &[io::IoSlice::new(first), io::IoSlice::new(second)], offset)?;
    // Seldom: the disk is full, or a signal came.
    let after = offset + written as u64;
    match (first.get(written..), second.get(written.saturating_sub(first.len())..)) {
        (Some(left), _) if !left.is_empty() => {
            file.write_all_at(left, after)?;
            file.write_all_at(second, offset + first.len() as u64)
        }
        (_, Some(left)) if !left.is_empty() => file.write_all_at(left, after),
        _ => Ok(()),
    }
}

/// Reads exactly so many bytes at an offset.
pub fn read_at(file: &File, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    #[cfg(test)]
    failing::check(file, failing::Call::Read)?;
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// Fills the buffer from an offset; whether all of it was in memory already.
pub fn read_piece(file: &File, piece: &mut [u8], offset: u64) -> io::Result<bool> {
    #[cfg(test)]
    failing::check(file, failing::Call::Read)?;
    let cached = rustix::io::preadv2(file, &mut [io::IoSliceMut::new(piece)], offset, ReadWriteFlags::NOWAIT);
    match cached {
        Ok(length) if length == piece.len() => return Ok(true),
        // Not all of it is in memory, or the file system can't tell: all the same.
        _ => file.read_exact_at(piece, offset)?,
    }
    Ok(false)
}

/// Lets the kernel forget pages that were only read to be verified.
pub fn drop_pages(file: &File, offset: u64, length: u64) {
    // No more than a hint.
    let _ = rustix::fs::fadvise(file, offset, NonZeroU64::new(length), Advice::DontNeed);
}

/// Brings what was written to these files to the disk.
pub fn sync(files: &[&File]) -> io::Result<()> {
    #[cfg(test)]
    files.iter().try_for_each(|file| failing::check(file, failing::Call::Sync))?;
    if files.len() <= FEW_FILES {
        return files.iter().try_for_each(|file| file.sync_data());
    }
    match files.first() {
        Some(file) => Ok(rustix::fs::syncfs(file)?),
        None => Ok(()),
    }
}

/// Files whose system calls fail with EIO, for tests: no device of the machine does that for one file.
#[cfg(test)]
pub mod failing {
    use std::collections::HashSet;
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::MetadataExt;

    use parking_lot::Mutex;
    use rustix::io::Errno;

    /// What fails.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum Call {
        Read,
        Write,
        Sync,
    }

    static FILES: Mutex<Option<HashSet<(u64, u64, Call)>>> = Mutex::new(None);

    fn key(path: &std::fs::Metadata, call: Call) -> (u64, u64, Call) {
        (path.dev(), path.ino(), call)
    }

    /// From now on the call fails for the file at `path`.
    pub fn fail(path: &std::path::Path, call: Call) {
        let key = key(&std::fs::metadata(path).unwrap(), call);
        FILES.lock().get_or_insert_default().insert(key);
    }

    /// And now no more.
    pub fn heal(path: &std::path::Path, call: Call) {
        let key = key(&std::fs::metadata(path).unwrap(), call);
        FILES.lock().get_or_insert_default().remove(&key);
    }

    pub(super) fn check(file: &File, call: Call) -> io::Result<()> {
        let fails = FILES
            .lock()
            .as_ref()
            .is_some_and(|files| !files.is_empty() && files.contains(&key(&file.metadata().unwrap(), call)));
        if fails { Err(Errno::IO.into()) } else { Ok(()) }
    }
}
