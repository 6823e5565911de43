//! `cargo xtask fuzz`: throws any bytes at everything that reads bytes of others. The targets are in `fuzz/`, a workspace of its own; they are
//! built with stable Rust and libFuzzer, which the build compiles with the system's C++ compiler. Nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use forebay_e2e::command::{command, log_tail, run_shown, text};
use forebay_e2e::paths;

/// How long CI fuzzes each target, and what is fuzzed when nothing else is said.
pub const CI_SECONDS: u64 = 30;

/// An input that takes longer is a finding: ours take microseconds.
const INPUT_SECONDS: u64 = 10;
/// More memory than this is a finding.
const MEMORY_MIB: u64 = 1024;

const EXAMPLES: &str = "Examples:
  Each target for half a minute, as CI does:
    cargo xtask fuzz
  One target for an hour:
    cargo xtask fuzz --seconds 3600 catalog
  Which targets there are:
    cargo xtask fuzz --list

A finding is kept in target/fuzz/artifacts; how to replay it is printed.
What was learnt about a target is kept in target/fuzz/corpus and used by the next run.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Fuzz {
    /// How long each target is fuzzed
    #[arg(long, default_value_t = CI_SECONDS, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Say which targets there are
    #[arg(long)]
    list: bool,
    /// Targets; all when none is named
    targets: Vec<String>,
}

impl Fuzz {
    pub fn run(self) -> Result<()> {
        let all = targets()?;
        if self.list {
            for target in &all {
                println!("{target}");
            }
            return Ok(());
        }
        for target in &self.targets {
            ensure!(all.contains(target), "there is no fuzz target {target:?}; there are {}", all.join(", "));
        }
        let chosen = if self.targets.is_empty() { all } else { self.targets };
        let outcome = run(&chosen, self.seconds)?;
        println!("\n{} passed, {} failed", outcome.passed, outcome.failed);
        ensure!(outcome.failed == 0, "fuzzing found something, see above");
        Ok(())
    }
}

/// How many targets were fuzzed without and with a finding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub passed: u64,
    pub failed: u64,
}

/// Targets that are fuzzed at once for each processor: with two, ten targets on two processors take three times as long as one.
const TARGETS_PER_PROCESSOR: usize = 2;

