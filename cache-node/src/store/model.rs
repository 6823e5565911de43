//! The store against a model: random operations, then a crash between any two of the committer's steps, with or without the loss of what was
//! not synced. What the store says is present afterwards has the right bytes, and nothing that was safe is lost.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use forebay_protocol::config::CHUNK_BYTES;
use proptest::prelude::*;

use super::crash::CrashPoint;
use bytes::Bytes;

use super::*;
use crate::units::chunk_count;

/// Objects of one small chunk, of one whole, and of several.
const SIZES: [u64; 4] = [1000, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 77];

#[derive(Clone, Debug)]
enum Op {
    Write { object: usize, chunk: u32 },
    Read { object: usize, chunk: u32 },
    Open { object: usize },
    CloseAll,
    Forget { object: usize },
    Shrink { percent: u64 },
    Flush,
}

fn op() -> impl Strategy<Value = Op> {
    let object = 0..SIZES.len() * 2;
    prop_oneof![
        8 => (object.clone(), 0_u32..3).prop_map(|(object, chunk)| Op::Write { object, chunk }),
        3 => (object.clone(), 0_u32..3).prop_map(|(object, chunk)| Op::Read { object, chunk }),
        2 => object.clone().prop_map(|object| Op::Open { object }),
        1 => Just(Op::CloseAll),
        1 => object.prop_map(|object| Op::Forget { object }),
        1 => (0_u64..100).prop_map(|percent| Op::Shrink { percent }),
        2 => Just(Op::Flush),
    ]
}

fn crash_point() -> impl Strategy<Value = CrashPoint> {
    prop_oneof![Just(CrashPoint::Written), Just(CrashPoint::Synced), Just(CrashPoint::Indexed)]
}

fn object(index: usize) -> ObjectRef {
    let size = SIZES[index % SIZES.len()];
    ObjectRef { id: ObjectId::new("model", &[index as u8], "e", size), size, dataset: DatasetSlot(0) }
}

fn chunk_bytes(index: usize, chunk: ChunkIndex) -> Bytes {
    let length = chunk.range(object(index).size).length as usize;
    let seed = (index as u8).wrapping_mul(31).wrapping_add(chunk.0 as u8 * 7 + 1);
    Bytes::from((0..length).map(|i| seed.wrapping_add((i / 512) as u8 | 1)).collect::<Vec<_>>())
}

fn open(layout: &CacheLayout, failures: &Arc<AtomicU64>) -> Arc<Store> {
    let failures = Arc::clone(failures);
    let count = move || {
        failures.fetch_add(1, Ordering::SeqCst);
    };
    Store::open(layout, 1 << 30, Arc::new(|_| ()), count).unwrap()
}

/// What is known about the store before a crash.
#[derive(Debug, Default)]
struct Known {
    /// Chunks that were flushed and not dropped since: they must be there.
    safe: BTreeSet<(usize, u32)>,
    /// Damaged objects that were dropped since the last flush. Their files are gone at once, and the index may still name them: what is missing
    /// is found missing at first use.
    dropped: BTreeSet<usize>,
}

async fn run(store: &Arc<Store>, ops: &[Op]) -> (Known, Vec<Lease>) {
    let (mut written, mut known, mut leases) = (BTreeSet::new(), Known::default(), Vec::new());
    let mut shrunk = false;
    for op in ops {
        match *op {
            Op::Write { object: index, chunk } if chunk < chunk_count(object(index).size) => {
                let bytes = chunk_bytes(index, ChunkIndex(chunk));
                let crc = crc32c::crc32c(&bytes);
                if store.write_chunk(&object(index), ChunkIndex(chunk), bytes, crc).await.is_ok() {
                    written.insert((index, chunk));
                }
            }
            Op::Read { object: index, chunk } if chunk < chunk_count(object(index).size) => {
                let read = store.read_chunk(&object(index), ChunkIndex(chunk)).await.unwrap();
                if let Some((bytes, _)) = read {
                    assert!(bytes == chunk_bytes(index, ChunkIndex(chunk)), "object {index} chunk {chunk}");
                } else {
                    assert!(shrunk || !written.contains(&(index, chunk)), "object {index} chunk {chunk} is lost");
                }
            }
            Op::Write { .. } | Op::Read { .. } => {}
            Op::Open { object: index } => {
                let opened = store.open_object(&object(index)).await.unwrap();
                assert_eq!(opened.file.metadata().unwrap().len(), object(index).size);
                leases.push(opened.lease);
            }
            Op::CloseAll => leases.clear(),
            Op::Forget { object: index } => {
                store.forget(&object(index).id);
                written.retain(|(i, _)| *i != index);
                known.safe.retain(|(i, _)| *i != index);
                known.dropped.insert(index);
            }
            Op::Shrink { percent } => {
                store.set_capacity(store.used_bytes() * percent / 100);
                store.flush().await.unwrap();
                store.set_capacity(1 << 30);
                shrunk = true;
                let here = |(index, chunk): &(usize, u32)| store.has(&object(*index).id, ChunkIndex(*chunk));
                written.retain(here);
                known.safe.retain(here);
                known.dropped.clear();
            }
            Op::Flush => {
                store.flush().await.unwrap();
                known.safe.clone_from(&written);
                known.dropped.clear();
            }
        }
    }
    (known, leases)
}

