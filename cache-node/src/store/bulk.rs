//! An index of any number of objects without their files, made in seconds: to measure what opening one takes.

use forebay_catalog::ObjectId;
use forebay_protocol::layout::CacheLayout;

use super::index::{Change, Index, Loader};
use super::record::Entries;
use super::{ObjectRef, StoreError};
use crate::units::{ChunkIndex, chunk_count};

/// Objects of a commit.
const COMMIT: usize = 4096;

/// Takes nothing.
struct Nothing;

impl Loader for Nothing {
    fn expect(&self, _: u64) {}
    fn load(&self, _: &mut Entries<'_>) {}
}

/// Adds complete objects to the index of a cache folder that no store has open. There are no files behind them: only for measuring.
#[doc(hidden)]
pub fn fill_index(layout: &CacheLayout, objects: impl Iterator<Item = ObjectRef>) -> Result<(), StoreError> {
    let (index, _) = Index::open(&layout.index(), &Nothing)?;
    let mut changes: Vec<(ObjectId, Change)> = Vec::new();
    for object in objects {
        let chunks = (0..chunk_count(object.size)).map(|chunk| (ChunkIndex(chunk), chunk.wrapping_mul(0x9e37_79b1)));
        let change = Change::Put { dataset: object.dataset, size: object.size, chunks: chunks.collect() };
        changes.push((object.id, change));
        if changes.len() >= COMMIT {
            index.commit(&changes)?;
            changes.clear();
        }
    }
    if !changes.is_empty() {
        index.commit(&changes)?;
    }
    index.close();
    Ok(())
}
