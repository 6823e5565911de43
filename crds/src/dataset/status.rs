//! What is known of a Dataset.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{conditions_schema, time_schema};

/// What is known of a Dataset. Sizes are rounded for people; the fields named bytes are exact.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatasetStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Summary of the conditions: `Pending` until the runtime is there, `Cataloguing` while sources are listed, then `Ready`; `Degraded` when it can
    /// be read but something is wrong, `Failed` when it can't be read until somebody acts, `Terminating` while it is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<DatasetPhase>,
    /// `Ready`: pods can mount and read it. `Catalogued`: the sources have been listed. `Preloaded`: what is to be loaded is. `SourcesHealthy`:
    /// every mount has a source that answers. `RuntimeAvailable`: the CacheRuntime is there and its nodes answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// The version of the content that pods see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<DatasetVersion>,
    /// How far the preload is. Absent without a preload, unless `placement.mode` is `Everywhere`, which loads everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preload: Option<PreloadProgress>,
    /// What is cached, and how well it serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<DatasetCache>,
    /// The source that serves, of the first mount; `(+1)` counts further mounts' sources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Every source and its state.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceHealth>,
    /// The last ten failovers between sources. Always empty while mounts have one source each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failovers: Vec<Failover>,
    /// The nodes on which pods use the claim.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounted_on: Vec<MountedOn>,
}

/// A summary of a Dataset's conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DatasetPhase {
    /// Waiting for the runtime.
    Pending,
    /// Sources are being listed.
    Cataloguing,
    /// It can be read.
    Ready,
    /// It can be read, but something is wrong.
    Degraded,
    /// It can't be read until somebody acts.
    Failed,
    /// It is being deleted.
    Terminating,
}

/// A version of the content.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatasetVersion {
    /// Names exactly this content: 32 hex digits.
    pub id: String,
    /// Number of files.
    pub files: i64,
    /// Number of folders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directories: Option<i64>,
    /// Size of all files, rounded, for instance `1.2Gi`.
    pub size: String,
    /// Size of all files in bytes.
    pub bytes: i64,
    /// When the sources were listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time_schema")]
    pub observed_at: Option<Time>,
    /// Keys that can't be files and were left out of the tree: `a//b`, `../x`, a key that is both a file and a folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<i64>,
    /// The first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped_keys: Vec<SkippedKey>,
}

/// A key that was left out of the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SkippedKey {
    /// The source.
    pub url: String,
    /// The key there.
    pub key: String,
    /// Why it can't be a file.
    pub reason: String,
}

/// How far a load is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreloadProgress {
    /// `Pending` until the catalog is there, `Loading`, `Complete` when every byte is there and verified, `Failed` when some files can't be loaded.
    pub phase: LoadPhase,
    /// Share of the bytes that is loaded, rounded down: 100 means all of them.
    pub percent: i64,
    /// The same for people: `57%`.
    pub progress: String,
    /// Files that are loaded; with `placement.mode` `Everywhere`, on all nodes.
    pub loaded_files: i64,
    /// Files that are to be loaded.
    pub total_files: i64,
    /// Size of what is loaded, rounded.
    pub loaded_size: String,
    /// Size of what is to be loaded, rounded.
    pub total_size: String,
    /// Bytes that are loaded.
    pub loaded_bytes: i64,
    /// Bytes that are to be loaded.
    pub total_bytes: i64,
    /// Bytes per second of late, rounded: `118Mi/s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throughput: Option<String>,
    /// When it will be complete at that pace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time_schema")]
    pub estimated_completion: Option<Time>,
    /// Files that can't be loaded; they are tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_files: Option<i64>,
    /// The first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<LoadFailure>,
    /// Everything is there and its checksums were verified.
    #[serde(default)]
    pub verified: bool,
}

/// State of a load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LoadPhase {
    /// Not begun.
    #[default]
    Pending,
    /// Under way.
    Loading,
    /// Everything is there.
    Complete,
    /// Some files can't be loaded.
    Failed,
}

/// A file that can't be loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadFailure {
    /// Its path in the tree.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// What is cached of a Dataset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatasetCache {
    /// Size of what cache nodes hold, copies and replicas not counted, rounded; with `placement.mode` `Everywhere`, of what a node holds on average.
    pub size: String,
    /// The same in bytes.
    pub bytes: i64,
    /// Share of the Dataset's bytes that is cached, rounded down.
    pub percent: i64,
    /// Share of the bytes readers asked for that a cache node had before they asked, over the last hour: `97.3%`. Absent until something was
    /// read. Files that are wholly cached on the reader's node are read by the kernel alone
    /// and count by a sample of their opens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hit_ratio: Option<String>,
    /// Bytes read from the sources since the cache nodes started, for readers and preloads.
    pub bytes_from_source: i64,
    /// Bytes that readers got from the cache since the cache nodes started.
    pub bytes_from_cache: i64,
}

/// A source and its state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceHealth {
    /// Path of the mount it belongs to.
    pub mount: String,
    /// Its URL.
    pub url: String,
    /// `Active`: it serves. `Standby`: it has not been needed. `Unhealthy`: it does not answer, or refuses.
    pub state: SourceState,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time_schema")]
    pub since: Option<Time>,
    /// Why it is unhealthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// State of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SourceState {
    /// It serves.
    Active,
    /// It has not been needed.
    Standby,
    /// It does not answer, or refuses.
    Unhealthy,
}

/// A change from one source to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failover {
    /// When.
    #[schemars(schema_with = "time_schema")]
    pub time: Time,
    /// Path of the mount.
    pub mount: String,
    /// URL of the source that served before.
    pub from: String,
    /// URL of the source that served after.
    pub to: String,
    /// Why.
    pub reason: String,
}

/// A node and the pods on it that use a Dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MountedOn {
    /// Name of the node.
    pub node: String,
    /// Names of the pods, in the Dataset's namespace.
    pub pods: Vec<String>,
}
