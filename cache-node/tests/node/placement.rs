//! Who keeps what, on real nodes over a source whose line is counted: however many nodes read, die, come and go, what has crossed the line
//! once does not cross it again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forebay_protocol::config::{Member, MemberState, PlacementConfig, PlacementMode};
use futures::future::join_all;

use crate::common::gateway::Gateway;
use crate::common::process::NodeProcess;
use crate::common::proxy::Proxy;
use crate::common::{config, content, dataset, free_address, preload_all, wait_for};

const UID: &str = "d1";

type Objects = BTreeMap<String, Vec<u8>>;

fn total(objects: &Objects) -> u64 {
    objects.values().map(|bytes| bytes.len() as u64).sum()
}

fn many(count: u64, length: usize) -> Objects {
    (0..count).map(|i| (format!("f{i:04}"), content(i, length + i as usize % 100))).collect()
}

/// A source with objects, behind a line that counts.
async fn source(objects: &Objects) -> Option<(Gateway, Proxy)> {
    let gateway = Gateway::start().await?;
    gateway.put(objects.clone()).await;
    let proxy = Proxy::start(gateway.address).await;
    Some((gateway, proxy))
}

#[derive(Clone)]
struct Cluster {
    source: SocketAddr,
    placement: PlacementConfig,
    preload: bool,
    members: Vec<Member>,
}

impl Cluster {
    fn new(source: &Proxy, count: u8) -> Self {
        let members = (2..2 + count).map(|n| Member::at(free_address([127, 0, 0, n]))).collect();
        Self { source: source.address, placement: PlacementConfig::default(), preload: false, members }
    }

    async fn start_one(&self, n: usize) -> NodeProcess {
        NodeProcess::start(|folder| {
            let mut dataset = dataset(UID, Gateway::source_at(self.source, ""));
            dataset.preload = self.preload.then(preload_all);
            dataset.placement = self.placement;
            let mut config = config(folder, self.members[n].address, &[], vec![dataset]);
            config.members.clone_from(&self.members);
            config
        })
        .await
    }

    async fn start(&self) -> Vec<NodeProcess> {
        let nodes = join_all((0..self.members.len()).map(|n| self.start_one(n))).await;
        join_all(nodes.iter().map(|node| node.catalog_id(UID))).await;
        if self.preload {
            join_all(nodes.iter().map(|node| node.wait_preloaded(UID))).await;
        }
        nodes
    }

    /// Gives the nodes these members and waits until they have them.
    async fn spread<'a>(&self, nodes: impl IntoIterator<Item = &'a mut NodeProcess>) {
        join_all(nodes.into_iter().map(|node| async {
            node.change(|config| config.members.clone_from(&self.members));
            let revision = node.config.revision.clone();
            wait_for("the members", Duration::from_secs(20), || async {
                (node.try_status().await?.revision == revision).then_some(())
            })
            .await;
        }))
        .await;
    }
}

async fn read_all(node: &NodeProcess, objects: &Objects) {
    let reader = node.reader(UID).await;
    for (path, id) in reader.files() {
        let read = reader.read(&id, 1 << 20).await.unwrap_or_else(|failed| panic!("{path}: {failed:?}"));
        assert!(read == objects[&path], "{path} differs");
    }
}

async fn read_all_on(nodes: &[NodeProcess], objects: &Objects) {
    join_all(nodes.iter().map(|node| read_all(node, objects))).await;
}

async fn peer_bytes(node: &NodeProcess) -> u64 {
    node.dataset(UID).await.total.unwrap().peer_bytes
}

async fn sum_of_cached(nodes: &[NodeProcess]) -> u64 {
    join_all(nodes.iter().map(|node| node.dataset(UID))).await.iter().map(|dataset| dataset.cached_bytes).sum()
}

async fn sum_of_owned(nodes: &[NodeProcess]) -> u64 {
    join_all(nodes.iter().map(|node| node.dataset(UID))).await.iter().map(|dataset| dataset.owned_cached_bytes).sum()
}

