//! The operator against a real API server, with a cache node that answers as a real one would: what users see of bad input, how a Dataset gets
//! ready, and that deletion lets go. There is no kubelet and no controller manager, so pods are made by the test.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "test support")]

#[path = "../../crds/tests/api_server/mod.rs"]
mod api_server;

use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Parser as _;
use forebay_crds::{CacheRuntime, Dataset};
use forebay_operator::cache_runtime::build::read_config;
use forebay_operator::{Arguments, leader, run_with};
use forebay_protocol::config::{DatasetConfig, MemberState, RuntimeConfig};
use forebay_protocol::node::node_server::{Node, NodeServer};
use forebay_protocol::node::{
    AdoptRequest, AdoptResponse, CatalogInfo, DatasetStatus, DiskFault, DiskFaultKind, Drain, PreloadProgress,
    ReadCatalogRequest, ReadCatalogResponse, StatusRequest, StatusResponse,
};
use forebay_protocol::tls::Identity;
use futures::stream::BoxStream;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde::{Deserialize as _, Serialize};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

/// Starts the operator once for all tests of this process, in a runtime of its own: a test's ends with the test.
async fn operator() -> Option<Client> {
    static STARTED: OnceCell<()> = OnceCell::const_new();
    let client = api_server::client().await?;
    STARTED
        .get_or_init(async || {
            let node = json!({"metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1"}}});
            let nodes = Api::<k8s_openapi::api::core::v1::Node>::all(client.clone());
            nodes.create(&PostParams::default(), &object(node)).await.unwrap();
            namespace(&client, "forebay").await;
            let restricted = grant_what_the_chart_grants(&client).await;
            std::thread::spawn(move || {
                let arguments =
                    ["forebay-operator", "--node-image=forebay:test", "--listen=127.0.0.1:0", "--namespace=forebay"];
                tokio::runtime::Runtime::new().unwrap().block_on(async {
                    let client =
                        if restricted { api_server::operator_client().await } else { api_server::client().await };
                    let client = client.unwrap();
                    let ended = run_with(client, Arguments::parse_from(arguments), std::future::pending()).await;
                    panic!("the operator ended: {ended:?}");
                });
            });
        })
        .await;
    Some(client)
}

/// Gives the operator's user the rules of the chart's roles, so that every test fails that needs another right. Without Helm the operator is
/// the administrator.
async fn grant_what_the_chart_grants(client: &Client) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let helm = root.join("target/e2e/bin/helm");
    if !helm.exists() {
        eprintln!("{} is not built: the chart's rights are not tested", helm.display());
        return false;
    }
    let chart = root.join("charts/forebay");
    let arguments = ["template", "forebay", "--namespace=forebay", "--kube-version=v1.34.4"];
    let rendered = Command::new(helm).args(arguments).arg(chart).output().unwrap();
    assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    let user = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "operator"}]);
    for document in serde_yaml::Deserializer::from_slice(&rendered.stdout) {
        let mut value = Value::deserialize(document).unwrap();
        if value["metadata"]["labels"]["app.kubernetes.io/component"] != "operator" {
            continue;
        }
        if value["subjects"].is_array() {
            value["subjects"] = user.clone();
        }
        let parameters = PostParams::default();
        match value["kind"].as_str().unwrap() {
            "ClusterRole" => {
                drop(Api::<ClusterRole>::all(client.clone()).create(&parameters, &object(value)).await.unwrap());
            }
            "ClusterRoleBinding" => {
                drop(Api::<ClusterRoleBinding>::all(client.clone()).create(&parameters, &object(value)).await.unwrap());
            }
            "Role" => drop(create::<Role>(client, "forebay", value).await),
            "RoleBinding" => drop(create::<RoleBinding>(client, "forebay", value).await),
            _ => {}
        }
    }
    true
}

fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

async fn namespace(client: &Client, name: &str) {
    let namespaces = Api::<Namespace>::all(client.clone());
    namespaces.create(&PostParams::default(), &object(json!({"metadata": {"name": name}}))).await.unwrap();
}

