//! What a CacheRuntime becomes, as Kubernetes objects. Pure: types in, objects out.

use std::collections::BTreeMap;
use std::path::Path;

use forebay_crds::{CacheRuntime, Toleration, TolerationOperator};
use forebay_protocol::config::{DEFAULT_MEMORY_BYTES, DatasetConfig, Member, NodeConfig, RuntimeConfig, TlsFiles};
use forebay_protocol::layout::{FOREBAY_GID, NODE_UID, node_socket};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Node, Secret, Service, ServiceAccount, Taint};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Resource as _;
use serde_json::{Value, json};

use super::validate::ValidRuntime;
use crate::Arguments;
use crate::identity::RuntimeIdentity;
use crate::objects::{runtime_labels, typed};

/// Port of the node API.
pub const NODE_PORT: u16 = 7070;
/// Port of health and metrics.
pub const HEALTH_PORT: u16 = 7071;
/// Label on a runtime's pods: its name.
pub const RUNTIME_LABEL: &str = "forebay.dev/runtime";
/// Annotation on a runtime's pods: the revision of the configuration. Changing it makes the kubelet refresh the mounted Secret at once.
pub const REVISION_ANNOTATION: &str = "forebay.dev/config-revision";
/// Where the configuration is mounted.
const CONFIG_DIR: &str = "/etc/forebay";
const CONFIG_FILE: &str = "runtime.yaml";

/// Everything but the configuration.
#[derive(Clone, Debug)]
pub struct RuntimeObjects {
    /// Without any rights.
    pub service_account: ServiceAccount,
    /// Headless, for the pods' names.
    pub service: Service,
    /// One cache node is disrupted at a time.
    pub disruption_budget: PodDisruptionBudget,
    /// The cache nodes.
    pub stateful_set: StatefulSet,
}

/// Name of the configuration's Secret.
pub fn config_name(runtime: &str) -> String {
    format!("{runtime}-config")
}

/// Name of the Secret with the runtime's CA.
pub fn identity_name(runtime: &str) -> String {
    format!("{runtime}-identity")
}

/// How many cache nodes there should be.
pub fn desired_replicas(runtime: &ValidRuntime, nodes: &[impl AsRef<Node>]) -> i32 {
    let matching = || nodes.iter().filter(|node| matches(runtime, node.as_ref())).count() as i32;
    runtime.replicas.unwrap_or_else(matching)
}

/// Whether a cache node may run on `node` for good. A node that is cordoned, not ready or under pressure still counts: a StatefulSet that shrinks
/// removes its last pod, which is on another node.
fn matches(runtime: &ValidRuntime, node: &Node) -> bool {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let keeps_away = |taint: &&Taint| {
        let passing = taint.key.starts_with("node.kubernetes.io/")
            || taint.key == "node.cloudprovider.kubernetes.io/uninitialized";
        taint.effect != "PreferNoSchedule"
            && !passing
            && !runtime.tolerations.iter().any(|toleration| tolerates(toleration, taint))
    };
    runtime.selector.matches(&labels) && !taints.iter().any(|taint| keeps_away(&taint))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.and_then(|effect| serde_json::to_value(effect).ok());
    let same_effect = effect.is_none_or(|effect| effect == json!(taint.effect));
    let same_key = match toleration.key.as_deref() {
        None | Some("") => toleration.operator == Some(TolerationOperator::Exists),
        Some(key) => key == taint.key,
    };
    let same_value = toleration.operator == Some(TolerationOperator::Exists)
        || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default();
    same_effect && same_key && same_value
}

/// The objects of a runtime that `owner` owns.
pub fn objects(owner: &CacheRuntime, runtime: &ValidRuntime, replicas: i32, arguments: &Arguments) -> RuntimeObjects {
    let name = &runtime.name.name;
    let metadata = |name: &str| metadata(owner, runtime, name);
    let selector = json!({RUNTIME_LABEL: name});
    RuntimeObjects {
        service_account: typed(json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": metadata(&format!("{name}-node")),
            "automountServiceAccountToken": false,
        })),
        service: typed(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": metadata(name),
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": true,
                "selector": selector,
                "ports": [
                    {"name": "node", "port": NODE_PORT, "targetPort": "node", "protocol": "TCP"},
                    {"name": "metrics", "port": HEALTH_PORT, "targetPort": "metrics", "protocol": "TCP"},
                ],
            },
        })),
        disruption_budget: typed(json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
            "metadata": metadata(name),
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector}},
        })),
        stateful_set: typed(json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": metadata(name),
            "spec": {
                "replicas": replicas,
                "serviceName": name,
                "podManagementPolicy": "Parallel",
                "selector": {"matchLabels": selector},
                "template": {"metadata": {"labels": pod_labels(name)}, "spec": pod(runtime, arguments)},
            },
        })),
    }
}

