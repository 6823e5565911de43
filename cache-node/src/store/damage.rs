//! What happens to a chunk that is lost: damaged, or unreadable, or written and never brought to the disk. Only that chunk becomes absent. Its object is partial
//! again and its file moves back to `partial/`, as the same inode: the right bytes are written over the wrong ones in place, so that readers
//! who have it open, the kernel's overlay among them, get them too, and nothing is copied. A file that is gone or too short costs the object.

use std::io;
use std::sync::Arc;

use forebay_catalog::ObjectId;

use super::commit::Op;
use super::fault::{self, DiskFaultKind};
use super::slot::Body;
use super::{Change, Store, StoreError, blocking};
use crate::units::{ChunkIndex, chunk_count};

/// What is still to be done with the files of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stuck {
    /// They are of an earlier life of it and must go before it gets others.
    Stale,
    /// A chunk of it is lost, and it still stands in `objects/`.
    Published,
}

/// What came of dropping a chunk.
enum Dropped {
    /// It is absent now.
    Chunk,
    /// Somebody else has found out first.
    Already,
    /// The object is better dropped as a whole: it is this chunk only, or can't be told apart.
    NotWorthIt,
}

impl Store {
    /// Looks whether a disk that took no writes takes them again.
    pub async fn probe(self: &Arc<Self>) {
        let this = Arc::clone(self);
        let probed = blocking(move || this.backing.probe().map_err(|error| StoreError::io("probing the disk", error)));
        match probed.await {
            Ok(()) => self.faults.writes_work(),
            Err(error) => tracing::debug!(%error, "the cache's disk still takes no writes"),
        }
    }

    /// Removes an object's files, which have so many bytes; if the disk does not let it, before the object gets others.
    pub(super) fn remove_files(&self, id: &ObjectId, bytes: u64) {
        // They may stay for those who have them open.
        self.held.unlinking(bytes, &self.backing.paths(id));
        self.leave_memory(id);
        match self.backing.remove(id) {
            Ok(()) => drop(self.stuck.lock().remove(id)),
            Err(error) => {
                self.faults.report_write(&StoreError::io(format!("removing the object {id}"), error));
                self.stuck.lock().insert(*id, Stuck::Stale);
            }
        }
    }

    /// Whether an object's files are of an earlier life of it and can't be removed.
    pub(super) fn is_stale(&self, id: &ObjectId) -> bool {
        self.stuck.lock().get(id) == Some(&Stuck::Stale)
    }

    /// Does what is still to be done before an object is written.
    pub(super) fn put_right(&self, id: &ObjectId) -> io::Result<()> {
        if self.stuck.lock().is_empty() {
            return Ok(());
        }
        // Under the object's lock: nobody writes, publishes or drops it meanwhile.
        let _shard = self.slots.lock(id);
        let stuck = self.stuck.lock().get(id).copied();
        match stuck {
            None => return Ok(()),
            Some(Stuck::Stale) => self.backing.remove(id)?,
            Some(Stuck::Published) => self.backing.unpublish(id)?,
        }
        self.stuck.lock().remove(id);
        Ok(())
    }

    /// A chunk is not what it should be: bytes that are wrong, or `error` when they can't be read.
    pub(super) fn lose(&self, id: &ObjectId, chunk: ChunkIndex, generation: u64, error: Option<io::Error>) {
        let kind = error.as_ref().map_or(Some(DiskFaultKind::ChunkDamaged), fault::classify);
        let kind = kind.unwrap_or(DiskFaultKind::IoError);
        let cause = error.map_or_else(|| "its checksum is wrong".to_owned(), |error| error.to_string());
        // A file that is gone or too short is lost as a whole.
        let dropped = match kind {
            DiskFaultKind::FileMissing => Dropped::NotWorthIt,
            _ => self.drop_chunk(id, chunk, generation, kind),
        };
        let found = match dropped {
            Dropped::Chunk => true,
            Dropped::Already => false,
            Dropped::NotWorthIt => self.lose_object(id, generation, kind),
        };
        // Several may read the same bad bytes at once: it is one fault.
        if found {
            self.faults.report(kind, &format!("chunk {} of the cached object {id}: {cause}", chunk.0));
            (self.failures)();
        }
    }

