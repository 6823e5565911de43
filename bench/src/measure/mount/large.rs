//! Large complete objects, read in order and at random.

use std::path::PathBuf;

use anyhow::Result;

use super::{Compared, MODES, client};
use crate::cluster::content::content;
use crate::measure::{Context, Outcome};
use crate::mounted::{Mounted, What, folder_source};
use crate::report::{Required, Unit};

pub const NAME: &str = "large";
pub const HOW: &str = "\
`forebay mount` of two files of 1 GiB, preloaded; the limit is the files in the cache that they are read from, opened there (not the source's: a second copy of the same bytes
is up to 25 % faster or slower, by where its pages lie in memory). Sequential reads are 1 MiB each, of the first GiB four times, each job another file; random reads are 4 KiB each, 200,000
a job, all jobs one file; mmap is a byte of 200,000 random pages. The kernel's caches are dropped before each run.";

const FILES: u64 = 2;
const PASSES: usize = 4;
const RANDOM_READS: usize = 200_000;

pub async fn measure(context: &Context) -> Result<Outcome> {
    let length = if context.quick { 256 << 20 } else { 1 << 30 };
    let source = context.folder.part("source")?;
    // Of different sizes, so that the cache's files can be told from each other.
    let size = |number| length + number * 4096;
    for number in 0..FILES {
        std::fs::write(source.path().join(number.to_string()), content(number, size(number) as usize))?;
    }
    let mut rows = Vec::new();
    for mode in MODES {
        let from = folder_source(source.path());
        let what = What::preloaded(&from, mode.options);
        let mounted = Mounted::start(&context.programs, context.folder.part("mount")?, what).await?;
        let tree: Vec<PathBuf> = (0..FILES).map(|number| mounted.tree().join(number.to_string())).collect();
        let native = (0..FILES).map(|number| mounted.complete_object(size(number))).collect::<Result<Vec<_>>>()?;
        for direct in [false, true] {
            for jobs in [1, 2] {
                let compared = Compared {
                    what: format!(
                        "{}: sequential, {}, {jobs} {}",
                        mode.name,
                        if direct { "O_DIRECT" } else { "buffered" },
                        if jobs == 1 { "job" } else { "jobs" }
                    ),
                    unit: Unit::BytesPerSecond,
                    required: Required::RatioAtLeast(0.95),
                    cold: true,
                    paths: (&tree[..jobs], &native[..jobs]),
                };
                rows.push(compared.row(context, |files| client::sequential(files, length, PASSES, direct)).await?);
            }
        }
        let compared = |what: &str| Compared {
            what: format!("{}: 4 KiB random, {what}", mode.name),
            unit: Unit::ObjectsPerSecond,
            required: Required::RatioAtLeast(0.85),
            cold: true,
            paths: (&tree[..1], &native[..1]),
        };
        for (what, jobs) in [("1 job", 1), ("4 jobs", 4)] {
            rows.push(
                compared(what).row(context, |files| client::random(&files[0], length, jobs, RANDOM_READS)).await?,
            );
        }
        rows.push(compared("mmap").row(context, |files| client::mapped(&files[0], length, RANDOM_READS)).await?);
    }
    Ok(Outcome::Rows(rows))
}
