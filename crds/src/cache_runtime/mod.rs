//! The CacheRuntime: a pool of cache nodes that many Datasets share.

mod nodes;
mod status;

use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

pub use self::nodes::*;
pub use self::status::*;
use crate::common::LabelSelector;
use crate::duration::GoDuration;
use crate::quantity::Quantity;

/// Which nodes cache, on what storage, and for whom.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "forebay.dev",
    version = "v1alpha1",
    kind = "CacheRuntime",
    namespaced,
    status = "CacheRuntimeStatus",
    derive = "PartialEq",
    shortname = "fcr",
    category = "forebay",
    doc = "A CacheRuntime is a pool of cache nodes: disks of the cluster's own nodes that hold what Datasets show. Many Datasets in many namespaces can share one.",
    printcolumn(name = "PHASE", type_ = "string", json_path = ".status.phase", description = "Summary of the conditions"),
    printcolumn(name = "READY", type_ = "integer", json_path = ".status.nodes.ready", description = "Cache nodes that answer"),
    printcolumn(name = "DESIRED", type_ = "integer", json_path = ".status.nodes.desired", description = "Cache nodes that there should be"),
    printcolumn(name = "CAPACITY", type_ = "string", json_path = ".status.capacity", description = "What all cache nodes together can hold"),
    printcolumn(name = "CACHED", type_ = "string", json_path = ".status.cached", description = "What they hold"),
    printcolumn(name = "HIT RATE", type_ = "string", json_path = ".status.hitRatio", description = "Share of the read bytes that were cached before they were asked for, over the last hour"),
    printcolumn(name = "DATASETS", type_ = "integer", json_path = ".status.datasets", description = "Datasets that are served"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && self.metadata.name.size() <= 45")
        .message("metadata.name must have at most 45 characters: small letters, digits and -, beginning with a letter; a Service and pods are named after it"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.storage == oldSelf.storage")
        .message("spec.storage is immutable: create another CacheRuntime for other storage"),
    validation = Rule::new("self.storage.size() == 1 || self.storage.size() == 2 && self.storage[0].medium == 'Memory' && self.storage[1].medium == 'Disk'")
        .message("spec.storage: give one tier, or one of medium Memory and then one of medium Disk; other combinations are not supported yet"),
    validation = Rule::new("!has(self.links) || self.links.size() == 0")
        .message("spec.links is not supported yet: leave it out"),
    validation = Rule::new("(has(self.nodes) && has(self.nodes.selector)) == (has(oldSelf.nodes) && has(oldSelf.nodes.selector)) && (!has(self.nodes) || !has(self.nodes.selector) || self.nodes.selector == oldSelf.nodes.selector)")
        .message("spec.nodes.selector is immutable, as the cached content is on these nodes: create another CacheRuntime for other nodes"),
)]
pub struct CacheRuntimeSpec {
    /// On which nodes of the cluster cache nodes run. Default: on every schedulable node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<CacheNodes>,
    /// What each node stores content on, fastest first: a Disk tier, or a Memory tier and behind it a Disk tier, or a Memory tier alone. With both, the
    /// disk has everything and memory has copies of what is opened again and again. With memory alone, what is cached is gone when the
    /// machine restarts. Immutable.
    #[schemars(length(min = 1, max = 4))]
    pub storage: Vec<StorageTier>,
    /// Not supported yet. Dedicated lines to protect; a source names the link it crosses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub links: Vec<Link>,
    /// Who may use this runtime. Default: Datasets of every namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<RuntimeAccess>,
    /// Not supported yet. Protocols for readers that don't mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
}

/// One kind of storage on each node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.medium != 'Memory' || !has(self.hostPath) && !has(self.volumeClaimTemplate)")
        .message("spec.storage[] of medium Memory has no hostPath and no volumeClaimTemplate: it lies below the chart's memoryRoot; leave them out"),
    validation = Rule::new("self.medium == 'Memory' || !has(self.volumeClaimTemplate)")
        .message("spec.storage[].volumeClaimTemplate is not supported yet: use hostPath"),
    validation = Rule::new("self.medium == 'Memory' || has(self.volumeClaimTemplate) || has(self.hostPath)")
        .message("spec.storage[].hostPath is required for a tier of medium Disk"),
    validation = Rule::new(r"!has(self.hostPath) || self.hostPath.matches('^(/[^/\\x00-\\x1f\\x7f]+)+$') && !self.hostPath.matches('/[.][.]?(/|$)')")
        .message("spec.storage[].hostPath must be absolute and normalised, as in /var/lib/forebay/nvme0: no empty part, no . or .., no / at the end"),
)]
pub struct StorageTier {
    /// `Disk`: a folder of each node. `Memory`: the node's own memory, as a tmpfs (the chart's `memoryRoot`, `/dev/shm/forebay`). The cache nodes'
    /// pods request it in addition to `spec.nodes.memory`.
    pub medium: Medium,
    /// How much of it each cache node may use, for instance `2Ti`. What came first and was not read through the daemon since makes room.
    pub capacity: Quantity,
    /// For medium Disk only, and required there: a folder on each node, made if it is missing, for instance `/var/lib/forebay/nvme0`. It must be under a cache root of the chart
    /// (`cacheRoots`), and belongs to Forebay: the cache is in a folder `<namespace>.<name>` of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub host_path: Option<String>,
    /// Not supported yet. A PersistentVolumeClaim for each cache node instead of a folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "anything_schema")]
    pub volume_claim_template: Option<serde_json::Value>,
}

fn anything_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// What content is stored on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Medium {
    /// Memory, as a tmpfs.
    Memory,
    /// A file system.
    Disk,
}

/// Not supported yet. A dedicated line to protect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// Its name, for sources to refer to.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// What the whole cluster may read over it, in bits per second: `10G`.
    pub bandwidth: Quantity,
    /// Requests per second over it, by the whole cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub requests_per_second: Option<i64>,
    /// Times of day with another bandwidth.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub schedule: Vec<LinkSchedule>,
}

/// Not supported yet. A time of day with another bandwidth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LinkSchedule {
    /// When it begins, as a cron line.
    #[schemars(length(min = 1, max = 128))]
    pub cron: String,
    /// How long it lasts, for instance `6h`.
    pub duration: GoDuration,
    /// The bandwidth meanwhile, in bits per second.
    pub bandwidth: Quantity,
}

/// Who may use a runtime.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeAccess {
    /// Labels of the namespaces whose Datasets may refer to this runtime, for instance `matchLabels: {forebay.dev/tenant: "true"}`. Default: every
    /// namespace. A Dataset that loses access is taken off the cache nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// How much of the pool the Datasets of a namespace may use together, each namespace once. A namespace above its quota makes room in its own
    /// content; one without a quota is limited by the pool alone. May change at any time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["namespace"]))]
    pub quotas: Vec<Quota>,
}

/// A namespace's share of the pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Quota {
    /// The namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// What its Datasets may use of the whole pool, copies included, for instance `1Ti`.
    pub capacity: Quantity,
}

/// Not supported yet. Protocols for readers that don't mount.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.s3) || !self.s3.enabled")
        .message("spec.gateway.s3 is not supported yet: leave it out"),
    validation = Rule::new("!has(self.webhdfs) || !self.webhdfs.enabled")
        .message("spec.gateway.webhdfs is not supported yet: leave it out"),
)]
pub struct Gateway {
    /// An S3 endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<GatewayProtocol>,
    /// A WebHDFS endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhdfs: Option<GatewayProtocol>,
}

/// One protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayProtocol {
    /// Whether it is served.
    pub enabled: bool,
}