async fn create<K>(client: &Client, namespace: &str, value: Value) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Serialize + DeserializeOwned + Clone + Debug,
{
    let api = Api::<K>::namespaced(client.clone(), namespace);
    api.create(&PostParams::default(), &object(value)).await.unwrap();
    api
}

fn runtime(name: &str) -> Value {
    json!({
        "apiVersion": "forebay.dev/v1alpha1", "kind": "CacheRuntime", "metadata": {"name": name},
        "spec": {"storage": [{"medium": "Disk", "capacity": "2Gi", "hostPath": "/var/lib/forebay/disk"}]},
    })
}

fn dataset(name: &str, runtime: &str, source: Value) -> Value {
    json!({
        "apiVersion": "forebay.dev/v1alpha1", "kind": "Dataset", "metadata": {"name": name},
        "spec": {"runtimeRef": {"name": runtime}, "mounts": [{"path": "/", "sources": [source]}], "preload": {}},
    })
}

/// Waits until `holds` returns something for the object.
async fn wait<K, T>(api: &Api<K>, name: &str, holds: impl Fn(&K) -> Option<T>) -> T
where
    K: Clone + DeserializeOwned + Debug + Serialize,
{
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let object = api.get_opt(name).await.unwrap();
        if let Some(found) = object.as_ref().and_then(&holds) {
            return found;
        }
        assert!(Instant::now() < deadline, "{name}: {}", serde_json::to_string_pretty(&object).unwrap());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn gone<K: Clone + DeserializeOwned + Debug + Serialize>(api: &Api<K>, name: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Some(object) = api.get_opt(name).await.unwrap() {
        assert!(Instant::now() < deadline, "still there: {}", serde_json::to_string_pretty(&object).unwrap());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits for a condition's status and reason; its message.
async fn condition<K>(api: &Api<K>, name: &str, type_: &str, status: &str, reason: &str) -> String
where
    K: Clone + DeserializeOwned + Debug + Serialize,
{
    wait(api, name, |object| {
        let object = serde_json::to_value(object).unwrap();
        let conditions = object["status"]["conditions"].as_array()?.clone();
        let found = conditions.iter().find(|condition| condition["type"] == type_)?;
        (found["status"] == status && found["reason"] == reason).then(|| found["message"].as_str().unwrap().to_owned())
    })
    .await
}

/// A cache node that has done at once what its configuration says.
#[derive(Clone)]
struct FakeNode {
    id: String,
    config: Arc<Mutex<Option<RuntimeConfig>>>,
    says: Arc<Mutex<Says>>,
}

/// What a test has a node say beside.
#[derive(Default)]
struct Says {
    /// Of 10 GiB, what it has not handed over yet; said only while it is leaving.
    remaining: u64,
    faults: Vec<DiskFault>,
}

impl FakeNode {
    fn answer(&self) -> StatusResponse {
        let mut answer = StatusResponse { node_id: self.id.clone(), ..StatusResponse::default() };
        let config = self.config.lock().unwrap();
        let Some(config) = config.as_ref() else { return answer };
        let size = 3 << 20;
        let dataset = |dataset: &DatasetConfig| DatasetStatus {
            uid: dataset.uid.clone(),
            catalog: Some(CatalogInfo {
                id: "c1".into(),
                files: 3,
                bytes: size,
                directories: 1,
                ..CatalogInfo::default()
            }),
            owned_cached_bytes: size,
            preload: Some(PreloadProgress {
                total_files: 3,
                loaded_files: 3,
                total_bytes: size,
                loaded_bytes: size,
                ..PreloadProgress::default()
            }),
            ..DatasetStatus::default()
        };
        answer.revision.clone_from(&config.revision);
        answer.capacity_bytes = config.node.capacity_bytes;
        answer.erased = config.erase;
        answer.datasets = config.datasets.iter().map(dataset).collect();
        let says = self.says.lock().unwrap();
        answer.disk_faults.clone_from(&says.faults);
        let me = config.members.iter().find(|member| member.id.as_ref() == Some(&self.id));
        answer.drain = me.filter(|me| !me.state.is_active()).map(|_| Drain {
            total_bytes: 10 << 30,
            remaining_bytes: says.remaining,
            done: says.remaining == 0,
            problem: None,
        });
        answer
    }
}

#[tonic::async_trait]
impl Node for FakeNode {
    type ReadCatalogStream = BoxStream<'static, Result<ReadCatalogResponse, tonic::Status>>;

    async fn status(&self, _: tonic::Request<StatusRequest>) -> Result<tonic::Response<StatusResponse>, tonic::Status> {
        Ok(tonic::Response::new(self.answer()))
    }

    async fn read_catalog(
        &self,
        _: tonic::Request<ReadCatalogRequest>,
    ) -> Result<tonic::Response<Self::ReadCatalogStream>, tonic::Status> {
        Err(tonic::Status::unimplemented("the operator does not read"))
    }

    async fn adopt(&self, _: tonic::Request<AdoptRequest>) -> Result<tonic::Response<AdoptResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("only cache nodes hand over"))
    }
}

/// Plays kubelet and cache node for a runtime's only pod.
async fn start_node(client: &Client, namespace: &str, runtime: &str, address: SocketAddr) {
    start_node_on(client, namespace, &format!("{runtime}-0"), "n1", address).await;
}

/// Plays kubelet and cache node for one pod of a runtime: the pod has an address where the node answers, and the node reads the Secret. What it
/// says can be changed.
async fn start_node_on(
    client: &Client,
    namespace: &str,
    name: &str,
    node: &str,
    address: SocketAddr,
) -> Arc<Mutex<Says>> {
    let (runtime, ordinal) = name.rsplit_once('-').unwrap();
    let pod = json!({
        "metadata": {"name": name, "labels": {"forebay.dev/runtime": runtime}},
        "spec": {"nodeName": node, "containers": [{"name": "forebay-node", "image": "x"}]},
    });
    let pods = create::<Pod>(client, namespace, pod).await;
    let status = json!({"status": {"phase": "Running", "podIP": address.ip(), "podIPs": [{"ip": address.ip()}]}});
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();

    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let name = format!("{runtime}-config");
    let secret = wait(&secrets, &name, |secret| Some(secret.clone())).await;
    let text = |key: &str| secret.data.as_ref().unwrap()[key].0.clone();
    let identity = Identity::from_pem(text("ca.crt"), text("tls.crt"), text("tls.key"));
    let id = if ordinal == "0" { format!("id-of-{runtime}") } else { format!("id-{ordinal}-of-{runtime}") };
    let node = FakeNode { id, config: Arc::default(), says: Arc::default() };
    let (config, says) = (node.config.clone(), node.says.clone());
    tokio::spawn(async move {
        loop {
            if let Ok(Some(secret)) = secrets.get_opt(&name).await {
                *config.lock().unwrap() = read_config(&secret);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let server =
        tonic::transport::Server::builder().tls_config(identity.server()).unwrap().add_service(NodeServer::new(node));
    tokio::spawn(server.serve(address));
    says
}

#[tokio::test]
async fn a_dataset_whose_secret_is_missing_says_so_and_heals() {
    let Some(client) = operator().await else { return };
    namespace(&client, "missing-secret").await;
    create::<CacheRuntime>(&client, "missing-secret", runtime("pool")).await;
    let source = json!({"url": "s3://notes/", "secretRef": {"name": "cloud"}});
    let datasets = create::<Dataset>(&client, "missing-secret", dataset("images", "pool", source)).await;
    let message = condition(&datasets, "images", "Catalogued", "False", "SecretNotFound").await;
    assert!(message.contains("missing-secret/cloud") && message.contains("AWS_ACCESS_KEY_ID"), "{message}");
    let events = Api::<Event>::namespaced(client.clone(), "missing-secret");
    let deadline = Instant::now() + Duration::from_secs(30);
    let told =
        |event: &Event| event.reason.as_deref() == Some("SecretNotFound") && event.type_.as_deref() == Some("Warning");
    while !events.list(&ListParams::default()).await.unwrap().iter().any(told) {
        assert!(Instant::now() < deadline, "no Event");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let secret = |data: Value| json!({"metadata": {"name": "cloud"}, "stringData": data});
    let secrets = create::<Secret>(&client, "missing-secret", secret(json!({"AWS_ACCESS_KEY_ID": "a"}))).await;
    condition(&datasets, "images", "Catalogued", "False", "SecretIncomplete").await;
    let patch = Patch::Merge(secret(json!({"AWS_SECRET_ACCESS_KEY": "b"})));
    secrets.patch("cloud", &PatchParams::default(), &patch).await.unwrap();
    condition(&datasets, "images", "Catalogued", "False", "WaitingForRuntime").await;
}

#[tokio::test]
async fn a_dataset_whose_runtime_is_missing_says_so_heals_and_can_be_deleted() {
    let Some(client) = operator().await else { return };
    namespace(&client, "missing-runtime").await;
    let source = json!({"url": "s3://notes/"});
    let datasets = create::<Dataset>(&client, "missing-runtime", dataset("images", "pool", source.clone())).await;
    let message = condition(&datasets, "images", "RuntimeAvailable", "False", "RuntimeNotFound").await;
    assert!(message.contains("missing-runtime/pool does not exist"), "{message}");
    create::<Dataset>(&client, "missing-runtime", dataset("other", "nowhere", source)).await;
    condition(&datasets, "other", "Ready", "False", "RuntimeNotFound").await;
    datasets.delete("other", &DeleteParams::default()).await.unwrap();
    gone(&datasets, "other").await;
    create::<CacheRuntime>(&client, "missing-runtime", runtime("pool")).await;
    condition(&datasets, "images", "RuntimeAvailable", "False", "WaitingForNodes").await;
}

#[tokio::test]
async fn a_runtime_serves_only_the_namespaces_it_selects() {
    let Some(client) = operator().await else { return };
    namespace(&client, "tenants").await;
    namespace(&client, "stranger").await;
    let mut pool = runtime("pool");
    pool["spec"]["access"] = json!({"namespaces": {"matchLabels": {"tenant": "true"}}});
    create::<CacheRuntime>(&client, "tenants", pool).await;
    let mut images = dataset("images", "pool", json!({"url": "s3://notes/"}));
    images["spec"]["runtimeRef"]["namespace"] = json!("tenants");
    let datasets = create::<Dataset>(&client, "stranger", images).await;
    let message = condition(&datasets, "images", "Ready", "False", "NotAllowed").await;
    assert!(message.contains("does not serve the namespace stranger"), "{message}");
    let labels = json!({"metadata": {"labels": {"tenant": "true"}}});
    Api::<Namespace>::all(client.clone())
        .patch("stranger", &PatchParams::default(), &Patch::Merge(labels))
        .await
        .unwrap();
    condition(&datasets, "images", "RuntimeAvailable", "False", "WaitingForNodes").await;
}

#[tokio::test]
async fn sources_and_folders_outside_of_what_the_administrator_allowed_are_refused() {
    let Some(client) = operator().await else { return };
    namespace(&client, "folders").await;
    let mut bad = runtime("bad");
    bad["spec"]["storage"][0]["hostPath"] = json!("/etc");
    let runtimes = create::<CacheRuntime>(&client, "folders", bad).await;
    let message = condition(&runtimes, "bad", "Ready", "False", "HostPathNotAllowed").await;
    assert!(message.contains("/var/lib/forebay"), "{message}");
    assert!(Api::<StatefulSet>::namespaced(client.clone(), "folders").get_opt("bad").await.unwrap().is_none());
    create::<CacheRuntime>(&client, "folders", runtime("pool")).await;
    let datasets =
        create::<Dataset>(&client, "folders", dataset("files", "pool", json!({"url": "file:///etc/"}))).await;
    condition(&datasets, "files", "Catalogued", "False", "FileSourceNotAllowed").await;
    runtimes.delete("bad", &DeleteParams::default()).await.unwrap();
    gone(&runtimes, "bad").await;
}

#[tokio::test]
async fn a_dataset_gets_ready_shows_what_is_cached_and_leaves_nothing_behind() {
    let Some(client) = operator().await else { return };
    namespace(&client, "whole").await;
    let runtimes = create::<CacheRuntime>(&client, "whole", runtime("pool")).await;
    let sets = Api::<StatefulSet>::namespaced(client.clone(), "whole");
    assert_eq!(wait(&sets, "pool", |set| set.spec.as_ref()?.replicas).await, 1);
    start_node(&client, "whole", "pool", "127.0.0.77:7070".parse().unwrap()).await;
    condition(&runtimes, "pool", "Ready", "True", "AllNodesReady").await;

    let keys = json!({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"});
    create::<Secret>(&client, "whole", json!({"metadata": {"name": "cloud"}, "stringData": keys})).await;
    let source = |secret: &str| json!({"url": "s3://notes/", "secretRef": {"name": secret}});
    // One that can't be served does not block the other.
    create::<Dataset>(&client, "whole", dataset("broken", "pool", source("none"))).await;
    let datasets = create::<Dataset>(&client, "whole", dataset("images", "pool", source("cloud"))).await;
    condition(&datasets, "images", "Ready", "True", "Ready").await;
    condition(&datasets, "images", "Preloaded", "True", "Complete").await;
    let status = wait(&datasets, "images", |dataset| dataset.status.clone()).await;
    assert_eq!(status.preload.unwrap().progress, "100%");
    assert_eq!((status.version.unwrap().size.as_str(), status.cache.unwrap().percent), ("3Mi", 100));
    condition(&datasets, "broken", "Ready", "False", "SecretNotFound").await;

    // The published version is pinned, and the pods are told of each revision.
    let secrets = Api::<Secret>::namespaced(client.clone(), "whole");
    let config = wait(&secrets, "pool-config", |secret| {
        read_config(secret)
            .filter(|config| config.datasets.len() == 1 && config.datasets[0].catalog.as_deref() == Some("c1"))
    })
    .await;
    assert_eq!(config.members[0].id.as_deref(), Some("id-of-pool"));
    assert_eq!(config.datasets[0].mounts[0].sources[0].credentials.as_ref().unwrap().access_key_id, "a");
    let pods = Api::<Pod>::namespaced(client.clone(), "whole");
    wait(&pods, "pool-0", |pod| {
        let revision = pod.metadata.annotations.as_ref()?.get("forebay.dev/config-revision")?;
        (*revision == config.revision).then_some(())
    })
    .await;

    // What has settled is not written again and again.
    let version = datasets.get("images").await.unwrap().metadata.resource_version;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(datasets.get("images").await.unwrap().metadata.resource_version, version);

    // A Secret that vanishes takes nothing from a Dataset that nodes hold.
    secrets.delete("cloud", &DeleteParams::default()).await.unwrap();
    condition(&datasets, "images", "SourcesHealthy", "False", "SecretNotFound").await;
    condition(&datasets, "images", "Ready", "True", "Ready").await;
    let config = read_config(&secrets.get("pool-config").await.unwrap()).unwrap();
    assert_eq!(config.datasets.len(), 1);

    let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), "whole");
    let volumes = Api::<PersistentVolume>::all(client.clone());
    let volume = wait(&claims, "images", |claim| claim.spec.as_ref()?.volume_name.clone()).await;
    let handle =
        wait(&volumes, &volume, |volume| Some(volume.spec.as_ref()?.csi.as_ref()?.volume_handle.clone())).await;
    assert_eq!(Some(handle), datasets.get("images").await.unwrap().metadata.uid);

    // A runtime that is referred to stays; then both go.
    runtimes.delete("pool", &DeleteParams::default()).await.unwrap();
    let message = condition(&runtimes, "pool", "Deleting", "True", "DatasetsRefer").await;
    assert!(message.contains("whole/broken, whole/images"), "{message}");
    for name in ["images", "broken"] {
        datasets.delete(name, &DeleteParams::default()).await.unwrap();
        gone(&datasets, name).await;
        gone(&claims, name).await;
    }
    gone(&volumes, &volume).await;
    gone(&runtimes, "pool").await;
}

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
