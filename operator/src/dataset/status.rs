//! A Dataset's status from what its runtime's nodes report. Pure, so that every situation is a test.

use std::collections::BTreeMap;

use forebay_crds::{
    Dataset, DatasetCache, DatasetPhase, DatasetStatus, DatasetVersion, LoadFailure, LoadPhase, MountedOn,
    PreloadProgress, SkippedKey, SourceHealth, SourceState, format_bytes, format_percent,
};
use forebay_protocol::node::{self, CatalogInfo, DatasetStatus as NodeDataset};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::dereference::{NOT_ALLOWED, RUNTIME_NOT_FOUND};
use crate::conditions::{Verdict, find, whole_seconds};
use crate::problem::Problem;

/// How long the others wait for a node to get a new catalog: many times what a Secret takes to reach a pod that was told to look.
const LAGGING_SECONDS: i64 = 20;

/// What a status is made of.
#[derive(Debug)]
pub struct Observation<'a> {
    /// The Dataset with its last status.
    pub dataset: &'a Dataset,
    /// What keeps it out of the configuration, or would if it were not in it already.
    pub problem: Option<&'a Problem>,
    /// What each node said of it lately. A node that does not know it says nothing.
    pub reports: Vec<&'a NodeDataset>,
    /// Number of the runtime's nodes that answer, and of all.
    pub nodes: (usize, usize),
    /// The configuration is known to hold the Dataset.
    pub published: bool,
    /// Bytes per second of late.
    pub throughput: Option<u64>,
    /// Who uses the claim.
    pub mounted_on: Vec<MountedOn>,
    /// Of the observation.
    pub now: Timestamp,
}

/// The status of a Dataset that is not being deleted.
pub fn status(seen: &Observation<'_>) -> DatasetStatus {
    let old = seen.dataset.status.clone().unwrap_or_default();
    let version = version(seen, old.version.as_ref());
    let sources = sources(seen);
    let runtime = runtime_available(seen);
    let catalogued = catalogued(seen, version.as_ref());
    let healthy = sources_healthy(seen, &sources, &catalogued);
    let preload = seen.dataset.spec.preload.is_some().then(|| preload(seen, version.as_ref(), old.preload.as_ref()));
    let preloaded = preloaded(preload.as_ref());
    let ready = ready(&runtime, &catalogued, version.as_ref());
    let phase = phase(seen, &ready, &runtime, &catalogued, &healthy, preload.as_ref());
    let generation = seen.dataset.metadata.generation;
    let conditions = [
        ("Ready", &ready),
        ("Catalogued", &catalogued),
        ("Preloaded", &preloaded),
        ("SourcesHealthy", &healthy),
        ("RuntimeAvailable", &runtime),
    ]
    .map(|(type_, verdict)| verdict.condition(type_, &old.conditions, generation, seen.now));
    DatasetStatus {
        observed_generation: generation,
        phase: Some(phase),
        conditions: conditions.to_vec(),
        cache: cache(seen, version.as_ref()).or(old.cache),
        version,
        preload,
        source: serving(seen.dataset, &sources),
        sources,
        failovers: old.failovers,
        mounted_on: seen.mounted_on.clone(),
    }
}

/// The status of a Dataset that is being deleted: what it was, and what its deletion waits for.
pub fn terminating(
    dataset: &Dataset,
    waits_for: &Problem,
    mounted_on: Vec<MountedOn>,
    now: Timestamp,
) -> DatasetStatus {
    let mut status = dataset.status.clone().unwrap_or_default();
    let ready = Verdict::problem(waits_for).condition("Ready", &status.conditions, dataset.metadata.generation, now);
    status.conditions.retain(|condition| condition.type_ != "Ready");
    status.conditions.insert(0, ready);
    status.phase = Some(DatasetPhase::Terminating);
    status.observed_generation = dataset.metadata.generation;
    status.mounted_on = mounted_on;
    status
}

fn catalogs<'a>(seen: &'a Observation<'_>) -> impl Iterator<Item = &'a CatalogInfo> {
    seen.reports.iter().filter_map(|report| report.catalog.as_ref())
}

