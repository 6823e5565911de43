//! Test runners that hang: says what every one of their threads waits for, and ends them, so that a run ends too and names the test.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use anyhow::{Context as _, Result};
use forebay_e2e::command::{command, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// No test is silent for so long: the slowest scenario takes two minutes on 2 busy cores.
pub const SILENCE: Duration = Duration::from_secs(8 * 60);

/// How the runners ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    /// All of them well.
    pub well: bool,
    /// The programs of those that were killed, which have told nothing of their tests.
    pub hung: Vec<String>,
}

/// Runs `cargo test` (or another parent of runners) and hands over each line of its output. Runners that say nothing for `silence` are killed with
/// all processes and mounts that they made: they end as failed, and the parent goes on with the next.
pub fn lines(parent: &mut Command, silence: Duration, mut show: impl FnMut(&str)) -> Result<Ended> {
    let mounts_before = mount_points()?;
    let mark = unique();
    parent.env(RUN, &mark);
    let mut running = parent.stdout(Stdio::piped()).spawn().context("starting the tests")?;
    let output = BufReader::new(running.stdout.take().context("the tests have no output")?);
    let (send, received) = sync_channel(64);
    std::thread::spawn(move || output.lines().map_while(Result::ok).all(|line| send.send(line).is_ok()));
    let parent = running.id();
    let mut runners = Vec::new();
    loop {
        match received.recv_timeout(silence) {
            Ok(line) => show(&line),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let hung: Vec<u32> = processes_of(&mark).into_iter().filter(|pid| *pid != parent).collect();
                eprintln!(
                    "== nothing was printed for {} s; the tests' threads, and what they wait for:",
                    silence.as_secs()
                );
                for pid in &hung {
                    describe(*pid);
                }
                runners.extend(hung.iter().filter(|pid| parent_of(**pid) == Some(parent)).map(|pid| program(*pid)));
                for pid in hung {
                    // It may end on its own meanwhile.
                    let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
                }
                for mount_point in mount_points()?.difference(&mounts_before) {
                    // By force, which ends the calls that wait for a FUSE daemon; lazily, since others may still be in there.
                    if let Err(error) = run(&mut command("umount", ["--force", "--lazy", mount_point])) {
                        eprintln!("{error:#}");
                    }
                }
            }
        }
    }
    let status = running.wait().context("waiting for the tests")?;
    if !status.success() {
        eprintln!("the tests ended with {status}");
    }
    Ok(Ended { well: status.success(), hung: runners })
}

/// Tells this run's processes from all others, whoever their parent is by now: they inherit it.
const RUN: &str = "FOREBAY_TEST_RUN";

fn unique() -> String {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    format!("{}-{now}", std::process::id())
}

/// All processes of the run with this mark.
fn processes_of(mark: &str) -> Vec<u32> {
    let mark = format!("{RUN}={mark}");
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let belongs = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    pids.filter(belongs).collect()
}

fn parent_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// The name of a process's program.
fn program(pid: u32) -> String {
    let path = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    path.file_name().map_or_else(|| format!("process {pid}"), |name| name.to_string_lossy().into_owned())
}

/// Prints a process and where in the kernel each of its threads is (which root alone may see).
fn describe(pid: u32) {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    eprintln!("{pid} {}", read("cmdline").replace('\0', " "));
    for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |name: &str| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
        let stack = read("stack");
        let frames = stack.lines().filter_map(|line| Some(line.split_once("] ")?.1.split_once('+')?.0));
        let functions: Vec<&str> = frames.collect();
        eprintln!("  {}: {}", read("comm").trim_end(), functions.join(" < "));
    }
}

/// Where something is mounted now.
fn mount_points() -> Result<BTreeSet<String>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("reading the mount table")?;
    Ok(table.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runner_that_hangs_is_ended_with_its_children_and_the_next_one_runs() {
        // One of what it leaves has lost its parent.
        let script =
            "echo first; sh -c '(sleep 1000 >/dev/null &); echo $FOREBAY_TEST_RUN; sleep 1001'; echo second $?";
        let mut seen = Vec::new();
        let ended =
            lines(&mut command("sh", ["-c", script]), Duration::from_millis(500), |line| seen.push(line.to_owned()));
        let shell = fs::canonicalize("/bin/sh").unwrap();
        let shell = shell.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(ended.unwrap(), Ended { well: true, hung: vec![shell] });
        // 137: ended by SIGKILL.
        assert_eq!((seen[0].as_str(), seen[2].as_str()), ("first", "second 137"));
        let mark = &seen[1];
        let began = std::time::Instant::now();
        // A process that was killed still has to end.
        while !processes_of(mark).is_empty() {
            assert!(began.elapsed() < Duration::from_secs(10), "{:?}", processes_of(mark));
            std::thread::yield_now();
        }
    }
}
