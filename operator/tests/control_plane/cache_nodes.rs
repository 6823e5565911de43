//! Cache nodes that leave or have faults, and who leads.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use forebay_crds::CacheRuntime;
use forebay_operator::cache_runtime::build::read_config;
use forebay_operator::leader;
use forebay_protocol::config::MemberState;
use forebay_protocol::node::{DiskFault, DiskFaultKind};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::api_server;
use crate::fake_node::{Says, start_node_on};
use crate::world::{condition, create, namespace, object, operator, runtime, wait};

/// A runtime with two cache nodes on two nodes of its own, which are in two zones.
async fn two_nodes(client: &Client, name: &str, last: u8) -> (Api<CacheRuntime>, [Arc<Mutex<Says>>; 2]) {
    namespace(client, name).await;
    let nodes = Api::<k8s_openapi::api::core::v1::Node>::all(client.clone());
    for number in 0..2 {
        let node = json!({
            "metadata": {"name": format!("{name}-{number}"), "labels": {"for": name, "topology.kubernetes.io/zone": format!("z{number}")}},
            // Other tests' runtimes don't come here.
            "spec": {"taints": [{"key": "for", "value": name, "effect": "NoSchedule"}]},
        });
        nodes.create(&PostParams::default(), &object(node)).await.unwrap();
    }
    let mut pool = runtime("pool");
    pool["spec"]["nodes"] = json!({
        "selector": {"matchLabels": {"for": name}},
        "tolerations": [{"key": "for", "operator": "Exists"}],
        "memory": "1Gi",
    });
    let runtimes = create::<CacheRuntime>(client, name, pool).await;
    let sets = Api::<StatefulSet>::namespaced(client.clone(), name);
    wait(&sets, "pool", |set| (set.spec.as_ref()?.replicas == Some(2)).then_some(())).await;
    let address = |number: u8| SocketAddr::from(([127, 0, 0, last + number], 7070));
    let first = start_node_on(client, name, "pool-0", &format!("{name}-0"), address(0)).await;
    let second = start_node_on(client, name, "pool-1", &format!("{name}-1"), address(1)).await;
    condition(&runtimes, "pool", "Ready", "True", "AllNodesReady").await;
    (runtimes, [first, second])
}

