//! Rates on this machine, for a look while working: `cargo test -p forebay-cache-node -- --ignored --nocapture speed`.

use std::time::Instant;

use futures::future::join_all;

use crate::common::gateway::Gateway;
use crate::common::process::NodeProcess;
use crate::common::{config, content, dataset, free_address, preload_all};

const UID: &str = "d1";

async fn two_nodes(gateway: &Gateway) -> Vec<NodeProcess> {
    let addresses = [free_address([127, 0, 0, 2]), free_address([127, 0, 0, 3])];
    let nodes = join_all(addresses.iter().map(|address| {
        NodeProcess::start(move |folder| {
            let mut dataset = dataset(UID, Gateway::source_at(gateway.address, ""));
            dataset.preload = Some(preload_all());
            let mut config = config(folder, *address, &addresses, vec![dataset]);
            // The second one owns nothing.
            config.members[1].weight = 0;
            config
        })
    }))
    .await;
    let began = Instant::now();
    nodes[0].wait_preloaded(UID).await;
    let bytes = nodes[0].dataset(UID).await.cached_bytes;
    println!("preload: {bytes} bytes in {:?}", began.elapsed());
    nodes
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, asserts nothing"]
async fn speed_of_large_objects() {
    let Some(gateway) = Gateway::start().await else { return };
    gateway.put((0..4).map(|i| (format!("f{i}"), content(i, 128 << 20)))).await;
    let nodes = two_nodes(&gateway).await;
    let reader = nodes[1].reader(UID).await;
    let began = Instant::now();
    for id in reader.files().values() {
        reader.read(id, 16 << 20).await.unwrap();
    }
    println!("from a peer through the local socket: 512 MiB in {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, asserts nothing"]
async fn speed_of_small_objects() {
    let Some(gateway) = Gateway::start().await else { return };
    gateway.put((0..10_000).map(|i| (format!("{:02}/{i}", i % 100), content(i, 4096)))).await;
    let nodes = two_nodes(&gateway).await;
    let began = Instant::now();
    join_all((0..16).map(|part| {
        let node = &nodes[1];
        async move {
            let reader = node.reader(UID).await;
            for id in reader.files().values().skip(part).step_by(16) {
                reader.read(id, 1 << 20).await.unwrap();
            }
        }
    }))
    .await;
    println!("from a peer through the local socket: 10,000 objects in {:?}", began.elapsed());
}
