//! Small files are loaded before they are asked for. Readers open them one after the other, so a cold source would see one request at a time;
//! the node that owns the files watches what is missed and keeps [`IN_FLIGHT`] requests going, behind the readers' own, into room that is free.

mod index;
mod policy;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::dataset::{CatalogObject, Dataset};
use crate::fetch::turns::Load;
use crate::fetch::{Ensured, Fetcher, Purpose};
use crate::store::Store;
use crate::units::ChunkIndex;
use index::SmallFiles;
use policy::Readers;

/// Up to this size a file is small.
pub const SMALL: u64 = 1 << 20;

/// Files that are loaded at once, of all datasets.
const IN_FLIGHT: usize = 64;

/// Files that are passed over in one go because they are here; then it is somebody else's turn.
const LOOKS: usize = 4096;

/// Requests that wait to be looked at; more are not seen.
const UNSEEN: usize = 1024;

/// Hits are looked at only while something is loaded, and only so many in each [`TICK`]: they are many and tell little.
const HITS: u32 = 512;
const TICK: Duration = Duration::from_millis(100);

/// Misses of a dataset that make its files be sorted ...
const CURIOUS: usize = 3;
/// ... and how long that is kept without a reader.
const KEPT: Duration = Duration::from_secs(120);

/// So many failures in a row are the source's, not one bad file's.
const FAILURES: usize = 8;
/// After them, or without room, nothing is loaded for so long.
const REST: Duration = Duration::from_secs(10);

/// Watches readers of small files.
#[derive(Debug)]
pub struct Siblings {
    send: mpsc::Sender<Request>,
    hits: Arc<AtomicU32>,
    _task: AbortOnDropHandle<()>,
}

/// A reader's request for a small file.
#[derive(Debug)]
struct Request {
    dataset: Arc<Dataset>,
    source: usize,
    key: Vec<u8>,
    missed: bool,
}

impl Siblings {
    /// Begins to watch.
    pub fn start(fetcher: Arc<Fetcher>, store: Arc<Store>) -> Self {
        let (send, receive) = mpsc::channel(UNSEEN);
        let hits = Arc::new(AtomicU32::new(0));
        let loader = Loader {
            fetcher,
            store,
            watched: HashMap::new(),
            hits: Arc::clone(&hits),
            work: FuturesUnordered::new(),
            loading: 0,
        };
        Self { send, hits, _task: AbortOnDropHandle::new(tokio::spawn(loader.run(receive))) }
    }

    /// A reader, of this machine or by way of a peer, wants an object, which was here or `missed`. Costs next to nothing.
    pub fn observe(&self, dataset: &Arc<Dataset>, object: &CatalogObject, missed: bool) {
        if object.stored.size > SMALL {
            return;
        }
        let take = |left: u32| left.checked_sub(1);
        if !missed && self.hits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            return;
        }
        let (dataset, key) = (Arc::clone(dataset), object.version.key.clone());
        // Full: enough is known.
        let _ = self.send.try_send(Request { dataset, source: object.source, key, missed });
    }
}

struct Loader {
    fetcher: Arc<Fetcher>,
    store: Arc<Store>,
    watched: HashMap<String, Watched>,
    hits: Arc<AtomicU32>,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    loading: usize,
}

/// One dataset whose files are read.
struct Watched {
    dataset: Arc<Dataset>,
    files: Files,
    readers: Readers,
    last_request: Instant,
    failures: usize,
    resting_until: Option<Instant>,
}

enum Files {
    /// So many were missed since this time.
    Missed(usize, Instant),
    BeingSorted,
    Sorted(SmallFiles),
}

enum Done {
    Sorted(String, Arc<Dataset>, Option<SmallFiles>),
    Loaded(String, Outcome),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Loaded,
    NoRoom,
    Failed,
}

