//! The program as a container runs it: a parent and its worker.

#![allow(clippy::unwrap_used)]

use std::os::unix::net::UnixListener;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The program, connecting to a broker that is this test. Killed at the end.
struct Program {
    child: Child,
    broker: UnixListener,
    _folder: tempfile::TempDir,
}

impl Program {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("broker.sock");
        let broker = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Unix,
            nix::sys::socket::SockType::SeqPacket,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        let address = nix::sys::socket::UnixAddr::new(&socket).unwrap();
        nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&broker), &address).unwrap();
        nix::sys::socket::listen(&broker, nix::sys::socket::Backlog::new(8).unwrap()).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_forebay-fuse")).arg("--broker").arg(&socket).spawn().unwrap();
        Self { child, broker: broker.into(), _folder: folder }
    }

    fn parent(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Waits until a worker connects: the worker's pid.
    fn worker(&self) -> Pid {
        let (connection, _) = self.broker.accept().unwrap();
        let credentials =
            nix::sys::socket::getsockopt(&connection, nix::sys::socket::sockopt::PeerCredentials).unwrap();
        Pid::from_raw(credentials.pid())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until_gone(pid: Pid) {
    let began = Instant::now();
    while kill(pid, None).is_ok() {
        assert!(began.elapsed() < Duration::from_secs(10), "process {pid} is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_worker_that_is_killed_is_followed_by_the_next_at_once() {
    let program = Program::start();
    let mut worker = program.worker();
    assert_ne!(worker, program.parent());
    for _ in 0..15 {
        let killed = Instant::now();
        kill(worker, Signal::SIGKILL).unwrap();
        let next = program.worker();
        assert_ne!(next, worker);
        assert!(killed.elapsed() < Duration::from_secs(1), "the next worker took {:?}", killed.elapsed());
        worker = next;
    }
}

#[test]
fn told_to_end_both_end_and_well() {
    let mut program = Program::start();
    let worker = program.worker();
    kill(program.parent(), Signal::SIGTERM).unwrap();
    assert!(program.child.wait().unwrap().success());
    until_gone(worker);
}

#[test]
fn a_worker_does_not_outlive_its_parent() {
    let mut program = Program::start();
    let worker = program.worker();
    program.child.kill().unwrap();
    program.child.wait().unwrap();
    until_gone(worker);
}