fn pod_labels(runtime: &str) -> Value {
    let mut labels = runtime_labels(runtime);
    labels[RUNTIME_LABEL] = json!(runtime);
    labels
}

fn metadata(owner: &CacheRuntime, runtime: &ValidRuntime, name: &str) -> Value {
    json!({
        "name": name,
        "namespace": runtime.name.namespace,
        "labels": runtime_labels(&runtime.name.name),
        "ownerReferences": owner.controller_owner_ref(&()).map(|reference| vec![reference]),
    })
}

fn pod(runtime: &ValidRuntime, arguments: &Arguments) -> Value {
    let name = &runtime.name.name;
    let (cache_dir, run_dir) = (runtime.cache_dir(), arguments.run_dir.as_path());
    let mut volumes = vec![
        json!({"name": "config", "secret": {"secretName": config_name(name), "defaultMode": 0o440}}),
        host_folder("storage", &runtime.host_path),
        host_folder("run", run_dir),
    ];
    let writable =
        vec![json!({"name": "storage", "mountPath": runtime.host_path}), json!({"name": "run", "mountPath": run_dir})];
    let mut mounts = vec![json!({"name": "config", "mountPath": CONFIG_DIR, "readOnly": true})];
    mounts.extend(writable.clone());
    for (index, root) in arguments.file_source_root.iter().enumerate() {
        let volume = format!("source-{index}");
        volumes.push(host_folder(&volume, root));
        // What is mounted there later is seen too.
        mounts
            .push(json!({"name": volume, "mountPath": root, "readOnly": true, "mountPropagation": "HostToContainer"}));
    }
    let expressions = node_expressions(runtime);
    let mut affinity = json!({
        "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {RUNTIME_LABEL: name}}, "topologyKey": "kubernetes.io/hostname"},
        ]},
    });
    if !expressions.is_empty() {
        affinity["nodeAffinity"] = json!({"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": expressions}],
        }});
    }
    let probe = |path: &str, period: u32, failures: u32| json!({"httpGet": {"path": path, "port": "metrics"}, "periodSeconds": period, "failureThreshold": failures, "timeoutSeconds": 5});
    let mut pod = json!({
        "serviceAccountName": format!("{name}-node"),
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": 30,
        "securityContext": {"fsGroup": FOREBAY_GID, "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"}},
        "affinity": affinity,
        "tolerations": runtime.tolerations,
        "initContainers": [{
            "name": "prepare",
            "image": arguments.node_image,
            "imagePullPolicy": arguments.image_pull_policy,
            "command": ["/forebay-node", "prepare", "--cache-dir", cache_dir, "--run-dir", run_dir],
            // Root only to make the two folders and give them to the cache node's user and group.
            "securityContext": {
                "runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": false, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"], "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER"]},
            },
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
            "volumeMounts": writable,
        }],
        "containers": [{
            "name": "forebay-node",
            "image": arguments.node_image,
            "imagePullPolicy": arguments.image_pull_policy,
            "command": ["/forebay-node", "--config", format!("{CONFIG_DIR}/{CONFIG_FILE}"), "--advertise", format!("$(POD_IP):{NODE_PORT}")],
            "env": [
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "RUST_LOG", "value": arguments.node_log_level},
            ],
            "ports": [{"name": "node", "containerPort": NODE_PORT}, {"name": "metrics", "containerPort": HEALTH_PORT}],
            // Opening a large index may take a while; a node that can't reach others is alive all the same.
            "startupProbe": probe("/healthz", 1, 300),
            "readinessProbe": probe("/readyz", 3, 3),
            "livenessProbe": probe("/healthz", 10, 6),
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
            "securityContext": {
                "runAsUser": NODE_UID, "runAsGroup": FOREBAY_GID, "runAsNonRoot": true, "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": mounts,
        }],
        "volumes": volumes,
    });
    if !arguments.image_pull_secret.is_empty() {
        pod["imagePullSecrets"] = arguments.image_pull_secret.iter().map(|name| json!({"name": name})).collect();
    }
    pod
}

fn host_folder(name: &str, path: &Path) -> Value {
    json!({"name": name, "hostPath": {"path": path, "type": "DirectoryOrCreate"}})
}

