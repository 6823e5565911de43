//! `cargo xtask oldkernel`: the tests that cover mode Fuse, on Debian 12's own kernel.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use forebay_e2e::command::{command, text};
use forebay_e2e::old_kernel::{OldKernel, quote};
use forebay_e2e::{paths, setup, skipped};

use crate::test::Counts;

const EXAMPLES: &str = "Examples:
  All of them, four minutes where processors are emulated:
    cargo xtask oldkernel
  Those with `storm` in the name of their file:
    cargo xtask oldkernel storm
  A hundred kills instead of the usual number:
    FOREBAY_KILLS=100 cargo xtask oldkernel storm";

/// Test files of what works in mode Fuse, by the folder of their package, and what is told them of their tests. Those with an S3 server are left out: it
/// keeps user xattrs, which this kernel's tmpfs can't have, and the machine has no other file system to write to.
const FILES: &[(&str, &str)] = &[
    ("csi-driver/request_log", ""),
    ("csi-driver/storm", ""),
    ("csi-driver/survival", ""),
    ("csi-driver/tree", ""),
    ("csi-driver/node_service", ""),
    ("csi-driver/kubelet", ""),
    ("csi-driver/restart", ""),
    ("csi-driver/mount", ""),
    ("csi-driver/passthrough", ""),
    ("csi-driver/opens", ""),
    ("csi-driver/space", ""),
    ("fuse/forebay_fuse", ""),
    ("fuse/supervise", ""),
    ("cli/posix", "--skip buckets"),
];

/// What a part of CI's time is worth: test files, and what is in the names of their tests.
const IN_CI: &[(&str, &str)] = &[
    ("csi-driver/request_log", ""),
    ("csi-driver/storm", "worker"),
    ("csi-driver/survival", "mode_fuse"),
    ("csi-driver/tree", ""),
    ("cli/posix", "errors"),
];

/// Kills of a storm in CI.
const KILLS_IN_CI: &str = "5";

/// A test file that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// CI's part may take as long as this. It took 75 s with emulated processors, and as long again to start and to build.
const LIMIT_IN_CI: Duration = Duration::from_secs(10 * 60);

/// Where the machine's script and the list of skipped tests are.
const SKIPPED: &str = "/tmp/forebay-skipped";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct OldKernelTests {
    /// Only test files with one of these in their name
    filters: Vec<String>,
    /// What `cargo xtask test` runs
    #[arg(long, conflicts_with = "filters")]
    ci: bool,
}

