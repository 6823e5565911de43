//! Many small files on a cold node: read one after the other, they come as fast as the source gives them to many at once, and each once.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::common::faults::{Fault, Faults};
use crate::common::gateway::Gateway;
use crate::common::process::NodeProcess;
use crate::common::{config, content, dataset, free_address, wait_for};

const UID: &str = "d1";
const FILES: usize = 12_000;
const PER_FOLDER: usize = 500;
const SIZE: usize = 4096;
/// What the source takes for each request.
const LATENCY: Duration = Duration::from_millis(34);
/// That many requests are to be under way at once.
const AT_ONCE: usize = 64;

fn key(n: usize) -> String {
    format!("{:03}/{n:06}", n / PER_FOLDER)
}

/// A source with a latency, and nodes over it.
async fn world(nodes: u8) -> Option<(Gateway, Faults, Vec<NodeProcess>)> {
    let gateway = Gateway::start().await?;
    for n in 0..FILES {
        gateway.put_raw(&key(n), &content(n as u64, SIZE));
    }
    let proxy =
        Faults::start(gateway.address, |asked| if asked.is_listing() { Fault::None } else { Fault::Late(LATENCY) })
            .await;
    let addresses: Vec<_> = (0..nodes).map(|n| free_address([127, 0, 0, 2 + n])).collect();
    let nodes = join_all(addresses.iter().map(|address| {
        let source = Gateway::source_at(proxy.address, "");
        NodeProcess::start(|folder| config(folder, *address, &addresses, vec![dataset(UID, source)]))
    }))
    .await;
    Some((gateway, proxy, nodes))
}

fn shuffled(count: usize) -> Vec<usize> {
    let mut order: Vec<_> = (0..count).collect();
    let mut state = 99_u64;
    for i in (1..count).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(i, (state >> 33) as usize % (i + 1));
    }
    order
}

/// One reader opens all files one after the other; how long that takes.
async fn read_all(node: &NodeProcess, order: impl IntoIterator<Item = usize>) -> Duration {
    let reader = node.reader(UID).await;
    let files = reader.files();
    let began = Instant::now();
    for n in order {
        let bytes = reader.read(&files[&key(n)], 1 << 20).await.unwrap();
        assert!(bytes == content(n as u64, SIZE), "{n}");
    }
    began.elapsed()
}

/// No file was asked for twice; hedges apart, which the node counts.
async fn assert_each_once(proxy: &Faults, nodes: &[NodeProcess]) {
    let mut times: HashMap<String, usize> = HashMap::new();
    for seen in proxy.seen() {
        *times.entry(seen.asked.path).or_default() += 1;
    }
    let twice = times.values().filter(|count| **count > 1).count() as u64;
    let hedged: u64 =
        join_all(nodes.iter().map(|node| node.metric("forebay_hedged_requests_total{"))).await.iter().sum();
    assert!(times.len() == FILES && twice <= hedged, "{} files, {twice} twice, {hedged} hedged", times.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn read_in_order_they_are_there_before_they_are_asked_for() {
    let Some((_gateway, proxy, nodes)) = world(1).await else { return };
    let took = read_all(&nodes[0], 0..FILES).await;
    println!("in order: {took:?}, {} requests at once", proxy.most_in_flight());
    assert!(proxy.most_in_flight() >= AT_ONCE, "{} at once", proxy.most_in_flight());
    assert!(took < LATENCY * FILES as u32 / 8, "one by one they take {:?}, this took {took:?}", LATENCY * FILES as u32);
    assert_each_once(&proxy, &nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn read_in_random_order_they_are_there_too() {
    let Some((_gateway, proxy, nodes)) = world(1).await else { return };
    let took = read_all(&nodes[0], shuffled(FILES)).await;
    println!("in random order: {took:?}, {} requests at once", proxy.most_in_flight());
    assert!(proxy.most_in_flight() >= AT_ONCE, "{} at once", proxy.most_in_flight());
    assert!(took < LATENCY * FILES as u32 / 8, "one by one they take {:?}, this took {took:?}", LATENCY * FILES as u32);
    assert_each_once(&proxy, &nodes).await;
    // Found on the node when its reader opened it: a hit. What a reader had to wait for is none.
    let total = nodes[0].dataset(UID).await.total.unwrap();
    assert_eq!(total.requested_bytes, (FILES * SIZE) as u64);
    assert!(total.hit_bytes < total.requested_bytes && total.source_bytes >= total.requested_bytes, "{total:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owners_load_for_a_reader_of_another_node() {
    let Some((_gateway, proxy, nodes)) = world(3).await else { return };
    let took = read_all(&nodes[0], shuffled(FILES)).await;
    println!("three nodes, one reader: {took:?}, {} requests at once", proxy.most_in_flight());
    assert!(proxy.most_in_flight() >= AT_ONCE, "{} at once", proxy.most_in_flight());
    assert_each_once(&proxy, &nodes).await;
    for node in &nodes {
        let loaded = node.dataset(UID).await.total.unwrap().source_bytes;
        assert!(loaded > (FILES * SIZE / 5) as u64, "each node reads what it owns, this one only {loaded} bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_stops_soon_after_the_readers_and_never_goes_far_for_a_few() {
    let Some((_gateway, proxy, nodes)) = world(1).await else { return };
    read_all(&nodes[0], shuffled(FILES).into_iter().take(10)).await;
    assert!(proxy.seen().len() <= 10 + 16, "ten files here and there made {} requests", proxy.seen().len());
    read_all(&nodes[0], 0..300).await;
    let calm = wait_for("the requests to end", Duration::from_secs(30), || async {
        let before = proxy.seen().len();
        tokio::time::sleep(Duration::from_secs(1)).await;
        (proxy.seen().len() == before).then_some(before)
    })
    .await;
    println!("{calm} requests for 310 files read");
    assert!(calm < 310 + 2 * 1024, "{calm} requests for 310 files that were read");
}
