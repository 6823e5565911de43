//! A reference server of the local socket: fills backing files from the dataset's known content, chunk by chunk, as slowly as it is told.

use std::collections::{HashMap, HashSet};
use std::fs::File as StdFile;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay_catalog::ObjectId;
use forebay_protocol::fdsocket::{FdListener, FdSocket};
use forebay_protocol::local::{
    Closed, Ensured, Failed, FailureKind, Held, Opened, Request, Response, request::Call, response::Result as Answer,
};
use tokio::task::JoinHandle;

use super::{Dataset, File};

/// Unit of presence of the reference server: small, so that small tests have many.
pub const CHUNK: u64 = 256 << 10;

/// A running server; dropping it closes socket and connections.
pub struct Node {
    pub shared: Arc<Shared>,
    accept: Option<JoinHandle<()>>,
}

pub struct Shared {
    socket: PathBuf,
    datasets: Vec<Arc<Dataset>>,
    /// How long each chunk takes.
    pub delay: Mutex<Duration>,
    present: Mutex<HashMap<PathBuf, HashSet<u64>>>,
    /// Never call an object complete, so that all its reads go through the daemon.
    pub keep_partial: std::sync::atomic::AtomicBool,
    /// Files that fail, and how.
    pub failing: Mutex<HashMap<String, FailureKind>>,
    /// Leases that are held.
    pub leases: AtomicU64,
    pub opens: AtomicU64,
    pub ensures: AtomicU64,
    /// What it says that is held.
    pub held: Mutex<Held>,
    /// Bytes that the daemon reported as served.
    pub served: AtomicU64,
    /// How many opens of complete objects were reported to it.
    pub touched: Mutex<HashMap<ObjectId, u64>>,
}

impl Node {
    pub async fn start(socket: &Path, datasets: &[Arc<Dataset>]) -> Self {
        let shared = Arc::new(Shared {
            socket: socket.to_owned(),
            datasets: datasets.to_vec(),
            delay: Mutex::default(),
            present: Mutex::default(),
            failing: Mutex::default(),
            keep_partial: std::sync::atomic::AtomicBool::new(false),
            leases: AtomicU64::new(0),
            opens: AtomicU64::new(0),
            ensures: AtomicU64::new(0),
            served: AtomicU64::new(0),
            held: Mutex::default(),
            touched: Mutex::default(),
        });
        let mut node = Self { shared, accept: None };
        node.up().await;
        node
    }

    pub fn slow(&self, delay: Duration) {
        *self.shared.delay.lock().unwrap() = delay;
    }

    pub fn fail(&self, path: &str, kind: FailureKind) {
        self.shared.failing.lock().unwrap().insert(path.into(), kind);
    }

    /// Listens (again).
    pub async fn up(&mut self) {
        let listener = FdListener::bind(&self.shared.socket, 0o666, None).await.unwrap();
        let shared = Arc::clone(&self.shared);
        self.accept = Some(tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let socket = Arc::new(listener.accept().await.unwrap());
                connections.spawn(Arc::clone(&shared).connection(socket));
            }
        }));
    }

    /// Goes away with all connections, as if killed.
    pub async fn down(&mut self) {
        if let Some(task) = self.accept.take() {
            task.abort();
            let _ = task.await;
        }
        self.shared.leases.store(0, Ordering::SeqCst);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(task) = self.accept.take() {
            task.abort();
        }
    }
}

impl Shared {
    async fn connection(self: Arc<Self>, socket: Arc<FdSocket>) {
        let leases: Arc<Mutex<HashMap<u64, (File, PathBuf)>>> = Arc::default();
        let mut calls = tokio::task::JoinSet::new();
        while let Ok(Some((request, _))) = socket.receive::<Request>().await {
            let (shared, leases, socket) = (Arc::clone(&self), Arc::clone(&leases), Arc::clone(&socket));
            calls.spawn(async move {
                let (answer, file) = shared.call(request.call.unwrap(), &leases).await;
                if request.id != 0 {
                    let fds: Vec<_> = file.iter().map(AsFd::as_fd).collect();
                    let _ = socket.send(&Response { id: request.id, result: Some(answer) }, &fds).await;
                }
            });
            while calls.try_join_next().is_some() {}
        }
        calls.shutdown().await;
        let held = leases.lock().unwrap().len() as u64;
        self.leases.fetch_sub(held.min(self.leases.load(Ordering::SeqCst)), Ordering::SeqCst);
    }

