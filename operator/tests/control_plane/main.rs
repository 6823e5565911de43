//! The operator against a real API server, with a cache node that answers as a real one would: what users see of bad input, how a Dataset gets
//! ready, and that deletion lets go. There is no kubelet and no controller manager, so pods are made by the test.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "test support")]

#[path = "../../../crds/tests/api_server/mod.rs"]
mod api_server;
mod cache_nodes;
mod datasets;
mod fake_node;
mod world;
