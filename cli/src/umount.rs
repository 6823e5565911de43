//! `forebay umount DIR`: unmounts, which ends the process that serves the mount, and waits for that end, so that the cache folder is free
//! when the command returns. Also clears away a mount whose process was killed.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, pidfd_open};

use crate::args::UmountArgs;
use crate::mounted::{self, Mounted, Unmounted, users};

/// How long the process may take to write its index and end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the command.
pub fn run(args: &UmountArgs) -> anyhow::Result<ExitCode> {
    let directory = mounted::resolve(&args.directory)?;
    let Some(mounted) = mounted::at(&directory).context("reading /proc/self/mountinfo")? else {
        bail!("{}", nothing_of_ours(&directory)?);
    };
    if !rustix::process::geteuid().is_root() {
        bail!("unmounting {} needs root: run the command with sudo", directory.display());
    }
    let process = if mounted.is_served() { pidfd_open(mounted.pid, PidfdFlags::empty()).ok() } else { None };
    if mounted.unmount()? == Unmounted::Busy {
        let directory = directory.display();
        let users = users::list(&users::find(&mounted.directory));
        bail!(
            "{directory} is in use by {users}: end them, or let go of it now and for them later with `umount --lazy {directory}`"
        );
    }
    match process {
        Some(process) => wait_for_end(&mounted, &process),
        None => Ok(ExitCode::SUCCESS),
    }
}

fn nothing_of_ours(directory: &std::path::Path) -> anyhow::Result<String> {
    let other = forebay_csi::mount::mountinfo::mounted_at(directory).context("reading /proc/self/mountinfo")?;
    let shown = directory.display();
    Ok(match other {
        Some((mount, _)) => {
            format!("{shown} is a mount of {} ({}), which `forebay mount` did not make", mount.source, mount.filesystem)
        }
        None => format!(
            "nothing is mounted at {shown}; `findmnt --types overlay,fuse.forebay` lists what is, with the source forebay:PID"
        ),
    })
}

fn wait_for_end(mounted: &Mounted, process: &std::os::fd::OwnedFd) -> anyhow::Result<ExitCode> {
    let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let mut ends = [PollFd::new(process, PollFlags::IN)];
    loop {
        match poll(&mut ends, Some(&timeout)) {
            Ok(0) => bail!(
                "{directory} is unmounted, but process {pid} goes on after {seconds} s: the tree is still mounted elsewhere (a bind mount, or a \
                 container that has seen it), or the cache's disk hangs; `kill {pid}` ends it",
                directory = mounted.directory.display(),
                pid = mounted.pid.as_raw_pid(),
                seconds = PATIENCE.as_secs()
            ),
            Ok(_) => return Ok(ExitCode::SUCCESS),
            Err(Errno::INTR) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("waiting for process {}", mounted.pid.as_raw_pid()));
            }
        }
    }
}
