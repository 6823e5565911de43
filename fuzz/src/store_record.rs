//! Entries of the store's index, as an earlier version, another program or a failing disk may have left them.

use forebay_cache_node::fuzzing::store_record;

/// What is taken for entries is some: written again they have the same bytes.
pub fn run(data: &[u8]) {
    if let Some(again) = store_record(data) {
        assert_eq!(again, data);
    }
}

/// One of each kind, and all of them one after the other.
pub fn seeds() -> Vec<Vec<u8>> {
    let head = |tag: u8| [&[tag][..], &[0xab; 16], &7_u32.to_le_bytes()].concat();
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let (two_chunks, count) = (((5_u64) << 20).to_le_bytes(), 12_345_u64.to_le_bytes());
    let mut seeds = vec![
        [head(1), words(&[1000, 0x1234_5678])].concat(),
        [&head(2)[..], &two_chunks, &words(&[1, 2])].concat(),
        [&head(3)[..], &two_chunks, &words(&[1, 1, 0x8765_4321])].concat(),
        [&[4][..], &[0xab; 16]].concat(),
        [&[5][..], &words(&[7, 5]), b"a-uid"].concat(),
        [&[6][..], &count].concat(),
    ];
    seeds.push(seeds.concat());
    seeds
}
