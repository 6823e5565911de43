//! Several nodes over one source: each byte leaves it once, and what is cached stays cached.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::common::gateway::Gateway;
use crate::common::process::NodeProcess;
use crate::common::proxy::Proxy;
use crate::common::{config, content, dataset, free_address, preload_all, wait_for};
use futures::future::join_all;

const UID: &str = "d1";

/// Small files, files of several chunks, one with an odd end; and names that need care in URLs.
fn objects() -> BTreeMap<String, Vec<u8>> {
    let mut objects: BTreeMap<_, _> =
        (0..60_u64).map(|i| (format!("small/{:02}/{i}", i % 7), content(i, 1000 + 37 * i as usize))).collect();
    for (i, length) in [(100, 9 << 20), (101, (4 << 20) + 1), (102, 4 << 20), (103, 13_000_001)] {
        objects.insert(format!("large/{i}"), content(i, length));
    }
    for (i, name) in (200..).zip(["a b", "a+b", "ü", "50 off", "x=1&y=2;z", "quote'", "(1)~!*"]) {
        objects.insert(format!("odd/{name}"), content(i, 100));
    }
    objects
}

fn total(objects: &BTreeMap<String, Vec<u8>>) -> u64 {
    objects.values().map(|bytes| bytes.len() as u64).sum()
}

async fn cluster(addresses: &[SocketAddr], source: SocketAddr, preload: bool) -> Vec<NodeProcess> {
    join_all(addresses.iter().map(|address| {
        let addresses = addresses.to_vec();
        NodeProcess::start(move |folder| {
            let mut dataset = dataset(UID, Gateway::source_at(source, ""));
            dataset.preload = if preload { Some(preload_all()) } else { None };
            config(folder, *address, &addresses, vec![dataset])
        })
    }))
    .await
}

fn three() -> Vec<SocketAddr> {
    (2..=4).map(|n| free_address([127, 0, 0, n])).collect()
}

