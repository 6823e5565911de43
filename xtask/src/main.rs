//! The project's own commands: `cargo xtask cluster | test | demo | codegen`.

mod cluster;
mod codegen;
mod demo;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Forebay's development commands")]
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
        Task::Demo { keep } => demo::run(keep),
        Task::Codegen => codegen::run(),
    }
}
