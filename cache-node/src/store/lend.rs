//! Chunks for peers, straight from the file: the file and what its bytes must be, instead of the bytes. Small ones are copied.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::slot::Body;
use super::{ObjectRef, Store, StoreError, blocking};
use crate::units::{ByteRange, ChunkIndex};

/// Pages are brought into memory before the bytes are sent, so that sending waits for no disk; one look at each read-ahead window.
const WINDOW: u64 = 128 << 10;

/// A chunk in its file. The file stays as it is while this is held, whatever is evicted meanwhile: an unlinked file keeps its bytes.
#[derive(Debug)]
pub struct Lent {
    /// The object's file, open for reading.
    pub file: File,
    /// Where in it the chunk is.
    pub range: ByteRange,
    /// Its crc32c as it should be. What the disk holds is verified by who receives it.
    pub crc: u32,
}

impl Store {
    /// Lends a chunk; none when it is not here. When this returns its bytes are in the page cache, as far as that has room.
    pub async fn lend(self: &Arc<Self>, object: &ObjectRef, chunk: ChunkIndex) -> Result<Option<Lent>, StoreError> {
        let (this, object) = (Arc::clone(self), *object);
        blocking(move || {
            let Some(lent) = this.lend_now(&object, chunk)? else { return Ok(None) };
            match bring_in(&lent) {
                Ok(()) => Ok(Some(lent)),
                Err(error) => {
                    this.drop_faulty(&object, chunk, &error.to_string());
                    Ok(None)
                }
            }
        })
        .await
    }

    /// Puts a small object's or chunk's verified bytes behind `to` and returns their crc32c; none when they are not here. Blocks.
    pub fn copy_chunk(
        &self,
        object: &ObjectRef,
        chunk: ChunkIndex,
        to: &mut Vec<u8>,
    ) -> Result<Option<u32>, StoreError> {
        let Some(lent) = self.lend_now(object, chunk)? else { return Ok(None) };
        let begin = to.len();
        to.resize(begin + usize::try_from(lent.range.length).unwrap_or_default(), 0);
        let bytes = to.get_mut(begin..).unwrap_or_default();
        let cause = match lent.file.read_exact_at(bytes, lent.range.offset) {
            Ok(()) if crc32c::crc32c(bytes) == lent.crc => return Ok(Some(lent.crc)),
            Ok(()) => "its checksum is wrong".to_owned(),
            Err(error) => error.to_string(),
        };
        to.truncate(begin);
        self.drop_faulty(object, chunk, &cause);
        Ok(None)
    }

    fn lend_now(&self, object: &ObjectRef, chunk: ChunkIndex) -> Result<Option<Lent>, StoreError> {
        let id = object.id;
        let crc = {
            let mut shard = self.slots.lock(&id);
            let Some(slot) = shard.get_mut(&id).filter(|slot| !slot.evicting && slot.has(chunk)) else {
                return Ok(None);
            };
            slot.visited = true;
            match &slot.body {
                Body::Complete => None,
                Body::Partial(partial) => partial.crcs.get(chunk.0 as usize).copied(),
            }
        };
        let crc = match crc {
            Some(crc) => Some(crc),
            None => self.index.crc(&id, chunk)?,
        };
        let file = match self.backing.open(&id) {
            Ok(Some(found)) => Ok(found.file),
            Ok(None) => Err(io::Error::from(io::ErrorKind::NotFound)),
            Err(error) => Err(error),
        };
        match (file, crc) {
            (Ok(file), Some(crc)) => Ok(Some(Lent { file, range: chunk.range(object.size), crc })),
            (Ok(_), None) => Ok(None),
            (Err(error), _) => {
                self.drop_faulty(object, chunk, &error.to_string());
                Ok(None)
            }
        }
    }

    fn drop_faulty(&self, object: &ObjectRef, chunk: ChunkIndex, cause: &str) {
        // Evicted meanwhile is no fault.
        if self.has(&object.id, chunk) {
            let id = object.id;
            tracing::error!(%id, chunk = chunk.0, cause, "a cached chunk is damaged; the object is fetched again");
            (self.failures)();
            self.forget(&id);
        }
    }
}

/// Waits until the chunk's bytes are in the page cache.
fn bring_in(lent: &Lent) -> io::Result<()> {
    let ByteRange { offset, length } = lent.range;
    if lent.file.metadata()?.len() < lent.range.end() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // Only advice, which some file systems don't take.
    let _ = rustix::fs::fadvise(&lent.file, offset, std::num::NonZeroU64::new(length), rustix::fs::Advice::WillNeed);
    let mut byte = [0];
    let mut looks = (offset..lent.range.end()).step_by(WINDOW as usize).chain([lent.range.end().saturating_sub(1)]);
    looks.try_for_each(|at| lent.file.read_exact_at(&mut byte, at))
}
