//! What is known of a CacheRuntime.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{conditions_schema, time_schema};

/// What is known of a CacheRuntime.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CacheRuntimeStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Summary of the conditions: `Pending` until a cache node answers, `Ready` when all do, `Degraded` when some do or a disk has a fault, `Failed` when
    /// somebody must act, `Terminating` while it is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<RuntimePhase>,
    /// `Ready`: all cache nodes answer. `StorageHealthy`: no cache node's disk has a fault now. `Deleting`: what its deletion waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// How many cache nodes there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeCount>,
    /// Every cache node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberStatus>,
    /// What all cache nodes together can hold, rounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<String>,
    /// What they hold, copies included, rounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached: Option<String>,
    /// Share of the bytes readers asked for that a cache node had before they asked, over the last hour, of all Datasets: `97.3%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hit_ratio: Option<String>,
    /// Number of Datasets that are served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datasets: Option<i64>,
    /// What the links carry. Always empty while links are not supported.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<LinkStatus>,
}

/// A summary of a CacheRuntime's conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RuntimePhase {
    /// No cache node answers yet.
    Pending,
    /// All cache nodes answer.
    Ready,
    /// Some cache nodes answer, or a disk has a fault.
    Degraded,
    /// Somebody must act.
    Failed,
    /// It is being deleted.
    Terminating,
}

/// How many cache nodes there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeCount {
    /// That there should be.
    pub desired: i64,
    /// That answer and are to stay.
    pub ready: i64,
}

/// One cache node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Identity of its storage, which outlives pods.
    pub id: String,
    /// Its pod.
    pub pod: String,
    /// The node the pod runs on.
    pub node: String,
    /// Where it answers.
    pub address: String,
    /// Whether it answers.
    pub ready: bool,
    /// What it holds, rounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached: Option<String>,
    /// Its failure domain: the label `topology.kubernetes.io/zone` of its node. Replicas go to different zones, reads stay in one where they can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// `Active`: it owns its share. `Leaving`: it hands what it holds to the others. `Left`: it has, or its time was up, and its pod ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<MemberState>,
    /// How far a leaving one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainStatus>,
    /// What its disk did wrong since it started. What was hit is fetched again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disk_faults: Vec<DiskFaultStatus>,
    /// Chunks, on its disk or from other nodes and sources, that were not what they should be since it started. They were fetched again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification_failures: Option<i64>,
    /// How volumes are mounted on its node, as the CSI plugin there says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_mode: Option<MountModeStatus>,
}

/// How volumes are mounted on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MountModeStatus {
    /// `Kernel`: complete files are read without a daemon. `Fuse`: all by the FUSE daemon. `None`: the kernel can do neither.
    pub mode: String,
    /// Why it is this one.
    pub reason: String,
}

/// Whether a cache node is to stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MemberState {
    /// It owns its share.
    Active,
    /// It hands what it holds to the others, and serves until that is done.
    Leaving,
    /// It is done, or its time was up; its pod ends.
    Left,
}

/// How far a leaving cache node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DrainStatus {
    /// When it was asked to leave.
    #[schemars(schema_with = "time_schema")]
    pub since: Time,
    /// Share of the bytes it held that the others have, rounded down.
    pub percent: i64,
    /// What is still to be handed over, rounded.
    pub remaining: String,
    /// Why it leaves, and what it waits for.
    pub message: String,
}

/// Something a cache node's disk did wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskFaultStatus {
    /// `DiskFull`, `DiskReadOnly`, `DiskIoError`, `ChunksDamaged`, `FilesMissing` or `IndexDamaged`.
    pub kind: String,
    /// How often.
    pub count: i64,
    /// When first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time_schema")]
    pub first: Option<Time>,
    /// When last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time_schema")]
    pub last: Option<Time>,
    /// Whether it is so now, as opposed to: it was and is mended.
    pub current: bool,
    /// The last one: object, cause, next step.
    pub message: String,
}

/// What a link carries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LinkStatus {
    /// Its name.
    pub name: String,
    /// What it may carry now, in bits per second.
    pub limit: String,
    /// What it carries, in bits per second.
    pub used: String,
}
