//! Chunks for peers, straight from the file: the file and what its bytes must be, instead of the bytes. Small ones are copied.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use forebay_catalog::ObjectId;

use super::verify::Expected;
use super::{ObjectRef, Store, StoreError, Verdict, blocking};
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
        let (this, id) = (Arc::clone(self), object.id);
        blocking(move || {
            let Some((lent, expected)) = this.lend_now(&id, chunk)? else { return Ok(None) };
            match bring_in(&lent) {
                Ok(()) => Ok(Some(lent)),
                Err(error) => this.judge(&id, chunk, &expected, Err(error)).map(|_| None),
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
        let Some((lent, expected)) = self.lend_now(&object.id, chunk)? else { return Ok(None) };
        let begin = to.len();
        to.resize(begin + usize::try_from(lent.range.length).unwrap_or_default(), 0);
        let bytes = to.get_mut(begin..).unwrap_or_default();
        let read = lent.file.read_exact_at(bytes, lent.range.offset).map(|()| crc32c::crc32c(bytes));
        let verdict = self.judge(&object.id, chunk, &expected, read);
        if matches!(verdict, Ok(Verdict::Good)) {
            return Ok(Some(lent.crc));
        }
        to.truncate(begin);
        verdict.map(|_| None)
    }

    fn lend_now(&self, id: &ObjectId, chunk: ChunkIndex) -> Result<Option<(Lent, Expected)>, StoreError> {
        let Some(expected) = self.expected(id, chunk) else { return Ok(None) };
        let Some(crc) = expected.crc else { return Ok(None) };
        self.note_use(id);
        let file = match self.backing.open(id) {
            Ok(Some(found)) => found.file,
            Ok(None) => return self.judge(id, chunk, &expected, Err(io::ErrorKind::NotFound.into())).map(|_| None),
            Err(error) => return self.judge(id, chunk, &expected, Err(error)).map(|_| None),
        };
        Ok(Some((Lent { file, range: chunk.range(expected.size), crc }, expected)))
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
