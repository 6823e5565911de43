//! What the cache nodes' disks did wrong: a condition for what is so now, and an Event for each fault that is new.

use forebay_crds::{DiskFaultStatus, MemberStatus};
use forebay_protocol::node::{DiskFault, DiskFaultKind, StatusResponse};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::conditions::Verdict;
use crate::events::News;
use crate::nodes::Gathered;

/// The condition's type.
pub const CONDITION: &str = "StorageHealthy";

/// The reason of a kind of fault. `None` for one that is not known to this version.
fn reason(kind: DiskFaultKind) -> Option<&'static str> {
    match kind {
        DiskFaultKind::Unspecified => None,
        DiskFaultKind::DiskFull => Some("DiskFull"),
        DiskFaultKind::ReadOnly => Some("DiskReadOnly"),
        DiskFaultKind::IoError => Some("DiskIoError"),
        DiskFaultKind::ChunkDamaged => Some("ChunksDamaged"),
        DiskFaultKind::FileMissing => Some("FilesMissing"),
        DiskFaultKind::IndexDamaged => Some("IndexDamaged"),
    }
}

/// What somebody can do, for nodes whose message does not say.
fn next_step(kind: &str) -> &'static str {
    match kind {
        "DiskFull" => "free room on the disk, or create a CacheRuntime with less capacity; until then less is cached",
        "DiskReadOnly" => "look at the node's kernel log, repair or replace the disk, and restart the cache node",
        "DiskIoError" => "look at the node's kernel log; replace the disk if it goes on",
        _ => "nothing has to be done: what was hit is fetched again; if it happens often, look at the node's disk",
    }
}

/// The most pressing first.
fn rank(kind: &str) -> usize {
    let order = ["DiskReadOnly", "DiskIoError", "DiskFull", "IndexDamaged", "ChunksDamaged", "FilesMissing"];
    order.iter().position(|known| *known == kind).unwrap_or(order.len())
}

/// A node's faults as the status shows them.
pub fn faults(answer: &StatusResponse) -> Vec<DiskFaultStatus> {
    let time = |seconds: i64| Timestamp::from_second(seconds).ok().filter(|_| seconds > 0).map(Time);
    let fault = |fault: &DiskFault| {
        Some(DiskFaultStatus {
            kind: reason(fault.kind())?.to_owned(),
            count: fault.count as i64,
            first: time(fault.first_unix_seconds),
            last: time(fault.last_unix_seconds),
            current: fault.current,
            message: fault.message.clone(),
        })
    };
    let mut faults: Vec<_> = answer.disk_faults.iter().filter_map(fault).collect();
    faults.sort_by_key(|fault| rank(&fault.kind));
    faults
}

/// Whether no disk has a fault now.
pub fn healthy(gathered: Option<&Gathered>) -> Verdict {
    let nodes = gathered.map(|gathered| gathered.nodes.as_slice()).unwrap_or_default();
    let answers: Vec<_> = nodes.iter().filter_map(|node| Some((node, node.last.as_ref()?))).collect();
    if answers.is_empty() {
        return Verdict::unknown("NotKnownYet", "no cache node answers");
    }
    let of_node = |(node, answer): &(&crate::nodes::NodeState, &StatusResponse)| {
        faults(answer).into_iter().map(|fault| (node.target.node.clone(), fault)).collect::<Vec<_>>()
    };
    let all: Vec<_> = answers.iter().flat_map(of_node).collect();
    let mut current: Vec<_> = all.iter().filter(|(_, fault)| fault.current).collect();
    current.sort_by_key(|(node, fault)| (rank(&fault.kind), node.clone()));
    let Some((_, worst)) = current.first() else {
        let past: i64 = all.iter().map(|(_, fault)| fault.count).sum();
        let past = if past > 0 { format!("; {past} faults since the nodes started are mended") } else { String::new() };
        return Verdict::yes("NoFaults", format!("no cache node's disk has a fault{past}"));
    };
    let told = current.iter().map(|(node, fault)| format!("node {node}: {}: {}", fault.kind, fault.message));
    let message = format!("{}; next: {}", told.collect::<Vec<_>>().join("; "), next_step(&worst.kind));
    Verdict::no(&worst.kind, message)
}