    async fn call(&self, call: Call, leases: &Mutex<HashMap<u64, (File, PathBuf)>>) -> (Answer, Option<StdFile>) {
        match call {
            Call::Open(open) => {
                let dataset = self.datasets.iter().find(|dataset| dataset.uid == open.dataset_uid);
                let file = dataset.and_then(|dataset| {
                    let file = dataset.files.iter().find(|file| file.id.as_bytes()[..] == open.object_id)?;
                    Some((dataset, file))
                });
                let Some((dataset, file)) = file else {
                    return (failed(FailureKind::NotFound, "no such object"), None);
                };
                let lease = self.opens.fetch_add(1, Ordering::SeqCst) + 1;
                self.leases.fetch_add(1, Ordering::SeqCst);
                let (path, complete) = Self::backing_file(dataset, file);
                let opened = StdFile::open(&path).unwrap();
                leases.lock().unwrap().insert(lease, (file.clone(), path));
                (Answer::Opened(Opened { lease, size: file.size, complete }), Some(opened))
            }
            Call::Ensure(ensure) => {
                self.ensures.fetch_add(1, Ordering::SeqCst);
                let Some((file, path)) = leases.lock().unwrap().get(&ensure.lease).cloned() else {
                    return (failed(FailureKind::BadLease, "unknown lease"), None);
                };
                if let Some(kind) = self.failing.lock().unwrap().get(&file.path) {
                    return (failed(*kind, "as the test wants it"), None);
                }
                let (first, after) = (ensure.offset / CHUNK, (ensure.offset + ensure.length).div_ceil(CHUNK));
                for chunk in first..after {
                    self.fill(&file, &path, chunk).await;
                }
                let end = (after * CHUNK).min(file.size);
                let complete = self.maybe_complete(&file, &path);
                (Answer::Ensured(Ensured { offset: first * CHUNK, length: end - first * CHUNK, complete }), None)
            }
            Call::Close(close) => {
                if leases.lock().unwrap().remove(&close.lease).is_some() {
                    self.leases.fetch_sub(1, Ordering::SeqCst);
                }
                (Answer::Closed(Closed {}), None)
            }
            Call::Held(_) => (Answer::Held(*self.held.lock().unwrap()), None),
            Call::Touched(touched) => {
                for id in touched.object_ids.as_chunks().0 {
                    *self.touched.lock().unwrap().entry(ObjectId::from_bytes(*id)).or_default() +=
                        u64::from(touched.stands_for);
                }
                (Answer::Closed(Closed {}), None)
            }
            Call::Served(served) => {
                self.served.fetch_add(served.bytes, Ordering::SeqCst);
                (Answer::Closed(Closed {}), None)
            }
        }
    }

    fn backing_file(dataset: &Dataset, file: &File) -> (PathBuf, bool) {
        let complete = dataset.cache.objects().join(file.id.relative_path());
        if complete.exists() {
            return (complete, true);
        }
        let partial = dataset.cache.partial().join(file.id.relative_path());
        if !partial.exists() {
            std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
            // Another call may just have made it, and filled some of it.
            let made = StdFile::options().write(true).create(true).truncate(false).open(&partial).unwrap();
            made.set_len(file.size).unwrap();
        }
        (partial, false)
    }

    async fn fill(&self, file: &File, path: &Path, chunk: u64) {
        if self.present.lock().unwrap().entry(path.to_owned()).or_default().contains(&chunk) {
            return;
        }
        let delay = *self.delay.lock().unwrap();
        tokio::time::sleep(delay).await;
        let length = CHUNK.min(file.size - chunk * CHUNK) as usize;
        // Gone when another request has completed it meanwhile.
        if let Ok(backing) = StdFile::options().write(true).open(path) {
            backing.write_all_at(&file.bytes(chunk * CHUNK, length), chunk * CHUNK).unwrap();
        }
        self.present.lock().unwrap().entry(path.to_owned()).or_default().insert(chunk);
    }

    fn maybe_complete(&self, file: &File, partial: &Path) -> bool {
        let chunks = file.size.div_ceil(CHUNK) as usize;
        if self.keep_partial.load(Ordering::SeqCst) {
            return false;
        }
        if self.present.lock().unwrap().get(partial).is_none_or(|present| present.len() < chunks) {
            return false;
        }
        let objects = partial.parent().unwrap().parent().unwrap().with_file_name("objects");
        let complete = objects.join(file.id.relative_path());
        std::fs::create_dir_all(complete.parent().unwrap()).unwrap();
        // Fails when another request did it just before.
        let _ = std::fs::rename(partial, complete);
        true
    }
}

fn failed(kind: FailureKind, message: &str) -> Answer {
    Answer::Failed(Failed { kind: kind.into(), message: message.into() })
}
