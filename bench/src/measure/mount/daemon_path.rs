//! An object that is not complete, where it is present: every read goes through the daemon.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::{MODES, Mode, client};
use crate::cluster::content::content;
use crate::measure::{Context, Outcome};
use crate::mounted::{Mounted, What, cpu_seconds, drop_caches, folder_source};
use crate::report::{Required, Row, Unit};
use crate::sample::Sample;

pub const NAME: &str = "daemon-path";
pub const HOW: &str = "\
`forebay mount` of one file of which the first 1 GiB was read once and the last 256 MiB never, so that it stays in `partial/`; what is measured is the first 1 GiB, with the
kernel's caches dropped before each run. CPU time is that of the mount's process and of the reader, without the kernel's own threads. Then one thread opens the file, reads 4 KiB and
closes it, a million times; the process holds the cache node too, whose memory is bounded by `memoryBytes`, so only its growth over the last nine tenths is judged here.";

const REST: u64 = 256 << 20;
const RANDOM_READS: usize = 40_000;
/// What counts as no growth: less than an allocator's scatter.
const GROWTH_BYTES: f64 = (4 << 20) as f64;
const GIB: f64 = (1 << 30) as f64;

pub async fn measure(context: &Context) -> Result<Outcome> {
    let length: u64 = if context.quick { 256 << 20 } else { 1 << 30 };
    let source = context.folder.part("source")?;
    std::fs::write(source.path().join("object"), content(1, (length + REST) as usize))?;
    let mut rows = Vec::new();
    for mode in MODES {
        let from = folder_source(source.path());
        let what = What::cold(&from, mode.options);
        let mounted = Mounted::start(&context.programs, context.folder.part("mount")?, what).await?;
        let run = Run { context, mode, mounted: &mounted, path: &mounted.tree().join("object"), length };
        client::sequential(&[run.path.to_owned()], length, 1, false)?;
        rows.extend(run.sequential()?);
        for (what, jobs, least) in [("1 job", 1, 40e3), ("4 jobs", 4, 120e3)] {
            let ours = run.cold(|| client::random(run.path, length, jobs, RANDOM_READS))?;
            rows.push(run.row(
                &format!("4 KiB random, {what}"),
                Unit::ObjectsPerSecond,
                ours,
                Required::AtLeast(least),
            ));
        }
        rows.extend(run.cycles()?);
        ensure!(mounted.complete_objects()?.is_empty(), "the object became complete: the daemon was not in the way");
    }
    Ok(Outcome::Rows(rows))
}

struct Run<'a> {
    context: &'a Context,
    mode: &'a Mode,
    mounted: &'a Mounted,
    path: &'a Path,
    length: u64,
}

impl Run<'_> {
    fn cold(&self, measure: impl Fn() -> Result<f64>) -> Result<Sample> {
        let once = |_| {
            drop_caches()?;
            measure()
        };
        let runs = (0..self.context.runs.max(1)).map(once).collect::<Result<Vec<_>>>()?;
        Sample::new(runs).context("a run gave no number")
    }

    fn row(&self, what: &str, unit: Unit, ours: Sample, required: Required) -> Row {
        Row { what: format!("{}: present, not complete: {what}", self.mode.name), unit, ours, limit: None, required }
    }

    fn sequential(&self) -> Result<[Row; 2]> {
        let cpu = || anyhow::Ok(self.mounted.cpu_seconds()? + cpu_seconds(std::process::id())?);
        let file = [self.path.to_owned()];
        let spent = std::cell::RefCell::new(Vec::new());
        let rate = self.cold(|| {
            let before = cpu()?;
            let rate = client::sequential(&file, self.length, 1, false)?;
            spent.borrow_mut().push((cpu()? - before) * GIB / self.length as f64);
            Ok(rate)
        })?;
        let spent = Sample::new(spent.into_inner()).context("a run took no CPU time")?;
        Ok([
            self.row("sequential, buffered", Unit::BytesPerSecond, rate, Required::AtLeast(3.0 * GIB)),
            self.row("CPU time per GiB of it", Unit::Seconds, spent, Required::MedianAtMost(0.5)),
        ])
    }

    fn cycles(&self) -> Result<[Row; 2]> {
        let count = if self.context.quick { 100_000 } else { 1_000_000 };
        client::cycles(self.path, self.length, count / 10)?;
        let before = self.mounted.resident_bytes()?;
        client::cycles(self.path, self.length, count - count / 10)?;
        let after = self.mounted.resident_bytes()?;
        let one = |bytes: f64| Sample::one(bytes).context("no number");
        let growth = one((after - before).max(0.0))?;
        let what = format!("memory after {count} opens, cache node included");
        Ok([
            self.row(&what, Unit::Bytes, one(after)?, Required::Nothing),
            self.row("its growth in the last nine tenths", Unit::Bytes, growth, Required::AtMost(GROWTH_BYTES)),
        ])
    }
}
