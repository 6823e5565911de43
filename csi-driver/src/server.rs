//! The plugin as a whole: broker, node and identity services, registration.

use std::fs::TryLockError;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_protocol::csi::{identity_server::IdentityServer, node_server::NodeServer};
use forebay_protocol::layout::{FOREBAY_GID, FUSE_UID, MEMORY_ROOT, RUN_DIR};
use forebay_protocol::node::MountMode;
use forebay_protocol::registration::registration_server::RegistrationServer;
use futures::TryStreamExt as _;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::authority;
use crate::broker::Broker;
use crate::datasets::Datasets;
use crate::health::{self, Pages};
use crate::identity_service::IdentityService;
use crate::mode::Wanted;
use crate::node::{Node, NodeError};
use crate::node_service::NodeService;
use crate::opens::{self, Schedule};
use crate::paths::Paths;
use crate::registration::RegistrationService;

/// How long the plugin stays, when it is asked to end, for a daemon to have the session: both may be replaced at once, and one must have the
/// descriptor at any time. Less than the chart's `terminationGracePeriodSeconds`.
const HANDOVER_PATIENCE: Duration = Duration::from_secs(10);

/// How long a plugin waits for its predecessor's end.
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(5);

/// The CSI driver of a node.
#[derive(Clone, Debug, clap::Parser)]
#[command(version)]
pub struct Arguments {
    /// This node's name in the cluster
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// The kubelet's folder
    #[arg(long, default_value = "/var/lib/kubelet")]
    pub kubelet_dir: PathBuf,
    /// The folder of the broker's and the cache nodes' sockets
    #[arg(long, default_value = RUN_DIR)]
    pub run_dir: PathBuf,
    /// A folder under which CacheRuntimes may have their hostPath; may be given more than once
    #[arg(long = "cache-root", default_value = "/var/lib/forebay")]
    pub cache_roots: Vec<PathBuf>,
    /// The folder, on a tmpfs, for storage of medium Memory
    #[arg(long, default_value = MEMORY_ROOT)]
    pub memory_root: PathBuf,
    /// The user as which forebay-fuse runs; nobody else is given the mounts
    #[arg(long, default_value_t = FUSE_UID)]
    pub daemon_uid: u32,
    /// How volumes are mounted
    #[arg(long, value_enum, default_value_t)]
    pub mount_mode: Wanted,
    /// Part of the time, in percent, during which opens of cached files are watched in mode Kernel, so that eviction and the hit ratio know of them:
    /// a second at a time; 0 never
    #[arg(long, value_name = "PERCENT", default_value_t = opens::DEFAULT_PERCENT, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub watch_opens: u8,
    /// Serve /metrics, /healthz and /readyz at this address
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// A JSON list of Datasets and CacheRuntimes, instead of the API server
    #[arg(long)]
    pub objects: Option<PathBuf>,
}

