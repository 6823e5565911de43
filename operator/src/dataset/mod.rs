//! The controller of Datasets: a volume and a claim for each, and a status made of what the nodes report. The nodes' configuration is written by
//! the controller of CacheRuntimes alone, which resolves Datasets by the same functions.

mod apply;
pub mod build;
pub mod dereference;
pub mod status;
pub mod throughput;
mod update_status;
pub mod validate;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use forebay_crds::{CacheRuntime, Dataset, MountedOn};
use forebay_protocol::config::RuntimeName;
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Config, Controller, watcher};
use kube::{Api, Client, ResourceExt as _};

use self::status::{Observation, in_motion, status, terminating};
use self::validate::validate;
use crate::context::Context;
use crate::nodes::{Gathered, REMEMBERED};
use crate::objects::{add_finalizer, remove_finalizer};
use crate::problem::{Error, Problem};

/// Keeps a Dataset until claim, volume and cached content are gone.
pub const FINALIZER: &str = "forebay.dev/dataset";
/// Reason of the condition Ready of a Dataset whose volume is gone: the nodes are to forget it.
pub const REMOVING: &str = "RemovingFromNodes";

/// While something is under way.
const SOON: Duration = Duration::from_millis(1500);
/// Otherwise.
const LATER: Duration = Duration::from_secs(10);

/// The runtime that a Dataset refers to.
pub fn runtime_name(dataset: &Dataset) -> Option<RuntimeName> {
    let runtime = dataset.spec.runtime_ref.as_ref()?;
    let namespace = runtime.namespace.clone().or_else(|| dataset.namespace())?;
    Some(RuntimeName { namespace, name: runtime.name.clone() })
}

/// Whether the nodes are to forget the Dataset.
pub fn is_being_removed(dataset: &Dataset) -> bool {
    let conditions = dataset.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    dataset.metadata.deletion_timestamp.is_some()
        && crate::conditions::find(conditions, "Ready").is_some_and(|ready| ready.reason == REMOVING)
}

/// A controller that does not run yet, so that its store can be shared.
pub fn controller(client: &Client) -> Controller<Dataset> {
    let controller = Controller::new(Api::<Dataset>::all(client.clone()), watcher::Config::default());
    let datasets = controller.store();
    controller
        .owns(Api::<PersistentVolumeClaim>::all(client.clone()), watcher::Config::default())
        // A runtime that appears, changes or goes concerns all that refer to it.
        .watches(Api::<CacheRuntime>::all(client.clone()), watcher::Config::default(), move |runtime| {
            let name = RuntimeName { namespace: runtime.namespace().unwrap_or_default(), name: runtime.name_any() };
            let of_runtime = datasets.state_filter(|dataset: &Dataset| runtime_name(dataset).as_ref() == Some(&name));
            of_runtime.iter().map(|dataset| ObjectRef::from_obj(dataset.as_ref())).collect::<Vec<_>>()
        })
        .with_config(Config::default().concurrency(16).debounce(Duration::from_millis(100)))
}

/// Runs the controller; ends only by being dropped.
pub async fn run(controller: Controller<Dataset>, context: Arc<Context>) {
    controller
        .run(reconcile, on_error, context.clone())
        .for_each(async |result| {
            if let Err(error) = result {
                tracing::debug!(%error, "controller of Datasets");
            }
        })
        .await;
}

#[allow(clippy::needless_pass_by_value, reason = "the controller's signature")]
fn on_error(dataset: Arc<Dataset>, error: &Error, _: Arc<Context>) -> Action {
    tracing::warn!(namespace = dataset.namespace(), dataset = dataset.name_any(), %error, "reconciling a Dataset");
    Action::requeue(Duration::from_secs(3))
}

async fn reconcile(dataset: Arc<Dataset>, context: Arc<Context>) -> Result<Action, Error> {
    context.ready().await;
    let result = if dataset.metadata.deletion_timestamp.is_some() {
        clean_up(&dataset, &context).await
    } else {
        keep(&dataset, &context).await
    };
    context.metrics.reconciled("dataset", result.is_ok());
    result
}

