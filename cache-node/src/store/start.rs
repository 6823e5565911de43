//! Opening a cache folder: what its index knows is what the store has, and what it does not know goes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock, mpsc};

use forebay_protocol::layout::CacheLayout;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore};

use super::backing::{self, Backing};
use super::fault::{DiskFaultKind, Faults};
use super::held::Held;
use super::index::{Index, IndexError};
use super::patience::Patience;
use super::slot::Slots;
use super::{Class, DatasetSlot, Observer, Store, StoreError, commit, small, verify};

/// Most chunks that wait for the committer; each holds its file open.
const UNCOMMITTED: usize = 1024;

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
                faults.report(DiskFaultKind::IndexDamaged, &format!("{error}; the cache starts empty"));
                empty().map_err(|e| StoreError::io("emptying the cache", e))?;
                Index::remove(&layout.index())?;
                slots = Slots::new();
                Index::open(&layout.index(), &slots)?
            }
            opened => opened?,
        };
        let backing = Backing::create(layout).map_err(|e| StoreError::io("making the cache's folders", e))?;
        if index.damaged_places() > 0 {
            let what = format!("{} can't be read in {} places", layout.index().display(), index.damaged_places());
            faults.report(DiskFaultKind::IndexDamaged, &what);
        }
        // Objects are published after the index knows them, and it knows no object without its dataset.
        if datasets.is_empty() && faults.counts().all(|(_, count)| count == 0) && backing.has_objects() {
            let what = format!(
                "{} has nothing, above objects that it must have known; the cache starts empty",
                layout.index().display()
            );
            faults.report(DiskFaultKind::IndexDamaged, &what);
        }
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
            patience: Patience::default(),
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
            writers: super::writers::Writers::default(),
            uncommitted: Arc::new(Semaphore::new(UNCOMMITTED)),
            uncommitted_small: Arc::new(Semaphore::new(small::UNCOMMITTED)),
            small: small::Queues::default(),
            compactor: Mutex::default(),
            untold: Mutex::default(),
            changed: Notify::new(),
            memory: OnceLock::new(),
            promoter: Mutex::default(),
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
}
