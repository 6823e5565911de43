//! A volume's attributes: what its PersistentVolume or the pod's inline volume says, and what the kubelet adds about the pod.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use crate::volumes::Pod;

/// What the kubelet adds begins with this.
const KUBELET: &str = "csi.storage.k8s.io/";

/// What a volume may say.
const KNOWN: [&str; 3] = ["namespace", "dataset", "path"];

/// What the operator adds for those who look at the volume. The Dataset decides.
const FOR_PEOPLE: [&str; 2] = ["runtime", "runtimeNamespace"];

/// The attributes, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The Dataset's namespace, if it is named.
    pub namespace: Option<String>,
    /// The Dataset's name.
    pub dataset: String,
    /// The folder of the tree to show; empty for all of it.
    pub path: PathBuf,
    /// The pod, if the kubelet says.
    pub pod: Option<Pod>,
    /// An inline volume of a pod.
    pub inline: bool,
}

impl Attributes {
    /// Reads the attributes; what is wrong with them, if anything is.
    pub fn read(attributes: &HashMap<String, String>) -> Result<Self, String> {
        let is_known = |key: &str| KNOWN.contains(&key) || FOR_PEOPLE.contains(&key);
        // Those of others have a domain.
        let unknown = attributes.keys().find(|key| !key.contains('/') && !is_known(key));
        if let Some(unknown) = unknown {
            return Err(format!("the volume's attribute {unknown} is not known: namespace, dataset and path are"));
        }
        let attribute = |name: &str| attributes.get(name).filter(|value| !value.is_empty()).cloned();
        let pod = pod(attributes);
        let inline = is_inline(attributes);
        let (namespace, dataset) = (attribute("namespace"), attribute("dataset"));
        let Some(dataset) = dataset.filter(|_| inline || namespace.is_some()) else {
            let needed = if inline { "dataset" } else { "namespace and dataset" };
            return Err(format!("the volume's attributes name no Dataset: they must have {needed}"));
        };
        if inline && pod.is_none() {
            return Err(
                "the kubelet does not say whose inline volume it is: the CSIDriver object must have podInfoOnMount"
                    .into(),
            );
        }
        let path = folder(attribute("path").unwrap_or_default().as_ref())?;
        Ok(Self { namespace, dataset, path, pod, inline })
    }
}

/// The pod that the volume is for, if the kubelet says.
pub fn pod(attributes: &HashMap<String, String>) -> Option<Pod> {
    let of_pod =
        |name: &str| attributes.get(&format!("{KUBELET}pod.{name}")).filter(|value| !value.is_empty()).cloned();
    Some(Pod {
        namespace: of_pod("namespace")?,
        name: of_pod("name").unwrap_or_default(),
        uid: of_pod("uid").unwrap_or_default(),
    })
}

/// Whether these are the attributes of a pod's inline volume.
pub fn is_inline(attributes: &HashMap<String, String>) -> bool {
    attributes.get(&format!("{KUBELET}ephemeral")).is_some_and(|value| value == "true")
}

/// A folder's path within the tree, whatever slashes it has around it.
fn folder(path: &Path) -> Result<PathBuf, String> {
    let mut folder = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => folder.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(format!(
                    "the volume's attribute path is {}: it must stay within the Dataset",
                    path.display()
                ));
            }
        }
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(attributes: &[(&str, &str)]) -> Result<Attributes, String> {
        Attributes::read(&attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn the_attributes_of_the_operators_volumes_are_known() {
        let volume =
            [("namespace", "training"), ("dataset", "images"), ("runtimeNamespace", "forebay"), ("runtime", "pool")];
        assert_eq!(read(&volume).unwrap().dataset, "images");
        assert!(read(&[("namespace", "a"), ("dataset", "b"), ("paht", "c")]).unwrap_err().contains("paht"));
    }

    #[test]
    fn an_inline_volume_needs_no_namespace_and_a_persistent_one_does() {
        let inline = [
            ("dataset", "images"),
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.namespace", "b"),
        ];
        let attributes = read(&inline).unwrap();
        assert!(attributes.inline && attributes.namespace.is_none());
        assert_eq!(attributes.pod.unwrap().namespace, "b");
        assert!(read(&inline[..2]).unwrap_err().contains("podInfoOnMount"));
        assert!(read(&inline[..1]).unwrap_err().contains("must have namespace and dataset"));
        assert!(read(&inline[1..]).unwrap_err().contains("must have dataset"));
    }

    #[test]
    fn a_path_stays_within_the_tree_and_what_is_not_known_is_refused() {
        let with = |path| read(&[("namespace", "a"), ("dataset", "d"), ("path", path)]);
        for (path, folder) in [("", ""), ("/", ""), ("a/b", "a/b"), ("/a//b/", "a/b"), ("./a", "a")] {
            assert_eq!(with(path).unwrap().path, Path::new(folder), "{path}");
        }
        for path in ["..", "a/../b", "/../a"] {
            assert!(with(path).is_err(), "{path}");
        }
        let error = read(&[("namespace", "a"), ("dataset", "d"), ("subpath", "x")]).unwrap_err();
        assert!(error.contains("subpath is not known"), "{error}");
        read(&[("namespace", "a"), ("dataset", "d"), ("storage.kubernetes.io/csiProvisionerIdentity", "x")]).unwrap();
    }
}