/// Waits for an Event; its note.
async fn event(client: &Client, namespace: &str, reason: &str) -> String {
    let events = Api::<Event>::namespaced(client.clone(), namespace);
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let list = events.list(&ListParams::default()).await.unwrap();
        if let Some(event) = list.iter().find(|event| event.reason.as_deref() == Some(reason)) {
            return event.note.clone().unwrap_or_default();
        }
        assert!(Instant::now() < deadline, "no Event {reason}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until the status says this of the last member.
async fn last_member(runtimes: &Api<CacheRuntime>, state: &str) -> Value {
    wait(runtimes, "pool", |runtime| {
        let member = serde_json::to_value(runtime.status.as_ref()?.members.last()?).unwrap();
        (member["state"] == state).then_some(member)
    })
    .await
}

#[tokio::test]
async fn a_cache_node_that_is_too_many_hands_over_before_it_goes() {
    let Some(client) = operator().await else { return };
    let (runtimes, [_, last]) = two_nodes(&client, "leaving", 90).await;
    let sets = Api::<StatefulSet>::namespaced(client.clone(), "leaving");
    let secrets = Api::<Secret>::namespaced(client.clone(), "leaving");
    let config = async || read_config(&secrets.get("pool-config").await.unwrap()).unwrap();
    let before = config().await;
    assert_eq!(before.node.memory_bytes, 1 << 30);
    assert_eq!(before.members[1].zone.as_deref(), Some("z0"), "by id: id-1-of-pool, id-of-pool");
    let members = wait(&runtimes, "pool", |runtime| Some(runtime.status.as_ref()?.members.clone())).await;
    assert_eq!(members[1].zone.as_deref(), Some("z1"));

    let wanted = async |replicas: Value| {
        let patch = Patch::Merge(json!({"spec": {"nodes": {"replicas": replicas}}}));
        runtimes.patch("pool", &PatchParams::default(), &patch).await.unwrap();
    };
    last.lock().unwrap().remaining = 4 << 30;
    wanted(json!(1)).await;
    let leaving = wait(&runtimes, "pool", |runtime| {
        let member = runtime.status.as_ref()?.members.last()?.clone();
        member.drain.filter(|drain| drain.percent == 60)
    })
    .await;
    assert_eq!(leaving.remaining, "4Gi");
    let note = event(&client, "leaving", "NodeLeaving").await;
    assert!(note.contains("pool-1") && note.contains("leaving-1"), "{note}");
    let states: Vec<_> = config().await.members.iter().map(|member| member.state).collect();
    assert_eq!(states, [MemberState::Leaving, MemberState::Active]);
    assert_eq!(sets.get("pool").await.unwrap().spec.unwrap().replicas, Some(2), "not before it is done");

    // Wanted again, and not again.
    wanted(Value::Null).await;
    last_member(&runtimes, "Active").await;
    event(&client, "leaving", "NodeStays").await;
    assert!(config().await.members.iter().all(|member| member.state.is_active()));
    wanted(json!(1)).await;
    last_member(&runtimes, "Leaving").await;

    last.lock().unwrap().remaining = 0;
    wait(&sets, "pool", |set| (set.spec.as_ref()?.replicas == Some(1)).then_some(())).await;
    event(&client, "leaving", "NodeLeft").await;
    assert_eq!(config().await.members.len(), 2, "a member until its pod is gone");
    // The StatefulSet's controller ends the pod; at once it is no member any more, though it was not silent for a minute.
    let pods = Api::<Pod>::namespaced(client.clone(), "leaving");
    pods.delete("pool-1", &DeleteParams::default().grace_period(0)).await.unwrap();
    let gone = Instant::now();
    wait(&secrets, "pool-config", |secret| (read_config(secret)?.members.len() == 1).then_some(())).await;
    assert!(gone.elapsed() < Duration::from_secs(30), "after {:?}", gone.elapsed());
    condition(&runtimes, "pool", "Ready", "True", "AllNodesReady").await;
}

#[tokio::test]
async fn a_node_with_the_label_is_drained_and_its_pod_evicted() {
    let Some(client) = operator().await else { return };
    let (runtimes, [first, _]) = two_nodes(&client, "labelled", 92).await;
    // Nobody else keeps the budget's status.
    let budgets = Api::<PodDisruptionBudget>::namespaced(client.clone(), "labelled");
    let generation = wait(&budgets, "pool", |budget| budget.metadata.generation).await;
    let status = json!({"status": {
        "observedGeneration": generation, "disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2,
    }});
    budgets.patch_status("pool", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();

    first.lock().unwrap().remaining = 1 << 30;
    let nodes = Api::<k8s_openapi::api::core::v1::Node>::all(client.clone());
    let label = json!({"metadata": {"labels": {"forebay.dev/leave": "true"}}});
    nodes.patch("labelled-0", &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
    let drain = wait(&runtimes, "pool", |runtime| runtime.status.as_ref()?.members.first()?.drain.clone()).await;
    assert!(drain.message.contains("the node labelled-0 has the label forebay.dev/leave=true"), "{}", drain.message);
    let pods = Api::<Pod>::namespaced(client.clone(), "labelled");
    assert!(pods.get("pool-0").await.unwrap().metadata.deletion_timestamp.is_none());
    first.lock().unwrap().remaining = 0;
    wait(&pods, "pool-0", |pod| pod.metadata.deletion_timestamp.clone()).await;
    event(&client, "labelled", "NodeLeft").await;
    let sets = Api::<StatefulSet>::namespaced(client.clone(), "labelled");
    wait(&sets, "pool", |set| (set.spec.as_ref()?.replicas == Some(1)).then_some(())).await;
}

#[tokio::test]
async fn a_disk_fault_is_a_condition_while_it_lasts_and_one_event() {
    let Some(client) = operator().await else { return };
    let (runtimes, [first, _]) = two_nodes(&client, "faults", 94).await;
    condition(&runtimes, "pool", "StorageHealthy", "True", "NoFaults").await;
    let fault = |current: bool| DiskFault {
        kind: DiskFaultKind::DiskFull.into(),
        count: 2,
        first_unix_seconds: 1_800_000_000,
        last_unix_seconds: 1_800_000_010,
        message: "writing chunk 7 of an object: no space left on device".into(),
        current,
    };
    first.lock().unwrap().faults = vec![fault(true)];
    let message = condition(&runtimes, "pool", "StorageHealthy", "False", "DiskFull").await;
    assert!(message.contains("node faults-0") && message.contains("no space left"), "{message}");
    let status = runtimes.get("pool").await.unwrap().status.unwrap();
    assert_eq!(status.phase, Some(forebay_crds::RuntimePhase::Degraded));
    assert_eq!(status.members[0].disk_faults[0].count, 2);
    let note = event(&client, "faults", "DiskFull").await;
    assert!(note.contains("pool-0 on node faults-0"), "{note}");

    first.lock().unwrap().faults = vec![fault(false)];
    condition(&runtimes, "pool", "StorageHealthy", "True", "NoFaults").await;
    event(&client, "faults", "NoFaults").await;
    first.lock().unwrap().faults = vec![fault(true)];
    condition(&runtimes, "pool", "StorageHealthy", "False", "DiskFull").await;
    let events = Api::<Event>::namespaced(client.clone(), "faults").list(&ListParams::default()).await.unwrap();
    let told = events.iter().filter(|event| event.reason.as_deref() == Some("DiskFull"));
    let told: Vec<_> = told.map(|event| event.series.is_none()).collect();
    assert_eq!(told, [true], "the same fault is told once");
}

#[tokio::test]
async fn one_operator_leads_at_a_time_and_the_next_takes_over_when_it_lets_go() {
    let Some(client) = api_server::client().await else { return };
    namespace(&client, "lease").await;
    let candidate = |name: &str| leader::Lease::new(client.clone(), "lease", name);
    let (first, second) = (candidate("one"), candidate("two"));
    first.acquire().await;
    let waiting = tokio::time::timeout(Duration::from_secs(3), second.acquire()).await;
    assert!(waiting.is_err(), "two lead at once");
    first.release().await;
    tokio::time::timeout(Duration::from_secs(5), second.acquire()).await.unwrap();
    let lost = tokio::time::timeout(Duration::from_secs(10), first.keep()).await.unwrap();
    assert!(lost.to_string().contains("two holds it"), "{lost}");
}
