//! Faults of the disk, one at a time, on real files: what they hit is lost and nothing else, no wrong byte is served, and it heals.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use bytes::Bytes;
use forebay_protocol::config::CHUNK_BYTES;

use super::backing::failing::{self, Call};
use super::scrub::Pace;
use super::*;
use crate::units::chunk_count;

const SIZE: u64 = 2 * CHUNK_BYTES + 1000;

struct Fixture {
    folder: tempfile::TempDir,
    layout: CacheLayout,
    store: Arc<Store>,
    failures: Arc<AtomicU64>,
}

fn object(n: u8) -> ObjectRef {
    ObjectRef { id: ObjectId::new("faults", &[n], "e", SIZE), size: SIZE, dataset: DatasetSlot(0) }
}

fn chunk_bytes(n: u8, chunk: ChunkIndex) -> Bytes {
    let length = chunk.range(SIZE).length as usize;
    (0..length).map(|i| n.wrapping_mul(37) ^ (i / 700) as u8 ^ (chunk.0 as u8).wrapping_mul(91)).collect()
}

fn chunks() -> impl Iterator<Item = ChunkIndex> {
    (0..chunk_count(SIZE)).map(ChunkIndex)
}

fn open(layout: &CacheLayout, failures: &Arc<AtomicU64>) -> Arc<Store> {
    let failures = Arc::clone(failures);
    let count = move || {
        failures.fetch_add(1, Ordering::SeqCst);
    };
    Store::open(layout, 1 << 30, Arc::new(|_| ()), count).unwrap()
}

impl Fixture {
    /// A store with whole objects 0, 1 and 2.
    async fn new() -> Self {
        let memory = std::path::Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() };
        let layout = CacheLayout::new(folder.path());
        let failures = Arc::default();
        let store = open(&layout, &failures);
        store.dataset("d").unwrap();
        let this = Self { folder, layout, store, failures };
        for n in 0..3 {
            for chunk in chunks() {
                this.write(n, chunk).await.unwrap();
            }
        }
        this.store.flush().await.unwrap();
        this
    }

    async fn restart(&mut self) {
        self.store.close().await;
        self.store = open(&self.layout, &self.failures);
    }

    async fn write(&self, n: u8, chunk: ChunkIndex) -> Result<(), StoreError> {
        let bytes = chunk_bytes(n, chunk);
        let crc = crc32c::crc32c(&bytes);
        self.store.write_chunk(&object(n), chunk, bytes, crc).await
    }

    fn published(&self, n: u8) -> PathBuf {
        self.layout.objects().join(object(n).id.relative_path())
    }

    fn partial(&self, n: u8) -> PathBuf {
        self.layout.partial().join(object(n).id.relative_path())
    }

    fn flip(&self, n: u8, chunk: ChunkIndex) {
        let file = fs::OpenOptions::new().read(true).write(true).open(self.published(n)).unwrap();
        let (mut byte, at) = ([0], chunk.range(SIZE).offset + 17);
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    }

    /// Every chunk of the objects reads right.
    async fn assert_whole(&self, objects: impl IntoIterator<Item = u8>) {
        for n in objects {
            for chunk in chunks() {
                let (bytes, _) = self.store.read_chunk(&object(n), chunk).await.unwrap().expect("it is here");
                assert!(bytes == chunk_bytes(n, chunk), "object {n} {chunk:?}");
            }
        }
    }

    fn fault(&self, kind: DiskFaultKind) -> Option<(u64, bool)> {
        let status = self.store.faults().status();
        status.iter().find(|fault| fault.kind() == kind).map(|fault| (fault.count, fault.current))
    }
}

