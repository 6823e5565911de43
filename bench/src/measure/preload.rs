//! How fast one node loads large objects, beside a plain client and the disk.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use forebay_protocol::config::PreloadConfig;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::aws::AmazonS3;
use object_store::{ObjectStore as _, ObjectStoreExt as _};

use super::{Context, Outcome};
use crate::cluster::content::{content, free_address};
use crate::cluster::node::{Node, dataset};
use crate::cluster::s3::S3Server;
use crate::report::{Limit, Required, Row, Unit};
use crate::sample::in_turn;

pub const NAME: &str = "preload";
pub const HOW: &str = "\
One node, from the start of its process until a preload of 1 GiB in objects of 64 MiB is verified, on disk and indexed. Beside it: object_store
lists the same bucket of the same S3 server and downloads it in ranges of 4 MiB, 16 at once, into files on the same disk; and one thread writes
as many bytes to that disk and syncs them.";

const OBJECT_BYTES: usize = 64 << 20;
const RANGE_BYTES: u64 = 4 << 20;
const AT_ONCE: usize = 16;

pub async fn measure(context: &Context) -> Result<Outcome> {
    let objects = if context.quick { 4 } else { 16 };
    let total = objects * OBJECT_BYTES as u64;
    let server = S3Server::start(free_address([127, 0, 0, 1])?, context.folder.part("s3")?).await?;
    for number in 0..objects {
        server.put(&format!("f{number}"), &content(number, OBJECT_BYTES))?;
    }
    let ours = async || ours(context, &server, total).await;
    let client = server.client()?;
    let (node, plain) = in_turn(context.runs, ours, async || download(context, &client, total).await).await?;
    let (again, disk) = in_turn(context.runs, ours, async || write(context.folder.part("disk")?.path(), total)).await?;
    let row = |ours, what: &str, sample, required| Row {
        what: "preload of large objects, one node".to_owned(),
        unit: Unit::BytesPerSecond,
        ours,
        limit: Some(Limit { what: what.to_owned(), sample }),
        required,
    };
    Ok(Outcome::Rows(vec![
        row(node, "object_store", plain, Required::RatioAtLeast(0.9)),
        row(again, "disk", disk, Required::Nothing),
    ]))
}

async fn ours(context: &Context, server: &S3Server, total: u64) -> Result<f64> {
    let mut data = dataset(S3Server::source_at(server.address));
    data.preload = Some(PreloadConfig::default());
    let program = context.programs.node()?;
    let mut node = Node::new(&program, context.folder.part("node")?, free_address([127, 0, 0, 2])?, vec![data]);
    let began = Instant::now();
    node.start().await?;
    let done = |dataset: &forebay_protocol::node::DatasetStatus| {
        let preload = dataset.preload.as_ref()?;
        (!preload.running && preload.loaded_bytes == total && dataset.cached_bytes == total).then_some(())
    };
    node.wait_dataset("the preload", Duration::from_mins(5), done).await?;
    Ok(total as f64 / began.elapsed().as_secs_f64())
}

async fn download(context: &Context, client: &AmazonS3, total: u64) -> Result<f64> {
    let folder = context.folder.part("plain")?;
    let began = Instant::now();
    let listed: Vec<_> = client.list(None).try_collect().await?;
    let mut ranges = Vec::new();
    for object in &listed {
        let path = folder.path().join(object.location.as_ref());
        let file = std::sync::Arc::new(std::fs::File::create(path)?);
        for start in (0..object.size).step_by(RANGE_BYTES as usize) {
            ranges.push((
                object.location.clone(),
                start..(start + RANGE_BYTES).min(object.size),
                std::sync::Arc::clone(&file),
            ));
        }
    }
    let written: Vec<u64> = stream::iter(ranges)
        .map(async |(location, range, file)| {
            let bytes = client.get_range(&location, range.clone()).await?;
            tokio::task::spawn_blocking(move || {
                std::os::unix::fs::FileExt::write_all_at(&*file, &bytes, range.start)?;
                anyhow::Ok(bytes.len() as u64)
            })
            .await?
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    let written: u64 = written.iter().sum();
    let seconds = began.elapsed().as_secs_f64();
    ensure!(written == total, "the plain client got {written} of {total} bytes");
    Ok(total as f64 / seconds)
}

fn write(folder: &Path, total: u64) -> Result<f64> {
    let piece = content(7, RANGE_BYTES as usize);
    let began = Instant::now();
    let mut file = std::fs::File::create(folder.join("file")).context("writing to the disk")?;
    let mut left = total;
    while left > 0 {
        let length = (piece.len() as u64).min(left);
        file.write_all(piece.get(..length as usize).unwrap_or_default())?;
        left -= length;
    }
    file.sync_data()?;
    Ok(total as f64 / began.elapsed().as_secs_f64())
}
