//! Real servers and real processes for the tests: versitygw as the S3 store, a proxy that counts what leaves it, `forebay-node` processes,
//! and a client of their local sockets as `forebay-fuse` is one.
#![allow(dead_code, missing_docs)]

pub mod asker;
pub mod faults;
pub mod gateway;
pub mod process;
pub mod proxy;
pub mod reader;
pub mod scripted;

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use forebay_protocol::config::{
    AccessConfig, DEFAULT_MEMORY_BYTES, DatasetConfig, Member, MountConfig, NodeConfig, PlacementConfig, PreloadConfig,
    RuntimeConfig, RuntimeName, SourceConfig,
};
use tempfile::TempDir;

/// A folder in memory, removed at the end.
pub fn scratch() -> TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("forebay-test-").tempdir_in(base).unwrap()
}

/// An address of this machine that nobody listens at.
pub fn free_address(ip: [u8; 4]) -> SocketAddr {
    TcpListener::bind((IpAddr::from(ip), 0)).unwrap().local_addr().unwrap()
}

/// Waits for a condition and gives what it gives; panics with `what` after `patience`.
pub async fn wait_for<T, F: Future<Output = Option<T>>>(
    what: &str,
    patience: Duration,
    mut condition: impl FnMut() -> F,
) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(began.elapsed() < patience, "waited {patience:?} in vain for {what}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// Bytes that look random and are the same every time.
pub fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub fn dataset(uid: &str, source: SourceConfig) -> DatasetConfig {
    DatasetConfig {
        uid: uid.to_owned(),
        namespace: "tests".to_owned(),
        name: uid.to_owned(),
        mounts: vec![MountConfig { path: "/".to_owned(), sources: vec![source] }],
        access: AccessConfig::default(),
        placement: PlacementConfig::default(),
        pin: None,
        capacity_bytes: None,
        preload: None,
        catalog: None,
    }
}

pub fn preload_all() -> PreloadConfig {
    PreloadConfig::default()
}

pub fn file_source(folder: &std::path::Path) -> SourceConfig {
    SourceConfig { url: format!("file://{}", folder.display()), endpoint: None, region: None, credentials: None }
}

/// A config for one node in `folder`, listening at `listen`.
pub fn config(
    folder: &std::path::Path,
    listen: SocketAddr,
    members: &[SocketAddr],
    datasets: Vec<DatasetConfig>,
) -> RuntimeConfig {
    RuntimeConfig {
        revision: "1".to_owned(),
        runtime: RuntimeName { namespace: "tests".to_owned(), name: "pool".to_owned() },
        node: NodeConfig {
            cache_dir: folder.join("cache"),
            capacity_bytes: 4 << 30,
            memory_tier: None,
            memory_bytes: DEFAULT_MEMORY_BYTES,
            listen,
            metrics: Some(SocketAddr::new(listen.ip(), 0)),
            socket: Some(folder.join("node.sock")),
        },
        tls: None,
        members: members.iter().map(|address| Member::at(*address)).collect(),
        quotas: Vec::new(),
        datasets,
        erase: false,
    }
}
