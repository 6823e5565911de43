//! Many threads open, read, map, write and evict at random in a cache that is far too small. Whatever was handed out as present has the right
//! bytes as long as somebody holds it, a lease keeps what it covers, and in the end the sums are what is on the disk.
#![allow(unsafe_code)]

use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay_protocol::config::CHUNK_BYTES;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::*;
use crate::units::chunk_count;

const MIB: u64 = 1 << 20;

/// Objects of one small chunk, of a whole one, and of two.
const SIZES: [u64; 4] = [5000, 700_000, CHUNK_BYTES, CHUNK_BYTES + 12_345];
const OBJECTS: usize = 32;
const TASKS: u64 = 6;

fn object(index: usize) -> ObjectRef {
    let size = SIZES[index % SIZES.len()];
    let dataset = DatasetSlot(index as u32 / 4 % 2);
    ObjectRef { id: ObjectId::new("interleaving", &[index as u8], "e", size), size, dataset }
}

/// Never zero, and different for each object and page.
fn byte(index: usize, offset: u64) -> u8 {
    ((index as u64 * 37 + offset / 4096 * 11) % 255) as u8 + 1
}

fn is_right(index: usize, offset: u64, bytes: &[u8]) -> bool {
    bytes.iter().zip(offset..).all(|(found, at)| *found == byte(index, at))
}

fn chunk_bytes(index: usize, chunk: ChunkIndex) -> Bytes {
    let range = chunk.range(object(index).size);
    (range.offset..range.end()).map(|at| byte(index, at)).collect()
}

/// All of a complete object's file, mapped as a reader of the mount has it.
struct Mapped(*mut std::ffi::c_void, usize);

// SAFETY: only ever read, by whoever owns it.
unsafe impl Send for Mapped {}

impl Mapped {
    fn of(file: &File, length: u64) -> Self {
        let length = usize::try_from(length).unwrap();
        // SAFETY: a new mapping at an address that the kernel chooses.
        let at = unsafe { mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, file, 0) };
        Self(at.unwrap(), length)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped until dropped; files of the store are never written or cut once they are complete.
        unsafe { std::slice::from_raw_parts(self.0.cast(), self.1) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped by `of`, and nobody has its bytes any more.
        unsafe { munmap(self.0, self.1) }.unwrap();
    }
}

fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
}

async fn write(store: &Arc<Store>, index: usize, chunk: ChunkIndex) -> Result<(), StoreError> {
    let bytes = chunk_bytes(index, chunk);
    let crc = crc32c::crc32c(&bytes);
    store.write_chunk(&object(index), chunk, bytes, crc).await
}

/// One reader and writer, until `end`.
async fn live(store: Arc<Store>, mut random: u64, capacity: u64, end: Instant, steps: Arc<AtomicU32>) {
    // What readers hold without the store's knowledge, as they do through the mount.
    let mut files: Vec<(usize, File)> = Vec::new();
    let mut maps: Vec<(usize, Mapped)> = Vec::new();
    while Instant::now() < end {
        steps.fetch_add(1, Ordering::Relaxed);
        let index = next(&mut random) as usize % OBJECTS;
        let object = object(index);
        let chunk = ChunkIndex((next(&mut random) % u64::from(chunk_count(object.size))) as u32);
        match next(&mut random) % 12 {
            0..4 => match write(&store, index, chunk).await {
                Ok(()) | Err(StoreError::Full { .. }) => {}
                Err(error) => panic!("{error}"),
            },
            4..6 => {
                if let Some((bytes, _)) = store.read_chunk(&object, chunk).await.unwrap() {
                    assert!(is_right(index, chunk.range(object.size).offset, &bytes), "{index} {chunk:?}");
                }
            }
            6..9 => {
                let opened = store.open_object(&object).await.unwrap();
                assert_eq!(opened.file.metadata().unwrap().len(), object.size);
                let present: Vec<_> = (0..chunk_count(object.size))
                    .map(ChunkIndex)
                    .filter(|chunk| store.has(&object.id, *chunk))
                    .collect();
                assert!(!opened.complete || present.len() == chunk_count(object.size) as usize);
                for _ in 0..next(&mut random) % 4 {
                    tokio::task::yield_now().await;
                }
                for chunk in present {
                    assert!(store.has(&object.id, chunk), "{index} {chunk:?} went under a lease");
                    let range = chunk.range(object.size);
                    let mut bytes = vec![0; usize::try_from(range.length).unwrap()];
                    opened.file.read_exact_at(&mut bytes, range.offset).unwrap();
                    assert!(is_right(index, range.offset, &bytes), "{index} {chunk:?}");
                }
                assert!(opened.lease.is_valid());
                // The lease goes, the descriptor or the mapping stays.
                if opened.complete && files.len() + maps.len() < 4 {
                    if next(&mut random).is_multiple_of(2) {
                        maps.push((index, Mapped::of(&opened.file, object.size)));
                    } else {
                        files.push((index, opened.file));
                    }
                }
            }
            9 => {
                for (index, map) in maps.drain(..) {
                    assert!(is_right(index, 0, map.bytes()), "{index} through a mapping");
                }
                for (index, file) in files.drain(..) {
                    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
                    file.read_exact_at(&mut bytes, 0).unwrap();
                    assert!(is_right(index, 0, &bytes), "{index} through a descriptor");
                }
            }
            10 => {
                store.set_capacity(capacity / 4 + next(&mut random) % (capacity / 2));
                store.set_capacity(capacity);
            }
            _ => drop(store.reserve(object.dataset, 100_000)),
        }
    }
}

