//! What is measured: one module a measurement, each with how it is made (for the page) and a function that makes it.

mod everywhere;
mod hit_ratios;
mod memory;
mod mount;
mod preload;
mod restart;
mod small_files;
mod source_bytes;
mod transfer;

use anyhow::Result;
use futures::future::LocalBoxFuture;

use crate::programs::Programs;
use crate::report::Row;
use crate::run_folder::RunFolder;

/// What a measurement has to work with.
#[derive(Debug)]
pub struct Context {
    /// The programs to measure.
    pub programs: Programs,
    /// How often each thing is measured.
    pub runs: usize,
    /// Less data, for a look.
    pub quick: bool,
    /// For files, in memory; at most 6 GiB at a time.
    pub folder: RunFolder,
}

/// What came of a measurement.
#[derive(Debug)]
pub enum Outcome {
    /// Figures.
    Rows(Vec<Row>),
    /// What is to be measured is not there; says what.
    NotBuilt(String),
}

/// One measurement.
pub struct Measurement {
    /// What `--only` calls it.
    pub name: &'static str,
    /// How it is made, for the page.
    pub how: &'static str,
    /// Makes it.
    pub run: for<'a> fn(&'a Context) -> LocalBoxFuture<'a, Result<Outcome>>,
}

/// Measurements that are shown together. No two of any pages have one name.
pub struct Page {
    /// The file that shows them, in the repository.
    pub file: &'static str,
    /// What writes it.
    pub command: &'static str,
    /// What says what is required.
    pub promises: &'static str,
    /// All of them, in the order of the page.
    pub measurements: &'static [Measurement],
}

macro_rules! measurements {
    ($($($module:ident)::+),*) => {
        &[$(Measurement {
            name: $($module)::+::NAME,
            how: $($module)::+::HOW,
            run: |context| Box::pin($($module)::+::measure(context)),
        }),*]
    };
}

/// The cache nodes.
pub const CACHE: Page = Page {
    file: "docs/benchmarks.md",
    command: "cargo xtask bench cache",
    promises: "docs/cache.md",
    measurements: measurements!(restart, source_bytes, everywhere, transfer, memory, preload, small_files, hit_ratios),
};

/// The mount.
pub const MOUNT: Page = Page {
    file: "docs/benchmarks-mount.md",
    command: "cargo xtask bench mount",
    promises: "docs/mount.md",
    measurements: measurements!(
        mount::large,
        mount::small,
        mount::listing,
        mount::daemon_path,
        mount::cold_read,
        mount::watched_opens
    ),
};

/// The example that a measurement needs is not there.
fn missing(example: &str) -> Outcome {
    Outcome::NotBuilt(format!("`cache-node/examples/{example}.rs` is not built"))
}
