//! How many bytes the objects take, in all and for each dataset that brought them, and what of that is promised: to be freed, or to be taken.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::record::DatasetSlot;

/// The sums.
#[derive(Debug, Default)]
pub(super) struct Usage {
    sums: Mutex<Sums>,
}

#[derive(Debug, Default)]
struct Sums {
    total: Part,
    datasets: HashMap<DatasetSlot, Part>,
    limits: HashMap<DatasetSlot, u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Part {
    /// In files.
    used: u64,
    /// Of these, marked to be unlinked.
    leaving: u64,
    /// Not in files yet, but promised.
    reserved: u64,
}

impl Part {
    /// What it will be when everything that is promised has happened.
    fn expected(&self) -> u64 {
        (self.used + self.reserved).saturating_sub(self.leaving)
    }
}

/// Room for bytes that are about to be written; given back when dropped, by when they count as used.
#[derive(Debug)]
pub struct Reservation {
    usage: Arc<Usage>,
    dataset: DatasetSlot,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.usage.change(self.dataset, |part| part.reserved = part.reserved.saturating_sub(self.bytes));
    }
}

impl Usage {
    fn change(&self, dataset: DatasetSlot, change: impl Fn(&mut Part)) {
        let mut sums = self.sums.lock();
        change(&mut sums.total);
        change(sums.datasets.entry(dataset).or_default());
    }

    /// Bytes have been written.
    pub(super) fn add(&self, dataset: DatasetSlot, bytes: u64) {
        self.change(dataset, |part| part.used += bytes);
    }

    /// Bytes have been unlinked, marked before or not.
    pub(super) fn sub(&self, dataset: DatasetSlot, bytes: u64, marked: bool) {
        self.change(dataset, |part| {
            part.used = part.used.saturating_sub(bytes);
            part.leaving = part.leaving.saturating_sub(if marked { bytes } else { 0 });
        });
    }

    /// Bytes are to be unlinked.
    pub(super) fn mark(&self, dataset: DatasetSlot, bytes: u64) {
        self.change(dataset, |part| part.leaving += bytes);
    }

    /// Room for so many bytes, if that keeps the whole and the dataset below these limits.
    pub(super) fn reserve(
        self: &Arc<Self>,
        dataset: DatasetSlot,
        bytes: u64,
        limit: u64,
        dataset_limit: u64,
    ) -> Option<Reservation> {
        {
            let mut sums = self.sums.lock();
            let of_dataset = sums.datasets.get(&dataset).map_or(0, Part::expected);
            if sums.total.expected() + bytes > limit || of_dataset + bytes > dataset_limit {
                return None;
            }
            sums.total.reserved += bytes;
            sums.datasets.entry(dataset).or_default().reserved += bytes;
        }
        Some(Reservation { usage: Arc::clone(self), dataset, bytes })
    }

    /// Bytes in files.
    pub(super) fn total(&self) -> u64 {
        self.sums.lock().total.used
    }

    /// Bytes in files of a dataset.
    pub(super) fn of(&self, dataset: DatasetSlot) -> u64 {
        self.sums.lock().datasets.get(&dataset).map_or(0, |part| part.used)
    }

    /// What will be in files when everything that is marked is gone.
    pub(super) fn remaining(&self) -> u64 {
        let total = self.sums.lock().total;
        total.used.saturating_sub(total.leaving)
    }

    /// The same for a dataset.
    pub(super) fn remaining_of(&self, dataset: DatasetSlot) -> u64 {
        self.sums.lock().datasets.get(&dataset).map_or(0, |part| part.used.saturating_sub(part.leaving))
    }

    /// How many bytes a dataset may have; any number unless set.
    pub(super) fn limit(&self, dataset: DatasetSlot) -> u64 {
        self.sums.lock().limits.get(&dataset).copied().unwrap_or(u64::MAX)
    }

    pub(super) fn set_limit(&self, dataset: DatasetSlot, limit: Option<u64>) {
        let limits = &mut self.sums.lock().limits;
        match limit {
            Some(limit) => limits.insert(dataset, limit),
            None => limits.remove(&dataset),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_promised_counts_until_it_has_happened() {
        let (usage, dataset) = (Arc::new(Usage::default()), DatasetSlot(1));
        usage.add(dataset, 60);
        let first = usage.reserve(dataset, 30, 100, 1000).unwrap();
        assert!(usage.reserve(dataset, 11, 100, 1000).is_none());
        assert!(usage.reserve(dataset, 5, 100, 94).is_none(), "the dataset has a limit of its own");
        usage.mark(dataset, 20);
        assert_eq!((usage.total(), usage.remaining(), usage.remaining_of(dataset)), (60, 40, 40));
        let second = usage.reserve(dataset, 30, 100, 1000).unwrap();
        usage.sub(dataset, 20, true);
        assert!(usage.reserve(dataset, 1, 100, 1000).is_none());
        drop((first, second));
        assert_eq!((usage.total(), usage.remaining()), (40, 40));
        assert!(usage.reserve(dataset, 60, 100, 1000).is_some());
    }
}
