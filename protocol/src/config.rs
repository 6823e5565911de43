//! `runtime.yaml`: a cache node's whole desired state. The operator renders it into a Secret, `forebay mount` writes it for itself, and by
//! hand it drives nodes outside Kubernetes. Unknown fields are refused, so that a typo is never silently ignored.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Size of a chunk, the unit of presence, checksums and transfers. 4 MiB: large enough that a request's round trip over a long line
/// (50 ms at 10 Gbit/s) is amortised by a few in flight, small enough for random reads.
pub const CHUNK_BYTES: u64 = 4 << 20;

/// Size of a stripe, the unit of placement: a multiple of the chunk.
pub const STRIPE_BYTES: u64 = 256 << 20;

/// What a node's memory is bounded by when the config does not say.
pub const DEFAULT_MEMORY_BYTES: u64 = 512 << 20;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuntimeConfig {
    /// Names this state; a node reports the revision it has applied. Any text; the operator uses a hash of the rest.
    #[serde(default)]
    pub revision: String,
    /// The runtime these nodes belong to.
    pub runtime: RuntimeName,
    /// Settings of the node that reads this file.
    pub node: NodeConfig,
    /// Files with this node's TLS identity. Without it the node serves and calls plain text, on loopback addresses only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsFiles>,
    /// All cache nodes of the runtime. A node finds itself by id or address. Empty: this node is alone.
    #[serde(default)]
    pub members: Vec<Member>,
    /// What the Datasets of a namespace may use of the pool together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quotas: Vec<QuotaConfig>,
    /// What to serve.
    #[serde(default)]
    pub datasets: Vec<DatasetConfig>,
    /// The runtime is being deleted: empty the cache folder and report `erased`.
    #[serde(default)]
    pub erase: bool,
}

/// A runtime's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuntimeName {
    /// Namespace of the CacheRuntime.
    pub namespace: String,
    /// Name of the CacheRuntime.
    pub name: String,
}

impl fmt::Display for RuntimeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Settings of one node. The same for all nodes of a runtime; what differs (its address) is a command-line flag of `forebay-node`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeConfig {
    /// The cache folder; see [`crate::layout::CacheLayout`].
    pub cache_dir: PathBuf,
    /// Bytes that the cache may use of its disk.
    pub capacity_bytes: u64,
    /// Copies of hot objects in memory, above the cache folder; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_tier: Option<MemoryTierConfig>,
    /// Bytes of memory for data on its way and for the index; the program itself takes some ten MiB more.
    #[serde(default = "default_memory_bytes")]
    pub memory_bytes: u64,
    /// Address of the node API.
    pub listen: SocketAddr,
    /// Address of `/metrics`, `/healthz` and `/readyz`; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
    /// The local socket for `forebay-fuse`; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

/// Copies of hot objects in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MemoryTierConfig {
    /// The copies' folder, on a tmpfs; laid out as in [`crate::layout::CacheLayout`], with objects only. Emptied at each start.
    pub dir: PathBuf,
    /// Bytes that the copies may take.
    pub capacity_bytes: u64,
}

fn default_memory_bytes() -> u64 {
    DEFAULT_MEMORY_BYTES
}

/// PEM files of a TLS identity, relative to the folder of `runtime.yaml` unless absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsFiles {
    /// Certificates that the peer's must be signed by.
    pub ca: PathBuf,
    /// This program's certificate chain.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// A cache node as the others see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Member {
    /// The node id (UUID of its storage); the address stands in for it when absent. Placement hashes it, so all nodes must agree on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Where its node API answers.
    pub address: SocketAddr,
    /// Share of the stripes relative to the others'. 0: owns nothing, only reads.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// Its failure domain, as in the label `topology.kubernetes.io/zone`. Replicas go to different zones, reads stay in one where they can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Whether it is to stay.
    #[serde(default, skip_serializing_if = "MemberState::is_active")]
    pub state: MemberState,
}

/// Whether a member is to stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberState {
    /// It owns its share.
    #[default]
    Active,
    /// It is asked to leave: it owns nothing any more, hands what it holds to the new owners, and serves until that is done.
    Leaving,
}

impl MemberState {
    /// Whether it is to stay.
    pub fn is_active(&self) -> bool {
        *self == Self::Active
    }
}

/// What the Datasets of a namespace may use of the pool together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QuotaConfig {
    /// The namespace.
    pub namespace: String,
    /// Bytes of the whole pool.
    pub capacity_bytes: u64,
}

fn default_weight() -> u32 {
    1
}

impl Member {
    /// An active member of weight 1 that is known by its address.
    pub fn at(address: SocketAddr) -> Self {
        Self { id: None, address, weight: default_weight(), zone: None, state: MemberState::Active }
    }

    /// What placement hashes.
    pub fn placement_id(&self) -> String {
        self.id.clone().unwrap_or_else(|| self.address.to_string())
    }
}

/// One Dataset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DatasetConfig {
    /// The Dataset's UID: its identity in catalogs, status and volumes.
    pub uid: String,
    /// Namespace, for logs, metrics and messages.
    pub namespace: String,
    /// Name, likewise.
    pub name: String,
    /// The unified tree.
    pub mounts: Vec<MountConfig>,
    /// Owner and modes of the tree.
    #[serde(default)]
    pub access: AccessConfig,
    /// On which nodes content is kept.
    #[serde(default, skip_serializing_if = "PlacementConfig::is_default")]
    pub placement: PlacementConfig,
    /// What is evicted only when nothing else is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<PinConfig>,
    /// At most this much of the whole pool; no limit when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
    /// What to load ahead of the first read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preload: Option<PreloadConfig>,
    /// The catalog that has been published as this Dataset's version. Another one is reported as a problem, not served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalog: Option<String>,
}

