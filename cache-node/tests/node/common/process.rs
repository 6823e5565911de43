//! `forebay-node` as a process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use forebay_protocol::config::RuntimeConfig;
use forebay_protocol::node::node_client::NodeClient;
use forebay_protocol::node::{DatasetStatus, StatusRequest, StatusResponse};
use tempfile::TempDir;
use tonic::transport::Channel;

use super::reader::Reader;
use super::{scratch, wait_for};

pub struct NodeProcess {
    pub config: RuntimeConfig,
    folder: TempDir,
    process: Option<Child>,
    environment: Vec<(&'static str, PathBuf)>,
}

impl NodeProcess {
    /// Starts a node with the config that `make` gives for its folder, and waits until it is ready.
    pub async fn start(make: impl FnOnce(&Path) -> RuntimeConfig) -> Self {
        Self::start_with(Vec::new(), make).await
    }

    /// The same, with more in its environment.
    pub async fn start_with(
        environment: Vec<(&'static str, PathBuf)>,
        make: impl FnOnce(&Path) -> RuntimeConfig,
    ) -> Self {
        let folder = scratch();
        let mut config = make(folder.path());
        if config.node.metrics.is_some_and(|metrics| metrics.port() == 0) {
            config.node.metrics = Some(super::free_address(match config.node.listen.ip() {
                std::net::IpAddr::V4(ip) => ip.octets(),
                std::net::IpAddr::V6(_) => panic!("tests use IPv4"),
            }));
        }
        let mut node = Self { config, folder, process: None, environment };
        node.restart().await;
        node
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn config_path(&self) -> PathBuf {
        self.folder.path().join("runtime.yaml")
    }

    pub fn write_config(&self) {
        let path = self.config_path();
        let draft = path.with_extension("new");
        std::fs::write(&draft, serde_yaml::to_string(&self.config).unwrap()).unwrap();
        std::fs::rename(draft, path).unwrap();
    }

    /// Starts the process without waiting.
    pub fn spawn(&mut self) {
        self.write_config();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_forebay-node"))
            .arg("--config")
            .arg(self.config_path())
            .stderr(log)
            .envs(self.environment.iter().cloned())
            .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()))
            .spawn()
            .unwrap();
        self.process = Some(process);
    }

    pub async fn restart(&mut self) {
        self.spawn();
        wait_for("the node to be ready", Duration::from_secs(20), || async {
            let answer = reqwest::get(self.url("readyz")).await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
    }

    fn url(&self, page: &str) -> String {
        format!("http://{}/{page}", self.config.node.metrics.unwrap())
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// The most memory it has had, in bytes.
    pub fn high_water_mark(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.as_ref().unwrap().id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// SIGTERM; whether it ended well.
    pub async fn terminate(&mut self) -> bool {
        let mut process = self.process.take().unwrap();
        let pid = rustix::process::Pid::from_child(&process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        tokio::task::spawn_blocking(move || process.wait().unwrap().success()).await.unwrap()
    }

    pub fn address(&self) -> SocketAddr {
        self.config.node.listen
    }

    /// Changes the config; the node sees it by itself.
    pub fn change(&mut self, change: impl FnOnce(&mut RuntimeConfig)) {
        change(&mut self.config);
        self.config.revision = format!("{}+", self.config.revision);
        self.write_config();
    }

    pub async fn client(&self) -> Option<NodeClient<Channel>> {
        NodeClient::connect(format!("http://{}", self.address())).await.ok()
    }

    pub async fn try_status(&self) -> Option<StatusResponse> {
        Some(self.client().await?.status(StatusRequest {}).await.ok()?.into_inner())
    }

    pub async fn status(&self) -> StatusResponse {
        wait_for("a status", Duration::from_secs(10), || self.try_status()).await
    }

    pub async fn dataset(&self, uid: &str) -> DatasetStatus {
        self.status().await.datasets.into_iter().find(|dataset| dataset.uid == uid).expect("the dataset is served")
    }

    /// Waits until a dataset's status fulfils a condition.
    pub async fn wait_dataset<T>(&self, what: &str, uid: &str, condition: impl Fn(&DatasetStatus) -> Option<T>) -> T {
        let result = tokio::time::timeout(
            Duration::from_secs(60),
            wait_for(what, Duration::from_secs(120), || async {
                let status = self.try_status().await?;
                status.datasets.iter().find(|dataset| dataset.uid == uid).and_then(&condition)
            }),
        );
        if let Ok(value) = result.await {
            return value;
        }
        panic!("waited for {what}; the status is {:#?}\n{}", self.try_status().await, self.log())
    }

    pub async fn catalog_id(&self, uid: &str) -> String {
        self.wait_dataset("a catalog", uid, |dataset| dataset.catalog.as_ref().map(|catalog| catalog.id.clone())).await
    }

    pub async fn wait_preloaded(&self, uid: &str) {
        self.wait_dataset("the preload", uid, |dataset| {
            dataset
                .preload
                .as_ref()
                .filter(|preload| !preload.running && preload.loaded_bytes == preload.total_bytes)
                .map(drop)
        })
        .await;
    }

    /// The value of a metric, summed over its labels.
    pub async fn metric(&self, name: &str) -> u64 {
        let text = reqwest::get(self.url("metrics")).await.unwrap().text().await.unwrap();
        let lines = text.lines().filter(|line| line.starts_with(name) && !line.starts_with('#'));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// A reader at the node's local socket, knowing the dataset's catalog.
    pub async fn reader(&self, uid: &str) -> Reader {
        let id = self.catalog_id(uid).await;
        let folder = self.config.node.cache_dir.join("catalogs").join(uid).join(id);
        Reader::connect(self.config.node.socket.as_deref().unwrap(), uid, &folder).await
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- log of {}:\n{}", self.address(), self.log());
        }
    }
}
