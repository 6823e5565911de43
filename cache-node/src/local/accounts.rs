//! What a connection's readers got, in the figures of their Datasets: bytes by where they came from, and which of them were hits.

use forebay_catalog::ObjectId;
use forebay_protocol::local::Touched;
use parking_lot::Mutex;

use super::debts::Debts;
use crate::dataset::{CatalogObject, Dataset};
use crate::engine::Engine;
use crate::metrics::Origin;
use crate::units::{ByteRange, ChunkIndex};

/// The accounts of one connection.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    debts: Mutex<Debts>,
}

impl Accounts {
    /// What a reader gets of a chunk.
    pub(super) fn count(
        &self,
        dataset: &Dataset,
        object: &CatalogObject,
        chunk: ChunkIndex,
        range: ByteRange,
        hit: bool,
        origin: Origin,
    ) {
        let of_chunk = chunk.range(object.stored.size);
        let wanted = range.end().min(of_chunk.end()) - range.offset.max(of_chunk.offset);
        dataset.counters.add_request(wanted, if hit { wanted } else { 0 });
        dataset.count_served(origin, wanted);
        if !hit {
            self.debts.lock().owe(dataset.uid(), of_chunk.length - wanted);
        }
    }

    /// The daemon served bytes that it knew to be present.
    pub(super) fn served(&self, engine: &Engine, dataset_uid: &str, bytes: u64) {
        if let Some(dataset) = engine.dataset(dataset_uid) {
            let missed = self.debts.lock().pay(dataset_uid, bytes);
            dataset.counters.add_request(bytes, bytes - missed);
            dataset.count_served(Origin::Local, bytes);
        }
    }

    /// No file of the dataset is open any more.
    pub(super) fn forgive(&self, dataset_uid: &str) {
        self.debts.lock().forgive(dataset_uid);
    }
}

/// Complete objects were opened that the kernel reads.
pub(super) fn touched(engine: &Engine, Touched { dataset_uid, object_ids, stands_for }: &Touched) {
    let (ids, _) = object_ids.as_chunks();
    for id in ids {
        let id = ObjectId::from_bytes(*id);
        // Of a dataset that has just gone.
        let Ok((dataset, object)) = engine.object(dataset_uid, &id) else { return };
        // Who watches opens sees those of incomplete objects too, which are counted where they are read.
        if !engine.store().is_complete(&id) {
            continue;
        }
        engine.store().touch(&id);
        engine.opened_complete(&dataset, &object);
        let bytes = object.stored.size.saturating_mul((*stands_for).max(1).into());
        dataset.counters.add_request(bytes, bytes);
        dataset.count_served(Origin::Local, bytes);
    }
}
