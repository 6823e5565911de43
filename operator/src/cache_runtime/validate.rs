//! From a CacheRuntime's spec to one that can't be wrong. The API server has checked all but the folders; this checks everything again, since it
//! costs nothing and a CRD may be older than the operator.

use std::path::{Path, PathBuf};

use forebay_crds::{CacheRuntime, LabelSelector, Medium, Toleration};
use forebay_protocol::config::RuntimeName;
use forebay_protocol::layout::CacheLayout;

use crate::problem::Problem;

/// A CacheRuntime that can be built.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidRuntime {
    /// Namespace and name.
    pub name: RuntimeName,
    /// Which nodes of the cluster.
    pub selector: LabelSelector,
    /// What their pods tolerate.
    pub tolerations: Vec<Toleration>,
    /// How many; one per matching node when absent.
    pub replicas: Option<i32>,
    /// Bytes that each cache node may use.
    pub capacity_bytes: u64,
    /// The storage's folder on each node.
    pub host_path: PathBuf,
}

impl ValidRuntime {
    /// The cache folder: the runtime's own below the storage's.
    pub fn cache_dir(&self) -> PathBuf {
        CacheLayout::under_host_path(&self.host_path, &self.name).root().to_owned()
    }
}

/// Checks a CacheRuntime against what is supported and against the folders that the operator was allowed.
pub fn validate(runtime: &CacheRuntime, cache_roots: &[PathBuf], run_dir: &Path) -> Result<ValidRuntime, Problem> {
    let name = RuntimeName {
        namespace: runtime.metadata.namespace.clone().unwrap_or_default(),
        name: runtime.metadata.name.clone().unwrap_or_default(),
    };
    let spec = &runtime.spec;
    let unsupported =
        |field: &str| Err(Problem::new("NotSupported", format!("{field} is not supported yet: leave it out")));
    let [tier] = spec.storage.as_slice() else {
        return unsupported("spec.storage with another number of tiers than one");
    };
    if tier.medium == Medium::Memory {
        return unsupported("spec.storage[].medium Memory");
    }
    if tier.volume_claim_template.is_some() {
        return unsupported("spec.storage[].volumeClaimTemplate");
    }
    if !spec.links.is_empty() {
        return unsupported("spec.links");
    }
    if spec.access.as_ref().is_some_and(|access| !access.quotas.is_empty()) {
        return unsupported("spec.access.quotas");
    }
    let enabled =
        |protocol: &Option<forebay_crds::GatewayProtocol>| protocol.as_ref().is_some_and(|protocol| protocol.enabled);
    if spec.gateway.as_ref().is_some_and(|gateway| enabled(&gateway.s3) || enabled(&gateway.webhdfs)) {
        return unsupported("spec.gateway");
    }
    let capacity_bytes = tier
        .capacity
        .value()
        .map_err(|error| Problem::new("InvalidSpec", format!("spec.storage[].capacity: {error}")))?;
    let Some(host_path) = tier.host_path.as_deref() else {
        return Err(Problem::new("InvalidSpec", "spec.storage[].hostPath is required for a tier of medium Disk"));
    };
    let host_path = allowed_host_path(host_path, cache_roots, run_dir)?;
    let nodes = spec.nodes.clone().unwrap_or_default();
    Ok(ValidRuntime {
        name,
        selector: nodes.selector.unwrap_or_default(),
        tolerations: nodes.tolerations,
        replicas: nodes.replicas,
        capacity_bytes,
        host_path,
    })
}

/// The operator makes this folder as root, so who may create CacheRuntimes must not choose any.
fn allowed_host_path(path: &str, cache_roots: &[PathBuf], run_dir: &Path) -> Result<PathBuf, Problem> {
    let normalised =
        path.starts_with('/') && !path[1..].split('/').any(|part| part.is_empty() || part == "." || part == "..");
    let path = PathBuf::from(path);
    let inside = cache_roots.iter().any(|root| path.starts_with(root));
    if normalised && inside && !path.starts_with(run_dir) {
        return Ok(path);
    }
    let roots = cache_roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", ");
    Err(Problem::new(
        "HostPathNotAllowed",
        format!(
            "spec.storage[].hostPath {} is not under a cache root of this cluster ({roots}): choose a folder there, or add a root to the chart's \
             value cacheRoots; the field is immutable, so create the CacheRuntime anew",
            path.display()
        ),
    ))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn runtime(host_path: &str) -> CacheRuntime {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "forebay.dev/v1alpha1", "kind": "CacheRuntime",
            "metadata": {"name": "pool", "namespace": "forebay", "uid": "u", "generation": 1},
            "spec": {"storage": [{"medium": "Disk", "capacity": "2Gi", "hostPath": host_path}]},
        }))
        .unwrap()
    }

    pub(crate) fn check(runtime: &CacheRuntime) -> Result<ValidRuntime, Problem> {
        validate(runtime, &["/var/lib/forebay".into()], Path::new("/var/lib/forebay/run"))
    }

    #[test]
    fn a_runtime_under_a_cache_root_is_valid() {
        let valid = check(&runtime("/var/lib/forebay/nvme0")).unwrap();
        assert_eq!(valid.capacity_bytes, 2 << 30);
        assert_eq!(valid.cache_dir(), Path::new("/var/lib/forebay/nvme0/forebay.pool"));
    }

    #[test]
    fn a_folder_outside_of_the_cache_roots_is_refused() {
        for path in [
            "/etc",
            "/var/lib/forebay/../../../etc",
            "/var/lib/forebay2",
            "/var/lib/forebay/run",
            "/var/lib/forebay/run/x",
            "/var/lib/forebay//x",
        ] {
            assert_eq!(check(&runtime(path)).unwrap_err().reason, "HostPathNotAllowed", "{path}");
        }
    }

    #[test]
    fn what_is_not_supported_yet_is_refused_by_name() {
        let mut runtime = runtime("/var/lib/forebay");
        runtime.spec.storage[0].medium = Medium::Memory;
        let problem = check(&runtime).unwrap_err();
        assert!(problem.message.contains("Memory is not supported yet"), "{problem}");
    }
}
