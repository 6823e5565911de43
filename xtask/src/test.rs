//! `cargo xtask test`: formatting, lints, and all tests, those on a real cluster included.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use forebay_e2e::command::{command, run_shown};
use forebay_e2e::{paths, readers, scenarios, setup, skipped};

use crate::{fuzz, old_kernel, watch};

#[derive(Args)]
pub struct Test {
    /// Leave out the tests on a real cluster
    #[arg(long)]
    no_cluster: bool,
    /// Leave the cluster of a failed run up for a look
    #[arg(long)]
    keep: bool,
    /// Leave out the tests on an old kernel
    #[arg(long)]
    no_old_kernel: bool,
    /// Leave out fuzzing
    #[arg(long)]
    no_fuzz: bool,
    /// Only tests with one of these in their name; the old kernel and fuzzing are left out then, unless `oldkernel`, or the name of a target, has one
    filters: Vec<String>,
}

impl Test {
    pub fn run(self) -> Result<()> {
        step("formatting", &["fmt", "--all", "--check"])?;
        step("lints", &["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])?;
        setup::ensure()?;
        readers::ensure()?;
        // By itself: the compiler may be silent for longer than a test.
        step("building the tests", &["test", "--workspace", "--no-run"])?;
        // Everything is set up, so that a test which finds it can't run has found a mistake.
        let mut environment = vec![skipped::REQUIRE_ALL];
        if !self.no_cluster {
            environment.push(scenarios::ENABLE);
        }
        if self.keep {
            environment.push(scenarios::KEEP);
        }
        let mut arguments = vec!["test", "--workspace", "--no-fail-fast", "--"];
        arguments.extend(self.filters.iter().map(String::as_str));
        let (mut sum, ended_well) = tests(&arguments, &environment)?;
        // Also after a failure: one run shows all there is to mend.
        if !self.no_old_kernel && self.wants("oldkernel") {
            sum.add(&old_kernel::in_ci()?);
        }
        let targets = if self.no_fuzz { Vec::new() } else { self.fuzz_targets()? };
        if !targets.is_empty() {
            let fuzz::Outcome { passed, failed } = fuzz::run(&targets, fuzz::CI_SECONDS)?;
            sum.add(&Counts { passed, failed, skipped: 0 });
        }
        println!("\n{} passed, {} failed, {} skipped", sum.passed, sum.failed, sum.skipped);
        ensure!(ended_well && sum.failed == 0, "tests failed, see above");
        ensure!(sum.passed > 0, "no test was run: does a test have one of these in its name?");
        Ok(())
    }

    fn fuzz_targets(&self) -> Result<Vec<String>> {
        let mut targets = fuzz::targets()?;
        targets.retain(|target| self.wants(&format!("fuzz {target}")));
        Ok(targets)
    }

    fn wants(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter.as_str()))
    }
}

/// Runs the tests and shows what they print as it comes; gives the sum over all of their runners, and whether all ended well.
fn tests(arguments: &[&str], environment: &[&str]) -> Result<(Counts, bool)> {
    eprintln!("== tests");
    let mut cargo = command("cargo", arguments);
    cargo.current_dir(paths::repository()).envs(environment.iter().map(|variable| (variable, "1")));
    let mut sum = Counts::default();
    let ended = watch::lines(&mut cargo, watch::SILENCE, |line| {
        println!("{line}");
        if let Some(counts) = Counts::parse(line) {
            sum.add(&counts);
        }
    })?;
    for runner in &ended.hung {
        eprintln!("{runner} hung and was ended; what its tests waited for is above");
    }
    // It has said nothing of its tests: one at least has failed.
    sum.failed += ended.hung.len() as u64;
    Ok((sum, ended.well))
}

/// What a runner says when it is done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl Counts {
    /// Reads the closing line of libtest (`test result: ok. 5 passed; 0 failed; 1 ignored; ...`) or of our scenarios (`5 passed, 0 failed`).
    pub fn parse(line: &str) -> Option<Self> {
        let counts = match line.strip_prefix("test result: ") {
            Some(rest) => rest.split_once(". ")?.1,
            None => line,
        };
        let mut found = Self::default();
        let mut passed = false;
        for part in counts.split([';', ',']) {
            let Some((number, word)) = part.trim().split_once(' ') else { continue };
            let number = number.parse().ok()?;
            match word {
                "passed" => (found.passed, passed) = (number, true),
                "failed" => found.failed = number,
                "ignored" => found.skipped = number,
                _ => break,
            }
        }
        passed.then_some(found)
    }

    pub fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

fn step(title: &str, arguments: &[&str]) -> Result<()> {
    let start = Instant::now();
    eprintln!("== {title}");
    let mut cargo = command("cargo", arguments);
    run_shown(cargo.current_dir(paths::repository())).with_context(|| format!("{title}: see above"))?;
    eprintln!("== {title}: {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_counted_and_other_lines_are_not() {
        let libtest =
            "test result: FAILED. 5 passed; 2 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.00s";
        assert_eq!(Counts::parse(libtest), Some(Counts { passed: 5, failed: 2, skipped: 1 }));
        assert_eq!(Counts::parse("9 passed, 0 failed"), Some(Counts { passed: 9, failed: 0, skipped: 0 }));
        for line in ["", "running 5 tests", "test a ... ok", "test result", "5 files, 3 passed by"] {
            assert_eq!(Counts::parse(line), None, "{line}");
        }
    }
}
