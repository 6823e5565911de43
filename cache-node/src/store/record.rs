//! What the index says about an object, and its bytes: version, completeness, dataset, size, presence (while partial), crc32c per chunk.
//! Little-endian throughout.

use super::bitmap::Bitmap;
use crate::units::{ChunkIndex, chunk_count};

const VERSION: u8 = 1;
const HEADER: usize = 14;

/// Number of a dataset in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatasetSlot(pub u32);

/// One object's entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The dataset that brought the object here.
    pub dataset: DatasetSlot,
    /// Bytes.
    pub size: u64,
    /// What is present; none when all is.
    pub present: Option<Bitmap>,
    /// Of each chunk; 0 for those that are not present.
    pub crcs: Vec<u32>,
}

impl Record {
    /// As the index holds it.
    pub fn encode(&self) -> Vec<u8> {
        let words = self.present.as_ref().map_or(&[][..], Bitmap::words);
        let mut bytes = Vec::with_capacity(HEADER + words.len() * 8 + self.crcs.len() * 4);
        bytes.extend([VERSION, u8::from(self.present.is_none())]);
        bytes.extend(self.dataset.0.to_le_bytes());
        bytes.extend(self.size.to_le_bytes());
        for word in words {
            bytes.extend(word.to_le_bytes());
        }
        for crc in &self.crcs {
            bytes.extend(crc.to_le_bytes());
        }
        bytes
    }

    /// Reads it back; none when the bytes are no entry.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let head = Head::decode(bytes)?;
        let (words, crcs) = head.body(bytes)?;
        let present = if head.complete {
            None
        } else {
            let words = words.chunks_exact(8).filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?)));
            Some(Bitmap::from_words(words.collect(), chunk_count(head.size))?)
        };
        let crcs = crcs.chunks_exact(4).filter_map(|crc| Some(u32::from_le_bytes(crc.try_into().ok()?))).collect();
        Some(Self { dataset: head.dataset, size: head.size, present, crcs })
    }

    /// The checksum of one chunk of an entry, without reading all of it.
    pub fn decode_crc(bytes: &[u8], chunk: ChunkIndex) -> Option<u32> {
        let head = Head::decode(bytes)?;
        let (_, crcs) = head.body(bytes)?;
        let at = chunk.0 as usize * 4;
        Some(u32::from_le_bytes(crcs.get(at..at + 4)?.try_into().ok()?))
    }
}

struct Head {
    complete: bool,
    dataset: DatasetSlot,
    size: u64,
}

impl Head {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, complete) = (*bytes.first()?, *bytes.get(1)?);
        if version != VERSION || complete > 1 {
            return None;
        }
        let dataset = DatasetSlot(u32::from_le_bytes(bytes.get(2..6)?.try_into().ok()?));
        let size = u64::from_le_bytes(bytes.get(6..HEADER)?.try_into().ok()?);
        Some(Self { complete: complete == 1, dataset, size })
    }

    /// Bitmap words and checksums; none when there are too few or too many.
    fn body<'a>(&self, bytes: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        let chunks = chunk_count(self.size) as usize;
        let words = if self.complete { 0 } else { chunks.div_ceil(64) * 8 };
        let body = bytes.get(HEADER..)?;
        if body.len() != words + chunks * 4 {
            return None;
        }
        Some(body.split_at(words))
    }
}

#[cfg(test)]
mod tests {
    use forebay_protocol::config::CHUNK_BYTES;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_entry_reads_back_as_it_was_written(chunks in 0_u32..200, complete: bool, dataset: u32, seed: u32) {
            let size = u64::from(chunks) * CHUNK_BYTES;
            let mut present = Bitmap::new(chunks);
            (0..chunks).filter(|i| (i ^ seed) % 3 == 0).for_each(|i| { present.insert(ChunkIndex(i)); });
            let crcs: Vec<u32> = (0..chunks).map(|i| i.wrapping_mul(seed)).collect();
            let record = Record { dataset: DatasetSlot(dataset), size, present: (!complete).then_some(present), crcs };
            let bytes = record.encode();
            for chunk in 0..chunks + 2 {
                prop_assert_eq!(Record::decode_crc(&bytes, ChunkIndex(chunk)), record.crcs.get(chunk as usize).copied());
            }
            prop_assert_eq!(Record::decode(&bytes), Some(record));
        }

        #[test]
        fn bytes_that_are_no_entry_are_refused_not_believed(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Some(record) = Record::decode(&bytes) {
                prop_assert_eq!(record.encode(), bytes);
            }
        }
    }
}
