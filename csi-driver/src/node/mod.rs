//! Staging and publishing volumes, as plain functions that know nothing of gRPC. What is mounted is derived from the mount table and the volumes'
//! records, never remembered, so a call may be repeated, in parallel or after a restart, and does the same.

mod error;
mod mounts;
mod opens;
mod publish;
mod restore;
mod space;
mod stage;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::attributes::Attributes;
use crate::broker::Broker;
use crate::datasets::Datasets;
use crate::events::Events;
use crate::mode::{Mode, Wanted};
use crate::mount;
use crate::opens::Schedule;
use crate::paths::Paths;
pub use crate::volumes::Pod;
use crate::volumes::Volumes;
pub use error::NodeError;
use error::file_error;
use mounts::is_shown_at;

/// Volumes on this node. Clones are the same.
#[derive(Clone)]
pub struct Node {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    paths: Paths,
    datasets: Datasets,
    broker: Broker,
    /// How new volumes are to be mounted.
    wanted: Wanted,
    volumes: Volumes,
    events: Events,
    /// Sockets of cache nodes that are away, since when.
    away: Mutex<HashMap<PathBuf, tokio::time::Instant>>,
    /// One call at a time per volume.
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Held while mounts that volumes share are made or taken away.
    common_mounts: tokio::sync::Mutex<()>,
}

/// Files and bytes of a volume, and whether something is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Files in the tree.
    pub files: u64,
    /// Sum of their sizes.
    pub bytes: u64,
    /// What is wrong, if anything.
    pub problem: Option<String>,
}

impl Node {
    /// The node's volumes. Takes up what a predecessor left: the session, the catalogs of staged volumes; and removes what nobody needs.
    /// Volumes that are staged stay in the mode they have, whatever is `wanted` of new ones.
    pub async fn start(
        name: &str,
        paths: Paths,
        datasets: Datasets,
        broker: Broker,
        wanted: Wanted,
    ) -> Result<Self, NodeError> {
        for folder in [paths.volumes(), paths.catalogs(), paths.object_fuse()] {
            mount::make_mount_point(&folder)?;
        }
        let volumes = Volumes::open(&paths.volumes()).map_err(file_error("opening", &paths.volumes()))?;
        let shared = Shared {
            name: name.to_owned(),
            events: Events::new(&datasets, name),
            paths,
            datasets,
            broker,
            wanted,
            volumes,
            away: Mutex::default(),
            locks: Mutex::default(),
            common_mounts: tokio::sync::Mutex::default(),
        };
        let node = Self { shared: Arc::new(shared) };
        node.shared.recover().await?;
        node.shared.broker.recovered();
        tokio::spawn(restore::watch(Arc::downgrade(&node.shared)));
        tokio::spawn(space::look_after_caches(Arc::downgrade(&node.shared)));
        Ok(node)
    }

    /// Watches, from now on, which cached files are opened in mode Kernel.
    pub fn watch_opens(&self, schedule: Schedule) {
        tokio::spawn(opens::watch_opens(Arc::downgrade(&self.shared), schedule));
    }

    /// How many volumes are staged, and published, by how they are shown.
    pub fn volumes(&self) -> Result<Vec<(Mode, usize, usize)>, NodeError> {
        let volumes = self.shared.all_volumes()?;
        let of = |mode| {
            let shown: Vec<_> = volumes.iter().filter(|volume| volume.shown.mode() == mode).collect();
            (mode, shown.len(), shown.iter().map(|volume| volume.published.len()).sum())
        };
        Ok(vec![of(Mode::Kernel), of(Mode::Fuse)])
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Mounts a volume's tree at `staging_path`.
    pub async fn stage(
        &self,
        id: &str,
        attributes: HashMap<String, String>,
        staging_path: &Path,
    ) -> Result<(), NodeError> {
        let attributes = Attributes::read(&attributes).map_err(NodeError::Invalid)?;
        let staging_path = staging_path.to_owned();
        let call =
            move |node: Arc<Shared>, id: String| async move { node.stage(&id, &attributes, &staging_path).await };
        self.shared.exclusively(id, call).await
    }

    /// Takes it away, and what nobody else needs.
    pub async fn unstage(&self, id: &str, staging_path: &Path) -> Result<(), NodeError> {
        let staging_path = staging_path.to_owned();
        let call = move |node: Arc<Shared>, id: String| async move { node.unstage(&id, &staging_path).await };
        self.shared.exclusively(id, call).await
    }

    /// Shows the staged tree at `target`, to `pod` if the kubelet said which.
    pub async fn publish(
        &self,
        id: &str,
        staging_path: &Path,
        target: &Path,
        pod: Option<Pod>,
    ) -> Result<(), NodeError> {
        let (staging_path, target) = (staging_path.to_owned(), target.to_owned());
        let call =
            move |node: Arc<Shared>, id: String| async move { node.publish(&id, &staging_path, &target, pod).await };
        self.shared.exclusively(id, call).await
    }

    /// Mounts an inline volume of a pod at `target`.
    pub async fn publish_inline(
        &self,
        id: &str,
        attributes: HashMap<String, String>,
        target: &Path,
    ) -> Result<(), NodeError> {
        let attributes = Attributes::read(&attributes).map_err(NodeError::Invalid)?;
        let target = target.to_owned();
        let call =
            move |node: Arc<Shared>, id: String| async move { node.publish_inline(&id, &attributes, &target).await };
        self.shared.exclusively(id, call).await
    }

    /// Takes it away and removes `target`; an inline volume goes with it.
    pub async fn unpublish(&self, id: &str, target: &Path) -> Result<(), NodeError> {
        let target = target.to_owned();
        let call = move |node: Arc<Shared>, id: String| async move { node.unpublish(&id, &target).await };
        self.shared.exclusively(id, call).await
    }

    /// Figures of a volume, from its record: never touches the mount, so it can't hang on a slow source.
    pub fn stats(&self, id: &str, path: &Path) -> Result<Stats, NodeError> {
        let volume = self
            .shared
            .volume(id)?
            .ok_or_else(|| NodeError::NotFound(format!("volume {id} is not staged on this node")))?;
        if !is_shown_at(&volume, path)? {
            return Err(NodeError::NotFound(format!("volume {id} is not mounted at {}", path.display())));
        }
        let problem = if !self.shared.is_served(&volume) {
            Some(
                "plugin and FUSE daemon of this node were down at once; the volume is mounted anew as soon as both are there: see the pods of both",
            )
        } else if volume.published.get(path).is_some_and(|published| published.mounted_over) {
            Some(restore::LOST)
        } else {
            None
        };
        let problem = problem.map(ToOwned::to_owned).or_else(|| self.shared.cache_problem(&volume.node_socket));
        Ok(Stats { files: volume.files, bytes: volume.bytes, problem })
    }
}

impl Shared {
    /// Runs a call of one volume after those before it, to its end even if the caller gives up: half a mount helps nobody.
    async fn exclusively<F, T>(self: &Arc<Self>, id: &str, call: F) -> Result<(), NodeError>
    where
        F: FnOnce(Arc<Shared>, String) -> T + Send + 'static,
        T: Future<Output = Result<(), NodeError>> + Send + 'static,
    {
        let (node, id) = (Arc::clone(self), id.to_owned());
        let lock = {
            let mut locks = node.locks.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody waits for or holds.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(id.clone()).or_default())
        };
        let task = tokio::spawn(async move {
            let _guard = lock.lock_owned().await;
            call(node, id).await
        });
        task.await.unwrap_or_else(|error| Err(NodeError::NotYet(format!("the call was broken off: {error}"))))
    }
}
