//! The Dataset: content of object stores shown as one read-only tree. Here is its spec; what it is made of and what is known of it are beside it.

mod policy;
mod source;
mod status;

use kube::{CustomResource, KubeSchema};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

pub use self::policy::*;
pub use self::source::*;
pub use self::status::*;
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
    #[schemars(schema_with = "source::version_schema")]
    pub version: Option<VersionPolicy>,
    /// On how many cache nodes content is kept, and on which. Default: one owner, and copies where it is read. May change at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// At most this much of the whole pool is used for this Dataset, for instance `500Gi`; what came first and was not read through the daemon since makes room. Default: no
    /// limit of its own. May change at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Quantity>,
    /// Load files before anybody reads them. `{}` loads everything. Absent: a file is cached when it is first read. May change at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preload: Option<PreloadPolicy>,
    /// Files that are evicted last, for instance labels and indexes that every epoch needs. May change at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<Pin>,
    /// Other namespaces whose pods may mount this Dataset, by an inline volume that names it or by a volume of their own. Default: none but the Dataset's own.
    /// What has been taken back holds for volumes that are mounted from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_with: Option<SharedWith>,
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

/// Who may mount a Dataset beside its own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SharedWith {
    /// Names of namespaces, at most 64.
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub namespaces: Vec<String>,
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
