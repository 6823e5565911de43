//! How long a store takes to open, and how much memory it has then, with an index of so many objects. Prints `key=value` lines.
//!
//! ```text
//! cargo run --release -p forebay-cache-node --example restart -- --objects 10000000 --kill
//! ```
//!
//! The index is made by a second process, which ends by itself, or with `--kill` is killed while it commits. There are no files behind the index:
//! opening does not look at them.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use forebay_cache_node::store::{DatasetSlot, ObjectRef, Store, fill_index};
use forebay_catalog::ObjectId;
use forebay_protocol::config::CHUNK_BYTES;
use forebay_protocol::layout::CacheLayout;

/// Objects that are committed after the last snapshot and before the process is killed, at least: `OBJECTS / REST`.
const REST: u64 = 4;

#[derive(Debug, Parser)]
struct Args {
    /// Objects in the index.
    #[arg(long, default_value_t = 1_000_000)]
    objects: u64,
    /// Chunks of each object.
    #[arg(long, default_value_t = 1)]
    chunks: u64,
    /// Kill the process that makes the index, instead of letting it end.
    #[arg(long)]
    kill: bool,
    /// The cache folder; a new one below the temporary folder if not given.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Make the index and leave it there.
    #[arg(long)]
    make_only: bool,
    /// What the second process does.
    #[arg(long, hide = true)]
    fill: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.fill {
        return fill(&args);
    }
    let made = args.folder.is_none().then(tempfile::tempdir).transpose()?;
    let folder = args.folder.clone().or(made.as_ref().map(|made| made.path().to_owned())).context("no folder")?;
    make(&args, &folder)?;
    if args.make_only {
        return Ok(());
    }
    let layout = CacheLayout::new(&folder);
    let bytes = size_of_folder(&layout)?;
    let before = resident()?;
    let (begun, cpu) = (Instant::now(), cpu_seconds()?);
    let store = Store::open(&layout, u64::MAX / 4, Arc::new(|_| ()), || ())?;
    let (opened, cpu) = (begun.elapsed(), cpu_seconds()? - cpu);
    let after = resident()?;
    let (first, last) = (object(&args, 0), object(&args, args.objects - 1));
    anyhow::ensure!(store.is_complete(&first.id), "the first object is not in the index");
    anyhow::ensure!(args.kill || store.is_complete(&last.id), "the last object is not in the index");
    let objects = store.used_bytes() / first.size;
    println!("open_seconds={:.3}", opened.as_secs_f64());
    println!("open_cpu_seconds={cpu:.3}");
    println!("objects={objects}");
    println!("chunks={}", objects * args.chunks);
    println!("index_bytes={bytes}");
    println!("rss_bytes={after}");
    println!("rss_bytes_per_object={:.1}", after.saturating_sub(before) as f64 / objects as f64);
    println!("killed={}", args.kill);
    Ok(())
}

/// Makes the index, in a process of its own.
fn make(args: &Args, folder: &std::path::Path) -> anyhow::Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--fill", "--objects", &args.objects.to_string(), "--chunks", &args.chunks.to_string()])
        .arg("--folder")
        .arg(folder)
        .args(args.kill.then_some("--kill"))
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    for line in lines {
        // It goes on committing until it is killed.
        if line? == "enough" && args.kill {
            child.kill()?;
            break;
        }
    }
    let status = child.wait()?;
    anyhow::ensure!(args.kill || status.success(), "making the index failed: {status}");
    Ok(())
}

fn fill(args: &Args) -> anyhow::Result<()> {
    let layout = CacheLayout::new(args.folder.as_ref().context("--folder is missing")?);
    let rest = args.objects / REST;
    fill_index(&layout, (0..args.objects - rest).map(|n| object(args, n)))?;
    // A store that has opened that writes it anew as soon as it commits something; so does a node.
    let store = Store::open(&layout, u64::MAX / 4, Arc::new(|_| ()), || ())?;
    store.dataset("restart")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(store.compact())?;
    runtime.block_on(store.close());
    drop(store);
    fill_index(&layout, (args.objects - rest..args.objects).map(|n| object(args, n)))?;
    println!("enough");
    if args.kill {
        fill_index(&layout, (args.objects..).map(|n| object(args, n)))?;
    }
    Ok(())
}

fn object(args: &Args, n: u64) -> ObjectRef {
    let size = if args.chunks == 1 { 4096 } else { args.chunks * CHUNK_BYTES };
    ObjectRef { id: ObjectId::new("restart", &n.to_le_bytes(), "etag", size), size, dataset: DatasetSlot(0) }
}

fn size_of_folder(layout: &CacheLayout) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(layout.index())? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

/// Processor time of all threads so far: what it takes however busy the machine is.
fn cpu_seconds() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // Behind the name in brackets: state, then ten other fields.
    let fields = stat.rsplit(')').next().context("no fields in stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}

/// Resident memory of this process in bytes.
fn resident() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.split_whitespace().nth(1).context("no figure in VmRSS")?.parse()?;
    Ok(kib << 10)
}