impl Loader {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => self.note(&request),
                    None => return,
                },
                Some(done) = self.work.next(), if !self.work.is_empty() => self.finish(done),
                _ = tick.tick(), if !self.watched.is_empty() => self.settle(),
            }
            self.load_more();
        }
    }

    fn note(&mut self, request: &Request) {
        let now = Instant::now();
        let uid = request.dataset.uid();
        // Another configuration, or other members, make another one.
        let current = self.watched.get(uid).is_some_and(|watched| Arc::ptr_eq(&watched.dataset, &request.dataset));
        if !current {
            let watched = Watched {
                dataset: Arc::clone(&request.dataset),
                files: Files::Missed(0, now),
                readers: Readers::default(),
                last_request: now,
                failures: 0,
                resting_until: None,
            };
            self.watched.insert(uid.to_owned(), watched);
        }
        let Some(watched) = self.watched.get_mut(uid) else { return };
        watched.last_request = now;
        match &mut watched.files {
            Files::Sorted(files) => {
                if watched.resting_until.is_some_and(|until| now < until) {
                    return;
                }
                // Files of others are for others to load.
                let Some(at) = files.position(request.source, &request.key) else { return };
                let folder = || files.folder(request.source, &request.key);
                let folder = if request.missed { folder() } else { 0..0 };
                watched.readers.asked(at, request.missed, folder, files.len(), now);
            }
            Files::BeingSorted => {}
            Files::Missed(count, since) => {
                if now.duration_since(*since) > policy::QUIET {
                    (*count, *since) = (0, now);
                }
                *count += 1;
                if *count >= CURIOUS
                    && let Some(catalog) = watched.dataset.catalog()
                {
                    watched.files = Files::BeingSorted;
                    let (uid, dataset) = (uid.to_owned(), Arc::clone(&watched.dataset));
                    let placed = Arc::clone(&dataset);
                    let sort =
                        move || SmallFiles::new(catalog, SMALL, |id| placed.placement.is_bringer(id, ChunkIndex(0)));
                    let sorting = tokio::task::spawn_blocking(sort);
                    self.work.push(Box::pin(async move {
                        let sorted = sorting.await;
                        let failed = |error| tracing::error!(%error, "sorting the small files of a dataset failed");
                        Done::Sorted(uid, dataset, sorted.map_err(failed).ok())
                    }));
                }
            }
        }
    }

    fn finish(&mut self, done: Done) {
        match done {
            Done::Sorted(uid, dataset, files) => {
                if let Some(watched) = self.watched.get_mut(&uid).filter(|w| Arc::ptr_eq(&w.dataset, &dataset)) {
                    watched.files = files.map_or_else(|| Files::Missed(0, Instant::now()), Files::Sorted);
                }
            }
            Done::Loaded(uid, outcome) => {
                self.loading = self.loading.saturating_sub(1);
                let Some(watched) = self.watched.get_mut(&uid) else { return };
                watched.failures = if outcome == Outcome::Failed { watched.failures + 1 } else { 0 };
                if outcome == Outcome::NoRoom || watched.failures >= FAILURES {
                    let dataset = watched.dataset.config.full_name();
                    tracing::debug!(dataset, ?outcome, "no small files are loaded ahead for now");
                    watched.readers.stop();
                    watched.failures = 0;
                    watched.resting_until = Some(Instant::now() + REST);
                }
            }
        }
    }

    fn settle(&mut self) {
        let now = Instant::now();
        for watched in self.watched.values_mut() {
            watched.readers.settle(now);
        }
        self.watched.retain(|_, watched| now.duration_since(watched.last_request) < KEPT);
        let active = self.watched.values().any(|watched| watched.readers.is_active());
        self.hits.store(if active { HITS } else { 0 }, Ordering::Relaxed);
    }

    /// Begins loads while there are turns, of one dataset after the other.
    fn load_more(&mut self) {
        let (mut more, mut looks) = (true, LOOKS);
        while self.loading < IN_FLIGHT && std::mem::take(&mut more) {
            for (uid, watched) in &mut self.watched {
                let Files::Sorted(files) = &watched.files else { continue };
                while self.loading < IN_FLIGHT
                    && looks > 0
                    && let Some(at) = watched.readers.next()
                {
                    let Some(record) = files.get(at) else { continue };
                    if self.store.has(&record.id, ChunkIndex(0)) {
                        watched.readers.was_here();
                        looks -= 1;
                        continue;
                    }
                    let object = watched.dataset.object_of(&record);
                    let (uid, dataset) = (uid.clone(), Arc::clone(&watched.dataset));
                    let (fetcher, store) = (Arc::clone(&self.fetcher), Arc::clone(&self.store));
                    self.loading += 1;
                    self.work.push(Box::pin(async move {
                        Done::Loaded(uid, load(&fetcher, &store, &dataset, &object).await)
                    }));
                    more = true;
                    break;
                }
            }
        }
    }
}

async fn load(fetcher: &Arc<Fetcher>, store: &Store, dataset: &Arc<Dataset>, object: &CatalogObject) -> Outcome {
    let length = object.stored.size;
    let _turn = fetcher.turns().take(Load::Own, length).await;
    // Never at the cost of what is here.
    let Some(_room) = store.reserve_free(object.stored.dataset, length) else { return Outcome::NoRoom };
    match fetcher.ensure(dataset, object, ChunkIndex(0), Purpose::Owner).await {
        Ok(Ensured::Present) => Outcome::Loaded,
        Ok(Ensured::Fetched(fetched)) if fetched.kept.is_ok() => Outcome::Loaded,
        Ok(Ensured::Fetched(_)) => Outcome::NoRoom,
        // Its reader will be told why.
        Err(_) => Outcome::Failed,
    }
}
