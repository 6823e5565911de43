//! The command line of `forebay-bench`, which `cargo xtask bench` and `cargo xtask soak` call.

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use forebay_e2e::paths;

use crate::machine::{self, Machine};
use crate::measure::{CACHE, Context, MOUNT, Outcome, Page};
use crate::programs::Programs;
use crate::results::Saved;
use crate::run_folder::{self, RunFolder};
use crate::{report, results, soak};

/// How often each thing is measured.
const RUNS: usize = 5;
const QUICK_RUNS: usize = 2;

/// Measures, and endurance of the cache nodes.
#[derive(Debug, Parser)]
#[command(name = "forebay-bench", about = "Measures Forebay's cache nodes and its mount, or breaks nodes at random")]
pub struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Measure the cache nodes and write docs/benchmarks.md
    Cache(Measure),
    /// Measure the mount and write docs/benchmarks-mount.md
    Mount(Measure),
    /// Random faults on real nodes while readers compare every byte
    Soak(soak::Options),
}

/// What to measure, and how often.
#[derive(Clone, Debug, Args)]
pub struct Measure {
    /// Only these; may be given several times
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
    /// Two runs instead of five, with less data: the figures are printed and not kept
    #[arg(long)]
    pub quick: bool,
}

impl Arguments {
    /// Does it.
    pub async fn run(self) -> Result<()> {
        match self.task {
            Task::Cache(cache) => cache.run(&CACHE).await,
            Task::Mount(mount) => mount.run(&MOUNT).await,
            Task::Soak(options) => {
                let passed = soak::run(&options).await?;
                println!("{passed}");
                Ok(())
            }
        }
    }
}

impl Measure {
    async fn run(self, page: &Page) -> Result<()> {
        let names: Vec<_> = page.measurements.iter().map(|measurement| measurement.name).collect();
        for name in &self.only {
            ensure!(names.contains(&name.as_str()), "there is no measurement {name:?}; there are {}", names.join(", "));
        }
        let programs = Programs::beside_this()?;
        let passing = passing(programs.optimised(), self.quick);
        if let Some(why) = passing {
            eprintln!("{why}: the figures are printed and not kept");
        }
        run_folder::sweep();
        let (machine, commit) = (Machine::this()?, machine::commit(&paths::repository()));
        let runs = if self.quick { QUICK_RUNS } else { RUNS };
        let context = Context { programs, runs, quick: self.quick, folder: RunFolder::new()? };
        let mut failed = Vec::new();
        for measurement in page.measurements {
            if !self.only.is_empty() && !self.only.iter().any(|name| name == measurement.name) {
                continue;
            }
            eprintln!("== {}", measurement.name);
            let (rows, not_built) = match (measurement.run)(&context).await {
                Ok(Outcome::Rows(rows)) => (rows, None),
                Ok(Outcome::NotBuilt(what)) => (Vec::new(), Some(what)),
                // The others may well work.
                Err(error) => {
                    eprintln!("{}: {error:#}", measurement.name);
                    failed.push(measurement.name);
                    continue;
                }
            };
            match &not_built {
                Some(what) => println!("{}: not measured, {what}\n", measurement.name),
                None => println!("{}", report::table(&rows)),
            }
            if passing.is_none() {
                let date = jiff::Zoned::now().strftime("%Y-%m-%d").to_string();
                let saved = Saved { commit: commit.clone(), date, runs, machine: machine.clone(), rows, not_built };
                results::save(measurement.name, &saved)?;
            }
        }
        let missing: Vec<_> = results::missing(page, &machine).collect();
        if passing.is_none() && missing.is_empty() {
            let page = results::write_page(page, &machine).context("writing the page of figures")?;
            eprintln!("written: {}", page.display());
        } else if passing.is_none() {
            let (file, missing) = (page.file, missing.join(", "));
            eprintln!(
                "{file} is left as it was: on this machine and in this checkout there are no figures yet of {missing}; measure these too"
            );
        }
        if !failed.is_empty() {
            bail!("these measurements failed, see above: {}", failed.join(", "));
        }
        Ok(())
    }
}

/// Why figures are not to replace those that were kept.
fn passing(optimised: bool, quick: bool) -> Option<&'static str> {
    match (optimised, quick) {
        (false, _) => Some("this is a development build, which says nothing"),
        (true, true) => Some("this is a quick run"),
        (true, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_full_run_of_a_release_build_is_kept() {
        assert_eq!(passing(true, false), None);
        assert!(passing(true, true).is_some_and(|why| why.contains("quick")));
        assert!(passing(false, false).is_some_and(|why| why.contains("development")));
        assert!(passing(false, true).is_some());
    }
}
