//! A log: one frame for each commit, on the disk before the commit is done. What a failed append leaves is cut off before the next one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::frame::{self, Found, Frames};
use crate::store::record::Entries;

/// A log that is written.
#[derive(Debug)]
pub struct Log {
    file: File,
    /// Bytes of whole frames; what is behind is worth nothing.
    length: u64,
    sequence: u64,
    /// An append failed, and what it left could not be cut off yet.
    torn: bool,
}

/// What reading a log found.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// Frames up to here; behind them at most a torn one.
    Whole {
        /// Bytes of whole frames.
        length: u64,
        /// Of the next frame.
        sequence: u64,
    },
    /// A frame is damaged that others follow.
    Damaged {
        /// Where it begins.
        offset: u64,
    },
}

impl Log {
    /// Makes a new, empty log.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(Self { file, length: 0, sequence: 0, torn: false })
    }

    /// Goes on with a log that was read; cuts off what is behind its whole frames.
    pub fn resume(path: &Path, length: u64, sequence: u64) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).open(path)?;
        let mut log = Self { file, length, sequence, torn: true };
        log.cut()?;
        Ok(log)
    }

    /// Bytes of its frames.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Adds a frame; it is on the disk when this returns. When it fails nothing was added.
    pub fn append(&mut self, payload: &[u8], #[cfg(test)] crash: &crate::store::crash::Crash) -> io::Result<()> {
        if self.torn {
            self.cut()?;
        }
        let mut bytes = Vec::with_capacity(payload.len() + 32);
        frame::put(&mut bytes, self.sequence, payload);
        #[cfg(test)]
        if crash.log_stops(&self.file, self.length, &bytes) {
            return Ok(());
        }
        let written = self.file.write_all_at(&bytes, self.length).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            self.torn = true;
            // Tried again before the next append.
            let _ = self.cut();
            return Err(error);
        }
        self.length += bytes.len() as u64;
        self.sequence += 1;
        #[cfg(test)]
        self.note(crash);
        Ok(())
    }

    /// What it has now survives a loss of power.
    #[cfg(test)]
    pub fn note(&self, crash: &crate::store::crash::Crash) {
        crash.note_log(&self.file, self.length);
    }

    fn cut(&mut self) -> io::Result<()> {
        if self.file.metadata()?.len() != self.length {
            self.file.set_len(self.length)?;
            self.file.sync_data()?;
        }
        self.torn = false;
        Ok(())
    }
}

/// Calls `each` with every frame's entries, in order.
pub fn read(path: &Path, each: &mut dyn FnMut(Entries<'_>) -> bool) -> io::Result<Read> {
    let mut frames = Frames::new(File::open(path)?)?;
    let (mut payload, mut sequence) = (Vec::new(), 0);
    loop {
        let offset = frames.offset();
        match frames.next(&mut payload)? {
            Found::End => return Ok(Read::Whole { length: offset, sequence }),
            Found::Frame(head) if head.is_of(&payload) && head.sequence == sequence => {
                if !each(Entries::new(&payload)) {
                    return Ok(Read::Damaged { offset });
                }
                sequence += 1;
            }
            // A crash tears the last frame only: the next is not begun before it is on the disk.
            Found::Frame(_) | Found::Nothing => {
                let damaged = frames.seek_behind(offset)?;
                return Ok(if damaged { Read::Damaged { offset } } else { Read::Whole { length: offset, sequence } });
            }
        }
    }
}
