//! How a Dataset's content is kept on the cache nodes: on which of them, what is loaded ahead, and what is evicted last.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::GoDuration;

/// Where content is kept. May change at any time: the nodes move or drop what the new placement asks for, while reads go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.mode) || self.mode != 'Everywhere' || !has(self.replicas)")
        .message("spec.placement.replicas contradicts mode Everywhere, which keeps everything on every node: leave replicas out, or use mode Auto or Sharded"),
)]
pub struct Placement {
    /// `Auto` (the default): every stripe of 256 MiB has an owner among the cache nodes, and nodes that read it keep a copy while there is room that
    /// no owner needs. `Sharded`: owners only, no copies: the most content for the disks, for data that is read once an epoch. `Everywhere`: all of it
    /// (or what `preload` selects) on every cache node, brought there in about one pass: for models and indexes that all nodes read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<PlacementMode>,
    /// Owners of each stripe, for `Auto` and `Sharded`. Default: 1. With 2 the content survives the loss of a node or, where nodes have the label
    /// `topology.kubernetes.io/zone`, of a zone, and takes twice the room. Where there are fewer cache nodes, all of them own it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub replicas: Option<i32>,
}

/// How content is spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PlacementMode {
    /// Owners, and copies where it is read.
    #[default]
    Auto,
    /// Owners only.
    Sharded,
    /// All of it on every node.
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

/// Files that are evicted only when nothing unpinned is left. `{}` pins everything. A pin loads nothing: see `preload` for that. A Dataset's
/// `capacity` and a namespace's quota hold for pinned files too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pin {
    /// Pin the files that match one of these globs, as in `preload.include`. Default: all files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)))]
    pub include: Vec<String>,
    /// Of these, only the ones that were changed in the source less than this ago, for instance `168h`: as files grow old, they lose the pin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newer_than: Option<GoDuration>,
}
