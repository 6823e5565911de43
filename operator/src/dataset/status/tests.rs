use forebay_crds::SourceState;
use forebay_protocol::node::{PreloadProgress as NodePreload, ReadCounters, SourceStatus};
use serde_json::json;

use super::super::validate::tests::dataset;
use super::version::LAGGING_SECONDS;
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
        owners: nodes.1,
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
    let problem = node::Problem { reason: "BucketNotFound".into(), message: "the bucket notes does not exist".into() };
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

#[test]
fn where_everything_is_everywhere_the_dataset_is_counted_once() {
    // It is loaded without a preload too.
    let everywhere = dataset(|value| value["spec"]["placement"] = json!({"mode": "Everywhere"}));
    let report = |loaded: u64| {
        let mut report = report(loaded, true);
        let preload = report.preload.as_mut().unwrap();
        (preload.total_files, preload.total_bytes, preload.loaded_files) = (10, 1000 << 20, loaded / 100);
        // Whatever a node calls its own, this is what it holds.
        (report.cached_bytes, report.owned_cached_bytes) = (loaded << 20, (loaded / 2) << 20);
        report
    };
    let status = observe(&everywhere, None, &[report(1000), report(500)], (2, 2));
    let preload = status.preload.unwrap();
    assert_eq!((preload.phase, preload.percent), (LoadPhase::Loading, 75));
    assert_eq!((preload.loaded_files, preload.total_files), (5, 10), "a file counts when all nodes have it");
    assert_eq!((preload.loaded_bytes, preload.total_bytes), (750 << 20, 1000 << 20));
    assert_eq!(preload.estimated_completion.unwrap().0.as_second(), NOW + 10, "500 MiB are missing, at 50 MiB/s");
    let cache = status.cache.unwrap();
    assert_eq!((cache.percent, cache.bytes), (75, 750 << 20));
    let status = observe(&everywhere, None, &[report(1000), report(1000)], (2, 2));
    assert_eq!(condition(&status, "Preloaded"), is("True", "Complete"));
    assert_eq!(status.preload.unwrap().loaded_files, 10);
    assert_eq!(status.cache.unwrap().percent, 100);
}

#[test]
fn replicas_are_not_counted_as_more_content() {
    let replicated = |replicas: u32| {
        dataset(|value| {
            value["spec"]["preload"] = json!({});
            value["spec"]["placement"] = json!({"replicas": replicas});
        })
    };
    let report = |loaded: u64| {
        let mut report = report(loaded, true);
        let preload = report.preload.as_mut().unwrap();
        (preload.total_files, preload.total_bytes, preload.loaded_files) = (10, 1000 << 20, loaded / 100);
        // Of two owners the first one counts.
        report.owned_cached_bytes = (loaded / 2) << 20;
        report
    };
    // More replicas than nodes are as many as there are nodes.
    for replicas in [2, 3] {
        let status = observe(&replicated(replicas), None, &[report(1000), report(500)], (2, 2));
        let preload = status.preload.unwrap();
        assert_eq!((preload.percent, preload.loaded_files, preload.total_files), (75, 7, 10));
        assert_eq!((preload.loaded_bytes, preload.total_bytes), (750 << 20, 1000 << 20));
        assert_eq!(status.cache.unwrap().percent, 75);
        let status = observe(&replicated(replicas), None, &[report(1000), report(1000)], (2, 2));
        assert_eq!(condition(&status, "Preloaded"), is("True", "Complete"));
    }
}
