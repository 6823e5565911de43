//! Letting copies go: with `Sharded` a node that does not own a file keeps what it reads of it only while the file is open.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use forebay_catalog::ObjectId;
use forebay_protocol::config::PlacementMode;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::Engine;
use crate::dataset::{CatalogObject, Dataset};
use crate::store::Store;

/// How long closed files wait for each other, so that many small ones are let go together.
const GATHER: Duration = Duration::from_millis(250);

/// Lets copies go some moments after they are given back.
#[derive(Debug)]
pub(super) struct Releaser {
    returned: mpsc::UnboundedSender<ObjectId>,
    _task: AbortOnDropHandle<()>,
}

/// A copy that goes when the last one who has it open gives it back.
#[derive(Debug)]
pub struct BorrowedCopy {
    id: ObjectId,
    returned: mpsc::UnboundedSender<ObjectId>,
}

impl Drop for BorrowedCopy {
    fn drop(&mut self) {
        // The node may be stopping; then the copy is evicted when room is needed.
        let _ = self.returned.send(self.id);
    }
}

impl Releaser {
    pub(super) fn start(store: Arc<Store>) -> Self {
        let (returned, receive) = mpsc::unbounded_channel();
        let task = tokio::spawn(run(store, receive));
        Self { returned, _task: AbortOnDropHandle::new(task) }
    }
}

async fn run(store: Arc<Store>, mut returned: mpsc::UnboundedReceiver<ObjectId>) {
    while let Some(first) = returned.recv().await {
        let mut ids = HashSet::from([first]);
        tokio::time::sleep(GATHER).await;
        while let Ok(id) = returned.try_recv() {
            ids.insert(id);
        }
        // A write that is not committed yet holds the object too.
        if store.flush().await.is_err() {
            return;
        }
        // Who still has one open gives it back later.
        let released = ids.iter().filter(|id| store.release_copy(id)).count();
        tracing::debug!(closed = ids.len(), released, "copies that nobody reads any more go");
    }
}

impl Engine {
    /// To be held while a reader has an object open; none where it may stay.
    pub fn borrowed_copy(&self, dataset: &Dataset, object: &CatalogObject) -> Option<BorrowedCopy> {
        let (placement, id, size) = (&dataset.placement, object.stored.id, object.stored.size);
        let goes = placement.mode() == PlacementMode::Sharded
            && !placement.keeps_any(&id, size)
            && !placement.kept_before(&id, size);
        goes.then(|| BorrowedCopy { id, returned: self.releaser.returned.clone() })
    }
}
