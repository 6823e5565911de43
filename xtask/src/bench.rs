//! `cargo xtask bench`: builds for release what is measured and what measures it, and runs it.

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use forebay_e2e::command::{command, run_shown, text};
use forebay_e2e::{paths, setup};

const EXAMPLES: &str = "Examples:
  Everything, five runs each, into docs/benchmarks.md:
    cargo xtask bench cache
  One measurement, two runs, less data; the page keeps the figures of the others:
    cargo xtask bench cache --quick --only preload

Measurements: restart, source-bytes, everywhere, transfer, memory, preload, small-files, hit-ratios. Files are kept in /dev/shm, at most
6 GiB at a time, and are gone at the end, as are processes and network namespaces. Measure on a machine that does nothing else.";

#[derive(Subcommand)]
pub enum Bench {
    /// The cache nodes: restart, transfers, memory, small files, placement, eviction
    Cache(Cache),
}

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Cache {
    /// Only these measurements; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Two runs instead of five, with less data
    #[arg(long)]
    quick: bool,
    /// Measure a development build, for work on the measurements: the figures are not kept
    #[arg(long)]
    dev: bool,
}

impl Bench {
    pub fn run(self) -> Result<()> {
        let Self::Cache(cache) = self;
        let mut arguments = vec!["cache".to_owned()];
        for name in cache.only {
            arguments.extend(["--only".to_owned(), name]);
        }
        if cache.quick {
            arguments.push("--quick".to_owned());
        }
        run(cache.dev, &arguments)
    }
}

/// Builds `forebay-bench` and the cache node, and runs the former.
pub fn run(dev: bool, arguments: &[String]) -> Result<()> {
    setup::ensure_packages(&["iproute2", "util-linux"])?;
    setup::ensure_programs()?;
    let repository = paths::repository();
    let mut cargo = command("cargo", ["build", "--package", "forebay-cache-node", "--package", "forebay-bench"]);
    cargo.args(["--bins", "--examples"]).current_dir(&repository);
    if !dev {
        cargo.arg("--release");
    }
    run_shown(&mut cargo).context("building the cache node and what measures it")?;
    let version = text(command("rustc", ["-vV"]).current_dir(&repository))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.with_context(|| format!("rustc -vV names no host: {version}"))?;
    let folder = paths::target().join(host).join(if dev { "debug" } else { "release" });
    run_shown(&mut command(folder.join("forebay-bench"), arguments))
}
