//! What the index says, entry by entry, and the bytes of it: an object with all its checksums, some chunks of one, an object's removal, a
//! dataset's number. Little-endian throughout. Reading believes nothing: bytes that are no entry are none.

use forebay_catalog::ObjectId;
use forebay_protocol::config::CHUNK_BYTES;

use crate::units::{ChunkIndex, chunk_count};

const SMALL: u8 = 1;
const WHOLE: u8 = 2;
const PART: u8 = 3;
const REMOVED: u8 = 4;
const DATASET: u8 = 5;
const COUNT: u8 = 6;

/// Number of a dataset in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatasetSlot(pub u32);

/// One entry. Entries of one object build on each other: what is present is the sum of what has come since it was last removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// Every chunk is present.
    Whole {
        /// The object.
        id: ObjectId,
        /// The dataset that brought it here.
        dataset: DatasetSlot,
        /// Bytes.
        size: u64,
        /// Of each chunk.
        crcs: Words<'a>,
    },
    /// These chunks are present.
    Part {
        /// The object.
        id: ObjectId,
        /// The dataset that brought it here.
        dataset: DatasetSlot,
        /// Bytes.
        size: u64,
        /// Index and checksum of each, in turn.
        chunks: Words<'a>,
    },
    /// Nothing of it is present any more.
    Removed {
        /// The object.
        id: ObjectId,
    },
    /// A dataset's number.
    Dataset {
        /// The number.
        slot: DatasetSlot,
        /// The UID.
        uid: &'a str,
    },
    /// So many objects there are, about.
    Count {
        /// How many.
        objects: u64,
    },
}

/// Words of 32 bits, as they are in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    /// The words.
    pub fn iter(self) -> impl Iterator<Item = u32> + 'a {
        self.0.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word))
    }

    /// The words as pairs of chunk and checksum.
    pub fn chunks(self) -> impl Iterator<Item = (ChunkIndex, u32)> + 'a {
        let words = self.0.as_chunks::<8>().0.iter();
        words.map(|[a, b, c, d, e, f, g, h]| {
            (ChunkIndex(u32::from_le_bytes([*a, *b, *c, *d])), u32::from_le_bytes([*e, *f, *g, *h]))
        })
    }
}

/// Writes an object of which every chunk is present.
pub fn put_whole(out: &mut Vec<u8>, id: &ObjectId, dataset: DatasetSlot, size: u64, crcs: &[u32]) {
    if let ([crc], true) = (crcs, size <= CHUNK_BYTES) {
        put_head(out, SMALL, id, dataset);
        out.extend((size as u32).to_le_bytes());
        out.extend(crc.to_le_bytes());
    } else {
        put_head(out, WHOLE, id, dataset);
        out.extend(size.to_le_bytes());
        out.extend(crcs.iter().flat_map(|crc| crc.to_le_bytes()));
    }
}

/// Writes present chunks with their checksums.
pub fn put_part(
    out: &mut Vec<u8>,
    id: &ObjectId,
    dataset: DatasetSlot,
    size: u64,
    chunks: impl ExactSizeIterator<Item = (ChunkIndex, u32)>,
) {
    put_head(out, PART, id, dataset);
    out.extend(size.to_le_bytes());
    out.extend((chunks.len() as u32).to_le_bytes());
    for (chunk, crc) in chunks {
        out.extend(chunk.0.to_le_bytes());
        out.extend(crc.to_le_bytes());
    }
}

/// Writes that an object is gone.
pub fn put_removed(out: &mut Vec<u8>, id: &ObjectId) {
    out.push(REMOVED);
    out.extend(id.as_bytes());
}

/// Writes a dataset's number.
pub fn put_dataset(out: &mut Vec<u8>, slot: DatasetSlot, uid: &str) {
    out.push(DATASET);
    out.extend(slot.0.to_le_bytes());
    out.extend((uid.len() as u32).to_le_bytes());
    out.extend(uid.as_bytes());
}

/// Writes how many objects there are.
pub fn put_count(out: &mut Vec<u8>, objects: u64) {
    out.push(COUNT);
    out.extend(objects.to_le_bytes());
}

fn put_head(out: &mut Vec<u8>, tag: u8, id: &ObjectId, dataset: DatasetSlot) {
    out.push(tag);
    out.extend(id.as_bytes());
    out.extend(dataset.0.to_le_bytes());
}

/// The entries in some bytes. Ends at the first that is none; then [`Entries::is_through`] is false.
#[derive(Clone, Debug)]
pub struct Entries<'a>(&'a [u8]);

