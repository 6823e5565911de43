//! The cache node: lists sources into catalogs, fetches objects once, keeps them on this node's disk, and serves them to its machine (local
//! socket) and its peers (own frames and gRPC). Knows nothing of Kubernetes: one [`forebay_protocol::config::RuntimeConfig`] says all it has to know.
//!
//! [`node::Node::start`] runs one in any process; `forebay-node` is a process that does nothing else.

pub mod args;
pub mod catalogue;
pub mod counters;
pub mod dataset;
pub mod engine;
pub mod fetch;
#[doc(hidden)]
pub mod fuzzing;
pub mod holdings;
mod http;
mod identity;
mod local;
pub mod memory;
pub mod metrics;
pub mod node;
mod peer;
pub mod pins;
pub mod preload;
pub mod prepare;
pub mod problem;
mod server;
pub mod siblings;
pub mod source;
pub mod store;
mod told;
pub mod units;
mod watch;