/// The published version stays; the first one is what the nodes agree on.
fn version(seen: &Observation<'_>, old: Option<&DatasetVersion>) -> Option<DatasetVersion> {
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

fn time(unix_seconds: i64) -> Option<Time> {
    Timestamp::from_second(unix_seconds).ok().filter(|_| unix_seconds > 0).map(Time)
}

fn runtime_available(seen: &Observation<'_>) -> Verdict {
    let runtime = seen.dataset.spec.runtime_ref.as_ref().map(|runtime| runtime.name.as_str()).unwrap_or_default();
    match (seen.problem, seen.nodes) {
        (Some(problem), _) if [RUNTIME_NOT_FOUND, NOT_ALLOWED].contains(&problem.reason.as_str()) => {
            Verdict::problem(problem)
        }
        (_, (0, 0)) => Verdict::no(
            "WaitingForNodes",
            format!("the CacheRuntime {runtime} has no cache nodes yet: see kubectl describe cacheruntime {runtime}"),
        ),
        (_, (0, all)) => Verdict::no(
            "NodesNotReachable",
            format!(
                "none of the {all} cache nodes of the CacheRuntime {runtime} answers: see kubectl describe cacheruntime {runtime}"
            ),
        ),
        (_, (answering, all)) => Verdict::yes(
            "NodesAnswer",
            format!("{answering} of {all} cache nodes of the CacheRuntime {runtime} answer"),
        ),
    }
}

fn catalogued(seen: &Observation<'_>, version: Option<&DatasetVersion>) -> Verdict {
    if let Some(version) = version {
        let held = catalogs(seen).any(|info| info.id == version.id);
        let problem = catalog_problem(seen);
        let skipped = version
            .skipped
            .map(|skipped| format!("; {skipped} keys can't be files and were left out"))
            .unwrap_or_default();
        match problem {
            // No node has it any more and it can't be made again.
            Some(problem) if !held => return problem_of(problem),
            _ => return Verdict::yes("Listed", format!("{} files, {}{skipped}", version.files, version.size)),
        }
    }
    if let Some(problem) = seen.problem {
        return Verdict::problem(problem);
    }
    if let Some(problem) = catalog_problem(seen) {
        return problem_of(problem);
    }
    match (seen.nodes, seen.published) {
        ((0, _), _) => Verdict::no("WaitingForRuntime", "the sources are listed as soon as a cache node answers"),
        (_, false) => {
            Verdict::no("WaitingForRuntime", "the sources are listed as soon as the cache nodes are all there")
        }
        _ => Verdict::no("Listing", "the sources are being listed"),
    }
}

/// Why there is no catalog: the problem of the node that lists, before those of nodes that wait for it.
fn catalog_problem<'a>(seen: &Observation<'a>) -> Option<&'a node::Problem> {
    let problems = seen.reports.iter().filter_map(|report| report.catalog_problem.as_ref());
    problems.min_by_key(|problem| problem.reason == node::WAITING_FOR_CATALOG)
}

fn problem_of(problem: &node::Problem) -> Verdict {
    Verdict::no(&problem.reason, problem.message.clone())
}

fn sources(seen: &Observation<'_>) -> Vec<SourceHealth> {
    let mut reported: BTreeMap<(&str, &str), Vec<&node::SourceStatus>> = BTreeMap::new();
    for source in seen.reports.iter().flat_map(|report| &report.sources) {
        reported.entry((&source.mount, &source.url)).or_default().push(source);
    }
    let mut sources = Vec::new();
    for mount in &seen.dataset.spec.mounts {
        for source in &mount.sources {
            let reports =
                reported.get(&(mount.path.as_str(), source.url.as_str())).map(Vec::as_slice).unwrap_or_default();
            let of = |state: node::SourceState| reports.iter().filter(move |report| report.state() == state);
            let unhealthy = of(node::SourceState::Unhealthy).min_by_key(|report| report.since_unix_seconds);
            let active = of(node::SourceState::Active).min_by_key(|report| report.since_unix_seconds);
            let (state, report) = match (unhealthy, active) {
                (Some(report), _) => (SourceState::Unhealthy, Some(report)),
                (None, Some(report)) => (SourceState::Active, Some(report)),
                (None, None) => (SourceState::Standby, None),
            };
            let problem = unhealthy.and_then(|report| report.problem.as_ref());
            sources.push(SourceHealth {
                mount: mount.path.clone(),
                url: source.url.clone(),
                state,
                since: report.and_then(|report| time(report.since_unix_seconds)),
                reason: problem.map(|problem| format!("{}: {}", problem.reason, problem.message)),
            });
        }
    }
    sources
}

