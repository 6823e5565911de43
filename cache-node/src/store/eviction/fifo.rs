//! A queue of objects in the order in which they came, for ten million of them: 24 bytes an entry, in blocks, so that it grows and shrinks
//! without being copied. Every entry has a sequence number, by which several queues can be gone through as one.

use std::collections::VecDeque;

use forebay_catalog::ObjectId;

/// Entries of a block.
const BLOCK: usize = 512;

/// Weights are counted in pages of this size, the least that a file takes on the disk.
pub(super) const PAGE: u64 = 4096;
const LIVES_SHIFT: u32 = 30;
const MOST_PAGES: u64 = (1 << LIVES_SHIFT) - 1;

/// An object in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: ObjectId,
    /// Its size in pages; objects above 4 TiB count as 4 TiB.
    pub(super) pages: u32,
    /// How often the hand may still find it unread; at most 3. In the small queue: whether it was here before.
    pub(super) lives: u8,
}

/// Pages that so many bytes take.
pub(super) fn pages_of(bytes: u64) -> u32 {
    bytes.div_ceil(PAGE).clamp(1, MOST_PAGES) as u32
}

#[derive(Clone, Copy, Debug)]
struct Packed {
    id: [u8; 16],
    /// Behind the block's first sequence number.
    after: u32,
    /// Lives above, pages below.
    weight: u32,
}

const _: () = assert!(size_of::<Packed>() == 24);

#[derive(Debug)]
struct Block {
    first: u64,
    taken: usize,
    entries: Vec<Packed>,
}

/// First in, first out.
#[derive(Debug, Default)]
pub(super) struct Fifo {
    blocks: VecDeque<Block>,
    len: usize,
    pages: u64,
}

impl Fifo {
    /// Puts an object at the end. A number below that of the last entry counts as equal to it.
    pub(super) fn push(&mut self, entry: Entry, sequence: u64) {
        let weight = u32::from(entry.lives) << LIVES_SHIFT | entry.pages;
        self.len += 1;
        self.pages += u64::from(entry.pages);
        let packed = |after| Packed { id: *entry.id.as_bytes(), after, weight };
        if let Some(block) = self.blocks.back_mut().filter(|block| block.entries.len() < BLOCK) {
            let least = block.entries.last().map_or(0, |last| last.after);
            if let Ok(after) = u32::try_from(sequence.saturating_sub(block.first)) {
                block.entries.push(packed(after.max(least)));
                return;
            }
        }
        self.blocks.push_back(Block { first: sequence, taken: 0, entries: vec![packed(0)] });
    }

    /// Takes the first object.
    pub(super) fn pop(&mut self) -> Option<Entry> {
        let block = self.blocks.front_mut()?;
        let packed = *block.entries.get(block.taken)?;
        block.taken += 1;
        if block.taken == block.entries.len() {
            self.blocks.pop_front();
        }
        let pages = packed.weight & MOST_PAGES as u32;
        self.len -= 1;
        self.pages -= u64::from(pages);
        Some(Entry { id: ObjectId::from_bytes(packed.id), pages, lives: (packed.weight >> LIVES_SHIFT) as u8 })
    }

    /// The sequence number of the first object.
    pub(super) fn head(&self) -> Option<u64> {
        let block = self.blocks.front()?;
        Some(block.first + u64::from(block.entries.get(block.taken)?.after))
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    /// Takes in all of another queue. Moves blocks, not entries, so the order of the two together is exact to a block.
    pub(super) fn absorb(&mut self, other: &mut Self) {
        self.len += std::mem::take(&mut other.len);
        self.pages += std::mem::take(&mut other.pages);
        self.blocks.append(&mut other.blocks);
        self.blocks.make_contiguous().sort_by_key(|block| block.first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u32) -> Entry {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&n.to_le_bytes());
        Entry { id: ObjectId::from_bytes(id), pages: n % 7 + 1, lives: (n % 4) as u8 }
    }

    #[test]
    fn what_goes_in_comes_out_in_order_and_the_sums_are_kept() {
        let mut fifo = Fifo::default();
        for n in 0..2000 {
            fifo.push(entry(n), u64::from(n) * (1 << 30));
        }
        assert_eq!((fifo.len(), fifo.pages()), (2000, (0..2000).map(|n| u64::from(entry(n).pages)).sum()));
        for n in 0..2000 {
            assert_eq!((fifo.head(), fifo.pop()), (Some(u64::from(n) << 30), Some(entry(n))));
        }
        assert_eq!((fifo.pop(), fifo.head(), fifo.len(), fifo.pages(), fifo.blocks.len()), (None, None, 0, 0, 0));
    }

    #[test]
    fn two_queues_become_one() {
        let (mut even, mut odd) = (Fifo::default(), Fifo::default());
        for n in 0..10_000_u32 {
            let fifo = if n / 1000 % 2 == 0 { &mut even } else { &mut odd };
            fifo.push(entry(n), u64::from(n));
        }
        even.absorb(&mut odd);
        assert_eq!((even.len(), odd.len(), odd.pages()), (10_000, 0, 0));
        let order: Vec<_> = std::iter::from_fn(|| even.pop()).map(|entry| entry.id).collect();
        assert_eq!(order.len(), 10_000);
        for (at, id) in order.iter().enumerate() {
            let [a, b, c, d, ..] = *id.as_bytes();
            assert!(at.abs_diff(u32::from_le_bytes([a, b, c, d]) as usize) <= 2 * BLOCK);
        }
    }

    #[test]
    fn the_largest_object_does_not_overflow() {
        assert_eq!((pages_of(0), pages_of(4097), pages_of(u64::MAX)), (1, 2, MOST_PAGES as u32));
        let mut fifo = Fifo::default();
        let huge = Entry { pages: pages_of(u64::MAX), lives: 3, ..entry(1) };
        fifo.push(huge, 0);
        assert_eq!(fifo.pop(), Some(huge));
    }
}
