//! The store against a model: random operations, then a crash between any two steps of a commit or of writing the index anew, with or without
//! the loss of what was not synced. What the store says is present afterwards has the right bytes, through the store and through the file as the
//! kernel reads it, and nothing that was safe is lost.

mod restarts;

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use forebay_protocol::config::CHUNK_BYTES;
use futures::future::join_all;
use proptest::prelude::*;

use super::crash::CrashPoint;
use super::*;
use crate::units::chunk_count;

/// Objects of one small chunk, and of several.
const SIZES: [u64; 10] =
    [1, 1000, 1001, 4096, 5000, 70_000, CHUNK_BYTES, CHUNK_BYTES + 1, CHUNK_BYTES + 4096, 2 * CHUNK_BYTES + 77];

#[derive(Clone, Debug)]
enum Op {
    Write {
        object: usize,
        chunk: u32,
    },
    WriteSmall {
        objects: Vec<usize>,
    },
    Read {
        object: usize,
        chunk: u32,
    },
    Open {
        object: usize,
    },
    CloseAll,
    Lose {
        object: usize,
        chunk: u32,
    },
    Forget {
        object: usize,
    },
    /// Forgets an object and writes it again at once.
    Replace {
        object: usize,
    },
    Shrink {
        percent: u64,
    },
    Bequeath,
    Flush,
}

/// Mostly small objects, which are quick.
fn any_object() -> impl Strategy<Value = usize> {
    prop_oneof![5 => 0_usize..6, 1 => 6..SIZES.len()]
}

fn op() -> impl Strategy<Value = Op> {
    let batch = || proptest::collection::vec(any_object(), 1..6);
    prop_oneof![
        8 => (any_object(), 0_u32..3).prop_map(|(object, chunk)| Op::Write { object, chunk }),
        5 => batch().prop_map(|objects| Op::WriteSmall { objects }),
        2 => (any_object(), 0_u32..3).prop_map(|(object, chunk)| Op::Read { object, chunk }),
        2 => any_object().prop_map(|object| Op::Open { object }),
        1 => Just(Op::CloseAll),
        2 => any_object().prop_map(|object| Op::Forget { object }),
        2 => (any_object(), 0_u32..3).prop_map(|(object, chunk)| Op::Lose { object, chunk }),
        2 => any_object().prop_map(|object| Op::Replace { object }),
        1 => (0_u64..100).prop_map(|percent| Op::Shrink { percent }),
        1 => Just(Op::Bequeath),
        5 => Just(Op::Flush),
    ]
}

fn crash_point() -> impl Strategy<Value = CrashPoint> {
    prop_oneof![
        Just(CrashPoint::Written),
        Just(CrashPoint::Synced),
        Just(CrashPoint::LogTorn),
        Just(CrashPoint::LogUnsynced),
        Just(CrashPoint::Indexed),
        Just(CrashPoint::LogRotated),
        Just(CrashPoint::SnapshotHalf),
        Just(CrashPoint::SnapshotWritten),
        Just(CrashPoint::SnapshotRenamed),
    ]
}

fn object(index: usize) -> ObjectRef {
    let size = SIZES[index];
    ObjectRef { id: ObjectId::new("model", &[index as u8], "e", size), size, dataset: DatasetSlot(0) }
}

fn chunks(index: usize) -> impl Iterator<Item = ChunkIndex> {
    (0..chunk_count(SIZES[index])).map(ChunkIndex)
}

fn chunk_bytes(index: usize, chunk: ChunkIndex) -> Bytes {
    let length = chunk.range(SIZES[index]).length as usize;
    let seed = (index as u8).wrapping_mul(31).wrapping_add(chunk.0 as u8 * 7 + 1);
    Bytes::from((0..length).map(|i| seed.wrapping_add((i / 512) as u8 | 1)).collect::<Vec<_>>())
}

fn small(index: usize) -> (ObjectRef, Bytes, u32) {
    let bytes = chunk_bytes(index, ChunkIndex(0));
    let crc = crc32c::crc32c(&bytes);
    (object(index), bytes, crc)
}

fn open(layout: &CacheLayout, failures: &Arc<AtomicU64>) -> Arc<Store> {
    let failures = Arc::clone(failures);
    let count = move || {
        failures.fetch_add(1, Ordering::SeqCst);
    };
    Store::open(layout, 1 << 30, Arc::new(|_| ()), count).unwrap()
}

/// What is known about a store.
#[derive(Debug, Default)]
struct Known {
    written: BTreeSet<(usize, u32)>,
    /// Chunks that were flushed and not dropped since: they must be there.
    safe: BTreeSet<(usize, u32)>,
    /// Damaged objects that were dropped since the last flush. Their files are gone at once, and the index may still name them: what is missing
    /// is found missing at first use.
    dropped: BTreeSet<usize>,
    shrunk: bool,
}

