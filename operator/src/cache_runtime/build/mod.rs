//! What a CacheRuntime becomes, as Kubernetes objects. Pure: types in, objects out.

mod pod;
mod secrets;

use forebay_crds::CacheRuntime;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Resource as _;
use serde_json::{Value, json};

pub use self::secrets::{config, config_name, config_secret, identity_name, identity_secret, read_config};
use super::validate::ValidRuntime;
use crate::Arguments;
use crate::objects::{runtime_labels, typed};

/// Port of the node API.
pub const NODE_PORT: u16 = 7070;
/// Port of health and metrics.
pub const HEALTH_PORT: u16 = 7071;
/// Label on a runtime's pods: its name.
pub const RUNTIME_LABEL: &str = "forebay.dev/runtime";
/// Annotation on a runtime's pods: the revision of the configuration. Changing it makes the kubelet refresh the mounted Secret at once.
pub const REVISION_ANNOTATION: &str = "forebay.dev/config-revision";

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
                "template": {"metadata": {"labels": pod_labels(name)}, "spec": pod::pod(runtime, arguments)},
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

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser as _;
    use forebay_protocol::layout::NODE_UID;

    use super::super::validate::tests::{check, runtime};
    use super::*;

    pub(super) fn arguments(more: &[&str]) -> Arguments {
        Arguments::parse_from(["forebay-operator", "--node-image", "forebay:test"].iter().chain(more))
    }

    #[allow(clippy::needless_pass_by_value, reason = "called with json!")]
    pub(super) fn stateful_set(selector: Value, more: &[&str]) -> Value {
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
        // A pod that left a node does not come back to it.
        assert_eq!(
            terms[0]["matchExpressions"][2],
            json!({"key": "forebay.dev/leave", "operator": "NotIn", "values": ["true"]})
        );
    }
}