/// The selector as requirements of node affinity, whose operators have the same names.
fn node_expressions(runtime: &ValidRuntime) -> Vec<Value> {
    let labels = runtime
        .selector
        .match_labels
        .iter()
        .map(|(key, value)| json!({"key": key, "operator": "In", "values": [value]}));
    let expressions = runtime.selector.match_expressions.iter().map(|expression| json!(expression));
    labels.chain(expressions).collect()
}

/// `runtime.yaml`, with a revision made of everything else in it.
pub fn config(
    runtime: &ValidRuntime,
    run_dir: &Path,
    members: Vec<Member>,
    datasets: Vec<DatasetConfig>,
    erase: bool,
) -> RuntimeConfig {
    let any = |port| std::net::SocketAddr::from(([0, 0, 0, 0], port));
    let mut config = RuntimeConfig {
        revision: String::new(),
        runtime: runtime.name.clone(),
        node: NodeConfig {
            cache_dir: runtime.cache_dir(),
            capacity_bytes: runtime.capacity_bytes,
            memory_bytes: DEFAULT_MEMORY_BYTES,
            listen: any(NODE_PORT),
            metrics: Some(any(HEALTH_PORT)),
            socket: Some(node_socket(run_dir, &runtime.name)),
        },
        tls: Some(TlsFiles { ca: "ca.crt".into(), cert: "tls.crt".into(), key: "tls.key".into() }),
        members,
        quotas: Vec::new(),
        datasets,
        erase,
    };
    // Serialising our own types can't fail; if it did, the revision would only be less telling.
    let text = serde_json::to_vec(&config).unwrap_or_default();
    config.revision = blake3::hash(&text).to_hex().chars().take(16).collect();
    config
}

/// The Secret that the pods mount.
pub fn config_secret(
    owner: &CacheRuntime,
    runtime: &ValidRuntime,
    config: &RuntimeConfig,
    identity: &RuntimeIdentity,
) -> Result<Secret, serde_yaml::Error> {
    let [ca, cert, key] = identity.node_files();
    let mut secret: Secret = typed(json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": metadata(owner, runtime, &config_name(&runtime.name.name)),
    }));
    let yaml = serde_yaml::to_string(config)?;
    let entry = |name: &str, text: &str| (name.to_owned(), k8s_openapi::ByteString(text.as_bytes().to_vec()));
    secret.data = Some(BTreeMap::from([
        entry(CONFIG_FILE, &yaml),
        entry("ca.crt", ca),
        entry("tls.crt", cert),
        entry("tls.key", key),
    ]));
    Ok(secret)
}

/// The configuration in a Secret that this operator or an earlier one wrote.
pub fn read_config(secret: &Secret) -> Option<RuntimeConfig> {
    let text = secret.data.as_ref()?.get(CONFIG_FILE)?;
    serde_yaml::from_slice(&text.0).ok()
}

