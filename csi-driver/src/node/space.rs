//! Looks after each cache that trees of this node are mounted over: the space that evicted objects keep, and whether its node is there.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, Weak};
use std::time::Duration;

use forebay_fuse::NODE_PATIENCE;
use tokio::time::Instant;

use super::Shared;
use super::mounts::is_shown_at;
use crate::space::{LOOK, Space};
use crate::volumes::{Shown, Volume};

/// A cache node that restarts is away for less.
const RESTART: Duration = Duration::from_secs(15);

/// The Event's reason.
const REASON: &str = "CacheNodeAway";

/// A cache.
struct Cache {
    space: Space,
    away: Option<Instant>,
    told: bool,
}

/// Runs as long as the node lives.
pub(super) async fn look_after_caches(node: Weak<Shared>) {
    let mut caches: HashMap<PathBuf, Cache> = HashMap::new();
    let Some(metrics) = node.upgrade().map(|node| node.broker.metrics()) else { return };
    let mut interval = tokio::time::interval(LOOK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let volumes = {
            let Some(node) = node.upgrade() else { return };
            let volumes = node.mounted_by_cache();
            for (socket, _) in caches.extract_if(|socket, _| !volumes.contains_key(socket)) {
                metrics.forget_cache(&runtime_of(&socket));
            }
            for socket in volumes.keys() {
                let new = || Cache { space: Space::new(socket), away: None, told: false };
                caches.entry(socket.clone()).or_insert_with(new);
            }
            for (socket, cache) in &mut caches {
                node.note_whether_there(socket, cache, volumes.get(socket).map_or(&[], Vec::as_slice)).await;
            }
            volumes
        };
        let mut looks = Vec::new();
        for (socket, cache) in &mut caches {
            // A tree of the object FUSE itself keeps nothing that is not open.
            let volumes = volumes.get(socket).into_iter().flatten().filter(|it| it.shown == Shown::Overlay);
            looks.push(cache.space.look(volumes.map(|volume| volume.staging_path.clone()).collect()));
        }
        metrics.remounted(futures::future::join_all(looks).await.iter().sum());
        for (socket, cache) in &caches {
            metrics.cache(&runtime_of(socket), cache.space.is_node_there(), cache.space.held_bytes());
        }
    }
}

/// `namespace.name` of the runtime whose cache node listens at a socket.
fn runtime_of(socket: &Path) -> String {
    socket.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

impl Shared {
    /// By the socket of their cache's node, the volumes that are mounted.
    fn mounted_by_cache(&self) -> HashMap<PathBuf, Vec<Volume>> {
        let mut volumes: HashMap<_, Vec<_>> = HashMap::new();
        // What can't be read is told by those who need it.
        for volume in self.volumes.all().unwrap_or_default() {
            if is_shown_at(&volume, &volume.staging_path).unwrap_or_default() {
                volumes.entry(volume.node_socket.clone()).or_default().push(volume);
            }
        }
        volumes
    }

    async fn note_whether_there(&self, socket: &Path, cache: &mut Cache, volumes: &[Volume]) {
        if cache.space.is_node_there() {
            (cache.away, cache.told) = (None, false);
            self.away().remove(socket);
            return;
        }
        let since = *cache.away.get_or_insert_with(Instant::now);
        self.away().insert(socket.to_owned(), since);
        if since.elapsed() < NODE_PATIENCE || cache.told {
            return;
        }
        cache.told = true;
        for volume in volumes {
            let note = format!(
                "the cache node of this pod's node has been away for {} s: files of Dataset {} that are not cached wholly can't be read until it is back; see the pods of the CacheRuntime",
                since.elapsed().as_secs(),
                volume.dataset
            );
            for pod in volume.published.values().filter_map(|place| place.pod.as_ref()) {
                self.events.warn(pod, REASON, &note).await;
            }
        }
    }

    /// What is wrong with the cache node behind a socket, if it is away for longer than a restart takes.
    pub(super) fn cache_problem(&self, socket: &Path) -> Option<String> {
        let away = self.away().get(socket).copied().map(|since| since.elapsed()).filter(|away| *away >= RESTART)?;
        Some(format!(
            "the node's cache node has been away for {} s: files that are not cached wholly wait for it; see the pods of the CacheRuntime",
            away.as_secs()
        ))
    }

    fn away(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, Instant>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
