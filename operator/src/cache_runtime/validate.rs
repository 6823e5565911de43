//! From a CacheRuntime's spec to one that can't be wrong. The API server has checked all but the folders; this checks everything again, since it
//! costs nothing and a CRD may be older than the operator.

use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_crds::{CacheRuntime, GoDuration, LabelSelector, Medium, StorageTier, Toleration};
use forebay_protocol::config::{DEFAULT_MEMORY_BYTES, MemoryTierConfig, QuotaConfig, RuntimeName};
use forebay_protocol::layout::CacheLayout;

use crate::problem::Problem;

/// Annotation of a CacheRuntime: how long a leaving cache node gets to hand over what it holds, as in `2h`.
pub const DRAIN_PATIENCE_ANNOTATION: &str = "forebay.dev/drain-patience";

/// The patience with a leaving cache node where the annotation says nothing.
pub const DRAIN_PATIENCE: Duration = Duration::from_hours(1);

/// The least memory of a cache node: some chunks on their way and a small index.
const LEAST_MEMORY_BYTES: u64 = 64 << 20;

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
    /// Bytes that each cache node may use of the storage that has everything.
    pub capacity_bytes: u64,
    /// Copies in memory above a disk.
    pub memory_tier: Option<MemoryTier>,
    /// What bounds each cache node's memory.
    pub memory_bytes: u64,
    /// What the Datasets of a namespace may use of the pool together.
    pub quotas: Vec<QuotaConfig>,
    /// How long a leaving cache node gets.
    pub drain_patience: Duration,
    /// The folder on each node of the storage that has everything, on a disk or in memory.
    pub host_path: PathBuf,
    /// That storage is the node's memory.
    pub in_memory: bool,
}

/// Copies in memory above a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryTier {
    /// The folder on each node for the runtimes' own.
    pub root: PathBuf,
    /// Bytes that each cache node's copies may take.
    pub capacity_bytes: u64,
}

/// The folders of the nodes that the operator may use.
#[derive(Clone, Copy, Debug)]
pub struct Roots<'a> {
    /// Under these a disk tier may have its folder.
    pub cache: &'a [PathBuf],
    /// Under this memory tiers are.
    pub memory: &'a Path,
    /// The sockets' folder, which no tier may touch.
    pub run: &'a Path,
}

impl ValidRuntime {
    /// The cache folder: the runtime's own below the storage's.
    pub fn cache_dir(&self) -> PathBuf {
        CacheLayout::under_host_path(&self.host_path, &self.name).root().to_owned()
    }

    /// The memory tier as the cache nodes are told of it.
    pub fn memory_tier(&self) -> Option<MemoryTierConfig> {
        self.memory_tier.as_ref().map(|tier| MemoryTierConfig {
            dir: CacheLayout::under_host_path(&tier.root, &self.name).root().to_owned(),
            capacity_bytes: tier.capacity_bytes,
        })
    }

    /// Bytes of the node's memory that cached content may take, in files of a tmpfs, which count as the pod's.
    pub fn content_in_memory_bytes(&self) -> u64 {
        let whole = if self.in_memory { self.capacity_bytes } else { 0 };
        whole + self.memory_tier.as_ref().map_or(0, |tier| tier.capacity_bytes)
    }
}

