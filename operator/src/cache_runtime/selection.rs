//! Which nodes of the cluster are a runtime's.

use forebay_crds::{Toleration, TolerationOperator};
use k8s_openapi::api::core::v1::{Node, Taint};
use serde_json::{Value, json};

use super::validate::ValidRuntime;

/// Label of a node that cache nodes are to leave, with the value `true`.
pub const LEAVE_LABEL: &str = "forebay.dev/leave";
/// Label of a node: its failure domain.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// How many cache nodes there should be.
pub fn desired_replicas(runtime: &ValidRuntime, nodes: &[impl AsRef<Node>]) -> i32 {
    let matching = || nodes.iter().filter(|node| matches(runtime, node.as_ref())).count() as i32;
    runtime.replicas.unwrap_or_else(matching)
}

/// Whether a cache node may run on `node` for good. A node that is cordoned, not ready or under pressure still counts: a StatefulSet that shrinks
/// removes its last pod, which is on another node.
pub fn matches(runtime: &ValidRuntime, node: &Node) -> bool {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let keeps_away = |taint: &&Taint| {
        let passing = taint.key.starts_with("node.kubernetes.io/")
            || taint.key == "node.cloudprovider.kubernetes.io/uninitialized";
        taint.effect != "PreferNoSchedule"
            && !passing
            && !runtime.tolerations.iter().any(|toleration| tolerates(toleration, taint))
    };
    runtime.selector.matches(&labels) && !asked_to_leave(node) && !taints.iter().any(|taint| keeps_away(&taint))
}

/// Whether somebody asked the cache nodes of a node to leave it.
pub fn asked_to_leave(node: &Node) -> bool {
    node.metadata.labels.as_ref().and_then(|labels| labels.get(LEAVE_LABEL)).is_some_and(|value| value == "true")
}

/// The failure domain of a node.
pub fn zone(node: &Node) -> Option<String> {
    node.metadata.labels.as_ref()?.get(ZONE_LABEL).cloned()
}

/// The runtime's nodes as requirements of node affinity, whose operators have the same names.
pub fn node_expressions(runtime: &ValidRuntime) -> Vec<Value> {
    let labels = runtime
        .selector
        .match_labels
        .iter()
        .map(|(key, value)| json!({"key": key, "operator": "In", "values": [value]}));
    let expressions = runtime.selector.match_expressions.iter().map(|expression| json!(expression));
    let not_leaving = json!({"key": LEAVE_LABEL, "operator": "NotIn", "values": ["true"]});
    labels.chain(expressions).chain([not_leaving]).collect()
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

#[cfg(test)]
mod tests {
    use super::super::validate::tests::{check, runtime};
    use super::*;

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
            node(json!({"gpu": "true", LEAVE_LABEL: "true"}), json!([])),
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
}
