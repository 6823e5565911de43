//! `cargo xtask test`: formatting, lints, and all tests, those on a real cluster included.

use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Args;
use forebay_e2e::command::{command, run_shown};
use forebay_e2e::{paths, scenarios, setup};

#[derive(Args)]
pub struct Test {
    /// Leave out the tests on a real cluster
    #[arg(long)]
    no_cluster: bool,
    /// Leave the cluster of a failed run up for a look
    #[arg(long)]
    keep: bool,
    /// Only tests with one of these in their name
    filters: Vec<String>,
}

impl Test {
    pub fn run(self) -> Result<()> {
        step("formatting", &["fmt", "--all", "--check"], &[])?;
        step("lints", &["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"], &[])?;
        setup::ensure()?;
        // Everything is set up, so that a test which finds it can't run has found a mistake.
        let mut environment = vec!["FOREBAY_REQUIRE_ALL"];
        if !self.no_cluster {
            environment.push(scenarios::ENABLE);
        }
        if self.keep {
            environment.push(scenarios::KEEP);
        }
        let mut arguments = vec!["test", "--workspace", "--no-fail-fast", "--"];
        arguments.extend(self.filters.iter().map(String::as_str));
        step("tests", &arguments, &environment)
    }
}

fn step(title: &str, arguments: &[&str], environment: &[&str]) -> Result<()> {
    let start = Instant::now();
    eprintln!("== {title}");
    let mut cargo = command("cargo", arguments);
    cargo.current_dir(paths::repository()).envs(environment.iter().map(|variable| (variable, "1")));
    run_shown(&mut cargo).with_context(|| format!("{title}: see above"))?;
    eprintln!("== {title}: {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}