async fn read_all(node: &NodeProcess, objects: &BTreeMap<String, Vec<u8>>) {
    let reader = node.reader(UID).await;
    let files = reader.files();
    assert_eq!(files.keys().collect::<Vec<_>>(), objects.keys().collect::<Vec<_>>());
    for (path, id) in files {
        let read = reader.read(&id, 1 << 20).await.unwrap_or_else(|failed| panic!("{path}: {failed:?}"));
        assert!(read == objects[&path], "{path} differs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_that_read_everything_at_once_take_each_byte_from_the_source_once() {
    let Some(gateway) = Gateway::start().await else { return };
    let objects = objects();
    gateway.put(objects.clone()).await;
    let proxy = Proxy::start(gateway.address).await;
    let nodes = cluster(&three(), proxy.address, false).await;
    let ids = join_all(nodes.iter().map(|node| node.catalog_id(UID))).await;
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    join_all(nodes.iter().map(|node| read_all(node, &objects))).await;
    let bytes = total(&objects);
    let mut source = 0;
    for node in &nodes {
        source += node.metric("forebay_source_read_bytes_total").await;
        let status = node.dataset(UID).await;
        assert_eq!(status.total.unwrap().requested_bytes, bytes);
        assert_eq!(node.metric("forebay_read_bytes_total").await, bytes);
    }
    assert_eq!(source, bytes);
    // Headers and three empty-handed looks are all that comes on top.
    let overhead = 1000 * objects.len() as u64 + 100_000;
    assert!(proxy.bytes() < bytes + overhead, "{} bytes for {bytes}", proxy.bytes());
    // And again: now everything is here.
    join_all(nodes.iter().map(|node| read_all(node, &objects))).await;
    assert!(proxy.bytes() < bytes + overhead);
    for node in &nodes {
        let status = wait_for("all chunks to be counted", Duration::from_secs(10), || async {
            Some(node.dataset(UID).await).filter(|status| status.cached_bytes == bytes)
        })
        .await;
        assert!(status.owned_cached_bytes > 0 && status.owned_cached_bytes < bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preload_spreads_over_the_nodes_and_its_progress_adds_up() {
    let Some(gateway) = Gateway::start().await else { return };
    let objects = objects();
    gateway.put(objects.clone()).await;
    let nodes = cluster(&three(), gateway.address, true).await;
    join_all(nodes.iter().map(|node| node.wait_preloaded(UID))).await;
    let (mut files, mut bytes, mut source) = (0, 0, 0);
    for node in &nodes {
        let status = node.dataset(UID).await;
        let preload = status.preload.unwrap();
        assert_eq!((preload.loaded_files, preload.failed_files), (preload.total_files, 0));
        assert!(preload.total_files > 0, "everybody owns something");
        assert_eq!(status.owned_cached_bytes, preload.total_bytes);
        files += preload.total_files;
        bytes += preload.total_bytes;
        source += node.metric("forebay_source_read_bytes_total").await;
    }
    assert_eq!((files, bytes, source), (objects.len() as u64, total(&objects), total(&objects)));
    // What is read after that are hits, wherever they come from.
    read_all(&nodes[0], &objects).await;
    let read = nodes[0].dataset(UID).await.last_hour.unwrap();
    assert_eq!((read.requested_bytes, read.hit_bytes), (total(&objects), total(&objects)));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_an_owner_dies_its_share_is_read_by_the_next_and_no_read_fails() {
    let Some(gateway) = Gateway::start().await else { return };
    let objects = objects();
    gateway.put(objects.clone()).await;
    let mut nodes = cluster(&three(), gateway.address, false).await;
    join_all(nodes.iter().map(|node| node.catalog_id(UID))).await;
    nodes[2].kill();
    read_all(&nodes[0], &objects).await;
    read_all(&nodes[1], &objects).await;
    let source = nodes[0].metric("forebay_source_read_bytes_total").await
        + nodes[1].metric("forebay_source_read_bytes_total").await;
    assert_eq!(source, total(&objects), "the two that are left agree on who is next");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_killed_at_any_moment_keeps_what_it_had_and_never_serves_wrong_bytes() {
    let Some(gateway) = Gateway::start().await else { return };
    let objects: BTreeMap<_, _> = (0..12).map(|i| (format!("f{i}"), content(i, (10 << 20) + i as usize))).collect();
    gateway.put(objects.clone()).await;
    let address = free_address([127, 0, 0, 2]);
    let mut node = NodeProcess::start(|folder| {
        let mut dataset = dataset(UID, Gateway::source_at(gateway.address, ""));
        dataset.preload = Some(preload_all());
        config(folder, address, &[], vec![dataset])
    })
    .await;
    let catalog = node.catalog_id(UID).await;
    let mut source = 0;
    for round in 0..6_u64 {
        let target = total(&objects) * (round + 1) / 8;
        wait_for("some more to be loaded", Duration::from_secs(30), || async {
            (node.dataset(UID).await.cached_bytes >= target).then_some(())
        })
        .await;
        let (before, so_far) =
            (node.dataset(UID).await.cached_bytes, node.metric("forebay_source_read_bytes_total").await);
        source += so_far;
        node.kill();
        node.restart().await;
        let after = node
            .wait_dataset("the count", UID, |dataset| (dataset.cached_bytes > 0).then_some(dataset.cached_bytes))
            .await;
        assert!(after >= before, "{after} of {before} bytes are left");
    }
    node.wait_preloaded(UID).await;
    source += node.metric("forebay_source_read_bytes_total").await;
    read_all(&node, &objects).await;
    assert_eq!(node.catalog_id(UID).await, catalog);
    // What was on its way at a kill is lost: at most 16 chunks each time, and what was not yet seen by the metric.
    assert!(source < total(&objects) + 6 * (64 << 20), "{source} of {}", total(&objects));
    assert_eq!(node.metric("forebay_verification_failures_total").await, 0);
    // A clean restart loses nothing.
    assert!(node.terminate().await);
    node.restart().await;
    node.wait_preloaded(UID).await;
    read_all(&node, &objects).await;
    assert_eq!(node.metric("forebay_source_read_bytes_total").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_missing_file_is_noticed_and_fetched_again() {
    let Some(gateway) = Gateway::start().await else { return };
    let objects = objects();
    gateway.put(objects.clone()).await;
    let addresses = &three()[..2];
    let nodes = cluster(addresses, gateway.address, true).await;
    join_all(nodes.iter().map(|node| node.wait_preloaded(UID))).await;
    // Of what the first node owns, one file is damaged and one is gone.
    let folder = nodes[0].config.node.cache_dir.join("objects");
    let files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path())
        // Of one chunk: each chunk that is lost is counted.
        .filter(|path| (1..=4 << 20).contains(&std::fs::metadata(path).unwrap().len()))
        .collect();
    assert!(files.len() > 2, "{files:?}");
    let length = std::fs::metadata(&files[0]).unwrap().len();
    std::fs::write(&files[0], vec![0; usize::try_from(length).unwrap()]).unwrap();
    std::fs::remove_file(&files[1]).unwrap();
    read_all(&nodes[1], &objects).await;
    assert_eq!(nodes[0].metric("forebay_verification_failures_total").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_node_is_killed_while_all_read_no_read_fails_on_the_others() {
    let Some(gateway) = Gateway::start().await else { return };
    let objects: BTreeMap<_, _> = (0..30).map(|i| (format!("f{i}"), content(i, (5 << 20) + i as usize))).collect();
    gateway.put(objects.clone()).await;
    let mut nodes = cluster(&three(), gateway.address, false).await;
    join_all(nodes.iter().map(|node| node.catalog_id(UID))).await;
    let mut killed = nodes.pop().unwrap();
    let kill = async {
        wait_for("reads to be under way", Duration::from_secs(30), || async {
            (killed.metric("forebay_source_read_bytes_total").await > total(&objects) / 12).then_some(())
        })
        .await;
        killed.kill();
    };
    tokio::join!(read_all(&nodes[0], &objects), read_all(&nodes[1], &objects), kill);
    let mut source = 0;
    for node in &nodes {
        source += node.metric("forebay_source_read_bytes_total").await;
    }
    assert!(source <= total(&objects), "{source} of {}", total(&objects));
}
