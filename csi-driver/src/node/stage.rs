//! Staging a volume: from its attributes to a catalog on this node, and then its mounts.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use forebay_catalog::{CATALOG_SUMMARY, CatalogSummary};
use forebay_protocol::layout::{CacheLayout, node_socket};
use rustix::fs::OFlags;
use tokio::time::Instant;

use super::Shared;
use super::error::{NodeError, blocking};
use super::mounts::{FOLDER, is_shown_at, slot_of};
use crate::attributes::Attributes;
use crate::datasets::{ResolveError, Target};
use crate::mode::Mode;
use crate::mount;
use crate::volumes::{Shown, Volume};

/// How long staging waits for the catalog to be on this node before it gives the reason. The kubelet asks again.
const CATALOG_PATIENCE: Duration = Duration::from_secs(15);

/// How often it looks.
const CATALOG_INTERVAL: Duration = Duration::from_millis(300);

impl Shared {
    pub(super) async fn stage(
        self: Arc<Self>,
        id: &str,
        attributes: &Attributes,
        staging_path: &Path,
    ) -> Result<(), NodeError> {
        match self.staged(id, staging_path)? {
            Some(volume) if self.is_served(&volume) => return Ok(()),
            Some(volume) => return self.restore(volume).await,
            None => {}
        }
        let mode = self.wanted.choose()?.mode;
        let (target, summary) = self.wait_for_catalog(id, attributes).await?;
        let volume = Volume {
            id: id.to_owned(),
            dataset: target.dataset.clone(),
            dataset_uid: target.dataset_uid.clone(),
            catalog_id: target.catalog_id.clone(),
            session: String::new(),
            shown: match mode {
                Mode::Kernel => Shown::Overlay,
                // If it is shown somewhere already, there.
                Mode::Fuse => {
                    Shown::Tree { slot: slot_of(&self.all_volumes()?, &target.dataset_uid, &target.catalog_id) }
                }
            },
            staging_path: staging_path.to_owned(),
            cache_root: target.cache_root.clone(),
            cache: target.cache.root().to_owned(),
            memory: target.memory.as_ref().map(|memory| memory.root().to_owned()),
            node_socket: node_socket(&self.paths.run_dir, &target.runtime),
            files: summary.files,
            bytes: summary.bytes,
            path: attributes.path.clone(),
            inline: attributes.inline,
            published: BTreeMap::new(),
        };
        match Arc::clone(&self).mount(volume).await {
            Ok(()) => {
                tracing::info!(volume = id, dataset = target.dataset, catalog = target.catalog_id, %mode, "staged");
                Ok(())
            }
            Err(error) => {
                if let Err(error) = self.forget(id).await {
                    tracing::error!(volume = id, %error, "cleaning up after a failed mount failed");
                }
                Err(error)
            }
        }
    }

    pub(super) async fn unstage(self: Arc<Self>, id: &str, staging_path: &Path) -> Result<(), NodeError> {
        let path = staging_path.to_owned();
        blocking(move || Ok(mount::unmount(&path)?)).await?;
        self.forget(id).await?;
        tracing::info!(volume = id, "unstaged");
        Ok(())
    }

    /// The volume's record, if it is staged there.
    pub(super) fn staged(&self, id: &str, staging_path: &Path) -> Result<Option<Volume>, NodeError> {
        let volume = self.volume(id)?.filter(|volume| volume.staging_path == staging_path);
        let Some(volume) = volume else { return Ok(None) };
        Ok(is_shown_at(&volume, staging_path)?.then_some(volume))
    }

    /// Whether the object FUSE that the volume's tree reads from is still there.
    pub(super) fn is_served(&self, volume: &Volume) -> bool {
        self.broker.session().is_some_and(|session| session == volume.session)
    }

    /// Waits for the Dataset to have a version and for its catalog to be on this node.
    async fn wait_for_catalog(&self, id: &str, attributes: &Attributes) -> Result<(Target, CatalogSummary), NodeError> {
        let deadline = Instant::now() + CATALOG_PATIENCE;
        loop {
            let found = match self.datasets.resolve(id, attributes, &self.paths).await {
                Ok(target) => self.find_catalog(&target).map(|summary| (target, summary)),
                Err(error) => Err(error.into()),
            };
            match found {
                Err(
                    NodeError::NotYet(_) | NodeError::Resolve(ResolveError::NotYet(_) | ResolveError::ApiServer { .. }),
                ) if Instant::now() < deadline => {}
                other => return other,
            }
            tokio::time::sleep(CATALOG_INTERVAL).await;
        }
    }

    fn find_catalog(&self, target: &Target) -> Result<CatalogSummary, NodeError> {
        if let Err(error) = mount::open_beneath(&target.cache_root, target.cache.root(), FOLDER) {
            return Err(NodeError::NotYet(format!(
                "node {} runs no cache node of CacheRuntime {} (there is no {}: {error}); run the pod on a node that spec.nodes.selector of the runtime matches",
                self.name,
                target.runtime,
                target.cache.root().display(),
            )));
        }
        if let Some(memory) = target.memory.as_ref().map(CacheLayout::objects)
            && let Err(error) = mount::open_beneath(&self.paths.memory_root, &memory, FOLDER)
        {
            // After a restart of the machine it is there when the cache node is.
            return Err(NodeError::NotYet(format!(
                "the cache node of CacheRuntime {} on node {} has not made the folder of its memory tier yet ({}: {error}); see its log",
                target.runtime,
                self.name,
                memory.display()
            )));
        }
        let folder = target.cache.catalog(&target.dataset_uid, &target.catalog_id);
        let summary = mount::open_beneath(&target.cache_root, &folder.join(CATALOG_SUMMARY), OFlags::RDONLY);
        let summary = summary.map_err(|error| {
            NodeError::NotYet(format!(
                "the catalog {} of Dataset {} has not reached node {} yet ({error}); see the cache node's log",
                target.catalog_id, target.dataset, self.name
            ))
        })?;
        serde_json::from_reader(std::fs::File::from(summary)).map_err(|error| NodeError::File {
            what: format!("reading {}", folder.join(CATALOG_SUMMARY).display()),
            source: error.into(),
        })
    }
}