/// Runs operations until they are through or the store has crashed.
async fn run(store: &Arc<Store>, ops: &[Op], known: &mut Known, leases: &mut Vec<Lease>) {
    for op in ops {
        tokio::select! {
            biased;
            () = store.crash.stopped() => return,
            () = run_one(store, op, known, leases) => {}
        }
    }
}

async fn run_one(store: &Arc<Store>, op: &Op, known: &mut Known, leases: &mut Vec<Lease>) {
    match op {
        Op::Write { object: index, chunk } => {
            let (index, chunk) = (*index, ChunkIndex(chunk % chunk_count(SIZES[*index])));
            let bytes = chunk_bytes(index, chunk);
            let crc = crc32c::crc32c(&bytes);
            store.write_chunk(&object(index), chunk, bytes, crc).await.unwrap();
            known.written.insert((index, chunk.0));
        }
        Op::WriteSmall { objects } => {
            let one_chunk: Vec<_> = objects.iter().copied().filter(|index| chunk_count(SIZES[*index]) == 1).collect();
            let writes = one_chunk.iter().map(|index| async {
                let (object, bytes, crc) = small(*index);
                store.write_chunk(&object, ChunkIndex(0), bytes, crc).await.unwrap();
            });
            join_all(writes).await;
            known.written.extend(one_chunk.into_iter().map(|index| (index, 0)));
        }
        Op::Read { object: index, chunk } => {
            let chunk = ChunkIndex(chunk % chunk_count(SIZES[*index]));
            let read = store.read_chunk(&object(*index), chunk).await.unwrap();
            judge(store, *index, chunk, read.as_ref(), known);
        }
        Op::Open { object: index } => {
            let opened = store.open_object(&object(*index)).await.unwrap();
            assert_eq!(opened.file.metadata().unwrap().len(), SIZES[*index]);
            leases.push(opened.lease);
        }
        Op::CloseAll => leases.clear(),
        Op::Forget { object: index } => forget(store, *index, known),
        Op::Replace { object: index } => {
            forget(store, *index, known);
            let bytes = chunk_bytes(*index, ChunkIndex(0));
            let crc = crc32c::crc32c(&bytes);
            store.write_chunk(&object(*index), ChunkIndex(0), bytes, crc).await.unwrap();
            known.written.insert((*index, 0));
        }
        Op::Lose { object: index, chunk } => {
            let (id, chunk) = (object(*index).id, ChunkIndex(chunk % chunk_count(SIZES[*index])));
            if let Some(expected) = store.expected(&id, chunk) {
                store.lose(&id, chunk, expected.generation, None);
            }
            // Of several chunks the others stay, and stay safe.
            let stays = |(i, chunk): &(usize, u32)| i != index || store.has(&id, ChunkIndex(*chunk));
            known.written.retain(stays);
            known.safe.retain(stays);
            known.dropped.insert(*index);
        }
        Op::Shrink { percent } => {
            known.shrunk = true;
            let safe = std::mem::take(&mut known.safe);
            store.set_capacity(store.used_bytes() * percent / 100);
            store.flush().await.unwrap();
            store.set_capacity(1 << 30);
            let here = |(index, chunk): &(usize, u32)| store.has(&object(*index).id, ChunkIndex(*chunk));
            known.written.retain(here);
            if !store.crash.has_stopped() {
                known.safe = safe;
                known.safe.retain(here);
                known.dropped.clear();
            }
        }
        Op::Bequeath => {
            // There and back: what is idle changes its dataset and nothing else.
            store.bequeath(DatasetSlot(0), |_| Some(DatasetSlot(1)));
            store.bequeath(DatasetSlot(1), |_| Some(DatasetSlot(0)));
        }
        Op::Flush => {
            store.flush().await.unwrap();
            if !store.crash.has_stopped() {
                known.safe.clone_from(&known.written);
                known.dropped.clear();
            }
        }
    }
}

fn forget(store: &Store, index: usize, known: &mut Known) {
    known.written.retain(|(i, _)| *i != index);
    known.safe.retain(|(i, _)| *i != index);
    known.dropped.insert(index);
    store.forget(&object(index).id);
}

