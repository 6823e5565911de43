//! The parent of the daemon's worker: starts it again at once when it dies, since the kubelet would wait longer from crash to crash while readers
//! wait with it. Holds what workers leave for the next one ([`crate::keeper`]). Does nothing else, so that nothing else can kill it.
//! Requests that the worker was serving are sent again by the kernel to the next one.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, getppid};

/// A worker that lives longer than this did not fail to start.
const STARTED: Duration = Duration::from_secs(2);

/// Workers that may end by themselves in a row without having lived that long. The last one's status becomes the parent's, for the kubelet to
/// show. One that is killed did not fail.
const FAILED_STARTS: u32 = 10;

/// Pause before the second of them; it grows with each.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs `worker`, and again when it dies, until SIGTERM or SIGINT: the worker gets it too, and its end is the end. Gives the exit code.
///
/// Must be called before the process has threads: they would get the signals.
pub fn run(mut worker: impl FnMut() -> Command) -> io::Result<i32> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let mut failed_starts = 0;
    loop {
        let began = Instant::now();
        let (status, told_to_end) = watch(worker().spawn()?, &signals)?;
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
        if told_to_end {
            return Ok(code);
        }
        let killed = status.signal() == Some(Signal::SIGKILL as i32);
        failed_starts = if killed || began.elapsed() > STARTED { 0 } else { failed_starts + 1 };
        tracing::error!(%status, failed_starts, "the worker died; the next one takes over what it was serving");
        if failed_starts >= FAILED_STARTS {
            tracing::error!("{failed_starts} workers in a row died within {STARTED:?}; giving up");
            return Ok(if code == 0 { 1 } else { code });
        }
        std::thread::sleep(PAUSE * failed_starts.saturating_sub(1));
    }
}

/// Waits for the end of a worker; passes on what it is told meanwhile. The status, and whether it was told to end.
fn watch(mut child: Child, signals: &SigSet) -> io::Result<(ExitStatus, bool)> {
    let mut told_to_end = false;
    loop {
        // Of a worker that has died already, SIGCHLD is pending.
        let signal = signals.wait()?;
        if signal != Signal::SIGCHLD {
            told_to_end = true;
            // It may just have died; then its status comes next.
            let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
        }
        if let Some(status) = child.try_wait()? {
            return Ok((status, told_to_end));
        }
    }
}

/// For the worker, before it has threads: it gets signals again, and dies with its parent, whose death nobody else would notice outside a
/// container.
pub fn begin_worker() -> io::Result<()> {
    SigSet::empty().thread_set_mask()?;
    let parent = getppid();
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != parent {
        return Err(io::Error::other("the parent is gone"));
    }
    Ok(())
}
