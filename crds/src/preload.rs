//! The Preload: one load that a pipeline step waits for. The API has it so that its name is taken and explained; it is refused for now.

#![allow(clippy::duplicated_attributes, reason = "it takes columns for duplicates")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::common::conditions_schema;
use crate::dataset::LoadPhase;
use crate::duration::GoDuration;

/// What to load of which Dataset.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "forebay.dev",
    version = "v1alpha1",
    kind = "Preload",
    namespaced,
    status = "PreloadStatus",
    derive = "PartialEq",
    shortname = "fpl",
    category = "forebay",
    doc = "Not supported yet. A Preload loads files of a Dataset once, for a pipeline step to wait for. Until then use spec.preload of the Dataset.",
    printcolumn(name = "DATASET", type_ = "string", json_path = ".spec.datasetRef.name"),
    printcolumn(name = "PHASE", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "PROGRESS", type_ = "string", json_path = ".status.progress"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("false").message("the kind Preload is not supported yet: use spec.preload of the Dataset"),
)]
pub struct PreloadSpec {
    /// The Dataset, in the same namespace.
    pub dataset_ref: DatasetRef,
    /// Load the files that match one of these globs. Default: all files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)))]
    pub include: Vec<String>,
    /// But not those that match one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)))]
    pub exclude: Vec<String>,
    /// Loads with a higher number go first. Default: 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub priority: Option<i32>,
    /// How long the Preload stays after it finished, for instance `24h`. Default: until it is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_after_finished: Option<GoDuration>,
}

/// A Dataset of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatasetRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// How far a Preload is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreloadStatus {
    /// `Pending`, `Loading`, `Complete` or `Failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<LoadPhase>,
    /// Share of the bytes that is loaded, rounded down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<i64>,
    /// The same for people: `57%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// `Complete` or `Failed`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}
