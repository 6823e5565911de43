//! Small objects, of one chunk, are written together: whoever comes while a batch is being written is in the next. Room is made once a batch, one
//! task writes all its files, and the committer gets one operation. So a million small files need neither a million tasks nor a million waits for
//! the disk, and nobody waits for company.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use forebay_protocol::config::CHUNK_BYTES;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::commit::Op;
use super::lease::Lease;
use super::slot::Body;
use super::{DatasetSlot, ObjectRef, Store, StoreError, blocking};
use crate::units::{ChunkIndex, chunk_count};

/// Objects up to this size are small: beyond it, writing one takes longer than handing it to another thread.
const SMALL: u64 = 1 << 20;

/// Most small objects that wait for the committer. Their files are closed, so only memory is held.
pub(super) const UNCOMMITTED: usize = 16 << 10;

/// Most objects of a batch, so that several can wait for the committer.
const BATCH: usize = UNCOMMITTED / 4;

/// Most bytes of a batch of several: room is made for all of it or none, and no more must be asked for at once than a chunk asks for.
const BATCH_BYTES: u64 = CHUNK_BYTES;

/// The only chunk.
const CHUNK: ChunkIndex = ChunkIndex(0);

/// Those that wait for the batch before them, of each dataset that a batch is being written of. Apart, so that a dataset without room holds up no
/// other.
#[derive(Debug, Default)]
pub(super) struct Queues(Mutex<HashMap<DatasetSlot, Vec<Waiting>>>);

/// A verified object to be written.
#[derive(Debug)]
struct Waiting {
    object: ObjectRef,
    bytes: Bytes,
    crc: u32,
    done: oneshot::Sender<Result<(), StoreError>>,
}

impl Queues {
    /// True for the first, for which somebody has to write.
    fn push(&self, waiting: Waiting) -> bool {
        let mut queues = self.0.lock();
        let is_first = !queues.contains_key(&waiting.object.dataset);
        queues.entry(waiting.object.dataset).or_default().push(waiting);
        is_first
    }

    /// The next batch of a dataset, in the order in which they came; none ends the writing.
    fn next(&self, dataset: DatasetSlot) -> Option<Vec<Waiting>> {
        let mut queues = self.0.lock();
        let queue = queues.get_mut(&dataset)?;
        if queue.is_empty() {
            queues.remove(&dataset);
            return None;
        }
        let mut bytes = 0;
        let fits = queue.iter().take(BATCH).take_while(|waiting| {
            bytes += waiting.object.size;
            bytes <= BATCH_BYTES
        });
        // Each fits by itself.
        let rest = queue.split_off(fits.count());
        Some(std::mem::replace(queue, rest))
    }
}

/// Who writes the batches of a dataset.
struct Writer {
    store: Arc<Store>,
    dataset: DatasetSlot,
    /// There was no next batch. The dataset's queue may by now be that of the next writer.
    ended: bool,
}

impl Writer {
    async fn run(mut self) {
        while let Some(batch) = self.next() {
            self.store.write_batch(self.dataset, batch).await;
        }
    }

    fn next(&mut self) -> Option<Vec<Waiting>> {
        let batch = self.store.small.next(self.dataset);
        self.ended = batch.is_none();
        batch
    }
}

impl Drop for Writer {
    /// Whatever breaks the writing off, those that come later begin it anew.
    fn drop(&mut self) {
        if !self.ended {
            self.store.small.0.lock().remove(&self.dataset);
        }
    }
}

/// What has become of a batch.
#[derive(Default)]
struct Outcome {
    settled: Vec<(Waiting, Result<(), StoreError>)>,
    /// The disk is full before its time: alone it evicts.
    refused: Vec<Waiting>,
}

impl Store {
    /// Whether objects of this size are written by [`Store::write_small`].
    pub(super) fn is_small(size: u64) -> bool {
        size <= SMALL && chunk_count(size) == 1
    }

    /// Keeps a verified small object, together with others.
    pub(super) async fn write_small(
        self: &Arc<Self>,
        object: &ObjectRef,
        bytes: Bytes,
        crc: u32,
    ) -> Result<(), StoreError> {
        let (done, written) = oneshot::channel();
        if self.small.push(Waiting { object: *object, bytes, crc, done }) {
            tokio::spawn(Writer { store: Arc::clone(self), dataset: object.dataset, ended: false }.run());
        }
        written.await.map_err(|_| StoreError::Closed)?
    }

