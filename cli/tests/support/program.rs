//! `forebay` as a process.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use forebay_csi::mount::mountinfo;
use rustix::process::{Pid, Signal, kill_process};

use super::wait_for;

/// The program, with nothing of our environment that matters to it.
pub fn forebay() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    for variable in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RUST_LOG"] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null());
    command
}

/// How a test's mounts are made: `kernel` or `fuse`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(pub &'static str);

/// `forebay mount` with what all mounts need.
pub fn mount(mode: Mode, manifest: &Path, directory: &Path, cache: &Path) -> Command {
    mount_with_capacity("2Gi", mode, manifest, directory, cache)
}

/// The same with a cache of another size.
pub fn mount_with_capacity(capacity: &str, mode: Mode, manifest: &Path, directory: &Path, cache: &Path) -> Command {
    let mut command = forebay();
    command.arg("mount").arg("-f").arg(manifest).arg(directory).arg("--cache-dir").arg(cache).args([
        "--capacity",
        capacity,
        "--mount-mode",
        mode.0,
    ]);
    command
}

/// Runs a command to its end: exit code and what it wrote to stderr.
pub fn run(command: &mut Command) -> (i32, String) {
    let output = command.output().unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A mount in the foreground; dropping it kills the process.
pub struct Foreground {
    child: Child,
    output: PathBuf,
}

impl Foreground {
    /// Starts the mount and waits until it says that it is mounted.
    pub fn start(command: &mut Command, scratch: &super::Scratch) -> Self {
        let output = scratch.path().join("stderr.txt");
        let child = command.arg("--foreground").stderr(std::fs::File::create(&output).unwrap()).spawn().unwrap();
        let mut started = Self { child, output };
        wait_for("the mount", Duration::from_secs(30), || {
            assert!(started.child.try_wait().unwrap().is_none(), "the mount ended: {}", started.said());
            started.said().contains("is mounted at")
        });
        started
    }

    /// The process, which serves too.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to stderr.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(pid(self.child.id()), signal).unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("the mount's end", Duration::from_secs(30), || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process that serves the mount at a folder, killed when dropped.
pub struct Background(pub u32);

impl Background {
    pub fn at(directory: &Path) -> Self {
        let (mount, count) = mountinfo::mounted_at(directory).unwrap().expect("something is mounted");
        assert_eq!(count, 1);
        Self(mount.source.strip_prefix("forebay:").expect("our source").parse().unwrap())
    }

    pub fn is_running(&self) -> bool {
        // A zombie is none: its parent may be a process that never waits.
        let status = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap_or_default();
        status.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
    }

    pub fn kill(&self) {
        let _ = kill_process(pid(self.0), Signal::KILL);
        wait_for("the killed process's end", Duration::from_secs(10), || !self.is_running());
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = kill_process(pid(self.0), Signal::KILL);
        }
    }
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).unwrap()).unwrap()
}
