use std::time::{Duration, Instant};

use forebay_protocol::node::{Drain, Problem, StatusResponse};
use serde_json::{Value, json};

use super::super::members::Present;
use super::super::validate::tests::{check, runtime};
use super::news::news;
use super::*;
use crate::nodes::{NodeState, Target};

const NOW: i64 = 1_800_000_000;

/// Two cache nodes on two nodes of which one is to stay; what the last one says of its drain can be set.
struct Scene {
    runtime: ValidRuntime,
    desired: i32,
    pods: Vec<Pod>,
    nodes: Vec<Arc<Node>>,
    gathered: Gathered,
    published: RuntimeConfig,
    membership: Membership,
    readers: BTreeMap<String, Vec<String>>,
    old: Vec<MemberStatus>,
    now: Timestamp,
}

fn pod_address(ordinal: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, ordinal], 7070))
}

fn scene() -> Scene {
    let owner = runtime("/var/lib/forebay");
    let valid = check(&owner).unwrap();
    let pod = |ordinal: u8| -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": format!("pool-{ordinal}")},
            "spec": {"nodeName": format!("n{ordinal}"), "containers": []},
            "status": {"phase": "Running", "podIP": pod_address(ordinal).ip()},
        }))
        .unwrap()
    };
    let node = |name: &str| Arc::new(serde_json::from_value::<Node>(json!({"metadata": {"name": name}})).unwrap());
    let mut membership = Membership::default();
    let present = |ordinal: u8| Present { id: format!("id-{ordinal}"), address: pod_address(ordinal), zone: None };
    membership.observe([present(0), present(1)], Instant::now());
    let mut scene = Scene {
        desired: 1,
        pods: vec![pod(0), pod(1)],
        nodes: vec![node("n0"), node("n1")],
        gathered: Gathered { at: Instant::now(), nodes: vec![] },
        published: super::super::build::config(&valid, "/run/x".as_ref(), vec![], vec![], false),
        runtime: valid,
        membership,
        readers: BTreeMap::new(),
        old: vec![],
        now: Timestamp::from_second(NOW).unwrap(),
    };
    scene.answer(None);
    scene
}

impl Scene {
    /// Both answer; the last one says this of its drain.
    fn answer(&mut self, drain: Option<Drain>) {
        let state = |ordinal: u8, drain: Option<Drain>| {
            let answer = StatusResponse {
                node_id: format!("id-{ordinal}"),
                revision: self.published.revision.clone(),
                cached_bytes: 10 << 30,
                drain,
                ..StatusResponse::default()
            };
            let target =
                Target { pod: format!("pool-{ordinal}"), node: format!("n{ordinal}"), address: pod_address(ordinal) };
            NodeState { target, status: Ok(answer.clone()), last: Some(answer) }
        };
        self.gathered.nodes = vec![state(0, None), state(1, drain)];
    }

    fn look(&self) -> Leaving {
        leaving(&Situation {
            runtime: &self.runtime,
            desired: self.desired,
            pods: &self.pods,
            nodes: &self.nodes,
            gathered: Some(&self.gathered),
            published: Some(&self.published),
            membership: &self.membership,
            readers: &self.readers,
            old: &self.old,
            now: self.now,
        })
    }

    fn statuses(&self, leaving: &Leaving) -> Vec<MemberStatus> {
        let status = |node: &NodeState| {
            let departure = leaving.departures.get(&node.target.pod).map(Departure::status);
            let (state, drain) = departure.map_or((MemberState::Active, None), |(state, drain)| (state, Some(drain)));
            MemberStatus {
                id: node.last.as_ref().unwrap().node_id.clone(),
                pod: node.target.pod.clone(),
                node: node.target.node.clone(),
                cached: Some("10Gi".into()),
                state: Some(state),
                drain,
                ..MemberStatus::default()
            }
        };
        self.gathered.nodes.iter().map(status).collect()
    }

    /// What an operator does: looks, tells what is new, writes status and configuration. The reasons of the Events.
    fn step(&mut self) -> (Leaving, Vec<String>) {
        let leaving = self.look();
        let statuses = self.statuses(&leaving);
        let reasons = news(&self.old, &statuses, &leaving.departures).into_iter().map(|news| news.reason).collect();
        self.old = statuses;
        self.published.members = self.membership.members(&leaving.addresses);
        (leaving, reasons)
    }
}

fn drain(total: u64, remaining: u64) -> Drain {
    Drain { total_bytes: total << 30, remaining_bytes: remaining << 30, done: remaining == 0, problem: None }
}

#[test]
fn a_smaller_number_drains_the_last_one_and_then_shrinks() {
    let mut scene = scene();
    let (leaving, events) = scene.step();
    assert_eq!(events, ["NodeLeaving"]);
    assert_eq!((leaving.replicas, leaving.addresses), (2, BTreeSet::from([pod_address(1)])));
    assert_eq!(leaving.departures["pool-1"].handover, Handover::Waits("it has not heard of it yet".into()));

    scene.answer(Some(drain(10, 4)));
    let (leaving, events) = scene.step();
    assert!(events.is_empty(), "{events:?}");
    let (state, shown) = leaving.departures["pool-1"].status();
    assert_eq!((state, shown.percent, shown.remaining.as_str()), (MemberState::Leaving, 60, "4Gi"));
    assert_eq!(shown.message, "1 cache nodes are wanted; it hands over what it holds");
    assert_eq!(leaving.replicas, 2);

    scene.answer(Some(drain(10, 0)));
    let (leaving, events) = scene.step();
    assert_eq!(events, ["NodeLeft"]);
    assert_eq!(leaving.replicas, 1);
    assert_eq!(leaving.addresses, BTreeSet::from([pod_address(1)]), "it stays leaving until its pod is gone");
    let (leaving, events) = scene.step();
    assert!(events.is_empty() && leaving.replicas == 1, "told once");

    // Its pod is ending.
    scene.pods[1].metadata.deletion_timestamp = Some(Time(scene.now));
    assert_eq!(scene.step().0.addresses, BTreeSet::from([pod_address(1)]));
}

