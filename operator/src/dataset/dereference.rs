//! What a Dataset refers to: its CacheRuntime, the right to use it, the folders it may read, and the Secrets of its sources.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use forebay_crds::{CacheRuntime, Dataset};
use forebay_protocol::config::{Credentials, DatasetConfig, RuntimeName};
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::reflector::ObjectRef;

use super::build::config_entry;
use super::validate::{ValidDataset, validate};
use crate::context::Context;
use crate::problem::{Error, Problem};

/// Credentials by the name of their Secret.
pub type CredentialsBySecret = BTreeMap<String, Credentials>;

/// The runtime does not exist.
pub const RUNTIME_NOT_FOUND: &str = "RuntimeNotFound";
/// The Dataset's namespace may not use the runtime.
pub const NOT_ALLOWED: &str = "NotAllowed";

/// The entry of `runtime.yaml` for a Dataset, or the problem that keeps it out. The outer error is for an API server that does not answer.
pub async fn resolve(context: &Context, dataset: &Dataset) -> Result<Result<DatasetConfig, Problem>, Error> {
    let valid = match validate(dataset) {
        Ok(valid) => valid,
        Err(problem) => return Ok(Err(problem)),
    };
    if let Err(problem) = runtime_of(context, &valid).await? {
        return Ok(Err(problem));
    }
    if let Err(problem) = check_file_sources(&valid, &context.arguments.file_source_root) {
        return Ok(Err(problem));
    }
    let mut credentials = CredentialsBySecret::new();
    for name in valid.mounts.iter().filter_map(|mount| mount.secret.as_deref()) {
        let found = match context.secret(&valid.namespace, name).await? {
            Some(secret) => read_credentials(&secret, &valid.namespace, name),
            None => Err(Problem::new(
                "SecretNotFound",
                format!(
                    "the Secret {}/{name} that a source refers to does not exist: create it with the keys AWS_ACCESS_KEY_ID and \
                     AWS_SECRET_ACCESS_KEY",
                    valid.namespace
                ),
            )),
        };
        match found {
            Ok(found) => drop(credentials.insert(name.to_owned(), found)),
            Err(problem) => return Ok(Err(problem)),
        }
    }
    Ok(config_entry(&valid, &credentials))
}

/// The runtime, if it exists and the Dataset may refer to it.
async fn runtime_of(context: &Context, dataset: &ValidDataset) -> Result<Result<(), Problem>, Error> {
    let Some(name) = &dataset.runtime else {
        return Ok(Err(Problem::new("InvalidSpec", "spec.runtimeRef is required")));
    };
    let Some(runtime) = find_runtime(context, name) else {
        let message = format!(
            "the CacheRuntime {name} does not exist: create it, or create the Dataset anew with another spec.runtimeRef"
        );
        return Ok(Err(Problem::new(RUNTIME_NOT_FOUND, message)));
    };
    let Some(selector) = runtime.spec.access.as_ref().and_then(|access| access.namespaces.as_ref()) else {
        return Ok(Ok(()));
    };
    let labels = context.namespace_labels(&dataset.namespace).await?;
    if selector.matches(&labels) {
        return Ok(Ok(()));
    }
    let message = format!(
        "the CacheRuntime {name} does not serve the namespace {}: its spec.access.namespaces selects other labels; label the namespace or ask \
         the runtime's owner",
        dataset.namespace
    );
    Ok(Err(Problem::new(NOT_ALLOWED, message)))
}

/// A CacheRuntime by name.
pub fn find_runtime(context: &Context, name: &RuntimeName) -> Option<std::sync::Arc<CacheRuntime>> {
    context.runtime_store.get(&ObjectRef::new(&name.name).within(&name.namespace))
}

/// File sources must be in the folders that the administrator mounted into the cache nodes.
fn check_file_sources(dataset: &ValidDataset, roots: &[PathBuf]) -> Result<(), Problem> {
    for mount in &dataset.mounts {
        let Some(folder) = mount.url.strip_prefix("file://") else { continue };
        if !roots.iter().any(|root| Path::new(folder).starts_with(root)) {
            let allowed = roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", ");
            let allowed = if allowed.is_empty() { "none is allowed".to_owned() } else { format!("allowed: {allowed}") };
            return Err(Problem::new(
                "FileSourceNotAllowed",
                format!(
                    "{} is in no folder that Datasets may read ({allowed}): add its folder to the chart's value fileSourceRoots",
                    mount.url
                ),
            ));
        }
    }
    Ok(())
}

/// An S3 key pair from a Secret's `data` or, in manifests that did not go through an API server, `stringData`.
pub fn read_credentials(secret: &Secret, namespace: &str, name: &str) -> Result<Credentials, Problem> {
    let text = |key: &str| {
        let encoded = secret
            .data
            .as_ref()
            .and_then(|data| data.get(key))
            .map(|value| String::from_utf8_lossy(&value.0).into_owned());
        let plain = || secret.string_data.as_ref().and_then(|data| data.get(key)).cloned();
        // A line break at the end comes from files and is never meant.
        encoded.or_else(plain).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let needed = |key: &str| {
        text(key).ok_or_else(|| {
            Problem::new(
                "SecretIncomplete",
                format!("the Secret {namespace}/{name} has no key {key}, or an empty one: add it to the Secret"),
            )
        })
    };
    Ok(Credentials {
        access_key_id: needed("AWS_ACCESS_KEY_ID")?,
        secret_access_key: needed("AWS_SECRET_ACCESS_KEY")?,
        session_token: text("AWS_SESSION_TOKEN"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::validate::tests::dataset;
    use super::*;

    #[test]
    fn a_file_source_outside_of_the_allowed_folders_is_refused() {
        let at = |url: &str| {
            validate(&dataset(|value| value["spec"]["mounts"][0]["sources"] = serde_json::json!([{"url": url}])))
                .unwrap()
        };
        let roots = [PathBuf::from("/mnt/nfs")];
        assert_eq!(check_file_sources(&at("file:///mnt/nfs/data/"), &roots), Ok(()));
        for url in ["file:///etc/", "file:///mnt/nfs2/"] {
            assert_eq!(check_file_sources(&at(url), &roots).unwrap_err().reason, "FileSourceNotAllowed", "{url}");
        }
    }

    #[test]
    fn credentials_are_read_from_data_and_string_data() {
        let read = |text: &str| read_credentials(&serde_json::from_str(text).unwrap(), "training", "cloud");
        let found =
            read(r#"{"data": {"AWS_ACCESS_KEY_ID": "bWUK"}, "stringData": {"AWS_SECRET_ACCESS_KEY": "hidden"}}"#)
                .unwrap();
        assert_eq!((found.access_key_id.as_str(), found.secret_access_key.as_str()), ("me", "hidden"));
        let problem = read(r#"{"stringData": {"AWS_ACCESS_KEY_ID": "me"}}"#).unwrap_err();
        assert_eq!(problem.reason, "SecretIncomplete");
        assert!(
            problem.message.contains("training/cloud") && problem.message.contains("AWS_SECRET_ACCESS_KEY"),
            "{problem}"
        );
    }
}
