//! The cgroups of a cluster's processes. Every process of a node, daemons and containers alike, lives below one cgroup,
//! so that ending a node, or the whole cluster, is ending the processes listed there: none is missed, none is guessed.
//! Works with cgroup v1 controllers and with the unified hierarchy.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::wait_until;

const MOUNT: &str = "/sys/fs/cgroup";

/// A cgroup by its path below the hierarchy's root, the same in each hierarchy.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The cgroup at `path`, which has no leading slash.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// A cgroup below this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        Self::new(self.path.join(name))
    }

    /// The path as the kubelet's `cgroupRoot` wants it.
    pub fn absolute(&self) -> String {
        format!("/{}", self.path.display())
    }

    /// Makes the cgroup in every hierarchy. `leaf`: processes will be put into it, so it hands no controllers down.
    pub fn create(&self, leaf: bool) -> Result<()> {
        for hierarchy in hierarchies()? {
            let mut at = hierarchy.clone();
            for part in &self.path {
                let parent = at.clone();
                at.push(part);
                if !at.exists() {
                    fs::create_dir(&at).with_context(|| format!("making cgroup {}", at.display()))?;
                }
                inherit_cpuset(&parent, &at)?;
                let last = at.ends_with(&self.path);
                if is_unified_root(&hierarchy) && !(leaf && last) {
                    delegate(&parent)?;
                    delegate(&at)?;
                }
            }
        }
        Ok(())
    }

    /// The file a process writes its id to in order to move into this cgroup.
    pub fn processes_file(&self) -> Result<PathBuf> {
        Ok(tracking_hierarchy()?.join(&self.path).join("cgroup.procs"))
    }

    /// Ids of all processes in this cgroup and below.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        let mut pids = Vec::new();
        collect(&tracking_hierarchy()?.join(&self.path), &mut pids);
        Ok(pids)
    }

    /// Kills every process in this cgroup and below and waits until none is left.
    pub fn kill_all(&self) -> Result<()> {
        self.kill_all_but(&[])
    }

    /// Kills every process in this cgroup and below but these, and waits until no other is left.
    pub fn kill_all_but(&self, spared: &[u32]) -> Result<()> {
        wait_until(&format!("killing the processes of cgroup {}", self.absolute()), Duration::from_secs(30), || {
            let mut pids = self.processes()?;
            pids.retain(|pid| !spared.contains(&pid.as_raw().cast_unsigned()));
            if pids.is_empty() {
                return Ok(());
            }
            for pid in &pids {
                match kill(*pid, Signal::SIGKILL) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(error) => bail!("kill {pid}: {error}"),
                }
            }
            let names: Vec<String> = pids.iter().map(|pid| process_name(*pid)).collect();
            bail!("{} left: {}", pids.len(), names.join(", "))
        })
    }

    /// Removes the cgroup and those below it from every hierarchy. No process may be left in them.
    pub fn remove(&self) -> Result<()> {
        for hierarchy in hierarchies()? {
            let top = hierarchy.join(&self.path);
            wait_until(&format!("removing cgroup {}", top.display()), Duration::from_secs(10), || remove_tree(&top))?;
        }
        Ok(())
    }
}

fn is_unified_root(hierarchy: &Path) -> bool {
    hierarchy.join("cgroup.controllers").exists() && hierarchy == Path::new(MOUNT)
}

/// Roots of the hierarchies: every v1 controller (and the unified one beside them), or only the unified one.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mount = Path::new(MOUNT);
    if mount.join("cgroup.controllers").exists() {
        return Ok(vec![mount.to_path_buf()]);
    }
    let mut roots = Vec::new();
    for entry in fs::read_dir(mount).with_context(|| format!("reading {MOUNT}; are cgroups mounted?"))? {
        let path = entry?.path();
        // `cpu,cpuacct` has links `cpu` and `cpuacct`; one of the three is enough.
        if !path.is_symlink() && path.join("cgroup.procs").exists() {
            roots.push(path);
        }
    }
    if roots.is_empty() {
        bail!("no cgroup hierarchy below {MOUNT}; mount them first");
    }
    Ok(roots)
}

/// The hierarchy whose membership says what belongs to a cluster.
fn tracking_hierarchy() -> Result<PathBuf> {
    let roots = hierarchies()?;
    let preferred = roots.iter().find(|root| root.ends_with("pids"));
    preferred.or(roots.first()).cloned().context("no cgroup hierarchy")
}

/// A new v1 cpuset is empty, and no process can enter it before it has processors and memory nodes.
fn inherit_cpuset(parent: &Path, child: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(file), child.join(file));
        if !to.exists() || child.join("cgroup.controllers").exists() {
            continue;
        }
        if fs::read_to_string(&to)?.trim().is_empty() {
            fs::write(&to, fs::read(&from)?).with_context(|| format!("writing {}", to.display()))?;
        }
    }
    Ok(())
}

fn delegate(unified: &Path) -> Result<()> {
    let controllers = fs::read_to_string(unified.join("cgroup.controllers"))?;
    let wanted: Vec<String> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
    let file = unified.join("cgroup.subtree_control");
    fs::write(&file, wanted.join(" ")).with_context(|| format!("writing {}", file.display()))
}

fn collect(cgroup: &Path, pids: &mut Vec<Pid>) {
    // A cgroup may vanish while we look: then it holds nothing.
    if let Ok(list) = fs::read_to_string(cgroup.join("cgroup.procs")) {
        pids.extend(list.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw));
    }
    for child in children(cgroup) {
        collect(&child, pids);
    }
}

fn remove_tree(cgroup: &Path) -> Result<()> {
    for child in children(cgroup) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(cgroup) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context(cgroup.display().to_string()),
        _ => Ok(()),
    }
}

fn children(cgroup: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(cgroup) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn process_name(pid: Pid) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("{} ({pid})", name.trim_end())
}
