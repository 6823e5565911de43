//! How long it takes to bring everything to all nodes, beside a single transfer over one of their lines.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use forebay_protocol::config::{PlacementConfig, PlacementMode, PreloadConfig};
use forebay_protocol::node::StatusRequest;
use forebay_protocol::node::node_client::NodeClient;
use futures::future::try_join_all;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::{ObjectStore as _, ObjectStoreExt as _};
use tonic::transport::Channel;

use super::{Context, Outcome};
use crate::cluster::authority::Authority;
use crate::cluster::content::content;
use crate::cluster::node::{Node, UID, dataset};
use crate::cluster::s3::S3Server;
use crate::cluster::shaped_network::ShapedNetwork;
use crate::report::{Limit, Required, Row, Unit};
use crate::run_folder::RunFolder;
use crate::sample::{Sample, in_turn};
use crate::wait::wait_for;

pub const NAME: &str = "everywhere";
pub const HOW: &str = "\
Eight nodes, each a process in a network namespace of its own, with mutual TLS; each one's line is limited to 200, or 100, Mbit/s in either direction
(TBF at both ends of a veth), the S3 server's is not. All eight and the shaping share this machine's processors, which 200 Mbit/s use up if there are two; the slower line shows what the lines allow. A dataset of four objects of 64 MiB. With `placement: Everywhere`, from the moment the preload is written into the nodes'
config (which they look at twice a second) until every node has every byte. The limit is a plain client that reads the same objects over one such line, four at once. With
`placement: Auto` the pool as a whole has every byte once.";

const NODES: u8 = 8;
const MBIT_PER_SECOND: [u64; 2] = [200, 100];
/// A shard of a model or of an index. The chunks of each go round the nodes, so each node brings as many; of few small objects some bring twice what others do.
const OBJECT_BYTES: usize = 64 << 20;
const PATIENCE: Duration = Duration::from_mins(4);

#[allow(clippy::unused_async)] // as all measurements are; what waits here waits in another runtime
pub async fn measure(context: &Context) -> Result<Outcome> {
    let program = context.programs.node()?;
    let objects = if context.quick { 2 } else { 4 };
    let (folder, runs) = (&context.folder, context.runs.div_ceil(2));
    let mut rows = Vec::new();
    for mbit in MBIT_PER_SECOND {
        let network = ShapedNetwork::new(NODES, mbit * 1_000_000)?;
        // The hub has a thread and a runtime of its own: what a thread does there, it does in that network.
        let of_line = tokio::task::block_in_place(|| {
            ShapedNetwork::run_in(&network.hub(), async || {
                let pool = Pool::new(&network, folder, program.clone(), objects).await?;
                pool.measure(runs).await
            })
        })?;
        rows.extend(of_line.into_iter().map(|row| Row { what: format!("{mbit} Mbit/s: {}", row.what), ..row }));
    }
    Ok(Outcome::Rows(rows))
}

struct Pool<'a> {
    network: &'a ShapedNetwork,
    folder: &'a RunFolder,
    program: PathBuf,
    server: S3Server,
    bytes: u64,
}

/// How long it took, and what all nodes together read from the source.
struct Loaded {
    seconds: f64,
    source_bytes: u64,
}

impl<'a> Pool<'a> {
    async fn new(network: &'a ShapedNetwork, folder: &'a RunFolder, program: PathBuf, objects: u64) -> Result<Self> {
        let server = S3Server::start(ShapedNetwork::hub_address(), folder.part("s3")?).await?;
        for number in 0..objects {
            server.put(&format!("part-{number:03}"), &content(number, OBJECT_BYTES))?;
        }
        Ok(Self { network, folder, program, server, bytes: objects * OBJECT_BYTES as u64 })
    }

