//! What test files hold. In this crate since it is optimised in tests as well: readers compare every byte of what they read with it.

/// So many bytes of a file from an offset on: different in each file and place, and never zeros in a row. The seed names the file.
pub fn bytes(seed: u64, offset: u64, length: usize) -> Vec<u8> {
    let seed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let (first, skipped) = (offset / 8, (offset % 8) as usize);
    let mut bytes = vec![0; (skipped + length).next_multiple_of(8)];
    for (place, word) in bytes.chunks_exact_mut(8).zip(first..) {
        let mixed = (word ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        place.copy_from_slice(&(mixed ^ (mixed >> 29) | 1 << 40).to_le_bytes());
    }
    bytes.truncate(skipped + length);
    bytes.drain(..skipped);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_holds_what_the_whole_holds_there() {
        let whole = bytes(1, 0, 100);
        for (offset, length) in [(0, 100), (3, 40), (8, 8), (15, 1), (99, 1), (50, 0)] {
            assert_eq!(bytes(1, offset, length), whole[offset as usize..][..length], "{offset} {length}");
        }
        assert_ne!(bytes(2, 0, 100), whole);
        assert!(whole.windows(8).all(|bytes| bytes != [0; 8]));
    }
}
