//! Writing objects: server-side apply under one field manager, finalizers, and labels. What was applied a moment ago is not applied again, since
//! reconciliations come every second or two while something loads.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::api::{Api, Patch, PatchParams};
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::problem::Error;

/// Drift of an unchanged object is healed after this long.
const REAPPLY: Duration = Duration::from_secs(30);

/// What was applied lately: hash and time by kind, namespace and name.
#[derive(Debug, Default)]
pub struct Applied(Mutex<HashMap<String, (blake3::Hash, Instant)>>);

impl Applied {
    /// Applies `object` unless exactly this was applied within the last half minute; returns whether it did.
    pub async fn apply<K>(&self, api: &Api<K>, object: &K) -> Result<bool, Error>
    where
        K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + Debug,
    {
        let name = object.name_any();
        let key = format!("{}/{}/{name}", K::kind(&()), object.namespace().unwrap_or_default());
        let action = || format!("applying {key}");
        let value = serde_json::to_value(object).map_err(kube::Error::SerdeError).map_err(Error::api(action()))?;
        let hash = blake3::hash(value.to_string().as_bytes());
        let recent = self.entries().get(&key).is_some_and(|(known, at)| *known == hash && at.elapsed() < REAPPLY);
        if recent {
            return Ok(false);
        }
        let parameters = PatchParams::apply(crate::NAME).force();
        api.patch(&name, &parameters, &Patch::Apply(value)).await.map_err(Error::api(action()))?;
        self.entries().insert(key, (hash, Instant::now()));
        Ok(true)
    }

    /// Makes the next `apply` of an object go through.
    pub fn forget<K: Resource<DynamicType = ()>>(&self, namespace: &str, name: &str) {
        self.entries().remove(&format!("{}/{namespace}/{name}", K::kind(&())));
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<String, (blake3::Hash, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A typed object from JSON that this program wrote itself.
///
/// # Panics
/// When the JSON is not of the type, which the tests of the builders rule out.
#[allow(clippy::expect_used, reason = "the JSON is our own, and every builder has a test")]
pub fn typed<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("an object of our own making")
}

/// Adds a finalizer; fails, to be tried again, when the object changed meanwhile.
pub async fn add_finalizer<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<(), Error>
where
    K: Resource + DeserializeOwned + Clone + Debug,
{
    if object.finalizers().iter().any(|present| present == finalizer) {
        return Ok(());
    }
    let mut finalizers = object.finalizers().to_vec();
    finalizers.push(finalizer.to_owned());
    set_finalizers(api, object, finalizers).await
}

/// Removes a finalizer, likewise.
pub async fn remove_finalizer<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<(), Error>
where
    K: Resource + DeserializeOwned + Clone + Debug,
{
    let finalizers = object.finalizers().iter().filter(|present| *present != finalizer).cloned().collect();
    match set_finalizers(api, object, finalizers).await {
        Err(Error::Api { source, .. }) if matches!(*source, kube::Error::Api(ref status) if status.code == 404) => {
            Ok(())
        }
        result => result,
    }
}

async fn set_finalizers<K>(api: &Api<K>, object: &K, finalizers: Vec<String>) -> Result<(), Error>
where
    K: Resource + DeserializeOwned + Clone + Debug,
{
    let patch = json!({"metadata": {"resourceVersion": object.resource_version(), "finalizers": finalizers}});
    let name = object.name_any();
    api.patch(&name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map(drop)
        .map_err(Error::api(format!("setting the finalizers of {name}")))
}

/// Writes a status by server-side apply.
pub async fn apply_status<K>(api: &Api<K>, name: &str, status: &impl Serialize) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug,
{
    let patch =
        json!({"apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": {"name": name}, "status": status});
    let parameters = PatchParams::apply(crate::NAME).force();
    api.patch_status(name, &parameters, &Patch::Apply(patch))
        .await
        .map(drop)
        .map_err(Error::api(format!("writing the status of {name}")))
}

/// The labels of everything that belongs to a runtime.
pub fn runtime_labels(runtime: &str) -> Value {
    json!({
        "app.kubernetes.io/name": "forebay",
        "app.kubernetes.io/component": "cache-node",
        "app.kubernetes.io/instance": runtime,
        "app.kubernetes.io/managed-by": crate::NAME,
    })
}
