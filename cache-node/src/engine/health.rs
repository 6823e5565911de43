//! Keeping the cache in health: a disk that fails is probed until it works, what is lost is brought again, and everything is verified now and then.

use std::sync::Arc;
use std::time::Duration;

use forebay_catalog::ObjectId;
use forebay_protocol::layout::CacheLayout;
use futures::{StreamExt, stream};

use super::Engine;
use crate::fetch::{Ensured, Fetched, Purpose};
use crate::store::scrub::Pace;
use crate::units::ChunkIndex;

/// Between two probes of a disk that takes no writes.
const PROBE_PAUSE: Duration = Duration::from_secs(2);

/// Chunks that are repaired at once: behind what readers want.
const REPAIRS: usize = 4;

/// Before a repair that failed is tried again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What came of trying to repair a chunk.
#[derive(PartialEq)]
enum Mended {
    /// It is here, or nobody wants it.
    Yes,
    NotYet,
}

impl Engine {
    /// Runs until dropped.
    pub async fn look_after_health(self: Arc<Self>, layout: CacheLayout, pace: Pace) {
        tokio::join!(self.probe(), self.mend(), Arc::clone(&self.store).scrub(layout, pace));
    }

    async fn probe(&self) {
        loop {
            tokio::time::sleep(PROBE_PAUSE).await;
            if self.store.faults().writes_fail() {
                self.store.probe().await;
            }
        }
    }

    /// Brings back what is lost.
    async fn mend(self: &Arc<Self>) {
        let mut pause = FIRST_PAUSE;
        loop {
            let lost = self.store.faults().lost_chunks();
            if lost.is_empty() {
                self.store.faults().loss().await;
                pause = FIRST_PAUSE;
                continue;
            }
            // A disk that takes nothing can't be helped with data.
            let mended = if self.store.faults().writes_fail() {
                0
            } else {
                let mending = stream::iter(lost).map(|(id, chunk)| self.mend_chunk(id, chunk));
                mending
                    .buffer_unordered(REPAIRS)
                    .filter(|mended| std::future::ready(*mended == Mended::Yes))
                    .count()
                    .await
            };
            if mended == 0 {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    async fn mend_chunk(self: &Arc<Self>, id: ObjectId, chunk: ChunkIndex) -> Mended {
        let faults = self.store.faults();
        let datasets = self.all_datasets();
        let wanted = datasets.iter().find_map(|dataset| Some((dataset, dataset.object(&id)?)));
        let Some((dataset, object)) = wanted else {
            if datasets.iter().any(|dataset| dataset.catalog().is_none()) {
                return Mended::NotYet;
            }
            faults.mended(id, chunk);
            return Mended::Yes;
        };
        match self.fetcher.ensure(dataset, &object, chunk, Purpose::Reader).await {
            Ok(Ensured::Present) => {
                faults.mended(id, chunk);
                Mended::Yes
            }
            Ok(Ensured::Fetched(Fetched { kept: Ok(()), origin, .. })) => {
                tracing::info!(%id, chunk = chunk.0, ?origin, "a lost chunk is here again");
                Mended::Yes
            }
            Ok(Ensured::Fetched(Fetched { kept: Err(_), .. })) => Mended::NotYet,
            Err(error) => {
                tracing::warn!(%id, chunk = chunk.0, %error, "a lost chunk can't be brought again yet");
                Mended::NotYet
            }
        }
    }
}
