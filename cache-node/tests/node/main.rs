//! The cache node's behaviour through its public faces, against real servers and with real processes. One binary, since linking is what takes
//! the time.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod begun;
mod cluster;
mod common;
mod endpoint_tls;
mod eviction;
mod faults;
mod faults_disk;
mod lifecycle;
mod local;
mod memory_tier;
mod peer;
mod placement;
mod problems;
mod small_files;
mod sources;
mod speed;
mod tls;
