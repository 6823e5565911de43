//! A whole cluster: brings it up, finds one that is up, and takes it down without a trace. All of its state is in one run folder in memory.

mod clients;
mod outages;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::control_plane::ControlPlane;
use crate::network::Network;
use crate::node::Node;
use crate::{images, setup};
pub use clients::condition;

/// The label of nodes that hold a cache.
pub const CACHE_LABEL: &str = "forebay.dev/cache";

/// How a cluster is made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Options {
    /// Tells this cluster's namespaces, cgroups and run folder from another's.
    pub name: String,
    /// How many nodes: 1 to 200.
    pub nodes: u8,
    /// Archives to import on every node.
    pub images: Vec<PathBuf>,
    /// Labels the nodes as cache nodes.
    pub label_cache_nodes: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { name: "e2e".into(), nodes: 2, images: Vec::new(), label_cache_nodes: true }
    }
}

/// A cluster, running or not.
#[derive(Debug, Clone)]
pub struct Cluster {
    options: Options,
    /// Everything of this cluster, in memory: gone when it is taken down.
    pub run_folder: PathBuf,
    network: Network,
    cgroup: Cgroup,
}

impl Cluster {
    /// The cluster of these options, whatever its state.
    pub fn new(options: &Options) -> Self {
        let prefix = if options.name == "e2e" { "fb".to_owned() } else { format!("fb-{}", options.name) };
        Self {
            run_folder: PathBuf::from(format!("/dev/shm/forebay-{}", options.name)),
            network: Network::new(prefix, options.nodes),
            cgroup: Cgroup::new(format!("forebay-{}", options.name)),
            options: options.clone(),
        }
    }

    /// Brings a cluster up, from nothing; what an earlier one left behind is cleared away first. Returns once every node
    /// is ready. On failure everything is left as it is for a look, until `down` or the next `up`.
    pub fn up(options: &Options) -> Result<Self> {
        let start = Instant::now();
        setup::ensure()?;
        let cluster = Self::new(options);
        let _lock = cluster.lock()?;
        cluster.clear().context("clearing away an earlier cluster")?;
        let pause = images::pause()?;
        fs::create_dir_all(&cluster.run_folder)?;
        fs::write(cluster.run_folder.join("options.json"), serde_json::to_vec(options)?)?;
        let mount_points = Node::make_mount_points()?;
        fs::write(cluster.run_folder.join("mount-points.json"), serde_json::to_vec(&mount_points)?)?;
        cluster.network.create()?;
        cluster.cgroup.create(false)?;

        let nodes = cluster.nodes();
        let names: Vec<String> = nodes.iter().map(|node| node.name.clone()).collect();
        let control_plane = cluster.control_plane();
        // Control plane and container runtimes start side by side; kubelets follow once there is an API server.
        std::thread::scope(|scope| {
            let runtimes = nodes.iter().map(|node| {
                let images = [&pause].into_iter().chain(&options.images);
                scope.spawn(move || {
                    node.start_runtime()?;
                    images.into_iter().try_for_each(|archive| node.import_image(archive))
                })
            });
            let runtimes: Vec<_> = runtimes.collect();
            control_plane.start(&names)?;
            for runtime in runtimes {
                joined(runtime)?;
            }
            Ok::<(), anyhow::Error>(())
        })?;
        for node in &nodes {
            cluster.start_kubelet(node)?;
        }
        cluster.write_wrappers()?;
        for node in &nodes {
            cluster.wait_node_ready(&node.name, true)?;
        }
        if options.label_cache_nodes {
            cluster.kubectl(&["label", "nodes", "--all", &format!("{CACHE_LABEL}=true")])?;
        }
        cluster.wait_default_service_account()?;
        eprintln!("cluster {} is up: {} nodes, {:.1} s", options.name, options.nodes, start.elapsed().as_secs_f64());
        Ok(cluster)
    }

    /// The running cluster of this name.
    pub fn attach(name: &str) -> Result<Self> {
        let cluster = Self::new(&Options { name: name.to_owned(), ..Options::default() });
        let file = cluster.run_folder.join("options.json");
        let recorded = fs::read(&file)
            .with_context(|| format!("no cluster {name} is up ({}): bring it up first", file.display()))?;
        Ok(Self::new(&serde_json::from_slice(&recorded).with_context(|| format!("reading {}", file.display()))?))
    }