fn assert_at_most(bytes: u64, percent: u64, of: u64) {
    assert!(bytes * 100 <= of * percent, "{bytes} bytes are {:.3} of {of}", bytes as f64 / of as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn however_many_cold_nodes_read_the_same_at_once_the_source_sends_it_once() {
    let objects = many(10, 5 << 20);
    for count in [2, 4, 8] {
        let Some((_gateway, proxy)) = source(&objects).await else { return };
        let nodes = Cluster::new(&proxy, count).start().await;
        read_all_on(&nodes, &objects).await;
        assert_at_most(proxy.bytes(), 101, total(&objects));
        // Two chunks each; the rest are listings, of which each node may begin one.
        let requests = proxy.requests();
        assert!((20..=20 + 2 * u64::from(count)).contains(&requests), "{requests} requests by {count} nodes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_killed_half_way_costs_next_to_nothing() {
    let objects = many(240, 256 << 10);
    let Some((_gateway, proxy)) = source(&objects).await else { return };
    let mut nodes = Cluster::new(&proxy, 4).start().await;
    let mut killed = nodes.pop().unwrap();
    let half = total(&objects) / 2;
    let kill = async {
        wait_for("half of it to be read", Duration::from_secs(30), || async { (proxy.bytes() > half).then_some(()) })
            .await;
        killed.kill();
    };
    tokio::join!(read_all_on(&nodes, &objects), kill);
    let ratio = proxy.bytes() as f64 / total(&objects) as f64;
    println!("an owner killed half-way: {ratio:.4} of the data from the source, {} requests", proxy.requests());
    assert_at_most(proxy.bytes(), 105, total(&objects));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_takes_its_share_from_the_others_while_reads_go_on() {
    let objects = many(1200, 20 << 10);
    let Some((_gateway, proxy)) = source(&objects).await else { return };
    let mut cluster = Cluster::new(&proxy, 4);
    cluster.preload = true;
    let all = cluster.members.clone();
    cluster.members.pop();
    let mut nodes = cluster.start().await;
    read_all(&nodes[0], &objects).await;
    let (from_source, moved_before) = (proxy.bytes(), join_all(nodes.iter().map(peer_bytes)).await);
    cluster.members = all;
    let (reading, done) = (AtomicBool::new(true), AtomicBool::new(false));
    let (first, others) = nodes.split_first_mut().unwrap();
    // The first node reads from end to end all the while, and learns of the newcomer last.
    let reads = async {
        while reading.load(Ordering::Relaxed) {
            read_all(first, &objects).await;
        }
        done.store(true, Ordering::Relaxed);
    };
    let comes = async {
        cluster.spread(others).await;
        let newcomer = cluster.start_one(3).await;
        newcomer.wait_preloaded(UID).await;
        reading.store(false, Ordering::Relaxed);
        newcomer
    };
    let ((), newcomer) = tokio::join!(reads, comes);
    cluster.spread([&mut nodes[0]]).await;
    let moved = peer_bytes(&newcomer).await;
    println!("a fourth node came: it took {:.3} of the data", moved as f64 / total(&objects) as f64);
    assert_at_most(moved, 30, total(&objects));
    assert_at_most(total(&objects), 500, moved);
    assert_eq!(proxy.bytes(), from_source, "what the cluster has comes from the cluster");
    nodes.push(newcomer);
    wait_for("the shares to add up", Duration::from_secs(20), || async {
        (sum_of_owned(&nodes).await == total(&objects)).then_some(())
    })
    .await;
    for (node, before) in nodes.iter().zip(moved_before) {
        assert_eq!(peer_bytes(node).await, before, "nothing moves between the others");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_asked_to_leave_hands_over_what_it_holds_and_can_go() {
    let objects = many(200, 40 << 10).into_iter().chain([("large".to_owned(), content(7, 20 << 20))]).collect();
    let Some((_gateway, proxy)) = source(&objects).await else { return };
    let mut cluster = Cluster::new(&proxy, 3);
    cluster.preload = true;
    let mut nodes = cluster.start().await;
    let from_source = proxy.bytes();
    assert!(nodes[2].status().await.drain.is_none());
    let share = nodes[2].dataset(UID).await.cached_bytes;
    cluster.members[2].state = MemberState::Leaving;
    cluster.spread(&mut nodes).await;
    let drain = wait_for("the leaving node to be empty-handed", Duration::from_secs(30), || async {
        nodes[2].try_status().await?.drain.filter(|drain| drain.done)
    })
    .await;
    assert_eq!((drain.total_bytes, drain.remaining_bytes, drain.problem), (share, 0, None));
    // It still reads, and still serves.
    read_all(&nodes[2], &objects).await;
    cluster.members.pop();
    let mut gone = nodes.pop().unwrap();
    cluster.spread(&mut nodes).await;
    gone.kill();
    read_all_on(&nodes, &objects).await;
    assert_eq!(proxy.bytes(), from_source, "what the one that left had brought is still there");
    assert_eq!(sum_of_owned(&nodes).await, total(&objects));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_stay_after_all_stops_handing_over_and_one_alone_says_why_it_can_not() {
    let objects = many(20, 40 << 10);
    let Some((_gateway, proxy)) = source(&objects).await else { return };
    let mut cluster = Cluster::new(&proxy, 1);
    cluster.preload = true;
    let mut nodes = cluster.start().await;
    cluster.members[0].state = MemberState::Leaving;
    cluster.spread(&mut nodes).await;
    let problem = wait_for("a problem", Duration::from_secs(20), || async {
        let drain = nodes[0].try_status().await?.drain?;
        assert!(!drain.done);
        drain.problem
    })
    .await;
    assert!(problem.message.contains("no other member"), "{problem:?}");
    cluster.members[0].state = MemberState::Active;
    cluster.spread(&mut nodes).await;
    assert!(nodes[0].status().await.drain.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_copies_are_in_two_zones_and_a_zone_that_dies_costs_nothing() {
    let objects = many(60, 40 << 10).into_iter().chain([("large".to_owned(), content(7, 9 << 20))]).collect();
    let Some((_gateway, proxy)) = source(&objects).await else { return };
    let mut cluster = Cluster::new(&proxy, 4);
    cluster.preload = true;
    cluster.placement.replicas = 2;
    for (member, zone) in cluster.members.iter_mut().zip(["a", "a", "b", "b"]) {
        member.zone = Some(zone.to_owned());
    }
    let mut nodes = cluster.start().await;
    assert_at_most(proxy.bytes(), 101 + 2, total(&objects));
    assert_eq!(sum_of_cached(&nodes).await, 2 * total(&objects));
    assert_eq!(sum_of_owned(&nodes).await, total(&objects), "a copy is not counted twice");
    for preload in join_all(nodes.iter().map(|node| node.dataset(UID))).await {
        assert_eq!(preload.preload.unwrap().copies, 2);
    }
    let from_source = proxy.bytes();
    for mut node in nodes.split_off(2) {
        node.kill();
    }
    read_all_on(&nodes, &objects).await;
    assert_eq!(proxy.bytes(), from_source, "each zone has all of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn cold_readers_in_all_zones_share_what_the_first_owner_brings() {
    let objects = many(30, 1 << 20);
    let Some((_gateway, proxy)) = source(&objects).await else { return };
    let mut cluster = Cluster::new(&proxy, 4);
    cluster.placement.replicas = 2;
    for (member, zone) in cluster.members.iter_mut().zip(["a", "a", "b", "b"]) {
        member.zone = Some(zone.to_owned());
    }
    let nodes = cluster.start().await;
    read_all_on(&nodes, &objects).await;
    assert_at_most(proxy.bytes(), 101, total(&objects));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_everywhere_each_node_brings_its_part_and_all_have_all() {
    let objects: Objects =
        many(300, 16 << 10).into_iter().chain([("large".to_owned(), content(7, 60 << 20))]).collect();
    let Some((_gateway, proxy)) = source(&objects).await else { return };
    let mut cluster = Cluster::new(&proxy, 4);
    cluster.preload = true;
    cluster.placement.mode = PlacementMode::Everywhere;
    let nodes = cluster.start().await;
    assert_at_most(proxy.bytes(), 101, total(&objects));
    for node in &nodes {
        let status = node.dataset(UID).await;
        assert_eq!(status.cached_bytes, total(&objects));
        let preload = status.preload.unwrap();
        assert_eq!((preload.copies, preload.total_bytes, preload.loaded_files), (4, total(&objects), 301));
        let (brought, given) = (node.metric("forebay_source_read_bytes_total").await, status.total.unwrap().peer_bytes);
        assert_eq!(brought + given, total(&objects), "each byte came once");
        assert_at_most(brought, 35, total(&objects));
        assert_at_most(total(&objects), 700, brought);
    }
    assert_eq!(sum_of_owned(&nodes).await, total(&objects));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_everywhere_a_dead_bringer_is_stood_in_for_by_one() {
    let objects = many(100, 200 << 10);
    let Some((_gateway, proxy)) = source(&objects).await else { return };
    let mut cluster = Cluster::new(&proxy, 4);
    cluster.preload = true;
    cluster.placement.mode = PlacementMode::Everywhere;
    // The fourth never comes.
    let nodes = join_all((0..3).map(|n| cluster.start_one(n))).await;
    join_all(nodes.iter().map(|node| node.wait_preloaded(UID))).await;
    assert_at_most(proxy.bytes(), 101, total(&objects));
    assert_eq!(sum_of_cached(&nodes).await, 3 * total(&objects));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_sharded_what_others_own_goes_when_it_is_closed() {
    let objects = many(60, 100 << 10);
    let Some((_gateway, proxy)) = source(&objects).await else { return };
    let mut cluster = Cluster::new(&proxy, 2);
    cluster.placement.mode = PlacementMode::Sharded;
    let nodes = cluster.start().await;
    let reader = nodes[0].reader(UID).await;
    let mut open = Vec::new();
    for id in reader.files().values() {
        let file = reader.open(id).await.unwrap();
        reader.ensure(file.lease, 0, file.size).await.unwrap();
        open.push(file.lease);
    }
    // As long as they are open, they stay.
    nodes[0].wait_dataset("everything", UID, |status| (status.cached_bytes == total(&objects)).then_some(())).await;
    for lease in open {
        reader.close(lease).await;
    }
    let left = nodes[0]
        .wait_dataset("the copies to go", UID, |status| {
            (status.cached_bytes == status.owned_cached_bytes).then_some(status.cached_bytes)
        })
        .await;
    assert!(left > 0 && left < total(&objects), "{left}");
    assert_eq!(left + nodes[1].dataset(UID).await.cached_bytes, total(&objects));
    read_all_on(&nodes, &objects).await;
    assert_at_most(proxy.bytes(), 101 + 2, total(&objects));
}

#[tokio::test(flavor = "multi_thread")]
async fn between_zones_each_byte_goes_once_and_readers_stay_in_their_own() {
    let objects = many(100, 40 << 10).into_iter().chain([("large".to_owned(), content(7, 21 << 20))]).collect();
    let Some((_gateway, proxy)) = source(&objects).await else { return };
    let mut cluster = Cluster::new(&proxy, 4);
    cluster.preload = true;
    cluster.placement.replicas = 2;
    for ((n, member), zone) in cluster.members.iter_mut().enumerate().zip(["a", "a", "b", "b"]) {
        member.zone = Some(zone.to_owned());
        member.id = Some(format!("00000000-0000-4000-8000-00000000000{n}"));
    }
    // Nodes of one zone know those of the other by the addresses of lines that count.
    let lines = join_all(cluster.members.iter().map(|member| Proxy::start(member.address))).await;
    let starting = cluster.members.iter().map(|me| {
        let (mut seen, cluster) = (cluster.clone(), &cluster);
        for (member, line) in seen.members.iter_mut().zip(&lines).filter(|(member, _)| member.zone != me.zone) {
            member.address = line.address;
        }
        NodeProcess::start(move |folder| {
            let mut dataset = dataset(UID, Gateway::source_at(cluster.source, ""));
            dataset.preload = Some(preload_all());
            dataset.placement = cluster.placement;
            let mut config = config(folder, me.address, &[], vec![dataset]);
            std::fs::create_dir(&config.node.cache_dir).unwrap();
            std::fs::write(config.node.cache_dir.join("node-id"), me.id.as_ref().unwrap()).unwrap();
            config.members = seen.members;
            config
        })
    });
    let nodes = join_all(starting).await;
    join_all(nodes.iter().map(|node| node.wait_preloaded(UID))).await;
    let between_zones = || lines.iter().map(Proxy::bytes).sum::<u64>();
    let loading = between_zones();
    println!("loading two copies: {:.4} of the data between the zones", loading as f64 / total(&objects) as f64);
    assert_at_most(proxy.bytes(), 101 + 2, total(&objects));
    // The catalog goes too.
    assert_at_most(loading, 110, total(&objects));
    let own = join_all(nodes.iter().map(peer_bytes)).await.iter().sum::<u64>();
    read_all_on(&nodes, &objects).await;
    let reading = between_zones() - loading;
    let moved = join_all(nodes.iter().map(peer_bytes)).await.iter().sum::<u64>() - own;
    println!("reading all of it on four nodes: {moved} bytes from peers, {reading} of them between the zones");
    // In each zone each node has about half of it and gets the other half from its neighbour.
    assert_at_most(total(&objects), 100, moved);
    assert_at_most(reading, 1, total(&objects));
    assert_at_most(proxy.bytes(), 101 + 2, total(&objects));
}