/// What the column SOURCE shows.
fn serving(dataset: &Dataset, sources: &[SourceHealth]) -> Option<String> {
    let first = sources.iter().find(|source| source.state == SourceState::Active).or(sources.first())?;
    let more = dataset.spec.mounts.len() - 1;
    Some(if more == 0 { first.url.clone() } else { format!("{} (+{more})", first.url) })
}

fn sources_healthy(seen: &Observation<'_>, sources: &[SourceHealth], catalogued: &Verdict) -> Verdict {
    if let Some(problem) = seen.problem {
        return if seen
            .problem
            .is_some_and(|problem| problem.reason.starts_with("Secret") || problem.reason.starts_with("FileSource"))
        {
            Verdict::problem(problem)
        } else {
            Verdict::unknown("NotKnownYet", "no cache node has asked the sources")
        };
    }
    let unhealthy = seen
        .reports
        .iter()
        .flat_map(|report| &report.sources)
        .find(|source| source.state() == node::SourceState::Unhealthy);
    if let Some(problem) = unhealthy.and_then(|source| source.problem.as_ref()) {
        return problem_of(problem);
    }
    if sources.iter().any(|source| source.state == SourceState::Active) || catalogued.holds() {
        return Verdict::yes("SourcesAnswer", "every mount has a source that answers");
    }
    Verdict::unknown("NotKnownYet", "no cache node has asked the sources")
}

