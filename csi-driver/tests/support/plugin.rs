//! A node of a cluster without the cluster: the plugin in this process, the daemon in a process of its own, as another user without rights.

use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use forebay_csi::broker::Broker;
use forebay_csi::datasets::Datasets;
use forebay_csi::mode::Wanted;
use forebay_csi::node::Node;
use forebay_csi::paths::Paths;
use forebay_fuse::daemon::Resend;
use forebay_fuse::keeper::Keeper;
use forebay_protocol::layout::{FOREBAY_GID, FUSE_UID};
use serde_json::json;

use super::node::Node as CacheNode;
use super::{Dataset, Scratch, set_mode};

const BROKER: &str = "FOREBAY_TEST_BROKER";

/// What [`Keeper::inherited`] is to be told.
const KEEPER: &str = "FOREBAY_TEST_KEEPER";

/// Set: the daemon keeps a log of requests, as on kernels that can't send them again.
const WITHOUT_RESEND: &str = "FOREBAY_TEST_WITHOUT_RESEND";

/// Namespace and name of the runtime.
pub const RUNTIME: (&str, &str) = ("forebay", "pool");

pub struct World {
    pub plugin: Option<Node>,
    pub daemon: Option<Daemon>,
    pub cache_node: CacheNode,
    pub datasets: Vec<Arc<Dataset>>,
    pub paths: Paths,
    /// How the plugin mounts.
    pub mode: Wanted,
    /// Daemons that are started keep a log of requests, as on kernels that can't send them again.
    pub without_resend: bool,
    // Last, so that the mounts go after the processes.
    pub scratch: Scratch,
}

impl World {
    /// A node with these datasets, each a list of files, catalogued; no daemon yet.
    pub async fn new(mode: Wanted, datasets: &[&[(&str, u64)]]) -> Self {
        Self::in_scratch(Scratch::new(), mode, datasets).await
    }

    /// The same, with a tmpfs of its own for the cache, so that its use can be measured.
    pub async fn on_own_file_system(datasets: &[&[(&str, u64)]]) -> Self {
        let scratch = Scratch::new();
        scratch.tmpfs("cache");
        Self::in_scratch(scratch, Wanted::default(), datasets).await
    }

    /// The same, with a kubelet's folder from which mounts propagate, as on a Kubernetes node.
    pub async fn with_propagation(datasets: &[&[(&str, u64)]]) -> Self {
        let scratch = Scratch::new();
        let folder = scratch.tmpfs("kubelet");
        rustix::mount::mount_change(folder, rustix::mount::MountPropagationFlags::SHARED).unwrap();
        Self::in_scratch(scratch, Wanted::default(), datasets).await
    }

    async fn in_scratch(scratch: Scratch, mode: Wanted, datasets: &[&[(&str, u64)]]) -> Self {
        let cache_root = scratch.folder("cache");
        let paths = Paths {
            kubelet_dir: scratch.folder("kubelet"),
            run_dir: scratch.folder("run"),
            cache_roots: vec![cache_root.clone()],
            memory_root: scratch.path().join("memory"),
        };
        std::os::unix::fs::chown(&paths.run_dir, None, Some(FOREBAY_GID)).unwrap();
        set_mode(&paths.run_dir, 0o770);
        let cache = cache_root.join(format!("{}.{}", RUNTIME.0, RUNTIME.1));
        std::fs::create_dir_all(&cache).unwrap();
        set_mode(&cache, 0o700);
        let datasets: Vec<_> = datasets
            .iter()
            .enumerate()
            .map(|(number, files)| Dataset::new(&cache, &format!("uid-{number}"), files))
            .collect();
        let cache_node = CacheNode::start(&Self::node_socket(&paths), &datasets).await;
        let world =
            Self { plugin: None, daemon: None, cache_node, datasets, paths, mode, without_resend: false, scratch };
        world.write_objects(|_, _| {});
        world
    }

    pub fn objects_file(&self) -> PathBuf {
        self.scratch.path().join("objects.json")
    }

    /// Writes what the API server would say, after `change` had its way with each Dataset.
    pub fn write_objects(&self, change: impl Fn(usize, &mut serde_json::Value)) {
        let runtime = json!({
            "apiVersion": "forebay.dev/v1alpha1", "kind": "CacheRuntime",
            "metadata": {"namespace": RUNTIME.0, "name": RUNTIME.1},
            "spec": {"storage": [{"medium": "Disk", "capacity": "1Gi", "hostPath": self.paths.cache_roots[0]}]},
        });
        let mut objects = vec![runtime];
        for (number, dataset) in self.datasets.iter().enumerate() {
            let mut object = json!({
                "apiVersion": "forebay.dev/v1alpha1", "kind": "Dataset",
                "metadata": {"namespace": "training", "name": format!("data-{number}"), "uid": dataset.uid},
                "spec": {"runtimeRef": {"namespace": RUNTIME.0, "name": RUNTIME.1},
                    "mounts": [{"path": "/", "sources": [{"url": "s3://b/"}]}]},
                "status": {"version": {"id": dataset.catalog_id, "files": 1, "size": "1Ki", "bytes": 1024}},
            });
            change(number, &mut object);
            objects.push(object);
        }
        std::fs::write(self.objects_file(), serde_json::to_vec(&objects).unwrap()).unwrap();
    }

    pub fn node_socket(paths: &Paths) -> PathBuf {
        paths.run_dir.join(format!("{}.{}.sock", RUNTIME.0, RUNTIME.1))
    }

