//! The local socket as `forebay-fuse` sees it.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::Duration;

use forebay_catalog::ObjectId;
use forebay_protocol::local::FailureKind;
use forebay_protocol::node::ReadCounters;

use crate::common::process::NodeProcess;
use crate::common::{config, content, dataset, file_source, free_address, scratch, wait_for};

const UID: &str = "d1";
const CHUNK: u64 = 4 << 20;

async fn node(source: &std::path::Path, capacity: u64) -> NodeProcess {
    let address = free_address([127, 0, 0, 2]);
    NodeProcess::start(|folder| {
        let mut config = config(folder, address, &[], vec![dataset(UID, file_source(source))]);
        config.node.capacity_bytes = capacity;
        config
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_made_present_in_a_file_that_can_only_be_read() {
    let source = scratch();
    let bytes = content(1, (9 << 20) + 5);
    std::fs::write(source.path().join("f"), &bytes).unwrap();
    let node = node(source.path(), 1 << 30).await;
    let mode = std::fs::metadata(node.config.node.socket.as_ref().unwrap()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let reader = node.reader(UID).await;
    let id = reader.files()["f"];
    let open = reader.open(&id).await.unwrap();
    assert_eq!((open.size, open.complete), (bytes.len() as u64, false));
    assert!(open.file.write_at(b"x", 0).is_err() && open.file.set_len(0).is_err());

    let ensured = reader.ensure(open.lease, CHUNK + 7, 1).await.unwrap();
    assert_eq!((ensured.offset, ensured.length, ensured.complete), (CHUNK, CHUNK, false));
    let mut read = vec![0; 100];
    open.file.read_exact_at(&mut read, CHUNK).unwrap();
    assert!(read == bytes[CHUNK as usize..][..100]);
    // Beyond the end there is nothing to wait for.
    let ensured = reader.ensure(open.lease, open.size, 100).await.unwrap();
    assert_eq!(ensured.length, 0);

    let ensured = reader.ensure(open.lease, 0, u64::MAX).await.unwrap();
    assert_eq!((ensured.offset, ensured.length, ensured.complete), (0, open.size, true));
    let mut read = vec![0; bytes.len()];
    open.file.read_exact_at(&mut read, 0).unwrap();
    assert!(read == bytes);
    // The kernel's own way to it opens up.
    let object = node.config.node.cache_dir.join("objects").join(id.relative_path());
    wait_for("the object to be published", Duration::from_secs(10), || async { object.exists().then_some(()) }).await;
    assert!(std::fs::read(&object).unwrap() == bytes);
    assert!(reader.open(&id).await.unwrap().complete);

    reader.close(open.lease).await;
    let failed = reader.ensure(open.lease, 0, 1).await.unwrap_err();
    assert_eq!(failed.kind, i32::from(FailureKind::BadLease));
    let failed = reader.open(&ObjectId::from_bytes([9; 16])).await.map(|_| ()).unwrap_err();
    assert_eq!(failed.kind, i32::from(FailureKind::NotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_bytes_of_a_cold_object_come_before_their_chunk() {
    let source = scratch();
    let bytes = content(1, (16 << 20) + 5);
    std::fs::write(source.path().join("f"), &bytes).unwrap();
    let node = node(source.path(), 1 << 30).await;
    let reader = node.reader(UID).await;
    let id = reader.files()["f"];
    let open = reader.open(&id).await.unwrap();
    let part = reader.ensure(open.lease, 70_000, 4096).await.unwrap();
    assert_eq!((part.offset, part.length, part.complete), (65_536, 65_536, false));
    let mut read = vec![0; 65_536];
    open.file.read_exact_at(&mut read, 65_536).unwrap();
    assert!(read == bytes[65_536..131_072]);
    // Only once: the chunk is on its way, and a part is no chunk.
    let ensured = reader.ensure(open.lease, 70_000, 4096).await.unwrap();
    assert!(ensured.offset == 0 && ensured.length >= CHUNK, "{ensured:?}");
    assert!(reader.read(&id, 1 << 20).await.unwrap() == bytes);
    let total = node.dataset(UID).await.total.unwrap();
    assert_eq!(total.source_bytes, bytes.len() as u64 + 65_536, "{total:?}");
    // Another reader finds the object here in part, and waits for whole chunks.
    let object = node.config.node.cache_dir.join("objects").join(id.relative_path());
    wait_for("the object to be published", Duration::from_secs(10), || async { object.exists().then_some(()) }).await;
    assert!(std::fs::read(&object).unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn hits_are_what_was_cached_before_the_reader_came() {
    let source = scratch();
    for (name, seed) in [("a", 1), ("b", 2)] {
        std::fs::write(source.path().join(name), content(seed, 8 << 20)).unwrap();
    }
    let node = node(source.path(), 1 << 30).await;
    let reader = node.reader(UID).await;
    let files = reader.files();
    // Sequential and cold, with read-ahead on the way: none of it is a hit.
    reader.read(&files["a"], 64 << 10).await.unwrap();
    let total = node.dataset(UID).await.total.unwrap();
    assert_eq!((total.requested_bytes, total.source_bytes), (8 << 20, 8 << 20), "{total:?}");
    assert!(total.hit_bytes <= (8 << 20) - 2 * (64 << 10), "{total:?}");
    let cold = total.hit_bytes;
    reader.read(&files["a"], 64 << 10).await.unwrap();
    let total = node.dataset(UID).await.total.unwrap();
    assert_eq!((total.requested_bytes, total.hit_bytes - cold), (16 << 20, 8 << 20));
    assert_eq!(node.metric("forebay_read_bytes_total{dataset=\"tests/d1\",origin=\"source\"}").await, (8 << 20) - cold);
}

#[tokio::test(flavor = "multi_thread")]
async fn opens_that_were_seen_count_for_those_that_were_not_and_only_of_complete_objects() {
    let source = scratch();
    for (name, seed) in [("complete", 1), ("partial", 2)] {
        std::fs::write(source.path().join(name), content(seed, 5 << 20)).unwrap();
    }
    let node = node(source.path(), 1 << 30).await;
    let reader = node.reader(UID).await;
    let files = reader.files();
    reader.read(&files["complete"], 1 << 20).await.unwrap();
    let before = node.dataset(UID).await.total.unwrap();
    let unknown = ObjectId::from_bytes([9; 16]);
    reader.touched(&[files["partial"], files["complete"], files["complete"], unknown], 33).await;
    let after = node.dataset(UID).await.total.unwrap();
    let bytes = 2 * 33 * (5 << 20);
    let counted = |count: fn(&ReadCounters) -> u64| count(&after) - count(&before);
    assert_eq!((counted(|it| it.requested_bytes), counted(|it| it.hit_bytes)), (bytes, bytes));
    assert_eq!(counted(|it| it.source_bytes), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_is_smaller_than_the_data_serves_all_of_it_and_keeps_its_size() {
    let source = scratch();
    let files: Vec<_> = (0..24).map(|i| (format!("f{i:02}"), content(i, (2 << 20) + i as usize))).collect();
    for (name, bytes) in &files {
        std::fs::write(source.path().join(name), bytes).unwrap();
    }
    let capacity = 16 << 20;
    let node = node(source.path(), capacity).await;
    let reader = node.reader(UID).await;
    // One file stays open all the time and must keep what it has.
    let kept = reader.open(&reader.files()["f00"]).await.unwrap();
    reader.ensure(kept.lease, 0, kept.size).await.unwrap();
    for _ in 0..2 {
        for (name, bytes) in &files {
            assert!(reader.read(&reader.files()[name], 1 << 20).await.unwrap() == *bytes, "{name}");
            assert!(node.status().await.cached_bytes <= capacity);
        }
    }
    let mut read = vec![0; files[0].1.len()];
    kept.file.read_exact_at(&mut read, 0).unwrap();
    assert!(read == files[0].1);
    assert_eq!(node.metric("forebay_verification_failures_total").await, 0);
    let on_disk = wait_for("evicted files to be gone", Duration::from_secs(10), || async {
        let folder = node.config.node.cache_dir.clone();
        let bytes: u64 = ["objects", "partial"].iter().map(|name| bytes_below(&folder.join(name))).sum();
        (bytes <= capacity).then_some(bytes)
    })
    .await;
    assert!(on_disk > capacity / 2);
}

fn bytes_below(folder: &std::path::Path) -> u64 {
    std::fs::read_dir(folder).map_or(0, |entries| {
        entries
            .filter_map(|entry| entry.ok()?.path().into())
            .map(|path| if path.is_dir() { bytes_below(&path) } else { std::fs::metadata(path).map_or(0, |m| m.len()) })
            .sum()
    })
}
