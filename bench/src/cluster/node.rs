//! `forebay-node` as a process, in any network namespace.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use forebay_e2e::command::log_tail;
use forebay_protocol::config::{
    AccessConfig, DEFAULT_MEMORY_BYTES, DatasetConfig, Member, MountConfig, NodeConfig, PlacementConfig, RuntimeConfig,
    RuntimeName, SourceConfig,
};
use forebay_protocol::layout::CacheLayout;
use forebay_protocol::node::node_client::NodeClient;
use forebay_protocol::node::{DatasetStatus, StatusRequest, StatusResponse};
use forebay_protocol::tls::Identity;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use super::reader::Reader;
use crate::programs::Running;
use crate::wait::wait_for;

/// UID of the one dataset of measurements and soak.
pub const UID: &str = "bench";

/// A node and its folder.
#[derive(Debug)]
pub struct Node {
    /// Written to `runtime.yaml` by [`Node::start`] and [`Node::change`].
    pub config: RuntimeConfig,
    program: PathBuf,
    folder: TempDir,
    namespace: Option<String>,
    identity: Option<Identity>,
    process: Option<Running>,
}

/// A node that does not answer a question of a few bytes for so long hangs.
const LONGEST_CALL: Duration = Duration::from_secs(60);

/// The one dataset: all of a source.
pub fn dataset(source: SourceConfig) -> DatasetConfig {
    DatasetConfig {
        uid: UID.to_owned(),
        namespace: "bench".to_owned(),
        name: "data".to_owned(),
        mounts: vec![MountConfig { path: "/".to_owned(), sources: vec![source] }],
        access: AccessConfig::default(),
        placement: PlacementConfig::default(),
        pin: None,
        capacity_bytes: None,
        preload: None,
        catalog: None,
    }
}

impl Node {
    /// A node that does not run yet: plain text, 4 GiB of cache in `folder`.
    pub fn new(program: &Path, folder: TempDir, listen: SocketAddr, datasets: Vec<DatasetConfig>) -> Self {
        let config = RuntimeConfig {
            revision: "1".to_owned(),
            runtime: RuntimeName { namespace: "bench".to_owned(), name: "pool".to_owned() },
            node: NodeConfig {
                cache_dir: folder.path().join("cache"),
                capacity_bytes: 4 << 30,
                memory_tier: None,
                memory_bytes: DEFAULT_MEMORY_BYTES,
                listen,
                metrics: Some(SocketAddr::new(listen.ip(), listen.port() ^ 1)),
                socket: Some(folder.path().join("node.sock")),
            },
            tls: None,
            members: Vec::new(),
            quotas: Vec::new(),
            datasets,
            erase: false,
        };
        Self { config, program: program.to_owned(), folder, namespace: None, identity: None, process: None }
    }

    /// With these members, itself among them.
    #[must_use]
    pub fn with_members(mut self, addresses: &[SocketAddr]) -> Self {
        self.config.members = addresses.iter().map(|address| Member::at(*address)).collect();
        self
    }

    /// In a network namespace.
    #[must_use]
    pub fn in_namespace(mut self, name: String) -> Self {
        self.namespace = Some(name);
        self
    }

    /// With mutual TLS.
    pub fn with_tls(mut self, authority: &super::authority::Authority) -> Result<Self> {
        self.config.tls = Some(authority.write(self.folder.path())?);
        self.identity = Some(authority.identity()?);
        Ok(self)
    }

