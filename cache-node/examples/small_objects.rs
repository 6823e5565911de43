//! How many objects of 4 KiB a store writes and reads in a second, one by one (256 at once) and in batches (8 at once). Prints `key=value` lines.
//!
//! ```text
//! cargo run --release -p forebay-cache-node --example small_objects -- --folder /dev/shm
//! ```

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use bytes::Bytes;
use clap::Parser;
use forebay_cache_node::store::{DatasetSlot, ObjectRef, Store};
use forebay_cache_node::units::ChunkIndex;
use forebay_catalog::ObjectId;
use forebay_protocol::layout::CacheLayout;

const BYTES: usize = 4096;

#[derive(Debug, Parser)]
struct Args {
    /// Objects of each run.
    #[arg(long, default_value_t = 100_000)]
    objects: u32,
    /// Where the cache folder is made.
    #[arg(long)]
    folder: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let folder = args.folder.clone().unwrap_or_else(std::env::temp_dir);
    for (batch, at_once) in [(1, 256), (64, 8), (256, 8)] {
        let scratch = tempfile::tempdir_in(&folder)?;
        let store = Store::open(&CacheLayout::new(scratch.path()), 1 << 40, Arc::new(|_| ()), || ())?;
        store.dataset("small")?;
        let begun = Instant::now();
        in_batches(args.objects, batch, at_once, |range| write(Arc::clone(&store), range)).await?;
        store.flush().await?;
        let written = begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        in_batches(args.objects, batch, at_once, |range| read(Arc::clone(&store), range)).await?;
        let read = begun.elapsed().as_secs_f64();
        let (written, read) = (f64::from(args.objects) / written, f64::from(args.objects) / read);
        println!("batch={batch} at_once={at_once} written_per_second={written:.0} read_per_second={read:.0}");
        store.close().await;
    }
    Ok(())
}

async fn write(store: Arc<Store>, range: Range<u32>) -> anyhow::Result<()> {
    let bytes = Bytes::from(vec![7; BYTES]);
    let crc = crc32c::crc32c(&bytes);
    if let [n] = range.clone().collect::<Vec<_>>()[..] {
        store.write_chunk(&object(n), ChunkIndex(0), bytes, crc).await?;
        return Ok(());
    }
    let results = store.write_small(range.map(|n| (object(n), bytes.clone(), crc)).collect()).await;
    Ok(results.into_iter().collect::<Result<(), _>>()?)
}

async fn read(store: Arc<Store>, range: Range<u32>) -> anyhow::Result<()> {
    if let [n] = range.clone().collect::<Vec<_>>()[..] {
        store.read_chunk(&object(n), ChunkIndex(0)).await?.context("an object is not there")?;
        return Ok(());
    }
    let read = store.read_small(range.map(object).collect()).await;
    anyhow::ensure!(read.iter().all(Option::is_some), "an object is not there");
    Ok(())
}

fn object(n: u32) -> ObjectRef {
    let size = BYTES as u64;
    ObjectRef { id: ObjectId::new("small", &n.to_le_bytes(), "etag", size), size, dataset: DatasetSlot(0) }
}

async fn in_batches<F: Future<Output = anyhow::Result<()>> + Send + 'static>(
    objects: u32,
    batch: usize,
    at_once: usize,
    run: impl Fn(Range<u32>) -> F,
) -> anyhow::Result<()> {
    let mut running = tokio::task::JoinSet::new();
    for first in (0..objects).step_by(batch) {
        if running.len() >= at_once
            && let Some(done) = running.join_next().await
        {
            done??;
        }
        running.spawn(run(first..(first + batch as u32).min(objects)));
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(())
}
