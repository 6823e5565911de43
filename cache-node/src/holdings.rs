//! How much of a dataset this node holds, owns and has preloaded: sums that follow the store's changes, so that a status costs nothing however
//! many files there are. Counted anew when catalog, members or preload change.

use std::sync::Arc;

use forebay_catalog::{Catalog, ObjectId, ObjectRecord, ObjectTable};
use forebay_protocol::config::PlacementMode;
use parking_lot::Mutex;

use crate::fetch::placement::Placement;
use crate::preload::Selection;
use crate::store::{Change, Presence, Store};
use crate::units::{CHUNKS_PER_STRIPE, ChunkIndex, StripeIndex, chunk_count, stripe_count};

/// The sums. What is selected for preloading is counted on each node that is to keep it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Bytes of the dataset on this node.
    pub cached_bytes: u64,
    /// Of these, bytes that this node reads from the source when they are missing: each byte of the dataset counts on one node.
    pub owned_cached_bytes: u64,
    /// Files to preload; a file of several stripes counts where its first one is kept.
    pub total_files: u64,
    /// Of these, with all stripes that are kept here present.
    pub loaded_files: u64,
    /// Bytes to preload.
    pub total_bytes: u64,
    /// Of these, present.
    pub loaded_bytes: u64,
}

/// The sums for one catalog, one placement and one preload.
#[derive(Debug)]
pub struct Holdings {
    /// The catalog.
    pub catalog: Arc<Catalog>,
    /// Who keeps what.
    pub placement: Placement,
    /// What to preload.
    pub selection: Selection,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    tally: Tally,
    counted: Counted,
}

/// How far the first count is. Changes behind this point are applied, those before it are yet to be seen.
#[derive(Debug, PartialEq, PartialOrd)]
enum Counted {
    UpTo((u64, [u8; 16])),
    All,
}

impl Holdings {
    /// Nothing is counted yet.
    pub fn new(catalog: Arc<Catalog>, placement: Placement, selection: Selection) -> Self {
        let state = State { tally: Tally::default(), counted: Counted::UpTo((0, [0; 16])) };
        Self { catalog, placement, selection, state: Mutex::new(state) }
    }

    /// Counts everything once. Changes must be applied from before this begins.
    pub fn count(&self, store: &Store) {
        let table = self.catalog.table();
        for record in table.distinct() {
            store.with_presence(&record.id, |presence| {
                let mut state = self.state.lock();
                let part = self.contribution(&record, presence);
                add(&mut state.tally, &part);
                state.counted = Counted::UpTo(order(&record.id));
            });
        }
        self.state.lock().counted = Counted::All;
    }

    /// The store has changed.
    pub fn apply(&self, change: &Change) {
        let Some(record) = self.catalog.table().find(&change.id) else { return };
        let mut state = self.state.lock();
        if state.counted < Counted::UpTo(order(&record.id)) {
            return;
        }
        let (before, after) = (self.contribution(&record, &change.before), self.contribution(&record, &change.after));
        add(&mut state.tally, &after);
        sub(&mut state.tally, &before);
    }

    /// The sums.
    pub fn tally(&self) -> Tally {
        self.state.lock().tally
    }

    /// Whether an object is to be preloaded: one of its paths matches.
    pub fn selects(&self, record: &ObjectRecord<'_>) -> bool {
        self.selection.is_everything()
            || rows_of(self.catalog.table(), &record.id).any(|row| self.selection.matches(&row.tree_path()))
    }

    /// What one object adds to the sums.
    fn contribution(&self, record: &ObjectRecord<'_>, presence: &Presence) -> Tally {
        let mut part = Tally { cached_bytes: presence.bytes(record.size), ..Tally::default() };
        let selected = !self.selection.is_nothing() && self.selects(record);
        if !selected && part.cached_bytes == 0 {
            return part;
        }
        let everywhere = self.placement.mode() == PlacementMode::Everywhere;
        if everywhere {
            part.owned_cached_bytes = self.brought_bytes(record, presence);
        }
        for stripe in (0..stripe_count(record.size)).map(StripeIndex) {
            let first_chunk = ChunkIndex(stripe.0 * CHUNKS_PER_STRIPE);
            if self.placement.keeps(&record.id, stripe) {
                let (bytes, present) = stripe_bytes(record.size, stripe, presence);
                if !everywhere && self.placement.is_bringer(&record.id, first_chunk) {
                    part.owned_cached_bytes += present;
                }
                if selected {
                    part.total_bytes += bytes;
                    part.loaded_bytes += present;
                    part.total_files += u64::from(stripe.0 == 0);
                }
            }
        }
        if part.total_files == 1 && part.loaded_bytes == part.total_bytes {
            part.loaded_files = 1;
        }
        part
    }

