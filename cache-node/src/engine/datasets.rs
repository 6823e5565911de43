//! The datasets of a config at work: each has a task that brings it its catalog, then what is to be preloaded.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use forebay_catalog::ObjectId;
use forebay_protocol::config::DatasetConfig;
use tokio_util::task::AbortOnDropHandle;

use super::{Engine, EngineError, Running, limits};
use crate::catalogue::Keeper;
use crate::dataset::{CatalogObject, Dataset};
use crate::fetch::FetchError;
use crate::fetch::placement::{Members, Placement};
use crate::holdings::Holdings;
use crate::preload::{self, Selection};

impl Engine {
    /// Begins to look after a dataset, or goes on under its changed configuration.
    pub(super) fn start(
        self: &Arc<Self>,
        config: &DatasetConfig,
        before: Option<&Dataset>,
        members: &Arc<Members>,
    ) -> Result<(), EngineError> {
        let slot = self.store.dataset(&config.uid)?;
        let limit = config.capacity_bytes.map(|bytes| limits::part_of(bytes, members));
        self.store.set_dataset_limit(slot, limit);
        let counters = before.map(|before| Arc::clone(&before.counters)).unwrap_or_default();
        let placement = match before {
            Some(before) => before.placement.changed(Arc::clone(members), config.placement),
            None if !self.configured.load(Ordering::Relaxed) => {
                Placement::after_start(Arc::clone(members), config.placement)
            }
            None => Placement::new(Arc::clone(members), config.placement),
        };
        self.fetcher.forget_probes(&config.uid);
        let dataset = Arc::new(Dataset::new(config.clone(), slot, placement, counters, &self.metrics));
        let on_disk = self.folders.existing(&config.uid).map_err(EngineError::Catalogs)?;
        let known = before.and_then(Dataset::catalog).into_iter().chain(on_disk);
        if let Some(catalog) = known.into_iter().find(|catalog| dataset.accepts(catalog).is_ok()) {
            dataset.set_catalog(catalog);
        }
        // What was counted for the same catalog stands until it is counted anew.
        if let Some(holdings) = before.and_then(Dataset::holdings)
            && dataset.catalog().is_some_and(|catalog| catalog.id() == holdings.catalog.id())
        {
            dataset.set_holdings(holdings);
        }
        // Known before its task can make a folder, so that the folder is never taken for a removed dataset's.
        let mut datasets = self.datasets.write();
        let task = tokio::spawn(Arc::clone(self).look_after(Arc::clone(&dataset), Arc::clone(members)));
        let running = Running { dataset, _task: AbortOnDropHandle::new(task) };
        // The task of the configuration before ends here.
        datasets.insert(config.uid.clone(), running);
        Ok(())
    }

    /// Brings a dataset its catalog, then what is to be preloaded. Runs until the dataset's configuration changes.
    async fn look_after(self: Arc<Self>, dataset: Arc<Dataset>, members: Arc<Members>) {
        let catalog = if let Some(catalog) = dataset.catalog() {
            catalog
        } else {
            let keeper = Keeper { folders: self.folders.clone(), members: Arc::clone(&members) };
            keeper.obtain(&dataset, self.fetcher.peers()).await
        };
        if catalog.summary().observed_at_unix_seconds > self.opened_at_unix_seconds {
            dataset.placement.note_new();
        }
        dataset.set_catalog(Arc::clone(&catalog));
        // What it has, and pins, is known only now.
        self.store.sort_again();
        self.bring_pinned_into_memory();
        if let Err(error) = self.folders.remove_others(dataset.uid(), Some(catalog.id())) {
            tracing::warn!(dataset = dataset.config.full_name(), %error, "an earlier catalog could not be removed");
        }
        let selection = Selection::of(dataset.config.preload.as_ref(), dataset.placement.mode()).or_else(|error| {
            tracing::error!(dataset = dataset.config.full_name(), %error, "nothing is preloaded: a pattern can't be used");
            Selection::new(None)
        });
        let Ok(selection) = selection else { return };
        let holdings = Arc::new(Holdings::new(catalog, dataset.placement.clone(), selection));
        self.holdings.write().insert(dataset.uid().to_owned(), Arc::clone(&holdings));
        let (counted, store) = (Arc::clone(&holdings), Arc::clone(&self.store));
        if let Err(error) = tokio::task::spawn_blocking(move || counted.count(&store)).await {
            tracing::error!(%error, "counting what is held failed");
        }
        dataset.set_holdings(Arc::clone(&holdings));
        preload::run(dataset, holdings, Arc::clone(&self.fetcher), Arc::clone(&self.store)).await;
    }

    /// A dataset of the config.
    pub fn dataset(&self, uid: &str) -> Option<Arc<Dataset>> {
        self.datasets.read().get(uid).map(|running| Arc::clone(&running.dataset))
    }

    /// All datasets of the config.
    pub(super) fn all_datasets(&self) -> Vec<Arc<Dataset>> {
        self.datasets.read().values().map(|running| Arc::clone(&running.dataset)).collect()
    }

    /// An object of a dataset's catalog.
    pub fn object(&self, uid: &str, id: &ObjectId) -> Result<(Arc<Dataset>, CatalogObject), FetchError> {
        let dataset =
            self.dataset(uid).ok_or_else(|| FetchError::not_found(format!("no dataset {uid:?} on this node")))?;
        match dataset.object(id) {
            Some(object) => Ok((dataset, object)),
            None if dataset.catalog().is_none() => Err(FetchError::not_found(format!(
                "dataset {} has no catalog on this node yet",
                dataset.config.full_name()
            ))),
            None => Err(FetchError::not_found(format!("dataset {} has no object {id}", dataset.config.full_name()))),
        }
    }
}
