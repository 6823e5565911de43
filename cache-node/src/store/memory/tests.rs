//! Copies on a real tmpfs: what gets there, what goes first, and that they leave with their objects.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::super::interleaving::Disk;
use super::super::{Class, ObjectRef, Store};
use super::*;
use crate::units::ChunkIndex;

const SIZE: u64 = 1 << 20;

struct Fixture {
    cache: tempfile::TempDir,
    memory: Disk,
    store: Arc<Store>,
}

fn object(n: u8) -> ObjectRef {
    ObjectRef { id: ObjectId::new("memory", &[n], "e", SIZE), size: SIZE, dataset: DatasetSlot(0) }
}

fn content(n: u8) -> Bytes {
    (0..SIZE).map(|at| n ^ (at / 997) as u8).collect()
}

impl Fixture {
    /// Objects 0 to 7, and memory for so many of them.
    async fn new(copies: u64) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: only root can mount a tmpfs");
            assert!(std::env::var_os("FOREBAY_REQUIRE_ALL").is_none(), "no test may be skipped");
            return None;
        }
        let (cache, memory) = (tempfile::tempdir_in("/dev/shm").unwrap(), Disk::new(c"size=64m"));
        let store = Store::open(&CacheLayout::new(cache.path()), 1 << 30, Arc::new(|_| ()), || ()).unwrap();
        store.use_memory(&memory.0.path().join("a"), copies * SIZE).unwrap();
        store.dataset("d").unwrap();
        let this = Self { cache, memory, store };
        for n in 0..8 {
            this.write(n).await;
        }
        this.store.flush().await.unwrap();
        Some(this)
    }

    async fn write(&self, n: u8) {
        let bytes = content(n);
        let crc = crc32c::crc32c(&bytes);
        self.store.write_chunk(&object(n), ChunkIndex(0), bytes, crc).await.unwrap();
    }

    fn copy(&self, n: u8) -> PathBuf {
        CacheLayout::new(self.memory.0.path().join("a")).objects().join(object(n).id.relative_path())
    }

    fn copies(&self) -> Vec<u8> {
        (0..8).filter(|n| self.copy(*n).exists()).collect()
    }

    /// Opens an object as the daemon does, and checks what it got.
    async fn open(&self, n: u8) -> File {
        let opened = self.store.open_object(&object(n)).await.unwrap();
        let mut bytes = vec![0; SIZE as usize];
        opened.file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == content(n), "object {n}");
        opened.file
    }

    /// Waits until nothing waits to be copied.
    fn settle(&self) {
        let (tier, began) = (self.store.memory.get().unwrap(), Instant::now());
        while !tier.queue.is_idle() {
            assert!(began.elapsed() < Duration::from_secs(30), "copying does not end");
            std::thread::yield_now();
        }
    }

    async fn open_and_settle(&self, n: u8) {
        self.open(n).await;
        self.settle();
    }

    fn device(&self, file: &File) -> bool {
        file.metadata().unwrap().dev() == std::fs::metadata(self.memory.0.path()).unwrap().dev()
    }
}

#[tokio::test]
async fn what_is_opened_again_is_read_from_memory_and_leaves_it_with_its_object() {
    let Some(f) = Fixture::new(8).await else { return };
    assert!(f.copies().is_empty(), "what was only written is not hot");
    assert!(!f.device(&f.open(1).await), "the first opening finds the disk's file");
    f.settle();
    assert_eq!((f.copies(), f.store.memory_tier_bytes()), (vec![1], SIZE));
    assert!(f.device(&f.open(1).await), "the next one finds the copy");
    assert_eq!(f.store.used_bytes(), 8 * SIZE, "the disk has everything");
    let held = f.open(1).await;
    assert!(f.store.forget(&object(1).id));
    assert_eq!((f.copies(), f.store.memory_tier_bytes()), (vec![], 0));
    assert_eq!(f.store.memory_tier_held_bytes(), SIZE, "who has it open keeps its bytes");
    drop(held);
    assert_eq!(f.store.memory_tier_held_bytes(), 0);
    f.store.flush().await.unwrap();
    f.write(1).await;
    f.store.flush().await.unwrap();
    f.open_and_settle(1).await;
    assert_eq!(f.copies(), [1], "it may come back");
    f.store.close().await;
}

#[tokio::test]
async fn copies_stay_within_the_capacity_and_what_is_pinned_goes_last() {
    let Some(f) = Fixture::new(3).await else { return };
    f.store.set_classes(Arc::new(|id| if *id == object(0).id { Class::Pinned } else { Class::Owned }));
    f.store.promote_pinned(|id| *id == object(0).id);
    f.settle();
    assert_eq!(f.copies(), [0], "without being opened");
    for round in 0..3 {
        for n in 1..8 {
            f.open_and_settle(n).await;
            let copies = f.copies();
            assert!(copies.contains(&0) && copies.len() <= 3, "{round} {n} {copies:?}");
            assert!(f.store.memory_tier_bytes() <= 3 * SIZE);
        }
    }
    assert_eq!(f.copies().len(), 3, "and it is used");
    f.store.set_memory_capacity(SIZE);
    assert_eq!(f.copies(), [0]);
    f.store.set_memory_capacity(0);
    assert_eq!(f.copies(), Vec::<u8>::new());
    f.open_and_settle(0).await;
    assert_eq!(f.copies(), Vec::<u8>::new());
    f.store.close().await;
}

#[tokio::test]
async fn a_copy_is_verified_and_an_earlier_lifes_copies_are_removed() {
    let Some(mut f) = Fixture::new(8).await else { return };
    f.open_and_settle(2).await;
    let folder = std::fs::metadata(f.copy(2).parent().unwrap()).unwrap().ino();
    f.store.close().await;
    let on_disk = CacheLayout::new(f.cache.path()).objects().join(object(3).id.relative_path());
    let file = std::fs::OpenOptions::new().write(true).open(on_disk).unwrap();
    file.write_all_at(&[content(3)[77] ^ 1], 77).unwrap();
    f.store = Store::open(&CacheLayout::new(f.cache.path()), 1 << 30, Arc::new(|_| ()), || ()).unwrap();
    f.store.use_memory(&f.memory.0.path().join("a"), 8 * SIZE).unwrap();
    assert!(f.copies().is_empty());
    assert_eq!(std::fs::metadata(f.copy(2).parent().unwrap()).unwrap().ino(), folder, "overlays are mounted over it");
    let opened = f.store.open_object(&object(3)).await.unwrap();
    assert!(!opened.complete, "it is not verified yet");
    f.settle();
    assert!(f.copies().is_empty(), "wrong bytes are not copied");
    assert!(!f.store.has(&object(3).id, ChunkIndex(0)), "and the disk's are found out");
    f.store.close().await;
}

#[tokio::test]
async fn a_folder_that_is_not_in_memory_is_refused() {
    let cache = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = Store::open(&CacheLayout::new(cache.path()), 1 << 30, Arc::new(|_| ()), || ()).unwrap();
    // The only file system that every Linux has and that is not a tmpfs.
    let error = store.use_memory("/proc/self".as_ref(), 1).unwrap_err().to_string();
    assert!(error.contains("/proc/self") && error.contains("tmpfs"), "{error}");
    store.close().await;
}
