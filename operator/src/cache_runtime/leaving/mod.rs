//! Cache nodes that are asked to leave: because fewer are wanted, or because their node does not match the runtime any more or has the label
//! `forebay.dev/leave=true`. A leaving one hands what it holds to the others; its pod ends when that is done and no pod of its node reads through
//! it, or when the patience is over. All of it is derived from pods, nodes, status and what the cache nodes say; nothing is remembered.

pub mod news;
pub mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use forebay_crds::{DrainStatus, MemberState, MemberStatus, format_bytes};
use forebay_protocol::config::RuntimeConfig;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;

use self::plan::{Place, PodView, plan};
use super::dereference::address;
use super::members::Membership;
use super::selection::{LEAVE_LABEL, asked_to_leave, matches};
use super::validate::ValidRuntime;
use crate::conditions::whole_seconds;
use crate::nodes::Gathered;

/// What decides who leaves.
#[derive(Debug)]
pub struct Situation<'a> {
    /// The runtime.
    pub runtime: &'a ValidRuntime,
    /// Cache nodes that there should be.
    pub desired: i32,
    /// Its pods.
    pub pods: &'a [Pod],
    /// All nodes of the cluster.
    pub nodes: &'a [Arc<Node>],
    /// What the cache nodes say.
    pub gathered: Option<&'a Gathered>,
    /// The configuration that they have been given.
    pub published: Option<&'a RuntimeConfig>,
    /// Who is a member.
    pub membership: &'a Membership,
    /// Pods that use Datasets of the runtime, by node.
    pub readers: &'a BTreeMap<String, Vec<String>>,
    /// The members of the last status.
    pub old: &'a [MemberStatus],
    /// Now.
    pub now: Timestamp,
}

/// Who leaves, and what is to be done about it now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Leaving {
    /// The members that leave, by pod.
    pub departures: BTreeMap<String, Departure>,
    /// Their addresses, and those of pods that have left and are ending.
    pub addresses: BTreeSet<SocketAddr>,
    /// Pods to evict.
    pub evict: Vec<String>,
    /// Pods of the StatefulSet now.
    pub replicas: i32,
}

/// A member that leaves.
#[derive(Clone, Debug, PartialEq)]
pub struct Departure {
    /// When it was asked to.
    pub since: Timestamp,
    /// Why, in words.
    pub why: String,
    /// How far it is.
    pub handover: Handover,
    /// Share of its bytes that the others have.
    pub percent: i64,
    /// What is still to be handed over, rounded.
    pub remaining: String,
}

/// How far a leaving member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handover {
    /// It waits for this.
    Waits(String),
    /// It has handed over everything.
    Done,
    /// Its time is up, while it waited for this.
    GivenUp(String),
}

impl Departure {
    /// As the status shows it.
    pub fn status(&self) -> (MemberState, DrainStatus) {
        let (state, what) = match &self.handover {
            Handover::Waits(what) => (MemberState::Leaving, what.clone()),
            Handover::Done => (MemberState::Left, "it has handed over what it held; its pod ends".to_owned()),
            Handover::GivenUp(what) => {
                (MemberState::Left, format!("its time is up, its pod ends; it still waited: {what}"))
            }
        };
        let message = format!("{}; {what}", self.why);
        let since = Time(self.since);
        (state, DrainStatus { since, percent: self.percent, remaining: self.remaining.clone(), message })
    }
}

impl Leaving {
    /// Nobody leaves, no pod ends.
    pub fn nobody(pods: &[Pod], runtime: &str, desired: i32) -> Self {
        let count = pods.iter().filter_map(|pod| ordinal(&pod.name_any(), runtime)).map(|last| last + 1).max();
        Self { replicas: desired.max(count.unwrap_or_default() as i32), ..Self::default() }
    }
}

/// Who leaves.
pub fn leaving(seen: &Situation<'_>) -> Leaving {
    let name = &seen.runtime.name.name;
    let mut views = Vec::new();
    let mut departures = BTreeMap::new();
    let mut addresses = BTreeSet::new();
    for pod in seen.pods {
        let pod_name = pod.name_any();
        let Some(ordinal) = ordinal(&pod_name, name) else { continue };
        let place = match place(seen, pod) {
            Some((node, stays)) => {
                let departure = departure(seen, pod, &node);
                let done = departure.as_ref().is_none_or(|departure| !matches!(departure.handover, Handover::Waits(_)));
                departures.extend(departure.map(|departure| (ordinal, (pod_name, departure))));
                Place::On { stays, done }
            }
            None if is_unschedulable(pod) => Place::Unschedulable,
            None => {
                // It ends: as a leaving one, if it was.
                addresses.extend(address(pod).filter(|address| was_leaving(seen, *address)));
                Place::Nowhere
            }
        };
        views.push(PodView { ordinal, place });
    }
    let matching = seen.nodes.iter().filter(|node| matches(seen.runtime, node)).count();
    let plan = plan(seen.desired.max(0) as usize, matching, &views);
    departures.retain(|ordinal, _| plan.leaving.contains(ordinal));
    let departures: BTreeMap<_, _> = departures.into_values().collect();
    let leaving_pods = seen.pods.iter().filter(|pod| departures.contains_key(&pod.name_any()));
    addresses.extend(leaving_pods.filter_map(address));
    Leaving {
        departures,
        addresses,
        evict: plan.evict.iter().map(|ordinal| format!("{name}-{ordinal}")).collect(),
        replicas: plan.replicas as i32,
    }
}