    /// The bytes of an object that are here and that this node brings.
    fn brought_bytes(&self, record: &ObjectRecord<'_>, presence: &Presence) -> u64 {
        let here = |chunk: &ChunkIndex| match presence {
            Presence::Absent => false,
            Presence::Complete => true,
            Presence::Partial(chunks) => chunks.contains(*chunk),
        };
        let chunks = (0..chunk_count(record.size)).map(ChunkIndex).filter(here);
        let brought = chunks.filter(|chunk| self.placement.is_bringer(&record.id, *chunk));
        brought.map(|chunk| chunk.range(record.size).length).sum()
    }
}

/// The bytes of a stripe, and those of them that are present.
fn stripe_bytes(size: u64, stripe: StripeIndex, presence: &Presence) -> (u64, u64) {
    let first = stripe.0 * CHUNKS_PER_STRIPE;
    let end = (first + CHUNKS_PER_STRIPE).min(chunk_count(size));
    let bytes = ChunkIndex(end.saturating_sub(1)).range(size).end() - ChunkIndex(first).range(size).offset;
    let present = match presence {
        Presence::Absent => 0,
        Presence::Complete => bytes,
        Presence::Partial(chunks) => {
            let word = chunks.stripe(stripe);
            let full = u64::from(word.count_ones()) * ChunkIndex(0).range(u64::MAX).length;
            let last = ChunkIndex(end.saturating_sub(1));
            let short =
                if chunks.contains(last) { ChunkIndex(0).range(u64::MAX).length - last.range(size).length } else { 0 };
            full - short
        }
    };
    (bytes, present)
}

/// The order of a table's rows.
fn order(id: &ObjectId) -> (u64, [u8; 16]) {
    (id.fuse_node_id(), *id.as_bytes())
}

/// All rows of an object: one for each of its paths.
fn rows_of<'a>(table: &'a ObjectTable, id: &ObjectId) -> impl Iterator<Item = ObjectRecord<'a>> {
    let (id, wanted) = (*id, order(id));
    let (mut low, mut high) = (0, table.len());
    while low < high {
        let middle = low.midpoint(high);
        if table.get(middle).is_some_and(|row| order(&row.id) < wanted) { low = middle + 1 } else { high = middle }
    }
    (low..table.len()).map_while(move |row| table.get(row).filter(|row| row.id == id))
}

fn add(into: &mut Tally, part: &Tally) {
    into.cached_bytes += part.cached_bytes;
    into.owned_cached_bytes += part.owned_cached_bytes;
    into.total_files += part.total_files;
    into.loaded_files += part.loaded_files;
    into.total_bytes += part.total_bytes;
    into.loaded_bytes += part.loaded_bytes;
}

fn sub(from: &mut Tally, part: &Tally) {
    from.cached_bytes -= part.cached_bytes;
    from.owned_cached_bytes -= part.owned_cached_bytes;
    from.total_files -= part.total_files;
    from.loaded_files -= part.loaded_files;
    from.total_bytes -= part.total_bytes;
    from.loaded_bytes -= part.loaded_bytes;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::bitmap::Bitmap;

    proptest! {
        #[test]
        fn the_stripes_of_an_object_add_up_to_it(size in 1_u64..(3 << 30), marks in proptest::collection::vec(any::<u32>(), 0..300)) {
            let mut chunks = Bitmap::new(chunk_count(size));
            for mark in marks {
                chunks.insert(ChunkIndex(mark % chunk_count(size)));
            }
            for presence in [Presence::Absent, Presence::Complete, Presence::Partial(chunks)] {
                let stripes = (0..stripe_count(size)).map(|stripe| stripe_bytes(size, StripeIndex(stripe), &presence));
                let (bytes, present) = stripes.fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
                prop_assert_eq!((bytes, present), (size, presence.bytes(size)));
            }
        }
    }
}