/// Checks a CacheRuntime against what is supported and against the folders that the operator was allowed.
pub fn validate(runtime: &CacheRuntime, roots: Roots<'_>) -> Result<ValidRuntime, Problem> {
    let name = RuntimeName {
        namespace: runtime.metadata.namespace.clone().unwrap_or_default(),
        name: runtime.metadata.name.clone().unwrap_or_default(),
    };
    let spec = &runtime.spec;
    if !spec.links.is_empty() {
        return unsupported("spec.links");
    }
    let enabled =
        |protocol: &Option<forebay_crds::GatewayProtocol>| protocol.as_ref().is_some_and(|protocol| protocol.enabled);
    if spec.gateway.as_ref().is_some_and(|gateway| enabled(&gateway.s3) || enabled(&gateway.webhdfs)) {
        return unsupported("spec.gateway");
    }
    let (fast, whole) = match spec.storage.as_slice() {
        [whole] => (None, whole),
        [fast, whole] if (fast.medium, whole.medium) == (Medium::Memory, Medium::Disk) => (Some(fast), whole),
        _ => return unsupported("spec.storage with tiers other than Disk, Memory, or Memory and then Disk"),
    };
    let memory_tier = fast.map(|tier| {
        let root = tier_folder(tier, roots)?;
        Ok(MemoryTier { root, capacity_bytes: capacity(tier)? })
    });
    let nodes = spec.nodes.clone().unwrap_or_default();
    let memory_bytes = match nodes.memory.as_ref().map(forebay_crds::Quantity::value) {
        None => DEFAULT_MEMORY_BYTES,
        Some(Ok(bytes)) if bytes >= LEAST_MEMORY_BYTES => bytes,
        Some(Ok(_)) => return Err(Problem::new("InvalidSpec", "spec.nodes.memory must be at least 64Mi, as in 512Mi")),
        Some(Err(error)) => return Err(Problem::new("InvalidSpec", format!("spec.nodes.memory: {error}"))),
    };
    Ok(ValidRuntime {
        memory_bytes,
        quotas: quotas(runtime)?,
        drain_patience: drain_patience(runtime)?,
        name,
        selector: nodes.selector.unwrap_or_default(),
        tolerations: nodes.tolerations,
        replicas: nodes.replicas,
        capacity_bytes: capacity(whole)?,
        memory_tier: memory_tier.transpose()?,
        host_path: tier_folder(whole, roots)?,
        in_memory: whole.medium == Medium::Memory,
    })
}

fn unsupported<T>(field: &str) -> Result<T, Problem> {
    Err(Problem::new("NotSupported", format!("{field} is not supported yet: leave it out")))
}

fn capacity(tier: &StorageTier) -> Result<u64, Problem> {
    tier.capacity.value().map_err(|error| Problem::new("InvalidSpec", format!("spec.storage[].capacity: {error}")))
}

/// Where on the nodes a tier is.
fn tier_folder(tier: &StorageTier, roots: Roots<'_>) -> Result<PathBuf, Problem> {
    if tier.volume_claim_template.is_some() {
        return unsupported("spec.storage[].volumeClaimTemplate");
    }
    match (tier.medium, tier.host_path.as_deref()) {
        (Medium::Memory, None) => Ok(roots.memory.to_owned()),
        (Medium::Memory, Some(_)) => {
            let message = "spec.storage[].hostPath of a tier of medium Memory: leave it out, it lies below the chart's memoryRoot";
            Err(Problem::new("InvalidSpec", message))
        }
        (Medium::Disk, Some(path)) => allowed_host_path(path, roots.cache, roots.run),
        (Medium::Disk, None) => {
            Err(Problem::new("InvalidSpec", "spec.storage[].hostPath is required for a tier of medium Disk"))
        }
    }
}

/// By namespace, so that their order in the spec makes no other configuration.
fn quotas(runtime: &CacheRuntime) -> Result<Vec<QuotaConfig>, Problem> {
    let mut quotas: Vec<QuotaConfig> = Vec::new();
    for quota in runtime.spec.access.iter().flat_map(|access| &access.quotas) {
        let invalid =
            |what: String| Problem::new("InvalidSpec", format!("spec.access.quotas of {}: {what}", quota.namespace));
        match quota.capacity.value().map_err(|error| invalid(format!("capacity: {error}")))? {
            0 => return Err(invalid("capacity must be more than 0".to_owned())),
            capacity_bytes => quotas.push(QuotaConfig { namespace: quota.namespace.clone(), capacity_bytes }),
        }
    }
    quotas.sort_by(|a, b| a.namespace.cmp(&b.namespace));
    match quotas.array_windows().find(|[a, b]| a.namespace == b.namespace) {
        Some([twice, _]) => {
            let message = format!("spec.access.quotas: the namespace {} is there twice", twice.namespace);
            Err(Problem::new("InvalidSpec", message))
        }
        None => Ok(quotas),
    }
}

