//! The memory tier: copies of hot complete objects on a tmpfs, above the cache folder, which holds everything. Nothing here is in the index: a start
//! empties it. A copy is verified while it is made and leaves with its object, so nobody finds in it what the store would not call right. Who
//! has a copy open that is evicted keeps its bytes, which count as used until the file system says that they are free.

mod promotion;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use forebay_catalog::ObjectId;
use forebay_protocol::layout::CacheLayout;
use parking_lot::Mutex;

use super::backing::Backing;
use super::eviction::{Class, Eviction, Request, Standing, View};
use super::held::Held;
use super::record::DatasetSlot;
use super::{Classes, Store, StoreError};
use promotion::Queue;

/// `TMPFS_MAGIC` and `RAMFS_MAGIC` of the kernel's `linux/magic.h`.
const MEMORY_FILE_SYSTEMS: [u32; 2] = [0x0102_1994, 0x8584_58f6];

/// The tier knows no datasets: limits of these hold for the disk.
const ANY: DatasetSlot = DatasetSlot(0);

/// Plans without a victim before the tier counts as full of what can't go.
const VAIN_PLANS: usize = 8;

/// Copies of objects in memory.
#[derive(Debug)]
pub(super) struct MemoryTier {
    backing: Backing,
    capacity: AtomicU64,
    copies: Mutex<Copies>,
    held: Held,
    queue: Queue,
}

#[derive(Debug, Default)]
struct Copies {
    objects: HashMap<ObjectId, Copy>,
    order: Eviction,
    /// Of the copies, and of the one that is being made.
    bytes: u64,
    /// Copies that were used for the first time since eviction looked at them.
    hits: u64,
}

#[derive(Debug)]
struct Copy {
    bytes: u64,
    /// Used since eviction last looked at it.
    read: bool,
}

impl MemoryTier {
    /// Opens the folder and removes the copies of an earlier life. Folders stay as they are: overlays are mounted over them.
    fn open(folder: &Path, capacity: u64) -> io::Result<Self> {
        let backing = Backing::create(&CacheLayout::new(folder))?;
        let this = Self {
            backing,
            capacity: AtomicU64::new(capacity),
            copies: Mutex::default(),
            held: Held::default(),
            queue: Queue::default(),
        };
        let mut earlier = Vec::new();
        this.backing.for_each_file(|id| earlier.push(id))?;
        for id in earlier {
            let bytes =
                this.backing.open(&id)?.map_or(Ok(0), |found| found.file.metadata().map(|facts| facts.len()))?;
            this.held.unlinking(bytes, &this.backing.paths(&id));
            this.backing.remove(&id)?;
        }
        Ok(this)
    }

    /// Marks a copy as used; false when there is none.
    fn touch(&self, id: &ObjectId) -> bool {
        let copies = &mut *self.copies.lock();
        let Some(copy) = copies.objects.get_mut(id) else { return false };
        copies.hits += u64::from(!std::mem::replace(&mut copy.read, true));
        true
    }

    /// The copy of an object, open for reading.
    pub(super) fn open_copy(&self, id: &ObjectId) -> Option<File> {
        if !self.copies.lock().objects.contains_key(id) {
            return None;
        }
        match self.backing.open(id) {
            Ok(found) => found.filter(|found| found.complete).map(|found| found.file),
            Err(error) => {
                tracing::warn!(%id, %error, "a copy in memory can't be opened; the disk's is taken");
                None
            }
        }
    }

    fn remove(&self, id: &ObjectId) {
        let mut copies = self.copies.lock();
        self.unlink(&mut copies, id);
    }

    fn unlink(&self, copies: &mut Copies, id: &ObjectId) {
        let Some(copy) = copies.objects.remove(id) else { return };
        self.held.unlinking(copy.bytes, &self.backing.paths(id));
        copies.bytes -= copy.bytes;
        if let Err(error) = self.backing.remove(id) {
            // It stays until the next start, and what it says is right.
            tracing::warn!(%id, %error, "a copy in memory could not be removed");
        }
    }