    async fn write_batch(self: &Arc<Self>, dataset: DatasetSlot, batch: Vec<Waiting>) {
        let bytes = batch.iter().map(|waiting| waiting.bytes.len() as u64).sum();
        let permit = async {
            let writing = self.make_room(dataset, bytes).await?;
            let permits = Arc::clone(&self.uncommitted_small).acquire_many_owned(batch.len() as u32).await;
            permits.map(|permits| (writing, permits)).map_err(|_| StoreError::Closed)
        };
        let (writing, permit) = match permit.await {
            Ok(both) => both,
            Err(error) => return batch.into_iter().for_each(|waiting| self.settle_small(waiting, Err(error.again()))),
        };
        let (mut pinned, mut leaving) = (Vec::with_capacity(batch.len()), Vec::new());
        for waiting in batch {
            match self.try_pin(&waiting.object) {
                Some(lease) => pinned.push((waiting, lease)),
                None => leaving.push(waiting),
            }
        }
        let this = Arc::clone(self);
        let written = blocking(move || {
            let _writing = writing;
            Ok(this.write_files(pinned, permit))
        })
        .await;
        let Outcome { settled, refused } = written.unwrap_or_else(|error| {
            // Nobody was told, and so all get [`StoreError::Closed`].
            tracing::error!(%error, "writing small objects failed");
            Outcome::default()
        });
        for (waiting, result) in settled {
            self.settle_small(waiting, result);
        }
        for Waiting { object, bytes, crc, done } in leaving.into_iter().chain(refused) {
            let this = Arc::clone(self);
            tokio::spawn(async move {
                let written = this.write_alone(&object, CHUNK, bytes, crc).await;
                // Who asked may have gone.
                let _ = done.send(written);
            });
        }
    }

    fn settle_small(&self, waiting: Waiting, result: Result<(), StoreError>) {
        if let Err(error) = &result {
            self.faults.report_write(error);
        }
        // Who asked may have gone.
        let _ = waiting.done.send(result);
    }

    fn write_files(&self, pinned: Vec<(Waiting, Lease)>, permit: tokio::sync::OwnedSemaphorePermit) -> Outcome {
        let (mut pins, mut kept) = (Vec::with_capacity(pinned.len()), Vec::with_capacity(pinned.len()));
        let mut outcome = Outcome::default();
        for (waiting, lease) in pinned {
            match self.write_whole(&waiting.object, &waiting.bytes, waiting.crc, &lease) {
                Ok(true) => {
                    pins.push(lease);
                    kept.push(waiting);
                }
                Ok(false) => outcome.settled.push((waiting, Ok(()))),
                Err(error) if error.is_disk_full() => outcome.refused.push(waiting),
                Err(error) => outcome.settled.push((waiting, Err(error))),
            }
        }
        {
            let mut order = self.eviction.lock();
            for Waiting { object, .. } in &kept {
                order.insert(object.id, object.dataset, object.size);
            }
        }
        let sent = if pins.is_empty() { Ok(()) } else { self.send(Op::WrittenSmall { pins, permit }) };
        let result = || sent.as_ref().copied().map_err(StoreError::again);
        outcome.settled.extend(kept.into_iter().map(|waiting| (waiting, result())));
        outcome
    }

    /// Writes an object's only chunk; false when it was here already, or has been forgotten meanwhile.
    fn write_whole(&self, object: &ObjectRef, bytes: &[u8], crc: u32, lease: &Lease) -> Result<bool, StoreError> {
        let id = object.id;
        let written = self.put_right(&id).and_then(|()| self.backing.write_whole(&id, bytes));
        written.map_err(|error| StoreError::io(format!("writing the cached object {id}"), error))?;
        let mut shard = self.slots.lock(&id);
        let Some(slot) = shard.get_mut(&id).filter(|slot| slot.generation == lease.generation) else {
            return Ok(false);
        };
        let Body::Partial(partial) = &mut slot.body else {
            self.backing.remove_stray(&id);
            return Ok(false);
        };
        if !partial.written.insert(CHUNK) {
            return Ok(false);
        }
        if let Some(kept) = partial.crcs.first_mut() {
            *kept = crc;
        }
        self.usage.add(slot.dataset, bytes.len() as u64);
        self.checked.insert(&id, slot, CHUNK);
        self.faults.mended(id, CHUNK);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use forebay_catalog::ObjectId;
    use forebay_protocol::layout::CacheLayout;

    use super::*;

    #[tokio::test]
    async fn a_writer_that_ends_takes_nothing_away_from_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&CacheLayout::new(folder.path()), 1 << 40, Arc::new(|_| ()), || ()).unwrap();
        let dataset = store.dataset("small").unwrap();
        let waiting = || {
            let object = ObjectRef { id: ObjectId::new("s", b"k", "e", 1), size: 1, dataset };
            Waiting { object, bytes: Bytes::from_static(b"x"), crc: 0, done: oneshot::channel().0 }
        };
        let mut writer = Writer { store: Arc::clone(&store), dataset, ended: false };
        assert!(store.small.push(waiting()), "the first begins the writing");
        assert!(!store.small.push(waiting()), "the second does not");
        assert_eq!(writer.next().unwrap().len(), 2);
        assert!(writer.next().is_none());
        // Before the writer is gone, somebody comes and begins the writing anew.
        assert!(store.small.push(waiting()));
        drop(writer);
        assert_eq!(store.small.next(dataset).unwrap().len(), 1);
        // No batch asks for more room than a chunk, and none is empty.
        let large = || {
            let object = ObjectRef { size: SMALL, ..waiting().object };
            Waiting { object, ..waiting() }
        };
        for _ in 0..5 {
            store.small.push(large());
        }
        let sizes: Vec<_> = std::iter::from_fn(|| store.small.next(dataset)).map(|batch| batch.len()).collect();
        assert_eq!(sizes, [4, 1]);
        // One that breaks off leaves a queue that is begun anew.
        drop(Writer { store: Arc::clone(&store), dataset, ended: false });
        assert!(store.small.push(waiting()));
        store.close().await;
    }
}