fn ordinal(pod: &str, runtime: &str) -> Option<usize> {
    pod.strip_prefix(runtime)?.strip_prefix('-')?.parse().ok()
}

/// The node a pod is on, and whether that is one to stay on. A pod that ends, or whose node is gone, is as good as on none.
fn place(seen: &Situation<'_>, pod: &Pod) -> Option<(String, bool)> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    if pod.metadata.deletion_timestamp.is_some() || matches!(phase, "Failed" | "Succeeded") {
        return None;
    }
    let name = pod.spec.as_ref()?.node_name.clone()?;
    let node = seen.nodes.iter().find(|node| node.name_any() == name)?;
    let stays = matches(seen.runtime, node);
    Some((name, stays))
}

fn is_unschedulable(pod: &Pod) -> bool {
    let conditions = pod.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().any(|condition| {
            condition.type_ == "PodScheduled"
                && condition.status == "False"
                && condition.reason.as_deref() == Some("Unschedulable")
        })
}

fn was_leaving(seen: &Situation<'_>, address: SocketAddr) -> bool {
    let members = seen.published.map(|config| config.members.as_slice()).unwrap_or_default();
    members.iter().any(|member| member.address == address && !member.state.is_active())
}

/// How far a pod's member is, or would be, with leaving; `None` when there is no member and so nothing to hand over.
fn departure(seen: &Situation<'_>, pod: &Pod, node: &str) -> Option<Departure> {
    let name = pod.name_any();
    let address = address(pod)?;
    let id = seen.membership.id_at(address)?;
    let state = seen.gathered.and_then(|gathered| gathered.nodes.iter().find(|state| state.target.pod == name));
    let answer = state.and_then(|state| state.last.as_ref());
    let old = seen.old.iter().find(|old| old.pod == name && old.id == id).and_then(|old| old.drain.as_ref());
    let since = old.map_or_else(|| whole_seconds(seen.now), |old| old.since.0);

    // Before the node has this configuration it may speak of an earlier time of leaving.
    let revision = seen.published.map(|config| config.revision.as_str());
    let is_told = was_leaving(seen, address) && answer.is_some_and(|answer| Some(answer.revision.as_str()) == revision);
    let drain = answer.filter(|_| is_told).and_then(|answer| answer.drain.as_ref());
    let (percent, remaining) = match (drain, old) {
        (Some(drain), _) if drain.done => (100, format_bytes(0)),
        (Some(drain), _) => {
            let moved = u128::from(drain.total_bytes.saturating_sub(drain.remaining_bytes));
            let percent = (moved * 100).checked_div(u128::from(drain.total_bytes)).unwrap_or_default().min(99);
            (percent as i64, format_bytes(drain.remaining_bytes))
        }
        (None, Some(old)) => (old.percent, old.remaining.clone()),
        (None, None) => (0, format_bytes(answer.map(|answer| answer.cached_bytes).unwrap_or_default())),
    };
    let answers = state.map(|state| state.status.as_ref().map(drop).map_err(String::as_str));
    let waits = waits_for(answers, drain, seen.readers.get(node));
    let patience = seen.runtime.drain_patience;
    let time_is_up = seen.now.duration_since(since).unsigned_abs() >= patience;
    let handover = match waits {
        None => Handover::Done,
        Some(waits) if time_is_up && old.is_some() => Handover::GivenUp(waits),
        Some(waits) => Handover::Waits(waits),
    };
    Some(Departure { since, why: why(seen, node), handover, percent, remaining })
}

/// What keeps a leaving member's pod from ending.
fn waits_for(
    answers: Option<Result<(), &str>>,
    drain: Option<&forebay_protocol::node::Drain>,
    readers: Option<&Vec<String>>,
) -> Option<String> {
    match (answers, drain) {
        (Some(Err(error)), _) => Some(format!("it does not answer: {error}")),
        (None, _) => Some("it does not answer".to_owned()),
        (_, None) => Some("it has not heard of it yet".to_owned()),
        (_, Some(drain)) if !drain.done => Some(match &drain.problem {
            Some(problem) => problem.message.clone(),
            None => "it hands over what it holds".to_owned(),
        }),
        _ => readers
            .filter(|readers| !readers.is_empty())
            .map(|readers| format!("pods on its node read through it: {}", readers.join(", "))),
    }
}

fn why(seen: &Situation<'_>, name: &str) -> String {
    match seen.nodes.iter().find(|node| node.name_any() == name) {
        Some(node) if asked_to_leave(node) => format!("the node {name} has the label {LEAVE_LABEL}=true"),
        Some(node) if !matches(seen.runtime, node) => format!("the node {name} does not match spec.nodes any more"),
        _ => format!("{} cache nodes are wanted", seen.desired),
    }
}

#[cfg(test)]
mod tests;
