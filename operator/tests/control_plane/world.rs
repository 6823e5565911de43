//! The operator beside the API server, and what tests do with objects.

use std::fmt::Debug;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser as _;
use forebay_operator::{Arguments, run_with};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::{Api, PostParams};
use kube::{Client, Resource};
use serde::Deserialize as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::api_server;

/// Starts the operator once for all tests of this process, in a runtime of its own: a test's ends with the test.
pub async fn operator() -> Option<Client> {
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

pub fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

pub async fn namespace(client: &Client, name: &str) {
    let namespaces = Api::<Namespace>::all(client.clone());
    namespaces.create(&PostParams::default(), &object(json!({"metadata": {"name": name}}))).await.unwrap();
}

pub async fn create<K>(client: &Client, namespace: &str, value: Value) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Serialize + DeserializeOwned + Clone + Debug,
{
    let api = Api::<K>::namespaced(client.clone(), namespace);
    api.create(&PostParams::default(), &object(value)).await.unwrap();
    api
}

pub fn runtime(name: &str) -> Value {
    json!({
        "apiVersion": "forebay.dev/v1alpha1", "kind": "CacheRuntime", "metadata": {"name": name},
        "spec": {"storage": [{"medium": "Disk", "capacity": "2Gi", "hostPath": "/var/lib/forebay/disk"}]},
    })
}

pub fn dataset(name: &str, runtime: &str, source: Value) -> Value {
    json!({
        "apiVersion": "forebay.dev/v1alpha1", "kind": "Dataset", "metadata": {"name": name},
        "spec": {"runtimeRef": {"name": runtime}, "mounts": [{"path": "/", "sources": [source]}], "preload": {}},
    })
}

/// Waits until `holds` returns something for the object.
pub async fn wait<K, T>(api: &Api<K>, name: &str, holds: impl Fn(&K) -> Option<T>) -> T
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

pub async fn gone<K: Clone + DeserializeOwned + Debug + Serialize>(api: &Api<K>, name: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Some(object) = api.get_opt(name).await.unwrap() {
        assert!(Instant::now() < deadline, "still there: {}", serde_json::to_string_pretty(&object).unwrap());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits for a condition's status and reason; its message.
pub async fn condition<K>(api: &Api<K>, name: &str, type_: &str, status: &str, reason: &str) -> String
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
