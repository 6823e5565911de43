//! The store: chunks of objects on this node's disk. Guarantees that what it says is present is verified and, after any crash, still right;
//! that a leased file keeps what it holds; and that the disk's share is kept. It does not know where bytes come from.

mod backing;
pub mod bitmap;
mod bulk;
mod commit;
mod compaction;
#[cfg(test)]
mod crash;
mod damage;
mod error;
#[doc(hidden)]
pub mod eviction;
pub mod fault;
#[cfg(test)]
mod fault_tests;
mod held;
mod index;
#[cfg(test)]
mod interleaving;
mod landing;
mod lease;
mod lend;
mod memory;
#[cfg(test)]
mod model;
mod open;
mod part;
mod patience;
mod read;
pub(crate) mod record;
mod room;
pub mod scrub;
mod slot;
mod small;
mod start;
mod table;
mod usage;
pub mod verify;
mod write;
mod writers;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};

use forebay_catalog::ObjectId;
#[cfg(test)]
use forebay_protocol::layout::CacheLayout;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::RuntimeFlavor;
use tokio::sync::{Notify, Semaphore};

use backing::Backing;
#[doc(hidden)]
pub use bulk::fill_index;
use commit::Op;
pub use error::StoreError;
pub use eviction::Class;
use eviction::Eviction;
#[cfg(test)]
use fault::DiskFaultKind;
use fault::Faults;
use held::Held;
use index::Index;
pub use index::IndexError;
pub use landing::Landing;
pub use lease::Lease;
pub use lend::Lent;
use memory::MemoryTier;
use patience::Patience;
pub use record::DatasetSlot;
use slot::{Body, Slots};
pub use slot::{Presence, bytes_of};
use usage::Usage;
pub use usage::{Quota, Reservation};
pub use verify::Verdict;

use crate::units::ChunkIndex;

/// An object as the store needs to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectRef {
    /// Its id.
    pub id: ObjectId,
    /// Bytes.
    pub size: u64,
    /// The dataset that asks for it.
    pub dataset: DatasetSlot,
}

/// What is safely here of an object has changed. Told under the lock that orders everything about the object.
#[derive(Debug)]
pub struct Change {
    /// The object.
    pub id: ObjectId,
    /// Its bytes.
    pub size: u64,
    /// What was here.
    pub before: Presence,
    /// What is here.
    pub after: Presence,
}

/// Is told of every change; must be quick and must not call the store.
pub type Observer = Arc<dyn Fn(&Change) + Send + Sync>;

/// Which objects are to go first. Is asked only when something is to be evicted, and must not call the store.
pub type Classes = Arc<dyn Fn(&ObjectId) -> Class + Send + Sync>;

/// A file handed to a reader.
#[derive(Debug)]
pub struct Opened {
    /// Keeps the file as it is.
    pub lease: Lease,
    /// The file, read-only.
    pub file: File,
    /// Every byte is present.
    pub complete: bool,
}

/// The objects of a cache folder.
pub struct Store {
    backing: Backing,
    index: Index,
    slots: Slots,
    usage: Arc<Usage>,
    eviction: Mutex<Eviction>,
    classes: RwLock<Classes>,
    /// Objects that were read for the first time since eviction looked at them; told to it before it looks again.
    hits: AtomicU64,
    held: Held,
    patience: Patience,
    capacity: AtomicU64,
    /// Above the high watermark, and not below the low one since.
    draining: AtomicBool,
    datasets: Mutex<HashMap<String, DatasetSlot>>,
    observer: Observer,
    failures: Box<dyn Fn() + Send + Sync>,
    faults: Faults,
    checked: verify::Checked,
    verifications: Semaphore,
    /// Files that stand where they should not, since the disk took no change.
    stuck: Mutex<HashMap<ObjectId, damage::Stuck>>,
    /// When objects were last evicted because the disk was full.
    made_room_at: Mutex<Option<std::time::Instant>>,
    scrubbed: AtomicU64,
    ops: Mutex<Option<mpsc::Sender<Op>>>,
    committer: Mutex<Option<std::thread::JoinHandle<()>>>,
    writers: writers::Writers,
    uncommitted: Arc<Semaphore>,
    uncommitted_small: Arc<Semaphore>,
    small: small::Queues,
    /// Writes the index anew.
    compactor: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// Why the index could not be told of the last removals; no object that leaves can come back meanwhile.
    untold: Mutex<Option<StoreError>>,
    /// After each group: evictions are done, objects are published.
    changed: Notify,
    /// Copies of hot objects; unset without a memory tier.
    memory: OnceLock<Arc<MemoryTier>>,
    promoter: Mutex<Option<std::thread::JoinHandle<()>>>,
    #[cfg(test)]
    crash: Arc<crash::Crash>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("backing", &self.backing).finish_non_exhaustive()
    }
}