    async fn measure(&self, runs: usize) -> Result<Vec<Row>> {
        let (auto, single) =
            in_turn(runs, async || Ok(self.load(PlacementMode::Auto).await?.seconds), async || self.single()).await?;
        let limit = |sample| Some(Limit { what: "one transfer".to_owned(), sample });
        let mut rows = vec![Row {
            what: "every byte on one of 8 nodes (Auto)".to_owned(),
            unit: Unit::Seconds,
            ours: auto,
            limit: limit(single),
            required: Required::Nothing,
        }];
        let mut source = Vec::new();
        let everywhere = async || {
            let loaded = self.load(PlacementMode::Everywhere).await?;
            source.push(loaded.source_bytes as f64);
            Ok(loaded.seconds)
        };
        let (ours, single) = in_turn(runs, everywhere, async || self.single()).await?;
        let required = Required::RatioAtMost(1.25);
        let what = "every byte on all 8 nodes (Everywhere)".to_owned();
        rows.push(Row { what, unit: Unit::Seconds, ours, limit: limit(single), required });
        let dataset = Sample::new(vec![self.bytes as f64; source.len()]);
        if let (Some(ours), Some(sample)) = (Sample::new(source), dataset) {
            rows.push(Row {
                what: "bytes from the source for it".to_owned(),
                unit: Unit::Bytes,
                ours,
                limit: Some(Limit { what: "the dataset".to_owned(), sample }),
                required: Required::RatioAtMost(1.01),
            });
        }
        Ok(rows)
    }

    async fn load(&self, mode: PlacementMode) -> Result<Loaded> {
        let authority = Authority::new()?;
        let addresses: Vec<_> = (1..=NODES).map(ShapedNetwork::node_address).collect();
        let mut nodes = Vec::new();
        for number in 1..=NODES {
            let mut data = dataset(S3Server::source_at(self.server.address));
            data.placement = PlacementConfig { mode, ..PlacementConfig::default() };
            let folder = self.folder.part("node")?;
            let node = Node::new(&self.program, folder, ShapedNetwork::node_address(number), vec![data]);
            nodes.push(node.in_namespace(self.network.node(number)).with_members(&addresses).with_tls(&authority)?);
        }
        try_join_all(nodes.iter_mut().map(Node::start)).await?;
        try_join_all(nodes.iter().map(|node| node.wait_catalog(PATIENCE))).await?;
        let began = Instant::now();
        for node in &mut nodes {
            node.change(|config| {
                config.datasets.iter_mut().for_each(|dataset| dataset.preload = Some(PreloadConfig::default()));
            })?;
        }
        let all = self.bytes;
        let mut clients = try_join_all(nodes.iter().map(Node::client)).await?;
        wait_for("the preload", PATIENCE, async || {
            let cached = try_join_all(clients.iter_mut().map(cached_bytes)).await?;
            let complete = match mode {
                PlacementMode::Everywhere => cached.iter().all(|cached| *cached == all),
                _ => cached.iter().sum::<u64>() >= all,
            };
            Ok(complete.then_some(()))
        })
        .await?;
        let seconds = began.elapsed().as_secs_f64();
        let source = try_join_all(nodes.iter().map(|node| node.metric("forebay_source_read_bytes_total"))).await?;
        Ok(Loaded { seconds, source_bytes: source.iter().sum() })
    }

    /// One transfer of everything over the first node's line.
    fn single(&self) -> Result<f64> {
        let client = self.server.client()?;
        ShapedNetwork::run_in(&self.network.node(1), async || {
            let began = Instant::now();
            let listed: Vec<_> = client.list(None).try_collect().await?;
            let lengths: Vec<u64> = futures::stream::iter(listed)
                .map(async |object| {
                    let mut body = client.get(&object.location).await?.into_stream();
                    let mut length = 0;
                    while let Some(piece) = body.try_next().await? {
                        length += piece.len() as u64;
                    }
                    anyhow::Ok(length)
                })
                .buffer_unordered(4)
                .try_collect()
                .await?;
            let read: u64 = lengths.iter().sum();
            ensure!(read == self.bytes, "a single transfer gave {read} of {} bytes", self.bytes);
            Ok(began.elapsed().as_secs_f64())
        })
    }
}

async fn cached_bytes(client: &mut NodeClient<Channel>) -> Result<u64> {
    let status = client.status(StatusRequest {}).await?.into_inner();
    Ok(status.datasets.iter().filter(|dataset| dataset.uid == UID).map(|dataset| dataset.cached_bytes).sum())
}