/// The Secret with the runtime's CA.
pub fn identity_secret(owner: &CacheRuntime, runtime: &ValidRuntime, identity: &RuntimeIdentity) -> Secret {
    let mut secret: Secret = typed(json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": metadata(owner, runtime, &identity_name(&runtime.name.name)),
    }));
    secret.data = Some(identity.to_data());
    secret
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::validate::tests::{check, runtime};
    use super::*;

    fn arguments(more: &[&str]) -> Arguments {
        Arguments::parse_from(["forebay-operator", "--node-image", "forebay:test"].iter().chain(more))
    }

    #[allow(clippy::needless_pass_by_value, reason = "called with json!")]
    fn stateful_set(selector: Value, more: &[&str]) -> Value {
        let mut runtime = runtime("/var/lib/forebay/nvme0");
        runtime.spec.nodes = Some(serde_json::from_value(json!({"selector": selector})).unwrap());
        let objects = objects(&runtime, &check(&runtime).unwrap(), 2, &arguments(more));
        serde_json::to_value(objects.stateful_set).unwrap()
    }

    #[test]
    fn a_cache_node_runs_without_root_and_once_per_node() {
        let set = stateful_set(json!({}), &[]);
        let pod = &set["spec"]["template"]["spec"];
        let security = &pod["containers"][0]["securityContext"];
        assert_eq!(security["runAsUser"], NODE_UID);
        assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
        assert_eq!(security["readOnlyRootFilesystem"], true);
        let anti = &pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0];
        assert_eq!(anti["topologyKey"], "kubernetes.io/hostname");
        assert_eq!(anti["labelSelector"]["matchLabels"], set["spec"]["selector"]["matchLabels"]);
        assert_eq!(set["spec"]["replicas"], 2);
        assert_eq!(set["metadata"]["ownerReferences"][0]["kind"], "CacheRuntime");
        assert_eq!(
            pod["containers"][0]["command"],
            json!(["/forebay-node", "--config", "/etc/forebay/runtime.yaml", "--advertise", "$(POD_IP):7070"])
        );
        assert_eq!(pod["initContainers"][0]["command"][3], "/var/lib/forebay/nvme0/forebay.pool");
    }

    fn assert_kept(said: &Value, kept: &Value, path: &str) {
        match said {
            Value::Object(object) => {
                object.iter().for_each(|(name, said)| assert_kept(said, &kept[name], &format!("{path}.{name}")));
            }
            Value::Array(items) if items.is_empty() => {}
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(i, said)| assert_kept(said, &kept[i], &format!("{path}[{i}]")));
            }
            _ => assert_eq!(said, kept, "{path}"),
        }
    }

    /// What Kubernetes' types don't know is dropped when JSON becomes typed, so a slip of the pen would be silent.
    #[test]
    fn nothing_that_the_builders_say_is_lost_in_kubernetes_types() {
        let runtime = runtime("/var/lib/forebay/nvme0");
        let valid = check(&runtime).unwrap();
        let said = pod(&valid, &arguments(&["--file-source-root", "/mnt/nfs", "--image-pull-secret", "registry"]));
        let typed: k8s_openapi::api::core::v1::PodSpec = serde_json::from_value(said.clone()).unwrap();
        let kept = serde_json::to_value(typed).unwrap();
        assert_kept(&said, &kept, "pod");
    }

    #[test]
    fn the_selector_becomes_node_affinity() {
        let set = stateful_set(
            json!({"matchLabels": {"gpu": "true"}, "matchExpressions": [{"key": "spot", "operator": "DoesNotExist"}]}),
            &[],
        );
        let terms = &set["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            ["nodeSelectorTerms"];
        assert_eq!(terms[0]["matchExpressions"][0], json!({"key": "gpu", "operator": "In", "values": ["true"]}));
        assert_eq!(terms[0]["matchExpressions"][1]["operator"], "DoesNotExist");
    }

    #[test]
    fn file_source_roots_are_mounted_read_only_at_their_own_path() {
        let set = stateful_set(json!({}), &["--file-source-root", "/mnt/nfs"]);
        let mounts = set["spec"]["template"]["spec"]["containers"][0]["volumeMounts"].as_array().unwrap().clone();
        let mount = mounts.iter().find(|mount| mount["mountPath"] == "/mnt/nfs").unwrap();
        assert_eq!(mount["readOnly"], true);
    }

    #[test]
    fn there_is_one_cache_node_for_each_matching_node() {
        let mut runtime = runtime("/var/lib/forebay");
        let node = |labels: Value, taints: Value| -> std::sync::Arc<Node> {
            std::sync::Arc::new(
                serde_json::from_value(json!({"metadata": {"labels": labels}, "spec": {"taints": taints}})).unwrap(),
            )
        };
        let nodes = [
            node(json!({"gpu": "true"}), json!([])),
            node(json!({"gpu": "true"}), json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}])),
            node(json!({"gpu": "true"}), json!([{"key": "gpu", "value": "yes", "effect": "NoSchedule"}])),
            node(json!({}), json!([])),
        ];
        runtime.spec.nodes =
            Some(serde_json::from_value(json!({"selector": {"matchLabels": {"gpu": "true"}}})).unwrap());
        assert_eq!(desired_replicas(&check(&runtime).unwrap(), &nodes), 2);
        runtime.spec.nodes.as_mut().unwrap().tolerations =
            serde_json::from_value(json!([{"key": "gpu", "operator": "Exists"}])).unwrap();
        assert_eq!(desired_replicas(&check(&runtime).unwrap(), &nodes), 3);
        runtime.spec.nodes.as_mut().unwrap().replicas = Some(1);
        assert_eq!(desired_replicas(&check(&runtime).unwrap(), &nodes), 1);
    }

    #[test]
    fn the_revision_changes_with_the_content_and_the_secret_reads_back() {
        let owner = runtime("/var/lib/forebay");
        let valid = check(&owner).unwrap();
        let run_dir = Path::new("/var/lib/forebay/run");
        let one = config(&valid, run_dir, vec![], vec![], false);
        assert_eq!(one, config(&valid, run_dir, vec![], vec![], false));
        assert_ne!(one.revision, config(&valid, run_dir, vec![], vec![], true).revision);
        let identity = RuntimeIdentity::generate("forebay/pool", jiff::Timestamp::now()).unwrap();
        let secret = config_secret(&owner, &valid, &one, &identity).unwrap();
        assert_eq!(read_config(&secret), Some(one));
    }
}
