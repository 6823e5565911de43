//! Events on pods: what happens to their volumes after they have started, which no call of the kubelet can tell.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use crate::datasets::Datasets;
use crate::paths::DRIVER;
use crate::volumes::Pod;

/// Publishes Events, where there is a cluster. Clones are the same.
#[derive(Clone)]
pub struct Events {
    recorder: Option<Recorder>,
}

impl Events {
    /// In the name of the driver on this node.
    pub fn new(datasets: &Datasets, node: &str) -> Self {
        let recorder = match datasets {
            Datasets::ApiServer(client) => {
                let reporter = Reporter { controller: DRIVER.to_owned(), instance: Some(node.to_owned()) };
                Some(Recorder::new(client.clone(), reporter))
            }
            Datasets::File(_) => None,
        };
        Self { recorder }
    }

    /// Warns the users of a pod. What can't be published is logged.
    pub async fn warn(&self, pod: &Pod, reason: &str, note: &str) {
        tracing::warn!(pod = pod.name, namespace = pod.namespace, reason, "{note}");
        let Some(recorder) = &self.recorder else { return };
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.namespace.clone()),
            name: Some(pod.name.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(note.to_owned()),
            action: "Mount".to_owned(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, &reference).await {
            tracing::warn!(%error, pod = pod.name, namespace = pod.namespace, reason, "publishing an Event");
        }
    }
}
