//! How many bytes cross the line to the source when several cold nodes read everything at once.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;

use super::{Context, Outcome};
use crate::cluster::content::{content, free_address};
use crate::cluster::counting_proxy::CountingProxy;
use crate::cluster::node::{Node, dataset};
use crate::cluster::s3::S3Server;
use crate::report::{Limit, Required, Row, Unit};
use crate::sample::Sample;

pub const NAME: &str = "source-bytes";
pub const HOW: &str = "\
N cold nodes on loopback; on each a reader reads every object of the dataset, all at once. The limit is the dataset's size; ours is what has
come through a proxy in front of the S3 server: bodies, headers and listings.";

const LARGE_BYTES: usize = 9 << 20;
const SMALL_BYTES: usize = 64 << 10;

pub async fn measure(context: &Context) -> Result<Outcome> {
    let large = if context.quick { 6 } else { 20 };
    let server = S3Server::start(free_address([127, 0, 0, 1])?, context.folder.part("s3")?).await?;
    let mut total = 0;
    for number in 0..large {
        let bytes = content(number, LARGE_BYTES);
        total += bytes.len();
        server.put(&format!("large/{number}"), &bytes)?;
    }
    for number in 0..200 {
        let bytes = content(1000 + number, SMALL_BYTES);
        total += bytes.len();
        server.put(&format!("small/{number}"), &bytes)?;
    }
    let mut rows = Vec::new();
    for nodes in [2_u8, 4, 8] {
        let mut runs = Vec::new();
        for _ in 0..context.runs.div_ceil(2) {
            runs.push(read_all_at_once(context, &server, nodes, total).await? as f64);
        }
        let limit = Sample::new(vec![total as f64; runs.len()]).context("no runs")?;
        rows.push(Row {
            what: format!("bytes from the source, {nodes} nodes"),
            unit: Unit::Bytes,
            ours: Sample::new(runs).context("no runs")?,
            limit: Some(Limit { what: "the dataset".to_owned(), sample: limit }),
            required: Required::RatioAtMost(1.01),
        });
    }
    Ok(Outcome::Rows(rows))
}

async fn read_all_at_once(context: &Context, server: &S3Server, count: u8, total: usize) -> Result<u64> {
    let proxy = CountingProxy::start(server.address).await?;
    let addresses: Vec<_> = (0..count).map(|number| free_address([127, 0, 0, 2 + number])).collect::<Result<_>>()?;
    let program = context.programs.node()?;
    let mut nodes = Vec::new();
    for address in &addresses {
        let datasets = vec![dataset(S3Server::source_at(proxy.address))];
        nodes.push(Node::new(&program, context.folder.part("node")?, *address, datasets).with_members(&addresses));
    }
    try_join_all(nodes.iter_mut().map(Node::start)).await?;
    try_join_all(nodes.iter().map(|node| node.wait_catalog(Duration::from_mins(1)))).await?;
    let readers = try_join_all(nodes.iter().map(Node::reader)).await?;
    let read = try_join_all(readers.iter().map(async |reader| {
        let mut read = 0;
        for id in reader.files().values() {
            read += reader.read(id, 4 << 20).await?.len();
        }
        anyhow::Ok(read)
    }))
    .await?;
    ensure!(read.iter().all(|read| *read == total), "readers read {read:?} of {total} bytes");
    Ok(proxy.bytes())
}
