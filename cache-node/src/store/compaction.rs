//! Writing the index anew when its logs have grown: a thread of its own puts everything that is committed into a snapshot, while commits go on
//! in the next log. A shard is locked while its part is copied, some milliseconds with ten million objects.

use std::io;
use std::sync::Arc;

#[cfg(test)]
use super::crash::CrashPoint;
use super::index::snapshot::Writer;
use super::record;
use super::{Store, StoreError, blocking};

impl Store {
    /// Begins if it is time. Called by the committer between two groups: everything that the index was told is in the slots then, and
    /// what comes later is in the next log too.
    pub(super) fn compact_if_due(self: &Arc<Self>) {
        let Some(mut writer) = self.index.begin_snapshot() else { return };
        let this = Arc::clone(self);
        let spawned = std::thread::Builder::new().name("compactor".to_owned()).spawn(move || {
            let filled = this.fill_snapshot(&mut writer);
            this.index.end_snapshot(writer, filled);
        });
        match spawned {
            // The one before has ended, or none would have begun.
            Ok(thread) => *self.compactor.lock() = Some(thread),
            Err(error) => tracing::warn!(%error, "the index can't be written anew"),
        }
    }

    /// Writes the index anew now, due or not, and waits until it is done.
    #[doc(hidden)]
    pub async fn compact(self: &Arc<Self>) -> Result<(), StoreError> {
        self.index.make_due();
        // It begins after a group is through; the second group is through after that.
        self.flush().await?;
        self.flush().await?;
        let thread = self.compactor.lock().take();
        blocking(move || {
            if let Some(thread) = thread
                && thread.join().is_err()
            {
                return Err(StoreError::io("writing the index anew", io::Error::other("its thread panicked")));
            }
            Ok(())
        })
        .await
    }

    fn fill_snapshot(&self, writer: &mut Writer) -> io::Result<()> {
        let objects: usize = self.slots.shards().map(|shard| shard.len()).sum();
        writer.head(objects as u64, self.datasets.lock().iter())?;
        #[cfg(test)]
        let mut shards = 0;
        for shard in self.slots.shards() {
            let out = writer.entries();
            for (id, idle, crcs) in shard.complete_objects() {
                record::put_whole(out, &id, idle.dataset, idle.size, crcs);
            }
            for (id, slot, partial) in shard.partial_objects() {
                let chunks = partial.committed.iter();
                let chunks = chunks.filter_map(|chunk| Some((chunk, *partial.crcs.get(chunk.0 as usize)?)));
                let chunks: Vec<_> = chunks.collect();
                if !chunks.is_empty() {
                    record::put_part(out, &id, slot.dataset, slot.size, chunks.into_iter());
                }
            }
            drop(shard);
            writer.flush()?;
            // Stopping is not to wait for it: the logs have everything.
            if self.ops.lock().is_none() {
                return Err(io::Error::other("the cache is being closed"));
            }
            #[cfg(test)]
            {
                shards += 1;
                if shards == 128 && self.crash.stops_at(CrashPoint::SnapshotHalf) || self.crash.has_stopped() {
                    writer.stop_half_way();
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