    /// Ends every process of the cluster and removes its namespaces, mounts, cgroups and files. Also clears up after a
    /// crash, and does nothing when there is nothing.
    pub fn down(&self) -> Result<()> {
        let _lock = self.lock()?;
        self.clear()
    }

    fn clear(&self) -> Result<()> {
        self.cgroup.kill_all()?;
        self.network.remove()?;
        self.cgroup.remove()?;
        let mount_points = fs::read(self.run_folder.join("mount-points.json")).unwrap_or_else(|_| b"[]".to_vec());
        for folder in serde_json::from_slice::<Vec<PathBuf>>(&mount_points).unwrap_or_default() {
            // Another cluster, or the host itself, may have put it to use since.
            let _ = fs::remove_dir(folder);
        }
        if self.run_folder.exists() {
            fs::remove_dir_all(&self.run_folder).with_context(|| format!("removing {}", self.run_folder.display()))?;
        }
        Ok(())
    }

    /// A few lines on what runs, for people.
    pub fn status(&self) -> Result<String> {
        let mut lines = vec![format!("cluster {} in {}", self.options.name, self.run_folder.display())];
        lines.push(format!("processes: {}", self.cgroup.processes()?.len()));
        for node in self.nodes() {
            let daemons = node.daemons();
            let state = |alive| if alive { "runs" } else { "is dead" };
            let states: Vec<String> =
                daemons.iter().map(|daemon| format!("{} {}", daemon.title, state(daemon.alive()))).collect();
            lines.push(states.join(", "));
        }
        match self.kubectl(&["get", "nodes,pods", "--all-namespaces", "--output=wide", "--request-timeout=5s"]) {
            Ok(listed) => lines.push(listed),
            Err(error) => lines.push(format!("the API server does not answer: {error:#}")),
        }
        Ok(lines.join("\n"))
    }

    /// The cluster's nodes.
    pub fn nodes(&self) -> Vec<Node> {
        (1..=self.options.nodes)
            .map(|number| Node {
                number,
                name: format!("node-{number}"),
                folder: self.run_folder.join(format!("node-{number}")),
                namespace: self.network.node(number),
                cgroup: self.cgroup.child(&format!("node-{number}")),
            })
            .collect()
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Result<Node> {
        self.nodes()
            .into_iter()
            .find(|node| node.name == name)
            .with_context(|| format!("the cluster has no node {name}"))
    }

    /// The control plane.
    pub fn control_plane(&self) -> ControlPlane {
        ControlPlane {
            folder: self.run_folder.join("control"),
            namespace: self.network.control(),
            cgroup: self.cgroup.child("control"),
        }
    }

    /// Imports an image archive on every node; pods started from now on run it.
    pub fn import_image(&self, archive: &Path) -> Result<()> {
        let nodes = self.nodes();
        std::thread::scope(|scope| {
            let imports: Vec<_> = nodes.iter().map(|node| scope.spawn(|| node.import_image(archive))).collect();
            imports.into_iter().try_for_each(joined)
        })
    }

    fn start_kubelet(&self, node: &Node) -> Result<()> {
        self.start_kubelet_alone(node)?;
        node.start_proxy(&self.control_plane().folder.join("kube-proxy.kubeconfig"))
    }

    fn start_kubelet_alone(&self, node: &Node) -> Result<()> {
        let control = self.control_plane().folder;
        node.start_kubelet(&control.join(format!("{}.kubeconfig", node.name)), &control.join("ca.crt"))
    }

    /// Pods are refused until the controller manager has made this account.
    fn wait_default_service_account(&self) -> Result<()> {
        self.wait_for(&["serviceaccount", "default"], Duration::from_secs(30), |_| Ok(())).map(drop)
    }

    /// One at a time brings this cluster up or down.
    fn lock(&self) -> Result<File> {
        fs::create_dir_all("/run/lock")?;
        let lock = File::create(format!("/run/lock/forebay-{}.lock", self.options.name))?;
        lock.lock().context("waiting for another process that brings this cluster up or down")?;
        Ok(lock)
    }
}

/// The result of a thread; its panic goes on here.
fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
