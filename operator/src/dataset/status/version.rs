//! The version of the content that pods see.

use forebay_crds::{DatasetVersion, SkippedKey, format_bytes};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Observation, catalogs};

/// How long the others wait for a node to get a new catalog: many times what a Secret takes to reach a pod that was told to look.
pub const LAGGING_SECONDS: i64 = 20;

/// The published version stays; the first one is what the nodes agree on.
pub fn version(seen: &Observation<'_>, old: Option<&DatasetVersion>) -> Option<DatasetVersion> {
    let info = match old {
        Some(old) => catalogs(seen).find(|info| info.id == old.id),
        // All nodes get their catalog from the one that listed. Should two have listed at once, the id that sorts first wins, whoever reports.
        None if seen.problem.is_none() => catalogs(seen).min_by(|a, b| a.id.cmp(&b.id)).filter(|_| all_have_it(seen)),
        None => None,
    };
    let Some(info) = info else { return old.cloned() };
    Some(DatasetVersion {
        id: info.id.clone(),
        files: info.files as i64,
        directories: Some(info.directories as i64),
        size: format_bytes(info.bytes),
        bytes: info.bytes as i64,
        observed_at: time(info.observed_at_unix_seconds),
        skipped: (info.skipped > 0).then_some(info.skipped as i64),
        skipped_keys: info
            .skipped_keys
            .iter()
            .map(|key| SkippedKey { url: key.url.clone(), key: key.key.clone(), reason: key.reason.clone() })
            .collect(),
    })
}

/// Whether every node that answers has a catalog. Readers wait for that: a node without one can't serve its share to the others, who would read
/// it from the source a second time. A node that lags for long is not waited for.
fn all_have_it(seen: &Observation<'_>) -> bool {
    let made_at = catalogs(seen).map(|info| info.observed_at_unix_seconds).max().unwrap_or_default();
    catalogs(seen).count() >= seen.nodes.0 || seen.now.as_second() - made_at > LAGGING_SECONDS
}

/// A time that a node reports; none for 0.
pub fn time(unix_seconds: i64) -> Option<Time> {
    Timestamp::from_second(unix_seconds).ok().filter(|_| unix_seconds > 0).map(Time)
}
