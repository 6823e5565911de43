//! A session whose log of requests is full. The test is at the other end of its descriptor, in the kernel's place, and is the cache node.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Instant;

use forebay_catalog::{CatalogOptions, CatalogSource, CatalogWriter, Mtime, ObjectTable, SourceIndex, TreeAttributes};
use forebay_protocol::fdsocket::FdListener;
use forebay_protocol::local::{Closed, Ensured, Opened, Request, Response, request::Call, response};
use tempfile::TempDir;

use super::*;
use crate::abi::{ROOT_ID, ReadIn};
use crate::request_log::ENTRIES;

const PAGE: u64 = 4096;
const PAGES: u64 = 256;
const FULL: u64 = ENTRIES as u64;

/// The counts are the process's, so one test has them at a time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

struct World {
    kernel: UnixDatagram,
    server: Server,
    log: OwnedFd,
    folder: TempDir,
    /// The only object.
    node_id: u64,
}

impl World {
    /// A session that is served, with an object whose cache node is away.
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source =
            CatalogSource { mount_path: "/".into(), url: "x".into(), identity: "x".into(), prefix: Vec::new() };
        let attributes = TreeAttributes { uid: 0, gid: 0, file_mode: 0o444, dir_mode: 0o555 };
        let mut writer = CatalogWriter::new(CatalogOptions { sources: vec![source], attributes }).unwrap();
        writer.add_file(SourceIndex(0), b"f", PAGES * PAGE, Mtime { seconds: 0, nanos: 0 }, "etag").unwrap();
        writer.finish(folder.path()).unwrap();
        let table = ObjectTable::open(&folder.path().join("objects.table")).unwrap();
        let node_id = table.get(0).unwrap().id.fuse_node_id();
        let registry = Registry::new();
        registry.mount("uid", "catalog", table, None, &folder.path().join("node.sock"));

        let (kernel, session) = UnixDatagram::pair().unwrap();
        kernel.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let log = request_log::create().unwrap();
        let taken = RequestLog::open(log.try_clone().unwrap()).unwrap();
        let server = Server::start(Arc::new(session.into()), registry, None, Some(taken)).unwrap();
        Self { kernel, server, log, folder, node_id }
    }

    fn ask(&self, opcode: u32, unique: u64, nodeid: u64, body: &[u8]) {
        let len = (size_of::<InHeader>() + body.len()) as u32;
        let header = InHeader { len, opcode, unique, nodeid, ..InHeader::default() };
        self.kernel.send(&[header.as_bytes(), body].concat()).unwrap();
    }

    /// Each reads a page, which its number tells.
    fn read(&self, uniques: impl IntoIterator<Item = u64>) {
        for unique in uniques {
            let offset = unique % PAGES * PAGE;
            let read = ReadIn { fh: 0, offset, size: PAGE as u32, read_flags: 0, lock_owner: 0, flags: 0, padding: 0 };
            self.ask(op::READ, unique, self.node_id, read.as_bytes());
        }
    }

    /// The next answer: to whom, the error, and what was read.
    fn answer(&self) -> (u64, i32, Vec<u8>) {
        let mut answer = vec![0; 2 * PAGE as usize];
        let length = self.kernel.recv(&mut answer).expect("no answer comes");
        let (header, body) = OutHeader::read_from_prefix(&answer[..length]).unwrap();
        (header.unique, header.error, body.to_vec())
    }

    /// The cache node comes back, and has all of the object.
    async fn node_comes_back(&self) {
        let object = File::create_new(self.folder.path().join("object")).unwrap();
        (0..PAGES).for_each(|number| object.write_all_at(&page(number), number * PAGE).unwrap());
        let listener = FdListener::bind(&self.socket(), 0o600, None).await.unwrap();
        tokio::spawn(async move {
            let socket = listener.accept().await.unwrap();
            while let Ok(Some((Request { id, call }, _))) = socket.receive::<Request>().await {
                let (lease, size, complete) = (1, PAGES * PAGE, true);
                let (answer, fds) = match call {
                    Some(Call::Open(_)) => {
                        (response::Result::Opened(Opened { lease, size, complete }), vec![object.as_fd()])
                    }
                    Some(Call::Ensure(_)) => {
                        (response::Result::Ensured(Ensured { offset: 0, length: size, complete }), Vec::new())
                    }
                    _ => (response::Result::Closed(Closed {}), Vec::new()),
                };
                if id != 0 {
                    socket.send(&Response { id, result: Some(answer) }, &fds).await.unwrap();
                }
            }
        });
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("node.sock")
    }
}

