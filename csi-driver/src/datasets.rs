//! What a volume shows: from its attributes to Dataset and CacheRuntime, and from these to the cache folder and the catalog on this node. Says
//! in the Dataset's own words why it can't be mounted yet.

use std::path::{Path, PathBuf};

use forebay_crds::{CacheRuntime, Dataset, Medium};
use forebay_protocol::config::RuntimeName;
use forebay_protocol::layout::CacheLayout;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Api, ResourceExt};

use crate::attributes::Attributes;
use crate::paths::Paths;

/// Where Datasets and CacheRuntimes are read from.
#[derive(Clone)]
pub enum Datasets {
    /// The cluster.
    ApiServer(kube::Client),
    /// A JSON list of objects as the cluster would have them, for nodes without one. Read anew each time.
    File(PathBuf),
}

/// What to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `namespace/name` of the Dataset.
    pub dataset: String,
    /// Its UID.
    pub dataset_uid: String,
    /// The version to mount.
    pub catalog_id: String,
    /// Its runtime.
    pub runtime: RuntimeName,
    /// The cache root that the cache folder lies under.
    pub cache_root: PathBuf,
    /// The cache folder on this node.
    pub cache: CacheLayout,
    /// The folder of the copies in memory, if the runtime has a Memory tier before its disk.
    pub memory: Option<CacheLayout>,
}

/// Why a volume has no target.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// Waiting may help.
    #[error("{0}")]
    NotYet(String),
    /// The volume's attributes or the objects are wrong.
    #[error("{0}")]
    Wrong(String),
    /// The pod's namespace may not use the Dataset.
    #[error("{0}")]
    Denied(String),
    /// The API server does not answer.
    #[error("reading {what}: {source}")]
    ApiServer {
        /// Which object.
        what: String,
        /// The cause.
        source: Box<kube::Error>,
    },
    /// The file of objects can't be used.
    #[error("reading {path}: {message}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        message: String,
    },
}

impl Datasets {
    /// Finds what the volume with this id and these attributes shows.
    pub async fn resolve(
        &self,
        volume_id: &str,
        attributes: &Attributes,
        paths: &Paths,
    ) -> Result<Target, ResolveError> {
        let of_pod = attributes.pod.as_ref().map(|pod| pod.namespace.as_str());
        let (name, namespace) =
            (attributes.dataset.as_str(), attributes.namespace.as_deref().or(of_pod).unwrap_or_default());
        let dataset = self.dataset(namespace, name).await?;
        if let Some(pod) = of_pod.filter(|pod| *pod != namespace)
            && !dataset.as_ref().is_some_and(|dataset| shared_with(dataset).iter().any(|shared| shared == pod))
        {
            // The same words for both: what there is in another namespace is not this one's to know.
            return Err(ResolveError::Denied(format!(
                "Dataset {namespace}/{name} does not exist or is not shared with namespace {pod}: its owner must add that to spec.sharedWith.namespaces"
            )));
        }
        let Some(dataset) = dataset else {
            return Err(ResolveError::NotYet(format!("Dataset {namespace}/{name} does not exist")));
        };
        if !attributes.inline {
            check_handle(volume_id, &dataset)?;
        }
        let runtime_name = runtime_of(&dataset).ok_or_else(|| {
            ResolveError::Wrong(format!("Dataset {namespace}/{name} names no CacheRuntime (spec.runtimeRef)"))
        })?;
        let runtime = self.runtime(&runtime_name).await?;
        target(&dataset, &runtime_name, runtime.as_ref(), paths)
    }

    async fn dataset(&self, namespace: &str, name: &str) -> Result<Option<Dataset>, ResolveError> {
        match self {
            Self::ApiServer(client) => Api::<Dataset>::namespaced(client.clone(), namespace)
                .get_opt(name)
                .await
                .map_err(|source| api_error("Dataset", namespace, name, source)),
            Self::File(path) => find_in_file(path, "Dataset", namespace, name),
        }
    }

