//! Removing what belongs to no dataset of the config any more: catalogs, and objects that no other dataset names.

use std::sync::Arc;
use std::time::Duration;

use super::Engine;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(2);

impl Engine {
    /// Removes what belongs to no dataset of the config any more, as far as it is not in use.
    pub(super) async fn tidy(&self) {
        // First what is there, then what is wanted: what comes in between is not seen rather than taken for unwanted.
        let on_disk = self.folders.datasets();
        let datasets = self.all_datasets();
        match on_disk {
            Ok(on_disk) => {
                for uid in on_disk.iter().filter(|uid| !datasets.iter().any(|dataset| dataset.uid() == **uid)) {
                    if let Err(error) = self.folders.remove(uid) {
                        tracing::warn!(uid, %error, "a removed dataset's catalogs could not be removed");
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "looking for removed datasets' catalogs failed"),
        }
        // Whose object it is can be told only by the catalogs.
        if datasets.iter().any(|dataset| dataset.catalog().is_none()) {
            return;
        }
        let catalogs: Vec<_> = datasets.iter().filter_map(|dataset| Some((dataset.slot, dataset.catalog()?))).collect();
        let mut evicted = false;
        for (uid, slot) in self.store.known_datasets() {
            if self.store.used_bytes_of(slot) > 0 && !datasets.iter().any(|dataset| dataset.uid() == uid) {
                self.store.bequeath(slot, |id| {
                    catalogs.iter().find(|(_, catalog)| catalog.table().find(id).is_some()).map(|(heir, _)| *heir)
                });
                evicted = true;
            }
        }
        if evicted && let Err(error) = self.store.flush().await {
            tracing::warn!(%error, "removing a dataset's objects failed");
        }
    }

    /// Tidies up now and then; runs until dropped.
    pub async fn look_after_disk(self: Arc<Self>) {
        loop {
            tokio::time::sleep(PAUSE).await;
            self.tidy().await;
        }
    }
}
