//! Where a Dataset's content comes from: mounts of the tree, their sources, and what a change of a source means.

use kube::KubeSchema;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::common::SecretRef;
use crate::duration::GoDuration;

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
pub(super) fn version_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"x-kubernetes-preserve-unknown-fields": true, "enum": ["Snapshot"]})
}