    async fn runtime(&self, runtime: &RuntimeName) -> Result<Option<CacheRuntime>, ResolveError> {
        let (namespace, name) = (&runtime.namespace, &runtime.name);
        match self {
            Self::ApiServer(client) => Api::<CacheRuntime>::namespaced(client.clone(), namespace)
                .get_opt(name)
                .await
                .map_err(|source| api_error("CacheRuntime", namespace, name, source)),
            Self::File(path) => find_in_file(path, "CacheRuntime", namespace, name),
        }
    }
}

fn api_error(kind: &str, namespace: &str, name: &str, source: kube::Error) -> ResolveError {
    ResolveError::ApiServer { what: format!("{kind} {namespace}/{name}"), source: Box::new(source) }
}

fn find_in_file<T: serde::de::DeserializeOwned>(
    path: &Path,
    kind: &str,
    namespace: &str,
    name: &str,
) -> Result<Option<T>, ResolveError> {
    let error =
        |error: &dyn std::fmt::Display| ResolveError::File { path: path.to_owned(), message: error.to_string() };
    let objects: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(path).map_err(|it| error(&it))?).map_err(|it| error(&it))?;
    let found = objects.into_iter().find(|object| {
        object["kind"] == kind && object["metadata"]["namespace"] == namespace && object["metadata"]["name"] == name
    });
    found.map(serde_json::from_value).transpose().map_err(|it| error(&it))
}

fn runtime_of(dataset: &Dataset) -> Option<RuntimeName> {
    let reference = dataset.spec.runtime_ref.as_ref()?;
    let namespace = reference.namespace.clone().or_else(|| dataset.namespace())?;
    Some(RuntimeName { namespace, name: reference.name.clone() })
}

fn shared_with(dataset: &Dataset) -> &[String] {
    dataset.spec.shared_with.as_ref().map_or(&[], |shared| &shared.namespaces)
}

/// A volume's handle is the Dataset's UID, or that and anything after a slash, so that there may be several volumes of one Dataset.
fn check_handle(volume_id: &str, dataset: &Dataset) -> Result<(), ResolveError> {
    let uid = dataset.uid().unwrap_or_default();
    if volume_id.split('/').next() == Some(&uid) {
        return Ok(());
    }
    Err(ResolveError::Wrong(format!(
        "the volume is of a Dataset {}/{} that has been deleted; the present one has UID {uid}, not {volume_id}: delete the claim and let it be made anew",
        dataset.namespace().unwrap_or_default(),
        dataset.name_any()
    )))
}

/// From the objects to the target.
fn target(
    dataset: &Dataset,
    runtime_name: &RuntimeName,
    runtime: Option<&CacheRuntime>,
    paths: &Paths,
) -> Result<Target, ResolveError> {
    let full_name = format!("{}/{}", dataset.namespace().unwrap_or_default(), dataset.name_any());
    let status = dataset.status.as_ref();
    let conditions = status.map(|status| status.conditions.as_slice()).unwrap_or_default();
    let not_yet = |what: &str| ResolveError::NotYet(format!("Dataset {full_name} {what}{}", reason(conditions)));
    let Some(runtime) = runtime else {
        return Err(not_yet(&format!("refers to CacheRuntime {runtime_name}, which does not exist")));
    };
    let (cache_root, cache) = cache_folder(runtime_name, runtime, paths)?;
    let tiers = &runtime.spec.storage;
    let memory = tiers.first().filter(|tier| tiers.len() > 1 && tier.medium == Medium::Memory);
    let memory = memory.map(|_| CacheLayout::under_host_path(&paths.memory_root, runtime_name));
    let Some(version) = status.and_then(|status| status.version.as_ref()) else {
        return Err(not_yet("has no version yet"));
    };
    Ok(Target {
        dataset_uid: dataset.uid().unwrap_or_default(),
        catalog_id: version.id.clone(),
        runtime: runtime_name.clone(),
        cache_root,
        cache,
        memory,
        dataset: full_name,
    })
}

