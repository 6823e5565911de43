//! A cache node: an engine on its cache folder, the servers around it, and the config that says what they do. Runs in a process of its own
//! (`forebay-node`) or inside another (`forebay mount`).

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use forebay_protocol::config::RuntimeConfig;
use forebay_protocol::layout::CacheLayout;
use forebay_protocol::node::{MountMode, StatusResponse};
use forebay_protocol::tls::{Identity, IdentityError, TlsError};
use parking_lot::{Mutex, RwLock};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::engine::{Engine, EngineError};
use crate::memory::Shares;
use crate::metrics::Metrics;
use crate::problem::Problem;
use crate::store::scrub::Pace;
use crate::{http, identity, local, server, watch};

/// What a node is told beside its config.
#[derive(Clone, Debug, Default)]
pub struct NodeOptions {
    /// Apply this file again whenever it, or one of the TLS files, changes.
    pub watch: Option<PathBuf>,
    /// Where the others reach this node, when that is not the address it listens at; by it the node finds itself among the members.
    pub advertise: Option<SocketAddr>,
    /// How fast everything that is cached is verified in the background.
    pub scrub: Pace,
}

/// Why a node can't run.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The cache folder can't be opened.
    #[error("opening the cache folder {path}: {source}")]
    Cache {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: EngineError,
    },
    /// The cache folder can't be made, read or emptied.
    #[error("the cache folder {path}: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// An address or socket can't be listened at.
    #[error("listening at {at}: {source}")]
    Listen {
        /// The address or path.
        at: String,
        /// The cause.
        source: io::Error,
    },
    /// Without TLS nobody but this machine may reach the node API.
    #[error("refusing to listen at {0} without `tls`: only loopback addresses may be plain text")]
    PlainText(SocketAddr),
    /// The TLS identity can't be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The node API's server can't start.
    #[error("the node API: {0}")]
    Api(#[from] TlsError),
    /// The config contradicts itself.
    #[error("the config can't be used: {0}")]
    Config(Problem),
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    shared: Arc<Shared>,
    address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

/// What the servers of a node share.
#[derive(Debug)]
pub struct Shared {
    layout: CacheLayout,
    addresses: Vec<SocketAddr>,
    metrics: Arc<Metrics>,
    memory: Shares,
    engine: RwLock<Option<Arc<Engine>>>,
    tidying: Mutex<Option<AbortOnDropHandle<()>>>,
    scrub: Pace,
    api: server::Api,
    /// One config at a time.
    applying: tokio::sync::Mutex<()>,
    applied: RwLock<Option<RuntimeConfig>>,
    node_id: RwLock<String>,
    erased: AtomicBool,
    listening: AtomicBool,
}

impl Node {
    /// Starts a node: opens its cache folder, listens, applies the config. Sources that can't be reached do not keep it from starting.
    pub async fn start(config: RuntimeConfig, options: NodeOptions) -> Result<Self, NodeError> {
        raise_file_limit();
        let listen = config.node.listen;
        if config.tls.is_none() && !listen.ip().is_loopback() {
            return Err(NodeError::PlainText(listen));
        }
        let listening = |at: &dyn std::fmt::Display, source| NodeError::Listen { at: at.to_string(), source };
        let listener = TcpListener::bind(listen).await.map_err(|source| listening(&listen, source))?;
        let address = listener.local_addr().map_err(|source| listening(&listen, source))?;
        let listener = listener.into_std().map_err(|source| listening(&listen, source))?;
        let addresses = [Some(address), options.advertise].into_iter().flatten().collect();
        let shared = Arc::new(Shared {
            layout: CacheLayout::new(&config.node.cache_dir),
            addresses,
            metrics: Metrics::new(),
            memory: Shares::of(config.node.memory_bytes),
            engine: RwLock::default(),
            tidying: Mutex::default(),
            scrub: options.scrub,
            api: server::Api::new(listener),
            applying: tokio::sync::Mutex::default(),
            applied: RwLock::default(),
            node_id: RwLock::default(),
            erased: AtomicBool::new(false),
            listening: AtomicBool::new(false),
        });
        let mut tasks = Vec::new();
        let mut metrics_address = None;
        if let Some(at) = config.node.metrics {
            let listener = TcpListener::bind(at).await.map_err(|source| listening(&at, source))?;
            metrics_address = listener.local_addr().ok();
            let router = http::router(Arc::clone(&shared));
            tasks.push(spawn(async move {
                if let Err(error) = axum::serve(listener, router).await {
                    tracing::error!(%error, "the metrics server ended");
                }
            }));
        }
        // The folder is this node's before anybody can ask for it; the socket is there when the node is.
        shared.apply(config.clone()).await?;
        if let Some(path) = &config.node.socket {
            let listener = local::bind(path).await.map_err(|source| listening(&path.display(), source))?;
            tasks.push(spawn(local::serve(listener, Arc::clone(&shared))));
        }
        shared.listening.store(true, Ordering::Relaxed);
        if let Some(path) = options.watch {
            tasks.push(spawn(watch::run(path, Arc::clone(&shared))));
        }
        tracing::info!(%address, node_id = *shared.node_id.read(), runtime = %config.runtime, "the cache node serves");
        Ok(Self { shared, address, metrics_address, _tasks: tasks })
    }

    /// Makes another config the node's. Cache folder, addresses and socket stay as they were at the start.
    pub async fn apply(&self, config: RuntimeConfig) -> Result<(), NodeError> {
        self.shared.apply(config).await
    }

    /// What the node API's `Status` says.
    pub fn status(&self) -> StatusResponse {
        self.shared.status()
    }

    /// Where the node API answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where metrics and health are, if anywhere.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Ends all service, makes what was fetched durable, and closes the cache folder.
    pub async fn shutdown(self) {
        let Self { shared, _tasks: tasks, .. } = self;
        drop(tasks);
        shared.api.stop();
        let _applying = shared.applying.lock().await;
        shared.close_engine().await;
        tracing::info!("the cache node has stopped");
    }
}

/// What the CSI plugin, whose sockets are in the same folder, says.
fn mount_mode(config: &RuntimeConfig) -> Option<MountMode> {
    forebay_protocol::mount_mode::read(config.node.socket.as_deref()?.parent()?)
}

impl Shared {
    /// The node's memory.
    pub fn memory(&self) -> &Shares {
        &self.memory
    }

    /// The node API's socket.
    pub(crate) fn api(&self) -> &server::Api {
        &self.api
    }

    /// The engine, unless the cache was erased.
    pub fn engine(&self) -> Option<Arc<Engine>> {
        self.engine.read().clone()
    }

    /// Whether a config has been applied and all servers listen.
    pub fn is_ready(&self) -> bool {
        self.listening.load(Ordering::Relaxed) && (self.engine().is_some() || self.erased.load(Ordering::Relaxed))
    }

    /// The metrics' text.
    pub fn render_metrics(&self) -> String {
        if let Some(engine) = self.engine() {
            engine.refresh_metrics();
        }
        self.metrics.render()
    }

    /// For the node API.
    pub fn status(&self) -> StatusResponse {
        let engine = self.engine();
        let applied = self.applied.read();
        StatusResponse {
            node_id: self.node_id.read().clone(),
            revision: applied.as_ref().map(|config| config.revision.clone()).unwrap_or_default(),
            capacity_bytes: applied.as_ref().map(|config| config.node.capacity_bytes).unwrap_or_default(),
            cached_bytes: engine.as_ref().map(|engine| engine.store().used_bytes()).unwrap_or_default(),
            erased: self.erased.load(Ordering::Relaxed),
            datasets: engine.as_ref().map(|engine| engine.status()).unwrap_or_default(),
            drain: engine.as_ref().and_then(|engine| engine.drain_status()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            disk_faults: engine.as_ref().map(|engine| engine.store().faults().status()).unwrap_or_default(),
            verification_failures: self.metrics.verification_failures(),
            mount_mode: applied.as_ref().and_then(mount_mode),
            scrubbed_bytes: engine.map(|engine| engine.store().scrubbed_bytes()).unwrap_or_default(),
        }
    }

    /// Makes a config the node's.
    pub async fn apply(self: &Arc<Self>, config: RuntimeConfig) -> Result<(), NodeError> {
        let _applying = self.applying.lock().await;
        Engine::check(&config).map_err(NodeError::Config)?;
        self.warn_of_fixed_settings(&config);
        let identity = config.tls.as_ref().map(Identity::read).transpose()?;
        if identity.is_none() && !self.addresses.first().is_none_or(|address| address.ip().is_loopback()) {
            return Err(NodeError::PlainText(config.node.listen));
        }
        if config.erase {
            self.erase(config.node.memory_tier.as_ref().map(|tier| tier.dir.as_path())).await?;
        } else {
            let engine = match self.engine() {
                Some(engine) => engine,
                None => self.open_engine(&config, identity.clone()).await?,
            };
            if self.api.would_change(config.tls.as_ref()) {
                engine.peers().set_identity(identity.clone());
            }
            let node_id = self.node_id.read().clone();
            engine.apply(&config, &node_id, &self.addresses).await.map_err(|source| self.cache_error(source))?;
        }
        self.api.serve(self, identity.as_ref(), config.tls.as_ref())?;
        tracing::info!(
            revision = config.revision,
            datasets = config.datasets.len(),
            members = config.members.len(),
            "config applied"
        );
        *self.applied.write() = Some(config);
        Ok(())
    }

    fn warn_of_fixed_settings(&self, config: &RuntimeConfig) {
        if let Some(before) = &*self.applied.read() {
            let fixed = |config: &RuntimeConfig| {
                let node = &config.node;
                let memory = node.memory_tier.as_ref().map(|tier| &tier.dir);
                (
                    node.cache_dir.clone(),
                    memory.cloned(),
                    node.memory_bytes,
                    node.listen,
                    node.metrics,
                    node.socket.clone(),
                )
            };
            if fixed(before) != fixed(config) {
                tracing::warn!(
                    "cacheDir, memoryTier.dir, memoryBytes, listen, metrics and socket take effect when the node is restarted"
                );
            }
        }
    }

    async fn open_engine(&self, config: &RuntimeConfig, identity: Option<Identity>) -> Result<Arc<Engine>, NodeError> {
        let path = self.layout.root();
        let id =
            identity::of_folder(&self.layout).map_err(|source| NodeError::Folder { path: path.to_owned(), source })?;
        let (memory, metrics) = (self.memory.clone(), Arc::clone(&self.metrics));
        let engine = Engine::open(&self.layout, &config.node, identity, memory, metrics).await;
        let engine = engine.map_err(|source| self.cache_error(source))?;
        *self.node_id.write() = id;
        self.erased.store(false, Ordering::Relaxed);
        let (tidied, tended) = (Arc::clone(&engine), Arc::clone(&engine));
        let (layout, pace) = (self.layout.clone(), self.scrub);
        let tidying = async move {
            tokio::join!(tidied.look_after_disk(), tended.look_after_health(layout, pace));
        };
        *self.tidying.lock() = Some(spawn(tidying));
        *self.engine.write() = Some(Arc::clone(&engine));
        Ok(engine)
    }

    async fn close_engine(&self) {
        drop(self.tidying.lock().take());
        let engine = self.engine.write().take();
        if let Some(engine) = engine {
            engine.close().await;
        }
    }

    async fn erase(&self, memory: Option<&Path>) -> Result<(), NodeError> {
        if self.erased.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.close_engine().await;
        for path in [Some(self.layout.root()), memory].into_iter().flatten() {
            // A write that was under way may still make a file.
            empty(path)
                .or_else(|_| empty(path))
                .map_err(|source| NodeError::Folder { path: path.to_owned(), source })?;
        }
        self.erased.store(true, Ordering::Relaxed);
        tracing::info!(path = %self.layout.root().display(), "the cache folder is erased");
        Ok(())
    }

    fn cache_error(&self, source: EngineError) -> NodeError {
        NodeError::Cache { path: self.layout.root().to_owned(), source }
    }
}

/// Files that wait to be synced are open, and so are connections: the soft limit of 1,024 is too low.
fn raise_file_limit() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files can't be raised");
    }
}

fn empty(folder: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(task))
}
