//! Objects of one chunk, in batches: room is made once, one task writes or reads all files, and the committer gets one operation. So a million
//! small files need neither a million tasks nor a million waits for the disk.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::commit::Op;
use super::lease::Lease;
use super::slot::Body;
use super::{ObjectRef, Store, StoreError, blocking};
use crate::units::{ChunkIndex, chunk_count};

/// Most small objects that wait for the committer. Their files are closed, so only memory is held.
pub(super) const UNCOMMITTED: usize = 16 << 10;

/// The only chunk.
const CHUNK: ChunkIndex = ChunkIndex(0);

/// An object to be written, with its verified bytes and their crc32c.
type Small = (ObjectRef, Bytes, u32);

impl Store {
    /// Keeps verified objects of one chunk, as [`Store::write_chunk`] keeps a chunk. The results are in the order of the batch.
    pub async fn write_small(self: &Arc<Self>, batch: Vec<Small>) -> Vec<Result<(), StoreError>> {
        let mut results: Vec<Result<(), StoreError>> = batch.iter().map(|_| Ok(())).collect();
        // What is here is done; what is no object of one chunk can't be done here.
        let mut wanted = Vec::with_capacity(batch.len());
        for (at, small) in batch.into_iter().enumerate() {
            if chunk_count(small.0.size) != 1 || small.1.len() as u64 != small.0.size {
                let error = std::io::Error::other("not an object of one chunk, or not all of it");
                set(&mut results, at, Err(StoreError::io(format!("writing the cached object {}", small.0.id), error)));
            } else if !self.has(&small.0.id, CHUNK) {
                wanted.push((at, small));
            }
        }
        // So many at once that all of them can wait for the committer.
        while !wanted.is_empty() {
            let rest = wanted.split_off(wanted.len().min(UNCOMMITTED / 4));
            self.write_part(std::mem::replace(&mut wanted, rest), &mut results).await;
        }
        results
    }

    async fn write_part(self: &Arc<Self>, part: Vec<(usize, Small)>, results: &mut [Result<(), StoreError>]) {
        let positions: Vec<_> = part.iter().map(|(at, _)| *at).collect();
        let written = self.try_write_small(part).await;
        match written {
            Ok(refused) => {
                for (at, (object, bytes, crc), error) in refused {
                    // Alone it waits for room, and evicts if the disk is full before its time.
                    let again = if error.is_disk_full() {
                        self.write_chunk(&object, CHUNK, bytes, crc).await
                    } else {
                        self.faults.report_write(&error);
                        Err(error)
                    };
                    set(results, at, again);
                }
            }
            Err(failure) => {
                self.faults.report_write(&failure);
                for at in positions {
                    set(results, at, Err(failure.again()));
                }
            }
        }
    }

    /// The objects whose files could not be written; an error when none could be.
    async fn try_write_small(
        self: &Arc<Self>,
        part: Vec<(usize, Small)>,
    ) -> Result<Vec<(usize, Small, StoreError)>, StoreError> {
        let mut incoming = HashMap::new();
        for (_, (object, bytes, _)) in &part {
            *incoming.entry(object.dataset).or_insert(0) += bytes.len() as u64;
        }
        for (dataset, bytes) in incoming {
            self.make_room(dataset, bytes).await?;
        }
        let permit = Arc::clone(&self.uncommitted_small).acquire_many_owned(part.len() as u32).await;
        let permit = permit.map_err(|_| StoreError::Closed)?;
        let mut pinned = Vec::with_capacity(part.len());
        for (at, small) in part {
            let lease = match self.try_pin(&small.0) {
                Some(lease) => lease,
                None => self.pin(&small.0).await?,
            };
            pinned.push((at, small, lease));
        }
        let this = Arc::clone(self);
        blocking(move || {
            let (mut pins, mut kept, mut refused) = (Vec::with_capacity(pinned.len()), Vec::new(), Vec::new());
            for (at, (object, bytes, crc), lease) in pinned {
                match this.write_whole(&object, &bytes, crc, &lease) {
                    Ok(true) => {
                        kept.push(object);
                        pins.push(lease);
                    }
                    Ok(false) => {}
                    Err(error) => refused.push((at, (object, bytes, crc), error)),
                }
            }
            {
                let mut order = this.eviction.lock();
                for object in &kept {
                    order.insert(object.id, object.dataset, object.size);
                }
            }
            if !pins.is_empty() {
                this.send(Op::WrittenSmall { pins, permit })?;
            }
            Ok(refused)
        })
        .await
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

    /// Reads and verifies objects of one chunk, and marks them as read. None for what is not here, or was here and is damaged (and now
    /// waits for repair); in the order of the batch.
    pub async fn read_small(self: &Arc<Self>, batch: Vec<ObjectRef>) -> Vec<Option<(Bytes, u32)>> {
        let (this, count) = (Arc::clone(self), batch.len());
        let read = blocking(move || {
            let read = batch.iter().map(|object| {
                this.read_chunk_now(object, CHUNK).unwrap_or_else(|error| {
                    tracing::error!(id = %object.id, %error, "a cached object can't be read");
                    None
                })
            });
            Ok(read.collect())
        });
        read.await.unwrap_or_else(|error| {
            tracing::error!(%error, "cached objects can't be read");
            vec![None; count]
        })
    }
}

fn set(results: &mut [Result<(), StoreError>], at: usize, result: Result<(), StoreError>) {
    if let Some(place) = results.get_mut(at) {
        *place = result;
    }
}
