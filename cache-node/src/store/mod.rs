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
#[doc(hidden)]
pub mod eviction;
pub mod fault;
#[cfg(test)]
mod fault_tests;
mod held;
mod index;
#[cfg(test)]
mod interleaving;
mod lease;
mod lend;
#[cfg(test)]
mod model;
mod open;
mod part;
mod read;
pub(crate) mod record;
mod room;
pub mod scrub;
mod slot;
mod small;
mod table;
mod usage;
pub mod verify;
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
#[doc(hidden)]
pub use bulk::fill_index;
use commit::Op;
pub use eviction::Class;
use eviction::Eviction;
use fault::{DiskFaultKind, Faults};
use held::Held;
use index::Index;
pub use index::IndexError;
pub use lease::Lease;
pub use lend::Lent;
pub use record::DatasetSlot;
use slot::{Body, Slots};
pub use slot::{Presence, bytes_of};
use usage::Usage;
pub use usage::{Quota, Reservation};
pub use verify::Verdict;

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
    Index(#[source] IndexError),
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

impl From<IndexError> for StoreError {
    fn from(error: IndexError) -> Self {
        match error {
            IndexError::Closed => Self::Closed,
            error => Self::Index(error),
        }
    }
}

impl StoreError {
    fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }

    /// The same error once more, for another object that it hit.
    fn again(&self) -> Self {
        match self {
            Self::Full { used, held, capacity } => Self::Full { used: *used, held: *held, capacity: *capacity },
            Self::Closed => Self::Closed,
            Self::Io { what, source } => Self::Io { what: what.clone(), source: same(source) },
            Self::Index(IndexError::Io { what, source }) => {
                Self::Io { what: format!("the cache's index: {what}"), source: same(source) }
            }
            Self::Index(error) => Self::io("the cache's index", io::Error::other(error.to_string())),
        }
    }

    /// Whether the disk is full, whatever the capacity says.
    fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// An error of a system call once more.
fn same(error: &io::Error) -> io::Error {
    let anew = || io::Error::new(error.kind(), error.to_string());
    error.raw_os_error().map_or_else(anew, io::Error::from_raw_os_error)
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
    uncommitted: Arc<Semaphore>,
    uncommitted_small: Arc<Semaphore>,
    /// Writes the index anew.
    compactor: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// Why the index could not be told of the last removals; no object that leaves can come back meanwhile.
    untold: Mutex<Option<StoreError>>,
    /// After each group: evictions are done, objects are published.
    changed: Notify,
    #[cfg(test)]
    crash: Arc<crash::Crash>,
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
        let faults = Faults::default();
        let empty = || backing::remove_all(&layout.objects()).and_then(|()| backing::remove_all(&layout.partial()));
        if Index::remove_old(&layout.old_index(), empty)? {
            tracing::warn!(index = %layout.old_index().display(), "the cache's index has an earlier version's format; the cache starts empty");
        }
        let mut slots = Slots::new();
        let (index, datasets) = match Index::open(&layout.index(), &slots) {
            Err(error @ IndexError::Damaged { .. }) => {
                // Without the checksums nothing in the folder can be trusted.
                faults.report(DiskFaultKind::IndexDamaged, &error.to_string());
                empty().map_err(|e| StoreError::io("emptying the cache", e))?;
                Index::remove(&layout.index())?;
                slots = Slots::new();
                Index::open(&layout.index(), &slots)?
            }
            opened => opened?,
        };
        let backing = Backing::create(layout).map_err(|e| StoreError::io("making the cache's folders", e))?;
        let (send, receive) = mpsc::channel();
        let store = Arc::new(Self {
            backing,
            datasets: Mutex::new(datasets),
            #[cfg(test)]
            crash: Arc::clone(&index.crash),
            index,
            slots,
            usage: Arc::default(),
            eviction: Mutex::default(),
            classes: RwLock::new(Arc::new(|_| Class::Owned)),
            hits: AtomicU64::new(0),
            held: Held::default(),
            capacity: AtomicU64::new(capacity),
            draining: AtomicBool::new(false),
            observer,
            failures: Box::new(failures),
            faults,
            checked: verify::Checked::default(),
            verifications: Semaphore::new(verify::VERIFICATIONS),
            stuck: Mutex::default(),
            made_room_at: Mutex::default(),
            scrubbed: AtomicU64::new(0),
            ops: Mutex::new(Some(send)),
            committer: Mutex::default(),
            uncommitted: Arc::new(Semaphore::new(UNCOMMITTED)),
            uncommitted_small: Arc::new(Semaphore::new(small::UNCOMMITTED)),
            compactor: Mutex::default(),
            untold: Mutex::default(),
            changed: Notify::new(),
        });
        store.take_stock();
        let weak = Arc::downgrade(&store);
        let thread = std::thread::Builder::new()
            .name("committer".to_owned())
            .spawn(move || commit::run(&weak, &receive))
            .map_err(|e| StoreError::io("starting the committer", e))?;
        *store.committer.lock() = Some(thread);
        Ok(store)
    }

    /// Counts what the index had, and puts it in the order of eviction.
    fn take_stock(&self) {
        let mut order = self.eviction.lock();
        let mut used = HashMap::<DatasetSlot, u64>::new();
        for shard in self.slots.shards() {
            for (id, slot) in shard.iter() {
                *used.entry(slot.dataset).or_default() += slot.bytes();
                order.restore(id, slot.dataset, slot.size);
            }
        }
        for (dataset, bytes) in used {
            self.usage.add(dataset, bytes);
        }
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
    /// about whether it will be read again.
    pub fn touch(&self, id: &ObjectId) {
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
        drop(self.ops.lock().take());
        let (thread, this) = (self.committer.lock().take(), Arc::clone(self));
        let closed = tokio::task::spawn_blocking(move || {
            if let Some(thread) = thread
                && thread.join().is_err()
            {
                tracing::error!("the committer had panicked");
            }
            let compactor = this.compactor.lock().take();
            if let Some(thread) = compactor
                && thread.join().is_err()
            {
                tracing::error!("the thread that writes the index anew had panicked");
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
