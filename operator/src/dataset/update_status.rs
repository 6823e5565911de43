//! Writing a Dataset's status, when it changed, and saying what changed in Events.

use forebay_crds::{Dataset, DatasetStatus};
use kube::{Api, ResourceExt as _};

use crate::context::Context;
use crate::events::publish_transitions;
use crate::objects::apply_status;
use crate::problem::Error;

/// Writes `status` if it is not what the Dataset has.
pub async fn update_status(context: &Context, dataset: &Dataset, status: &DatasetStatus) -> Result<(), Error> {
    if dataset.status.as_ref() == Some(status) {
        return Ok(());
    }
    let api = Api::<Dataset>::namespaced(context.client.clone(), &dataset.namespace().unwrap_or_default());
    apply_status(&api, &dataset.name_any(), status).await?;
    let old = dataset.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    publish_transitions(&context.recorder, dataset, old, &status.conditions).await;
    Ok(())
}
