//! A real Kubernetes cluster on one machine, for Forebay's tests, demo and benchmarks: API server, scheduler, controller
//! manager, kubelets and containerd, built from Go modules and Debian packages. It guarantees that everything it starts
//! stays in network namespaces and cgroups of its own and can be ended completely, also after a crash.

pub mod cgroup;
pub mod cluster;
pub mod command;
pub mod content;
pub mod control_plane;
pub mod daemon;
pub mod data;
pub mod debian;
pub mod forebay;
pub mod images;
pub mod network;
pub mod node;
pub mod old_kernel;
pub mod paths;
pub mod readers;
pub mod s3;
pub mod s3_client;
pub mod scenarios;
pub mod setup;
pub mod skipped;
pub mod wait;

pub use cluster::{Cluster, Options};
pub use s3::S3Server;
pub use wait::wait_until;
