//! The CustomResourceDefinitions as files: made from the types, checked in for readers (`crds/yaml/`) and for Helm (`charts/forebay/crds/`, which a
//! chart's package must hold as real files). `cargo xtask codegen` writes both; a test fails when one is stale.

use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

use crate::{CacheRuntime, Dataset, Preload};

const HEADER: &str = "# Generated from crds/src by `cargo xtask codegen`; do not edit.\n";

/// Every file's name and text.
pub fn yaml() -> Vec<(String, String)> {
    [Dataset::crd(), CacheRuntime::crd(), Preload::crd()].iter().map(|crd| (file_name(crd), text(crd))).collect()
}

/// The folders that hold the files, in a checkout of the repository at `root`.
pub fn yaml_folders(root: &Path) -> [PathBuf; 2] {
    [root.join("crds/yaml"), root.join("charts/forebay/crds")]
}

/// Writes the files into both folders.
pub fn write_yaml(root: &Path) -> io::Result<()> {
    for folder in yaml_folders(root) {
        std::fs::create_dir_all(&folder)?;
        for (name, text) in yaml() {
            std::fs::write(folder.join(name), text)?;
        }
    }
    Ok(())
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
    fn the_checked_in_manifests_are_those_of_the_types() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for folder in yaml_folders(&root) {
            for (name, text) in yaml() {
                let path = folder.join(name);
                let found = std::fs::read_to_string(&path).unwrap_or_default();
                assert!(found == text, "{} is stale: run cargo xtask codegen", path.display());
            }
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
        for crd in [Dataset::crd(), CacheRuntime::crd(), Preload::crd()] {
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
