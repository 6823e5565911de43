//! What a pod's mount gives its readers, beside the same files read where they lie. Each measurement is made in each mount mode.

mod client;
pub mod cold_read;
pub mod daemon_path;
pub mod large;
pub mod listing;
pub mod small;
pub mod watched_opens;

use std::path::PathBuf;

use anyhow::Result;

use super::Context;
use crate::mounted::drop_caches;
use crate::report::{Limit, Required, Row, Unit};
use crate::sample::in_turn;

/// How a tree is mounted, and what is required of that way (the table in `docs/mount.md`'s issue).
struct Mode {
    /// As the page calls it.
    name: &'static str,
    /// Options of `forebay mount`.
    options: &'static [&'static str],
    small_cold: Required,
    small_repeated: Required,
    stat: Required,
    listing: Required,
}

/// All modes that there are.
const MODES: &[Mode] = &[
    Mode {
        name: "Kernel",
        options: &["--mount-mode", "kernel"],
        small_cold: Required::RatioAtLeast(0.35),
        small_repeated: Required::RatioAtLeast(0.7),
        stat: Required::AtLeast(70e3),
        listing: Required::RatioAtMost(10.0),
    },
    Mode {
        name: "Fuse",
        options: &["--mount-mode", "fuse"],
        small_cold: Required::AtLeast(10e3),
        small_repeated: Required::AtLeast(10e3),
        stat: Required::AtLeast(30e3),
        listing: Required::RatioAtMost(4.0),
    },
];

/// A figure of a mounted tree beside the same of the files themselves.
struct Compared<'a> {
    what: String,
    unit: Unit,
    required: Required,
    /// Have the kernel forget everything before each run.
    cold: bool,
    /// The paths, in the tree and natively.
    paths: (&'a [PathBuf], &'a [PathBuf]),
}

impl Compared<'_> {
    async fn row(self, context: &Context, measure: impl Fn(&[PathBuf]) -> Result<f64>) -> Result<Row> {
        let run = |paths: &[PathBuf]| {
            if self.cold {
                drop_caches()?;
            }
            measure(paths)
        };
        let (ours, native) = self.paths;
        let (ours, sample) = in_turn(context.runs, async || run(ours), async || run(native)).await?;
        let limit = Some(Limit { what: "native".to_owned(), sample });
        Ok(Row { what: self.what, unit: self.unit, ours, limit, required: self.required })
    }
}
