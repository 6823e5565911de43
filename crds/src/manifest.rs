//! Manifests as files, for programs that have no API server at hand (`forebay mount -f`): several documents of the kinds Forebay knows. Unknown
//! fields are refused by the same schema that the API server has, which `kubectl apply` does by its strict field validation.

use k8s_openapi::api::core::v1::Secret;
use kube::CustomResourceExt as _;
use serde::Deserialize as _;
use serde_json::Value;

use crate::{CacheRuntime, Dataset};

/// One document.
#[derive(Clone, Debug, PartialEq)]
pub enum Manifest {
    /// A Dataset.
    Dataset(Box<Dataset>),
    /// A CacheRuntime.
    CacheRuntime(Box<CacheRuntime>),
    /// A Secret.
    Secret(Box<Secret>),
}

/// Why a file is no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is no YAML.
    #[error("document {document}: {source}")]
    Yaml {
        /// Which document, from 1.
        document: usize,
        /// The cause, with line and column.
        source: serde_yaml::Error,
    },
    /// It is of a kind that can't be used here.
    #[error(
        "document {document}: apiVersion {api_version:?} and kind {kind:?}: expected a Dataset or CacheRuntime of forebay.dev/v1alpha1, or a Secret of v1"
    )]
    Kind {
        /// Which document, from 1.
        document: usize,
        /// What it says.
        api_version: String,
        /// What it says.
        kind: String,
    },
    /// It has fields that don't exist.
    #[error("document {document}: {kind}: unknown field {fields}")]
    UnknownField {
        /// Which document, from 1.
        document: usize,
        /// Its kind.
        kind: String,
        /// Their paths.
        fields: String,
    },
    /// A field is missing or of the wrong type.
    #[error("document {document}: {kind}: {source}")]
    Field {
        /// Which document, from 1.
        document: usize,
        /// Its kind.
        kind: String,
        /// The cause.
        source: serde_json::Error,
    },
}

/// Parses all documents of `text`, in order; empty ones are skipped.
pub fn parse_manifests(text: &str) -> Result<Vec<Manifest>, ManifestError> {
    let mut manifests = Vec::new();
    for (index, document) in serde_yaml::Deserializer::from_str(text).enumerate() {
        let number = index + 1;
        let value = Value::deserialize(document).map_err(|source| ManifestError::Yaml { document: number, source })?;
        if !value.is_null() {
            manifests.push(parse_document(number, value)?);
        }
    }
    Ok(manifests)
}

fn parse_document(document: usize, value: Value) -> Result<Manifest, ManifestError> {
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let field = |source| ManifestError::Field { document, kind: kind.clone(), source };
    let known = |crd| match unknown_fields(&crd, &value) {
        fields if fields.is_empty() => Ok(()),
        fields => Err(ManifestError::UnknownField { document, kind: kind.clone(), fields: fields.join(", ") }),
    };
    match (api_version.as_str(), kind.as_str()) {
        ("forebay.dev/v1alpha1", "Dataset") => {
            known(Dataset::crd())?;
            Ok(Manifest::Dataset(serde_json::from_value(value).map_err(field)?))
        }
        ("forebay.dev/v1alpha1", "CacheRuntime") => {
            known(CacheRuntime::crd())?;
            Ok(Manifest::CacheRuntime(serde_json::from_value(value).map_err(field)?))
        }
        ("v1", "Secret") => Ok(Manifest::Secret(serde_json::from_value(value).map_err(field)?)),
        _ => Err(ManifestError::Kind { document, api_version, kind }),
    }
}

fn unknown_fields(
    crd: &k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    value: &Value,
) -> Vec<String> {
    let schema =
        crd.spec.versions.first().and_then(|version| serde_json::to_value(&version.schema).ok()).unwrap_or_default();
    let mut unknown = Vec::new();
    if let Some(object) = value.as_object() {
        for (name, part) in object {
            match name.as_str() {
                "apiVersion" | "kind" | "metadata" => {}
                _ => match schema["openAPIV3Schema"]["properties"].get(name) {
                    Some(schema) => find_unknown(schema, part, name, &mut unknown),
                    None => unknown.push(name.clone()),
                },
            }
        }
    }
    unknown
}

fn find_unknown(schema: &Value, value: &Value, path: &str, unknown: &mut Vec<String>) {
    match value {
        Value::Object(object)
            if schema["x-kubernetes-preserve-unknown-fields"] != true && schema["additionalProperties"].is_null() =>
        {
            // A field of another type is not ours to report: parsing says so.
            let Some(properties) = schema["properties"].as_object() else { return };
            for (name, part) in object {
                let path = format!("{path}.{name}");
                match properties.get(name) {
                    Some(schema) => find_unknown(schema, part, &path, unknown),
                    None => unknown.push(path),
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                find_unknown(&schema["items"], item, &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATASET: &str = "
apiVersion: forebay.dev/v1alpha1
kind: Dataset
metadata: {name: images, namespace: training}
spec:
  runtimeRef: {name: pool}
  mounts: [{path: /images, sources: [{url: 's3://notes/2026/', secretRef: {name: cloud}}]}]
  capacity: 500Gi
  preload: {include: ['**/*.jpg']}
---
---
apiVersion: v1
kind: Secret
metadata: {name: cloud}
stringData: {AWS_ACCESS_KEY_ID: a, AWS_SECRET_ACCESS_KEY: b}
";

    #[test]
    fn a_file_holds_datasets_and_secrets() {
        let manifests = parse_manifests(DATASET).unwrap();
        assert!(matches!(manifests.as_slice(), [Manifest::Dataset(_), Manifest::Secret(_)]), "{manifests:?}");
    }

    #[test]
    fn an_unknown_field_is_named_with_its_path() {
        let error = parse_manifests(&DATASET.replace("secretRef", "secretref")).unwrap_err().to_string();
        assert!(error.contains("spec.mounts[0].sources[0].secretref"), "{error}");
        let error = parse_manifests(&DATASET.replace("spec:", "specs: {}\nspec:")).unwrap_err().to_string();
        assert!(error.contains("unknown field specs"), "{error}");
    }

    #[test]
    fn another_kind_is_refused() {
        let error = parse_manifests("apiVersion: v1\nkind: Pod\n").unwrap_err().to_string();
        assert!(error.contains("Pod") && error.contains("Dataset"), "{error}");
    }
}
