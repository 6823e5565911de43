//! Bringing back a chunk that was here and is damaged: from any member that has it, then as any other chunk, so that a bad sector costs the
//! line to the source nothing while somebody has the bytes.

use std::sync::Arc;

use super::peers::{PeerAnswer, Reach};
use super::placement::Hop;
use super::{Ensured, FetchError, Fetched, Fetcher, Purpose, flown, reserve};
use crate::dataset::{CatalogObject, Dataset};
use crate::metrics::Origin;
use crate::units::ChunkIndex;

/// Most members that are asked, owners first: behind these hardly anybody has a copy.
const MOST_ASKED: usize = 8;

impl Fetcher {
    /// Makes a lost chunk present again.
    pub async fn repair(
        self: &Arc<Self>,
        dataset: &Arc<Dataset>,
        object: &CatalogObject,
        chunk: ChunkIndex,
    ) -> Result<Ensured, FetchError> {
        let work = || {
            let (this, dataset, object) = (Arc::clone(self), Arc::clone(dataset), object.clone());
            async move {
                if this.store.has(&object.stored.id, chunk) {
                    return Ok(Ensured::Present);
                }
                // Nobody who is asked asks further: no two nodes wait for each other.
                if let Some(fetched) = this.fetch_from_holders(&dataset, &object, chunk).await? {
                    return Ok(Ensured::Fetched(fetched));
                }
                this.ensure_from_source(&dataset, &object, chunk).await
            }
        };
        flown(self.flights.run((object.stored.id, chunk, Purpose::Repair), work).await)
    }

    /// From the cache of another member; none when nobody who can be reached has it.
    async fn fetch_from_holders(
        &self,
        dataset: &Dataset,
        object: &CatalogObject,
        chunk: ChunkIndex,
    ) -> Result<Option<Fetched>, FetchError> {
        let members = self.members();
        let mut asked = Vec::new();
        let owners = members.route(&object.stored.id, chunk.stripe()).into_iter().filter_map(|hop| match hop {
            Hop::Peer(peer) => Some(peer),
            Hop::Source => None,
        });
        for member in owners.chain(members.others()) {
            let Some(address) = members.address(member).filter(|_| !asked.contains(&member)) else { continue };
            if asked.len() == MOST_ASKED {
                break;
            }
            asked.push(member);
            let length = chunk.range(object.stored.size).length;
            let memory = reserve(&self.memory.from_peers, length).await?;
            match self.peers.read_chunk(address, dataset.uid(), &object.stored, chunk, Reach::Cache).await {
                PeerAnswer::Chunk { bytes, crc, .. } => {
                    dataset.counters.add_peer(length);
                    let kept = self.keep(object, chunk, &bytes, crc).await;
                    return Ok(Some(Fetched { bytes, crc, origin: Origin::Peer, was_cached: true, kept, memory }));
                }
                PeerAnswer::Damaged => self.metrics.count_verification_failure(),
                PeerAnswer::Lacking | PeerAnswer::Unavailable | PeerAnswer::Failed(_) => {}
            }
        }
        Ok(None)
    }
}