#[tokio::test]
async fn a_flipped_byte_costs_its_chunk_and_is_mended_in_place() {
    let mut f = Fixture::new().await;
    f.restart().await;
    let (bad, inode) = (ChunkIndex(1), fs::metadata(f.published(0)).unwrap().ino());
    f.flip(0, bad);
    let opened = f.store.open_object(&object(0)).await.unwrap();
    assert!(!opened.complete, "nothing is called present before it is verified");
    assert!(!f.store.is_verified(&object(0).id, bad));
    assert_eq!(f.store.check_chunk(&object(0), ChunkIndex(0)).await.unwrap(), Verdict::Good);
    assert_eq!(f.store.check_chunk(&object(0), bad).await.unwrap(), Verdict::Lost);
    assert_eq!(f.store.check_chunk(&object(0), bad).await.unwrap(), Verdict::Absent);
    assert_eq!(f.store.check_chunk(&object(0), ChunkIndex(2)).await.unwrap(), Verdict::Good);
    assert!(f.store.has(&object(0).id, ChunkIndex(0)) && f.store.has(&object(0).id, ChunkIndex(2)));
    assert!(!f.store.has(&object(0).id, bad) && !f.store.is_whole(&object(0).id));
    assert_eq!(f.store.used_bytes(), 3 * SIZE - CHUNK_BYTES);
    assert!(!f.published(0).exists() && f.partial(0).exists(), "the kernel finds it no more");
    assert!(opened.lease.is_valid(), "who has it open goes on");
    assert_eq!(f.fault(DiskFaultKind::ChunkDamaged), Some((1, true)));
    assert_eq!(f.failures.load(Ordering::SeqCst), 1);
    assert_eq!(f.store.faults().lost_chunks(), [(object(0).id, bad)]);
    f.write(0, bad).await.unwrap();
    f.store.flush().await.unwrap();
    assert_eq!(f.fault(DiskFaultKind::ChunkDamaged), Some((1, false)));
    assert!(f.store.is_whole(&object(0).id), "all of it was verified or written by this process");
    assert_eq!(fs::metadata(f.published(0)).unwrap().ino(), inode, "nothing was copied");
    let mut read = vec![0; CHUNK_BYTES as usize];
    opened.file.read_exact_at(&mut read, bad.range(SIZE).offset).unwrap();
    assert!(read == chunk_bytes(0, bad), "a descriptor from before sees the right bytes");
    assert_eq!(f.store.used_bytes(), 3 * SIZE);
    f.restart().await;
    f.assert_whole(0..3).await;
}

#[tokio::test]
async fn who_read_damaged_bytes_before_they_were_mended_does_not_lose_the_chunk_again() {
    let f = Fixture::new().await;
    let (id, bad) = (object(0).id, ChunkIndex(1));
    let expected = f.store.expected(&id, bad).unwrap();
    f.flip(0, bad);
    assert!(f.store.read_chunk(&object(0), bad).await.unwrap().is_none());
    f.write(0, bad).await.unwrap();
    assert_eq!(f.store.judge(&id, bad, &expected, Ok(77)).unwrap(), Verdict::Absent);
    assert_eq!(f.fault(DiskFaultKind::ChunkDamaged), Some((1, false)));
    f.assert_whole(0..3).await;
}

