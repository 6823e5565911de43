//! Preloading: every node loads what it is to keep of the files that match. Desired state, not a queue: what is missing is looked up, loaded
//! with bounded concurrency, and looked up again while anything failed.
//!
//! With `Everywhere` a node brings its part from the source and at the same time takes the others' parts from those who bring them, each in
//! its bringer's own order, so that it asks for what is there or about to come.

mod work;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forebay_catalog::ObjectId;
use forebay_protocol::config::{PlacementMode, PreloadConfig};
use forebay_protocol::node;
use futures::future::join_all;
use futures::{StreamExt, stream};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use parking_lot::Mutex;

use crate::dataset::{CatalogObject, Dataset};
use crate::fetch::turns::Load;
use crate::fetch::{Ensured, FetchError, Fetcher, Purpose};
use crate::holdings::{Holdings, Tally};
use crate::store::Store;
use crate::units::ChunkIndex;
use work::{Group, Lane, Work};

/// Most chunks, or groups of small objects, of a dataset that wait or are in flight; [`Fetcher::turns`] bounds them for the node.
const IN_FLIGHT: usize = 64;

/// The same for what is asked of one bringer, so that a slow one holds nothing up but its own part.
const IN_FLIGHT_OF_A_BRINGER: usize = 2;

/// Objects of a group that wait or are in flight.
const IN_FLIGHT_OF_A_GROUP: usize = 64;

/// Failures that a status names, and those that are kept by name so that there are some to name when others are mended.
const NAMED: usize = 10;
const KEPT: usize = 100;

/// Between two rounds while something failed.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Which files are to be preloaded.
#[derive(Clone, Debug)]
pub struct Selection {
    globs: Option<(Option<GlobSet>, GlobSet)>,
}

impl Selection {
    /// The files that `config` names; nothing without one.
    pub fn new(config: Option<&PreloadConfig>) -> Result<Self, globset::Error> {
        let Some(config) = config else { return Ok(Self { globs: None }) };
        let include = if config.include.is_empty() { None } else { Some(glob_set(&config.include)?) };
        Ok(Self { globs: Some((include, glob_set(&config.exclude)?)) })
    }

    /// The files of a dataset that are to be loaded: with `Everywhere`, all where the config names none.
    pub fn of(preload: Option<&PreloadConfig>, mode: PlacementMode) -> Result<Self, globset::Error> {
        let everything = PreloadConfig::default();
        Self::new(preload.or((mode == PlacementMode::Everywhere).then_some(&everything)))
    }

    /// Nothing is to be preloaded.
    pub fn is_nothing(&self) -> bool {
        self.globs.is_none()
    }

    /// Everything is.
    pub fn is_everything(&self) -> bool {
        self.globs.as_ref().is_some_and(|(include, exclude)| include.is_none() && exclude.is_empty())
    }

    /// Whether the file at a path in the tree is.
    pub fn matches(&self, path: &[u8]) -> bool {
        let path = std::path::Path::new(std::os::unix::ffi::OsStrExt::from_bytes(path) as &std::ffi::OsStr);
        self.globs.as_ref().is_some_and(|(include, exclude)| {
            include.as_ref().is_none_or(|include| include.is_match(path)) && !exclude.is_match(path)
        })
    }
}

fn glob_set(patterns: &[String]) -> Result<GlobSet, globset::Error> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(GlobBuilder::new(pattern.trim_start_matches('/')).literal_separator(true).build()?);
    }
    set.build()
}

/// What could not be loaded when it was last tried.
#[derive(Debug, Default)]
pub struct Failures {
    failed: Mutex<Failed>,
    /// The last round loaded nothing although something is missing: what is left can't be loaded for now.
    stuck: AtomicBool,
}

#[derive(Debug, Default)]
struct Failed {
    all: HashSet<ObjectId>,
    named: BTreeMap<ObjectId, node::PreloadFailure>,
}

impl Failures {
    /// The progress that the sums and these failures make, where each file is kept by so many nodes.
    pub fn progress(&self, tally: &Tally, copies: usize) -> node::PreloadProgress {
        let failed = self.failed.lock();
        node::PreloadProgress {
            total_files: tally.total_files,
            loaded_files: tally.loaded_files,
            total_bytes: tally.total_bytes,
            loaded_bytes: tally.loaded_bytes,
            failed_files: failed.all.len() as u64,
            failures: failed.named.values().take(NAMED).cloned().collect(),
            running: tally.loaded_bytes < tally.total_bytes && !self.stuck.load(Ordering::Relaxed),
            copies: copies as u32,
        }
    }

    fn set(&self, id: ObjectId, path: &[u8], reason: String) {
        let mut failed = self.failed.lock();
        failed.all.insert(id);
        if failed.named.len() < KEPT || failed.named.contains_key(&id) {
            let path = String::from_utf8_lossy(path).into_owned();
            failed.named.insert(id, node::PreloadFailure { path, reason });
        }
    }

    fn clear(&self, id: &ObjectId) {
        let mut failed = self.failed.lock();
        failed.all.remove(id);
        failed.named.remove(id);
    }
}

