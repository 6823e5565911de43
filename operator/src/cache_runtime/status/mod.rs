//! A CacheRuntime's status from what its pods and nodes say (pure), and writing it.

mod members;
mod storage;

use std::collections::BTreeMap;

use forebay_crds::{CacheRuntime, CacheRuntimeStatus, NodeCount, RuntimePhase, format_bytes, format_percent};
use forebay_protocol::config::Member;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _};

use crate::cache_runtime::leaving::{self, Departure};
use crate::conditions::Verdict;
use crate::context::Context;
use crate::events::{publish_news, publish_transitions};
use crate::nodes::Gathered;
use crate::objects::apply_status;
use crate::problem::{Error, Problem};

/// What a status is made of.
#[derive(Debug)]
pub struct Observation<'a> {
    /// The runtime with its last status.
    pub runtime: &'a CacheRuntime,
    /// What keeps it from being built.
    pub problem: Option<&'a Problem>,
    /// What its deletion waits for.
    pub deleting: Option<&'a Problem>,
    /// Cache nodes that there should be.
    pub desired: i32,
    /// Its pods.
    pub pods: &'a [Pod],
    /// What its nodes say.
    pub gathered: Option<&'a Gathered>,
    /// The members in the configuration.
    pub members: &'a [Member],
    /// Those that leave, by pod.
    pub departures: &'a BTreeMap<String, Departure>,
    /// Datasets in the configuration.
    pub datasets: usize,
    /// Of the observation.
    pub now: Timestamp,
}

/// The status.
pub fn status(seen: &Observation<'_>) -> CacheRuntimeStatus {
    let old = seen.runtime.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let generation = seen.runtime.metadata.generation;
    let answers = || seen.gathered.into_iter().flat_map(Gathered::answers);
    let answering = answering(seen);
    let ready = ready(seen, answering);
    let storage = storage::healthy(seen.gathered);
    let mut conditions = vec![
        ready.condition("Ready", old, generation, seen.now),
        storage.condition(storage::CONDITION, old, generation, seen.now),
    ];
    if let Some(deleting) = seen.deleting {
        conditions.push(
            Verdict::yes(&deleting.reason, deleting.message.clone()).condition("Deleting", old, generation, seen.now),
        );
    }
    let phase = match () {
        () if seen.deleting.is_some() => RuntimePhase::Terminating,
        () if seen.problem.is_some() || seen.desired == 0 => RuntimePhase::Failed,
        () if ready.holds() && storage.status != "False" => RuntimePhase::Ready,
        () if answering == 0 => RuntimePhase::Pending,
        () => RuntimePhase::Degraded,
    };
    let hour = || answers().flat_map(|answer| &answer.datasets).filter_map(|dataset| dataset.last_hour.as_ref());
    let requested: u64 = hour().map(|counters| counters.requested_bytes).sum();
    let hits: u64 = hour().map(|counters| counters.hit_bytes).sum();
    CacheRuntimeStatus {
        observed_generation: generation,
        phase: Some(phase),
        conditions,
        nodes: Some(NodeCount { desired: seen.desired.into(), ready: answering as i64 }),
        members: members::members(seen),
        capacity: Some(format_bytes(answers().map(|answer| answer.capacity_bytes).sum())),
        cached: Some(format_bytes(answers().map(|answer| answer.cached_bytes).sum())),
        hit_ratio: (requested > 0).then(|| format_percent(hits, requested)),
        datasets: Some(seen.datasets as i64),
        links: vec![],
    }
}

/// Cache nodes that answer and are to stay.
fn answering(seen: &Observation<'_>) -> usize {
    let nodes = seen.gathered.map(|gathered| gathered.nodes.as_slice()).unwrap_or_default();
    nodes.iter().filter(|node| node.status.is_ok() && !seen.departures.contains_key(&node.target.pod)).count()
}

fn ready(seen: &Observation<'_>, answering: usize) -> Verdict {
    if let Some(problem) = seen.problem {
        return Verdict::problem(problem);
    }
    if seen.desired == 0 {
        return Verdict::no(
            "NoMatchingNodes",
            "no node of the cluster matches spec.nodes.selector and its taints: label nodes, or tolerate their taints",
        );
    }
    let leaving = match seen.departures.len() {
        0 => String::new(),
        count => format!("; {count} more leave: see status.members"),
    };
    let count = format!("{answering} of {} cache nodes answer{leaving}", seen.desired);
    if answering >= seen.desired as usize {
        return Verdict::yes("AllNodesReady", count);
    }
    let message = match trouble(seen) {
        Some(trouble) => format!("{count}; {trouble}"),
        None => count,
    };
    Verdict::no(if answering == 0 { "WaitingForNodes" } else { "NodesNotReady" }, message)
}

