//! The Dataset: content of object stores shown as one read-only tree, and what is known of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::common::{SecretRef, conditions_schema, time_schema};
use crate::duration::GoDuration;
use crate::quantity::Quantity;

/// What to show, from where, and what to load ahead of the first read. Each Dataset gets a PersistentVolumeClaim of its own name, ReadOnlyMany,
/// in its namespace: a pod names that claim and reads files.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "forebay.dev",
    version = "v1alpha1",
    kind = "Dataset",
    namespaced,
    status = "DatasetStatus",
    derive = "PartialEq",
    shortname = "fds",
    category = "forebay",
    doc = "A Dataset shows content of object stores as one read-only file tree, which pods mount through the PersistentVolumeClaim of the Dataset's name. Its bytes are cached on the nodes of a CacheRuntime.",
    printcolumn(name = "PHASE", type_ = "string", json_path = ".status.phase", description = "Summary of the conditions"),
    printcolumn(name = "FILES", type_ = "integer", json_path = ".status.version.files", description = "Files in the tree"),
    printcolumn(name = "SIZE", type_ = "string", json_path = ".status.version.size", description = "Size of all files"),
    printcolumn(name = "CACHED", type_ = "string", json_path = ".status.cache.size", description = "Of these bytes, how many cache nodes hold"),
    printcolumn(name = "PRELOAD", type_ = "string", json_path = ".status.preload.progress", description = "How much of what is to be loaded is there"),
    printcolumn(name = "HIT RATE", type_ = "string", json_path = ".status.cache.hitRatio", description = "Share of the read bytes that were cached before they were asked for, over the last hour"),
    printcolumn(name = "SOURCE", type_ = "string", json_path = ".status.source", description = "The source that serves"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.version) || (self.spec.mounts.size() == oldSelf.spec.mounts.size() && self.spec.mounts.all(m, oldSelf.spec.mounts.exists(o, o.path == m.path && o.sources.size() == m.sources.size() && o.sources[0].url == m.sources[0].url && has(o.sources[0].endpoint) == has(m.sources[0].endpoint) && (!has(o.sources[0].endpoint) || o.sources[0].endpoint == m.sources[0].endpoint))))")
        .message("spec.mounts: paths, URLs and endpoints are immutable once the Dataset has a version (status.version): create another Dataset for other content; region and secretRef may change"),
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.version) || (has(self.spec.access) == has(oldSelf.spec.access) && (!has(self.spec.access) || self.spec.access == oldSelf.spec.access))")
        .message("spec.access is immutable once the Dataset has a version (status.version), for it is part of the version: create another Dataset"),
    validation = Rule::new("self.metadata.name.size() <= 180")
        .message("metadata.name must have at most 180 characters: the volume's name is made of it"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.runtimeRef == oldSelf.runtimeRef")
        .message("spec.runtimeRef is immutable: delete the Dataset and create it anew to move it to another CacheRuntime"),
    validation = Rule::new("!has(self.pin)")
        .message("spec.pin is not supported yet: leave it out"),
)]
pub struct DatasetSpec {
    /// The CacheRuntime whose nodes cache this Dataset. Immutable.
    // `forebay mount -f` needs none.
    #[schemars(required)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_ref: Option<RuntimeRef>,
    /// The tree: which folder shows which source, for instance `/images` an S3 bucket and `/labels` another one. At least one, at most 32, each
    /// with a path of its own. Paths, URLs and endpoints are immutable once the Dataset has a version.
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["path"]))]
    pub mounts: Vec<Mount>,
    /// What readers see when a source changes. `Snapshot` (the default): the tree stays what it was when it was first listed; a file that changed in
    /// the source since then, and is not cached, gives an error when it is read, never other content. `Follow` is not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "version_schema")]
    pub version: Option<VersionPolicy>,
    /// On how many nodes content is kept, and on which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// At most this much of the whole pool is used for this Dataset, for instance `500Gi`; what came first and was not read through the daemon since makes room. Default: no
    /// limit of its own. May change at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Quantity>,
    /// Load files before anybody reads them. `{}` loads everything. Absent: a file is cached when it is first read. May change at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preload: Option<PreloadPolicy>,
    /// Not supported yet. Files that are evicted last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<Pin>,
    /// Owner and modes that files and folders show. Immutable once the Dataset has a version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
}