    /// An object's file is gone, or shorter than it should be.
    pub(super) fn lose_file(&self, id: &ObjectId, generation: u64, is_there: bool) {
        let cause = if is_there { "is shorter than it should be" } else { "is missing" };
        if self.lose_object(id, generation, DiskFaultKind::FileMissing) {
            self.faults.report(DiskFaultKind::FileMissing, &format!("the file of the cached object {id} {cause}"));
            (self.failures)();
        }
    }

    /// The whole object is lost, with what it held still to be brought again; false when somebody else has found out first.
    fn lose_object(&self, id: &ObjectId, generation: u64, kind: DiskFaultKind) -> bool {
        let held = {
            let shard = self.slots.lock(id);
            let Some(slot) = shard.get(id).filter(|slot| slot.generation == generation) else { return false };
            let chunks = (0..chunk_count(slot.size)).map(ChunkIndex);
            chunks.filter(|chunk| slot.has(*chunk)).collect::<Vec<_>>()
        };
        for chunk in held {
            self.faults.lost(*id, chunk, kind);
        }
        self.forget(id)
    }

    /// Makes one chunk absent.
    fn drop_chunk(&self, id: &ObjectId, chunk: ChunkIndex, generation: u64, kind: DiskFaultKind) -> Dropped {
        let mut shard = self.slots.lock(id);
        let Some(slot) = shard.get_mut(id).filter(|slot| slot.generation == generation && slot.has(chunk)) else {
            return Dropped::Already;
        };
        let (before, mut moved) = (slot.presence(), true);
        match &mut slot.body {
            Body::Complete => {
                if chunk_count(slot.size) <= 1 {
                    return Dropped::NotWorthIt;
                }
                if let Err(error) = self.backing.unpublish(id) {
                    self.faults.report_write(&StoreError::io(format!("moving the damaged object {id} back"), error));
                    self.stuck.lock().insert(*id, Stuck::Published);
                    moved = false;
                }
                shard.lose(id, chunk);
                self.leave_memory(id);
            }
            Body::Partial(partial) => {
                // Still on its way to the index: its record can't be taken back one by one.
                if !partial.committed.contains(chunk) || partial.written.count() <= 1 {
                    return Dropped::NotWorthIt;
                }
                partial.written.remove(chunk);
                partial.committed.remove(chunk);
            }
        }
        let Some(slot) = shard.get(id) else { return Dropped::Already };
        // Before anybody finds it absent: who does is to know why.
        self.faults.lost(*id, chunk, kind);
        self.checked.count_loss(id);
        self.usage.sub(slot.dataset, chunk.range(slot.size).length, slot.evicting);
        (self.observer)(&Change { id: *id, size: slot.size, before, after: slot.presence() });
        if moved {
            // The store may be closing; then the next start finds out.
            let _ = self.send(Op::Lost { id: *id, generation });
        }
        Dropped::Chunk
    }

    /// Chunks that were written could not be brought to the disk: only they are lost. Whoever has read them from memory has read right bytes; they are
    /// fetched again and written over.
    pub(super) fn retract(&self, id: &ObjectId, chunks: &[ChunkIndex], generation: u64, kind: DiskFaultKind) {
        let empty = {
            let mut shard = self.slots.lock(id);
            let Some(slot) = shard.get_mut(id).filter(|slot| slot.generation == generation) else { return };
            let Body::Partial(partial) = &mut slot.body else { return };
            let mut bytes = 0;
            for chunk in chunks.iter().filter(|chunk| !partial.committed.contains(**chunk)) {
                if partial.written.remove(*chunk) {
                    bytes += chunk.range(slot.size).length;
                }
            }
            let empty = partial.written.count() == 0;
            self.usage.sub(slot.dataset, bytes, slot.evicting);
            // A single chunk is not worth an empty record, unless somebody holds it.
            empty && slot.pins <= 1
        };
        if empty {
            self.forget(id);
        }
        for chunk in chunks {
            self.faults.lost(*id, *chunk, kind);
        }
    }
}
