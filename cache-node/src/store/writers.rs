//! One writer of a file at a time. The kernel takes an inode's lock for each write, and has the others burn a processor each until they get it; here
//! they wait asleep.

use std::sync::Arc;

use forebay_catalog::ObjectId;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// So many files may be written at once: more than a disk takes, and few enough to be made beforehand.
const PLACES: usize = 64;

/// Who may write.
#[derive(Debug)]
pub(super) struct Writers {
    places: Vec<Arc<Mutex<()>>>,
}

impl Default for Writers {
    fn default() -> Self {
        Self { places: std::iter::repeat_with(Arc::default).take(PLACES).collect() }
    }
}

impl Writers {
    /// Waits, in turn, until nobody else writes the object's file. Objects that share a place wait for each other, too.
    pub async fn turn(&self, id: &ObjectId) -> Option<OwnedMutexGuard<()>> {
        let number = id.as_bytes().last().map_or(0, |byte| usize::from(*byte) % PLACES);
        Some(Arc::clone(self.places.get(number)?).lock_owned().await)
    }
}