    /// Takes room for a copy; evicts others for it, of classes up to `upto`. False when there is none.
    fn take_room(&self, bytes: u64, upto: Class, classes: &Classes) -> bool {
        let mut guard = self.copies.lock();
        let room = self.room();
        if bytes > room {
            return false;
        }
        let mut vain = 0;
        while guard.bytes + bytes > room {
            let copies = &mut *guard;
            copies.order.note_hits(std::mem::take(&mut copies.hits));
            let request = Request { bytes: copies.bytes + bytes - room, target: room, upto, scope: &|_| true };
            let plan = copies.order.plan(&request, &mut Look { objects: &mut copies.objects, classes });
            for victim in &plan.victims {
                self.unlink(copies, &victim.id);
            }
            vain = if plan.victims.is_empty() { vain + 1 } else { 0 };
            if plan.victims.is_empty() && plan.exhausted || vain > VAIN_PLANS {
                return false;
            }
        }
        guard.bytes += bytes;
        true
    }

    /// A copy for which room was taken stands in its place.
    fn insert(&self, id: ObjectId, bytes: u64) {
        let mut copies = self.copies.lock();
        copies.objects.insert(id, Copy { bytes, read: false });
        copies.order.insert(id, ANY, bytes);
    }

    /// A copy for which room was taken could not be made.
    fn give_room_back(&self, bytes: u64) {
        self.copies.lock().bytes -= bytes;
    }

    /// What copies may take: the capacity without what readers hold of copies that are gone.
    fn room(&self) -> u64 {
        let capacity = self.capacity.load(Ordering::Relaxed);
        capacity.saturating_sub(self.held.bytes())
    }
}

/// The copies as their order of eviction sees them.
struct Look<'a> {
    objects: &'a mut HashMap<ObjectId, Copy>,
    classes: &'a Classes,
}

impl View for Look<'_> {
    fn class(&mut self, id: &ObjectId) -> Option<(DatasetSlot, Class)> {
        self.objects.contains_key(id).then(|| (ANY, (self.classes)(id)))
    }

    fn standing(&mut self, id: &ObjectId) -> Option<Standing> {
        let copy = self.objects.get_mut(id)?;
        let read = std::mem::take(&mut copy.read);
        Some(Standing { dataset: ANY, bytes: copy.bytes, in_use: false, read })
    }
}

/// Why a memory tier can't be used.
fn check_file_system(folder: &Path) -> Result<(), StoreError> {
    let what = || format!("the memory tier's folder {}", folder.display());
    std::fs::create_dir_all(folder).map_err(|error| StoreError::io(what(), error))?;
    let kind = rustix::fs::statfs(folder).map_err(|error| StoreError::io(what(), error.into()))?.f_type;
    if MEMORY_FILE_SYSTEMS.iter().any(|known| i128::from(*known) == i128::from(kind)) {
        return Ok(());
    }
    Err(StoreError::io(what(), io::Error::other("it is on no tmpfs: choose a folder below /dev/shm")))
}

impl Store {
    /// Keeps copies of hot objects in a folder on a tmpfs, which is emptied. Once, before anything is read.
    pub fn use_memory(self: &Arc<Self>, folder: &Path, capacity: u64) -> Result<(), StoreError> {
        check_file_system(folder)?;
        let tier = MemoryTier::open(folder, capacity)
            .map_err(|error| StoreError::io(format!("opening the memory tier's folder {}", folder.display()), error))?;
        let tier = Arc::new(tier);
        if self.memory.set(Arc::clone(&tier)).is_ok() {
            let thread = promotion::start(self, tier).map_err(|e| StoreError::io("starting the promoter", e))?;
            *self.promoter.lock() = Some(thread);
        }
        Ok(())
    }

    /// Changes what copies in memory may take; what is above it goes at once.
    pub fn set_memory_capacity(&self, capacity: u64) {
        if let Some(tier) = self.memory.get() {
            tier.capacity.store(capacity, Ordering::Relaxed);
            let classes = self.classes.read().clone();
            // Makes room for nothing: only the excess goes.
            tier.take_room(0, Class::Pinned, &classes);
        }
    }

    /// The object leaves, or has lost a chunk: so does its copy in memory.
    pub(super) fn leave_memory(&self, id: &ObjectId) {
        if let Some(tier) = self.memory.get() {
            tier.remove(id);
        }
    }

    /// Bytes of copies in memory.
    pub fn memory_tier_bytes(&self) -> u64 {
        self.memory.get().map_or(0, |tier| tier.copies.lock().bytes)
    }

    /// Bytes of copies that are gone and that readers keep in memory.
    pub fn memory_tier_held_bytes(&self) -> u64 {
        self.memory.get().map_or(0, |tier| tier.held.bytes())
    }
}