    fn config_path(&self) -> PathBuf {
        self.folder.path().join("runtime.yaml")
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn write_config(&self) -> Result<()> {
        let (path, draft) = (self.config_path(), self.folder.path().join("runtime.yaml.new"));
        std::fs::write(&draft, serde_yaml::to_string(&self.config)?).and_then(|()| std::fs::rename(&draft, &path))?;
        Ok(())
    }

    /// Starts the process and waits until it is ready.
    pub async fn start(&mut self) -> Result<()> {
        self.write_config()?;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let mut command = match &self.namespace {
            // nsenter becomes the program, so the process we kill is the right one.
            Some(name) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{name}")).arg("--").arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command.arg("--config").arg(self.config_path()).env("RUST_LOG", "warn,forebay_cache_node=info");
        // Why it ended is the last line of its log, not somewhere above a stack.
        command.env("RUST_BACKTRACE", "0");
        self.process = Some(Running::start(command.stdout(Stdio::null()).stderr(log))?);
        let ready = self.url("readyz")?;
        let process = &mut self.process;
        let waited = wait_for("the node to be ready", Duration::from_secs(60), async || {
            if let Some(status) = process.as_mut().and_then(|process| process.ended().transpose()).transpose()? {
                bail!("forebay-node ended with {status}");
            }
            Ok(reqwest::get(&ready).await.ok().filter(|answer| answer.status().is_success()))
        });
        waited.await.map(drop).with_context(|| self.last_words())
    }

    /// kill -9.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// Whether it was started and not killed since.
    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// Process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Running::pid)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.config.node.listen
    }

    /// The cache folder.
    pub fn layout(&self) -> CacheLayout {
        CacheLayout::new(&self.config.node.cache_dir)
    }

    /// What it said last, for an error message.
    pub fn last_words(&self) -> String {
        format!("node {}, the end of its log:\n{}\n", self.address(), log_tail(&self.log_path()))
    }

    /// Changes the config; gives the revision that the node tells once it has applied it.
    pub fn change(&mut self, change: impl FnOnce(&mut RuntimeConfig)) -> Result<String> {
        change(&mut self.config);
        let revision = self.config.revision.parse::<u64>().unwrap_or_default() + 1;
        self.config.revision = revision.to_string();
        self.write_config()?;
        Ok(self.config.revision.clone())
    }

    fn url(&self, page: &str) -> Result<String> {
        let address = self.config.node.metrics.context("the node has no metrics address")?;
        Ok(format!("http://{address}/{page}"))
    }

    /// A connection to its API.
    pub async fn client(&self) -> Result<NodeClient<Channel>> {
        let scheme = if self.identity.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{}", self.address()))?;
        let mut endpoint = endpoint.connect_timeout(LONGEST_CALL).timeout(LONGEST_CALL);
        if let Some(identity) = &self.identity {
            endpoint = endpoint.tls_config(identity.client())?;
        }
        Ok(NodeClient::new(endpoint.connect().await?))
    }

    /// Its status; none while it does not answer.
    pub async fn status(&self) -> Option<StatusResponse> {
        Some(self.client().await.ok()?.status(StatusRequest {}).await.ok()?.into_inner())
    }

    /// Waits until the dataset's status fulfils a condition.
    pub async fn wait_dataset<T>(
        &self,
        what: &str,
        patience: Duration,
        condition: impl Fn(&DatasetStatus) -> Option<T>,
    ) -> Result<T> {
        // One connection for the whole wait: connecting anew at each look would take a good part of two cores.
        let mut client = self.client().await.with_context(|| self.last_words())?;
        let waited = wait_for(what, patience, async || {
            let status = client.status(StatusRequest {}).await?.into_inner();
            Ok(status.datasets.iter().find(|dataset| dataset.uid == UID).and_then(&condition))
        });
        waited.await.with_context(|| self.last_words())
    }

    /// The catalog's id and bytes, once there is one.
    pub async fn wait_catalog(&self, patience: Duration) -> Result<(String, u64)> {
        let found =
            |dataset: &DatasetStatus| dataset.catalog.as_ref().map(|catalog| (catalog.id.clone(), catalog.bytes));
        self.wait_dataset("the catalog", patience, found).await
    }

    /// The value of a metric, summed over its labels.
    pub async fn metric(&self, name: &str) -> Result<u64> {
        let text = reqwest::get(self.url("metrics")?).await?.text().await?;
        let lines = text.lines().filter(|line| line.starts_with(name));
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
    }

    /// A reader at the local socket.
    pub async fn reader(&self) -> Result<Reader> {
        let (id, _) = self.wait_catalog(Duration::from_secs(60)).await?;
        let socket = self.config.node.socket.as_deref().context("the node has no socket")?;
        Reader::connect(socket, UID, &self.layout().catalog(UID, &id)).await
    }
}
