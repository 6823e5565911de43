//! `/healthz`, `/readyz` and `/metrics` of the operator.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reconciliation {
    controller: &'static str,
    result: &'static str,
}

/// The operator's metrics.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    reconciliations: Family<Reconciliation, Counter>,
    leader: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let reconciliations = Family::default();
        let leader = Gauge::default();
        registry.register(
            "forebay_operator_reconciliations",
            "Reconciliations by controller and result",
            reconciliations.clone(),
        );
        registry.register("forebay_operator_leader", "1 on the operator that leads", leader.clone());
        Self { registry: Arc::new(Mutex::new(registry)), reconciliations, leader }
    }
}

impl Metrics {
    /// Counts a reconciliation.
    pub fn reconciled(&self, controller: &'static str, succeeded: bool) {
        let result = if succeeded { "success" } else { "error" };
        self.reconciliations.get_or_create(&Reconciliation { controller, result }).inc();
    }

    /// This operator leads from now on.
    pub fn leading(&self) {
        self.leader.set(1);
    }

    fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        let _ = encode(&mut text, &self.registry.lock().unwrap_or_else(PoisonError::into_inner));
        text
    }
}

/// Serves until the process ends. An operator that waits for the Lease is ready too: a rolling update would wait for it otherwise.
pub async fn serve(listener: tokio::net::TcpListener, metrics: Metrics) {
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(async || "ok\n"))
        .route("/metrics", get(async |State(metrics): State<Metrics>| metrics.text()))
        .with_state(metrics);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "serving health and metrics");
    }
}
