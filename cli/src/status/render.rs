//! Datasets as text: a table of several, the details of one, one line of progress. Pure: statuses in, text out.

use std::fmt::Write as _;

use forebay_crds::{Dataset, DatasetStatus, PreloadProgress};
use kube::ResourceExt as _;

/// A line each, with the columns of `kubectl get datasets`.
pub fn table(datasets: &[Dataset], with_namespace: bool) -> String {
    let mut rows = vec![header(with_namespace)];
    rows.extend(datasets.iter().map(|dataset| row(dataset, with_namespace)));
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|text| text.chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}   ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn header(with_namespace: bool) -> Vec<String> {
    let namespace = with_namespace.then_some("NAMESPACE");
    let others = ["NAME", "PHASE", "FILES", "SIZE", "CACHED", "PRELOAD", "HIT RATE", "SOURCE"];
    namespace.into_iter().chain(others).map(str::to_owned).collect()
}

fn row(dataset: &Dataset, with_namespace: bool) -> Vec<String> {
    let status = dataset.status.clone().unwrap_or_default();
    let version = status.version.as_ref();
    let cells = [
        Some(dataset.name_any()),
        status.phase.map(|phase| format!("{phase:?}")),
        version.map(|version| version.files.to_string()),
        version.map(|version| version.size.clone()),
        status.cache.as_ref().map(|cache| cache.size.clone()),
        status.preload.as_ref().map(|preload| preload.progress.clone()),
        status.cache.as_ref().and_then(|cache| cache.hit_ratio.clone()),
        status.source.clone(),
    ];
    let namespace = with_namespace.then(|| dataset.namespace().unwrap_or_default());
    namespace.into_iter().chain(cells.into_iter().map(|cell| cell.unwrap_or_else(|| "-".to_owned()))).collect()
}

/// Everything about one Dataset.
pub fn details(dataset: &Dataset) -> String {
    let status = dataset.status.clone().unwrap_or_default();
    let mut text = String::new();
    let _ = writeln!(text, "{}/{}: {}", dataset.namespace().unwrap_or_default(), dataset.name_any(), phase(&status));
    if let Some(version) = &status.version {
        let _ = writeln!(text, "  version   {}: {} files, {}", version.id, version.files, version.size);
        for skipped in &version.skipped_keys {
            let _ = writeln!(text, "  skipped   {}{}: {}", skipped.url, skipped.key, skipped.reason);
        }
    }
    if let Some(preload) = &status.preload {
        let _ = writeln!(text, "  preload   {}", progress(preload));
        for failure in &preload.failures {
            let _ = writeln!(text, "  failed    {}: {}", failure.path, failure.reason);
        }
    }
    if let Some(cache) = &status.cache {
        let hits = cache.hit_ratio.as_deref().unwrap_or("-");
        let _ = writeln!(text, "  cache     {} ({}%), hit rate {hits}", cache.size, cache.percent);
    }
    for source in &status.sources {
        let reason = source.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let _ = writeln!(text, "  source    {} {} {:?}{reason}", source.mount, source.url, source.state);
    }
    for condition in &status.conditions {
        let _ = writeln!(
            text,
            "  {:16} {:7} {}: {}",
            condition.type_, condition.status, condition.reason, condition.message
        );
    }
    for mounted in &status.mounted_on {
        let _ = writeln!(text, "  mounted   {}: {}", mounted.node, mounted.pods.join(", "));
    }
    text
}

/// The phase, and where there is a problem, its reason and message.
pub fn phase(status: &DatasetStatus) -> String {
    let phase = status.phase.map_or_else(|| "Pending".to_owned(), |phase| format!("{phase:?}"));
    match problem(status) {
        Some(problem) => format!("{phase}, {problem}"),
        None => phase,
    }
}

/// The first condition that is false and says why, in order of what depends on what.
pub fn problem(status: &DatasetStatus) -> Option<String> {
    ["RuntimeAvailable", "SourcesHealthy", "Catalogued"].iter().find_map(|kind| {
        let condition =
            status.conditions.iter().find(|condition| condition.type_ == *kind && condition.status == "False")?;
        Some(format!("{}: {}", condition.reason, condition.message))
    })
}

/// One line about a load.
pub fn progress(preload: &PreloadProgress) -> String {
    let mut text = format!(
        "{:?} {}%: {} of {} files, {} of {}",
        preload.phase,
        preload.percent,
        preload.loaded_files,
        preload.total_files,
        preload.loaded_size,
        preload.total_size
    );
    if let Some(throughput) = &preload.throughput {
        let _ = write!(text, ", {throughput}");
    }
    if let Some(at) = &preload.estimated_completion {
        let _ = write!(text, ", complete at about {}", at.0);
    }
    if let Some(failed) = preload.failed_files.filter(|failed| *failed > 0) {
        let _ = write!(text, ", {failed} failed");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset(status: &str) -> Dataset {
        let text = format!(
            "
apiVersion: forebay.dev/v1alpha1
kind: Dataset
metadata: {{name: icons, namespace: training}}
spec: {{runtimeRef: {{name: pool}}, mounts: [{{path: /, sources: [{{url: 's3://b/'}}]}}]}}
status: {status}
"
        );
        match forebay_crds::parse_manifests(&text).unwrap().pop() {
            Some(forebay_crds::Manifest::Dataset(dataset)) => *dataset,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_dataset_without_a_status_shows_dashes() {
        let text = table(&[dataset("{}")], true);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("NAMESPACE   NAME    PHASE"), "{text}");
        assert!(lines[1].starts_with("training    icons   -"), "{text}");
    }

    #[test]
    fn the_problem_nearest_to_the_cause_is_shown() {
        let condition = |kind: &str, reason: &str| {
            format!(
                "{{type: {kind}, status: 'False', reason: {reason}, message: why, lastTransitionTime: '2026-01-01T00:00:00Z'}}"
            )
        };
        let status = format!(
            "{{phase: Failed, conditions: [{}, {}]}}",
            condition("Catalogued", "Waiting"),
            condition("SourcesHealthy", "BucketNotFound")
        );
        assert_eq!(phase(&dataset(&status).status.unwrap()), "Failed, BucketNotFound: why");
    }
}