/// Why the plugin can't run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No way to the API server.
    #[error("connecting to the API server: {0}")]
    Kube(#[from] kube::Error),
    /// There is another one.
    #[error("another forebay-csi runs on this node and holds {}: end that one first", .0.display())]
    Running(PathBuf),
    /// The lock of the plugin that runs.
    #[error("locking {path}: {source}")]
    Lock {
        /// Its path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A socket.
    #[error("listening at {path}: {source}")]
    Listen {
        /// Its path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The address of the metrics.
    #[error("listening at {address}: {source}")]
    Address {
        /// As it was given.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// The node's state.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Serving failed.
    #[error("serving gRPC: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Runs until `shutdown` resolves. The mounts stay.
pub async fn run(arguments: Arguments, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
    let paths = Paths {
        kubelet_dir: arguments.kubelet_dir,
        run_dir: arguments.run_dir,
        cache_roots: arguments.cache_roots,
        memory_root: arguments.memory_root,
    };
    let datasets = match arguments.objects {
        Some(file) => Datasets::File(file),
        None => Datasets::ApiServer(kube::Client::try_default().await?),
    };
    let _lock = lock(&paths.lock()).await?;
    let mode = tell_mode(arguments.mount_mode, &paths.run_dir);
    let broker_socket = paths.broker_socket();
    let broker = Broker::listen(&broker_socket, Some(FOREBAY_GID), arguments.daemon_uid).await;
    let broker = broker.map_err(|source| ServerError::Listen { path: broker_socket, source })?;
    broker.metrics().mount_mode(&mode);
    let node = Node::start(&arguments.node_name, paths.clone(), datasets, broker.clone(), arguments.mount_mode).await?;

    if let Some(schedule) = Schedule::of_percent(arguments.watch_opens) {
        node.watch_opens(schedule);
    }

    let (stop, stopped) = watch::channel(());
    let wait = |mut stopped: watch::Receiver<()>| async move {
        // Fails when the sender is dropped, which is the signal.
        while stopped.changed().await.is_ok() {}
    };
    let csi = Server::builder()
        .add_service(NodeServer::new(NodeService::new(node.clone(), broker.metrics())))
        .add_service(IdentityServer::new(IdentityService { broker: broker.clone() }))
        .serve_with_incoming_shutdown(listen(&paths.csi_socket())?, wait(stopped.clone()));
    let registration = RegistrationService { csi_socket: paths.csi_socket() };
    let registration = Server::builder()
        .add_service(RegistrationServer::new(registration))
        .serve_with_incoming_shutdown(listen(&paths.registration_socket())?.map_ok(authority::relay), wait(stopped));
    let _pages = match arguments.listen {
        Some(address) => {
            Some(health::listen(address, Pages { node, broker: broker.clone(), paths: paths.clone() }).await?)
        }
        None => None,
    };
    tracing::info!(node = arguments.node_name, socket = %paths.csi_socket().display(), "serving");
    let shutdown = async {
        shutdown.await;
        tracing::info!("shutting down");
        if broker.session().is_some() && broker.wait_served(HANDOVER_PATIENCE).await.is_err() {
            tracing::error!(
                "no daemon has the session: files that are not cached can't be read by running pods any more"
            );
        }
        drop(stop);
    };
    let (csi, registration, ()) = tokio::join!(csi, registration, shutdown);
    csi?;
    registration?;
    // So that the kubelet does not ask a plugin that is gone, and nothing is left when it was the last.
    let _ = std::fs::remove_file(paths.registration_socket());
    let _ = forebay_protocol::mount_mode::remove(&paths.run_dir);
    Ok(())
}

/// Tells how volumes are mounted, and why: in the log, and to the cache nodes of this machine, in whose status it shows. Gives the mode.
fn tell_mode(wanted: Wanted, run_dir: &Path) -> String {
    let mode = match wanted.choose() {
        Ok(chosen) => {
            tracing::info!(mode = %chosen.mode, reason = chosen.reason, "how volumes are mounted");
            MountMode { mode: chosen.mode.to_string(), reason: chosen.reason }
        }
        Err(missing) => {
            tracing::error!(%missing, "volumes can't be mounted on this node");
            MountMode { mode: "None".to_owned(), reason: missing.to_string() }
        }
    };
    if let Err(error) = forebay_protocol::mount_mode::write(run_dir, &mode) {
        tracing::warn!(folder = %run_dir.display(), %error, "the cache nodes of this machine can't be told the mount mode");
    }
    mode.mode
}

/// Waits until no other plugin runs on this node: two would take each other's sockets and mounts.
async fn lock(path: &Path) -> Result<std::fs::File, ServerError> {
    let failed = |source| ServerError::Lock { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let file = std::fs::File::create(path).map_err(failed)?;
    let since = tokio::time::Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) if since.elapsed() < PREDECESSOR_PATIENCE => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(TryLockError::WouldBlock) => return Err(ServerError::Running(path.to_owned())),
        }
    }
}

/// Listens at a path that only root may connect to; replaces what a predecessor left there.
fn listen(path: &Path) -> Result<UnixListenerStream, ServerError> {
    let listen = || {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        crate::volumes::remove_if_there(path)?;
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        Ok(UnixListenerStream::new(listener))
    };
    listen().map_err(|source| ServerError::Listen { path: path.to_owned(), source })
}
