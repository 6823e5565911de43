//! Debian's own kernel in a virtual machine, to try Forebay where the kernel is older than this machine's: it sees this machine's files read-only, so
//! that all that is built and installed here is there by its own path, and has folders in memory over those that are written to. Nothing is
//! installed as a kernel of this machine, and nothing but a script's output leaves the machine.

mod initramfs;
mod kernel;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::command::command;
use crate::setup;
pub use kernel::Kernel;

/// What it needs beside the kernel.
const PACKAGES: &[&str] = &["busybox-static", "kmod", "qemu-system-x86", "util-linux"];

/// Memory of the machine. What it does not use it does not take.
const MEMORY: &str = "6G";

/// The script's output begins after this line, and it has ended when the other comes.
const BEGIN: &str = "== the old kernel's script begins";
const END: &str = "== the old kernel's script has ended";

/// A machine that can be started.
#[derive(Debug)]
pub struct OldKernel {
    kernel: Kernel,
    initramfs: PathBuf,
}

impl OldKernel {
    /// Puts in place what is needed. `written`: folders of this machine that the script may write to; there they are empty at first.
    pub fn prepare(written: &[&Path]) -> Result<Self> {
        setup::ensure_packages(PACKAGES)?;
        let kernel = Kernel::ensure()?;
        let initramfs = initramfs::make(&kernel, written)?;
        Ok(Self { kernel, initramfs })
    }

    /// Its version, as `uname -r` says.
    pub fn version(&self) -> &str {
        &self.kernel.version
    }

    /// Whether it is older than this one. That of Debian 12 is.
    pub fn is_older_than(&self, major: u32, minor: u32) -> bool {
        let mut numbers = self.version().split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < (major, minor)
    }

    /// Whether its processors are emulated, which takes some ten times longer.
    pub fn is_emulated(&self) -> bool {
        !has_kvm()
    }

    /// Runs a shell script, the only one that the machine is for, and hands over each line that it prints. Ends the machine after `limit`, which is an error.
    pub fn run(&self, script: &Path, limit: Duration, mut show: impl FnMut(&str)) -> Result<()> {
        let mut machine = Machine(self.qemu(script).spawn().context("starting qemu-system-x86_64")?);
        let console = BufReader::new(machine.0.stdout.take().context("the machine has no console")?);
        let (send, received) = sync_channel(64);
        // Not `lines()`: before the kernel has the console, the firmware writes what is no text.
        std::thread::spawn(move || {
            let lines = console.split(b'\n').map_while(Result::ok);
            lines.map(|line| String::from_utf8_lossy(&line).into_owned()).all(|line| send.send(line).is_ok())
        });
        let (since, mut begun, mut before) = (Instant::now(), false, Vec::new());
        loop {
            match received.recv_timeout(limit.saturating_sub(since.elapsed())) {
                Ok(line) => match line.trim_end_matches('\r') {
                    // After what the firmware said.
                    line if line.ends_with(BEGIN) => begun = true,
                    END => return Ok(()),
                    line if begun => show(line),
                    line => before.push(line.to_owned()),
                },
                Err(RecvTimeoutError::Timeout) => {
                    anyhow::bail!("the machine has not ended within {} s: {}", limit.as_secs(), before.join("\n"))
                }
                Err(RecvTimeoutError::Disconnected) => {
                    anyhow::bail!("the machine has ended before the script: {}", before.join("\n"))
                }
            }
        }
    }

    fn qemu(&self, script: &Path) -> Command {
        // Whatever becomes of this process, its machine ends with it.
        let mut qemu = command("setpriv", ["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
        qemu.args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"]);
        let accelerator = if has_kvm() { ["-accel", "kvm"] } else { ["-accel", "tcg,thread=multi"] };
        qemu.args(accelerator).args(["-cpu", "max", "-smp", "2", "-m", MEMORY, "-serial", "stdio"]);
        qemu.args(["-virtfs", "local,path=/,mount_tag=root,security_model=passthrough,readonly=on,multidevs=remap"]);
        qemu.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(&self.initramfs);
        let script = script.display();
        qemu.arg("-append").arg(format!("console=ttyS0 quiet loglevel=2 panic=-1 forebay.script={script}"));
        qemu.stdin(Stdio::null()).stdout(Stdio::piped());
        qemu
    }
}

/// Whether a machine can run on this one's processors. The device alone says nothing: there are machines that have it and can't.
fn has_kvm() -> bool {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let can = flags
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"));
    can && fs::File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// Ended when it is dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Quotes a word for a shell.
pub fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// An error unless the path can be given on a kernel's command line.
fn plain(path: &Path) -> Result<String> {
    let text = path.display().to_string();
    ensure!(!text.contains([' ', '"', '\'', ',']), "{text}: a path with blanks, quotes or commas can't be used here");
    Ok(text)
}
