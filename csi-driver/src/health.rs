//! `/metrics`, `/healthz` and `/readyz` of the plugin. Healthy is one that answers on its own CSI socket, whatever else is away: restarting it would
//! bring neither an API server back nor a cache node nor a daemon. Ready is one that has the session of the volumes that it found mounted.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use forebay_protocol::csi::{ProbeRequest, identity_client::IdentityClient};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tonic::transport::Endpoint;

use crate::broker::Broker;
use crate::node::Node;
use crate::paths::Paths;
use crate::server::ServerError;

/// How long the plugin's own CSI socket may take. Less than the chart's `timeoutSeconds`.
const CSI_PATIENCE: Duration = Duration::from_secs(5);

/// How long the daemon may take to answer. Less than Prometheus' `scrape_timeout`.
const DAEMON_PATIENCE: Duration = Duration::from_secs(1);

/// What the pages are made of.
#[derive(Clone)]
pub struct Pages {
    /// The node's volumes.
    pub node: Node,
    /// The session.
    pub broker: Broker,
    /// Where the sockets are.
    pub paths: Paths,
}

/// Ends serving when it is dropped.
pub struct Serving(AbortHandle);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Serves the pages.
pub async fn listen(address: SocketAddr, pages: Pages) -> Result<Serving, ServerError> {
    let listener = TcpListener::bind(address).await.map_err(|source| ServerError::Address { address, source })?;
    let router = Router::new()
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(pages);
    let serving = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "serving metrics and health");
        }
    });
    Ok(Serving(serving.abort_handle()))
}

async fn healthy(State(pages): State<Pages>) -> (StatusCode, String) {
    match tokio::time::timeout(CSI_PATIENCE, probe(&pages.paths.csi_socket())).await {
        Ok(Ok(())) => (StatusCode::OK, "ok\n".to_owned()),
        Ok(Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, format!("the CSI socket: {error}\n")),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the CSI socket does not answer\n".to_owned()),
    }
}

/// Asks the plugin as the kubelet does.
async fn probe(csi_socket: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let endpoint = Endpoint::try_from(format!("unix://{}", csi_socket.display()))?;
    IdentityClient::new(endpoint.connect().await?).probe(ProbeRequest {}).await?;
    Ok(())
}

async fn ready(State(pages): State<Pages>) -> (StatusCode, &'static str) {
    if pages.broker.awaits_session() {
        return (StatusCode::SERVICE_UNAVAILABLE, "no FUSE daemon has brought the session yet\n");
    }
    (StatusCode::OK, "ready\n")
}

async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    let daemon = pages.broker.ask(DAEMON_PATIENCE).await;
    let node = pages.node.clone();
    let volumes = tokio::task::spawn_blocking(move || node.volumes().unwrap_or_default()).await.unwrap_or_default();
    let text = pages.broker.metrics().render(&volumes, pages.broker.standing(), daemon.as_ref());
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], text)
}