impl DatasetConfig {
    /// `namespace/name`, as messages and the metrics' `dataset` label have it.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// On which nodes the content of a Dataset is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlacementConfig {
    /// How it is spread.
    #[serde(default)]
    pub mode: PlacementMode,
    /// Owners of each stripe, in different zones where there are enough; all members when there are fewer. Means nothing with `Everywhere`.
    #[serde(default = "default_replicas")]
    pub replicas: u32,
}

fn default_replicas() -> u32 {
    1
}

impl Default for PlacementConfig {
    fn default() -> Self {
        Self { mode: PlacementMode::default(), replicas: default_replicas() }
    }
}

impl PlacementConfig {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How the content of a Dataset is spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlacementMode {
    /// Owners keep what they own; who reads something keeps a copy as long as there is room that no owner needs.
    #[default]
    Auto,
    /// Only owners keep anything; what a reader needs elsewhere goes when it closes the file.
    Sharded,
    /// Every node has all of it. Each brings its part from the source and gives it to the others.
    Everywhere,
}

/// What is evicted only when nothing else is left: files that match one of the globs and are young enough.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PinConfig {
    /// Globs as in [`PreloadConfig`]; everything when empty.
    #[serde(default)]
    pub include: Vec<String>,
    /// Only files that were changed in the source less than this many seconds ago; of any age when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newer_than_seconds: Option<u64>,
}

/// A folder of the tree and where its content is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MountConfig {
    /// Absolute path in the tree; `/` for the whole of it.
    pub path: String,
    /// Sources of the same content. Exactly one for now.
    pub sources: Vec<SourceConfig>,
}

/// An object store's folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceConfig {
    /// `s3://bucket/prefix/` or `file:///folder/`.
    pub url: String,
    /// The store's endpoint where it is not the provider's own, `http://` or `https://`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The store's region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Credentials; anonymous requests when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
}

/// An S3 key pair.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Credentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: String,
    /// `AWS_SESSION_TOKEN`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_token: Option<String>,
}

impl fmt::Debug for Credentials {
    /// Never shows a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// Owner and modes that the tree shows. The defaults let every user read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessConfig {
    /// Owner of files and folders.
    #[serde(default)]
    pub uid: u32,
    /// Their group.
    #[serde(default)]
    pub gid: u32,
    /// Permission bits of files, for instance 0o444.
    #[serde(default = "default_file_mode")]
    pub file_mode: u32,
    /// Permission bits of folders, for instance 0o555.
    #[serde(default = "default_dir_mode")]
    pub dir_mode: u32,
}

fn default_file_mode() -> u32 {
    0o444
}

fn default_dir_mode() -> u32 {
    0o555
}

impl Default for AccessConfig {
    fn default() -> Self {
        Self { uid: 0, gid: 0, file_mode: default_file_mode(), dir_mode: default_dir_mode() }
    }
}

/// Globs over paths in the tree without the leading `/`, as in `images/**/*.jpg`; `*` does not cross a `/`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PreloadConfig {
    /// Load what matches one of these; everything when empty.
    #[serde(default)]
    pub include: Vec<String>,
    /// Except what matches one of these.
    #[serde(default)]
    pub exclude: Vec<String>,
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("reading {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is no valid configuration.
    #[error("{path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause, with line and column.
        source: serde_yaml::Error,
    },
}

impl RuntimeConfig {
    /// Reads and parses `path`; relative TLS files are resolved against its folder.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config: Self =
            serde_yaml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source })?;
        if let (Some(tls), Some(folder)) = (config.tls.as_mut(), path.parent()) {
            for file in [&mut tls.ca, &mut tls.cert, &mut tls.key] {
                *file = folder.join(&*file);
            }
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "
runtime: {namespace: forebay, name: pool}
node: {cacheDir: /tmp/cache, capacityBytes: 1000, listen: '127.0.0.2:7070'}
datasets:
- uid: u1
  namespace: training
  name: images
  mounts: [{path: /, sources: [{url: 's3://b/p/', credentials: {accessKeyId: me, secretAccessKey: hidden}}]}]
";

    #[test]
    fn a_small_file_gets_the_defaults() {
        let config: RuntimeConfig = serde_yaml::from_str(SMALL).unwrap();
        assert_eq!(config.datasets[0].access.file_mode, 0o444);
        assert!(config.tls.is_none() && config.members.is_empty() && !config.erase);
    }

    #[test]
    fn unknown_fields_are_refused() {
        let text = SMALL.replace("capacityBytes", "capacity");
        let error = serde_yaml::from_str::<RuntimeConfig>(&text).unwrap_err().to_string();
        assert!(error.contains("capacity"), "{error}");
    }

    #[test]
    fn debug_output_hides_secrets() {
        let config: RuntimeConfig = serde_yaml::from_str(SMALL).unwrap();
        let shown = format!("{config:?}");
        assert!(shown.contains("me") && !shown.contains("hidden"), "{shown}");
    }
}
