//! Which byte ranges of an object are known to be present in its backing file. Kept sorted and merged; a cache node answers in whole chunks,
//! so there are few.

use std::ops::Range;

/// A set of byte ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// Sorted, not empty, not touching each other.
    sorted: Vec<Range<u64>>,
}

impl Ranges {
    /// Adds a range.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        // All that overlap or touch the new one: they end at or after its start and start at or before its end.
        let first = self.sorted.partition_point(|known| known.end < range.start);
        let last = self.sorted.partition_point(|known| known.start <= range.end);
        let touched = self.sorted.get(first..last).unwrap_or_default();
        let start = touched.first().map_or(range.start, |known| known.start.min(range.start));
        let end = touched.last().map_or(range.end, |known| known.end.max(range.end));
        self.sorted.splice(first..last, std::iter::once(start..end));
    }

    /// Whether every byte of `range` is in the set. An empty range always is.
    pub fn covers(&self, range: &Range<u64>) -> bool {
        if range.is_empty() {
            return true;
        }
        let after = self.sorted.partition_point(|known| known.start <= range.start);
        after.checked_sub(1).and_then(|index| self.sorted.get(index)).is_some_and(|known| known.end >= range.end)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.sorted.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_merge_and_gaps_stay_gaps() {
        let mut ranges = Ranges::default();
        ranges.insert(10..20);
        ranges.insert(30..40);
        assert!(ranges.covers(&(12..18)) && !ranges.covers(&(12..31)) && !ranges.covers(&(20..30)));
        ranges.insert(20..30);
        assert_eq!(ranges.sorted, vec![10..40]);
        ranges.clear();
        assert!(!ranges.covers(&(10..11)) && ranges.covers(&(5..5)));
    }

    #[test]
    fn random_inserts_agree_with_a_bitmap() {
        // A small linear congruential generator: the sequence is the same in each run.
        let mut seed = 1_u64;
        let mut next = move |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for _ in 0..200 {
            let (mut ranges, mut bitmap) = (Ranges::default(), [false; 64]);
            for _ in 0..12 {
                let start = next(64);
                let end = (start + next(10)).min(64);
                ranges.insert(start..end);
                bitmap[start as usize..end as usize].fill(true);
                let start = next(64);
                let end = (start + 1 + next(10)).min(64);
                let expected = bitmap[start as usize..end as usize].iter().all(|present| *present);
                assert_eq!(ranges.covers(&(start..end)), expected, "{ranges:?} {start}..{end}");
            }
        }
    }
}
