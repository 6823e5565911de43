//! What all reconciliations share: the client, the stores of watched objects, and what is remembered between them. Everything that must outlive
//! the operator is in the API server; what is only here may be lost at any time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use forebay_crds::{CacheRuntime, Dataset};
use forebay_protocol::config::{RuntimeConfig, RuntimeName};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Secret};
use kube::api::ListParams;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::Store;
use kube::{Api, Client};

use crate::Arguments;
use crate::cache_runtime::members::Membership;
use crate::dataset::throughput::Samples;
use crate::health::Metrics;
use crate::identity::RuntimeIdentity;
use crate::nodes::Nodes;
use crate::objects::Applied;
use crate::problem::{Error, found};
use crate::ttl_cache::TtlCache;

/// How old the answer to a question of an object that is not watched may be.
const FRESH: Duration = Duration::from_secs(4);

/// What the operator remembers of a runtime.
#[derive(Default)]
pub struct RuntimeMemory {
    /// Members, with those that are not reachable for the moment.
    pub membership: Membership,
    /// The configuration that is in the Secret.
    pub published: Option<Arc<RuntimeConfig>>,
    /// What an earlier operator published has been read.
    pub recalled: bool,
    /// The runtime's certificates.
    pub identity: Option<RuntimeIdentity>,
    /// Datasets are in the configuration since all members were there, or since it was waited for long enough.
    pub open: bool,
    /// When the first member of a runtime that is not open yet appeared.
    pub first_member_at: Option<Instant>,
}

/// What all reconciliations share.
pub struct Context {
    /// Of the API server.
    pub client: Client,
    /// The command line.
    pub arguments: Arguments,
    /// Counts.
    pub metrics: Metrics,
    /// Of Events.
    pub recorder: Recorder,
    /// All nodes of the cluster.
    pub node_store: Store<Node>,
    /// All CacheRuntimes.
    pub runtime_store: Store<CacheRuntime>,
    /// All Datasets.
    pub dataset_store: Store<Dataset>,
    /// The cache nodes' API.
    pub nodes: Nodes,
    /// What was applied lately.
    pub applied: Applied,
    secrets: TtlCache<(String, String), Option<Secret>>,
    namespaces: TtlCache<String, Option<Namespace>>,
    pods: TtlCache<String, Arc<Vec<Pod>>>,
    runtimes: Mutex<HashMap<RuntimeName, RuntimeMemory>>,
    samples: Mutex<HashMap<String, Samples>>,
    waiting: Mutex<HashMap<String, Instant>>,
    bound: Mutex<HashSet<String>>,
}

impl Context {
    /// A context that remembers nothing.
    pub fn new(
        client: Client,
        arguments: Arguments,
        metrics: Metrics,
        node_store: Store<Node>,
        runtime_store: Store<CacheRuntime>,
        dataset_store: Store<Dataset>,
    ) -> Self {
        let reporter = Reporter { controller: crate::NAME.to_owned(), instance: Some(arguments.identity.clone()) };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            arguments,
            metrics,
            node_store,
            runtime_store,
            dataset_store,
            nodes: Nodes::default(),
            applied: Applied::default(),
            secrets: TtlCache::new(FRESH),
            namespaces: TtlCache::new(FRESH),
            pods: TtlCache::new(FRESH),
            runtimes: Mutex::default(),
            samples: Mutex::default(),
            waiting: Mutex::default(),
            bound: Mutex::default(),
        }
    }

    /// Waits until all stores hold what the API server has. A configuration rendered from half a store would have nodes drop what they hold.
    pub async fn ready(&self) {
        // An error means that the writer is gone, which is when the process ends.
        let _ = self.node_store.wait_until_ready().await;
        let _ = self.runtime_store.wait_until_ready().await;
        let _ = self.dataset_store.wait_until_ready().await;
    }

    /// A Secret, at most a few seconds old.
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, Error> {
        let api = Api::<Secret>::namespaced(self.client.clone(), namespace);
        let load = async { found(api.get(name).await) };
        let key = (namespace.to_owned(), name.to_owned());
        self.secrets.get(&key, load).await.map_err(Error::api(format!("reading the Secret {namespace}/{name}")))
    }

    /// A namespace's labels, at most a few seconds old.
    pub async fn namespace_labels(&self, name: &str) -> Result<BTreeMap<String, String>, Error> {
        let api = Api::<Namespace>::all(self.client.clone());
        let load = async { found(api.get(name).await) };
        let namespace = self
            .namespaces
            .get(&name.to_owned(), load)
            .await
            .map_err(Error::api(format!("reading the namespace {name}")))?;
        Ok(namespace.and_then(|namespace| namespace.metadata.labels).unwrap_or_default())
    }

    /// The pods of a namespace, at most a few seconds old.
    pub async fn pods(&self, namespace: &str) -> Result<Arc<Vec<Pod>>, Error> {
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        // Version 0: any version the API server has at hand, without asking etcd.
        let parameters = ListParams::default().match_any();
        let load = async { api.list(&parameters).await.map(|list| Arc::new(list.items)) };
        self.pods.get(&namespace.to_owned(), load).await.map_err(Error::api(format!("listing the pods of {namespace}")))
    }

    /// What is remembered of a runtime. The guard is not to be held across an await.
    pub fn runtime<T>(&self, name: &RuntimeName, use_memory: impl FnOnce(&mut RuntimeMemory) -> T) -> T {
        use_memory(lock(&self.runtimes).entry(name.clone()).or_default())
    }

    /// The configuration that is in a runtime's Secret, as far as this operator knows.
    pub fn published(&self, name: &RuntimeName) -> Option<Arc<RuntimeConfig>> {
        lock(&self.runtimes).get(name).and_then(|memory| memory.published.clone())
    }

    /// Forgets a runtime.
    pub fn forget_runtime(&self, name: &RuntimeName) {
        lock(&self.runtimes).remove(name);
        self.nodes.forget(name);
    }

    /// The samples of a Dataset's load.
    pub fn samples<T>(&self, uid: &str, use_samples: impl FnOnce(&mut Samples) -> T) -> T {
        use_samples(lock(&self.samples).entry(uid.to_owned()).or_default())
    }

    /// How long `key` has been waited for; the first call starts the clock.
    pub fn waiting(&self, key: &str) -> Duration {
        lock(&self.waiting).entry(key.to_owned()).or_insert_with(Instant::now).elapsed()
    }

    /// Whether the claim of the Dataset with this UID was seen bound.
    pub fn is_bound(&self, uid: &str) -> bool {
        lock(&self.bound).contains(uid)
    }

    /// The claim of the Dataset with this UID is bound.
    pub fn set_bound(&self, uid: &str) {
        lock(&self.bound).insert(uid.to_owned());
    }

    /// Forgets an object by its UID.
    pub fn forget(&self, uid: &str) {
        lock(&self.bound).remove(uid);
        lock(&self.samples).remove(uid);
        lock(&self.waiting).retain(|key, _| !key.starts_with(uid));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
