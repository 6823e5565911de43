//! The operator as a client of cache nodes: it asks all nodes of a runtime for their status at once, at most once a second however many ask, and
//! remembers each node's last answer for a while, so that one lost packet does not change what a Dataset's status says.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use forebay_protocol::config::RuntimeName;
use forebay_protocol::node::node_client::NodeClient;
use forebay_protocol::node::{StatusRequest, StatusResponse};
use futures::future::join_all;
use tonic::transport::{Channel, Endpoint};

use crate::identity::RuntimeIdentity;

/// A node that does not answer in this time counts as not reachable.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Answers of the last moment are good enough.
const FRESH: Duration = Duration::from_millis(900);
/// A node that is silent is taken to be as it was for this long.
pub const REMEMBERED: Duration = Duration::from_secs(60);

/// A pod with a cache node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub pod: String,
    /// The node it runs on.
    pub node: String,
    /// Where its node API answers.
    pub address: SocketAddr,
}

/// What is known of one cache node.
#[derive(Clone, Debug)]
pub struct NodeState {
    /// Its pod.
    pub target: Target,
    /// Its answer just now.
    pub status: Result<StatusResponse, String>,
    /// Its last answer, when that is not long ago.
    pub last: Option<StatusResponse>,
}

/// What is known of all cache nodes of a runtime.
#[derive(Clone, Debug)]
pub struct Gathered {
    /// When they were asked.
    pub at: Instant,
    /// Each of them, in the order of their pods' names.
    pub nodes: Vec<NodeState>,
}

impl Gathered {
    /// The last answers of all nodes.
    pub fn answers(&self) -> impl Iterator<Item = &StatusResponse> {
        self.nodes.iter().filter_map(|node| node.last.as_ref())
    }

    /// The answers of the nodes that answer now.
    pub fn present(&self) -> impl Iterator<Item = &StatusResponse> {
        self.nodes.iter().filter_map(|node| node.status.as_ref().ok())
    }
}

#[derive(Default)]
struct Runtime {
    targets: Vec<Target>,
    identity: Option<(blake3::Hash, RuntimeIdentity)>,
    channels: HashMap<SocketAddr, Channel>,
    last: HashMap<String, (Instant, StatusResponse)>,
    gathered: Option<Arc<Gathered>>,
}

type Shared = Arc<tokio::sync::Mutex<Runtime>>;

/// The cache nodes of all runtimes.
#[derive(Default)]
pub struct Nodes(Mutex<HashMap<RuntimeName, Shared>>);

impl Nodes {
    /// Says which nodes a runtime has and what to call them with.
    pub async fn set_targets(&self, runtime: &RuntimeName, identity: &RuntimeIdentity, targets: Vec<Target>) {
        let shared = self.all().entry(runtime.clone()).or_default().clone();
        let mut runtime = shared.lock().await;
        let fingerprint = identity.fingerprint();
        if runtime.identity.as_ref().is_none_or(|(known, _)| *known != fingerprint) {
            runtime.identity = Some((fingerprint, identity.clone()));
            runtime.channels.clear();
        }
        if runtime.targets != targets {
            runtime.channels.retain(|address, _| targets.iter().any(|target| target.address == *address));
            runtime.last.retain(|pod, _| targets.iter().any(|target| target.pod == *pod));
            runtime.targets = targets;
            runtime.gathered = None;
        }
    }

    /// What the nodes of a runtime say; `None` when its nodes are not known (yet).
    pub async fn gather(&self, runtime: &RuntimeName) -> Option<Arc<Gathered>> {
        let shared = self.all().get(runtime).cloned()?;
        // Held while asking: who comes meanwhile gets the same answers.
        let mut runtime = shared.lock().await;
        if let Some(gathered) = runtime.gathered.as_ref().filter(|gathered| gathered.at.elapsed() < FRESH) {
            return Some(gathered.clone());
        }
        let gathered = Arc::new(runtime.ask().await);
        runtime.gathered = Some(gathered.clone());
        Some(gathered)
    }

    /// Forgets a runtime.
    pub fn forget(&self, runtime: &RuntimeName) {
        self.all().remove(runtime);
    }

    fn all(&self) -> MutexGuard<'_, HashMap<RuntimeName, Shared>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Runtime {
    async fn ask(&mut self) -> Gathered {
        let targets = self.targets.clone();
        let channels: Vec<_> = targets.iter().map(|target| self.channel(target.address)).collect();
        let answers = join_all(channels.into_iter().map(|channel| async move { status(channel?).await })).await;
        let now = Instant::now();
        let mut nodes = Vec::new();
        for (target, status) in targets.into_iter().zip(answers) {
            if let Ok(status) = &status {
                self.last.insert(target.pod.clone(), (now, status.clone()));
            }
            let last =
                self.last.get(&target.pod).filter(|(at, _)| at.elapsed() < REMEMBERED).map(|(_, last)| last.clone());
            nodes.push(NodeState { target, status, last });
        }
        Gathered { at: now, nodes }
    }

    fn channel(&mut self, address: SocketAddr) -> Result<Channel, String> {
        if let Some(channel) = self.channels.get(&address) {
            return Ok(channel.clone());
        }
        let (_, identity) = self.identity.as_ref().ok_or("no identity")?;
        let channel = Endpoint::from_shared(format!("https://{address}"))
            .and_then(|endpoint| endpoint.tls_config(identity.operator().client()))
            .map_err(|error| error.to_string())?
            .connect_timeout(TIMEOUT)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(TIMEOUT)
            .connect_lazy();
        self.channels.insert(address, channel.clone());
        Ok(channel)
    }
}

async fn status(channel: Channel) -> Result<StatusResponse, String> {
    let mut client = NodeClient::new(channel);
    match tokio::time::timeout(TIMEOUT, client.status(StatusRequest {})).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
    }
}