async fn check(layout: &CacheLayout, known: &Known) {
    let failures = Arc::default();
    let store = open(layout, &failures);
    store.sweep();
    let mut bytes_here = 0;
    for index in 0..SIZES.len() * 2 {
        for chunk in (0..chunk_count(object(index).size)).map(ChunkIndex) {
            let has = store.has(&object(index).id, chunk);
            let read = store.read_chunk(&object(index), chunk).await.unwrap();
            assert!(
                has == read.is_some() || known.dropped.contains(&index),
                "object {index} chunk {chunk:?} is not what the index says"
            );
            if let Some((bytes, _)) = read {
                assert!(bytes == chunk_bytes(index, chunk), "object {index} chunk {chunk:?} is wrong");
                bytes_here += bytes.len() as u64;
            } else {
                assert!(!known.safe.contains(&(index, chunk.0)), "object {index} chunk {chunk:?} was safe and is lost");
            }
        }
        // What is complete can be published and opened.
        if store.is_complete(&object(index).id) {
            assert!(store.open_object(&object(index)).await.unwrap().complete);
            assert!(layout.objects().join(object(index).id.relative_path()).exists());
        }
    }
    assert_eq!(store.used_bytes(), bytes_here);
    assert!(failures.load(Ordering::SeqCst) <= known.dropped.len() as u64, "something was damaged");
    store.close().await;
}

fn lose_unsynced(store: &Store, layout: &CacheLayout) {
    for folder in [layout.objects(), layout.partial()] {
        for outer in std::fs::read_dir(folder).unwrap() {
            for file in std::fs::read_dir(outer.unwrap().path()).unwrap() {
                store.crash.lose_unsynced(&file.unwrap().path());
            }
        }
    }
}

fn scratch() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn after_a_crash_at_any_step_what_is_present_is_right_and_what_was_safe_is_there(
        before in proptest::collection::vec(op(), 0..25),
        point in crash_point(),
        after in proptest::collection::vec((0..SIZES.len() * 2, 0_u32..3), 1..8),
        power_loss: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = scratch();
            let layout = CacheLayout::new(folder.path());
            let store = open(&layout, &Arc::default());
            assert_eq!(store.dataset("d").unwrap(), DatasetSlot(0));
            let (known, leases) = run(&store, &before).await;
            drop(leases);
            // From here on the committer gets no further than to the crash.
            store.crash.set(point);
            for (index, chunk) in after {
                if chunk < chunk_count(object(index).size) {
                    let bytes = chunk_bytes(index, ChunkIndex(chunk));
                    let crc = crc32c::crc32c(&bytes);
                    store.write_chunk(&object(index), ChunkIndex(chunk), bytes, crc).await.unwrap();
                }
            }
            store.close().await;
            if power_loss {
                lose_unsynced(&store, &layout);
            }
            drop(store);
            check(&layout, &known).await;
        });
    }
}

#[tokio::test]
async fn a_clean_restart_keeps_everything() {
    let folder = scratch();
    let layout = CacheLayout::new(folder.path());
    let store = open(&layout, &Arc::default());
    store.dataset("d").unwrap();
    let ops: Vec<_> =
        (0..SIZES.len() * 2).flat_map(|object| (0..3).map(move |chunk| Op::Write { object, chunk })).collect();
    let (_, leases) = run(&store, &ops).await;
    drop(leases);
    store.close().await;
    let all = (0..SIZES.len() * 2).flat_map(|i| (0..chunk_count(object(i).size)).map(move |chunk| (i, chunk)));
    check(&layout, &Known { safe: all.collect(), ..Known::default() }).await;
}

#[tokio::test]
async fn a_damaged_index_costs_the_cache_and_nothing_else() {
    let folder = scratch();
    let layout = CacheLayout::new(folder.path());
    let store = open(&layout, &Arc::default());
    let (_, leases) = run(&store, &[Op::Write { object: 0, chunk: 0 }, Op::Flush]).await;
    drop(leases);
    store.close().await;
    drop(store);
    let mut bytes = std::fs::read(layout.index()).unwrap();
    bytes.iter_mut().skip(64).for_each(|byte| *byte ^= 0x5a);
    std::fs::write(layout.index(), bytes).unwrap();
    let failures = Arc::default();
    let store = open(&layout, &failures);
    assert!(!store.has(&object(0).id, ChunkIndex(0)) && store.used_bytes() == 0);
    assert!(run(&store, &[Op::Write { object: 0, chunk: 0 }, Op::Read { object: 0, chunk: 0 }]).await.1.is_empty());
    store.close().await;
}

#[tokio::test]
async fn a_folder_in_use_is_refused_and_left_alone() {
    let folder = scratch();
    let layout = CacheLayout::new(folder.path());
    let store = open(&layout, &Arc::default());
    let (_, leases) = run(&store, &[Op::Write { object: 0, chunk: 0 }, Op::Flush]).await;
    drop(leases);
    let second = Store::open(&layout, 1 << 30, Arc::new(|_| ()), || ());
    assert!(matches!(second.unwrap_err(), StoreError::Index(_)));
    assert!(store.read_chunk(&object(0), ChunkIndex(0)).await.unwrap().is_some());
    store.close().await;
}