fn judge(store: &Store, index: usize, chunk: ChunkIndex, read: Option<&(Bytes, u32)>, known: &Known) {
    if let Some((bytes, crc)) = read {
        assert!(*bytes == chunk_bytes(index, chunk), "object {index} {chunk:?} is wrong");
        assert_eq!(*crc, crc32c::crc32c(bytes));
    } else {
        let lost = !known.shrunk && known.written.contains(&(index, chunk.0)) && !store.crash.has_stopped();
        assert!(!lost, "object {index} {chunk:?} is lost");
    }
}

async fn check(layout: &CacheLayout, known: &Known) {
    let failures = Arc::default();
    let store = open(layout, &failures);
    store.sweep();
    let mut bytes_here = 0;
    for (index, size) in SIZES.iter().enumerate() {
        let id = object(index).id;
        // As the kernel reads it: the file, and nobody verifies it.
        let opened = store.open_object(&object(index)).await.unwrap();
        for chunk in chunks(index).filter(|chunk| opened.complete || store.has(&id, *chunk)) {
            let mut bytes = chunk_bytes(index, chunk).to_vec();
            bytes.fill(0);
            opened.file.read_exact_at(&mut bytes, chunk.range(*size).offset).unwrap();
            assert!(bytes == chunk_bytes(index, chunk), "object {index} {chunk:?} is wrong in its file");
        }
        drop(opened);
        // Nothing is called present before it is verified; then all of it is.
        let mut has_any = false;
        for chunk in chunks(index).filter(|chunk| store.has(&id, *chunk)) {
            has_any = true;
            assert_eq!(store.check_chunk(&object(index), chunk).await.unwrap(), Verdict::Good);
        }
        let opened = store.open_object(&object(index)).await.unwrap();
        assert_eq!(opened.complete, has_any && store.is_complete(&id));
        assert!(!opened.complete || layout.objects().join(id.relative_path()).exists());
        drop(opened);
        for chunk in chunks(index) {
            let has = store.has(&id, chunk);
            let read = store.read_chunk(&object(index), chunk).await.unwrap();
            assert_eq!(has, read.is_some(), "object {index} {chunk:?} is not what the index says");
            if let Some((bytes, _)) = read {
                assert!(bytes == chunk_bytes(index, chunk), "object {index} {chunk:?} is wrong");
                bytes_here += bytes.len() as u64;
            } else {
                assert!(!known.safe.contains(&(index, chunk.0)), "object {index} {chunk:?} was safe and is lost");
            }
        }
    }
    assert_eq!(store.used_bytes(), bytes_here);
    assert!(failures.load(Ordering::SeqCst) <= known.dropped.len() as u64, "something was damaged");
    // It goes on from there: everything can be had again, and is there after the next start.
    for index in 0..SIZES.len() {
        for chunk in chunks(index).filter(|_| index < 6) {
            let bytes = chunk_bytes(index, chunk);
            let crc = crc32c::crc32c(&bytes);
            store.write_chunk(&object(index), chunk, bytes, crc).await.unwrap();
        }
    }
    store.close().await;
    drop(store);
    let store = open(layout, &Arc::default());
    for index in 0..6 {
        assert!(store.read_chunk(&object(index), ChunkIndex(0)).await.unwrap().is_some(), "object {index}");
    }
    store.close().await;
}

fn scratch() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// How many cases: `FOREBAY_CASES` or `PROPTEST_CASES`, else a number that takes seconds.
fn cases(default: u32) -> u32 {
    let set = ["FOREBAY_CASES", "PROPTEST_CASES"].iter().find_map(|name| std::env::var(name).ok()?.parse().ok());
    set.unwrap_or(default)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(150), max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn after_a_crash_at_any_step_what_is_present_is_right_and_what_was_safe_is_there(
        before in proptest::collection::vec(op(), 0..25),
        point in crash_point(),
        after in proptest::collection::vec(op(), 1..25),
        power_loss: bool,
    ) {
        let folder = scratch();
        let layout = CacheLayout::new(folder.path());
        let mut known = Known::default();
        {
            // Its end waits for writes that were under way at the crash.
            let runtime = runtime();
            let store = runtime.block_on(async {
                let store = open(&layout, &Arc::default());
                assert_eq!(store.dataset("d").unwrap(), DatasetSlot(0));
                assert_eq!(store.dataset("e").unwrap(), DatasetSlot(1));
                let mut leases = Vec::new();
                run(&store, &before, &mut known, &mut leases).await;
                // From here on the store gets no further than to the crash.
                store.crash.set(point);
                run(&store, &after, &mut known, &mut leases).await;
                store.close().await;
                store
            });
            drop(runtime);
            if power_loss {
                store.crash.lose_unsynced(store.backing.folders());
                store.crash.lose_unsynced_logs(&layout.index());
            }
        }
        runtime().block_on(check(&layout, &known));
    }
}
