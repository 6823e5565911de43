//! What comes from the index when it is opened.

use super::super::index;
use super::super::record::{Entries, Entry};
use super::super::table::Flags;
use super::{Body, Guard, SHARDS, Slots, shard_of};

impl index::Loader for Slots {
    fn expect(&self, objects: u64) {
        // Ids are evenly distributed; a few more in one shard than in another.
        let each = usize::try_from(objects / SHARDS as u64).unwrap_or(0);
        for shard in &self.shards {
            shard.lock().complete.reserve(each + each / 32);
        }
    }

    fn load(&self, entries: &mut Entries<'_>) {
        let mut held: Option<(usize, Guard<'_>)> = None;
        for entry in entries {
            let (Entry::Whole { id, .. } | Entry::Part { id, .. } | Entry::Removed { id }) = entry else { continue };
            let shard = shard_of(&id);
            if held.as_ref().is_none_or(|(locked, _)| *locked != shard) {
                // One at a time: other threads load too.
                drop(held.take());
            }
            held.get_or_insert_with(|| (shard, self.lock(&id))).1.load(&entry);
        }
    }
}

impl Guard<'_> {
    fn load(&mut self, entry: &Entry<'_>) {
        match *entry {
            Entry::Whole { id, dataset, size, crcs } => {
                self.shard.in_use.remove(&id);
                // Of an earlier life: verified before it is served.
                let mut flags = Flags::default();
                flags.set(Flags::VERIFIED, size == 0);
                let table = &mut self.shard.complete;
                let mut words = crcs.iter();
                match (words.next(), words.next()) {
                    (Some(crc), None) => table.insert(&id, size, dataset, &[crc], flags),
                    _ => table.insert(&id, size, dataset, &crcs.iter().collect::<Vec<_>>(), flags),
                }
            }
            Entry::Part { id, dataset, size, chunks } => {
                let known = self.get(&id).map(|slot| (slot.size, matches!(slot.body, Body::Complete)));
                match known {
                    Some((known, true)) if known == size => return,
                    Some((known, false)) if known == size => {}
                    _ => {
                        self.insert(&id, size, dataset);
                    }
                }
                let Some(slot) = self.get_mut(&id) else { return };
                slot.dataset = dataset;
                slot.verified = false;
                let Body::Partial(partial) = &mut slot.body else { return };
                for (chunk, crc) in chunks.chunks() {
                    if let Some(kept) = partial.crcs.get_mut(chunk.0 as usize) {
                        *kept = crc;
                        partial.written.insert(chunk);
                        partial.committed.insert(chunk);
                    }
                }
                if partial.committed.is_full() {
                    self.complete(&id);
                }
            }
            Entry::Removed { id } => {
                self.remove(&id);
            }
            Entry::Dataset { .. } | Entry::Count { .. } => {}
        }
    }
}
