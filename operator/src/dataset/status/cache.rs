//! What is cached of a Dataset, and how well it serves.

use forebay_crds::{DatasetCache, DatasetVersion, format_bytes, format_percent};
use forebay_protocol::node::{self, DatasetStatus as NodeDataset};

use super::Observation;

/// Nothing while no node knows the Dataset.
pub fn cache(seen: &Observation<'_>, version: Option<&DatasetVersion>) -> Option<DatasetCache> {
    if seen.reports.is_empty() {
        return None;
    }
    let all = version.map(|version| version.bytes as u64);
    let bytes = held(seen, all);
    let counters = |of: fn(&NodeDataset) -> Option<&node::ReadCounters>, value: fn(&node::ReadCounters) -> u64| {
        seen.reports.iter().filter_map(|report| of(report)).map(value).sum::<u64>()
    };
    let requested = counters(|report| report.last_hour.as_ref(), |counters| counters.requested_bytes);
    let hits = counters(|report| report.last_hour.as_ref(), |counters| counters.hit_bytes);
    Some(DatasetCache {
        size: format_bytes(bytes),
        bytes: bytes as i64,
        percent: match all {
            Some(0) => 100,
            Some(all) => (u128::from(bytes) * 100 / u128::from(all)) as i64,
            None => 0,
        },
        hit_ratio: (requested > 0).then(|| format_percent(hits, requested)),
        bytes_from_source: counters(|report| report.total.as_ref(), |counters| counters.source_bytes) as i64,
        bytes_from_cache: counters(|report| report.total.as_ref(), |counters| counters.hit_bytes) as i64,
    })
}

/// What the nodes hold of the Dataset, once: an average node's where each is to have all of it, otherwise that of all first owners together.
fn held(seen: &Observation<'_>, all: Option<u64>) -> u64 {
    let at_most = |bytes: u64| all.map_or(bytes, |all| bytes.min(all));
    if seen.is_everywhere() {
        let nodes = seen.owners.max(1) as u64;
        return at_most(seen.reports.iter().map(|report| at_most(report.cached_bytes)).sum::<u64>() / nodes);
    }
    at_most(seen.reports.iter().map(|report| report.owned_cached_bytes).sum())
}