async fn keep(dataset: &Dataset, context: &Context) -> Result<Action, Error> {
    let namespace = dataset.namespace().ok_or(Error::Incomplete("namespace"))?;
    let uid = dataset.uid().ok_or(Error::Incomplete("UID"))?;
    let api = Api::<Dataset>::namespaced(context.client.clone(), &namespace);
    add_finalizer(&api, dataset, FINALIZER).await?;

    let resolved = dereference::resolve(context, dataset).await?;
    let bound = match validate(dataset) {
        Ok(valid) => apply::apply(context, dataset, &valid).await?,
        Err(_) => true,
    };

    let runtime = runtime_name(dataset).ok_or(Error::Incomplete("runtimeRef"))?;
    let gathered = context.nodes.gather(&runtime).await;
    let reports: Vec<_> = gathered
        .iter()
        .flat_map(|gathered| gathered.answers())
        .flat_map(|answer| &answer.datasets)
        .filter(|report| report.uid == uid)
        .collect();
    let nodes =
        gathered.as_ref().map(|gathered| (gathered.present().count(), gathered.nodes.len())).unwrap_or_default();
    let loaded = reports.iter().filter_map(|report| report.preload.as_ref()).map(|preload| preload.loaded_bytes).sum();
    let throughput = context.samples(&uid, |samples| {
        if let Some(gathered) = &gathered {
            samples.add(gathered.at, loaded);
        }
        samples.bytes_per_second()
    });
    let config = context.published(&runtime);
    let published = config.as_ref().is_some_and(|config| config.datasets.iter().any(|entry| entry.uid == uid));
    let members = config.as_ref().map(|config| config.members.as_slice()).unwrap_or_default();
    let owners = members.iter().filter(|member| member.state.is_active()).count();
    let status = status(&Observation {
        dataset,
        problem: resolved.as_ref().err(),
        reports,
        nodes,
        owners,
        published,
        throughput,
        mounted_on: mounted_on(&context.pods(&namespace).await?, &dataset.name_any()),
        now: Timestamp::now(),
    });
    update_status::update_status(context, dataset, &status).await?;
    Ok(Action::requeue(if !bound || in_motion(&status) { SOON } else { LATER }))
}

async fn clean_up(dataset: &Dataset, context: &Context) -> Result<Action, Error> {
    if !dataset.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        return Ok(Action::await_change());
    }
    let namespace = dataset.namespace().ok_or(Error::Incomplete("namespace"))?;
    let uid = dataset.uid().ok_or(Error::Incomplete("UID"))?;
    let mounted_on = mounted_on(&context.pods(&namespace).await?, &dataset.name_any());
    let users: Vec<String> = mounted_on.iter().flat_map(|mounted| mounted.pods.clone()).collect();
    let waits_for = match apply::remove(context, dataset, &users).await? {
        Some(problem) => Some(problem),
        // The controller of CacheRuntimes leaves it out of the configuration once the condition says this.
        None if !is_being_removed(dataset) => Some(Problem::new(REMOVING, "the cache nodes are removing its content")),
        None => held_by_nodes(dataset, &uid, context).await,
    };
    if let Some(waits_for) = waits_for {
        let status = terminating(dataset, &waits_for, mounted_on, Timestamp::now());
        update_status::update_status(context, dataset, &status).await?;
        return Ok(Action::requeue(SOON));
    }
    let api = Api::<Dataset>::namespaced(context.client.clone(), &namespace);
    remove_finalizer(&api, dataset, FINALIZER).await?;
    context.forget(&uid);
    Ok(Action::await_change())
}