impl Store {
    /// The number of a dataset, made if need be.
    pub fn dataset(&self, uid: &str) -> Result<DatasetSlot, StoreError> {
        let mut datasets = self.datasets.lock();
        if let Some(slot) = datasets.get(uid) {
            return Ok(*slot);
        }
        let slot = DatasetSlot(datasets.values().map(|slot| slot.0 + 1).max().unwrap_or(0));
        self.index.add_dataset(uid, slot)?;
        datasets.insert(uid.to_owned(), slot);
        Ok(slot)
    }

    /// Datasets that have ever had objects here.
    pub fn known_datasets(&self) -> Vec<(String, DatasetSlot)> {
        self.datasets.lock().iter().map(|(uid, slot)| (uid.clone(), *slot)).collect()
    }

    /// Bytes that all objects take.
    pub fn used_bytes(&self) -> u64 {
        self.usage.total()
    }

    /// Bytes it may use.
    pub fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Whether the chunk can be read here.
    pub fn has(&self, id: &ObjectId, chunk: ChunkIndex) -> bool {
        self.slots.lock(id).has(id, chunk)
    }

    /// Calls `look` with what is safely here, while nothing can change it.
    pub fn with_presence<T>(&self, id: &ObjectId, look: impl FnOnce(&Presence) -> T) -> T {
        let shard = self.slots.lock(id);
        let seen = shard.get(id);
        look(&seen.map_or(Presence::Absent, |slot| slot.presence()))
    }

    /// Bytes that a dataset's objects take.
    pub fn used_bytes_of(&self, dataset: DatasetSlot) -> u64 {
        self.usage.of(dataset)
    }

    /// Whether every chunk can be read here.
    pub fn is_complete(&self, id: &ObjectId) -> bool {
        self.slots.lock(id).get(id).is_some_and(|slot| match &slot.body {
            Body::Complete => !slot.evicting,
            Body::Partial(partial) => !slot.evicting && partial.written.is_full(),
        })
    }

    /// Marks an object as used again, for eviction. Once for each time that somebody opens it: that a file is read through chunk by chunk says nothing
    /// about whether it will be read again. For readers of this machine: what they open again is worth a copy in memory.
    pub fn touch(&self, id: &ObjectId) {
        self.note_use(id);
        self.want_in_memory(id);
    }

    /// The same for peers, who are served from the disk's pages.
    fn note_use(&self, id: &ObjectId) {
        if self.slots.lock(id).touch(id) {
            self.hits.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What the disk did wrong.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Drops an object at once, also under leases, which become invalid: for what is lost as a whole. It can be written again when the index
    /// has forgotten it too: otherwise a crash could leave what is new of it to be taken for what was. False when it was not here.
    pub fn forget(&self, id: &ObjectId) -> bool {
        let mut shard = self.slots.lock(id);
        // What has been dropped already and only waits for the index is not here.
        if shard.get(id).is_none_or(|slot| slot.evicting && slot.bytes() == 0) {
            return false;
        }
        let Some(slot) = shard.remove(id) else { return false };
        self.remove_files(id, slot.bytes());
        self.checked.remove(id);
        self.usage.sub(slot.dataset, slot.bytes(), slot.evicting);
        (self.observer)(&Change { id: *id, size: slot.size, before: slot.presence(), after: Presence::Absent });
        let leaving = shard.insert(id, slot.size, slot.dataset);
        leaving.evicting = true;
        let generation = leaving.generation;
        // A store that is closing writes nothing again; the next start finds out what is missing.
        if self.send(Op::Evict { id: *id, generation }).is_err() {
            shard.remove(id);
        }
        true
    }

    fn send(&self, op: Op) -> Result<(), StoreError> {
        self.ops.lock().as_ref().and_then(|ops| ops.send(op).ok()).ok_or(StoreError::Closed)
    }

    /// Waits until everything written or evicted so far is safe on the disk.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let (send, receive) = tokio::sync::oneshot::channel();
        self.send(Op::Barrier(send))?;
        // The sender is dropped, not used, when the group is through.
        let _ = receive.await;
        Ok(())
    }

    /// Commits what is written and closes the index. Everything fails from now on.
    pub async fn close(self: &Arc<Self>) {
        if let Some(memory) = self.memory.get() {
            memory.close();
        }
        drop(self.ops.lock().take());
        let this = Arc::clone(self);
        let closed = tokio::task::spawn_blocking(move || {
            // The committer before the compactor, which it starts.
            for thread in [&this.promoter, &this.committer, &this.compactor] {
                let thread = thread.lock().take();
                if let Some(thread) = thread {
                    let name = thread.thread().name().unwrap_or_default().to_owned();
                    if thread.join().is_err() {
                        tracing::error!(name, "a thread of the store had panicked");
                    }
                }
            }
            this.index.close();
        });
        if let Err(error) = closed.await {
            tracing::error!(%error, "closing the cache failed");
        }
    }
}

/// For a few calls whose answer a reader waits for, and which seldom wait for the disk: this thread makes them, so that no other one has to be woken,
/// twice. Another one goes on with its tasks meanwhile.
async fn briefly<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::runtime::Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(run),
        // There is no other one.
        _ => blocking(run).await,
    }
}

async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(run)
        .await
        .map_err(|error| StoreError::io("a task of the store", io::Error::other(error)))?
}