/// Sums up what each node is to keep. Where a node has not reported, nothing is complete. Each file counts once, however many nodes keep it: what
/// half of them have loaded is half loaded.
fn preload(seen: &Observation<'_>, version: Option<&DatasetVersion>, old: Option<&PreloadProgress>) -> PreloadProgress {
    let reports: Vec<_> = seen.reports.iter().filter_map(|report| report.preload.as_ref()).collect();
    let copies = reports.iter().map(|report| u64::from(report.copies)).max().unwrap_or_default().max(1);
    let all = |value: fn(&node::PreloadProgress) -> u64| reports.iter().map(|report| value(report)).sum::<u64>();
    let sum = |value: fn(&node::PreloadProgress) -> u64| all(value) / copies;
    // Compared before the division, which rounds.
    let nothing_missing = all(|report| report.loaded_files) >= all(|report| report.total_files)
        && all(|report| report.loaded_bytes) >= all(|report| report.total_bytes);
    let (total_files, total_bytes) = (sum(|report| report.total_files), sum(|report| report.total_bytes));
    let loaded_files = sum(|report| report.loaded_files).min(total_files);
    let loaded_bytes = sum(|report| report.loaded_bytes).min(total_bytes);
    let failed_files = all(|report| report.failed_files).div_ceil(copies);
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
        () if all_reported && nothing_missing && failed_files == 0 => LoadPhase::Complete,
        () if failed_files > 0 && !running => LoadPhase::Failed,
        () => LoadPhase::Loading,
    };
    let whole = match phase {
        LoadPhase::Complete => 100,
        LoadPhase::Pending => 0,
        LoadPhase::Loading | LoadPhase::Failed if total_bytes == 0 => 0,
        // Rounded down, and never all before it is.
        LoadPhase::Loading | LoadPhase::Failed => (u128::from(loaded_bytes) * 100 / u128::from(total_bytes)).min(99),
    } as i64;
    let throughput = seen.throughput.filter(|_| phase == LoadPhase::Loading);
    let estimate = throughput.filter(|rate| *rate > 0).and_then(|rate| {
        let left = SignedDuration::from_secs(((total_bytes - loaded_bytes) / rate) as i64);
        seen.now.checked_add(left).ok().map(|at| Time(whole_seconds(at)))
    });
    PreloadProgress {
        phase,
        percent: whole,
        progress: if failed_files > 0 { format!("{whole}% ({failed_files} failed)") } else { format!("{whole}%") },
        loaded_files: loaded_files as i64,
        total_files: total_files as i64,
        loaded_size: format_bytes(loaded_bytes),
        total_size: format_bytes(total_bytes),
        loaded_bytes: loaded_bytes as i64,
        total_bytes: total_bytes as i64,
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

fn preloaded(preload: Option<&PreloadProgress>) -> Verdict {
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

fn cache(seen: &Observation<'_>, version: Option<&DatasetVersion>) -> Option<DatasetCache> {
    if seen.reports.is_empty() {
        return None;
    }
    let all = version.map(|version| version.bytes as u64);
    let held = seen.reports.iter().map(|report| report.owned_cached_bytes).sum::<u64>();
    let bytes = all.map_or(held, |all| held.min(all));
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

fn ready(runtime: &Verdict, catalogued: &Verdict, version: Option<&DatasetVersion>) -> Verdict {
    match (runtime.holds(), catalogued.holds(), version) {
        (true, true, Some(version)) => {
            Verdict::yes("Ready", format!("pods can read {} files, {}", version.files, version.size))
        }
        (true, _, _) => catalogued.clone(),
        (false, _, _) => runtime.clone(),
    }
}

/// What an object passes through without anybody's doing.
fn passing(verdict: &Verdict) -> bool {
    ["WaitingForRuntime", "WaitingForNodes", "NodesNotReachable", "Listing", RUNTIME_NOT_FOUND]
        .contains(&verdict.reason.as_str())
}

fn phase(
    seen: &Observation<'_>,
    ready: &Verdict,
    runtime: &Verdict,
    catalogued: &Verdict,
    healthy: &Verdict,
    preload: Option<&PreloadProgress>,
) -> DatasetPhase {
    let complaint = seen.problem.is_some()
        || healthy.status == "False"
        || preload.is_some_and(|preload| preload.phase == LoadPhase::Failed);
    match () {
        () if ready.holds() && complaint => DatasetPhase::Degraded,
        () if ready.holds() => DatasetPhase::Ready,
        // Complete files are still read where the runtime is only away.
        () if catalogued.holds() && passing(runtime) => DatasetPhase::Degraded,
        () if !runtime.holds() && passing(runtime) => DatasetPhase::Pending,
        () if ["Listing", node::WAITING_FOR_CATALOG].contains(&catalogued.reason.as_str()) => DatasetPhase::Cataloguing,
        () if passing(ready) => DatasetPhase::Pending,
        () => DatasetPhase::Failed,
    }
}

/// Whether the next look should be soon: something is under way, or only just began.
pub fn in_motion(status: &DatasetStatus) -> bool {
    let loading =
        status.preload.as_ref().is_some_and(|preload| matches!(preload.phase, LoadPhase::Loading | LoadPhase::Pending));
    loading
        || status.phase != Some(DatasetPhase::Ready)
        || find(&status.conditions, "Ready").is_none_or(|ready| ready.status != "True")
}

#[cfg(test)]
mod tests {
    use forebay_protocol::node::{PreloadProgress as NodePreload, ReadCounters, SourceStatus};
    use serde_json::json;

    use super::super::validate::tests::dataset;
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn catalog() -> CatalogInfo {
        CatalogInfo {
            id: "c1".into(),
            files: 10,
            directories: 2,
            bytes: 1000 << 20,
            observed_at_unix_seconds: NOW,
            ..CatalogInfo::default()
        }
    }

    fn report(loaded: u64, running: bool) -> NodeDataset {
        NodeDataset {
            uid: "u1".into(),
            catalog: Some(catalog()),
            owned_cached_bytes: loaded << 20,
            preload: Some(NodePreload {
                total_files: 5,
                loaded_files: loaded / 100,
                total_bytes: 500 << 20,
                loaded_bytes: loaded << 20,
                running,
                ..NodePreload::default()
            }),
            sources: vec![SourceStatus {
                mount: "/images".into(),
                url: "s3://notes/2026/".into(),
                state: 1,
                since_unix_seconds: NOW,
                problem: None,
            }],
            ..NodeDataset::default()
        }
    }

    fn preloading() -> Dataset {
        dataset(|value| value["spec"]["preload"] = json!({}))
    }

    fn observe(
        dataset: &Dataset,
        problem: Option<&Problem>,
        reports: &[NodeDataset],
        nodes: (usize, usize),
    ) -> DatasetStatus {
        status(&Observation {
            dataset,
            problem,
            reports: reports.iter().collect(),
            nodes,
            published: true,
            throughput: Some(50 << 20),
            mounted_on: vec![],
            now: Timestamp::from_second(NOW).unwrap(),
        })
    }

    fn condition(status: &DatasetStatus, type_: &str) -> (String, String) {
        let condition = find(&status.conditions, type_).unwrap();
        (condition.status.clone(), condition.reason.clone())
    }

    fn is(status: &str, reason: &str) -> (String, String) {
        (status.to_owned(), reason.to_owned())
    }

    #[test]
    fn a_loading_dataset_is_ready_and_shows_its_progress() {
        let status = observe(&preloading(), None, &[report(500, false), report(240, true)], (2, 2));
        assert_eq!(status.phase, Some(DatasetPhase::Ready));
        assert_eq!(condition(&status, "Ready"), is("True", "Ready"));
        assert_eq!(condition(&status, "Preloaded"), is("False", "Loading"));
        let preload = status.preload.as_ref().unwrap();
        assert_eq!((preload.phase, preload.percent, preload.progress.as_str()), (LoadPhase::Loading, 74, "74%"));
        assert_eq!((preload.loaded_files, preload.total_files), (7, 10));
        assert_eq!(preload.throughput.as_deref(), Some("50Mi/s"));
        assert_eq!(preload.estimated_completion.as_ref().unwrap().0.as_second(), NOW + 5);
        assert_eq!(status.cache.as_ref().unwrap().percent, 74);
        assert_eq!(status.source.as_deref(), Some("s3://notes/2026/"));
        assert!(in_motion(&status));
    }

    #[test]
    fn a_file_that_every_node_keeps_counts_once_and_is_loaded_when_all_have_it() {
        let everywhere = |loaded: u64| {
            let mut report = report(loaded, loaded < 1000);
            let preload = report.preload.as_mut().unwrap();
            (preload.total_files, preload.total_bytes, preload.copies) = (10, 1000 << 20, 2);
            report
        };
        let loading = observe(&preloading(), None, &[everywhere(1000), everywhere(990)], (2, 2)).preload.unwrap();
        assert_eq!((loading.total_files, loading.total_bytes), (10, 1000 << 20));
        assert_eq!((loading.loaded_files, loading.percent, loading.phase), (9, 99, LoadPhase::Loading));
        let whole = observe(&preloading(), None, &[everywhere(1000), everywhere(1000)], (2, 2)).preload.unwrap();
        assert_eq!((whole.loaded_files, whole.percent, whole.phase), (10, 100, LoadPhase::Complete));
    }

    #[test]
    fn a_load_is_complete_only_when_every_node_says_so() {
        let mut published = preloading();
        published.status = Some(observe(&published, None, &[report(0, true), report(0, true)], (2, 2)));
        let half = observe(&published, None, &[report(500, false)], (2, 2));
        let preload = half.preload.unwrap();
        assert_eq!((preload.phase, preload.percent, preload.verified), (LoadPhase::Loading, 99, false));
        let whole = observe(&preloading(), None, &[report(500, false), report(500, false)], (2, 2));
        assert_eq!(condition(&whole, "Preloaded"), is("True", "Complete"));
        assert_eq!(whole.preload.as_ref().unwrap().percent, 100);
        assert!(whole.preload.as_ref().unwrap().verified && !in_motion(&whole));
    }

    #[test]
    fn a_complete_load_stays_complete_while_a_node_is_away() {
        let mut dataset = preloading();
        dataset.status = Some(observe(&dataset, None, &[report(500, false), report(500, false)], (2, 2)));
        let status = observe(&dataset, None, &[report(500, false)], (1, 2));
        assert_eq!(status.preload.unwrap().phase, LoadPhase::Complete);
    }

    #[test]
    fn files_that_can_not_be_loaded_make_the_dataset_degraded() {
        let mut failed = report(400, false);
        let preload = failed.preload.as_mut().unwrap();
        preload.failed_files = 1;
        preload.failures =
            vec![node::PreloadFailure { path: "images/a.jpg".into(), reason: "changed in the source".into() }];
        let status = observe(&preloading(), None, &[failed], (1, 1));
        assert_eq!(status.phase, Some(DatasetPhase::Degraded));
        assert_eq!(condition(&status, "Preloaded"), is("False", "FilesFailed"));
        assert_eq!(status.preload.unwrap().progress, "80% (1 failed)");
    }

    #[test]
    fn the_version_stays_what_was_published() {
        let mut dataset = dataset(|_| {});
        dataset.status = Some(observe(&dataset, None, &[report(0, false)], (1, 1)));
        let mut other = report(0, false);
        other.catalog.as_mut().unwrap().id = "c0".into();
        let status = observe(&dataset, None, &[other], (1, 1));
        assert_eq!(status.version.unwrap().id, "c1");
        let nobody = observe(&dataset, None, &[], (0, 2));
        assert_eq!(nobody.version.as_ref().unwrap().id, "c1");
        assert_eq!(nobody.phase, Some(DatasetPhase::Degraded));
        assert_eq!(condition(&nobody, "RuntimeAvailable"), is("False", "NodesNotReachable"));
    }

    #[test]
    fn a_node_s_problem_with_the_source_is_the_condition_s() {
        let problem =
            node::Problem { reason: "BucketNotFound".into(), message: "the bucket notes does not exist".into() };
        let report = NodeDataset {
            uid: "u1".into(),
            catalog_problem: Some(problem.clone()),
            sources: vec![SourceStatus {
                mount: "/images".into(),
                url: "s3://notes/2026/".into(),
                state: 3,
                problem: Some(problem),
                since_unix_seconds: NOW,
            }],
            ..NodeDataset::default()
        };
        let status = observe(&dataset(|_| {}), None, &[report], (1, 1));
        assert_eq!(status.phase, Some(DatasetPhase::Failed));
        for type_ in ["Ready", "Catalogued", "SourcesHealthy"] {
            assert_eq!(condition(&status, type_), is("False", "BucketNotFound"), "{type_}");
        }
        assert_eq!(status.sources[0].state, SourceState::Unhealthy);
        assert!(status.sources[0].reason.as_ref().unwrap().starts_with("BucketNotFound"));
    }

    #[test]
    fn a_version_is_published_when_every_node_that_answers_has_it_or_lags_for_long() {
        let report = |observed_at: i64| NodeDataset {
            uid: "u1".into(),
            catalog: Some(CatalogInfo { observed_at_unix_seconds: observed_at, ..catalog() }),
            ..NodeDataset::default()
        };
        let fresh = report(NOW - LAGGING_SECONDS);
        assert!(observe(&dataset(|_| {}), None, std::slice::from_ref(&fresh), (2, 2)).version.is_none());
        assert!(observe(&dataset(|_| {}), None, &[fresh.clone(), fresh.clone()], (2, 2)).version.is_some());
        assert!(observe(&dataset(|_| {}), None, &[fresh], (1, 2)).version.is_some());
        let old = report(NOW - LAGGING_SECONDS - 1);
        assert!(observe(&dataset(|_| {}), None, &[old], (2, 2)).version.is_some());
    }

    #[test]
    fn the_problem_of_the_node_that_lists_comes_before_those_that_wait() {
        let report = |reason: &str| NodeDataset {
            uid: "u1".into(),
            catalog_problem: Some(node::Problem { reason: reason.into(), message: "why".into() }),
            ..NodeDataset::default()
        };
        let waiting = observe(&dataset(|_| {}), None, &[report(node::WAITING_FOR_CATALOG)], (2, 2));
        assert_eq!(waiting.phase, Some(DatasetPhase::Cataloguing));
        let reports = [report(node::WAITING_FOR_CATALOG), report("AccessDenied")];
        let status = observe(&dataset(|_| {}), None, &reports, (2, 2));
        assert_eq!(status.phase, Some(DatasetPhase::Failed));
        assert_eq!(condition(&status, "Catalogued"), is("False", "AccessDenied"));
    }

    #[test]
    fn a_missing_secret_fails_a_new_dataset_and_degrades_one_that_can_be_read() {
        let problem = Problem::new("SecretNotFound", "the Secret training/cloud does not exist");
        let mut dataset = dataset(|_| {});
        let new = observe(&dataset, Some(&problem), &[], (2, 2));
        assert_eq!(new.phase, Some(DatasetPhase::Failed));
        assert_eq!(condition(&new, "Ready"), is("False", "SecretNotFound"));
        dataset.status = Some(observe(&dataset, None, &[report(0, false)], (1, 1)));
        let old = observe(&dataset, Some(&problem), &[report(0, false)], (1, 1));
        assert_eq!(old.phase, Some(DatasetPhase::Degraded));
        assert_eq!(condition(&old, "Ready"), is("True", "Ready"));
        assert_eq!(condition(&old, "SourcesHealthy"), is("False", "SecretNotFound"));
    }

    #[test]
    fn a_dataset_without_a_runtime_is_pending_with_the_reason() {
        let problem = Problem::new(RUNTIME_NOT_FOUND, "the CacheRuntime forebay/pool does not exist");
        let status = observe(&dataset(|_| {}), Some(&problem), &[], (0, 0));
        assert_eq!(status.phase, Some(DatasetPhase::Pending));
        assert_eq!(condition(&status, "RuntimeAvailable"), is("False", RUNTIME_NOT_FOUND));
        assert_eq!(condition(&status, "Ready"), is("False", RUNTIME_NOT_FOUND));
        let waiting = observe(&dataset(|_| {}), None, &[], (0, 0));
        assert_eq!(waiting.phase, Some(DatasetPhase::Pending));
        let listing = observe(&dataset(|_| {}), None, &[], (2, 2));
        assert_eq!(listing.phase, Some(DatasetPhase::Cataloguing));
    }

    #[test]
    fn the_hit_ratio_is_that_of_the_last_hour_over_all_nodes() {
        let mut one = report(500, false);
        one.last_hour = Some(ReadCounters { requested_bytes: 1000, hit_bytes: 1000, ..ReadCounters::default() });
        one.total =
            Some(ReadCounters { requested_bytes: 5000, hit_bytes: 4000, source_bytes: 700, ..ReadCounters::default() });
        let mut two = report(500, false);
        two.last_hour = Some(ReadCounters { requested_bytes: 1000, hit_bytes: 500, ..ReadCounters::default() });
        let cache = observe(&dataset(|_| {}), None, &[one, two], (2, 2)).cache.unwrap();
        assert_eq!(cache.hit_ratio.as_deref(), Some("75%"));
        assert_eq!((cache.bytes_from_source, cache.bytes_from_cache), (700, 4000));
    }

    #[test]
    fn the_same_observation_gives_the_same_status() {
        let mut dataset = preloading();
        let first = observe(&dataset, None, &[report(500, false), report(240, true)], (2, 2));
        dataset.status = Some(first.clone());
        assert_eq!(observe(&dataset, None, &[report(500, false), report(240, true)], (2, 2)), first);
    }
}
