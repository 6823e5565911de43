//! A mount in the background: the same command again, in a session of its own, with the manifest on its standard input (Secrets never show on
//! a command line) and the log in the cache folder. This process passes on what it says until the tree can be read.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};

use super::cache::CacheFolder;
use super::report::{News, Reporter};
use crate::args::MountArgs;

/// Starts the mount at `target` and waits until it can be read.
pub fn run(args: &MountArgs, manifest: &str, target: &Path, cache: &CacheFolder) -> anyhow::Result<()> {
    let log = cache.log();
    let mut child = start(args, target, cache)?;
    let mut input = child.stdin.take().context("the mount's standard input is not a pipe")?;
    // A mount that ends before it has read the manifest says why.
    let _ = input.write_all(manifest.as_bytes());
    drop(input);
    let output = child.stdout.take().context("the mount's standard output is not a pipe")?;
    let mut reporter = Reporter::to_user();
    for line in BufReader::new(output).lines() {
        let line = line.context("reading what the mount says")?;
        match serde_json::from_str(&line) {
            Ok(News::Failed(why)) => {
                drop(reporter);
                let _ = child.wait();
                bail!("{why}");
            }
            Ok(news @ News::Mounted(_)) => {
                reporter.tell(news)?;
                return Ok(());
            }
            Ok(news) => reporter.tell(news)?,
            Err(error) => tracing::warn!(%error, line, "the mount says something unknown"),
        }
    }
    let status = child.wait().context("waiting for the mount")?;
    bail!("the mount ended before it was ready ({status}); its log is {}", log.display())
}

fn start(args: &MountArgs, target: &Path, cache: &CacheFolder) -> anyhow::Result<Child> {
    let path = cache.log();
    let log = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
    let log = log.with_context(|| format!("opening {}", path.display()))?;
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(program);
    command.arg("mount").arg("--foreground").arg("--report").arg("--file").arg("-");
    command.arg("--cache-dir").arg(cache.root()).arg("--capacity").arg(args.capacity.to_string());
    command.arg("--mount-mode").arg(args.mount_mode.argument());
    command.arg("--watch-opens").arg(args.watch_opens.to_string());
    if let Some(metrics) = args.metrics {
        command.arg("--metrics").arg(metrics.to_string());
    }
    command.arg("--").arg(target);
    // Whatever folder this was started in must stay free to be unmounted.
    command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
    command.spawn().context("starting the mount in the background")
}
