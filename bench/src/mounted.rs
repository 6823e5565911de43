//! A Dataset mounted by the real `forebay mount`, with its cache in memory.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::programs::{Programs, Running};
use crate::wait::wait_for;

/// A preload of all that is measured takes seconds.
const PATIENCE: Duration = Duration::from_mins(5);
/// How long the process may take to end once its mount is gone.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at whether it has.
const LOOK: Duration = Duration::from_millis(20);

/// What is mounted, and how.
#[derive(Clone, Copy, Debug)]
pub struct What<'a> {
    /// The source, as YAML: `{url: ...}`.
    pub source: &'a str,
    /// Options of `forebay mount`, such as those of a mount mode.
    pub options: &'a [&'a str],
    /// Whether everything is loaded before the mount counts as ready.
    pub preload: bool,
    /// Variables for its environment, such as credentials.
    pub environment: &'a [(&'a str, &'a str)],
}

impl<'a> What<'a> {
    /// A source that needs nothing else, with nothing loaded ahead.
    pub fn cold(source: &'a str, options: &'a [&'a str]) -> Self {
        Self { source, options, preload: false, environment: &[] }
    }

    /// The same, loaded ahead.
    pub fn preloaded(source: &'a str, options: &'a [&'a str]) -> Self {
        Self { preload: true, ..Self::cold(source, options) }
    }
}

/// A mount; taken away when dropped.
#[derive(Debug)]
pub struct Mounted {
    process: Running,
    folder: TempDir,
}

impl Mounted {
    /// Mounts with everything in `folder`, and waits until the tree can be read.
    pub async fn start(programs: &Programs, folder: TempDir, what: What<'_>) -> Result<Self> {
        let (manifest, said) = (folder.path().join("dataset.yaml"), folder.path().join("stderr"));
        let preload = if what.preload { "  preload: {}\n" } else { "" };
        std::fs::write(
            &manifest,
            format!(
                "apiVersion: forebay.dev/v1alpha1\nkind: Dataset\nmetadata: {{name: bench}}\nspec:\n{preload}  mounts: [{{path: /, sources: [{}]}}]\n",
                what.source
            ),
        )?;
        let tree = folder.path().join("tree");
        std::fs::create_dir(&tree)?;
        let mut command = Command::new(programs.forebay()?);
        command.args(["mount", "--foreground", "--capacity", "8Gi", "--file"]).arg(&manifest);
        command.arg("--cache-dir").arg(folder.path().join("cache")).args(what.options).arg(&tree);
        command.envs(what.environment.iter().copied());
        command.stdout(Stdio::null()).stderr(std::fs::File::create(&said)?);
        let mut mounted = Self { process: Running::start(&mut command)?, folder };
        let ready = if what.preload { "preload complete" } else { "is mounted at" };
        wait_for("forebay mount", PATIENCE, async || {
            let said = std::fs::read_to_string(&said)?;
            match mounted.process.ended()? {
                Some(status) => bail!("forebay mount ended with {status}: {said}"),
                None => Ok(said.contains(ready).then_some(())),
            }
        })
        .await?;
        Ok(mounted)
    }

    /// The mounted tree.
    pub fn tree(&self) -> PathBuf {
        self.folder.path().join("tree")
    }

    /// The files of the objects that are complete in the cache.
    pub fn complete_objects(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for folder in std::fs::read_dir(self.folder.path().join("cache/objects"))? {
            for file in std::fs::read_dir(folder?.path())? {
                files.push(file?.path());
            }
        }
        Ok(files)
    }

    /// The file of the complete object of this size, of which there is one.
    pub fn complete_object(&self, size: u64) -> Result<PathBuf> {
        let files = self.complete_objects()?;
        let found = files.into_iter().find(|file| file.metadata().is_ok_and(|metadata| metadata.len() == size));
        found.with_context(|| format!("no object of {size} bytes is complete in the cache"))
    }

    /// CPU time of the process so far, in seconds, without the kernel's own threads.
    pub fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(self.process.pid())
    }

    /// Its resident memory in bytes.
    pub fn resident_bytes(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|text| text.trim().trim_end_matches(" kB").parse::<f64>().ok());
        Ok(kib.context("the process has no VmRSS")? * 1024.0)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // The process ends by itself when its mount is gone; a killed one would leave the mount.
        let _ = rustix::mount::unmount(self.tree(), rustix::mount::UnmountFlags::DETACH);
        let began = Instant::now();
        while matches!(self.process.ended(), Ok(None)) && began.elapsed() < END_PATIENCE {
            std::thread::sleep(LOOK);
        }
    }
}

/// CPU time of a process with all its threads, in seconds.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    // Behind the name, which may hold anything: utime and stime are fields 14 and 15 of the whole line.
    let fields: Vec<_> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok());
    let (user, system) = ticks(11).zip(ticks(12)).with_context(|| format!("{path} has no times"))?;
    Ok((user + system) / rustix::param::clock_ticks_per_second() as f64)
}

/// Has the kernel forget pages, dentries and inodes.
pub fn drop_caches() -> Result<()> {
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("dropping the kernel's caches, which needs root")
}

/// The source of a folder of this machine.
pub fn folder_source(folder: &Path) -> String {
    format!("{{url: 'file://{}/'}}", folder.display())
}
