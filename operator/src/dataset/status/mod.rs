//! A Dataset's status from what its runtime's nodes report. Pure, so that every situation is a test.

mod cache;
mod preload;
mod sources;
mod version;

use forebay_crds::{
    Dataset, DatasetPhase, DatasetStatus, DatasetVersion, LoadPhase, MountedOn, PlacementMode, PreloadProgress,
};
use forebay_protocol::node::{self, CatalogInfo, DatasetStatus as NodeDataset};
use jiff::Timestamp;

use self::cache::cache;
use self::preload::{preload, preloaded};
use self::sources::{serving, sources, sources_healthy};
use self::version::version;
use super::dereference::{NOT_ALLOWED, RUNTIME_NOT_FOUND};
use crate::conditions::{Verdict, find};
use crate::problem::Problem;

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
    /// Members that are to stay: those that content is placed on.
    pub owners: usize,
    /// The configuration is known to hold the Dataset.
    pub published: bool,
    /// Bytes per second of late.
    pub throughput: Option<u64>,
    /// Who uses the claim.
    pub mounted_on: Vec<MountedOn>,
    /// Of the observation.
    pub now: Timestamp,
}

impl Observation<'_> {
    /// Every node is to have all of it.
    fn is_everywhere(&self) -> bool {
        let placement = self.dataset.spec.placement.as_ref();
        placement.is_some_and(|placement| placement.mode == Some(PlacementMode::Everywhere))
    }

    /// How many nodes own each stripe, so that sums of what they are to load count it so often.
    fn copies(&self) -> u64 {
        let replicas = self.dataset.spec.placement.as_ref().and_then(|placement| placement.replicas);
        let replicas = u64::try_from(replicas.unwrap_or(1)).unwrap_or(1);
        replicas.clamp(1, (self.owners as u64).max(1))
    }
}

/// The status of a Dataset that is not being deleted.
pub fn status(seen: &Observation<'_>) -> DatasetStatus {
    let old = seen.dataset.status.clone().unwrap_or_default();
    let version = version(seen, old.version.as_ref());
    let sources = sources(seen);
    let runtime = runtime_available(seen);
    let catalogued = catalogued(seen, version.as_ref());
    let healthy = sources_healthy(seen, &sources, &catalogued);
    // What is to be everywhere is loaded, asked for or not.
    let loads = seen.dataset.spec.preload.is_some() || seen.is_everywhere();
    let preload = loads.then(|| preload(seen, version.as_ref(), old.preload.as_ref()));
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
mod tests;
