//! Kubernetes Events on transitions of conditions: what `kubectl describe` shows below an object.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Resource;
use kube::runtime::events::{Event, EventType, Recorder};

use crate::conditions::changed;

/// Reasons of states that every object passes through: their beginning is no news.
const TRANSIENT: [&str; 6] =
    ["Listing", "WaitingForNodes", "WaitingForRuntime", "WaitingForCatalog", "NotKnownYet", "Loading"];

/// Something that happened to a cache node, for an Event of its runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Bad news.
    pub warning: bool,
    /// One CamelCase word.
    pub reason: String,
    /// The cache node's pod.
    pub pod: String,
    /// Object, cause, next step.
    pub note: String,
}

impl News {
    /// Something that is as it should be.
    pub fn normal(reason: &str, pod: &str, note: String) -> Self {
        Self { warning: false, reason: reason.to_owned(), pod: pod.to_owned(), note }
    }

    /// Something that somebody should look at.
    pub fn warning(reason: &str, pod: &str, note: String) -> Self {
        Self { warning: true, ..Self::normal(reason, pod, note) }
    }
}

/// Publishes an Event of `object` for each piece of news. The pod it is about is in the Event too, so that the news of two pods are two Events.
pub async fn publish_news<K>(recorder: &Recorder, object: &K, news: &[News])
where
    K: Resource<DynamicType = ()>,
{
    for news in news {
        let pod = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: object.meta().namespace.clone(),
            name: Some(news.pod.clone()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: if news.warning { EventType::Warning } else { EventType::Normal },
            reason: news.reason.clone(),
            note: Some(news.note.chars().take(1000).collect()),
            action: "CacheNode".to_owned(),
            secondary: Some(pod),
        };
        send(recorder, object, &event).await;
    }
}

/// Publishes an Event for each condition that changed its status or reason. A failure is logged, nothing else.
pub async fn publish_transitions<K>(recorder: &Recorder, object: &K, old: &[Condition], new: &[Condition])
where
    K: Resource<DynamicType = ()>,
{
    for condition in changed(old, new) {
        let first_time = !old.iter().any(|old| old.type_ == condition.type_);
        let quiet = TRANSIENT.contains(&condition.reason.as_str()) || first_time && condition.reason == "NotRequested";
        // Ready repeats what another condition says, unless it is good news.
        let repeated = condition.type_ == "Ready"
            && condition.status != "True"
            && new.iter().any(|other| other.type_ != "Ready" && other.reason == condition.reason);
        // Each new fault is an Event of its own.
        let told = condition.type_ == "StorageHealthy" && (first_time || condition.status != "True");
        if quiet || repeated || told {
            continue;
        }
        let type_ = if condition.status == "False" { EventType::Warning } else { EventType::Normal };
        publish(recorder, object, type_, &condition.reason, &condition.type_, &condition.message).await;
    }
}

/// Publishes one Event.
pub async fn publish<K>(recorder: &Recorder, object: &K, type_: EventType, reason: &str, action: &str, note: &str)
where
    K: Resource<DynamicType = ()>,
{
    let event = Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note.chars().take(1000).collect()),
        action: action.to_owned(),
        secondary: None,
    };
    send(recorder, object, &event).await;
}

async fn send<K>(recorder: &Recorder, object: &K, event: &Event)
where
    K: Resource<DynamicType = ()>,
{
    if let Err(error) = recorder.publish(event, &object.object_ref(&())).await {
        tracing::warn!(%error, reason = event.reason, "publishing an Event");
    }
}
