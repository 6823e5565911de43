//! `cargo xtask bench`: builds for release what is measured and what measures it, and runs it.

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use forebay_e2e::command::{command, run_shown, text};
use forebay_e2e::{paths, setup};

const EXAMPLES: &str = "Examples:
  Everything, five runs each, into docs/benchmarks.md:
    cargo xtask bench cache
  One measurement; the page keeps the figures of the others:
    cargo xtask bench cache --only preload
  A look at it, two runs, less data; printed only, the page stays as it is:
    cargo xtask bench cache --quick --only preload

Measurements: restart, source-bytes, everywhere, transfer, memory, preload, small-files, hit-ratios. Files are kept in /dev/shm, at most
6 GiB at a time, and are gone at the end, as are processes and network namespaces. Measure on a machine that does nothing else.";

const MOUNT_EXAMPLES: &str = "Examples:
  Everything, five runs each, into docs/benchmarks-mount.md:
    cargo xtask bench mount
  One measurement; the page keeps the figures of the others:
    cargo xtask bench mount --only listing
  A look at it, two runs, less data; printed only, the page stays as it is:
    cargo xtask bench mount --quick --only listing

Measurements: large, small, listing, daemon-path, cold-read, watched-opens. Needs root, for mounting and for dropping the kernel's caches (of the whole machine).
Files are kept in /dev/shm, at most 6 GiB at a time, and are gone at the end, as are mounts and processes. Measure on a machine that does nothing else.";

#[derive(Subcommand)]
pub enum Bench {
    /// The cache nodes: restart, transfers, memory, small files, placement, eviction
    #[command(after_help = EXAMPLES)]
    Cache(Measure),
    /// The mount: reads, opens, listings, beside the same on the files themselves
    #[command(after_help = MOUNT_EXAMPLES)]
    Mount(Measure),
}

#[derive(Args)]
pub struct Measure {
    /// Only these measurements; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Two runs instead of five, with less data: the figures are printed and not kept
    #[arg(long)]
    quick: bool,
    /// Measure a development build, for work on the measurements: the figures are not kept
    #[arg(long)]
    dev: bool,
}

impl Bench {
    pub fn run(self) -> Result<()> {
        let (task, measure) = match self {
            Self::Cache(measure) => ("cache", measure),
            Self::Mount(measure) => ("mount", measure),
        };
        let mut arguments = vec![task.to_owned()];
        for name in measure.only {
            arguments.extend(["--only".to_owned(), name]);
        }
        if measure.quick {
            arguments.push("--quick".to_owned());
        }
        run(measure.dev, &arguments)
    }
}

/// Builds `forebay-bench` and the programs that it runs, and runs it.
pub fn run(dev: bool, arguments: &[String]) -> Result<()> {
    setup::ensure_packages(&["iproute2", "util-linux"])?;
    setup::ensure_programs()?;
    let repository = paths::repository();
    let mut cargo = command("cargo", ["build", "--bins", "--examples"]);
    cargo
        .args(["--package=forebay-cache-node", "--package=forebay-cli", "--package=forebay-bench"])
        .current_dir(&repository);
    if !dev {
        cargo.arg("--release");
    }
    run_shown(&mut cargo).context("building what is measured and what measures it")?;
    let version = text(command("rustc", ["-vV"]).current_dir(&repository))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.with_context(|| format!("rustc -vV names no host: {version}"))?;
    let folder = paths::target().join(host).join(if dev { "debug" } else { "release" });
    run_shown(&mut command(folder.join("forebay-bench"), arguments))
}
