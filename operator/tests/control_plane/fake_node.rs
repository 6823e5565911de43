//! A cache node that answers as a real one would, and its pod.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay_operator::cache_runtime::build::read_config;
use forebay_protocol::config::{DatasetConfig, RuntimeConfig};
use forebay_protocol::node::node_server::{Node, NodeServer};
use forebay_protocol::node::{
    AdoptRequest, AdoptResponse, CatalogInfo, DatasetStatus, DiskFault, Drain, PreloadProgress, ReadCatalogRequest,
    ReadCatalogResponse, StatusRequest, StatusResponse,
};
use forebay_protocol::tls::Identity;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::world::{create, wait};

/// A cache node that has done at once what its configuration says.
#[derive(Clone)]
pub struct FakeNode {
    id: String,
    config: Arc<Mutex<Option<RuntimeConfig>>>,
    says: Arc<Mutex<Says>>,
}

/// What a test has a node say beside.
#[derive(Default)]
pub struct Says {
    /// Of 10 GiB, what it has not handed over yet; said only while it is leaving.
    pub remaining: u64,
    pub faults: Vec<DiskFault>,
}

impl FakeNode {
    fn answer(&self) -> StatusResponse {
        let mut answer = StatusResponse { node_id: self.id.clone(), ..StatusResponse::default() };
        let config = self.config.lock().unwrap();
        let Some(config) = config.as_ref() else { return answer };
        let size = 3 << 20;
        let dataset = |dataset: &DatasetConfig| DatasetStatus {
            uid: dataset.uid.clone(),
            catalog: Some(CatalogInfo {
                id: "c1".into(),
                files: 3,
                bytes: size,
                directories: 1,
                ..CatalogInfo::default()
            }),
            owned_cached_bytes: size,
            preload: Some(PreloadProgress {
                total_files: 3,
                loaded_files: 3,
                total_bytes: size,
                loaded_bytes: size,
                ..PreloadProgress::default()
            }),
            ..DatasetStatus::default()
        };
        answer.revision.clone_from(&config.revision);
        answer.capacity_bytes = config.node.capacity_bytes;
        answer.erased = config.erase;
        answer.datasets = config.datasets.iter().map(dataset).collect();
        let says = self.says.lock().unwrap();
        answer.disk_faults.clone_from(&says.faults);
        let me = config.members.iter().find(|member| member.id.as_ref() == Some(&self.id));
        answer.drain = me.filter(|me| !me.state.is_active()).map(|_| Drain {
            total_bytes: 10 << 30,
            remaining_bytes: says.remaining,
            done: says.remaining == 0,
            problem: None,
        });
        answer
    }
}

#[tonic::async_trait]
impl Node for FakeNode {
    type ReadCatalogStream = BoxStream<'static, Result<ReadCatalogResponse, tonic::Status>>;

    async fn status(&self, _: tonic::Request<StatusRequest>) -> Result<tonic::Response<StatusResponse>, tonic::Status> {
        Ok(tonic::Response::new(self.answer()))
    }

    async fn read_catalog(
        &self,
        _: tonic::Request<ReadCatalogRequest>,
    ) -> Result<tonic::Response<Self::ReadCatalogStream>, tonic::Status> {
        Err(tonic::Status::unimplemented("the operator does not read"))
    }

    async fn adopt(&self, _: tonic::Request<AdoptRequest>) -> Result<tonic::Response<AdoptResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("only cache nodes hand over"))
    }
}

/// Plays kubelet and cache node for a runtime's only pod.
pub async fn start_node(client: &Client, namespace: &str, runtime: &str, address: SocketAddr) {
    start_node_on(client, namespace, &format!("{runtime}-0"), "n1", address).await;
}

/// Plays kubelet and cache node for one pod of a runtime: the pod has an address where the node answers, and the node reads the Secret. What it
/// says can be changed.
pub async fn start_node_on(
    client: &Client,
    namespace: &str,
    name: &str,
    node: &str,
    address: SocketAddr,
) -> Arc<Mutex<Says>> {
    let (runtime, ordinal) = name.rsplit_once('-').unwrap();
    let pod = json!({
        "metadata": {"name": name, "labels": {"forebay.dev/runtime": runtime}},
        "spec": {"nodeName": node, "containers": [{"name": "forebay-node", "image": "x"}]},
    });
    let pods = create::<Pod>(client, namespace, pod).await;
    let status = json!({"status": {"phase": "Running", "podIP": address.ip(), "podIPs": [{"ip": address.ip()}]}});
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();

    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let name = format!("{runtime}-config");
    let secret = wait(&secrets, &name, |secret| Some(secret.clone())).await;
    let text = |key: &str| secret.data.as_ref().unwrap()[key].0.clone();
    let identity = Identity::from_pem(text("ca.crt"), text("tls.crt"), text("tls.key"));
    let id = if ordinal == "0" { format!("id-of-{runtime}") } else { format!("id-{ordinal}-of-{runtime}") };
    let node = FakeNode { id, config: Arc::default(), says: Arc::default() };
    let (config, says) = (node.config.clone(), node.says.clone());
    tokio::spawn(async move {
        loop {
            if let Ok(Some(secret)) = secrets.get_opt(&name).await {
                *config.lock().unwrap() = read_config(&secret);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let server =
        tonic::transport::Server::builder().tls_config(identity.server()).unwrap().add_service(NodeServer::new(node));
    tokio::spawn(server.serve(address));
    says
}