#[test]
fn whoever_comes_between_whatever_is_handed_out_is_right() {
    let seed = std::env::var("FOREBAY_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | 0x5eed);
    eprintln!("FOREBAY_SEED={seed}");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    runtime.block_on(async {
        let folder = scratch();
        let layout = CacheLayout::new(folder.path());
        let failures = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&failures);
        let capacity = 40 * MIB;
        let store = Store::open(&layout, capacity, Arc::new(|_| ()), move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let store = store.unwrap();
        let slots = ["a", "b"].map(|uid| store.dataset(uid).unwrap());
        assert_eq!(slots, [0, 1].map(DatasetSlot));
        store.set_dataset_limit(slots[0], Some(capacity / 3));
        store.set_classes(Arc::new(|id| match id.as_bytes()[0] % 3 {
            0 => Class::Copy,
            1 => Class::Owned,
            _ => Class::Pinned,
        }));
        let (end, steps) = (Instant::now() + Duration::from_secs(3), Arc::default());
        let tasks = (1..=TASKS)
            .map(|n| tokio::spawn(live(Arc::clone(&store), (seed ^ n << 40) | 1, capacity, end, Arc::clone(&steps))));
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        store.flush().await.unwrap();
        assert!(steps.load(Ordering::Relaxed) > 100 && failures.load(Ordering::Relaxed) == 0);
        // The sums are what is in the files, and no file is without an object.
        let (mut bytes, mut files) = (0, 0);
        for index in 0..OBJECTS {
            let object = object(index);
            let present = (0..chunk_count(object.size)).map(ChunkIndex).filter(|chunk| store.has(&object.id, *chunk));
            let present: u64 = present.map(|chunk| chunk.range(object.size).length).sum();
            let complete = layout.objects().join(object.id.relative_path()).exists();
            let partial = layout.partial().join(object.id.relative_path()).exists();
            assert_eq!((complete, partial), (present == object.size, 0 < present && present < object.size), "{index}");
            bytes += present;
            files += usize::from(present > 0);
        }
        assert_eq!(store.used_bytes(), bytes);
        assert_eq!(slots.map(|slot| store.used_bytes_of(slot)).iter().sum::<u64>(), bytes);
        let mut on_disk = 0;
        store.backing.for_each_file(|_| on_disk += 1).unwrap();
        assert_eq!(on_disk, files);
        assert!(bytes <= capacity);
        store.close().await;
    });
}

fn scratch() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// A file system of its own, gone with the test.
pub(super) struct Disk(pub(super) tempfile::TempDir);

impl Disk {
    pub(super) fn new(size: &std::ffi::CStr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        mount("forebay-test", folder.path(), "tmpfs", MountFlags::empty(), Some(size)).unwrap();
        Self(folder)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = unmount(self.0.path(), UnmountFlags::DETACH) {
            eprintln!("{} stays mounted: {error}", self.0.path().display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_readers_hold_of_evicted_files_is_not_given_away_again() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can mount a disk to fill");
        assert!(std::env::var_os("FOREBAY_REQUIRE_ALL").is_none(), "no test may be skipped");
        return;
    }
    let disk = Disk::new(c"size=64m");
    let layout = CacheLayout::new(disk.0.path());
    let capacity = 44 * MIB;
    let store = Store::open(&layout, capacity, Arc::new(|_| ()), || ()).unwrap();
    let whole = |n: usize| ObjectRef { size: CHUNK_BYTES, ..object(n) };
    let keep = async |n: usize| {
        let bytes: Bytes = (0..CHUNK_BYTES).map(|at| byte(n, at)).collect();
        let crc = crc32c::crc32c(&bytes);
        store.write_chunk(&whole(n), ChunkIndex(0), bytes, crc).await
    };
    let empty = store.backing.used_on_disk();
    for n in 0..10 {
        keep(n).await.unwrap();
    }
    store.flush().await.unwrap();
    // Opened behind the store's back, as the kernel does for the overlay.
    let open = |n: usize| File::open(layout.objects().join(whole(n).id.relative_path())).unwrap();
    let files: Vec<_> = (0..5).map(|n| (n, open(n))).collect();
    let maps: Vec<_> = (5..10).map(|n| (n, Mapped::of(&open(n), CHUNK_BYTES))).collect();
    let (mut most_held, mut most_used) = (0, 0);
    for n in 10..30 {
        keep(n).await.unwrap();
        most_held = most_held.max(store.held_bytes());
        most_used = most_used.max(store.backing.used_on_disk() - empty);
    }
    store.flush().await.unwrap();
    assert!(most_held >= 2 * CHUNK_BYTES, "nothing was held: {most_held}");
    // The index grows a little beside the files.
    assert!(most_used <= capacity + 2 * MIB, "{most_used} of {capacity}");
    for (n, file) in &files {
        let mut bytes = vec![0; CHUNK_BYTES as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(is_right(*n, 0, &bytes), "{n} through a descriptor");
    }
    for (n, map) in &maps {
        assert!(is_right(*n, 0, map.bytes()), "{n} through a mapping");
    }
    drop((files, maps));
    let began = Instant::now();
    while store.held_bytes() > 0 {
        assert!(began.elapsed() < Duration::from_secs(10), "{} still held", store.held_bytes());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // All of the capacity can be used again, and what others write to the disk is no reader's.
    for n in 40..60 {
        std::fs::write(disk.0.path().join("another's"), vec![1; n * 100_000]).unwrap();
        keep(n).await.unwrap();
        assert_eq!(store.held_bytes(), 0);
    }
    store.flush().await.unwrap();
    // Eviction ends at most one object below the low watermark.
    let used = store.used_bytes();
    assert!(used + CHUNK_BYTES > capacity * 90 / 100 && used <= capacity, "{used}");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preload_takes_the_place_of_copies_and_of_nothing_else() {
    let folder = scratch();
    let store = Store::open(&CacheLayout::new(folder.path()), 40 * MIB, Arc::new(|_| ()), || ()).unwrap();
    // Of 28 MiB, the first four are copies, then an owned and two pinned ones.
    let whole = |n: usize| ObjectRef { size: CHUNK_BYTES, dataset: DatasetSlot(0), ..object(n) };
    for n in 0..7 {
        let bytes: Bytes = (0..CHUNK_BYTES).map(|at| byte(n, at)).collect();
        let crc = crc32c::crc32c(&bytes);
        store.write_chunk(&whole(n), ChunkIndex(0), bytes, crc).await.unwrap();
    }
    store.flush().await.unwrap();
    let class_of: HashMap<_, _> = (0..7)
        .map(|n| {
            (
                whole(n).id,
                if n < 4 {
                    Class::Copy
                } else if n < 5 {
                    Class::Owned
                } else {
                    Class::Pinned
                },
            )
        })
        .collect();
    store.set_classes(Arc::new(move |id| class_of.get(id).copied().unwrap_or(Class::Owned)));
    let read = store.open_object(&whole(0)).await.unwrap();
    let rooms: Vec<_> = std::iter::from_fn(|| store.reserve(DatasetSlot(0), CHUNK_BYTES)).collect();
    // 36 MiB are nine; four are owned, pinned or leased.
    assert_eq!(rooms.len(), 5);
    store.flush().await.unwrap();
    let here: Vec<_> = (0..7).filter(|n| store.is_complete(&whole(*n).id)).collect();
    assert_eq!(here, [0, 4, 5, 6]);
    drop((rooms, read));
    // A reader may have all of it, the pinned ones last.
    for n in 10..18 {
        let bytes: Bytes = (0..CHUNK_BYTES).map(|at| byte(n, at)).collect();
        let crc = crc32c::crc32c(&bytes);
        store.write_chunk(&whole(n), ChunkIndex(0), bytes, crc).await.unwrap();
        assert!(store.is_complete(&whole(5).id) && store.is_complete(&whole(6).id), "{n}");
    }
    store.close().await;
}
