//! What a CacheRuntime's status says of each cache node.

use forebay_crds::{MemberState, MemberStatus, MountModeStatus, format_bytes};

use super::{Observation, storage};
use crate::nodes::NodeState;

/// Every cache node with a pod, in the order of the pods' names.
pub fn members(seen: &Observation<'_>) -> Vec<MemberStatus> {
    let nodes = seen.gathered.map(|gathered| gathered.nodes.as_slice()).unwrap_or_default();
    nodes.iter().map(|node| member(seen, node)).collect()
}

fn member(seen: &Observation<'_>, node: &NodeState) -> MemberStatus {
    let pod = &node.target.pod;
    let old = seen.runtime.status.iter().flat_map(|status| &status.members).find(|old| old.pod == *pod);
    let configured = seen.members.iter().find(|member| member.address == node.target.address);
    let departure = seen.departures.get(pod).map(crate::cache_runtime::leaving::Departure::status);
    let (state, drain) = match departure {
        Some((state, drain)) => (Some(state), Some(drain)),
        None => (configured.map(|_| MemberState::Active), None),
    };
    let mut member = MemberStatus {
        id: configured.and_then(|member| member.id.clone()).unwrap_or_default(),
        pod: pod.clone(),
        node: node.target.node.clone(),
        address: node.target.address.to_string(),
        ready: node.status.is_ok(),
        zone: configured.and_then(|member| member.zone.clone()),
        state,
        drain,
        ..MemberStatus::default()
    };
    match (&node.last, old) {
        (Some(last), _) => {
            member.id.clone_from(&last.node_id);
            member.cached = Some(format_bytes(last.cached_bytes));
            member.disk_faults = storage::faults(last);
            member.verification_failures =
                (last.verification_failures > 0).then_some(last.verification_failures as i64);
            let mode = last.mount_mode.clone();
            member.mount_mode = mode.map(|said| MountModeStatus { mode: said.mode, reason: said.reason });
        }
        // What a silent node said last stands, so that it is no news when it speaks again.
        (None, Some(old)) => {
            member.disk_faults.clone_from(&old.disk_faults);
            member.verification_failures = old.verification_failures;
            member.mount_mode.clone_from(&old.mount_mode);
        }
        (None, None) => {}
    }
    member
}

#[cfg(test)]
mod tests {
    use forebay_protocol::config::Member;
    use forebay_protocol::node::MountMode;
    use std::collections::BTreeMap;
    use std::time::Instant;

    use jiff::Timestamp;

    use super::super::super::validate::tests::runtime;
    use super::super::tests::node;
    use super::*;
    use crate::cache_runtime::leaving::{Departure, Handover};
    use crate::nodes::Gathered;

    #[test]
    fn a_member_shows_its_zone_its_state_and_how_far_it_is_with_leaving() {
        let mut gathered = Gathered { at: Instant::now(), nodes: vec![node("a", true), node("b", true)] };
        let said = MountMode { mode: "Fuse".into(), reason: "the kernel is old".into() };
        gathered.nodes[0].last.as_mut().unwrap().mount_mode = Some(said);
        let address = gathered.nodes[0].target.address;
        let member = Member { id: Some("a".into()), zone: Some("z1".into()), ..Member::at(address) };
        let departure = Departure {
            since: Timestamp::UNIX_EPOCH,
            why: "1 cache nodes are wanted".into(),
            handover: Handover::Waits("it hands over what it holds".into()),
            percent: 40,
            remaining: "6Gi".into(),
        };
        let departures = BTreeMap::from([("b".to_owned(), departure)]);
        let runtime = runtime("/var/lib/forebay");
        let seen = Observation {
            runtime: &runtime,
            problem: None,
            deleting: None,
            desired: 1,
            pods: &[],
            gathered: Some(&gathered),
            members: &[member],
            departures: &departures,
            datasets: 0,
            now: Timestamp::UNIX_EPOCH,
        };
        let members = members(&seen);
        assert_eq!((members[0].zone.as_deref(), members[0].state), (Some("z1"), Some(MemberState::Active)));
        let mode = MountModeStatus { mode: "Fuse".into(), reason: "the kernel is old".into() };
        assert_eq!((members[0].mount_mode.clone(), members[1].mount_mode.clone()), (Some(mode), None));
        assert_eq!(members[1].state, Some(MemberState::Leaving));
        let drain = members[1].drain.as_ref().unwrap();
        assert_eq!((drain.percent, drain.remaining.as_str()), (40, "6Gi"));
        assert_eq!(drain.message, "1 cache nodes are wanted; it hands over what it holds");
        // Who leaves does not count as one of those that there should be.
        let status = super::super::status(&seen);
        assert_eq!(status.nodes.unwrap().ready, 1);
        assert_eq!(status.conditions[0].message, "1 of 1 cache nodes answer; 1 more leave: see status.members");
    }
}