/// What still holds the Dataset's content; `None` when nothing does, or when it is not reachable for too long.
async fn held_by_nodes(dataset: &Dataset, uid: &str, context: &Context) -> Option<Problem> {
    let runtime = runtime_name(dataset)?;
    dereference::find_runtime(context, &runtime)?;
    let waited = context.waiting(&format!("{uid}/removal"));
    let gathered = context.nodes.gather(&runtime).await;
    let published = context.published(&runtime);
    let Some((gathered, config)) = gathered.zip(published) else {
        // A runtime that never came up holds nothing; an operator that has just started knows it in a moment.
        return (waited < REMEMBERED)
            .then(|| Problem::new(REMOVING, format!("the CacheRuntime {runtime} has no configuration yet")));
    };
    if config.datasets.iter().any(|entry| entry.uid == uid) {
        return Some(Problem::new(REMOVING, "its entry is being removed from the cache nodes' configuration"));
    }
    let holders = holders(&gathered, uid, &config.revision, waited);
    let message = format!("the cache nodes {} have not removed its content yet", holders.join(", "));
    (!holders.is_empty()).then(|| Problem::new(REMOVING, message))
}

/// Pods of the nodes that hold the Dataset or have not said that they don't.
fn holders(gathered: &Gathered, uid: &str, revision: &str, waited: Duration) -> Vec<String> {
    gathered
        .nodes
        .iter()
        .filter(|node| match &node.status {
            // A node that has this configuration and does not name the Dataset has removed it.
            Ok(status) => status.revision != revision || status.datasets.iter().any(|report| report.uid == uid),
            Err(_) => waited < REMEMBERED,
        })
        .map(|node| node.target.pod.clone())
        .collect()
}

/// The nodes on which pods use a claim, sorted.
fn mounted_on(pods: &[Pod], claim: &str) -> Vec<MountedOn> {
    let mut nodes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pod in pods {
        let Some(spec) = &pod.spec else { continue };
        let uses = spec
            .volumes
            .iter()
            .flatten()
            .any(|volume| volume.persistent_volume_claim.as_ref().is_some_and(|source| source.claim_name == claim));
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        if let (true, Some(node), "Pending" | "Running" | "Unknown") = (uses, &spec.node_name, phase) {
            nodes.entry(node.clone()).or_default().push(pod.name_any());
        }
    }
    nodes
        .into_iter()
        .map(|(node, mut pods)| {
            pods.sort();
            MountedOn { node, pods }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use forebay_protocol::node::{DatasetStatus, StatusResponse};
    use serde_json::json;

    use super::*;
    use crate::nodes::{NodeState, Target};

    #[test]
    fn pods_that_use_the_claim_are_listed_by_node() {
        let pod = |name: &str, node: &str, claim: &str, phase: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": name},
                "spec": {"nodeName": node, "containers": [], "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]},
                "status": {"phase": phase},
            }))
            .unwrap()
        };
        let pods = [
            pod("b", "n1", "images", "Running"),
            pod("a", "n1", "images", "Pending"),
            pod("c", "n2", "other", "Running"),
            pod("d", "n2", "images", "Succeeded"),
        ];
        assert_eq!(mounted_on(&pods, "images"), [MountedOn { node: "n1".into(), pods: vec!["a".into(), "b".into()] }]);
    }

    #[test]
    fn a_finalizer_waits_for_nodes_that_answer_and_a_minute_for_those_that_do_not() {
        let node = |pod: &str, status: Result<StatusResponse, String>| NodeState {
            target: Target { pod: pod.into(), node: "n".into(), address: ([10, 0, 0, 1], 7070).into() },
            status,
            last: None,
        };
        let answer = |revision: &str, uids: &[&str]| StatusResponse {
            revision: revision.into(),
            datasets: uids.iter().map(|uid| DatasetStatus { uid: (*uid).into(), ..DatasetStatus::default() }).collect(),
            ..StatusResponse::default()
        };
        let gathered = Gathered {
            at: Instant::now(),
            nodes: vec![
                node("done", Ok(answer("new", &["other"]))),
                node("holds", Ok(answer("new", &["u1"]))),
                node("behind", Ok(answer("old", &[]))),
                node("silent", Err("no answer".into())),
            ],
        };
        assert_eq!(holders(&gathered, "u1", "new", Duration::from_secs(5)), ["holds", "behind", "silent"]);
        assert_eq!(holders(&gathered, "u1", "new", Duration::from_secs(61)), ["holds", "behind"]);
    }
}
