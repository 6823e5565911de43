//! Which objects Datasets pin: those with a path that matches one of the globs, as long as the file is young enough.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use forebay_catalog::{ObjectId, ObjectRecord};
use forebay_protocol::config::{PinConfig, PreloadConfig};
use parking_lot::RwLock;

use crate::dataset::Dataset;
use crate::preload::Selection;

/// What one Dataset pins.
#[derive(Clone, Debug)]
pub struct Pins {
    files: Selection,
    newer_than_seconds: Option<u64>,
}

impl Pins {
    /// The files that `config` names.
    pub fn new(config: &PinConfig) -> Result<Self, globset::Error> {
        let files = PreloadConfig { include: config.include.clone(), exclude: Vec::new() };
        Ok(Self { files: Selection::new(Some(&files))?, newer_than_seconds: config.newer_than_seconds })
    }

    /// Whether the file of a record is pinned at a time in seconds since 1970.
    pub fn has(&self, record: &ObjectRecord<'_>, now: i64) -> bool {
        self.is_young(record.modified_unix_seconds, now)
            && (self.files.is_everything() || self.files.matches(&record.tree_path()))
    }

    fn is_young(&self, modified: i64, now: i64) -> bool {
        let age = u64::try_from(now.saturating_sub(modified)).unwrap_or(0);
        self.newer_than_seconds.is_none_or(|limit| age < limit)
    }
}

/// What all Datasets pin.
#[derive(Debug, Default)]
pub struct AllPins {
    datasets: RwLock<Vec<(Pins, Arc<Dataset>)>>,
}

impl AllPins {
    /// These are the Datasets now.
    pub fn set(&self, datasets: &[Arc<Dataset>]) {
        let pinning = datasets.iter().filter_map(|dataset| {
            let pins = Pins::new(dataset.config.pin.as_ref()?);
            match pins {
                Ok(pins) => Some((pins, Arc::clone(dataset))),
                Err(error) => {
                    tracing::error!(dataset = dataset.config.full_name(), %error, "nothing is pinned: a pattern can't be used");
                    None
                }
            }
        });
        *self.datasets.write() = pinning.collect();
    }

    /// Whether no Dataset pins anything.
    pub fn is_empty(&self) -> bool {
        self.datasets.read().is_empty()
    }

    /// Whether a Dataset pins the object now. One that has no catalog yet pins nothing.
    pub fn have(&self, id: &ObjectId) -> bool {
        let datasets = self.datasets.read();
        if datasets.is_empty() {
            return false;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        datasets.iter().any(|(pins, dataset)| {
            dataset.catalog().is_some_and(|catalog| catalog.table().find_all(id).any(|record| pins.has(&record, now)))
        })
    }
}

#[cfg(test)]
mod tests {
    use forebay_catalog::{CatalogSource, SourceIndex};

    use super::*;

    #[test]
    fn a_pinned_file_matches_a_glob_and_is_young() {
        let source = CatalogSource {
            mount_path: "/".to_owned(),
            url: "s3://b".to_owned(),
            identity: "b".to_owned(),
            prefix: Vec::new(),
        };
        let pinned = |include: &[&str], newer_than_seconds, key: &str, modified_unix_seconds| {
            let include = include.iter().map(|&glob| glob.to_owned()).collect();
            let record = ObjectRecord {
                id: ObjectId::from_bytes([1; 16]),
                size: 1,
                source_index: SourceIndex(0),
                source: &source,
                key: key.as_bytes(),
                etag: "e",
                modified_unix_seconds,
            };
            Pins::new(&PinConfig { include, newer_than_seconds }).unwrap().has(&record, 1000)
        };
        assert!(pinned(&[], None, "a/b", 0));
        assert!(pinned(&["a/*"], None, "a/b", 0) && !pinned(&["a/*"], None, "b/a", 0));
        assert!(pinned(&["**/*.idx", "a/*"], Some(100), "x/y.idx", 901));
        assert!(!pinned(&["**/*.idx"], Some(100), "x/y.idx", 900));
        assert!(pinned(&[], Some(1), "a", 2000), "changed by a clock that is ahead");
        assert!(Pins::new(&PinConfig { include: vec!["a[".to_owned()], newer_than_seconds: None }).is_err());
    }
}
