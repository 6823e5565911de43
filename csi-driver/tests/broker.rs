//! The broker: how much code it is, and to whom it listens.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forebay_csi::broker::{Broker, NotServed};
use forebay_protocol::broker::{FromDaemon, FromPlugin, Hello, Registrar, Serving, Status, from_daemon, from_plugin};
use forebay_protocol::fdsocket::FdSocket;
use support::Scratch;

/// A broker that holds a session and takes this process's user for the daemon's.
async fn broker(scratch: &Scratch) -> (Broker, PathBuf) {
    let socket = scratch.path().join("broker.sock");
    let broker = Broker::listen(&socket, None, nix::unistd::geteuid().as_raw()).await.unwrap();
    // In place of /dev/fuse.
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    broker.hold_session("0:41-a", reader, None);
    broker.recovered();
    (broker, socket)
}

fn tell(message: from_daemon::Message) -> FromDaemon {
    FromDaemon { message: Some(message) }
}

/// What the broker sends within a time: none when it hangs up.
async fn answer(socket: &FdSocket, patience: Duration) -> Option<(FromPlugin, Vec<OwnedFd>)> {
    let answer = tokio::time::timeout(patience, socket.receive::<FromPlugin>()).await;
    // A connection that is reset has ended too.
    answer.expect("the broker neither answers nor hangs up").unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_is_given_to_who_says_hello_and_to_nobody_who_does_not() {
    let scratch = Scratch::new();
    let (_broker, path) = broker(&scratch).await;
    let soon = Duration::from_secs(2);

    // Something else than a hello, and a registrar of another session.
    for message in [
        tell(from_daemon::Message::Serving(Serving { session: "0:41-a".to_owned() })),
        tell(from_daemon::Message::Registrar(Registrar { session: "0:41-b".to_owned() })),
    ] {
        let socket = FdSocket::connect(&path).await.unwrap();
        socket.send(&message, &[]).await.unwrap();
        let answer = answer(&socket, soon).await;
        assert!(answer.is_none(), "{message:?} was answered by {answer:?}");
    }

    // Nothing at all: it is not waited for without end.
    let silent = FdSocket::connect(&path).await.unwrap();
    let since = Instant::now();
    assert!(answer(&silent, Duration::from_secs(20)).await.is_none());
    assert!(since.elapsed() > Duration::from_secs(1), "a daemon that is slow to start must have time to say hello");

    let daemon = FdSocket::connect(&path).await.unwrap();
    daemon.send(&tell(from_daemon::Message::Hello(Hello::default())), &[]).await.unwrap();
    let (message, fds) = answer(&daemon, soon).await.unwrap();
    assert!(matches!(message.message, Some(from_plugin::Message::Serve(_))), "{message:?}");
    assert_eq!(fds.len(), 1);
}

/// A daemon that was given the session.
async fn daemon(path: &Path) -> FdSocket {
    let daemon = FdSocket::connect(path).await.unwrap();
    daemon.send(&tell(from_daemon::Message::Hello(Hello::default())), &[]).await.unwrap();
    let (message, _) = answer(&daemon, Duration::from_secs(10)).await.unwrap();
    assert!(matches!(message.message, Some(from_plugin::Message::Serve(_))), "{message:?}");
    daemon
}

/// The number of the question that comes next.
async fn question(daemon: &FdSocket) -> u64 {
    match answer(daemon, Duration::from_secs(10)).await.unwrap().0.message {
        Some(from_plugin::Message::Ask(ask)) => ask.number,
        other => panic!("{other:?}"),
    }
}

/// The number of the question that comes after a catalog.
async fn question_after_a_catalog(daemon: &FdSocket) -> u64 {
    let (message, _) = answer(daemon, Duration::from_secs(10)).await.unwrap();
    assert!(matches!(message.message, Some(from_plugin::Message::Mounted(_))), "{message:?}");
    question(daemon).await
}

async fn know_all(daemon: &FdSocket, number: u64) {
    let status = Status { number, ..Status::default() };
    daemon.send(&tell(from_daemon::Message::Status(status)), &[]).await.unwrap();
}

/// Whoever opened a file before that would be told that there is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalog_is_served_when_all_daemons_have_taken_note_of_it() {
    let scratch = Scratch::new();
    let (broker, path) = broker(&scratch).await;
    let patience = Duration::from_secs(30);
    // The second has begun to serve and not come to say so.
    let (one, two) = (daemon(&path).await, daemon(&path).await);
    let serving = Serving { session: "0:41-a".to_owned() };
    one.send(&tell(from_daemon::Message::Serving(serving)), &[]).await.unwrap();
    let (table, _writer) = rustix::pipe::pipe().unwrap();
    broker.mounted("uid", "catalog", table, None, Path::new("node.sock"), Vec::new());
    let mut served = tokio::spawn({
        let broker = broker.clone();
        async move { broker.wait_catalogs(patience).await }
    });
    let number = question_after_a_catalog(&one).await;
    know_all(&one, number).await;
    question_after_a_catalog(&two).await;
    let too_soon = tokio::time::timeout(Duration::from_millis(300), &mut served).await;
    assert!(too_soon.is_err(), "the second daemon has not taken note of it: {too_soon:?}");
    // It takes up no opens any more.
    drop(two);
    served.await.unwrap().unwrap();

    // One that takes up requests and is stuck in what it was told serves nothing new.
    let stuck = broker.wait_catalogs(Duration::from_millis(300)).await;
    assert_eq!(stuck, Err(NotServed::NotYet));
    broker.wait_served(patience).await.expect("it has the session all the same");
    drop(one);
    support::until("it is gone", || broker.standing().daemons == 0).await;
    assert_eq!(broker.wait_catalogs(Duration::from_millis(300)).await, Err(NotServed::NoDaemon));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_user_is_refused_before_a_word_is_said() {
    let scratch = Scratch::new();
    let socket = scratch.path().join("broker.sock");
    let broker = Broker::listen(&socket, None, nix::unistd::geteuid().as_raw() + 1).await.unwrap();
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    broker.hold_session("0:41-a", reader, None);
    broker.recovered();
    let stranger = FdSocket::connect(&socket).await.unwrap();
    // Refused before or after it could be sent.
    let _ = stranger.send(&tell(from_daemon::Message::Hello(Hello::default())), &[]).await;
    let answer = answer(&stranger, Duration::from_secs(2)).await;
    assert!(answer.is_none(), "{answer:?}");
}

/// Lines of a file, or of all files of a folder.
fn lines(path: &Path) -> usize {
    if path.is_dir() {
        return std::fs::read_dir(path).unwrap().map(|entry| lines(&entry.unwrap().path())).sum();
    }
    std::fs::read_to_string(path).unwrap().lines().count()
}

/// What the daemon can make a privileged process do must stay small enough to be read in an hour. Comments and tests count.
#[test]
fn the_broker_and_what_mounts_are_fewer_than_1500_lines() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let parts = [
        "csi-driver/src/broker",
        "csi-driver/src/registrar.rs",
        "csi-driver/src/mount",
        "fuse/src/passthrough/device.rs",
    ];
    let counts = parts.map(|part| (part, lines(&root.join(part))));
    let all: usize = counts.iter().map(|(_, lines)| lines).sum();
    assert!(all < 1500, "{all} lines: {counts:?}");
}