/// Fuzzes targets, several at once; prints a line for each, and for a finding how to replay it.
pub fn run(targets: &[String], seconds: u64) -> Result<Outcome> {
    let programs = build()?;
    let at_once = std::thread::available_parallelism().map_or(1, usize::from) * TARGETS_PER_PROCESSOR;
    let mut outcome = Outcome::default();
    let mut waiting = targets.iter();
    let mut running: Vec<Running> = Vec::new();
    loop {
        while running.len() < at_once
            && let Some(target) = waiting.next()
        {
            running.push(Running::start(&programs, target, seconds)?);
        }
        if running.is_empty() {
            return Ok(outcome);
        }
        let mut index = 0;
        while let Some(target) = running.get_mut(index) {
            match target.finished()? {
                None => index += 1,
                Some(true) => {
                    outcome.passed += 1;
                    drop(running.swap_remove(index));
                }
                Some(false) => {
                    outcome.failed += 1;
                    drop(running.swap_remove(index));
                }
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The targets, by their files.
pub fn targets() -> Result<Vec<String>> {
    let folder = workspace().join("fuzz_targets");
    let entries = fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut targets = Vec::new();
    for entry in entries {
        if let Some(name) = entry?.file_name().to_str().and_then(|name| name.strip_suffix(".rs")) {
            targets.push(name.to_owned());
        }
    }
    targets.sort();
    Ok(targets)
}

fn workspace() -> PathBuf {
    paths::repository().join("fuzz")
}

/// Where programs, findings and corpora are.
fn kept() -> PathBuf {
    paths::target().join("fuzz")
}

/// Builds all targets; returns the folder of the programs.
fn build() -> Result<PathBuf> {
    let start = Instant::now();
    eprintln!("== fuzz targets (minutes the first time)");
    let version = text(command("rustc", ["-vV"]).current_dir(paths::repository()))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.with_context(|| format!("rustc -vV names no host: {version}"))?;
    let mut cargo = command("cargo", ["build", "--quiet", "--bins", "--target", host]);
    cargo
        .current_dir(workspace())
        .env("CARGO_TARGET_DIR", kept())
        .env("RUSTC_WRAPPER", workspace().join("instrument.sh"));
    run_shown(&mut cargo).context("building the fuzz targets; a C++ compiler is needed, such as Debian's g++")?;
    eprintln!("== fuzz targets: built in {:.0} s", start.elapsed().as_secs_f64());
    Ok(kept().join(host).join("debug"))
}

/// A target that is being fuzzed; killed when dropped.
struct Running {
    target: String,
    program: PathBuf,
    process: Child,
    artifacts: PathBuf,
    log: PathBuf,
    start: Instant,
}

impl Running {
    fn start(programs: &Path, target: &str, seconds: u64) -> Result<Self> {
        let (corpus, artifacts) = (kept().join("corpus").join(target), kept().join("artifacts").join(target));
        for folder in [&corpus, &artifacts] {
            fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        }
        let log = kept().join(format!("{target}.log"));
        let program = programs.join(target);
        let file = fs::File::create(&log).with_context(|| format!("writing {}", log.display()))?;
        let mut command = Command::new(&program);
        command
            .arg(&corpus)
            .args([format!("-max_total_time={seconds}"), format!("-timeout={INPUT_SECONDS}")])
            .args([format!("-rss_limit_mb={MEMORY_MIB}"), format!("-artifact_prefix={}/", artifacts.display())])
            .args(["-print_final_stats=1", "-max_len=32768", "-len_control=200"])
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let process = command.spawn().with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { target: target.to_owned(), program, process, artifacts, log, start: Instant::now() })
    }

    /// Whether it has ended without a finding; none while it runs.
    fn finished(&mut self) -> Result<Option<bool>> {
        let Some(status) = self.process.try_wait().context("waiting for a fuzz target")? else { return Ok(None) };
        let seconds = self.start.elapsed().as_secs_f64();
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        if status.success() {
            let inputs = final_count(&log).unwrap_or_default();
            if inputs == 0 {
                bail!("fuzz target {} has run nothing; see {}", self.target, self.log.display());
            }
            println!("test fuzz {} ... ok ({inputs} inputs, {seconds:.0} s)", self.target);
            return Ok(Some(true));
        }
        println!("test fuzz {} ... FAILED ({seconds:.0} s)\n{}", self.target, log_tail(&self.log));
        let panic = log.lines().position(|line| line.contains(" panicked at "));
        if let Some(at) = panic {
            println!("{}", log.lines().skip(at).take(3).collect::<Vec<_>>().join("\n"));
        }
        match written(&log) {
            Some(input) => println!("replay it: {} {input}", self.program.display()),
            None => {
                println!("no input was kept in {}; the whole log is {}", self.artifacts.display(), self.log.display());
            }
        }
        Ok(Some(false))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already, unless another target could not be started.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How many inputs libFuzzer says it has run.
fn final_count(log: &str) -> Option<u64> {
    log.lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .and_then(|n| n.trim().parse().ok())
}

/// The file in which libFuzzer says it has kept the input of a finding.
fn written(log: &str) -> Option<&str> {
    log.lines().rev().find_map(|line| line.split_once("Test unit written to ").map(|(_, path)| path.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libfuzzer_says_at_the_end_is_understood() {
        let log = "#5 DONE cov: 1\nstat::number_of_executed_units: 52936\nstat::peak_rss_mb: 30\n";
        assert_eq!(final_count(log), Some(52936));
        let log =
            "SUMMARY: libFuzzer: deadly signal\nartifact_prefix='/x/'; Test unit written to /x/crash-1\nBase64: AA==\n";
        assert_eq!((final_count(log), written(log)), (None, Some("/x/crash-1")));
    }

    #[test]
    fn every_target_is_a_program_and_a_module_with_seeds() {
        let manifest = fs::read_to_string(workspace().join("Cargo.toml")).unwrap();
        let targets = targets().unwrap();
        assert!(targets.len() >= 8, "{targets:?}");
        for target in targets {
            assert!(
                manifest.contains(&format!("name = \"{target}\"\npath = \"fuzz_targets/{target}.rs\"")),
                "{target}"
            );
            let module = fs::read_to_string(workspace().join(format!("src/{target}.rs"))).unwrap();
            assert!(module.contains("pub fn seeds()") && module.contains("pub fn run("), "{target}");
        }
    }
}
