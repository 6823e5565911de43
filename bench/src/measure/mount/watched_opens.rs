//! What it costs that opens are watched now and then, and how near the hit ratio that comes of it is to the exact one.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::client;
use crate::cluster::content::{Random, content, free_address};
use crate::measure::{Context, Outcome};
use crate::mounted::{Mounted, What, folder_source};
use crate::report::{Limit, Required, Row, Unit};
use crate::sample::{Sample, in_turn};
use crate::wait::wait_for;

pub const NAME: &str = "watched-opens";
pub const HOW: &str = "\
`forebay mount` in mode Kernel of files of 64 KiB, twice over the same source: with `--watch-opens 100` every open is seen, with 3, the default, those of a second in 33. One thread
opens, reads and closes 2,000 complete files again and again, watched all the time, and not at all; the average is that of 3 % of the one and 97 % of the other. The hit ratio is by bytes, from the
node's metrics, while a reader opens a file that is cached nine times of ten, 500 files a second for 90 s, in both mounts in turn: with all opens seen it is the exact one.";

const FILES: u64 = 2_000;
const COLD_FILES: u64 = 5_000;
const FILE_BYTES: usize = 64 << 10;
/// The default.
const PERCENT: f64 = 3.0;
/// Opens of one that was never read before: one in so many.
const COLD_EVERY: usize = 10;
const PER_SECOND: u32 = 500;
const PASSES: usize = 10;
/// Opens are told in windows of a second, and what the daemon served once a second.
const REPORTS: Duration = Duration::from_millis(2500);

pub async fn measure(context: &Context) -> Result<Outcome> {
    let source = context.folder.part("source")?;
    for (name, count) in [("hot", FILES), ("cold", COLD_FILES)] {
        std::fs::create_dir(source.path().join(name))?;
        for (number, path) in (0..count).zip(paths(source.path(), name, count)) {
            std::fs::write(path, content(number, FILE_BYTES))?;
        }
    }
    let source = folder_source(source.path());
    let mut rows = vec![cost(context, &source).await?];
    rows.push(hit_ratio(context, &source).await?);
    Ok(Outcome::Rows(rows))
}

async fn mount(context: &Context, source: &str, percent: &str, metrics: &str) -> Result<Mounted> {
    let options = ["--mount-mode", "kernel", "--watch-opens", percent, "--metrics", metrics];
    let mounted =
        Mounted::start(&context.programs, context.folder.part("mount")?, What::cold(source, &options)).await?;
    // The first opens make them complete, the second find them so.
    let hot = paths(&mounted.tree(), "hot", FILES);
    client::open_read_close(&hot)?;
    crate::mounted::drop_caches()?;
    client::open_read_close(&hot)?;
    Ok(mounted)
}

async fn cost(context: &Context, source: &str) -> Result<Row> {
    let addresses = (free_address([127, 0, 0, 1])?.to_string(), free_address([127, 0, 0, 1])?.to_string());
    let watched = mount(context, source, "100", &addresses.0).await?;
    let alone = mount(context, source, "0", &addresses.1).await?;
    let run = |mounted: &Mounted| {
        let files = paths(&mounted.tree(), "hot", FILES);
        let rates = (0..PASSES).map(|_| client::open_read_close(&files)).collect::<Result<Vec<_>>>()?;
        Ok(rates.iter().sum::<f64>() / PASSES as f64)
    };
    let (watched, alone) = in_turn(context.runs, async || run(&watched), async || run(&alone)).await?;
    let part = PERCENT / 100.0;
    let average = watched.with(&alone, |on, off| 1.0 / (part / on + (1.0 - part) / off));
    Ok(Row {
        what: "Kernel: open, read, close 64 KiB, opens watched 3 % of the time".to_owned(),
        unit: Unit::ObjectsPerSecond,
        ours: average.context("a run gave no number")?,
        limit: Some(Limit { what: "never watched".to_owned(), sample: alone }),
        required: Required::RatioAtLeast(0.97),
    })
}

async fn hit_ratio(context: &Context, source: &str) -> Result<Row> {
    let (exact_address, address) =
        (free_address([127, 0, 0, 1])?.to_string(), free_address([127, 0, 0, 1])?.to_string());
    let exact = mount(context, source, "100", &exact_address).await?;
    let sampled = mount(context, source, "3", &address).await?;
    let before = (Reads::of(&exact_address).await?, Reads::of(&address).await?);
    let seconds = if context.quick { 40 } else { 90 };
    let trees = [exact.tree(), sampled.tree()];
    tokio::task::spawn_blocking(move || read_mix(&trees, Duration::from_secs(seconds))).await??;
    let after = (Reads::at_rest(&exact_address).await?, Reads::at_rest(&address).await?);
    let points = (after.1.hit_ratio(&before.1) - after.0.hit_ratio(&before.0)).abs();
    Ok(Row {
        what: "Kernel: distance of the hit ratio from the exact one, opens watched 3 % of the time".to_owned(),
        unit: Unit::Share,
        ours: Sample::one(points).context("nothing was read")?,
        limit: None,
        required: Required::AtMost(0.02),
    })
}

/// Opens files of both trees, nine cached ones and one that is not in turn, at a steady pace.
fn read_mix(trees: &[PathBuf], time: Duration) -> Result<()> {
    let (began, mut random, mut count) = (Instant::now(), Random::new(1), 0_u32);
    while began.elapsed() < time {
        let cold = count as usize / COLD_EVERY;
        let number = random.below(FILES as usize);
        for tree in trees {
            let is_cold = (count as usize).is_multiple_of(COLD_EVERY) && cold < COLD_FILES as usize;
            let path = if is_cold { file(tree, "cold", cold as u64) } else { file(tree, "hot", number as u64) };
            client::open_read_close(&[path])?;
        }
        count += 1;
        if let Some(early) = (Duration::from_secs(1) / PER_SECOND * count).checked_sub(began.elapsed()) {
            std::thread::sleep(early);
        }
    }
    Ok(())
}

/// Bytes that readers got, as the node counts them.
#[derive(Clone, Copy, PartialEq)]
struct Reads {
    hit: u64,
    all: u64,
}

impl Reads {
    async fn of(address: &str) -> Result<Self> {
        let text = reqwest::get(format!("http://{address}/metrics")).await?.text().await?;
        let sum = |origin: &str| {
            let lines =
                text.lines().filter(|line| line.starts_with("forebay_read_bytes_total") && line.contains(origin));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>()
        };
        Ok(Self { hit: sum("origin=\"local\""), all: sum("") })
    }

    /// Once the last window and the daemon's last report have been told: when nothing has been added for longer than either takes.
    async fn at_rest(address: &str) -> Result<Self> {
        let mut last = (Self::of(address).await?, Instant::now());
        wait_for("the last reads to be told", Duration::from_secs(60), async || {
            let reads = Self::of(address).await?;
            if reads != last.0 {
                last = (reads, Instant::now());
            }
            Ok((last.1.elapsed() > REPORTS).then_some(reads))
        })
        .await
    }

    fn hit_ratio(&self, before: &Self) -> f64 {
        (self.hit - before.hit) as f64 / (self.all - before.all).max(1) as f64
    }
}

fn file(root: &Path, name: &str, number: u64) -> PathBuf {
    root.join(format!("{name}/{number:06}"))
}

fn paths(root: &Path, name: &str, count: u64) -> Vec<PathBuf> {
    (0..count).map(|number| file(root, name, number)).collect()
}