#[tokio::test]
async fn bad_bytes_that_several_read_at_once_are_one_fault() {
    let f = Fixture::new().await;
    let (id, bad) = (object(0).id, ChunkIndex(1));
    let generation = f.store.expected(&id, bad).unwrap().generation;
    f.store.lose(&id, bad, generation, None);
    f.store.lose(&id, bad, generation, None);
    fs::remove_file(f.published(1)).unwrap();
    let generation = f.store.expected(&object(1).id, bad).unwrap().generation;
    f.store.lose_file(&object(1).id, generation, false);
    f.store.lose_file(&object(1).id, generation, false);
    assert_eq!(f.fault(DiskFaultKind::ChunkDamaged), Some((1, true)));
    assert_eq!(f.fault(DiskFaultKind::FileMissing), Some((1, true)));
    assert_eq!(f.failures.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn after_a_crash_a_lost_chunk_is_still_lost_and_the_others_are_here() {
    let mut f = Fixture::new().await;
    f.flip(1, ChunkIndex(0));
    assert!(f.store.read_chunk(&object(1), ChunkIndex(0)).await.unwrap().is_none());
    f.restart().await;
    assert!(!f.store.has(&object(1).id, ChunkIndex(0)) && f.store.has(&object(1).id, ChunkIndex(1)));
    assert_eq!(f.failures.load(Ordering::SeqCst), 1);
    f.store.sweep();
    f.write(1, ChunkIndex(0)).await.unwrap();
    f.store.flush().await.unwrap();
    f.assert_whole(0..3).await;
    assert!(f.published(1).exists());
}

#[tokio::test]
async fn when_power_undoes_the_move_of_a_damaged_object_it_is_moved_again() {
    let mut f = Fixture::new().await;
    f.flip(1, ChunkIndex(0));
    assert!(f.store.read_chunk(&object(1), ChunkIndex(0)).await.unwrap().is_none());
    f.store.close().await;
    fs::rename(f.partial(1), f.published(1)).unwrap();
    f.restart().await;
    f.write(1, ChunkIndex(0)).await.unwrap();
    f.store.flush().await.unwrap();
    f.assert_whole(0..3).await;
    assert!(f.published(1).exists() && !f.partial(1).exists());
}

#[tokio::test]
async fn a_missing_or_cut_file_costs_its_object() {
    let mut f = Fixture::new().await;
    f.restart().await;
    fs::remove_file(f.published(0)).unwrap();
    fs::OpenOptions::new().write(true).open(f.published(1)).unwrap().set_len(CHUNK_BYTES + 5).unwrap();
    for n in [0, 1] {
        let opened = f.store.open_object(&object(n)).await.unwrap();
        assert!(!opened.complete && opened.file.metadata().unwrap().len() == SIZE);
        assert!(chunks().all(|chunk| !f.store.has(&object(n).id, chunk)));
    }
    assert_eq!(f.fault(DiskFaultKind::FileMissing), Some((2, true)));
    f.assert_whole([2]).await;
    assert_eq!(f.store.faults().lost_chunks().len(), 6);
    for n in [0, 1] {
        for chunk in chunks() {
            f.write(n, chunk).await.unwrap();
        }
    }
    assert_eq!(f.fault(DiskFaultKind::FileMissing), Some((2, false)));
    f.assert_whole(0..3).await;
}

#[tokio::test]
async fn a_partial_file_that_is_cut_while_the_store_runs_is_not_filled_with_zeros() {
    let f = Fixture::new().await;
    f.write(7, ChunkIndex(1)).await.unwrap();
    f.store.flush().await.unwrap();
    fs::OpenOptions::new().write(true).open(f.partial(7)).unwrap().set_len(10).unwrap();
    f.write(7, ChunkIndex(0)).await.unwrap();
    assert!(!f.store.has(&object(7).id, ChunkIndex(1)));
    assert_eq!(f.fault(DiskFaultKind::FileMissing), Some((1, true)));
}

#[tokio::test]
async fn a_chunk_that_cannot_be_read_is_lost_alone() {
    let mut f = Fixture::new().await;
    f.restart().await;
    failing::fail(&f.published(2), Call::Read);
    assert_eq!(f.store.check_chunk(&object(2), ChunkIndex(0)).await.unwrap(), Verdict::Lost);
    failing::heal(&f.partial(2), Call::Read);
    assert_eq!(f.fault(DiskFaultKind::IoError), Some((1, true)));
    assert!(!f.store.faults().writes_fail());
    assert!(f.store.has(&object(2).id, ChunkIndex(1)));
    f.write(2, ChunkIndex(0)).await.unwrap();
    assert_eq!(f.fault(DiskFaultKind::IoError), Some((1, false)));
    f.assert_whole(0..3).await;
}

#[tokio::test]
async fn what_cannot_be_synced_is_retracted_and_what_was_safe_stays() {
    let mut f = Fixture::new().await;
    f.write(5, ChunkIndex(0)).await.unwrap();
    f.store.flush().await.unwrap();
    let opened = f.store.open_object(&object(5)).await.unwrap();
    failing::fail(&f.partial(5), Call::Sync);
    f.write(5, ChunkIndex(1)).await.unwrap();
    f.store.flush().await.unwrap();
    assert!(f.store.has(&object(5).id, ChunkIndex(0)) && !f.store.has(&object(5).id, ChunkIndex(1)));
    assert!(opened.lease.is_valid() && f.store.faults().writes_fail());
    assert_eq!(f.store.faults().lost_chunks(), [(object(5).id, ChunkIndex(1))]);
    assert_eq!(f.store.used_bytes(), 3 * SIZE + CHUNK_BYTES);
    failing::heal(&f.partial(5), Call::Sync);
    f.store.probe().await;
    assert!(!f.store.faults().writes_fail());
    for chunk in chunks() {
        f.write(5, chunk).await.unwrap();
    }
    drop(opened);
    f.restart().await;
    f.assert_whole([0, 1, 2, 5]).await;
}

#[tokio::test]
async fn a_write_that_fails_is_current_until_the_disk_works() {
    let f = Fixture::new().await;
    f.write(6, ChunkIndex(0)).await.unwrap();
    failing::fail(&f.partial(6), Call::Write);
    assert!(matches!(f.write(6, ChunkIndex(1)).await, Err(StoreError::Io { .. })));
    assert_eq!(f.fault(DiskFaultKind::IoError), Some((1, true)));
    assert!(!f.store.has(&object(6).id, ChunkIndex(1)));
    failing::heal(&f.partial(6), Call::Write);
    f.store.probe().await;
    assert_eq!(f.fault(DiskFaultKind::IoError), Some((1, false)));
    f.write(6, ChunkIndex(1)).await.unwrap();
    f.assert_whole(0..3).await;
}

#[tokio::test]
async fn what_an_earlier_life_left_is_verified_once() {
    let mut f = Fixture::new().await;
    assert!(f.store.open_object(&object(0)).await.unwrap().complete, "what this process wrote is right");
    f.restart().await;
    for chunk in chunks() {
        assert!(!f.store.is_whole(&object(0).id));
        assert_eq!(f.store.check_chunk(&object(0), chunk).await.unwrap(), Verdict::Good);
    }
    assert!(f.store.open_object(&object(0)).await.unwrap().complete);
    assert!(!f.store.open_object(&object(1)).await.unwrap().complete);
    // From now on the file is not read for that any more.
    failing::fail(&f.published(0), Call::Read);
    assert_eq!(f.store.check_chunk(&object(0), ChunkIndex(0)).await.unwrap(), Verdict::Good);
    failing::heal(&f.published(0), Call::Read);
}

#[tokio::test]
async fn the_scrub_verifies_everything_finds_damage_and_goes_on_where_it_was() {
    let mut f = Fixture::new().await;
    f.restart().await;
    f.flip(1, ChunkIndex(2));
    let pace = Pace { period: std::time::Duration::from_millis(200), bytes_per_second: 1 << 30 };
    let scrub = tokio::spawn(Arc::clone(&f.store).scrub(f.layout.clone(), pace));
    let all = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while f.store.scrubbed_bytes() < 3 * SIZE {
        assert!(std::time::Instant::now() < all, "{} bytes are scrubbed", f.store.scrubbed_bytes());
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    scrub.abort();
    assert_eq!(f.store.faults().lost_chunks(), [(object(1).id, ChunkIndex(2))]);
    assert!([0, 2].iter().all(|n| f.store.is_whole(&object(*n).id)), "what was scrubbed is verified");
    // A position at the very end: nothing is left of the round.
    f.restart().await;
    fs::write(f.layout.scrub_position(), "255 ffffffffffffffffffffffffffffffff\n").unwrap();
    let slow = Pace { period: std::time::Duration::from_secs(3600), bytes_per_second: 1 };
    let scrub = tokio::spawn(Arc::clone(&f.store).scrub(f.layout.clone(), slow));
    while fs::read_to_string(f.layout.scrub_position()).unwrap() != "0\n" {
        assert!(std::time::Instant::now() < all, "the round does not end");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(f.store.scrubbed_bytes(), 0);
    scrub.abort();
    drop(f.folder);
}
