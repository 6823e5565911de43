//! What a CacheRuntime's reconciliation needs of others: its pods, its Secrets, and the Datasets that refer to it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use forebay_crds::Dataset;
use forebay_protocol::config::{DatasetConfig, RuntimeConfig, RuntimeName};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};

use super::build::{NODE_PORT, RUNTIME_LABEL, config_name, identity_name, read_config};
use crate::context::Context;
use crate::dataset::dereference::{NOT_ALLOWED, resolve};
use crate::dataset::{is_being_removed, runtime_name};
use crate::identity::RuntimeIdentity;
use crate::nodes::Target;
use crate::problem::{Error, found};

/// The runtime's pods, by name.
pub async fn pods(context: &Context, runtime: &RuntimeName) -> Result<Vec<Pod>, Error> {
    let parameters = ListParams::default().labels(&format!("{RUNTIME_LABEL}={}", runtime.name));
    let list = Api::<Pod>::namespaced(context.client.clone(), &runtime.namespace).list(&parameters).await;
    let mut pods = list.map_err(Error::api(format!("listing the pods of the CacheRuntime {runtime}")))?.items;
    pods.sort_by_key(kube::ResourceExt::name_any);
    Ok(pods)
}

/// Where the cache node of a pod answers, once the pod has an address.
pub fn address(pod: &Pod) -> Option<SocketAddr> {
    let status = pod.status.as_ref()?;
    let running = matches!(status.phase.as_deref(), Some("Running" | "Pending"));
    let ip = status.pod_ip.as_ref().filter(|_| running)?.parse().ok()?;
    Some(SocketAddr::new(ip, NODE_PORT))
}

/// The pods that have an address.
pub fn targets(pods: &[Pod]) -> Vec<Target> {
    let target = |pod: &Pod| {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        Some(Target { pod: pod.name_any(), node, address: address(pod)? })
    };
    pods.iter().filter_map(target).collect()
}

/// The runtime's identity, made when there is none, renewed when it is near its end.
pub async fn identity(context: &Context, runtime: &RuntimeName) -> Result<RuntimeIdentity, Error> {
    let now = Timestamp::now();
    let known = match context.runtime(runtime, |memory| memory.identity.clone()) {
        Some(identity) => Some(identity),
        None => secret(context, &runtime.namespace, &identity_name(&runtime.name)).await?.and_then(|secret| {
            let data = secret.data.unwrap_or_default();
            RuntimeIdentity::from_data(&data)
        }),
    };
    let identity = match known {
        Some(identity) => identity.renewed(&runtime.to_string(), now)?,
        None => RuntimeIdentity::generate(&runtime.to_string(), now)?,
    };
    context.runtime(runtime, |memory| memory.identity = Some(identity.clone()));
    Ok(identity)
}

/// Makes sure that what an earlier operator published is known, before anything is published.
pub async fn recall(context: &Context, runtime: &RuntimeName) -> Result<(), Error> {
    if context.runtime(runtime, |memory| memory.recalled) {
        return Ok(());
    }
    let secret = secret(context, &runtime.namespace, &config_name(&runtime.name)).await?;
    let config = secret.as_ref().and_then(read_config);
    context.runtime(runtime, |memory| {
        if let Some(config) = &config {
            memory.membership.restore(&config.members, Instant::now());
        }
        // One that can't be read, of another version of the operator, may have had any: nodes must not be told to drop them.
        memory.open = secret.is_some() && config.as_ref().is_none_or(|config| !config.datasets.is_empty());
        memory.published = config.map(Arc::new);
        memory.recalled = true;
    });
    Ok(())
}

async fn secret(context: &Context, namespace: &str, name: &str) -> Result<Option<Secret>, Error> {
    let api = Api::<Secret>::namespaced(context.client.clone(), namespace);
    found(api.get(name).await).map_err(Error::api(format!("reading the Secret {namespace}/{name}")))
}

/// The Datasets that refer to the runtime, by namespace and name.
pub fn datasets(context: &Context, runtime: &RuntimeName) -> Vec<Arc<Dataset>> {
    let mut datasets = context.dataset_store.state_filter(|dataset| runtime_name(dataset).as_ref() == Some(runtime));
    datasets.sort_by_key(|dataset| (dataset.namespace(), dataset.name_any()));
    datasets
}

/// Pods that use one of the Datasets, by node.
pub fn readers(datasets: &[Arc<Dataset>]) -> BTreeMap<String, Vec<String>> {
    let mut readers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for dataset in datasets {
        let namespace = dataset.namespace().unwrap_or_default();
        for mounted in dataset.status.iter().flat_map(|status| &status.mounted_on) {
            let pods = mounted.pods.iter().map(|pod| format!("{namespace}/{pod}"));
            readers.entry(mounted.node.clone()).or_default().extend(pods);
        }
    }
    for pods in readers.values_mut() {
        pods.sort();
        pods.dedup();
    }
    readers
}

/// The entries of the configuration. A Dataset with a problem never blocks others: it is left out if it is new, and stays as it was if nodes
/// hold its content already, for a Secret that is being replaced is no reason to throw the content away.
pub async fn entries(
    context: &Context,
    datasets: &[Arc<Dataset>],
    previous: Option<&RuntimeConfig>,
) -> Result<Vec<DatasetConfig>, Error> {
    let mut entries = Vec::new();
    for dataset in datasets.iter().filter(|dataset| !is_being_removed(dataset)) {
        let uid = dataset.uid().unwrap_or_default();
        let before = previous.and_then(|config| config.datasets.iter().find(|entry| entry.uid == uid)).cloned();
        let entry = match resolve(context, dataset).await? {
            // One that is being deleted is not begun.
            Ok(entry) if dataset.metadata.deletion_timestamp.is_none() || before.is_some() => Some(entry),
            Ok(_) => None,
            Err(problem) if problem.reason == NOT_ALLOWED => None,
            Err(_) => before,
        };
        entries.extend(entry);
    }
    Ok(entries)
}