impl OldKernelTests {
    pub fn run(self) -> Result<()> {
        setup::ensure()?;
        let counts = if self.ci { in_ci()? } else { all(&self.filters)? };
        println!("\n{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped);
        ensure!(counts.failed == 0, "tests failed, see above");
        ensure!(counts.passed > 0, "no test was run: does a test file have one of these in its name?");
        Ok(())
    }
}

/// CI's part.
pub fn in_ci() -> Result<Counts> {
    let kills = std::env::var("FOREBAY_KILLS").unwrap_or_else(|_| KILLS_IN_CI.to_owned());
    run(IN_CI, &kills, LIMIT_IN_CI)
}

fn all(filters: &[String]) -> Result<Counts> {
    let kills = std::env::var("FOREBAY_KILLS").unwrap_or_default();
    let is_chosen = |file: &str| filters.is_empty() || filters.iter().any(|filter| file.contains(filter.as_str()));
    let chosen: Vec<_> = FILES.iter().filter(|(file, _)| is_chosen(file)).copied().collect();
    let limit = LIMIT * u32::try_from(chosen.len())?;
    run(&chosen, &kills, limit)
}

fn run(chosen: &[(&str, &str)], kills: &str, limit: Duration) -> Result<Counts> {
    let began = Instant::now();
    let programs = programs()?;
    let folder = paths::kept().join("old-kernel");
    // Tests write there.
    let written = paths::target().join("x86_64-unknown-linux-gnu/tmp");
    fs::create_dir_all(&written).with_context(|| format!("making {}", written.display()))?;
    let temporary = paths::target().join("tmp");
    fs::create_dir_all(&temporary).with_context(|| format!("making {}", temporary.display()))?;
    let machine = OldKernel::prepare(&[&written, &temporary])?;
    let mut sum = Counts::default();
    if !machine.is_older_than(6, 9) {
        println!("skipped: this Debian's own kernel is {}, which has all that an old one lacks", machine.version());
        sum.skipped += 1;
        return Ok(sum);
    }
    let how = if machine.is_emulated() { ", with emulated processors" } else { "" };
    eprintln!("== tests on Linux {}{how}", machine.version());
    let script = folder.join("tests.sh");
    fs::write(&script, script_of(chosen, &programs, kills, machine.is_emulated())?)
        .with_context(|| format!("writing {}", script.display()))?;
    let ended = machine.run(&script, limit, |line| {
        println!("{line}");
        if let Some(counts) = Counts::parse(line) {
            sum.add(&counts);
        } else if let Some(status) = line.strip_prefix(DIED) {
            eprintln!("a test file ended with {status} and did not count its tests");
            sum.failed += 1;
        } else if line.starts_with(SKIPPED_LINE) {
            // It passed by doing nothing.
            sum.passed = sum.passed.saturating_sub(1);
            sum.skipped += 1;
        }
    });
    if let Err(error) = ended {
        eprintln!("error: {error:#}");
        sum.failed += 1;
    }
    eprintln!("== tests on Linux {}: {:.0} s", machine.version(), began.elapsed().as_secs_f64());
    Ok(sum)
}

const DIED: &str = "== ended with ";

/// Before the name of a skipped test and the reason.
const SKIPPED_LINE: &str = "== skipped ";

fn script_of(
    chosen: &[(&str, &str)],
    programs: &BTreeMap<String, (PathBuf, PathBuf)>,
    kills: &str,
    slow: bool,
) -> Result<String> {
    let mut script = format!("export {}=1 {}={SKIPPED}\n", skipped::REQUIRE_ALL, skipped::LIST);
    if slow {
        script.push_str("export FOREBAY_SLOW=1\n");
    }
    if !kills.is_empty() {
        writeln!(script, "export FOREBAY_KILLS={}", quote(kills))?;
    }
    for (file, tests) in chosen {
        let (program, package) = programs.get(*file).with_context(|| format!("no test file {file} was built"))?;
        // One at a time: the machine's two cores have enough to do with one storm.
        writeln!(
            script,
            "echo '== {file} {tests}'
cd {}
timeout --kill-after 5 {} {} --color never --test-threads 1 {tests} || {{ status=$?; [ $status = 101 ] || echo {DIED}$status; }}
[ ! -e {SKIPPED} ] || {{ sed 's/^/{SKIPPED_LINE}/' {SKIPPED}; rm {SKIPPED}; }}",
            quote(&package.display().to_string()),
            LIMIT.as_secs(),
            quote(&program.display().to_string()),
        )?;
    }
    Ok(script)
}

/// The built test files by name, each with its package's folder.
fn programs() -> Result<BTreeMap<String, (PathBuf, PathBuf)>> {
    // Of the whole workspace, whose features are those of `cargo xtask test`: nothing is built twice.
    let mut cargo = command("cargo", ["test", "--workspace", "--no-run", "--message-format", "json", "--quiet"]);
    let messages = text(cargo.current_dir(paths::repository())).context("building the tests")?;
    let mut found = BTreeMap::new();
    for line in messages.lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let string = |pointer: &str| message.pointer(pointer).and_then(serde_json::Value::as_str);
        let (Some(name), Some(program), Some(manifest), Some(true)) = (
            string("/target/name"),
            string("/executable"),
            string("/manifest_path"),
            message.pointer("/profile/test").and_then(serde_json::Value::as_bool),
        ) else {
            continue;
        };
        let package = PathBuf::from(manifest).parent().map(PathBuf::from).unwrap_or_default();
        let folder = package.file_name().unwrap_or_default().to_string_lossy();
        let file = format!("{folder}/{name}");
        if FILES.iter().any(|(known, _)| *known == file) {
            found.insert(file, (PathBuf::from(program), package));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ci_runs_is_among_the_test_files() {
        for (file, _) in IN_CI {
            assert!(FILES.iter().any(|(known, _)| known == file), "{file}");
        }
    }
}
