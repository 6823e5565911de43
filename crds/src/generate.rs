//! The CustomResourceDefinitions as files: made from the types, checked in for readers (`crds/yaml/`) and for Helm (`charts/forebay/crds/`, which a
//! chart's package must hold as real files), and as a page (`docs/api.md`). `cargo xtask codegen` writes them; a test fails when one is stale.

use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

use crate::reference::reference;
use crate::{CacheRuntime, Dataset, Preload};

const HEADER: &str = "# Generated from crds/src by `cargo xtask codegen`; do not edit.\n";

/// Every CRD's file name and text.
pub fn yaml() -> Vec<(String, String)> {
    crds().iter().map(|crd| (file_name(crd), text(crd))).collect()
}

/// Every generated file: its path in the repository, and its text.
pub fn generated() -> Vec<(PathBuf, String)> {
    let mut files = vec![(PathBuf::from("docs/api.md"), reference(&crds()))];
    for folder in ["crds/yaml", "charts/forebay/crds"] {
        files.extend(yaml().into_iter().map(|(name, text)| (Path::new(folder).join(name), text)));
    }
    files
}

/// Writes the generated files into a checkout of the repository.
pub fn write_generated(root: &Path) -> io::Result<()> {
    generated().into_iter().try_for_each(|(path, text)| std::fs::write(root.join(path), text))
}

fn crds() -> [CustomResourceDefinition; 3] {
    [Dataset::crd(), CacheRuntime::crd(), Preload::crd()]
}

fn file_name(crd: &CustomResourceDefinition) -> String {
    format!("{}_{}.yaml", crd.spec.group, crd.spec.names.plural)
}

#[allow(clippy::expect_used, reason = "our own types always become YAML")]
fn text(crd: &CustomResourceDefinition) -> String {
    format!("{HEADER}{}", serde_yaml::to_string(crd).expect("a CustomResourceDefinition becomes YAML"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generated_files_are_those_of_the_types() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for (path, text) in generated() {
            let found = std::fs::read_to_string(root.join(&path)).unwrap_or_default();
            assert!(found == text, "{} is stale: run cargo xtask codegen", path.display());
        }
    }

    #[test]
    fn every_field_is_described() {
        fn walk(schema: &serde_json::Value, path: &str, bare: &mut Vec<String>) {
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                let path = format!("{path}.{name}");
                if field["description"].as_str().is_none_or(str::is_empty) {
                    bare.push(path.clone());
                }
                walk(field, &path, bare);
                walk(&field["items"], &format!("{path}[]"), bare);
            }
        }
        for crd in crds() {
            let schema =
                serde_json::to_value(&crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema).unwrap();
            let mut bare = Vec::new();
            for part in ["spec", "status"] {
                walk(&schema["properties"][part], &format!("{}.{part}", crd.spec.names.kind), &mut bare);
            }
            assert!(bare.is_empty(), "without a description: {bare:?}");
        }
    }
}
