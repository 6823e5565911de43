//! A snapshot: everything that the logs before it say, each object once. Written beside and renamed in, so it is there whole or not at all. Its
//! frames don't depend on each other: they are read by several threads, and what a damaged one held is all that is lost by it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::frame::{self, Found, Frames};
use crate::store::record::{self, Entries};

/// Bytes at which a frame is closed.
const FRAME: usize = 256 << 10;

/// Most threads that read.
const READERS: usize = 4;

/// A snapshot that is being written.
#[derive(Debug)]
pub struct Writer {
    pub(super) number: u64,
    path: PathBuf,
    file: File,
    payload: Vec<u8>,
    sequence: u64,
    length: u64,
}

impl Writer {
    pub(super) fn create(path: PathBuf, number: u64) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        Ok(Self { number, path, file, payload: Vec::new(), sequence: 0, length: 0 })
    }

    /// Writes the head, which comes first: the datasets, and about how many objects will follow.
    pub fn head<'a>(
        &mut self,
        objects: u64,
        datasets: impl Iterator<Item = (&'a String, &'a record::DatasetSlot)>,
    ) -> io::Result<()> {
        record::put_count(&mut self.payload, objects);
        for (uid, slot) in datasets {
            record::put_dataset(&mut self.payload, *slot, uid);
        }
        self.close_frame()
    }

    /// Where entries go. To be followed by [`Writer::flush`] before there are too many.
    pub fn entries(&mut self) -> &mut Vec<u8> {
        &mut self.payload
    }

    /// Writes what has come together, if it is enough for a frame.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.payload.len() >= FRAME { self.close_frame() } else { Ok(()) }
    }

    fn close_frame(&mut self) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(self.payload.len() + 32);
        frame::put(&mut bytes, self.sequence, &self.payload);
        self.file.write_all(&bytes)?;
        self.length += bytes.len() as u64;
        self.sequence += 1;
        self.payload.clear();
        Ok(())
    }

    /// Brings all of it to the disk; its length.
    pub(super) fn finish(&mut self) -> io::Result<u64> {
        self.close_frame()?;
        self.file.sync_data()?;
        Ok(self.length)
    }

    /// Leaves a file as a crash would.
    #[cfg(test)]
    pub fn stop_half_way(&mut self) {
        self.payload.truncate(self.payload.len() / 2);
        let _ = self.file.write_all(&self.payload);
    }

    /// Of the file that is not finished.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// What reading a snapshot found.
#[derive(Debug)]
pub enum Read {
    /// All of it, but for so many places that are damaged.
    Read {
        /// Bytes of the file.
        length: u64,
        /// Places that are damaged.
        damaged: usize,
    },
    /// The head is damaged: without it nothing else makes sense.
    NoHead,
}

/// Calls `head` with the entries of the head, then `each` with those of every other frame, from several threads.
pub fn read(path: &Path, head: impl FnOnce(Entries<'_>), each: &(dyn Fn(&mut Entries<'_>) + Sync)) -> io::Result<Read> {
    let mut frames = Frames::new(File::open(path)?)?;
    let length = frames.length();
    let mut payload = Vec::new();
    match frames.next(&mut payload)? {
        Found::Frame(first) if first.is_of(&payload) && first.sequence == 0 => head(Entries::new(&payload)),
        _ => return Ok(Read::NoHead),
    }
    let frames = Mutex::new((frames, 0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(READERS);
    let results: Vec<io::Result<usize>> = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..threads).map(|_| scope.spawn(|| read_frames(&frames, each))).collect();
        let panicked = || Err(io::Error::other("a thread that reads the snapshot panicked"));
        readers.into_iter().map(|reader| reader.join().unwrap_or_else(|_| panicked())).collect()
    });
    let bad: usize = results.into_iter().sum::<io::Result<usize>>()?;
    Ok(Read::Read { length, damaged: bad + frames.into_inner().1 })
}

/// Reads frames, in turn with others, to the end; how many were damaged.
fn read_frames(frames: &Mutex<(Frames, usize)>, each: &(dyn Fn(&mut Entries<'_>) + Sync)) -> io::Result<usize> {
    let (mut payload, mut bad) = (Vec::new(), 0);
    loop {
        let head = {
            let (frames, places) = &mut *frames.lock();
            match frames.next(&mut payload)? {
                Found::Frame(head) => head,
                Found::End => return Ok(bad),
                Found::Nothing => {
                    *places += 1;
                    let offset = frames.offset();
                    if !frames.seek_behind(offset)? {
                        frames.seek_end();
                    }
                    continue;
                }
            }
        };
        let mut entries = Entries::new(&payload);
        if !head.is_of(&payload) {
            bad += 1;
            continue;
        }
        each(&mut entries);
        bad += usize::from(!entries.is_through());
    }
}
