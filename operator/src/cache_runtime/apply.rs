//! Writing what a CacheRuntime owns. The configuration's Secret has this one writer.

use forebay_crds::CacheRuntime;
use forebay_protocol::config::RuntimeConfig;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{EvictParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

use super::build::{REVISION_ANNOTATION, RuntimeObjects, config_secret, identity_secret};
use super::validate::ValidRuntime;
use crate::context::Context;
use crate::identity::RuntimeIdentity;
use crate::problem::Error;

/// Applies the Secrets: the identity first, since what is not kept would be made anew.
pub async fn secrets(
    context: &Context,
    owner: &CacheRuntime,
    runtime: &ValidRuntime,
    identity: &RuntimeIdentity,
    config: &RuntimeConfig,
) -> Result<(), Error> {
    let api = Api::<Secret>::namespaced(context.client.clone(), &runtime.name.namespace);
    context.applied.apply(&api, &identity_secret(owner, runtime, identity)).await?;
    context.applied.apply(&api, &config_secret(owner, runtime, config, identity)?).await?;
    Ok(())
}

/// Applies everything else.
pub async fn objects(context: &Context, runtime: &ValidRuntime, objects: &RuntimeObjects) -> Result<(), Error> {
    fn api<K>(client: &Client, namespace: &str) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(client.clone(), namespace)
    }
    let (client, namespace) = (&context.client, runtime.name.namespace.as_str());
    context.applied.apply(&api(client, namespace), &objects.service_account).await?;
    context.applied.apply(&api(client, namespace), &objects.service).await?;
    context.applied.apply(&api(client, namespace), &objects.disruption_budget).await?;
    context.applied.apply(&api(client, namespace), &objects.stateful_set).await?;
    Ok(())
}

/// Writes the revision on pods that don't have it: the kubelet then refreshes the mounted Secret within a second or two instead of a minute or two.
pub async fn touch(client: &Client, namespace: &str, pods: &[Pod], revision: &str) {
    let api = Api::<Pod>::namespaced(client.clone(), namespace);
    let patch = json!({"metadata": {"annotations": {REVISION_ANNOTATION: revision}}});
    for pod in
        pods.iter().filter(|pod| pod.annotations().get(REVISION_ANNOTATION).is_none_or(|known| known != revision))
    {
        let name = pod.name_any();
        // A pod may be gone by now; the next look tells.
        if let Err(error) = api.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            tracing::debug!(pod = name, %error, "annotating a pod");
        }
    }
}

/// Evicts pods whose cache nodes have left. A disruption budget that says "not now" is asked again at the next look.
pub async fn evict(client: &Client, namespace: &str, pods: &[String]) {
    let api = Api::<Pod>::namespaced(client.clone(), namespace);
    for pod in pods {
        if let Err(error) = api.evict(pod, &EvictParams::default()).await {
            tracing::info!(pod, %error, "evicting the pod of a cache node that has left; it is tried again");
        }
    }
}
