//! Units that must not be swapped: positions and lengths in bytes, chunks and stripes. The sizes are the protocol crate's.

use std::fmt;

use forebay_protocol::config::{CHUNK_BYTES, STRIPE_BYTES};

/// Chunks of a stripe; a stripe's presence is one word of a bitmap.
pub const CHUNKS_PER_STRIPE: u32 = (STRIPE_BYTES / CHUNK_BYTES) as u32;

/// Position of a chunk in its object. 32 bits carry objects of 16 PiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(pub u32);

/// Position of a stripe in its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StripeIndex(pub u32);

/// Bytes `offset..offset + length` of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

impl ChunkIndex {
    /// The chunk's bytes in an object of `size` bytes; empty when it lies behind the end.
    pub fn range(self, size: u64) -> ByteRange {
        let offset = u64::from(self.0) * CHUNK_BYTES;
        ByteRange { offset, length: size.saturating_sub(offset).min(CHUNK_BYTES) }
    }

    /// The stripe it is part of.
    pub fn stripe(self) -> StripeIndex {
        StripeIndex(self.0 / CHUNKS_PER_STRIPE)
    }

    /// The chunk with the byte at `offset`.
    pub fn containing(offset: u64) -> Self {
        Self(u32::try_from(offset / CHUNK_BYTES).unwrap_or(u32::MAX))
    }
}

impl ByteRange {
    /// One after the last byte.
    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// Whether it has no bytes.
    pub fn is_empty(self) -> bool {
        self.length == 0
    }

    /// The part that lies in an object of `size` bytes.
    #[must_use]
    pub fn within(self, size: u64) -> Self {
        let offset = self.offset.min(size);
        Self { offset, length: self.end().min(size) - offset }
    }

    /// The chunks that hold a byte of it.
    pub fn chunks(self) -> impl DoubleEndedIterator<Item = ChunkIndex> + ExactSizeIterator + Clone {
        let first = ChunkIndex::containing(self.offset).0;
        let end = if self.length == 0 { first } else { ChunkIndex::containing(self.end() - 1).0 + 1 };
        (first..end).map(ChunkIndex)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}..{}", self.offset, self.end())
    }
}

/// Chunks of an object of `size` bytes.
pub fn chunk_count(size: u64) -> u32 {
    u32::try_from(size.div_ceil(CHUNK_BYTES)).unwrap_or(u32::MAX)
}

/// Stripes of an object of `size` bytes.
pub fn stripe_count(size: u64) -> u32 {
    u32::try_from(size.div_ceil(STRIPE_BYTES)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_chunk_is_short_and_nothing_lies_behind_it() {
        let size = 2 * CHUNK_BYTES + 5;
        assert_eq!(chunk_count(size), 3);
        assert_eq!(ChunkIndex(2).range(size), ByteRange { offset: 2 * CHUNK_BYTES, length: 5 });
        assert_eq!(ChunkIndex(3).range(size).length, 0);
        assert_eq!(chunk_count(0), 0);
    }

    #[test]
    fn a_range_touches_exactly_the_chunks_that_hold_its_bytes() {
        let chunks = |offset, length| ByteRange { offset, length }.chunks().map(|c| c.0).collect::<Vec<_>>();
        assert_eq!(chunks(0, 0), Vec::<u32>::new());
        assert_eq!(chunks(0, CHUNK_BYTES), [0]);
        assert_eq!(chunks(CHUNK_BYTES - 1, 2), [0, 1]);
        assert_eq!(ByteRange { offset: 10, length: 100 }.within(50), ByteRange { offset: 10, length: 40 });
        assert_eq!(ByteRange { offset: 60, length: 100 }.within(50).length, 0);
    }
}
