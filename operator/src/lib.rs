//! The operator: turns CacheRuntimes into cache nodes and Datasets into volumes, tells the nodes what to do by one Secret per runtime, and writes
//! into the status what the nodes report. Reads never depend on it: what it set up keeps serving while it is away.
//!
//! Without a cluster, `dataset::validate` and `dataset::build::config_entry` turn a Dataset into an entry of `runtime.yaml`.

pub mod cache_runtime;
pub mod conditions;
pub mod context;
pub mod dataset;
pub mod events;
pub mod health;
pub mod identity;
pub mod leader;
pub mod nodes;
pub mod objects;
pub mod problem;
mod ttl_cache;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Api, Client};

use crate::context::Context;

/// Name of the operator as field manager, reporter of Events, and in the Lease.
pub const NAME: &str = "forebay-operator";

/// Command line of `forebay-operator`.
#[derive(Clone, Debug, Parser)]
#[command(version, about = "Reconciles Forebay's CacheRuntimes and Datasets")]
pub struct Arguments {
    /// Container image of the cache nodes; it holds /forebay-node
    #[arg(long, env = "FOREBAY_NODE_IMAGE")]
    pub node_image: String,
    /// Image pull policy of the cache nodes: Always, IfNotPresent or Never
    #[arg(long, env = "FOREBAY_IMAGE_PULL_POLICY", default_value = "IfNotPresent")]
    pub image_pull_policy: String,
    /// Secret in a CacheRuntime's namespace to pull the image with; may be given several times
    #[arg(long, env = "FOREBAY_IMAGE_PULL_SECRET", value_delimiter = ',')]
    pub image_pull_secret: Vec<String>,
    /// Log level of the cache nodes, as in RUST_LOG; the operator's own unless given
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub node_log_level: String,
    /// Folder of the sockets on every node
    #[arg(long, env = "FOREBAY_RUN_DIR", default_value = forebay_protocol::layout::RUN_DIR)]
    pub run_dir: PathBuf,
    /// Folder of the nodes under which a CacheRuntime may put its hostPath; may be given several times
    #[arg(long, env = "FOREBAY_CACHE_ROOT", value_delimiter = ',', default_value = "/var/lib/forebay")]
    pub cache_root: Vec<PathBuf>,
    /// Folder of the nodes, on a tmpfs, for storage of medium Memory
    #[arg(long, env = "FOREBAY_MEMORY_ROOT", default_value = forebay_protocol::layout::MEMORY_ROOT)]
    pub memory_root: PathBuf,
    /// Folder of the nodes that Datasets may read with file:// sources; mounted read-only into all cache nodes; may be given several times
    #[arg(long, env = "FOREBAY_FILE_SOURCE_ROOT", value_delimiter = ',')]
    pub file_source_root: Vec<PathBuf>,
    /// Namespace of the Lease for leader election
    #[arg(long, env = "POD_NAMESPACE", default_value = "forebay")]
    pub namespace: String,
    /// This operator's name in the Lease, its pod's name
    #[arg(long, env = "POD_NAME", default_value = NAME)]
    pub identity: String,
    /// Run without leader election: only when no other operator can run
    #[arg(long, env = "FOREBAY_NO_LEADER_ELECTION")]
    pub no_leader_election: bool,
    /// Address of /healthz, /readyz and /metrics
    #[arg(long, env = "FOREBAY_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
}

/// Runs until SIGTERM or SIGINT. The error of a lost Lease ends the process: another operator leads then.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let client = Client::try_default().await.context("connecting to the API server")?;
    run_with(client, arguments, shutdown_signal()).await
}

/// Runs with a given client until `shutdown` is ready.
pub async fn run_with(
    client: Client,
    arguments: Arguments,
    shutdown: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    let metrics = health::Metrics::default();
    let listener = tokio::net::TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("listening on {}", arguments.listen))?;
    tokio::spawn(health::serve(listener, metrics.clone()));

    let mut shutdown = std::pin::pin!(shutdown);
    let lease = if arguments.no_leader_election {
        None
    } else {
        let lease = leader::Lease::new(client.clone(), &arguments.namespace, &arguments.identity);
        tokio::select! {
            () = lease.acquire() => {}
            () = &mut shutdown => return Ok(()),
        }
        Some(lease)
    };
    metrics.leading();
    tracing::info!(identity = arguments.identity, "leading");
    let result = tokio::select! {
        () = controllers(client, arguments, metrics) => Err(anyhow::anyhow!("the controllers ended")),
        error = async { match &lease { Some(lease) => lease.keep().await, None => std::future::pending().await } } => Err(error.into()),
        () = &mut shutdown => Ok(()),
    };
    if let (Ok(()), Some(lease)) = (&result, &lease) {
        lease.release().await;
    }
    result
}

/// Both controllers and the reflectors they read from; ends only by being dropped.
async fn controllers(client: Client, arguments: Arguments, metrics: health::Metrics) {
    let (node_store, writer) = reflector::store::<Node>();
    let nodes = reflector(writer, watcher(Api::<Node>::all(client.clone()), watcher::Config::default()))
        .default_backoff()
        .for_each(async |event| {
            if let Err(error) = event {
                tracing::warn!(%error, "watching nodes");
            }
        });
    let runtimes = cache_runtime::controller(&client);
    let datasets = dataset::controller(&client);
    let context = Arc::new(Context::new(client, arguments, metrics, node_store, runtimes.store(), datasets.store()));
    tokio::join!(nodes, cache_runtime::run(runtimes, context.clone()), dataset::run(datasets, context));
}

async fn shutdown_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