fn page(unique: u64) -> Vec<u8> {
    let number = (unique % PAGES) as u8;
    vec![number ^ 0x55; PAGE as usize]
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < Duration::from_secs(30), "waited for: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Waits until so many requests are put off, and so many of them are waited for by threads, none of which then counts as being at a request.
async fn until_waiting(waiting: u64, without_room: u64) {
    until(&format!("{waiting} requests wait, {without_room} of them without room"), || {
        let now = counters::snapshot();
        // Only a session's thread has had so many.
        let at_one = now.threads.iter().any(|(_, begun, at_one)| *at_one && *begun > FULL / 8);
        (now.waiting, now.without_room, at_one) == (waiting, without_room, false)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_full_log_all_are_answered_others_are_listened_to_and_no_thread_counts_as_hung() {
    let _alone = ALONE.lock().await;
    let world = World::start();
    world.read(1..=FULL);
    until_waiting(FULL, 0).await;

    // One more keeps the thread that has read it; the other listens.
    world.read([FULL + 1]);
    until_waiting(FULL + 1, 1).await;
    for unique in FULL + 2..FULL + 10 {
        world.ask(op::GETATTR, unique, ROOT_ID, &[]);
        let (answered, error, _) = world.answer();
        assert_eq!((answered, error), (unique, 0));
    }

    // Its reader can give up, as any other.
    world.ask(op::INTERRUPT, FULL + 10, 0, InterruptIn { unique: FULL + 1 }.as_bytes());
    let (answered, error, _) = world.answer();
    assert_eq!((answered, error), (FULL + 1, -(Errno::EINTR as i32)));
    until_waiting(FULL, 0).await;

    // Now both threads are kept; who comes then waits for them.
    world.read([FULL + 11, FULL + 12]);
    until_waiting(FULL + 2, 2).await;
    world.ask(op::GETATTR, FULL + 13, ROOT_ID, &[]);
    world.node_comes_back().await;
    let answers: BTreeMap<_, _> =
        (0..FULL + 3).map(|_| world.answer()).map(|(unique, e, read)| (unique, (e, read))).collect();
    let expected: Vec<_> = (1..=FULL).chain(FULL + 11..=FULL + 13).collect();
    assert_eq!(answers.keys().copied().collect::<Vec<_>>(), expected);
    for (unique, (error, read)) in answers {
        assert_eq!(error, 0, "{unique}");
        assert!(unique == FULL + 13 || read == page(unique), "{unique}");
    }
    until_waiting(0, 0).await;
    assert!(!world.server.log().unwrap().is_nearly_full());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_asked_to_end_leaves_what_its_threads_wait_for_in_the_log() {
    let _alone = ALONE.lock().await;
    let world = World::start();
    world.read(1..=FULL);
    until_waiting(FULL, 0).await;
    world.read([FULL + 1]);
    until_waiting(FULL + 1, 1).await;
    let World { server, log, kernel: _kernel, folder: _folder, .. } = world;
    tokio::time::timeout(Duration::from_secs(30), server.stop()).await.expect("it waits for the cache node");
    let next = RequestLog::open(log).unwrap();
    until("the next one finds them all", || next.left(true).unwrap().requests.len() as u64 == FULL + 1).await;
    // It has room for them.
    assert!(!next.is_nearly_full());
    until_waiting(0, 0).await;
}