    /// The cache folder.
    pub fn cache(&self) -> PathBuf {
        self.paths.cache_roots[0].join(format!("{}.{}", RUNTIME.0, RUNTIME.1))
    }

    pub async fn start_plugin(&mut self) -> Broker {
        let broker = Broker::listen(&self.paths.broker_socket(), Some(FOREBAY_GID), FUSE_UID).await.unwrap();
        let datasets = Datasets::File(self.objects_file());
        let node = Node::start("node-a", self.paths.clone(), datasets, broker.clone(), self.mode);
        self.plugin = Some(node.await.unwrap());
        broker
    }

    /// As if it was killed: everything it holds in memory is gone, the mounts stay.
    pub async fn stop_plugin(&mut self) {
        self.plugin = None;
        // The broker's task ends at its next turn, and with it the socket.
        let since = std::time::Instant::now();
        while self.paths.broker_socket().exists() {
            assert!(since.elapsed().as_secs() < 10, "the plugin does not end");
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    pub fn plugin(&self) -> &Node {
        self.plugin.as_ref().unwrap()
    }

    pub fn start_daemon(&mut self) {
        self.daemon = Some(self.another_daemon());
    }

    pub fn start_supervised_daemon(&mut self) {
        self.daemon = Some(Daemon::start_supervised(&self.paths, self.without_resend));
    }

    /// One more, as in a rolling update with a surge.
    pub fn another_daemon(&self) -> Daemon {
        Daemon::start(&self.paths, self.without_resend)
    }

    /// kill -9.
    pub fn kill_daemon(&mut self) {
        self.daemon = None;
    }

    pub fn attributes(number: usize) -> HashMap<String, String> {
        HashMap::from([("namespace".into(), "training".into()), ("dataset".into(), format!("data-{number}"))])
    }

    pub fn staging(&self, number: usize) -> PathBuf {
        self.paths.kubelet_dir.join(format!("staging-{number}"))
    }

    pub async fn stage(&self, number: usize) -> Result<(), forebay_csi::node::NodeError> {
        let uid = &self.datasets[number].uid;
        self.plugin().stage(uid, Self::attributes(number), &self.staging(number)).await
    }
}

/// The daemon's process.
pub struct Daemon {
    child: Child,
    supervised: bool,
}

impl Daemon {
    pub fn start(paths: &Paths, without_resend: bool) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .envs(without_resend.then_some((WITHOUT_RESEND, "1")))
            .args(["daemon_process", "--exact", "--ignored", "--nocapture"])
            .env(BROKER, paths.broker_socket())
            .uid(FUSE_UID)
            .gid(FOREBAY_GID)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, supervised: false }
    }

    /// With a parent that starts it again when it dies, as the daemon's container has. A test that maps files of the tree can't start processes as
    /// another user meanwhile: that copies its memory, which waits for pages that the process is to bring.
    pub fn start_supervised(paths: &Paths, without_resend: bool) -> Self {
        let script = r#"while :; do "$0" daemon_process --exact --ignored --nocapture; done"#;
        let mut command = Command::new("sh");
        let kept_in = Keeper::new().unwrap().pass_to(&mut command);
        let child = command
            .args(["-c", script])
            .arg(std::env::current_exe().unwrap())
            .env(BROKER, paths.broker_socket())
            .env(KEEPER, kept_in)
            .envs(without_resend.then_some((WITHOUT_RESEND, "1")))
            .uid(FUSE_UID)
            .gid(FOREBAY_GID)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, supervised: true }
    }

    pub fn pid(&self) -> u32 {
        if !self.supervised {
            return self.child.id();
        }
        let since = std::time::Instant::now();
        loop {
            let children = format!("/proc/{0}/task/{0}/children", self.child.id());
            let children = std::fs::read_to_string(children).unwrap_or_default();
            if let Some(pid) = children.split_whitespace().next() {
                return pid.parse().unwrap();
            }
            assert!(since.elapsed().as_secs() < 10, "the parent starts no worker");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// kill -9 of the worker; its parent starts the next.
    pub fn kill_worker(&self) {
        kill(self.pid());
    }

    /// Whether it has the descriptor of a session: when the plugin dies now, the next one is given it.
    pub fn has_a_session(&self) -> bool {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).into_iter().flatten().flatten();
        descriptors.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|file| file == Path::new("/dev/fuse"))
    }

    /// Asks it to end, and waits until it has.
    pub fn terminate(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

/// kill -9.
pub fn kill(pid: u32) {
    signal(pid, nix::sys::signal::Signal::SIGKILL);
}

fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    // It may just have ended.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal);
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.supervised {
            // So that it starts no other.
            signal(self.child.id(), nix::sys::signal::Signal::SIGSTOP);
            self.kill_worker();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the daemon's process runs: called by a test of that name, which is ignored unless it is asked for.
pub fn run_daemon() {
    let Some(broker) = std::env::var_os(BROKER) else { return };
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    for rights in ["CapEff", "CapPrm"] {
        let line = status.lines().find(|line| line.starts_with(rights)).unwrap();
        assert!(line.ends_with("0000000000000000"), "the daemon must have no capabilities: {line}");
    }
    let keeper = std::env::var(KEEPER).ok().map(|numbers| Keeper::inherited(&numbers).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        let without = std::env::var_os(WITHOUT_RESEND).is_some();
        let resend = if without { Resend::Never } else { Resend::IfTheKernelCan };
        forebay_fuse::daemon::run(std::path::Path::new(&broker), keeper, resend, async move {
            terminate.recv().await;
        })
        .await;
    });
}