#[test]
fn an_old_answer_does_not_end_a_new_drain() {
    let mut scene = scene();
    scene.answer(Some(drain(10, 0)));
    assert_eq!(scene.step().0.replicas, 2, "it has not been asked yet: this is of an earlier time");
    scene.published.revision = "later".into();
    assert_eq!(scene.step().0.replicas, 2, "it has not read the last configuration");
    scene.answer(Some(drain(10, 0)));
    assert_eq!(scene.step().0.replicas, 1);
}

#[test]
fn who_is_wanted_again_stays() {
    let mut scene = scene();
    scene.step();
    scene.desired = 2;
    let (leaving, events) = scene.step();
    assert_eq!((leaving.departures.len(), leaving.addresses.len(), leaving.replicas), (0, 0, 2));
    assert_eq!(events, ["NodeStays"]);
}

#[test]
fn readers_on_its_node_keep_a_drained_one_serving() {
    let mut scene = scene();
    scene.readers.insert("n1".into(), vec!["training/job-7".into()]);
    scene.step();
    scene.answer(Some(drain(10, 0)));
    let (leaving, _) = scene.step();
    assert_eq!(leaving.replicas, 2);
    let (_, shown) = leaving.departures["pool-1"].status();
    assert!(shown.percent == 100 && shown.message.contains("training/job-7"), "{}", shown.message);
    scene.readers.clear();
    assert_eq!(scene.step().0.replicas, 1);
}

#[test]
fn patience_ends_counts_from_the_status_and_names_what_is_lost() {
    let mut scene = scene();
    scene.step();
    let mut stuck = drain(10, 4);
    stuck.problem = Some(Problem { reason: "Full".into(), message: "pool-0 is full".into() });
    scene.answer(Some(stuck));
    scene.now = Timestamp::from_second(NOW + 3599).unwrap();
    assert_eq!(scene.step().0.replicas, 2);
    scene.now = Timestamp::from_second(NOW + 3600).unwrap();
    let leaving = scene.look();
    assert_eq!(leaving.replicas, 1);
    assert_eq!(leaving.departures["pool-1"].handover, Handover::GivenUp("pool-0 is full".into()));
    let told = news(&scene.old, &scene.statuses(&leaving), &leaving.departures);
    assert!(told[0].warning && told[0].reason == "NodeLeftEarly", "{told:?}");
    assert!(told[0].note.contains("4Gi") && told[0].note.contains("pool-0 is full"), "{}", told[0].note);
    scene.runtime.drain_patience = Duration::from_hours(2);
    assert_eq!(scene.look().replicas, 2, "the annotation gives more");
}

#[test]
fn a_silent_member_is_waited_for_and_one_that_is_forgotten_is_not() {
    let mut scene = scene();
    scene.step();
    scene.gathered.nodes[1].status = Err("no answer within 2 s".into());
    let leaving = scene.look();
    assert_eq!(
        leaving.departures["pool-1"].handover,
        Handover::Waits("it does not answer: no answer within 2 s".into())
    );
    scene.membership = Membership::default();
    let leaving = scene.look();
    assert_eq!((leaving.departures.len(), leaving.replicas), (0, 1));
}

fn with_labels(name: &str, labels: &Value) -> Arc<Node> {
    Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap())
}

#[test]
fn a_label_on_a_node_drains_it_and_its_pod_is_evicted() {
    let mut scene = scene();
    scene.nodes[0] = with_labels("n0", &json!({LEAVE_LABEL: "true"}));
    let leaving = scene.step().0;
    assert_eq!(leaving.departures["pool-0"].why, "the node n0 has the label forebay.dev/leave=true");
    assert_eq!((leaving.replicas, leaving.evict.len()), (2, 0));
    let last = scene.gathered.nodes[1].clone();
    scene.answer(Some(drain(10, 0)));
    let done = scene.gathered.nodes[1].status.clone().unwrap().drain;
    for status in [&mut scene.gathered.nodes[0].last].into_iter().flatten() {
        status.drain.clone_from(&done);
    }
    scene.gathered.nodes[1] = last;
    let leaving = scene.step().0;
    // The other's pod ends too, as the set has one less, and pod 0 takes its place and storage.
    assert_eq!((leaving.replicas, leaving.evict), (1, vec!["pool-0".to_owned()]));
    assert_eq!(leaving.addresses, BTreeSet::from([pod_address(0)]));
}

#[test]
fn a_node_that_is_gone_is_not_waited_for() {
    let mut scene = scene();
    scene.nodes.remove(0);
    let leaving = scene.look();
    assert_eq!((leaving.departures.len(), leaving.evict.len(), leaving.replicas), (0, 0, 1));
}
