//! An object that a reader has open: what holds its bytes meanwhile, and what is known of how it is read.

use std::sync::atomic::{AtomicBool, Ordering};

use forebay_catalog::ObjectId;
use forebay_protocol::local::{Ensure, Ensured, Failed};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::readahead::ReadAhead;
use super::spill::Spill;
use crate::engine::BorrowedCopy;
use crate::store::Lease;

/// One open object.
pub(super) struct OpenObject {
    /// Before what is to happen when it has ended.
    pub(super) hold: Hold,
    _copy: Option<BorrowedCopy>,
    pub(super) dataset_uid: String,
    pub(super) id: ObjectId,
    pub(super) read_ahead: ReadAhead,
    /// Somebody has read from it.
    asked: AtomicBool,
    /// What the reader said at the opening that it asks for next.
    begun: Mutex<Option<(Ensure, Begun)>>,
}

/// A range on its way, which is given up when this is dropped.
pub(super) type Begun = oneshot::Receiver<Result<Ensured, Failed>>;

/// What the reader has a descriptor of.
pub(super) enum Hold {
    /// The object's file in the cache.
    Cached(Lease),
    /// A file in memory, since the disk can't take the object.
    Spilled(Spill),
}

impl OpenObject {
    pub(super) fn new(hold: Hold, copy: Option<BorrowedCopy>, dataset_uid: String, id: ObjectId) -> Self {
        Self {
            hold,
            _copy: copy,
            dataset_uid,
            id,
            read_ahead: ReadAhead::default(),
            asked: AtomicBool::new(false),
            begun: Mutex::default(),
        }
    }

    /// A range is on its way before it is asked for.
    pub(super) fn begin(&self, range: Ensure, begun: Begun) {
        *self.begun.lock() = Some((range, begun));
    }

    /// The range if it is on its way, once.
    pub(super) fn take_begun(&self, range: &Ensure) -> Option<Begun> {
        self.begun.lock().take_if(|(begun, _)| begun == range).map(|(_, begun)| begun)
    }

    /// Nobody will ask for the range that is on its way.
    pub(super) fn give_begun_up(&self) {
        *self.begun.lock() = None;
    }

    /// Whether what the reader has is still right.
    pub(super) fn is_valid(&self) -> bool {
        match &self.hold {
            Hold::Cached(lease) => lease.is_valid(),
            Hold::Spilled(_) => true,
        }
    }

    /// Whether nobody has read from it before. Says so once.
    pub(super) fn is_first_read(&self) -> bool {
        !self.asked.swap(true, Ordering::Relaxed)
    }
}
