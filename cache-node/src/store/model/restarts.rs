//! Restarts, clean and with an index that is damaged, old, or another process's.

use super::*;

#[tokio::test]
async fn a_clean_restart_keeps_everything() {
    let folder = scratch();
    let layout = CacheLayout::new(folder.path());
    let store = open(&layout, &Arc::default());
    store.dataset("d").unwrap();
    let ops: Vec<_> =
        (0..SIZES.len()).flat_map(|object| (0..3).map(move |chunk| Op::Write { object, chunk })).collect();
    run(&store, &ops, &mut Known::default(), &mut Vec::new()).await;
    store.close().await;
    drop(store);
    let all = (0..SIZES.len()).flat_map(|i| chunks(i).map(move |chunk| (i, chunk.0)));
    check(&layout, &Known { safe: all.collect(), ..Known::default() }).await;
}

fn damage(path: &std::path::Path, from: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes.iter_mut().skip(from).take(40).for_each(|byte| *byte ^= 0x5a);
    std::fs::write(path, bytes).unwrap();
}

fn index_file(layout: &CacheLayout, prefix: &str) -> std::path::PathBuf {
    let mut files = std::fs::read_dir(layout.index()).unwrap().map(|entry| entry.unwrap().path());
    files.find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(prefix)).unwrap()
}

#[tokio::test]
async fn a_damaged_log_costs_the_cache_and_nothing_else() {
    let folder = scratch();
    let layout = CacheLayout::new(folder.path());
    let store = open(&layout, &Arc::default());
    let ops = [Op::Write { object: 0, chunk: 0 }, Op::Flush, Op::Write { object: 1, chunk: 0 }, Op::Flush];
    run(&store, &ops, &mut Known::default(), &mut Vec::new()).await;
    store.close().await;
    drop(store);
    // The first of two commits: something may have been removed there.
    damage(&layout.index().join("log-1"), 4);
    let failures = Arc::default();
    let store = open(&layout, &failures);
    assert!(!store.has(&object(0).id, ChunkIndex(0)) && !store.has(&object(1).id, ChunkIndex(0)));
    assert_eq!(store.used_bytes(), 0);
    assert!(!layout.objects().join(object(0).id.relative_path()).exists());
    let ops = [Op::Write { object: 0, chunk: 0 }, Op::Read { object: 0, chunk: 0 }];
    run(&store, &ops, &mut Known::default(), &mut Vec::new()).await;
    store.close().await;
}

#[tokio::test]
async fn a_damaged_snapshot_costs_only_what_was_in_the_damaged_part() {
    let folder = scratch();
    let layout = CacheLayout::new(folder.path());
    let store = open(&layout, &Arc::default());
    let objects: Vec<ObjectRef> = (0_u64..20_000)
        .map(|n| ObjectRef { id: ObjectId::new("many", &n.to_le_bytes(), "e", 1), size: 1, dataset: DatasetSlot(0) })
        .collect();
    store.close().await;
    drop(store);
    // Twice: what has come first is in a snapshot then, in more than one frame.
    let store = {
        fill_index(&layout, objects.iter().copied()).unwrap();
        let store = open(&layout, &Arc::default());
        run(&store, &[Op::Write { object: 0, chunk: 0 }, Op::Flush], &mut Known::default(), &mut Vec::new()).await;
        store.compact().await.unwrap();
        store.close().await;
        drop(store);
        let snapshot = index_file(&layout, "snapshot-");
        let middle = std::fs::metadata(&snapshot).unwrap().len() as usize / 2;
        damage(&snapshot, middle);
        open(&layout, &Arc::default())
    };
    let left = objects.iter().filter(|object| store.is_complete(&object.id)).count();
    assert!((1..20_000).contains(&left), "{left}");
    assert_eq!(store.used_bytes(), left as u64 + u64::from(store.is_complete(&object(0).id)));
    store.close().await;
}

#[tokio::test]
async fn an_index_of_an_earlier_version_is_removed_and_the_cache_starts_empty() {
    let folder = scratch();
    let layout = CacheLayout::new(folder.path());
    let store = open(&layout, &Arc::default());
    run(&store, &[Op::Write { object: 0, chunk: 0 }, Op::Flush], &mut Known::default(), &mut Vec::new()).await;
    store.close().await;
    drop(store);
    std::fs::remove_dir_all(layout.index()).unwrap();
    std::fs::write(layout.old_index(), "redb").unwrap();
    let store = open(&layout, &Arc::default());
    assert!(!layout.old_index().exists());
    assert!(!layout.objects().join(object(0).id.relative_path()).exists());
    assert!(!store.has(&object(0).id, ChunkIndex(0)));
    store.close().await;
}

#[tokio::test]
async fn a_folder_in_use_is_refused_and_left_alone() {
    let folder = scratch();
    let layout = CacheLayout::new(folder.path());
    let store = open(&layout, &Arc::default());
    run(&store, &[Op::Write { object: 0, chunk: 0 }, Op::Flush], &mut Known::default(), &mut Vec::new()).await;
    let second = Store::open(&layout, 1 << 30, Arc::new(|_| ()), || ());
    let message = second.unwrap_err().to_string();
    let (folder, process) = (folder.path().display().to_string(), format!("process {}", std::process::id()));
    assert!(message.contains(&folder) && message.contains(&process), "{message}");
    assert!(store.read_chunk(&object(0), ChunkIndex(0)).await.unwrap().is_some());
    store.close().await;
    drop(store);
    open(&layout, &Arc::default()).close().await;
}
