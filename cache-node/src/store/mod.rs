//! The store: chunks of objects on this node's disk. Guarantees that what it says is present is verified and, after any crash, still right;
//! that a leased file keeps what it holds; and that the disk's share is kept. It does not know where bytes come from.

mod backing;
pub mod bitmap;
mod commit;
#[cfg(test)]
mod crash;
#[doc(hidden)]
pub mod eviction;
mod held;
mod index;
#[cfg(test)]
mod interleaving;
mod lease;
#[cfg(test)]
mod model;
mod open;
mod read;
mod record;
mod room;
mod slot;
mod usage;
mod write;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use forebay_catalog::ObjectId;
use forebay_protocol::layout::CacheLayout;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore};

use backing::Backing;
use commit::Op;
pub use eviction::Class;
use eviction::Eviction;
use held::Held;
use index::Index;
pub use lease::Lease;
pub use record::DatasetSlot;
use slot::{Body, Partial, Slot, Slots};
pub use slot::{Presence, bytes_of};
use usage::Usage;
pub use usage::{Quota, Reservation};

use crate::units::ChunkIndex;

/// Most chunks that wait for the committer; each holds its file open.
const UNCOMMITTED: usize = 1024;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// The index failed.
    #[error("the cache's index: {0}")]
    Index(Box<redb::Error>),
    /// No room, and nothing to evict.
    #[error(
        "the cache is full: of {capacity} bytes {used} are in use, {held} more are held by readers of evicted files, and nothing can be evicted; give it more capacity"
    )]
    Full {
        /// Bytes used.
        used: u64,
        /// Bytes of files that are gone for all but who has them open.
        held: u64,
        /// Bytes there are.
        capacity: u64,
    },
    /// The store was closed.
    #[error("the cache is closed")]
    Closed,
}