/// Why the first pod that does not answer does not.
fn trouble(seen: &Observation<'_>) -> Option<String> {
    for pod in seen.pods {
        let name = pod.name_any();
        let node = seen.gathered.and_then(|gathered| gathered.nodes.iter().find(|node| node.target.pod == name));
        if node.is_some_and(|node| node.status.is_ok()) {
            continue;
        }
        let status = pod.status.as_ref()?;
        let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        let waiting = containers
            .filter_map(|container| container.state.as_ref()?.waiting.as_ref())
            .find(|waiting| waiting.reason.as_deref().is_some_and(|reason| reason != "PodInitializing"));
        if let Some(waiting) = waiting {
            let reason = waiting.reason.as_deref().unwrap_or_default();
            return Some(
                format!("pod {name}: {reason} {}", waiting.message.as_deref().unwrap_or_default()).trim().to_owned(),
            );
        }
        let unscheduled = status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
        if let Some(condition) = unscheduled {
            return Some(format!("pod {name} is not scheduled: {}", condition.message.as_deref().unwrap_or_default()));
        }
        if let Some(Err(error)) = node.map(|node| &node.status) {
            return Some(format!("pod {name}: {error}"));
        }
    }
    None
}

/// Writes `status` if it is not what the runtime has, and tells what is new in Events.
pub async fn update_status(
    context: &Context,
    runtime: &CacheRuntime,
    status: &CacheRuntimeStatus,
    departures: &BTreeMap<String, Departure>,
) -> Result<(), Error> {
    if runtime.status.as_ref() == Some(status) {
        return Ok(());
    }
    let api = Api::<CacheRuntime>::namespaced(context.client.clone(), &runtime.namespace().unwrap_or_default());
    apply_status(&api, &runtime.name_any(), status).await?;
    let old = runtime.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    publish_transitions(&context.recorder, runtime, old, &status.conditions).await;
    let old = runtime.status.as_ref().map(|status| status.members.as_slice()).unwrap_or_default();
    let mut news = leaving::news::news(old, &status.members, departures);
    news.extend(storage::news(old, &status.members));
    publish_news(&context.recorder, runtime, &news).await;
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Instant;

    use forebay_protocol::node::StatusResponse;
    use serde_json::json;

    use super::super::validate::tests::runtime;
    use super::*;
    use crate::nodes::{NodeState, Target};

    pub(super) fn node(pod: &str, answers: bool) -> NodeState {
        let answer = StatusResponse {
            node_id: pod.into(),
            capacity_bytes: 2 << 30,
            cached_bytes: 1 << 30,
            ..StatusResponse::default()
        };
        NodeState {
            target: Target { pod: pod.into(), node: "n".into(), address: ([10, 0, 0, 1], 7070).into() },
            status: if answers { Ok(answer.clone()) } else { Err("connection refused".into()) },
            last: answers.then_some(answer),
        }
    }

    pub(super) fn observe(
        desired: i32,
        nodes: Vec<NodeState>,
        pods: &[Pod],
        deleting: Option<&Problem>,
    ) -> CacheRuntimeStatus {
        let gathered = Gathered { at: Instant::now(), nodes };
        let runtime = runtime("/var/lib/forebay");
        let (gathered, now) = (Some(&gathered), Timestamp::now());
        let (members, departures) = (&[], &BTreeMap::new());
        status(&Observation {
            runtime: &runtime,
            problem: None,
            deleting,
            desired,
            pods,
            gathered,
            members,
            departures,
            datasets: 1,
            now,
        })
    }

    #[test]
    fn a_runtime_is_ready_when_all_its_nodes_answer() {
        let status = observe(2, vec![node("a", true), node("b", true)], &[], None);
        assert_eq!(status.phase, Some(RuntimePhase::Ready));
        assert_eq!(status.conditions[0].reason, "AllNodesReady");
        assert_eq!((status.capacity.as_deref(), status.cached.as_deref()), (Some("4Gi"), Some("2Gi")));
    }

    #[test]
    fn a_pod_that_can_not_start_is_named_with_its_cause() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "b"},
            "status": {"containerStatuses": [{"name": "forebay-node", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ErrImageNeverPull", "message": "no such image"}}}]},
        }))
        .unwrap();
        let status = observe(2, vec![node("a", true)], &[pod], None);
        assert_eq!(status.phase, Some(RuntimePhase::Degraded));
        assert!(
            status.conditions[0].message.contains("pod b: ErrImageNeverPull no such image"),
            "{:?}",
            status.conditions
        );
    }

    #[test]
    fn a_runtime_without_matching_nodes_says_so() {
        let status = observe(0, vec![], &[], None);
        assert_eq!(
            (status.phase, status.conditions[0].reason.as_str()),
            (Some(RuntimePhase::Failed), "NoMatchingNodes")
        );
    }

    #[test]
    fn a_deletion_that_waits_names_what_it_waits_for() {
        let waits = Problem::new("DatasetsRefer", "Datasets refer to it: training/images");
        let status = observe(1, vec![node("a", true)], &[], Some(&waits));
        assert_eq!(status.phase, Some(RuntimePhase::Terminating));
        assert!(status.conditions[2].type_ == "Deleting" && status.conditions[2].message.contains("training/images"));
    }
}
