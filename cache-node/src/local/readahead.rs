//! Read-ahead for one open object: while a reader goes on where it left off, the chunks after its place are fetched before it asks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::metrics::Origin;
use crate::units::{ByteRange, ChunkIndex, chunk_count};

/// Most chunks to be ahead of a sequential reader: 96 MiB, what a line of 10 Gbit/s holds in 75 ms, and as much as the default memory has for what
/// comes from a source. The daemon reads what it knows to be present without asking, so the reader is seen only at the end of that, and
/// the distance has to be long.
const AHEAD: u32 = 24;

/// Where a reader is.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    /// End of the furthest read of the current run.
    end: AtomicU64,
    /// Reads in sequence so far.
    run: AtomicU32,
    /// What was fetched ahead and not asked for yet: whether it was cached somewhere, and where it came from.
    fetched: Mutex<HashMap<ChunkIndex, (bool, Origin)>>,
}

impl ReadAhead {
    /// A reader asks for `range` of an object of `size`; these chunks are worth fetching too.
    pub(super) fn observe(&self, range: ByteRange, size: u64) -> Vec<ChunkIndex> {
        let end = self.end.load(Ordering::Relaxed);
        // The kernel's own read-ahead may deliver requests slightly out of order.
        let near = range.offset <= end.saturating_add(1 << 20) && range.end() >= end;
        self.end.store(range.end(), Ordering::Relaxed);
        if !near {
            self.run.store(0, Ordering::Relaxed);
            return Vec::new();
        }
        let run = self.run.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if run < 2 && range.chunks().len() < 2 {
            return Vec::new();
        }
        let next = range.chunks().next_back().map_or(0, |last| last.0.saturating_add(1));
        // Twice as far each time: a short sequence costs little, a long one soon has all.
        let ahead = 1_u32.checked_shl(run).unwrap_or(AHEAD).min(AHEAD);
        (next..next.saturating_add(ahead).min(chunk_count(size))).map(ChunkIndex).collect()
    }

    /// A chunk has come because of this.
    pub(super) fn fetched(&self, chunk: ChunkIndex, was_cached: bool, origin: Origin) {
        self.fetched.lock().insert(chunk, (was_cached, origin));
    }

    /// If a chunk that is present now came because of this: whether it was cached before, and where it came from.
    pub(super) fn take(&self, chunk: ChunkIndex) -> Option<(bool, Origin)> {
        self.fetched.lock().remove(&chunk)
    }
}

#[cfg(test)]
mod tests {
    use forebay_protocol::config::CHUNK_BYTES;

    use super::*;

    fn read(ahead: &ReadAhead, offset: u64, length: u64) -> Vec<u32> {
        ahead.observe(ByteRange { offset, length }, 10 * CHUNK_BYTES).into_iter().map(|chunk| chunk.0).collect()
    }

    #[test]
    fn a_sequential_reader_gets_ahead_and_a_random_one_does_not() {
        let ahead = ReadAhead::default();
        assert_eq!(read(&ahead, 0, CHUNK_BYTES), [0; 0]);
        assert_eq!(read(&ahead, CHUNK_BYTES, CHUNK_BYTES), [2, 3, 4, 5]);
        assert_eq!(read(&ahead, 2 * CHUNK_BYTES, CHUNK_BYTES), [3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(read(&ahead, 8 * CHUNK_BYTES, 4096), [0; 0]);
        assert_eq!(read(&ahead, 3 * CHUNK_BYTES, 4096), [0; 0]);
        let end = ReadAhead::default();
        read(&end, 0, 8 * CHUNK_BYTES);
        assert_eq!(read(&end, 8 * CHUNK_BYTES, CHUNK_BYTES), [9]);
    }
}
