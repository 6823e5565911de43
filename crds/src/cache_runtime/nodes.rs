//! Which nodes of the cluster cache, and what their cache nodes may use of them.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::LabelSelector;
use crate::quantity::Quantity;

/// On which nodes of the cluster cache nodes run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.memory) || (type(self.memory) == int ? self.memory >= 67108864 : quantity(self.memory).compareTo(quantity('64Mi')) >= 0)")
        .message("spec.nodes.memory must be at least 64Mi, as in 512Mi"),
)]
pub struct CacheNodes {
    /// Labels of the nodes, for instance `matchLabels: {nvidia.com/gpu.present: "true"}`. Default: every schedulable node. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// Taints that the cache nodes' pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// How many cache nodes, never more than one on a node. Default: one on each matching node, following the nodes as they come and go. With fewer
    /// than before, the last ones hand over what they hold before they end. May change at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 5000))]
    pub replicas: Option<i32>,
    /// What bounds the memory of each cache node: data on its way and the index, for instance `2Gi` for many readers at 100 Gbit/s or tens of millions of
    /// objects. Default: `512Mi`; at least `64Mi`. The pods request this and 64Mi for the program, and are limited to this and 512Mi. May change at
    /// any time; the cache nodes' pods are replaced one by one then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
}

/// A taint that is tolerated, as in a pod's `tolerations`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Toleration {
    /// The taint's key. Default: all keys, with the operator `Exists`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 317))]
    pub key: Option<String>,
    /// `Exists` or `Equal`. Default: `Equal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<TolerationOperator>,
    /// The taint's value, for `Equal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`. Default: all effects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
    /// Seconds that a `NoExecute` taint is tolerated. Default: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toleration_seconds: Option<i64>,
}

/// How a taint is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TolerationOperator {
    /// The taint has the key.
    Exists,
    /// The taint has the key and the value.
    Equal,
}

/// What a taint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TaintEffect {
    /// Keeps new pods away.
    NoSchedule,
    /// Keeps new pods away if it can.
    PreferNoSchedule,
    /// Evicts pods.
    NoExecute,
}
