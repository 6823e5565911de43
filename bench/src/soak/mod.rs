//! Endurance: four real nodes over an S3 server, a reader on each that compares every byte, and faults in between: kill -9, damaged, cut
//! and missing files of a node that is down, members that come, go and change their weight. A seed decides which faults in which order,
//! which objects are read, and how long it waits between faults; how they meet in time is the machine's, so a seed makes a failure likely
//! again, not certain. (The simulation of the cache node's crate repeats exactly.)

mod damage;
mod faults;
mod readers;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use futures::future::try_join_all;
use tokio::sync::RwLock;

use crate::cluster::content::{content, free_address};
use crate::cluster::node::{Node, dataset};
use crate::cluster::s3::S3Server;
use crate::programs::Programs;
use crate::run_folder::{self, RunFolder};
use faults::{Action, State};

const NODES: u8 = 4;
/// Less than the dataset has, so that nodes evict as well.
const CAPACITY_BYTES: u64 = 96 << 20;

/// How long, and which faults.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// How long faults go on
    #[arg(long, default_value_t = 10)]
    pub minutes: u64,
    /// How long, in seconds; counts instead of the minutes
    #[arg(long)]
    pub seconds: Option<u64>,
    /// Repeat the faults of a run that printed this seed
    #[arg(long)]
    pub seed: Option<u64>,
}

/// A run without a wrong byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Decided the run.
    pub seed: u64,
    /// Objects that were read whole and compared.
    pub reads: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How often each kind of fault was made.
    pub faults: BTreeMap<&'static str, u64>,
}

impl fmt::Display for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {} reads, {} MiB, all right;", self.seed, self.reads, self.bytes >> 20)?;
        self.faults.iter().try_for_each(|(fault, count)| write!(f, " {count} x {fault}"))
    }
}

/// What readers and faults share.
struct Cluster {
    nodes: Vec<Slot>,
    /// What each path holds.
    objects: BTreeMap<String, Vec<u8>>,
    ending: AtomicBool,
    reads: AtomicU64,
    bytes: AtomicU64,
}

struct Slot {
    node: RwLock<Node>,
    /// Goes up before a kill, so that a reader knows why it was cut off.
    kills: AtomicU64,
}

/// Runs it; an error is a wrong byte, a read that failed without a reason, or a node that does not come back.
pub async fn run(options: &Options) -> Result<Passed> {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.subsec_nanos();
    let seed = options.seed.unwrap_or_else(|| u64::from(clock ^ std::process::id()));
    let time = Duration::from_secs(options.seconds.unwrap_or(options.minutes * 60));
    println!(
        "soak: seed {seed}, {} s; repeat it: cargo xtask soak --seconds {} --seed {seed}",
        time.as_secs(),
        time.as_secs()
    );
    soak(seed, time).await.with_context(|| format!("soak with seed {seed}"))
}

async fn soak(seed: u64, time: Duration) -> Result<Passed> {
    run_folder::sweep();
    let folder = RunFolder::new()?;
    let server = S3Server::start(free_address([127, 0, 0, 1])?, folder.part("s3")?).await?;
    let objects = objects();
    for (key, bytes) in &objects {
        server.put(key, bytes)?;
    }
    let cluster = Arc::new(Cluster {
        nodes: start(&folder, &server).await?,
        objects,
        ending: AtomicBool::new(false),
        reads: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
    });
    let mut state = State::new(seed, NODES.into());
    let mut passed = Passed { seed, ..Passed::default() };
    let faults = async {
        let began = Instant::now();
        while began.elapsed() < time {
            let (pause, action) = state.next_action();
            tokio::time::sleep(pause).await;
            println!("{:7.1} s  {action}", began.elapsed().as_secs_f64());
            *passed.faults.entry(action.kind()).or_default() += 1;
            perform(&cluster, &action).await.with_context(|| action.to_string())?;
        }
        for node in state.down() {
            perform(&cluster, &Action::Start { node, damage: None }).await?;
        }
        cluster.ending.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let readers = (0..cluster.nodes.len()).map(|node| readers::read_until_the_end(Arc::clone(&cluster), node, seed));
    tokio::try_join!(faults, try_join_all(readers))?;
    // What the faults left behind, seen from everywhere.
    try_join_all((0..cluster.nodes.len()).map(|node| readers::read_all(&cluster, node))).await?;
    passed.reads = cluster.reads.load(Ordering::Relaxed);
    passed.bytes = cluster.bytes.load(Ordering::Relaxed);
    Ok(passed)
}

/// Small files, files of one chunk, and of several with an odd end.
fn objects() -> BTreeMap<String, Vec<u8>> {
    let small = (0..100_u64).map(|i| (format!("small/{}/{i}", i % 7), content(i, 1000 + 613 * i as usize)));
    let large =
        (0..16_u64).map(|i| (format!("large/{i}"), content(1000 + i, (2 << 20) * (1 + i as usize % 6) + i as usize)));
    small.chain(large).collect()
}

async fn start(folder: &RunFolder, server: &S3Server) -> Result<Vec<Slot>> {
    let program = Programs::beside_this()?.node()?;
    let addresses: Vec<_> = (0..NODES).map(|number| free_address([127, 0, 0, 2 + number])).collect::<Result<_>>()?;
    let mut nodes = Vec::new();
    for address in &addresses {
        let datasets = vec![dataset(S3Server::source_at(server.address))];
        let mut node = Node::new(&program, folder.part("node")?, *address, datasets).with_members(&addresses);
        node.config.node.capacity_bytes = CAPACITY_BYTES;
        nodes.push(node);
    }
    try_join_all(nodes.iter_mut().map(Node::start)).await?;
    Ok(nodes.into_iter().map(|node| Slot { node: RwLock::new(node), kills: AtomicU64::new(0) }).collect())
}

async fn perform(cluster: &Cluster, action: &Action) -> Result<()> {
    match action {
        Action::Kill { node } => {
            let slot = cluster.slot(*node)?;
            slot.kills.fetch_add(1, Ordering::SeqCst);
            slot.node.write().await.kill()
        }
        Action::Start { node, damage } => {
            let mut node = cluster.slot(*node)?.node.write().await;
            if let Some(damage) = damage {
                damage::inflict(&node.layout(), *damage)?;
            }
            node.start().await
        }
        Action::Weights(weights) => {
            for slot in &cluster.nodes {
                slot.node.write().await.change(|config| {
                    for (member, weight) in config.members.iter_mut().zip(weights) {
                        member.weight = *weight;
                    }
                })?;
            }
            Ok(())
        }
    }
}

impl Cluster {
    fn slot(&self, node: usize) -> Result<&Slot> {
        self.nodes.get(node).with_context(|| format!("there is no node {node}"))
    }
}
