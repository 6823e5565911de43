//! Kubernetes Events on transitions of conditions: what `kubectl describe` shows below an object.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Resource;
use kube::runtime::events::{Event, EventType, Recorder};

use crate::conditions::changed;

/// Reasons of states that every object passes through: their beginning is no news.
const TRANSIENT: [&str; 6] =
    ["Listing", "WaitingForNodes", "WaitingForRuntime", "WaitingForCatalog", "NotKnownYet", "Loading"];

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
        if quiet || repeated {
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
    if let Err(error) = recorder.publish(&event, &object.object_ref(&())).await {
        tracing::warn!(%error, reason, "publishing an Event");
    }
}
