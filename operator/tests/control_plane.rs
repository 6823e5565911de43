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
use forebay_protocol::config::{DatasetConfig, RuntimeConfig};
use forebay_protocol::node::node_server::{Node, NodeServer};
use forebay_protocol::node::{
    CatalogInfo, DatasetStatus, PreloadProgress, ReadCatalogRequest, ReadCatalogResponse, StatusRequest, StatusResponse,
};
use forebay_protocol::tls::Identity;
use futures::stream::BoxStream;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::api::events::v1::Event;
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
}

/// Plays kubelet and cache node for one pod of a runtime: the pod has an address where the node answers, and the node reads the Secret.
async fn start_node(client: &Client, namespace: &str, runtime: &str, address: SocketAddr) {
    let name = format!("{runtime}-0");
    let pod = json!({
        "metadata": {"name": name, "labels": {"forebay.dev/runtime": runtime}},
        "spec": {"nodeName": "n1", "containers": [{"name": "forebay-node", "image": "x"}]},
    });
    let pods = create::<Pod>(client, namespace, pod).await;
    let status = json!({"status": {"phase": "Running", "podIP": address.ip(), "podIPs": [{"ip": address.ip()}]}});
    pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();

    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let name = format!("{runtime}-config");
    let secret = wait(&secrets, &name, |secret| Some(secret.clone())).await;
    let text = |key: &str| secret.data.as_ref().unwrap()[key].0.clone();
    let identity = Identity::from_pem(text("ca.crt"), text("tls.crt"), text("tls.key"));
    let node = FakeNode { id: format!("id-of-{runtime}"), config: Arc::default() };
    let config = node.config.clone();
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
