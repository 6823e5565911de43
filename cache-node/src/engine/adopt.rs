//! Taking what another member hands over: it names what it holds and this node is to keep, this node reads it from there.

use std::collections::HashMap;
use std::sync::Arc;

use forebay_catalog::ObjectId;
use forebay_protocol::node::{AdoptItem, AdoptRequest, AdoptResponse};
use futures::{StreamExt, stream};
use tonic::Status;

use super::Engine;
use crate::dataset::{CatalogObject, Dataset};
use crate::fetch::turns::Load;
use crate::problem::{Problem, Reason};
use crate::store::Presence;
use crate::store::bitmap::Bitmap;
use crate::units::{ChunkIndex, chunk_count};

/// Most items of a request.
pub(super) const ITEMS: usize = 1024;

/// Chunks that are read at once for one request.
const AT_ONCE: usize = 8;

/// Chunks of an object that another member offers.
#[derive(Debug)]
struct Offered {
    dataset: Arc<Dataset>,
    object: CatalogObject,
    chunks: Bitmap,
}

impl Engine {
    /// Takes what a member hands over, as far as this node is to keep it and there is room without evicting what it keeps already.
    pub async fn adopt(self: &Arc<Self>, request: AdoptRequest) -> Result<AdoptResponse, Status> {
        let AdoptRequest { dataset_uid, member, items } = request;
        if items.len() > ITEMS {
            return Err(Status::invalid_argument(format!("{} items; at most {ITEMS} are taken at once", items.len())));
        }
        let members = Arc::clone(&self.members.read());
        let holder = members.find(&member).and_then(|member| members.address(member));
        let holder = holder.ok_or_else(|| {
            Status::failed_precondition(format!("{member:?} is no member in this node's config (yet); ask again"))
        })?;
        let mut offered = Vec::new();
        for item in items {
            offered.push(Arc::new(self.read_item(&dataset_uid, &item)?));
        }
        let mut chunks = Vec::new();
        for item in &offered {
            chunks.extend(item.chunks.iter().map(|chunk| (Arc::clone(item), chunk)));
        }
        let problems: Vec<_> = stream::iter(chunks)
            .map(|(item, chunk)| {
                let this = Arc::clone(self);
                async move { this.adopt_chunk(&item, chunk, holder).await.err() }
            })
            .buffer_unordered(AT_ONCE)
            .filter_map(std::future::ready)
            .collect()
            .await;
        self.store.flush().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let held = offered.iter().map(|item| AdoptItem {
            object_id: bytes::Bytes::copy_from_slice(item.object.stored.id.as_bytes()),
            chunks: self.safely_held(item).words().to_vec(),
        });
        Ok(AdoptResponse { held: held.collect(), problem: problems.first().map(Problem::to_proto) })
    }

    fn read_item(&self, uid: &str, item: &AdoptItem) -> Result<Offered, Status> {
        let id: [u8; 16] =
            item.object_id.as_ref().try_into().map_err(|_| Status::invalid_argument("an object id has 16 bytes"))?;
        let (dataset, object) =
            self.object(uid, &ObjectId::from_bytes(id)).map_err(|error| Status::not_found(error.to_string()))?;
        let chunks = Bitmap::from_words(item.chunks.clone(), chunk_count(object.stored.size));
        let chunks = chunks.ok_or_else(|| {
            Status::invalid_argument(format!(
                "object {} has {} chunks, not these",
                object.stored.id,
                chunk_count(object.stored.size)
            ))
        })?;
        Ok(Offered { dataset, object, chunks })
    }

    async fn adopt_chunk(
        &self,
        offered: &Offered,
        chunk: ChunkIndex,
        holder: std::net::SocketAddr,
    ) -> Result<(), Problem> {
        let Offered { dataset, object, .. } = offered;
        let id = object.stored.id;
        if self.store.has(&id, chunk) {
            return Ok(());
        }
        if !dataset.placement.keeps(&id, chunk.stripe()) {
            let message =
                format!("object {id}: by this node's config it is not one that keeps it; the configs differ for now");
            return Err(Problem::new(Reason::NotOwner, message));
        }
        let length = chunk.range(object.stored.size).length;
        let _turn = self.fetcher.turns().take(Load::FromPeer, length).await;
        let Some(_room) = self.store.reserve(object.stored.dataset, length) else {
            let message = format!(
                "dataset {}: no room for what a leaving member hands over: the cache, or the dataset's part of it, is full; give it more capacity",
                dataset.config.full_name()
            );
            return Err(Problem::new(Reason::NoRoom, message));
        };
        match self.fetcher.adopt(dataset, object, chunk, holder).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Problem::new(
                Reason::PeerUnavailable,
                format!("object {id}: {holder} does not give it; it is asked again"),
            )),
            Err(error) => Err(Problem::new(Reason::StoreFailed, format!("object {id}: {error}"))),
        }
    }

    fn safely_held(&self, offered: &Offered) -> Bitmap {
        let asked = &offered.chunks;
        self.store.with_presence(&offered.object.stored.id, |presence| {
            let mut held = Bitmap::new(asked.len());
            let here = |chunk: &ChunkIndex| match presence {
                Presence::Absent => false,
                Presence::Complete => true,
                Presence::Partial(chunks) => chunks.contains(*chunk),
            };
            asked.iter().filter(here).for_each(|chunk| _ = held.insert(chunk));
            held
        })
    }
}

/// Chunks of objects that are offered to one member.
#[derive(Debug, Default)]
pub(super) struct Offer {
    /// By object.
    pub(super) chunks: HashMap<ObjectId, (u64, Bitmap)>,
    /// All together.
    pub(super) bytes: u64,
}

impl Offer {
    /// One more chunk.
    pub(super) fn add(&mut self, id: ObjectId, size: u64, chunk: ChunkIndex) {
        let (_, chunks) = self.chunks.entry(id).or_insert_with(|| (size, Bitmap::new(chunk_count(size))));
        if chunks.insert(chunk) {
            self.bytes += chunk.range(size).length;
        }
    }

    /// As it is sent.
    pub(super) fn items(&self) -> Vec<AdoptItem> {
        let item = |(id, (_, chunks)): (&ObjectId, &(u64, Bitmap))| AdoptItem {
            object_id: bytes::Bytes::copy_from_slice(id.as_bytes()),
            chunks: chunks.words().to_vec(),
        };
        self.chunks.iter().map(item).collect()
    }

    /// Of these bytes, those that the other one now holds.
    pub(super) fn held(&self, answer: &[AdoptItem]) -> u64 {
        let held = answer.iter().filter_map(|item| {
            let id = ObjectId::from_bytes(item.object_id.as_ref().try_into().ok()?);
            let (size, chunks) = self.chunks.get(&id)?;
            let held = Bitmap::from_words(item.chunks.clone(), chunk_count(*size))?;
            Some(
                chunks.iter().filter(|chunk| held.contains(*chunk)).map(|chunk| chunk.range(*size).length).sum::<u64>(),
            )
        });
        held.sum()
    }
}
