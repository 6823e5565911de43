//! The sources: their state as all nodes see it together.

use std::collections::BTreeMap;

use forebay_crds::{Dataset, SourceHealth, SourceState};
use forebay_protocol::node;

use super::version::time;
use super::{Observation, problem_of};
use crate::conditions::Verdict;

/// Every source and its state, as the nodes see it together.
pub fn sources(seen: &Observation<'_>) -> Vec<SourceHealth> {
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
pub fn serving(dataset: &Dataset, sources: &[SourceHealth]) -> Option<String> {
    let first = sources.iter().find(|source| source.state == SourceState::Active).or(sources.first())?;
    let more = dataset.spec.mounts.len() - 1;
    Some(if more == 0 { first.url.clone() } else { format!("{} (+{more})", first.url) })
}

/// Whether every mount has a source that answers.
pub fn sources_healthy(seen: &Observation<'_>, sources: &[SourceHealth], catalogued: &Verdict) -> Verdict {
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