fn drain_patience(runtime: &CacheRuntime) -> Result<Duration, Problem> {
    let annotations = runtime.metadata.annotations.as_ref();
    match annotations.and_then(|annotations| annotations.get(DRAIN_PATIENCE_ANNOTATION)) {
        None => Ok(DRAIN_PATIENCE),
        Some(text) => GoDuration::from(text.as_str()).value().map_err(|error| {
            Problem::new("InvalidSpec", format!("the annotation {DRAIN_PATIENCE_ANNOTATION}: {error}"))
        }),
    }
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
        let roots = Roots {
            cache: &["/var/lib/forebay".into()],
            memory: Path::new("/dev/shm/forebay"),
            run: Path::new("/var/lib/forebay/run"),
        };
        validate(runtime, roots)
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

    fn with_storage(storage: serde_json::Value) -> Result<ValidRuntime, Problem> {
        let mut runtime = runtime("/var/lib/forebay");
        runtime.spec.storage = serde_json::from_value(storage).unwrap();
        check(&runtime)
    }

    #[test]
    fn memory_alone_is_the_whole_cache_and_before_a_disk_it_has_copies() {
        let memory = serde_json::json!({"medium": "Memory", "capacity": "1Gi"});
        let disk = serde_json::json!({"medium": "Disk", "capacity": "2Gi", "hostPath": "/var/lib/forebay/a"});
        let valid = with_storage(serde_json::json!([memory])).unwrap();
        assert_eq!(valid.cache_dir(), Path::new("/dev/shm/forebay/forebay.pool"));
        assert_eq!(
            (valid.capacity_bytes, valid.memory_tier(), valid.content_in_memory_bytes()),
            (1 << 30, None, 1 << 30)
        );
        let valid = with_storage(serde_json::json!([memory, disk])).unwrap();
        assert_eq!(valid.cache_dir(), Path::new("/var/lib/forebay/a/forebay.pool"));
        let tier = valid.memory_tier().unwrap();
        assert_eq!((tier.dir.as_path(), tier.capacity_bytes), (Path::new("/dev/shm/forebay/forebay.pool"), 1 << 30));
        assert_eq!((valid.capacity_bytes, valid.content_in_memory_bytes()), (2 << 30, 1 << 30));
        for other in [serde_json::json!([disk, memory]), serde_json::json!([disk, disk]), serde_json::json!([])] {
            assert_eq!(with_storage(other.clone()).unwrap_err().reason, "NotSupported", "{other}");
        }
    }

    #[test]
    fn what_is_not_supported_yet_is_refused_by_name() {
        let claim = serde_json::json!([{"medium": "Disk", "capacity": "1Gi", "volumeClaimTemplate": {}}]);
        let problem = with_storage(claim).unwrap_err();
        assert!(problem.message.contains("volumeClaimTemplate is not supported yet"), "{problem}");
        let folder = serde_json::json!([{"medium": "Memory", "capacity": "1Gi", "hostPath": "/var/lib/forebay"}]);
        let problem = with_storage(folder).unwrap_err();
        assert!(problem.message.contains("memoryRoot"), "{problem}");
    }

    #[test]
    fn memory_quotas_and_patience_have_defaults_and_limits() {
        let plain = check(&runtime("/var/lib/forebay")).unwrap();
        assert_eq!((plain.memory_bytes, plain.quotas.len(), plain.drain_patience), (512 << 20, 0, DRAIN_PATIENCE));
        let with = |nodes: serde_json::Value, quotas: serde_json::Value, patience: &str| {
            let mut runtime = runtime("/var/lib/forebay");
            runtime.spec.nodes = Some(serde_json::from_value(nodes).unwrap());
            runtime.spec.access = Some(serde_json::from_value(serde_json::json!({"quotas": quotas})).unwrap());
            let annotations = [(DRAIN_PATIENCE_ANNOTATION.to_owned(), patience.to_owned())];
            runtime.metadata.annotations = Some(annotations.into());
            check(&runtime)
        };
        let quota = |namespace: &str, capacity: &str| serde_json::json!({"namespace": namespace, "capacity": capacity});
        let (memory, quotas) = (serde_json::json!({"memory": "2Gi"}), [quota("b", "1Ti"), quota("a", "2Gi")]);
        let valid = with(memory.clone(), serde_json::json!(quotas), "90m").unwrap();
        assert_eq!((valid.memory_bytes, valid.drain_patience), (2 << 30, Duration::from_mins(90)));
        assert_eq!(valid.quotas[0], QuotaConfig { namespace: "a".into(), capacity_bytes: 2 << 30 });
        for (memory, quotas, patience, message) in [
            ("63Mi", vec![], "1h", "spec.nodes.memory must be at least 64Mi"),
            ("1Gi", vec![quota("a", "0")], "1h", "capacity must be more than 0"),
            ("1Gi", vec![quota("a", "1"), quota("a", "2")], "1h", "the namespace a is there twice"),
            ("1Gi", vec![], "soon", DRAIN_PATIENCE_ANNOTATION),
        ] {
            let problem = with(serde_json::json!({"memory": memory}), serde_json::json!(quotas), patience).unwrap_err();
            assert!(problem.reason == "InvalidSpec" && problem.message.contains(message), "{problem}");
        }
    }
}
