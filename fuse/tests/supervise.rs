//! The program as a container runs it: a parent and its worker.

#![allow(clippy::unwrap_used)]

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use forebay_protocol::broker::{FromDaemon, FromPlugin, Hello, Serve, Stop, from_daemon, from_plugin};
use forebay_protocol::fdsocket::FdSocket;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The program, connecting to a broker that is this test. Killed at the end.
struct Program {
    child: Child,
    broker: UnixListener,
    folder: tempfile::TempDir,
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
        Self { child, broker: broker.into(), folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("broker.sock")
    }

    /// Runs a probe, as a container's exec probe does: nothing when the daemon is well, else why not.
    fn probe(&self, question: &str) -> Option<String> {
        let mut probe = Command::new(env!("CARGO_BIN_EXE_forebay-fuse"));
        let output = probe.arg("--broker").arg(self.socket()).args(["--probe", question]).output().unwrap();
        (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Waits until a probe says this: nothing when the daemon is to be well.
    fn until_probe_says(&self, question: &str, expected: Option<&str>) {
        let began = Instant::now();
        loop {
            let said = self.probe(question);
            match (&said, expected) {
                (None, None) => return,
                (Some(said), Some(expected)) if said.contains(expected) => return,
                _ => assert!(began.elapsed() < Duration::from_secs(20), "{question}: {said:?}, not {expected:?}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn parent(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Waits until a worker connects and says hello, with these descriptors.
    async fn hello(&self) -> (FdSocket, Hello, Vec<OwnedFd>) {
        let (connection, _) = self.broker.accept().unwrap();
        connection.set_nonblocking(true).unwrap();
        let socket = FdSocket::from_fd(connection.into()).unwrap();
        let (message, fds) = socket.receive::<FromDaemon>().await.unwrap().unwrap();
        let Some(from_daemon::Message::Hello(hello)) = message.message else { panic!("{message:?}") };
        (socket, hello, fds)
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

#[tokio::test]
async fn the_next_worker_has_what_the_killed_one_was_serving_and_nobody_else_has() {
    let program = Program::start();
    let (socket, hello, fds) = program.hello().await;
    assert_eq!((hello.session.as_str(), fds.len()), ("", 0));
    // In place of /dev/fuse: no request ever comes from it.
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
    let expected = inode(&reader);
    let session = "0:41-a".to_owned();
    let tell = |message| FromPlugin { message: Some(message) };
    let serve = tell(from_plugin::Message::Serve(Serve { session: session.clone() }));
    socket.send(&serve, &[reader.as_fd()]).await.unwrap();
    drop(reader);
    let mut socket = serving(socket).await;
    for _ in 0..3 {
        kill(Pid::from_raw(socket.peer().unwrap().pid), Signal::SIGKILL).unwrap();
        let (next, hello, fds) = program.hello().await;
        assert_eq!(hello.session, session);
        assert_eq!(fds.iter().map(inode).collect::<Vec<_>>(), [expected]);
        next.send(&serve, &[]).await.unwrap();
        socket = serving(next).await;
    }
    // A worker that does not serve yet lets go of it too.
    kill(Pid::from_raw(socket.peer().unwrap().pid), Signal::SIGKILL).unwrap();
    let (socket, _, fds) = program.hello().await;
    drop(fds);
    socket.send(&tell(from_plugin::Message::Stop(Stop { session })), &[]).await.unwrap();
    let began = Instant::now();
    // Once nobody has the other end.
    while rustix::io::write(&writer, b"x") != Err(rustix::io::Errno::PIPE) {
        assert!(began.elapsed() < Duration::from_secs(10), "somebody still has the session's descriptor");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    kill(Pid::from_raw(socket.peer().unwrap().pid), Signal::SIGKILL).unwrap();
    let (_, hello, fds) = program.hello().await;
    assert_eq!((hello.session.as_str(), fds.len()), ("", 0));
}

/// Waits until the worker at the other end serves.
async fn serving(socket: FdSocket) -> FdSocket {
    let (message, _) = socket.receive::<FromDaemon>().await.unwrap().unwrap();
    assert!(matches!(message.message, Some(from_daemon::Message::Serving(_))), "{message:?}");
    socket
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

#[tokio::test]
async fn a_probe_tells_a_worker_that_hangs_from_one_that_has_no_plugin() {
    let program = Program::start();
    let (socket, ..) = program.hello().await;
    let worker = Pid::from_raw(socket.peer().unwrap().pid);
    for question in ["alive", "ready"] {
        program.until_probe_says(question, None);
    }
    kill(worker, Signal::SIGSTOP).unwrap();
    for question in ["alive", "ready"] {
        program.until_probe_says(question, Some("the worker does not answer"));
    }
    kill(worker, Signal::SIGCONT).unwrap();
    program.until_probe_says("ready", None);
    drop(socket);
    program.until_probe_says("ready", Some("the CSI plugin is not connected"));
    assert_eq!(program.probe("alive"), None);
}

#[test]
fn the_next_worker_answers_probes_in_place_of_the_killed_one_and_knows_that_it_is_not_the_first() {
    let program = Program::start();
    for restarts in 0..3 {
        let worker = program.worker();
        program.until_probe_says("alive", None);
        let status = forebay_fuse::status::ask(&program.socket(), Duration::from_secs(5)).unwrap();
        assert_eq!(status.worker_restarts, restarts);
        kill(worker, Signal::SIGKILL).unwrap();
    }
}