/// A reference to a CacheRuntime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeRef {
    /// Name of the CacheRuntime.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its namespace. Default: the Dataset's own. The CacheRuntime's `spec.access.namespaces` says who may refer to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
}

/// A folder of the tree and where its content is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(r"self.path == '/' || self.path.matches('^(/[^/\\x00-\\x1f\\x7f]+)+$') && !self.path.matches('/[.][.]?(/|$)')")
        .message("spec.mounts[].path must be absolute and normalised, as in / or /images: no empty part, no . or .., no / at the end"),
    validation = Rule::new("self.sources.size() == 1")
        .message("spec.mounts[].sources: more than one source of a mount is not supported yet: give exactly one"),
)]
pub struct Mount {
    /// Where in the tree: `/` for its root, `/images` for a folder. Absolute and normalised.
    #[schemars(length(min = 1, max = 512))]
    pub path: String,
    /// Sources of the same content, in order of preference. Exactly one for now.
    #[schemars(length(min = 1, max = 8))]
    pub sources: Vec<Source>,
}

/// A folder in an object store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!self.url.matches('^(gs|az|hdfs|https)://')")
        .message("spec.mounts[].sources[].url: gs://, az://, hdfs:// and https:// are not supported yet: use s3:// or file://"),
    validation = Rule::new("self.url.matches('^(s3|file|gs|az|hdfs|https)://')")
        .message("spec.mounts[].sources[].url must begin with s3:// or file://"),
    validation = Rule::new(r"!self.url.startsWith('s3://') || self.url.matches('^s3://[A-Za-z0-9][A-Za-z0-9._-]+(/[^\\x00-\\x1f\\x7f]*)?$')")
        .message("spec.mounts[].sources[].url must be s3://BUCKET or s3://BUCKET/PREFIX/"),
    validation = Rule::new(r"!self.url.startsWith('file://') || (self.url == 'file:///' || self.url.matches('^file://(/[^/\\x00-\\x1f\\x7f]+)+/?$')) && !self.url.matches('/[.][.]?(/|$)')")
        .message("spec.mounts[].sources[].url must be file:// and an absolute, normalised path, as in file:///mnt/data/"),
    validation = Rule::new("!self.url.startsWith('file://') || (!has(self.endpoint) && !has(self.region) && !has(self.secretRef))")
        .message("spec.mounts[].sources[]: a file:// source takes no endpoint, region or secretRef"),
    validation = Rule::new(r"!has(self.endpoint) || self.endpoint.matches('^https?://[^/?#@\\s]+(/[^?#\\s]*)?$')")
        .message("spec.mounts[].sources[].endpoint must be an http:// or https:// URL of a host, as in https://s3.example.com: no user, query or fragment"),
    validation = Rule::new("!has(self.link)")
        .message("spec.mounts[].sources[].link is not supported yet: leave it out"),
)]
pub struct Source {
    /// `s3://BUCKET/PREFIX/`: the objects of a bucket whose keys begin with the prefix, which is cut off; without a prefix the whole bucket. Or
    /// `file:///FOLDER/`: a folder on the cache nodes themselves (a file system mounted there), if the operator's `--file-source-root` allows it.
    #[schemars(length(min = 1, max = 1024))]
    pub url: String,
    /// The store's endpoint, for instance `https://s3.example.com` or `http://10.0.0.5:9000`. Default: Amazon's, for the region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub endpoint: Option<String>,
    /// The store's region, for instance `eu-central-1`. Default: `us-east-1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub region: Option<String>,
    /// The Secret with the credentials, in the Dataset's namespace. Absent: anonymous requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// Not supported yet. The CacheRuntime's link that this source's bytes cross.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub link: Option<String>,
}

