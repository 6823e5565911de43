//! How far a load is.

use forebay_crds::DatasetVersion;
use forebay_crds::{LoadFailure, LoadPhase, PreloadProgress, format_bytes};
use forebay_protocol::node;
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Observation;
use crate::conditions::{Verdict, whole_seconds};

/// Files and bytes, of all nodes or as the status shows them.
#[derive(Clone, Copy)]
struct Sums {
    total_files: u64,
    loaded_files: u64,
    total_bytes: u64,
    loaded_bytes: u64,
    failed_files: u64,
}

impl Sums {
    fn of(reports: &[&node::PreloadProgress]) -> Self {
        let sum = |value: fn(&node::PreloadProgress) -> u64| reports.iter().map(|report| value(report)).sum::<u64>();
        let (total_files, total_bytes) = (sum(|report| report.total_files), sum(|report| report.total_bytes));
        Self {
            total_files,
            total_bytes,
            loaded_files: sum(|report| report.loaded_files).min(total_files),
            loaded_bytes: sum(|report| report.loaded_bytes).min(total_bytes),
            failed_files: sum(|report| report.failed_files),
        }
    }

    fn is_all_loaded(&self) -> bool {
        self.loaded_files == self.total_files && self.loaded_bytes == self.total_bytes
    }

    /// Each file was counted by so many owners. What some of them lack is not loaded, so this rounds down.
    fn divided_by(self, copies: u64) -> Self {
        Self {
            total_files: self.total_files.div_ceil(copies),
            loaded_files: self.loaded_files / copies,
            total_bytes: self.total_bytes.div_ceil(copies),
            loaded_bytes: self.loaded_bytes / copies,
            failed_files: self.failed_files.div_ceil(copies),
        }
    }

    /// Every node is to have everything: a file is loaded when all nodes have it, and bytes are those of an average node, so that they make the same
    /// percentage. A node that is leaving has nothing to load.
    fn of_one_node(self, reports: &[&node::PreloadProgress]) -> Self {
        let loading: Vec<_> = reports.iter().filter(|report| report.total_files > 0).collect();
        let most = |value: fn(&node::PreloadProgress) -> u64| {
            loading.iter().map(|report| value(report)).max().unwrap_or_default()
        };
        let total_bytes = most(|report| report.total_bytes);
        let loaded = u128::from(self.loaded_bytes) * u128::from(total_bytes);
        Self {
            total_files: most(|report| report.total_files),
            loaded_files: loading.iter().map(|report| report.loaded_files).min().unwrap_or_default(),
            total_bytes,
            loaded_bytes: loaded.checked_div(u128::from(self.total_bytes)).unwrap_or_default() as u64,
            failed_files: most(|report| report.failed_files),
        }
    }
}

/// Percent, rounded down.
fn share(part: u64, whole: u64) -> u128 {
    (u128::from(part) * 100).checked_div(u128::from(whole)).unwrap_or_default()
}

/// Sums up what each node owns, and divides by how many own the same. Where a node has not reported, nothing is complete.
pub fn preload(
    seen: &Observation<'_>,
    version: Option<&DatasetVersion>,
    old: Option<&PreloadProgress>,
) -> PreloadProgress {
    let reports: Vec<_> = seen.reports.iter().filter_map(|report| report.preload.as_ref()).collect();
    let sums = Sums::of(&reports);
    let shown = if seen.is_everywhere() { sums.of_one_node(&reports) } else { sums.divided_by(seen.copies()) };
    let failed_files = shown.failed_files;
    let running = reports.iter().any(|report| report.running);
    let (_, all_nodes) = seen.nodes;
    let all_reported = !reports.is_empty() && reports.len() >= all_nodes;
    // A node that is away for a moment makes nothing incomplete that was complete; a change of the spec does.
    let same_spec =
        seen.dataset.status.as_ref().and_then(|status| status.observed_generation) == seen.dataset.metadata.generation;
    if let Some(old) =
        old.filter(|old| old.phase == LoadPhase::Complete && same_spec && !all_reported && failed_files == 0)
    {
        return old.clone();
    }
    let phase = match () {
        () if version.is_none() || reports.is_empty() => LoadPhase::Pending,
        () if all_reported && sums.is_all_loaded() && failed_files == 0 => LoadPhase::Complete,
        () if failed_files > 0 && !running => LoadPhase::Failed,
        () => LoadPhase::Loading,
    };
    let whole = match phase {
        LoadPhase::Complete => 100,
        LoadPhase::Pending => 0,
        LoadPhase::Loading | LoadPhase::Failed if sums.total_bytes == 0 => 0,
        // Rounded down, and never all before it is.
        LoadPhase::Loading | LoadPhase::Failed => share(sums.loaded_bytes, sums.total_bytes).min(99),
    } as i64;
    let throughput = seen.throughput.filter(|_| phase == LoadPhase::Loading);
    let estimate = throughput.filter(|rate| *rate > 0).and_then(|rate| {
        let left = SignedDuration::from_secs(((sums.total_bytes - sums.loaded_bytes) / rate) as i64);
        seen.now.checked_add(left).ok().map(|at| Time(whole_seconds(at)))
    });
    PreloadProgress {
        phase,
        percent: whole,
        progress: if failed_files > 0 { format!("{whole}% ({failed_files} failed)") } else { format!("{whole}%") },
        loaded_files: shown.loaded_files as i64,
        total_files: shown.total_files as i64,
        loaded_size: format_bytes(shown.loaded_bytes),
        total_size: format_bytes(shown.total_bytes),
        loaded_bytes: shown.loaded_bytes as i64,
        total_bytes: shown.total_bytes as i64,
        throughput: throughput.map(|rate| format!("{}/s", format_bytes(rate))),
        estimated_completion: estimate,
        failed_files: (failed_files > 0).then_some(failed_files as i64),
        failures: reports
            .iter()
            .flat_map(|report| &report.failures)
            .take(10)
            .map(|failure| LoadFailure { path: failure.path.clone(), reason: failure.reason.clone() })
            .collect(),
        verified: phase == LoadPhase::Complete,
    }
}

/// Whether what is to be loaded is.
pub fn preloaded(preload: Option<&PreloadProgress>) -> Verdict {
    let Some(preload) = preload else {
        return Verdict::yes("NotRequested", "there is no spec.preload: a file is cached when it is first read");
    };
    let done = format!(
        "{} of {} files, {} of {}",
        preload.loaded_files, preload.total_files, preload.loaded_size, preload.total_size
    );
    match preload.phase {
        LoadPhase::Complete => Verdict::yes("Complete", format!("{done}, verified")),
        LoadPhase::Pending => Verdict::no(node::WAITING_FOR_CATALOG, "loading begins when the sources are listed"),
        LoadPhase::Loading => Verdict::no("Loading", format!("{done} so far")),
        LoadPhase::Failed => {
            let first = preload
                .failures
                .first()
                .map(|failure| format!("; {}: {}", failure.path, failure.reason))
                .unwrap_or_default();
            let failed = preload.failed_files.unwrap_or_default();
            Verdict::no("FilesFailed", format!("{failed} files can't be loaded and are tried again{first}"))
        }
    }
}
