//! How many bytes the objects take, in all and for each dataset that brought them, and what of that is promised: to be freed, or to be taken.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use super::record::DatasetSlot;

/// What several datasets may use of this node together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// These.
    pub datasets: Arc<HashSet<DatasetSlot>>,
    /// So many bytes.
    pub bytes: u64,
}

/// Whose bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    All,
    Dataset(DatasetSlot),
    Quota(Arc<HashSet<DatasetSlot>>),
}

impl Scope {
    pub(super) fn has(&self, dataset: DatasetSlot) -> bool {
        match self {
            Self::All => true,
            Self::Dataset(only) => *only == dataset,
            Self::Quota(datasets) => datasets.contains(&dataset),
        }
    }
}

/// A limit that would be broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Over {
    /// Whose.
    pub(super) scope: Scope,
    /// By how much.
    pub(super) bytes: u64,
    /// What shall be left.
    pub(super) low: u64,
}

/// The sums.
#[derive(Debug, Default)]
pub(super) struct Usage {
    sums: Mutex<Sums>,
}

#[derive(Debug, Default)]
struct Sums {
    total: Part,
    /// Being written to files; counts as used once it can be read.
    writing: u64,
    datasets: HashMap<DatasetSlot, Part>,
    limits: HashMap<DatasetSlot, u64>,
    quotas: Vec<Quota>,
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

/// Room in the file system for bytes that are being written; given back when dropped, by when they count as used.
#[derive(Debug)]
pub(super) struct Writing {
    usage: Arc<Usage>,
    bytes: u64,
}

impl Drop for Writing {
    fn drop(&mut self) {
        let mut sums = self.usage.sums.lock();
        sums.writing = sums.writing.saturating_sub(self.bytes);
    }
}

impl Usage {
    /// Room for so many bytes that are about to be written, if what is in files and what is being written leave it of `room`.
    pub(super) fn begin_writing(self: &Arc<Self>, bytes: u64, room: u64) -> Option<Writing> {
        let mut sums = self.sums.lock();
        let taken = sums.total.used.saturating_add(sums.writing);
        if taken.saturating_add(bytes) > room {
            return None;
        }
        sums.writing += bytes;
        Some(Writing { usage: Arc::clone(self), bytes })
    }

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

    /// Room for so many bytes, if that keeps the whole, the dataset and its quotas below `percent` of what they may have. If not: what would have to go.
    pub(super) fn reserve(
        self: &Arc<Self>,
        dataset: DatasetSlot,
        bytes: u64,
        capacity: u64,
        percent: u64,
    ) -> Result<Reservation, Over> {
        {
            let mut sums = self.sums.lock();
            for (scope, limit) in sums.limits_of(dataset, capacity) {
                let (expected, limit) = (sums.sum(&scope).expected(), share(limit, percent));
                if expected + bytes > limit {
                    return Err(Over { scope, bytes: expected + bytes - limit, low: limit });
                }
            }
            sums.total.reserved += bytes;
            sums.datasets.entry(dataset).or_default().reserved += bytes;
        }
        Ok(Reservation { usage: Arc::clone(self), dataset, bytes })
    }

    /// The dataset's own limits that `incoming` more bytes of it would break: above `high` percent of one, what has to go to get to `low` percent, and
    /// how much of that to get to `high`.
    pub(super) fn over(&self, dataset: DatasetSlot, incoming: u64, high: u64, low: u64) -> Vec<(Over, u64)> {
        let sums = self.sums.lock();
        let limits = sums.limits_of(dataset, u64::MAX);
        let over = limits.filter(|(_, limit)| *limit < u64::MAX).filter_map(|(scope, limit)| {
            let part = sums.sum(&scope);
            let expected = part.used.saturating_sub(part.leaving).saturating_add(incoming);
            let excess = expected.checked_sub(share(limit, high)).filter(|excess| *excess > 0)?;
            let low = share(limit, low);
            Some((Over { scope, bytes: expected - low, low }, excess))
        });
        over.collect()
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

    /// The same when what is being written is there, too.
    pub(super) fn coming(&self) -> u64 {
        let writing = self.sums.lock().writing;
        self.remaining().saturating_add(writing)
    }

    pub(super) fn set_limit(&self, dataset: DatasetSlot, limit: Option<u64>) {
        let limits = &mut self.sums.lock().limits;
        match limit {
            Some(limit) => limits.insert(dataset, limit),
            None => limits.remove(&dataset),
        };
    }

    pub(super) fn set_quotas(&self, quotas: Vec<Quota>) {
        self.sums.lock().quotas = quotas;
    }
}

impl Sums {
    /// What limits a dataset, each with its limit.
    fn limits_of(&self, dataset: DatasetSlot, capacity: u64) -> impl Iterator<Item = (Scope, u64)> + use<> {
        let own = self.limits.get(&dataset).map(|limit| (Scope::Dataset(dataset), *limit));
        let quotas = self.quotas.iter().filter(|quota| quota.datasets.contains(&dataset));
        let quotas: Vec<_> = quotas.map(|quota| (Scope::Quota(Arc::clone(&quota.datasets)), quota.bytes)).collect();
        [(Scope::All, capacity)].into_iter().chain(own).chain(quotas)
    }