/// Faults that the last status did not know, by node, kind and the time of the first.
pub fn news(old: &[MemberStatus], members: &[MemberStatus]) -> Vec<News> {
    let known = |member: &MemberStatus, fault: &DiskFaultStatus| {
        let of_node = old.iter().filter(|old| old.id == member.id);
        let mut faults = of_node.flat_map(|old| &old.disk_faults);
        faults.any(|old| old.kind == fault.kind && old.first == fault.first)
    };
    let mut news = Vec::new();
    for member in members {
        for fault in member.disk_faults.iter().filter(|fault| !known(member, fault)) {
            let note = format!(
                "the disk of the cache node {} on node {}: {}; next: {}",
                member.pod,
                member.node,
                fault.message,
                next_step(&fault.kind)
            );
            news.push(News::warning(&fault.kind, &member.pod, note));
        }
    }
    news
}

#[cfg(test)]
mod tests {
    use forebay_crds::RuntimePhase;

    use super::super::tests::{node, observe};
    use super::*;
    use crate::nodes::NodeState;

    fn with_fault(pod: &str, kind: DiskFaultKind, first: i64, current: bool) -> NodeState {
        let mut state = node(pod, true);
        let fault = DiskFault {
            kind: kind.into(),
            count: 3,
            first_unix_seconds: first,
            last_unix_seconds: first + 5,
            message: "writing chunk 7: no space left".into(),
            current,
        };
        let mut answer = state.last.clone().unwrap();
        answer.disk_faults.push(fault);
        answer.verification_failures = 2;
        state.target.node = format!("node-of-{pod}");
        state.status = Ok(answer.clone());
        state.last = Some(answer);
        state
    }

    fn condition(status: &forebay_crds::CacheRuntimeStatus) -> (String, String, String) {
        let found = crate::conditions::find(&status.conditions, CONDITION).unwrap();
        (found.status.clone(), found.reason.clone(), found.message.clone())
    }

    #[test]
    fn a_fault_of_now_is_the_condition_s_reason_and_degrades_the_runtime() {
        let full = with_fault("b", DiskFaultKind::DiskFull, 100, true);
        let status = observe(2, vec![node("a", true), full.clone()], &[], None);
        assert_eq!(status.phase, Some(RuntimePhase::Degraded));
        let (holds, reason, message) = condition(&status);
        assert_eq!((holds.as_str(), reason.as_str()), ("False", "DiskFull"));
        assert!(message.contains("node-of-b") && message.contains("no space left"), "{message}");
        assert!(message.contains("next: free room"), "{message}");
        let fault = &status.members[1].disk_faults[0];
        assert_eq!((fault.kind.as_str(), fault.count, fault.current), ("DiskFull", 3, true));
        assert_eq!(status.members[1].verification_failures, Some(2));
        // The worst gives the reason, all are named.
        let status = observe(2, vec![full, with_fault("a", DiskFaultKind::ReadOnly, 100, true)], &[], None);
        let (_, reason, message) = condition(&status);
        assert_eq!(reason, "DiskReadOnly");
        assert!(message.contains("node-of-a") && message.contains("node-of-b"), "{message}");
    }

    #[test]
    fn a_fault_that_is_mended_is_counted_and_no_more() {
        let mended = with_fault("a", DiskFaultKind::ChunkDamaged, 100, false);
        let status = observe(1, vec![mended], &[], None);
        assert_eq!(status.phase, Some(RuntimePhase::Ready));
        let (holds, reason, message) = condition(&status);
        assert_eq!((holds.as_str(), reason.as_str()), ("True", "NoFaults"));
        assert!(message.contains("3 faults"), "{message}");
        assert_eq!(condition(&observe(1, vec![node("a", false)], &[], None)).0, "Unknown");
    }

    #[test]
    fn each_fault_is_told_once() {
        let members = |nodes: Vec<NodeState>| observe(2, nodes, &[], None).members;
        let fault = |first| with_fault("a", DiskFaultKind::IoError, first, true);
        let first = members(vec![fault(100)]);
        let told = news(&[], &first);
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].reason.as_str(), told[0].pod.as_str()), ("DiskIoError", "a"));
        assert!(told[0].note.contains("node-of-a") && told[0].warning, "{}", told[0].note);
        assert!(news(&first, &members(vec![fault(100)])).is_empty(), "the same");
        assert_eq!(news(&first, &members(vec![fault(200)])).len(), 1, "another, after a restart");
        let both = members(vec![fault(100), with_fault("b", DiskFaultKind::IoError, 100, true)]);
        assert_eq!(news(&first, &both).len(), 1, "the other node's");
    }
}
