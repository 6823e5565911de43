//! The controller of CacheRuntimes: cache nodes on the cluster's nodes, and the one Secret that tells them what to do. It alone writes that
//! Secret, from all Datasets that refer to the runtime.

mod apply;
pub mod build;
mod dereference;
pub mod leaving;
pub mod members;
mod selection;
mod status;
pub mod validate;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_crds::{CacheRuntime, Dataset};
use forebay_protocol::config::{Member, RuntimeConfig, RuntimeName};
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Config, Controller, watcher};
use kube::{Api, Client, ResourceExt as _};

use self::build::{RUNTIME_LABEL, config};
use self::leaving::{Leaving, Situation};
use self::members::Present;
use self::selection::{desired_replicas, zone};
use self::status::{Observation, status, update_status};
use self::validate::ValidRuntime;
use crate::context::{Context, RuntimeMemory};
use crate::nodes::{Gathered, NodeState, REMEMBERED};
use crate::objects::{add_finalizer, remove_finalizer};
use crate::problem::{Error, Problem};

/// Keeps a CacheRuntime until its nodes have emptied their cache folders.
pub const FINALIZER: &str = "forebay.dev/cacheruntime";

const SOON: Duration = Duration::from_millis(1500);
const LATER: Duration = Duration::from_secs(10);

/// Datasets wait this long at most for all nodes of a new runtime: whoever is there alone would read everything from the source, and most of it
/// would be read again by those who own it later.
const GATHERING: Duration = Duration::from_secs(60);

/// A controller that does not run yet, so that its store can be shared.
pub fn controller(client: &Client) -> Controller<CacheRuntime> {
    let pods = watcher::Config::default().labels(RUNTIME_LABEL);
    Controller::new(Api::<CacheRuntime>::all(client.clone()), watcher::Config::default())
        .owns(Api::<StatefulSet>::all(client.clone()), watcher::Config::default())
        .watches(Api::<Pod>::all(client.clone()), pods, |pod| {
            let name = pod.labels().get(RUNTIME_LABEL)?;
            Some(ObjectRef::new(name).within(&pod.namespace()?))
        })
        .watches(Api::<Dataset>::all(client.clone()), watcher::Config::default(), |dataset| {
            crate::dataset::runtime_name(&dataset)
                .map(|runtime| ObjectRef::new(&runtime.name).within(&runtime.namespace))
        })
        .with_config(Config::default().concurrency(8).debounce(Duration::from_millis(100)))
}

/// Runs the controller; ends only by being dropped.
pub async fn run(controller: Controller<CacheRuntime>, context: Arc<Context>) {
    controller
        .run(reconcile, on_error, context.clone())
        .for_each(async |result| {
            if let Err(error) = result {
                tracing::debug!(%error, "controller of CacheRuntimes");
            }
        })
        .await;
}

#[allow(clippy::needless_pass_by_value, reason = "the controller's signature")]
fn on_error(runtime: Arc<CacheRuntime>, error: &Error, _: Arc<Context>) -> Action {
    tracing::warn!(namespace = runtime.namespace(), runtime = runtime.name_any(), %error, "reconciling a CacheRuntime");
    Action::requeue(Duration::from_secs(3))
}

async fn reconcile(runtime: Arc<CacheRuntime>, context: Arc<Context>) -> Result<Action, Error> {
    context.ready().await;
    let result = advance(&runtime, &context).await;
    context.metrics.reconciled("cacheruntime", result.is_ok());
    result
}