/// The folder of the tier that has everything, and the root that it lies under.
fn cache_folder(
    name: &RuntimeName,
    runtime: &CacheRuntime,
    paths: &Paths,
) -> Result<(PathBuf, CacheLayout), ResolveError> {
    let tier = runtime.spec.storage.last();
    if tier.is_some_and(|tier| tier.medium == Medium::Memory) {
        return Ok((paths.memory_root.clone(), CacheLayout::under_host_path(&paths.memory_root, name)));
    }
    let Some(host_path) = tier.and_then(|tier| tier.host_path.as_deref()) else {
        return Err(ResolveError::Wrong(format!("CacheRuntime {name} has no Disk tier with a hostPath")));
    };
    let cache = CacheLayout::under_host_path(Path::new(host_path), name);
    let Some(root) = paths.cache_root_of(cache.root()) else {
        let roots: Vec<_> = paths.cache_roots.iter().map(|root| root.display().to_string()).collect();
        return Err(ResolveError::Wrong(format!(
            "CacheRuntime {name} has hostPath {host_path}, which is under none of the chart's cacheRoots ({})",
            roots.join(", ")
        )));
    };
    Ok((root.to_owned(), cache))
}

/// What the Dataset's conditions say is wrong, the cause before its consequences.
fn reason(conditions: &[Condition]) -> String {
    let wrong = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind && condition.status != "True");
    match ["RuntimeAvailable", "Catalogued", "Ready"].into_iter().find_map(wrong) {
        Some(condition) => format!(": {} ({})", condition.message.trim_end_matches('.'), condition.reason),
        None if conditions.is_empty() => ": it has no conditions yet; is the operator running?".to_owned(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::volumes::Pod;

    fn paths() -> Paths {
        Paths {
            kubelet_dir: "/k".into(),
            run_dir: "/r".into(),
            cache_roots: vec!["/var/lib/forebay".into()],
            memory_root: "/dev/shm/forebay".into(),
        }
    }

    fn runtime(host_path: &str) -> serde_json::Value {
        json!({"apiVersion": "forebay.dev/v1alpha1", "kind": "CacheRuntime", "metadata": {"namespace": "forebay", "name": "pool"},
            "spec": {"storage": [{"medium": "Disk", "capacity": "1Gi", "hostPath": host_path}]}})
    }

    fn dataset(status: &serde_json::Value) -> serde_json::Value {
        json!({"apiVersion": "forebay.dev/v1alpha1", "kind": "Dataset",
            "metadata": {"namespace": "training", "name": "images", "uid": "u-1"},
            "spec": {"runtimeRef": {"namespace": "forebay", "name": "pool"},
                "mounts": [{"path": "/", "sources": [{"url": "s3://b/"}]}]},
            "status": status})
    }

    async fn resolve(objects: serde_json::Value, volume_id: &str) -> Result<Target, ResolveError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), objects.to_string()).unwrap();
        let attributes =
            Attributes { namespace: Some("training".into()), dataset: "images".into(), ..Attributes::default() };
        Datasets::File(file.path().into()).resolve(volume_id, &attributes, &paths()).await
    }

    fn condition(kind: &str, status: &str, reason: &str, message: &str) -> serde_json::Value {
        json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    #[tokio::test]
    async fn a_catalogued_dataset_gives_its_cache_folder_and_version() {
        let status = json!({"version": {"id": "c1", "files": 3, "size": "1Ki", "bytes": 1024, "observedAt": "2026-01-01T00:00:00Z"}});
        let target = resolve(json!([runtime("/var/lib/forebay/nvme0"), dataset(&status)]), "u-1").await.unwrap();
        assert_eq!(target.cache.root(), Path::new("/var/lib/forebay/nvme0/forebay.pool"));
        assert_eq!((target.catalog_id.as_str(), target.dataset.as_str()), ("c1", "training/images"));
        assert_eq!(target.memory, None);
    }

    #[tokio::test]
    async fn a_memory_tier_is_below_the_memory_root_and_alone_it_is_the_cache() {
        let status = json!({"version": {"id": "c1", "files": 3, "size": "1Ki", "bytes": 1024, "observedAt": "2026-01-01T00:00:00Z"}});
        let in_memory = Path::new("/dev/shm/forebay/forebay.pool");
        let memory = json!({"medium": "Memory", "capacity": "1Gi"});
        let mut both = runtime("/var/lib/forebay/nvme0");
        both["spec"]["storage"].as_array_mut().unwrap().insert(0, memory.clone());
        let target = resolve(json!([both, dataset(&status)]), "u-1").await.unwrap();
        assert_eq!(target.cache.root(), Path::new("/var/lib/forebay/nvme0/forebay.pool"));
        assert_eq!(target.memory.unwrap().root(), in_memory);
        let mut alone = both;
        alone["spec"]["storage"] = json!([memory]);
        let target = resolve(json!([alone, dataset(&status)]), "u-1").await.unwrap();
        assert_eq!((target.cache.root(), target.memory), (in_memory, None));
        assert_eq!(target.cache_root, Path::new("/dev/shm/forebay"));
    }

    #[tokio::test]
    async fn a_pod_of_another_namespace_needs_the_dataset_to_be_shared_with_its_own() {
        let status = json!({"version": {"id": "c1", "files": 3, "size": "1Ki", "bytes": 1024, "observedAt": "2026-01-01T00:00:00Z"}});
        let mut dataset = dataset(&status);
        let resolve = |dataset: &serde_json::Value, name: &str, namespace: Option<&str>, pod: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), json!([runtime("/var/lib/forebay"), dataset]).to_string()).unwrap();
            let pod = Pod { namespace: pod.into(), name: "p".into(), uid: "u".into() };
            let (namespace, dataset, pod) = (namespace.map(Into::into), name.into(), Some(pod));
            let attributes = Attributes { namespace, dataset, pod, inline: true, ..Attributes::default() };
            async move { Datasets::File(file.path().into()).resolve("csi-1", &attributes, &paths()).await }
        };
        resolve(&dataset, "images", None, "training").await.unwrap();
        let denied = resolve(&dataset, "images", Some("training"), "b").await.unwrap_err();
        assert!(matches!(&denied, ResolveError::Denied(message) if message.contains("spec.sharedWith")), "{denied}");
        let nothing = resolve(&dataset, "nothing", Some("training"), "b").await.unwrap_err().to_string();
        assert_eq!(nothing, denied.to_string().replace("images", "nothing"));
        dataset["spec"]["sharedWith"] = json!({"namespaces": ["a", "b"]});
        assert!(resolve(&dataset, "images", Some("training"), "b").await.is_ok());
        resolve(&dataset, "images", Some("training"), "c").await.unwrap_err();
    }

    #[tokio::test]
    async fn a_dataset_that_is_not_ready_says_why_in_its_own_words() {
        let status = json!({"conditions": [
            condition("Ready", "False", "NotCatalogued", "it is not catalogued"),
            condition("RuntimeAvailable", "True", "Available", "it is there"),
            condition("Catalogued", "False", "BucketNotFound", "bucket b does not exist.")]});
        let error = resolve(json!([runtime("/var/lib/forebay"), dataset(&status)]), "u-1").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "Dataset training/images has no version yet: bucket b does not exist (BucketNotFound)"
        );
        let error = resolve(json!([dataset(&json!({}))]), "u-1").await.unwrap_err().to_string();
        assert!(error.contains("CacheRuntime forebay/pool, which does not exist: it has no conditions yet"), "{error}");
    }

    #[tokio::test]
    async fn a_cache_folder_outside_the_cache_roots_and_another_datasets_volume_are_refused() {
        let status = json!({"version": {"id": "c1", "files": 3, "size": "1Ki", "bytes": 1024, "observedAt": "2026-01-01T00:00:00Z"}});
        let error = resolve(json!([runtime("/etc"), dataset(&status)]), "u-1").await.unwrap_err();
        assert!(matches!(&error, ResolveError::Wrong(message) if message.contains("cacheRoots")), "{error}");
        let error = resolve(json!([runtime("/var/lib/forebay"), dataset(&status)]), "u-0").await.unwrap_err();
        assert!(matches!(&error, ResolveError::Wrong(message) if message.contains("has been deleted")), "{error}");
    }
}
