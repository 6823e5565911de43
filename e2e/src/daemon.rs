//! Starts a program that outlives us: in a session of its own, in given namespaces and a given cgroup, its output in a
//! log file, its process id on file. A daemon that dies early is an error with the end of its log.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
use crate::command::{command, log_tail, text};
use crate::wait::{Fatal, wait_until};

/// The namespaces a daemon is started in.
#[derive(Debug, Clone)]
pub enum Namespaces {
    /// A named network namespace, and our own mounts.
    Network(String),
    /// Network and mounts of the process with this id.
    Process(u32),
}

impl Namespaces {
    /// The command line that enters them, up to the program's own name.
    pub fn enter(&self) -> Vec<String> {
        match self {
            Self::Network(name) => vec!["nsenter".into(), format!("--net=/run/netns/{name}"), "--".into()],
            Self::Process(pid) => {
                ["nsenter", "--net", "--mount", "--target", &pid.to_string(), "--"].map(String::from).into()
            }
        }
    }
}

/// A started daemon.
#[derive(Debug, Clone)]
pub struct Daemon {
    /// What messages call it, such as `containerd of node-1`.
    pub title: String,
    /// Its process id.
    pub pid: u32,
    /// When it started, in clock ticks since the kernel did: with the id, this names one process for good.
    started: u64,
    /// Its standard output and error.
    pub log: PathBuf,
}

impl Daemon {
    /// Starts `line` in `namespaces` and `cgroup`; `folder` gets `NAME.log` and `NAME.pid`.
    pub fn start(
        name: &str,
        title: &str,
        folder: &Path,
        namespaces: &Namespaces,
        cgroup: &Cgroup,
        line: &[String],
    ) -> Result<Self> {
        let mut whole = namespaces.enter();
        whole.extend_from_slice(line);
        Self::start_line(name, title, folder, cgroup, &whole)
    }

    /// Starts `line` as it is.
    pub fn start_line(name: &str, title: &str, folder: &Path, cgroup: &Cgroup, line: &[String]) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let log = folder.join(format!("{name}.log"));
        // The shell moves itself into the cgroup, leaves a child there in a session of its own, and ends: the daemon is
        // no child of ours, so nothing of it stays behind as a zombie while we live.
        let script = r#"echo $$ > "$1" && log=$2 && shift 2 && { setsid "$@" < /dev/null >> "$log" 2>&1 & echo $!; }"#;
        let mut start = command("sh", ["-c", script, "sh"]);
        start.arg(cgroup.processes_file()?).arg(&log).args(line);
        let pid = text(&mut start).with_context(|| format!("starting {title}"))?;
        let pid = pid.parse().with_context(|| format!("starting {title}: no process id in {pid:?}"))?;
        // A process that died already has no start time; then nothing is alive under this id, whoever gets it next.
        let started = process_state(pid).map_or(0, |state| state.started);
        fs::write(folder.join(format!("{name}.pid")), format!("{pid} {started}\n"))?;
        Ok(Self { title: title.to_owned(), pid, started, log })
    }

    /// A daemon that was started earlier, by the files it left in `folder`.
    pub fn recorded(name: &str, title: &str, folder: &Path) -> Result<Self> {
        let file = folder.join(format!("{name}.pid"));
        let recorded =
            fs::read_to_string(&file).with_context(|| format!("{title} was not started: no {}", file.display()))?;
        let numbers =
            recorded.trim().split_once(' ').and_then(|(pid, started)| Some((pid.parse().ok()?, started.parse().ok()?)));
        let (pid, started) =
            numbers.with_context(|| format!("{} holds no process id and start time", file.display()))?;
        Ok(Self { title: title.to_owned(), pid, started, log: folder.join(format!("{name}.log")) })
    }

    /// True while the process runs; a zombie does not, and another process that got the same id is another one.
    pub fn alive(&self) -> bool {
        process_state(self.pid).is_some_and(|state| state.running && state.started == self.started)
    }

    /// Kills the process and waits until it is gone; does nothing if it is gone already.
    pub fn kill(&self) -> Result<()> {
        wait_until(&format!("killing {}", self.title), Duration::from_secs(10), || {
            if !self.alive() {
                return Ok(());
            }
            match kill(Pid::from_raw(self.pid as i32), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => bail!("process {} is still there", self.pid),
                Err(error) => bail!(Fatal(format!("kill {}: {error}", self.pid))),
            }
        })
    }

    /// Waits until `probe` answers; a dead daemon ends the wait at once. Errors carry the end of the log.
    pub fn wait_ready<T>(&self, timeout: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
        wait_until(&format!("{} to be ready", self.title), timeout, || {
            if !self.alive() {
                bail!(Fatal(format!("{} died", self.title)));
            }
            probe()
        })
        .with_context(|| format!("the last lines of {}:\n{}\n", self.log.display(), log_tail(&self.log)))
    }
}

struct ProcessState {
    running: bool,
    started: u64,
}

fn process_state(pid: u32) -> Option<ProcessState> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The fields follow the name, which is in parentheses and may hold anything: the first is the state, the 20th the start.
    let (_, fields) = stat.rsplit_once(") ")?;
    let started = fields.split(' ').nth(19)?.parse().ok()?;
    Some(ProcessState { running: !fields.starts_with(['Z', 'X']), started })
}