async fn advance(runtime: &CacheRuntime, context: &Context) -> Result<Action, Error> {
    let namespace = runtime.namespace().ok_or(Error::Incomplete("namespace"))?;
    let name = RuntimeName { namespace, name: runtime.name_any() };
    let uid = runtime.uid().ok_or(Error::Incomplete("UID"))?;
    let api = Api::<CacheRuntime>::namespaced(context.client.clone(), &name.namespace);
    let deleted = runtime.metadata.deletion_timestamp.is_some();
    if deleted && !runtime.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        return Ok(Action::await_change());
    }
    if !deleted {
        add_finalizer(&api, runtime, FINALIZER).await?;
    }

    let datasets = dereference::datasets(context, &name);
    let deleting = deleted.then(|| referred(&datasets)).flatten();
    let erase = deleted && deleting.is_none();

    let arguments = &context.arguments;
    let roots =
        validate::Roots { cache: &arguments.cache_root, memory: &arguments.memory_root, run: &arguments.run_dir };
    let valid = validate::validate(runtime, roots);
    let built = match &valid {
        Ok(valid) => {
            let life = if erase {
                Life::Erasing
            } else if deleted {
                Life::Deleting
            } else {
                Life::Serving
            };
            Some(build_and_apply(runtime, valid, &datasets, life, context).await?)
        }
        Err(_) => None,
    };
    let deleting = match (erase, &built) {
        (true, Some(built)) => not_erased(built, &uid, context),
        _ => deleting,
    };
    if deleted && deleting.is_none() {
        remove_finalizer(&api, runtime, FINALIZER).await?;
        context.forget_runtime(&name);
        context.forget(&uid);
        return Ok(Action::await_change());
    }

    let nobody = BTreeMap::new();
    let departures = built.as_ref().map_or(&nobody, |built| &built.leaving.departures);
    let status = status(&Observation {
        runtime,
        problem: valid.as_ref().err(),
        deleting: deleting.as_ref(),
        desired: built.as_ref().map(|built| built.desired).unwrap_or_default(),
        pods: built.as_ref().map(|built| built.pods.as_slice()).unwrap_or_default(),
        gathered: built.as_ref().and_then(|built| built.gathered.as_deref()),
        members: built.as_ref().map(|built| built.config.members.as_slice()).unwrap_or_default(),
        departures,
        datasets: built.as_ref().map(|built| built.config.datasets.len()).unwrap_or_default(),
        now: Timestamp::now(),
    });
    update_status(context, runtime, &status, departures).await?;
    let settled = status.phase == Some(forebay_crds::RuntimePhase::Ready)
        && departures.is_empty()
        && built.as_ref().is_some_and(Built::is_applied)
        && !datasets.iter().any(|dataset| dataset.status.as_ref().is_none_or(crate::dataset::status::in_motion));
    Ok(Action::requeue(if settled { LATER } else { SOON }))
}

/// What a reconciliation arrived at.
struct Built {
    desired: i32,
    pods: Vec<Pod>,
    gathered: Option<Arc<Gathered>>,
    leaving: Leaving,
    config: Arc<RuntimeConfig>,
}

/// What a runtime is doing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Serving,
    /// It is to be deleted, and Datasets refer to it still.
    Deleting,
    /// Its nodes empty their cache folders.
    Erasing,
}

impl Built {
    /// All nodes that answer have the configuration.
    fn is_applied(&self) -> bool {
        self.gathered
            .iter()
            .flat_map(|gathered| gathered.present())
            .all(|answer| answer.revision == self.config.revision)
    }
}

async fn build_and_apply(
    owner: &CacheRuntime,
    runtime: &ValidRuntime,
    datasets: &[Arc<Dataset>],
    life: Life,
    context: &Context,
) -> Result<Built, Error> {
    let name = &runtime.name;
    let erase = life == Life::Erasing;
    dereference::recall(context, name).await?;
    let identity = dereference::identity(context, name).await?;
    let pods = dereference::pods(context, name).await?;
    context.nodes.set_targets(name, &identity, dereference::targets(&pods)).await;
    let gathered = context.nodes.gather(name).await;
    let nodes = context.node_store.state();
    let desired = desired_replicas(runtime, &nodes);
    let readers = dereference::readers(datasets);

    let now = Instant::now();
    let zones: HashMap<String, String> = nodes.iter().filter_map(|node| Some((node.name_any(), zone(node)?))).collect();
    let present = present(gathered.as_deref(), &zones);
    let addresses: BTreeSet<_> = pods.iter().filter_map(dereference::address).collect();
    let (members, leaving, open, previous) = context.runtime(name, |memory| {
        let published = memory.published.clone();
        if let Some(published) = &published {
            memory.membership.forget_left(&published.members, &addresses);
        }
        memory.membership.observe(present, now);
        let situation = Situation {
            runtime,
            desired,
            pods: &pods,
            nodes: &nodes,
            gathered: gathered.as_deref(),
            published: published.as_deref(),
            membership: &memory.membership,
            readers: &readers,
            old: owner.status.as_ref().map(|status| status.members.as_slice()).unwrap_or_default(),
            now: Timestamp::now(),
        };
        // One that goes as a whole has nobody to hand over to.
        let leaving = if life == Life::Serving {
            leaving::leaving(&situation)
        } else {
            Leaving::nobody(&pods, &name.name, desired)
        };
        let members = memory.membership.members(&leaving.addresses);
        memory.open = is_open(memory, &members, desired, now);
        (members, leaving, memory.open, published)
    });
    let entries =
        if open && !erase { dereference::entries(context, datasets, previous.as_deref()).await? } else { Vec::new() };
    let config = Arc::new(config(runtime, &context.arguments.run_dir, members, entries, erase));

    apply::secrets(context, owner, runtime, &identity, &config).await?;
    context.runtime(name, |memory| memory.published = Some(config.clone()));
    apply::objects(context, runtime, &build::objects(owner, runtime, leaving.replicas, &context.arguments)).await?;
    apply::evict(&context.client, &name.namespace, &leaving.evict).await;
    apply::touch(&context.client, &name.namespace, &pods, &config.revision).await;
    Ok(Built { desired, pods, gathered, leaving, config })
}

