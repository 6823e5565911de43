//! An object that a reader has open: what holds its bytes meanwhile, and what is known of how it is read.

use std::sync::atomic::{AtomicBool, Ordering};

use forebay_catalog::ObjectId;

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
}

/// What the reader has a descriptor of.
pub(super) enum Hold {
    /// The object's file in the cache.
    Cached(Lease),
    /// A file in memory, since the disk can't take the object.
    Spilled(Spill),
}

impl OpenObject {
    pub(super) fn new(hold: Hold, copy: Option<BorrowedCopy>, dataset_uid: String, id: ObjectId) -> Self {
        Self { hold, _copy: copy, dataset_uid, id, read_ahead: ReadAhead::default(), asked: AtomicBool::new(false) }
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