    fn sum(&self, scope: &Scope) -> Part {
        let of = |dataset: &DatasetSlot| self.datasets.get(dataset).copied().unwrap_or_default();
        match scope {
            Scope::All => self.total,
            Scope::Dataset(dataset) => of(dataset),
            Scope::Quota(datasets) => datasets.iter().map(of).fold(Part::default(), |sum, part| Part {
                used: sum.used + part.used,
                leaving: sum.leaving + part.leaving,
                reserved: sum.reserved + part.reserved,
            }),
        }
    }
}

/// So many percent of a number of bytes.
pub(super) fn share(bytes: u64, percent: u64) -> u64 {
    bytes / 100 * percent + bytes % 100 * percent / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_promised_counts_until_it_has_happened() {
        let (usage, dataset) = (Arc::new(Usage::default()), DatasetSlot(1));
        usage.add(dataset, 60);
        let first = usage.reserve(dataset, 30, 100, 100).unwrap();
        assert_eq!(usage.reserve(dataset, 11, 100, 100).unwrap_err(), Over { scope: Scope::All, bytes: 1, low: 100 });
        usage.mark(dataset, 20);
        assert_eq!((usage.total(), usage.remaining()), (60, 40));
        let second = usage.reserve(dataset, 30, 100, 100).unwrap();
        usage.sub(dataset, 20, true);
        assert!(usage.reserve(dataset, 1, 100, 100).is_err());
        drop((first, second));
        assert_eq!((usage.total(), usage.remaining()), (40, 40));
        assert!(usage.reserve(dataset, 60, 100, 100).is_ok());
    }

    #[test]
    fn what_is_being_written_takes_room_until_it_is_counted_or_given_up() {
        let (usage, dataset) = (Arc::new(Usage::default()), DatasetSlot(1));
        usage.add(dataset, 60);
        let first = usage.begin_writing(30, 100).unwrap();
        assert!(usage.begin_writing(11, 100).is_none());
        assert_eq!((usage.total(), usage.remaining(), usage.coming()), (60, 60, 90));
        usage.add(dataset, 30);
        drop(first);
        let second = usage.begin_writing(10, 100).unwrap();
        assert!(usage.begin_writing(1, 100).is_none());
        drop(second);
        assert!(usage.begin_writing(10, 100).is_some());
    }

    #[test]
    fn a_dataset_is_limited_by_itself_and_with_others() {
        let (usage, [a, b, c]) = (Arc::new(Usage::default()), [1, 2, 3].map(DatasetSlot));
        let both = Arc::new(HashSet::from([a, b]));
        usage.set_limit(a, Some(100));
        usage.set_quotas(vec![Quota { datasets: Arc::clone(&both), bytes: 200 }]);
        usage.add(a, 90);
        usage.add(b, 90);
        usage.add(c, 900);
        assert_eq!(usage.reserve(a, 11, 5000, 100).unwrap_err(), Over { scope: Scope::Dataset(a), bytes: 1, low: 100 });
        assert_eq!(
            usage.reserve(b, 21, 5000, 100).unwrap_err(),
            Over { scope: Scope::Quota(Arc::clone(&both)), bytes: 1, low: 200 }
        );
        assert!(usage.reserve(c, 21, 5000, 100).is_ok());
        assert_eq!(usage.over(c, 1000, 95, 90), []);
        assert_eq!(usage.over(a, 5, 95, 90), []);
        let scopes: Vec<_> = usage.over(a, 15, 95, 90);
        let expected = [
            (Over { scope: Scope::Dataset(a), bytes: 15, low: 90 }, 10),
            (Over { scope: Scope::Quota(both), bytes: 15, low: 180 }, 5),
        ];
        assert_eq!(scopes, expected);
        usage.set_limit(a, None);
        usage.set_quotas(Vec::new());
        assert_eq!(usage.over(a, 1000, 95, 90), []);
    }
}
