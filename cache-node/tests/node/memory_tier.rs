//! A node with a memory tier before its disk, as a process: what is opened again is read from memory, also by the kernel, and whatever happens to
//! the copies costs no byte.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_catalog::ObjectId;
use forebay_protocol::config::MemoryTierConfig;
use forebay_protocol::layout::CacheLayout;

use crate::common::process::NodeProcess;
use crate::common::reader::Reader;
use crate::common::{config, content, dataset, file_source, free_address, preload_all, scratch, wait_for};
use crate::faults_disk::Disk;

const UID: &str = "d1";
const FILE: usize = 1 << 20;
const FILES: u64 = 12;
const CAPACITY: u64 = 6 << 20;

fn copy(memory: &Path, id: &ObjectId) -> PathBuf {
    CacheLayout::new(memory).objects().join(id.relative_path())
}

async fn read_all(reader: &Reader) {
    for (n, (name, id)) in reader.files().iter().enumerate() {
        assert!(reader.read(id, 1 << 20).await.unwrap() == content(n as u64, FILE), "{name}");
    }
}

/// Reads until something is in memory, which is within its capacity; the objects that are there.
async fn read_until_hot(node: &NodeProcess, reader: &Reader, memory: &Path) -> Vec<ObjectId> {
    wait_for("copies in memory", Duration::from_secs(60), || async {
        read_all(reader).await;
        let there: Vec<_> = reader.files().into_values().filter(|id| copy(memory, id).exists()).collect();
        assert!(node.metric("forebay_memory_tier_bytes").await <= CAPACITY);
        (!there.is_empty()).then_some(there)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn hot_files_are_read_from_memory_and_nothing_depends_on_the_copies() {
    // Of its own: what other tests write to /dev/shm may be taken for copies that readers hold.
    let Some(memory) = Disk::tmpfs("64m") else { return };
    let source = scratch();
    for n in 0..FILES {
        std::fs::write(source.path().join(format!("{n:02}")), content(n, FILE)).unwrap();
    }
    let dir = memory.path().join("tests.pool");
    let mut node = NodeProcess::start(|folder| {
        let mut dataset = dataset(UID, file_source(source.path()));
        dataset.preload = Some(preload_all());
        let mut config = config(folder, free_address([127, 0, 0, 2]), &[], vec![dataset]);
        config.node.memory_tier = Some(MemoryTierConfig { dir: dir.clone(), capacity_bytes: CAPACITY });
        config
    })
    .await;
    node.wait_preloaded(UID).await;
    let reader = node.reader(UID).await;
    let from_source = node.metric("forebay_source_read_bytes_total").await;
    let hot = read_until_hot(&node, &reader, &dir).await;
    let total = FILES * FILE as u64;
    assert_eq!(node.dataset(UID).await.cached_bytes, total, "the disk has everything");
    // What the daemon gets, and what the kernel's overlay would find.
    let files = reader.files();
    let (n, id) = files.values().enumerate().find(|(_, id)| hot.contains(id)).unwrap();
    assert!(std::fs::read(copy(&dir, id)).is_ok_and(|bytes| bytes == content(n as u64, FILE)));
    wait_for("a reader to get a copy", Duration::from_secs(30), || async {
        let open = reader.open(id).await.unwrap();
        let inode = std::fs::metadata(copy(&dir, id)).map(|facts| facts.ino()).ok();
        let is_copy = inode == open.file.metadata().map(|facts| facts.ino()).ok();
        reader.close(open.lease).await;
        is_copy.then_some(())
    })
    .await;
    drop(reader);
    // Killed: the copies stay in the tmpfs, and the next start removes them; folders stay.
    let folder = std::fs::metadata(CacheLayout::new(&dir).objects()).unwrap().ino();
    node.kill();
    node.restart().await;
    let left = files.values().filter(|id| copy(&dir, id).exists()).count();
    assert_eq!((left, node.metric("forebay_memory_tier_bytes").await), (0, 0));
    assert_eq!(std::fs::metadata(CacheLayout::new(&dir).objects()).unwrap().ino(), folder);
    let reader = node.reader(UID).await;
    read_until_hot(&node, &reader, &dir).await;
    // Someone empties the tmpfs: the disk is read.
    for id in files.values() {
        let _ = std::fs::remove_file(copy(&dir, id));
    }
    read_all(&reader).await;
    // Without a tier from now on.
    node.change(|config| {
        if let Some(tier) = &mut config.node.memory_tier {
            tier.capacity_bytes = 0;
        }
    });
    wait_for("the copies to go", Duration::from_secs(20), || async {
        (node.metric("forebay_memory_tier_bytes").await == 0).then_some(())
    })
    .await;
    read_all(&reader).await;
    assert!(files.values().all(|id| !copy(&dir, id).exists()));
    assert_eq!(node.metric("forebay_source_read_bytes_total").await, 0, "since the restart");
    assert_eq!(from_source, total, "each byte came once");
    assert_eq!(node.metric("forebay_verification_failures_total").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_node_leaves_nothing_in_memory() {
    let (source, memory) = (scratch(), scratch());
    std::fs::write(source.path().join("a"), content(1, FILE)).unwrap();
    let dir = memory.path().join("tests.pool");
    let mut node = NodeProcess::start(|folder| {
        let dataset = dataset(UID, file_source(source.path()));
        let mut config = config(folder, free_address([127, 0, 0, 2]), &[], vec![dataset]);
        config.node.memory_tier = Some(MemoryTierConfig { dir: dir.clone(), capacity_bytes: CAPACITY });
        config
    })
    .await;
    node.catalog_id(UID).await;
    assert!(dir.join("objects").exists());
    node.change(|config| {
        config.erase = true;
        config.datasets.clear();
    });
    wait_for("the node to be erased", Duration::from_secs(20), || async {
        node.try_status().await.filter(|status| status.erased)
    })
    .await;
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
}
