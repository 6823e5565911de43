//! An entry of the store's index, as an earlier version, another program or a failing disk may have left it.

use forebay_cache_node::fuzzing::store_record;

/// What is taken for an entry is one: written again it has the same bytes.
pub fn run(data: &[u8]) {
    if let Some(again) = store_record(data) {
        assert_eq!(again, data);
    }
}

/// A complete object of one chunk and a partial one of two.
pub fn seeds() -> Vec<Vec<u8>> {
    let entry = |complete: u8, size: u64, words: &[u64], crcs: &[u32]| {
        let mut bytes = vec![1, complete];
        bytes.extend(7_u32.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        crcs.iter().for_each(|crc| bytes.extend(crc.to_le_bytes()));
        bytes
    };
    vec![entry(1, 1000, &[], &[0x1234_5678]), entry(0, 5 << 20, &[0b10], &[0, 0x8765_4321])]
}