/// What readers see when a source changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum VersionPolicy {
    /// What was there at first.
    #[default]
    Snapshot,
    /// Not supported yet: new opens see what is there now.
    Follow(FollowPolicy),
}

/// How to follow a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FollowPolicy {
    /// How often to look.
    pub interval: GoDuration,
}

// A structural schema has no "string or object", and CEL sees only what has a type. An enumeration without a type refuses all but what is
// supported, and names it.
fn version_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"x-kubernetes-preserve-unknown-fields": true, "enum": ["Snapshot"]})
}

/// Where content is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.mode) || self.mode == 'Auto'")
        .message("spec.placement.mode Sharded and Everywhere are not supported yet: use Auto or leave it out"),
    validation = Rule::new("!has(self.replicas) || self.replicas == 1")
        .message("spec.placement.replicas other than 1 is not supported yet: use 1 or leave it out"),
)]
pub struct Placement {
    /// `Auto` (the default): every file has an owner among the nodes, and nodes that read it keep a copy while there is room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<PlacementMode>,
    /// Owners of each stripe of 256 MiB. Default: 1, and only that is supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub replicas: Option<i32>,
}

/// How content is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PlacementMode {
    /// One owner, and copies where it is read.
    Auto,
    /// One owner, no copies. Not supported yet.
    Sharded,
    /// All of it on every node. Not supported yet.
    Everywhere,
}

/// What to load ahead of the first read. Patterns are globs over paths in the tree without the leading `/`: `images/*.jpg`, `images/**/*.jpg`;
/// `*` does not cross a `/`, `**` does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.newerThan)")
        .message("spec.preload.newerThan is not supported yet: leave it out"),
    validation = Rule::new("!has(self.schedule)")
        .message("spec.preload.schedule is not supported yet: leave it out"),
    validation = Rule::new("!has(self.priority)")
        .message("spec.preload.priority is not supported yet: leave it out"),
)]
pub struct PreloadPolicy {
    /// Load the files that match one of these. Default: all files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)))]
    pub include: Vec<String>,
    /// But not those that match one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)))]
    pub exclude: Vec<String>,
    /// Not supported yet. Load only files younger than this, for instance `168h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newer_than: Option<GoDuration>,
    /// Not supported yet. When to load, as a cron line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub schedule: Option<String>,
    /// Not supported yet. Loads with a higher number go first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub priority: Option<i32>,
}

/// Not supported yet. Files that are evicted only when nothing unpinned is left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pin {
    /// Files that match one of these globs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)))]
    pub include: Vec<String>,
    /// Of these, the ones younger than this, for instance `168h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newer_than: Option<GoDuration>,
}

/// Owner and modes that the tree shows. It is read-only whatever the modes say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Access {
    /// User id that owns files and folders. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "id_schema")]
    pub uid: Option<u32>,
    /// Their group id. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "id_schema")]
    pub gid: Option<u32>,
    /// Permission bits of files, octal, as a string. Default: `"0444"`, everybody may read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "mode_schema")]
    pub file_mode: Option<String>,
    /// Permission bits of folders, octal, as a string. Default: `"0555"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "mode_schema")]
    pub dir_mode: Option<String>,
}

fn id_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "format": "int64", "minimum": 0, "maximum": 4_294_967_294_u32})
}

fn mode_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "pattern": "^0?[0-7]{3}$", "maxLength": 4})
}

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
    /// How far the preload is. Absent without a preload.
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
    /// Files that are loaded.
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
    /// Size of what cache nodes hold, copies not counted, rounded.
    pub size: String,
    /// The same in bytes.
    pub bytes: i64,
    /// Share of the Dataset's bytes that is cached, rounded down.
    pub percent: i64,
    /// Share of the bytes readers asked for that a cache node had before they asked, over the last hour: `97.3%`. Absent until something was
    /// read. Files that are wholly cached on the reader's node are read by the kernel alone and are not counted.
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
