//! Preloading: every node loads the stripes it owns of the files that match. Desired state, not a queue: what is missing is looked up, loaded
//! with bounded concurrency, and looked up again while anything failed.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forebay_catalog::ObjectId;
use forebay_protocol::config::PreloadConfig;
use forebay_protocol::node;
use futures::{StreamExt, stream};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use parking_lot::Mutex;

use crate::dataset::{CatalogObject, Dataset};
use crate::fetch::{Ensured, FetchError, Fetcher, Purpose};
use crate::holdings::{Holdings, Tally};
use crate::store::Store;
use crate::units::{CHUNKS_PER_STRIPE, ChunkIndex, StripeIndex, chunk_count, stripe_count};

/// Most chunks that wait or are in flight for one dataset; [`Fetcher::preload_turn`] bounds them for the node.
const IN_FLIGHT: usize = 64;

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
    /// The progress that the sums and these failures make.
    pub fn progress(&self, tally: &Tally) -> node::PreloadProgress {
        let failed = self.failed.lock();
        node::PreloadProgress {
            total_files: tally.total_files,
            loaded_files: tally.loaded_files,
            total_bytes: tally.total_bytes,
            loaded_bytes: tally.loaded_bytes,
            failed_files: failed.all.len() as u64,
            failures: failed.named.values().take(NAMED).cloned().collect(),
            running: tally.loaded_bytes < tally.total_bytes && !self.stuck.load(Ordering::Relaxed),
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
    let table = holdings.catalog.table();
    let objects = stream::iter((0..table.len()).filter_map(|row| {
        let record = table.get(row)?;
        let again = row.checked_sub(1).and_then(|row| table.get(row)).is_some_and(|before| before.id == record.id);
        let wanted = !again && !store.is_complete(&record.id) && holdings.selects(&record);
        wanted.then(|| (dataset.object_of(&record), record.tree_path()))
    }));
    let chunks = objects.flat_map(|(object, path)| {
        let (holdings, object, path) = (Arc::clone(holdings), Arc::new(object), Arc::new(path));
        let stripes = (0..stripe_count(object.stored.size)).map(StripeIndex);
        let chunks: Vec<_> = stripes
            .filter(|stripe| holdings.members.owns(&object.stored.id, *stripe))
            .flat_map(|stripe| stripe.0 * CHUNKS_PER_STRIPE..(stripe.0 + 1) * CHUNKS_PER_STRIPE)
            .take_while(|chunk| *chunk < chunk_count(object.stored.size))
            .map(ChunkIndex)
            .collect();
        stream::iter(chunks.into_iter().map(move |chunk| (Arc::clone(&object), Arc::clone(&path), chunk)))
    });
    chunks
        .for_each_concurrent(IN_FLIGHT, |(object, path, chunk)| async move {
            let id = object.stored.id;
            match load(dataset, fetcher, store, &object, chunk).await {
                Ok(()) => dataset.preload_failures.clear(&id),
                Err(reason) => dataset.preload_failures.set(id, &path, reason),
            }
        })
        .await;
}

async fn load(
    dataset: &Arc<Dataset>,
    fetcher: &Arc<Fetcher>,
    store: &Store,
    object: &CatalogObject,
    chunk: ChunkIndex,
) -> Result<(), String> {
    if store.has(&object.stored.id, chunk) {
        return Ok(());
    }
    // To evict what was loaded before would make a preload that never ends.
    let length = chunk.range(object.stored.size).length;
    let _turn = fetcher.preload_turn(length).await;
    let Some(_room) = store.reserve(object.stored.dataset, length) else {
        return Err("no room: the cache, or the dataset's part of it, is full; give it more capacity or preload less"
            .to_owned());
    };
    let kept = |ensured| match ensured {
        Ensured::Present => Ok(()),
        Ensured::Fetched(fetched) => fetched.kept.map_err(|error| error.to_string()),
    };
    let ensured: Result<Ensured, FetchError> = fetcher.ensure(dataset, object, chunk, Purpose::Owner).await;
    ensured.map_err(|error| error.to_string()).and_then(kept)
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
