//! Which chunks of an object are present: one bit a chunk, one word a stripe.

use crate::units::{ChunkIndex, StripeIndex};

/// A fixed number of bits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bitmap {
    words: Vec<u64>,
    bits: u32,
}

impl Bitmap {
    /// So many bits, all clear.
    pub fn new(bits: u32) -> Self {
        Self { words: vec![0; bits.div_ceil(64) as usize], bits }
    }

    /// From words as [`Bitmap::words`] gives them; none when their number or a bit beyond the end is wrong.
    pub fn from_words(words: Vec<u64>, bits: u32) -> Option<Self> {
        let tail = bits % 64;
        let right = words.len() == bits.div_ceil(64) as usize
            && (tail == 0 || words.last().is_none_or(|last| last >> tail == 0));
        right.then_some(Self { words, bits })
    }

    /// The bits, 64 a word, the lowest first.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// How many bits there are.
    pub fn len(&self) -> u32 {
        self.bits
    }

    /// Whether there are no bits at all.
    pub fn is_empty(&self) -> bool {
        self.bits == 0
    }

    /// Whether the chunk is present; false beyond the end.
    pub fn contains(&self, chunk: ChunkIndex) -> bool {
        self.words.get(chunk.0 as usize / 64).is_some_and(|word| word >> (chunk.0 % 64) & 1 == 1)
    }

    /// Marks a chunk; true if it was not marked before. Beyond the end nothing happens.
    pub fn insert(&mut self, chunk: ChunkIndex) -> bool {
        if chunk.0 >= self.bits {
            return false;
        }
        let Some(word) = self.words.get_mut(chunk.0 as usize / 64) else { return false };
        let bit = 1 << (chunk.0 % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Takes a mark away; true if there was one.
    pub fn remove(&mut self, chunk: ChunkIndex) -> bool {
        let Some(word) = self.words.get_mut(chunk.0 as usize / 64) else { return false };
        let bit = 1 << (chunk.0 % 64);
        let there = *word & bit != 0;
        *word &= !bit;
        there
    }

    /// How many are marked.
    pub fn count(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether all are marked.
    pub fn is_full(&self) -> bool {
        self.count() == self.bits
    }

    /// The chunks of one stripe as a word.
    pub fn stripe(&self, stripe: StripeIndex) -> u64 {
        self.words.get(stripe.0 as usize).copied().unwrap_or(0)
    }

    /// All marked chunks.
    pub fn iter(&self) -> impl Iterator<Item = ChunkIndex> + '_ {
        (0..self.bits).map(ChunkIndex).filter(|chunk| self.contains(*chunk))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bitmap_is_a_set_of_numbers_below_its_length(bits in 0_u32..400, marks in proptest::collection::vec(0_u32..500, 0..200)) {
            let mut bitmap = Bitmap::new(bits);
            let mut model = BTreeSet::new();
            for mark in marks {
                let new = mark < bits && model.insert(mark);
                prop_assert_eq!(bitmap.insert(ChunkIndex(mark)), new);
            }
            prop_assert_eq!(bitmap.count() as usize, model.len());
            prop_assert_eq!(bitmap.is_full(), model.len() == bits as usize);
            prop_assert_eq!(bitmap.iter().map(|c| c.0).collect::<BTreeSet<_>>(), model.clone());
            prop_assert_eq!(Bitmap::from_words(bitmap.words().to_vec(), bits), Some(bitmap.clone()));
            for chunk in 0..500 {
                prop_assert_eq!(bitmap.remove(ChunkIndex(chunk)), model.remove(&chunk));
            }
            prop_assert_eq!(bitmap.count(), 0);
        }
    }

    #[test]
    fn words_that_do_not_fit_are_refused() {
        assert_eq!(Bitmap::from_words(vec![0b1000], 3), None);
        assert_eq!(Bitmap::from_words(vec![0, 0], 64), None);
    }
}