/// Loads until everything that is to be here is here, and goes on when something is lost. Ends only when dropped.
pub async fn run(dataset: Arc<Dataset>, holdings: Arc<Holdings>, fetcher: Arc<Fetcher>, store: Arc<Store>) {
    if holdings.selection.is_nothing() {
        return;
    }
    let mut wait = FIRST_WAIT;
    loop {
        let before = holdings.tally().loaded_bytes;
        if before < holdings.tally().total_bytes {
            round(&dataset, &holdings, &fetcher, &store).await;
            // What was loaded last is counted when it is safe on the disk.
            if store.flush().await.is_err() {
                return;
            }
        }
        let after = holdings.tally();
        let done = after.loaded_bytes >= after.total_bytes;
        dataset.preload_failures.stuck.store(!done && after.loaded_bytes <= before, Ordering::Relaxed);
        wait = if done || after.loaded_bytes > before { FIRST_WAIT } else { (wait * 2).min(LONGEST_WAIT) };
        tokio::time::sleep(wait).await;
    }
}

async fn round(dataset: &Arc<Dataset>, holdings: &Arc<Holdings>, fetcher: &Arc<Fetcher>, store: &Arc<Store>) {
    let loader = Loader { dataset: Arc::clone(dataset), fetcher: Arc::clone(fetcher), store: Arc::clone(store) };
    let mut lanes = Vec::new();
    for lane in Lane::all(&holdings.placement) {
        let limit = if lane.load == Load::FromPeer { IN_FLIGHT_OF_A_BRINGER } else { IN_FLIGHT };
        let works = work::works(lane, Arc::clone(dataset), Arc::clone(holdings), Arc::clone(store));
        let loader = loader.clone();
        let load = move |work| loader.clone().load(work, lane.load);
        lanes.push(Box::pin(works.for_each_concurrent(limit, load)));
    }
    join_all(lanes).await;
}

#[derive(Clone)]
struct Loader {
    dataset: Arc<Dataset>,
    fetcher: Arc<Fetcher>,
    store: Arc<Store>,
}

impl Loader {
    async fn load(self, work: Work, load: Load) {
        match work {
            Work::Chunk { object, path, chunk } => self.load_chunk(&object, &path, chunk, load).await,
            Work::Group(group) => self.load_group(group, load).await,
        }
    }

    /// Loads small objects that come from the same place.
    async fn load_group(self, group: Group, load: Load) {
        let load = |(object, path): (CatalogObject, Vec<u8>)| {
            let loader = self.clone();
            async move { loader.load_chunk(&object, &path, ChunkIndex(0), load).await }
        };
        stream::iter(group.objects).for_each_concurrent(IN_FLIGHT_OF_A_GROUP, load).await;
    }

    async fn load_chunk(&self, object: &CatalogObject, path: &[u8], chunk: ChunkIndex, load: Load) {
        match self.try_load(object, chunk, load).await {
            Ok(()) => self.dataset.preload_failures.clear(&object.stored.id),
            Err(reason) => self.dataset.preload_failures.set(object.stored.id, path, reason),
        }
    }

    async fn try_load(&self, object: &CatalogObject, chunk: ChunkIndex, load: Load) -> Result<(), String> {
        if self.store.has(&object.stored.id, chunk) {
            return Ok(());
        }
        let length = chunk.range(object.stored.size).length;
        let _turn = self.fetcher.turns().take(load, length).await;
        // To evict what was loaded before would make a preload that never ends; copies of what others keep make room.
        let Some(_room) = self.store.reserve(object.stored.dataset, length) else {
            return Err(
                "no room: the cache, or the dataset's part of it, is full; give it more capacity or preload less"
                    .to_owned(),
            );
        };
        let kept = |ensured| match ensured {
            Ensured::Present => Ok(()),
            Ensured::Fetched(fetched) => fetched.kept.map_err(|error| error.to_string()),
        };
        let ensured: Result<Ensured, FetchError> =
            self.fetcher.ensure(&self.dataset, object, chunk, Purpose::Reader).await;
        ensured.map_err(|error| error.to_string()).and_then(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(include: &[&str], exclude: &[&str]) -> Selection {
        let texts = |globs: &[&str]| globs.iter().map(|&glob| glob.to_owned()).collect();
        Selection::new(Some(&PreloadConfig { include: texts(include), exclude: texts(exclude) })).unwrap()
    }

    #[test]
    fn a_star_does_not_cross_a_slash_and_exclusion_wins() {
        let images = selection(&["images/*.jpg", "**/*.png"], &["**/tmp/**"]);
        assert!(images.matches(b"images/a.jpg") && images.matches(b"a.png") && images.matches(b"x/y/z.png"));
        assert!(!images.matches(b"images/x/a.jpg") && !images.matches(b"x/tmp/z.png") && !images.matches(b"a.txt"));
        assert!(selection(&[], &[]).is_everything() && selection(&[], &[]).matches(b"\xff"));
        assert!(!selection(&[], &["b"]).is_everything());
        assert!(Selection::new(None).unwrap().is_nothing());
        assert!(Selection::new(Some(&PreloadConfig { include: vec!["[".to_owned()], exclude: vec![] })).is_err());
    }
}