/// The nodes that answer.
fn present(gathered: Option<&Gathered>, zones: &HashMap<String, String>) -> Vec<Present> {
    let nodes = gathered.map(|gathered| gathered.nodes.as_slice()).unwrap_or_default();
    let present = |node: &NodeState| {
        let id = node.status.as_ref().ok()?.node_id.clone();
        let zone = zones.get(&node.target.node).cloned();
        (!id.is_empty()).then_some(Present { id, address: node.target.address, zone })
    };
    nodes.iter().filter_map(present).collect()
}

/// Whether Datasets are given to the nodes: once all are there, or those that are have waited long enough. Then for good.
fn is_open(memory: &mut RuntimeMemory, members: &[Member], desired: i32, now: Instant) -> bool {
    if memory.open || members.is_empty() {
        return memory.open;
    }
    let first = *memory.first_member_at.get_or_insert(now);
    members.len() >= desired.max(1) as usize || now.duration_since(first) >= GATHERING
}

/// Datasets that keep a runtime from being deleted.
fn referred(datasets: &[Arc<Dataset>]) -> Option<Problem> {
    let names: Vec<_> = datasets
        .iter()
        .map(|dataset| format!("{}/{}", dataset.namespace().unwrap_or_default(), dataset.name_any()))
        .collect();
    let message = format!("Datasets refer to it: {}; delete them first", names.join(", "));
    (!names.is_empty()).then(|| Problem::new("DatasetsRefer", message))
}

/// Nodes that have not emptied their cache folder. One that can't be reached is waited for a minute.
fn not_erased(built: &Built, uid: &str, context: &Context) -> Option<Problem> {
    let gathered = built.gathered.as_ref()?;
    let patient = context.waiting(&format!("{uid}/erase")) < REMEMBERED;
    let waiting = gathered.nodes.iter().filter(|node| match &node.status {
        Ok(status) => !status.erased,
        Err(_) => patient,
    });
    let names: Vec<_> = waiting.map(|node| node.target.pod.as_str()).collect();
    let message = format!("the cache nodes {} have not emptied their cache folder yet", names.join(", "));
    (!names.is_empty()).then(|| Problem::new("Erasing", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datasets_wait_for_all_nodes_of_a_new_runtime_and_then_never_again() {
        let member = |id: &str| Member { id: Some(id.into()), ..Member::at(([10, 0, 0, 1], 7070).into()) };
        let (mut memory, start) = (RuntimeMemory::default(), Instant::now());
        assert!(!is_open(&mut memory, &[], 2, start), "nobody is there");
        assert!(!is_open(&mut memory, &[member("a")], 2, start), "one is missing");
        assert!(is_open(&mut memory, &[member("a"), member("b")], 2, start));
        assert!(is_open(&mut memory, &[member("a")], 2, start + GATHERING), "waited long enough");
        memory.open = true;
        assert!(is_open(&mut memory, &[], 2, start), "what was given stays given");
    }
}
