//! The project's own commands: `cargo xtask test | bench | oldkernel | fuzz | soak | cluster | demo | codegen`.

mod bench;
mod cluster;
mod codegen;
mod demo;
mod fuzz;
mod old_kernel;
mod soak;
mod test;
mod watch;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

const EXAMPLES: &str = "Examples:
  What CI runs:
    cargo xtask test
  Only what has `eviction` in its name, without the cluster:
    cargo xtask test --no-cluster eviction
  Figures beside their limits, into docs/benchmarks.md:
    cargo xtask bench cache
    cargo xtask bench cache --quick --only everywhere
    cargo xtask bench mount
  What kernels before 6.9 do:
    cargo xtask oldkernel
  An hour of fuzzing of one target:
    cargo xtask fuzz --seconds 3600 catalog
  A night of random faults:
    cargo xtask soak --minutes 480";

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Forebay's development commands", after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Bring a local test cluster up or down, or say how it is
    #[command(subcommand)]
    Cluster(cluster::Action),
    /// Formatting, lints, and all tests, those on a real cluster included
    Test(test::Test),
    /// Figures of the cache nodes and of the mount beside the limits of this machine
    #[command(subcommand)]
    Bench(bench::Bench),
    /// The tests of mode Fuse on Debian 12's own kernel 6.1, in a virtual machine
    #[command(name = "oldkernel")]
    OldKernel(old_kernel::OldKernelTests),
    /// Any bytes for everything that reads bytes of others
    Fuzz(fuzz::Fuzz),
    /// Random faults on real cache nodes while readers compare every byte
    Soak(soak::Soak),
    /// Everything on show: installs, builds, starts a cluster, loads a real data set, trains on both nodes
    Demo {
        /// Leave the cluster up and say how to use it
        #[arg(long)]
        keep: bool,
    },
    /// Write the generated files that are checked in: the CRDs' YAML (crds/yaml, the chart) and docs/api.md
    Codegen,
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain of causes says where it went wrong; a stack trace would bury it.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Cluster(action) => action.run(),
        Task::Test(test) => test.run(),
        Task::Bench(bench) => bench.run(),
        Task::OldKernel(tests) => tests.run(),
        Task::Fuzz(fuzz) => fuzz.run(),
        Task::Soak(soak) => soak.run(),
        Task::Demo { keep } => demo::run(keep),
        Task::Codegen => codegen::run(),
    }
}
