//! Writing a Dataset's volume and claim, and removing them in order: claim, volume, content on the nodes.

use forebay_crds::Dataset;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};

use serde_json::json;

use super::build::{claim, volume, volume_name};
use super::validate::ValidDataset;
use crate::context::Context;
use crate::problem::{Error, Problem, found};

/// Annotation of a claim that waits to be bound; only its change counts.
const BIND_AGAIN: &str = "forebay.dev/bind-requested-at";

/// Applies volume and claim; true once they are bound to each other.
pub async fn apply(context: &Context, owner: &Dataset, dataset: &ValidDataset) -> Result<bool, Error> {
    let volumes = Api::<PersistentVolume>::all(context.client.clone());
    let volume = volume(dataset);
    let name = volume_name(&dataset.namespace, &dataset.name);
    let claims = Api::<PersistentVolumeClaim>::namespaced(context.client.clone(), &dataset.namespace);
    let claim = claim(owner, dataset);
    // The claim first: a volume whose claim is not there yet would be bound to it all the same, but a claim that names a volume says why it waits.
    if context.applied.apply(&claims, &claim).await? {
        drop_stale_volume(&volumes, &name, dataset).await?;
    }
    context.applied.apply(&volumes, &volume).await?;
    if !context.is_bound(&dataset.uid) && bind(&claims, &dataset.name).await? {
        context.set_bound(&dataset.uid);
    }
    Ok(context.is_bound(&dataset.uid))
}

/// Whether the claim is bound. Kubernetes looks at a claim whose volume was not there yet only every 15 s, or when the claim changes: so it is
/// changed.
async fn bind(claims: &Api<PersistentVolumeClaim>, name: &str) -> Result<bool, Error> {
    let read = Error::api(format!("reading the PersistentVolumeClaim {name}"));
    let Some(claim) = found(claims.get(name).await).map_err(read)? else { return Ok(false) };
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    if phase == Some("Bound") || claim.metadata.deletion_timestamp.is_some() {
        return Ok(phase == Some("Bound"));
    }
    let patch = json!({"metadata": {"annotations": {BIND_AGAIN: Timestamp::now().to_string()}}});
    let patched = claims.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await;
    patched.map_err(Error::api(format!("annotating the PersistentVolumeClaim {name}")))?;
    Ok(false)
}

/// A volume is bound to one claim and one handle for its life. When somebody deleted the claim, or a Dataset of this name was deleted the hard
/// way, the volume must be made anew; it holds nothing.
async fn drop_stale_volume(volumes: &Api<PersistentVolume>, name: &str, dataset: &ValidDataset) -> Result<(), Error> {
    let existing =
        found(volumes.get(name).await).map_err(Error::api(format!("reading the PersistentVolume {name}")))?;
    let Some(existing) = existing else { return Ok(()) };
    let handle = existing.spec.as_ref().and_then(|spec| spec.csi.as_ref()).map(|csi| csi.volume_handle.as_str());
    let released = existing.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Released");
    if released || handle != Some(dataset.uid.as_str()) {
        tracing::info!(volume = name, "making the volume anew: it was bound to another claim");
        let deleted = found(volumes.delete(name, &DeleteParams::default()).await);
        deleted.map_err(Error::api(format!("deleting the PersistentVolume {name}")))?;
    }
    Ok(())
}

/// Carries the removal one step on; `None` when claim and volume are gone. `users` are the pods that still use the claim.
pub async fn remove(context: &Context, dataset: &Dataset, users: &[String]) -> Result<Option<Problem>, Error> {
    let (namespace, name) = (dataset.namespace().unwrap_or_default(), dataset.name_any());
    let claims = Api::<PersistentVolumeClaim>::namespaced(context.client.clone(), &namespace);
    let claim = found(claims.get(&name).await)
        .map_err(Error::api(format!("reading the PersistentVolumeClaim {namespace}/{name}")))?;
    let ours = |claim: &PersistentVolumeClaim| {
        claim.owner_references().iter().any(|owner| Some(&owner.uid) == dataset.metadata.uid.as_ref())
    };
    if let Some(claim) = claim.filter(ours) {
        if claim.metadata.deletion_timestamp.is_none() {
            context.applied.forget::<PersistentVolumeClaim>(&namespace, &name);
            let deleted = found(claims.delete(&name, &DeleteParams::default()).await);
            deleted.map_err(Error::api(format!("deleting the PersistentVolumeClaim {namespace}/{name}")))?;
        }
        let message = match users {
            [] => format!("the PersistentVolumeClaim {namespace}/{name} is being deleted"),
            users => format!(
                "pods use the PersistentVolumeClaim {namespace}/{name}: {}; the Dataset goes when they are gone",
                users.join(", ")
            ),
        };
        return Ok(Some(Problem::new(if users.is_empty() { "Deleting" } else { "InUse" }, message)));
    }
    let volume = volume_name(&namespace, &name);
    let volumes = Api::<PersistentVolume>::all(context.client.clone());
    let existing =
        found(volumes.get(&volume).await).map_err(Error::api(format!("reading the PersistentVolume {volume}")))?;
    let Some(existing) = existing else { return Ok(None) };
    if existing.metadata.deletion_timestamp.is_none() {
        context.applied.forget::<PersistentVolume>("", &volume);
        let deleted = found(volumes.delete(&volume, &DeleteParams::default()).await);
        deleted.map_err(Error::api(format!("deleting the PersistentVolume {volume}")))?;
    }
    Ok(Some(Problem::new("Deleting", format!("the PersistentVolume {volume} is being deleted"))))
}