impl<'a> Entries<'a> {
    /// Entries as they were written one after the other.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether everything has been read.
    pub fn is_through(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    #[inline]
    fn next(&mut self) -> Option<Entry<'a>> {
        let mut bytes = self.0;
        let [tag] = take(&mut bytes)?;
        let entry = match tag {
            SMALL => {
                let (id, dataset) = take_head(&mut bytes)?;
                let size = u64::from(u32::from_le_bytes(take(&mut bytes)?));
                if size == 0 || size > CHUNK_BYTES {
                    return None;
                }
                Entry::Whole { id, dataset, size, crcs: Words(take_slice(&mut bytes, 4)?) }
            }
            WHOLE | PART => {
                let (id, dataset) = take_head(&mut bytes)?;
                let size = u64::from_le_bytes(take(&mut bytes)?);
                if tag == WHOLE {
                    // Of one chunk it would have the short form.
                    if chunk_count(size) == 1 {
                        return None;
                    }
                    let crcs = Words(take_slice(&mut bytes, chunk_count(size) as usize * 4)?);
                    Entry::Whole { id, dataset, size, crcs }
                } else {
                    let count = u32::from_le_bytes(take(&mut bytes)?) as usize;
                    Entry::Part { id, dataset, size, chunks: Words(take_slice(&mut bytes, count.checked_mul(8)?)?) }
                }
            }
            REMOVED => Entry::Removed { id: ObjectId::from_bytes(take(&mut bytes)?) },
            DATASET => {
                let slot = DatasetSlot(u32::from_le_bytes(take(&mut bytes)?));
                let length = u32::from_le_bytes(take(&mut bytes)?) as usize;
                Entry::Dataset { slot, uid: str::from_utf8(take_slice(&mut bytes, length)?).ok()? }
            }
            COUNT => Entry::Count { objects: u64::from_le_bytes(take(&mut bytes)?) },
            _ => return None,
        };
        self.0 = bytes;
        Some(entry)
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

fn take_slice<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (first, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(first)
}

fn take_head(bytes: &mut &[u8]) -> Option<(ObjectId, DatasetSlot)> {
    Some((ObjectId::from_bytes(take(bytes)?), DatasetSlot(u32::from_le_bytes(take(bytes)?))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn entries_read_back_as_they_were_written(size in 1_u64..20 * CHUNK_BYTES, dataset: u32, seed: u32, cut in 1_usize..20) {
            let id = ObjectId::new("record", &seed.to_le_bytes(), "e", size);
            let dataset = DatasetSlot(dataset);
            let words: Vec<u32> = (0..chunk_count(size)).map(|i| i.wrapping_mul(seed)).collect();
            let pairs: Vec<_> = words.iter().map(|crc| (ChunkIndex(crc % 7), *crc)).collect();
            let mut bytes = Vec::new();
            put_whole(&mut bytes, &id, dataset, size, &words);
            put_part(&mut bytes, &id, dataset, size, pairs.iter().copied());
            put_removed(&mut bytes, &id);
            put_dataset(&mut bytes, dataset, "a-uid");
            put_count(&mut bytes, u64::from(seed));
            let mut entries = Entries::new(&bytes);
            let Some(Entry::Whole { id: i, dataset: d, size: s, crcs }) = entries.next() else { panic!("not whole") };
            prop_assert_eq!((i, d, s, crcs.iter().collect::<Vec<_>>()), (id, dataset, size, words));
            let Some(Entry::Part { id: i, dataset: d, size: s, chunks }) = entries.next() else { panic!("no part") };
            prop_assert_eq!((i, d, s, chunks.chunks().collect::<Vec<_>>()), (id, dataset, size, pairs));
            prop_assert_eq!(entries.next(), Some(Entry::Removed { id }));
            prop_assert_eq!(entries.next(), Some(Entry::Dataset { slot: dataset, uid: "a-uid" }));
            prop_assert_eq!(entries.next(), Some(Entry::Count { objects: u64::from(seed) }));
            prop_assert!(entries.is_through());
            // Cut short, the last is no entry.
            let mut entries = Entries::new(&bytes[..bytes.len() - cut.min(9)]);
            let read = entries.by_ref().count();
            prop_assert!(read == 4 && (cut >= 9 || !entries.is_through()));
        }

        #[test]
        fn bytes_that_are_no_entries_are_refused_not_believed(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut entries = Entries::new(&bytes);
            for entry in entries.by_ref() {
                if let Entry::Whole { size, crcs, .. } = entry {
                    prop_assert_eq!(crcs.iter().count(), chunk_count(size) as usize);
                }
            }
        }
    }
}