impl StoreError {
    fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }

    /// Whether the disk is full, whatever the capacity says.
    fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }

    fn index(error: impl Into<redb::Error>) -> Self {
        Self::Index(Box::new(error.into()))
    }

    /// Whether the index can't be used any more, as opposed to: not now, or not by us.
    fn is_corruption(&self) -> bool {
        matches!(self, Self::Index(error) if matches!(**error, redb::Error::Corrupted(_) | redb::Error::UpgradeRequired(_)))
    }
}

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
    capacity: AtomicU64,
    /// Above the high watermark, and not below the low one since.
    draining: AtomicBool,
    generations: AtomicU64,
    datasets: Mutex<HashMap<String, DatasetSlot>>,
    observer: Observer,
    failures: Box<dyn Fn() + Send + Sync>,
    ops: Mutex<Option<mpsc::Sender<Op>>>,
    committer: Mutex<Option<std::thread::JoinHandle<()>>>,
    uncommitted: Arc<Semaphore>,
    /// After each group: evictions are done, objects are published.
    changed: Notify,
    #[cfg(test)]
    crash: crash::Crash,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("backing", &self.backing).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the cache folder. `failures` is called for each chunk or file that is not what the index says.
    pub fn open(
        layout: &CacheLayout,
        capacity: u64,
        observer: Observer,
        failures: impl Fn() + Send + Sync + 'static,
    ) -> Result<Arc<Self>, StoreError> {
        let index = match Index::open(&layout.index()) {
            Ok(index) => index,
            Err(error) if !error.is_corruption() => return Err(error),
            Err(error) => {
                // Without the checksums nothing in the folder can be trusted.
                tracing::error!(%error, "the cache's index is damaged; the cache starts empty");
                backing::remove_all(&layout.objects()).map_err(|e| StoreError::io("emptying the cache", e))?;
                backing::remove_all(&layout.partial()).map_err(|e| StoreError::io("emptying the cache", e))?;
                std::fs::remove_file(layout.index()).map_err(|e| StoreError::io("removing the damaged index", e))?;
                Index::open(&layout.index())?
            }
        };
        let backing = Backing::create(layout).map_err(|e| StoreError::io("making the cache's folders", e))?;
        let (send, receive) = mpsc::channel();
        let store = Arc::new(Self {
            backing,
            datasets: Mutex::new(index.datasets()?),
            index,
            slots: Slots::new(),
            usage: Arc::default(),
            eviction: Mutex::default(),
            classes: RwLock::new(Arc::new(|_| Class::Owned)),
            hits: AtomicU64::new(0),
            held: Held::default(),
            capacity: AtomicU64::new(capacity),
            draining: AtomicBool::new(false),
            generations: AtomicU64::new(1),
            observer,
            failures: Box::new(failures),
            ops: Mutex::new(Some(send)),
            committer: Mutex::default(),
            uncommitted: Arc::new(Semaphore::new(UNCOMMITTED)),
            changed: Notify::new(),
            #[cfg(test)]
            crash: crash::Crash::default(),
        });
        store.load()?;
        let weak = Arc::downgrade(&store);
        let thread = std::thread::Builder::new()
            .name("committer".to_owned())
            .spawn(move || commit::run(&weak, &receive))
            .map_err(|e| StoreError::io("starting the committer", e))?;
        *store.committer.lock() = Some(thread);
        Ok(store)
    }

    fn load(&self) -> Result<(), StoreError> {
        let mut order = self.eviction.lock();
        self.index.load(|id, record| {
            let body = match record.present {
                None => Body::Complete,
                Some(present) => {
                    Body::Partial(Box::new(Partial { written: present.clone(), committed: present, crcs: record.crcs }))
                }
            };
            let slot = self.new_slot(record.size, record.dataset, body);
            self.usage.add(record.dataset, slot.bytes());
            self.slots.lock(&id).insert(id, slot);
            order.restore(id, record.dataset, record.size);
        })
    }

    fn new_slot(&self, size: u64, dataset: DatasetSlot, body: Body) -> Slot {
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
        Slot { size, dataset, generation, pins: 0, visited: false, evicting: false, body }
    }

    /// Removes files that the index does not know: left by a crash, worth nothing.
    pub fn sweep(&self) {
        let result = self.backing.for_each_file(|id| {
            let shard = self.slots.lock(&id);
            if !shard.contains_key(&id) {
                tracing::debug!(%id, "removing a file that the index does not know");
                if let Err(error) = self.backing.remove(&id) {
                    tracing::warn!(%id, %error, "a stray file could not be removed");
                }
            }
        });
        if let Err(error) = result {
            tracing::warn!(%error, "looking for stray files failed");
        }
    }

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
        self.slots.lock(id).get(id).is_some_and(|slot| !slot.evicting && slot.has(chunk))
    }

    /// Calls `look` with what is safely here, while nothing can change it.
    pub fn with_presence<T>(&self, id: &ObjectId, look: impl FnOnce(&Presence) -> T) -> T {
        let shard = self.slots.lock(id);
        look(&shard.get(id).map_or(Presence::Absent, Slot::presence))
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
    /// about whether it will be read again.
    pub fn touch(&self, id: &ObjectId) {
        if let Some(slot) = self.slots.lock(id).get_mut(id) {
            self.touch_slot(slot);
        }
    }

    fn touch_slot(&self, slot: &mut Slot) {
        if !std::mem::replace(&mut slot.visited, true) {
            self.hits.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Drops an object at once, also under leases, which become invalid: for what is damaged.
    pub fn forget(&self, id: &ObjectId) {
        let mut shard = self.slots.lock(id);
        let Some(slot) = shard.remove(id) else { return };
        self.unlinking(slot.bytes());
        if let Err(error) = self.backing.remove(id) {
            tracing::error!(%id, %error, "a damaged object could not be removed");
        }
        self.usage.sub(slot.dataset, slot.bytes(), slot.evicting);
        (self.observer)(&Change { id: *id, size: slot.size, before: slot.presence(), after: Presence::Absent });
        // Under the lock, so that whatever is written later is committed later. The store may be closing; then the next start finds out.
        let _ = self.send(Op::Forgotten { id: *id });
    }

    /// A file is about to be removed whose bytes may stay for those who have it open.
    fn unlinking(&self, bytes: u64) {
        self.held.unlinking(bytes, self.used_bytes(), || self.backing.space());
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
        drop(self.ops.lock().take());
        let (thread, this) = (self.committer.lock().take(), Arc::clone(self));
        let closed = tokio::task::spawn_blocking(move || {
            if let Some(thread) = thread
                && thread.join().is_err()
            {
                tracing::error!("the committer had panicked");
            }
            this.index.close();
        });
        if let Err(error) = closed.await {
            tracing::error!(%error, "closing the cache failed");
        }
    }
}

async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(run)
        .await
        .map_err(|error| StoreError::io("a task of the store", io::Error::other(error)))?
}
