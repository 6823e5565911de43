//! What a Dataset becomes: an entry of `runtime.yaml`, a PersistentVolume and a claim. Pure: types in, types out.

use forebay_crds::Dataset;
use forebay_protocol::config::{DatasetConfig, MountConfig, SourceConfig};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::Resource as _;
use serde_json::json;

use super::dereference::CredentialsBySecret;
use super::validate::ValidDataset;
use crate::objects::typed;
use crate::problem::Problem;

/// The CSI driver.
pub const DRIVER: &str = "csi.forebay.dev";

/// The size a volume has until the Dataset's is known; a claim must have one, and nothing is ever written.
const NOMINAL_BYTES: u64 = 1 << 30;

/// The Dataset's entry of `runtime.yaml`. `credentials` must have those of every Secret that a source names.
pub fn config_entry(dataset: &ValidDataset, credentials: &CredentialsBySecret) -> Result<DatasetConfig, Problem> {
    let mut mounts = Vec::new();
    for mount in &dataset.mounts {
        let credentials = match &mount.secret {
            None => None,
            Some(name) => Some(credentials.get(name).cloned().ok_or_else(|| {
                Problem::new(
                    "SecretNotFound",
                    format!("the Secret {}/{name} of the source {} is not there", dataset.namespace, mount.url),
                )
            })?),
        };
        mounts.push(MountConfig {
            path: mount.path.clone(),
            sources: vec![SourceConfig {
                url: mount.url.clone(),
                endpoint: mount.endpoint.clone(),
                region: mount.region.clone(),
                credentials,
            }],
        });
    }
    Ok(DatasetConfig {
        uid: dataset.uid.clone(),
        namespace: dataset.namespace.clone(),
        name: dataset.name.clone(),
        mounts,
        access: dataset.access.clone(),
        placement: dataset.placement,
        pin: dataset.pin.clone(),
        capacity_bytes: dataset.capacity_bytes,
        preload: dataset.preload.clone(),
        catalog: dataset.catalog.clone(),
    })
}

/// The volume's name. A namespace has no dot, so two Datasets never share one.
pub fn volume_name(namespace: &str, name: &str) -> String {
    format!("forebay-{namespace}.{name}")
}

/// The static volume of a Dataset, bound to its claim from the start.
pub fn volume(dataset: &ValidDataset) -> PersistentVolume {
    let runtime = dataset.runtime.as_ref();
    typed(json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": volume_name(&dataset.namespace, &dataset.name),
            "labels": {
                "app.kubernetes.io/managed-by": crate::NAME,
                "forebay.dev/dataset-namespace": dataset.namespace,
                "forebay.dev/dataset-uid": dataset.uid,
            },
        },
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "capacity": {"storage": NOMINAL_BYTES.to_string()},
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": dataset.namespace, "name": dataset.name},
            "csi": {
                "driver": DRIVER,
                "volumeHandle": dataset.uid,
                "readOnly": true,
                "volumeAttributes": {
                    "namespace": dataset.namespace,
                    "dataset": dataset.name,
                    "runtimeNamespace": runtime.map(|runtime| &runtime.namespace),
                    "runtime": runtime.map(|runtime| &runtime.name),
                },
            },
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "volumeMode": "Filesystem",
        },
    }))
}

/// The claim that pods name.
pub fn claim(owner: &Dataset, dataset: &ValidDataset) -> PersistentVolumeClaim {
    typed(json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": dataset.name,
            "namespace": dataset.namespace,
            "labels": {"app.kubernetes.io/managed-by": crate::NAME},
            "ownerReferences": owner.controller_owner_ref(&()).map(|reference| vec![reference]),
        },
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "resources": {"requests": {"storage": NOMINAL_BYTES.to_string()}},
            "storageClassName": "",
            "volumeMode": "Filesystem",
            "volumeName": volume_name(&dataset.namespace, &dataset.name),
        },
    }))
}

#[cfg(test)]
mod tests {
    use forebay_protocol::config::Credentials;

    use super::super::validate::{tests::dataset, validate};
    use super::*;

    fn credentials() -> CredentialsBySecret {
        let pair = Credentials { access_key_id: "me".into(), secret_access_key: "hidden".into(), session_token: None };
        CredentialsBySecret::from([("cloud".to_owned(), pair)])
    }

    #[test]
    fn the_entry_has_the_sources_with_their_credentials() {
        let valid = validate(&dataset(|value| {
            value["spec"]["preload"] = json!({});
            value["spec"]["placement"] = json!({"replicas": 2});
            value["spec"]["pin"] = json!({});
        }))
        .unwrap();
        let entry = config_entry(&valid, &credentials()).unwrap();
        assert_eq!(entry.full_name(), "training/images");
        assert_eq!(entry.mounts[0].sources[0].credentials.as_ref().unwrap().access_key_id, "me");
        assert!(entry.preload.is_some() && entry.pin.is_some() && entry.catalog.is_none());
        assert_eq!(entry.placement.replicas, 2);
        let problem = config_entry(&valid, &CredentialsBySecret::new()).unwrap_err();
        assert_eq!(problem.reason, "SecretNotFound");
    }

    #[test]
    fn volume_and_claim_name_each_other_and_nothing_provisions_them() {
        let owner = dataset(|_| {});
        let valid = validate(&owner).unwrap();
        let (volume, claim) =
            (serde_json::to_value(volume(&valid)).unwrap(), serde_json::to_value(claim(&owner, &valid)).unwrap());
        assert_eq!(claim["spec"]["volumeName"], volume["metadata"]["name"]);
        assert_eq!(volume["spec"]["claimRef"]["name"], claim["metadata"]["name"]);
        assert_eq!(volume["spec"]["csi"]["volumeHandle"], "u1");
        assert_eq!(
            volume["spec"]["csi"]["volumeAttributes"],
            json!({"namespace": "training", "dataset": "images", "runtimeNamespace": "forebay", "runtime": "pool"})
        );
        for object in [&volume, &claim] {
            assert_eq!(object["spec"]["accessModes"], json!(["ReadOnlyMany"]));
            assert_eq!(object["spec"]["storageClassName"], "");
        }
        assert_eq!(volume["spec"]["persistentVolumeReclaimPolicy"], "Retain");
        assert_eq!(claim["metadata"]["ownerReferences"][0]["uid"], "u1");
    }
}
