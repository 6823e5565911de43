//! A whole cluster: brings it up, finds one that is up, takes it down without a trace, and does to it what tests need
//! (kubectl, helm, killing a container or a node). All of its state is in one run folder in memory.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cgroup::Cgroup;
use crate::command::{run, run_shown, run_with_input, text};
use crate::control_plane::ControlPlane;
use crate::network::Network;
use crate::node::Node;
use crate::wait::wait_until;
use crate::{images, paths, setup};

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

    /// `kubectl` with these arguments, to be run by the caller.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut kubectl = self.control_plane().kubectl();
        kubectl.args(arguments);
        kubectl
    }

    /// Runs `kubectl` and returns what it printed; a failure is an error with what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        text(&mut self.kubectl_command(arguments))
    }

    /// An object, or a list of them, as JSON: `get(&["pods", "-n", "x"])`.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let mut kubectl = self.kubectl_command(&["get", "--output=json"]);
        let output = run(kubectl.args(arguments))?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("kubectl get {} printed no JSON", arguments.join(" ")))
    }

    /// Applies manifests (YAML, one or more documents) and returns what kubectl said of each.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        let output = run_with_input(&mut self.kubectl_command(&["apply", "--filename=-"]), manifests.as_bytes())?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `helm` and returns what it printed.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        text(&mut self.helm_command(arguments))
    }

    /// `helm` with these arguments, to be run by the caller.
    pub fn helm_command(&self, arguments: &[&str]) -> Command {
        let mut helm = self.control_plane().client("helm", arguments);
        // Helm's own files stay with the cluster.
        helm.env("HELM_CACHE_HOME", self.run_folder.join("helm/cache"));
        helm.env("HELM_CONFIG_HOME", self.run_folder.join("helm/config"));
        helm.env("HELM_DATA_HOME", self.run_folder.join("helm/data"));
        helm
    }

    /// A pod's log so far. `container`: one of its containers.
    pub fn logs(&self, namespace: &str, pod: &str, container: &str) -> Result<String> {
        self.kubectl(&["logs", "--namespace", namespace, pod, "--container", container])
    }

    /// Shows a pod's log on our own terminal as it grows, until its container ends.
    pub fn follow_logs(&self, namespace: &str, pod: &str) -> Result<()> {
        run_shown(&mut self.kubectl_command(&["logs", "--follow", "--namespace", namespace, pod]))
    }

    /// Waits until `ready` accepts the object, by its JSON; its error is the state that a timeout reports.
    pub fn wait_for(&self, object: &[&str], timeout: Duration, ready: impl Fn(&Value) -> Result<()>) -> Result<Value> {
        wait_until(&object.join(" "), timeout, || {
            let found = self.get(object)?;
            ready(&found)?;
            Ok(found)
        })
    }

    /// Waits until a pod is in this phase (`Running` includes that all its containers are ready). A pod that failed
    /// instead ends the wait with its conditions and events.
    pub fn wait_pod(&self, namespace: &str, pod: &str, phase: &str, timeout: Duration) -> Result<Value> {
        let object = ["pod", pod, "--namespace", namespace];
        let waited = self.wait_for(&object, timeout, |found| {
            let status = &found["status"];
            let now = status["phase"].as_str().unwrap_or("unknown");
            if now == phase && (phase != "Running" || condition(found, "Ready").0 == "True") {
                return Ok(());
            }
            if now == "Failed" {
                bail!(crate::wait::Fatal(format!("the pod failed: {}", status["containerStatuses"])));
            }
            bail!("phase {now}, containers {}", status["containerStatuses"])
        });
        waited.with_context(|| {
            let selector = format!("--field-selector=involvedObject.name={pod}");
            let events = self.kubectl(&["get", "events", "--namespace", namespace, &selector]);
            format!(
                "pod {namespace}/{pod} did not become {phase}; its events:\n{}",
                events.unwrap_or_else(|e| e.to_string())
            )
        })
    }

    /// Kills a container's first process with SIGKILL, as a crash would end it; returns the process id it had.
    pub fn kill_container(&self, namespace: &str, pod: &str, container: &str) -> Result<u32> {
        let found = self.get(&["pod", pod, "--namespace", namespace])?;
        let node =
            found["spec"]["nodeName"].as_str().with_context(|| format!("pod {namespace}/{pod} is on no node yet"))?;
        let statuses = found["status"]["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
        let status = statuses.iter().find(|status| status["name"] == container);
        let id =
            status.and_then(|status| status["containerID"].as_str()).and_then(|id| id.strip_prefix("containerd://"));
        let id = id.with_context(|| format!("pod {namespace}/{pod} has no running container {container}"))?;
        let pid = self.node(node)?.container_pid(id)?;
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL)
            .with_context(|| format!("killing process {pid} of container {container} of pod {namespace}/{pod}"))?;
        Ok(pid)
    }

    /// Takes a node away as a power failure does: its cable is dead first, then all its processes at once.
    pub fn kill_node(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        self.network.connect_node(node.number, false)?;
        node.kill()
    }

    /// Boots a killed node again, with the disk it had.
    pub fn boot_node(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        self.network.connect_node(node.number, true)?;
        node.start_runtime()?;
        self.start_kubelet(&node)
    }

    /// Kills every process of a node, kubelet, containerd, shims and containers, and nothing else: its mounts, files and sockets stay as they are.
    pub fn kill_processes(&self, name: &str) -> Result<()> {
        self.node(name)?.kill_all_but_the_machine()
    }

    /// Starts containerd and the kubelet again on a node whose processes were killed.
    pub fn start_processes(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        node.start_containerd()?;
        self.start_kubelet(&node)
    }

    /// Kills the kubelet of a node alone, and starts it again.
    pub fn restart_kubelet(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        node.kill_kubelet()?;
        self.start_kubelet_alone(&node)
    }

    /// Waits until the node is ready, or until the cluster has noticed that it is not.
    pub fn wait_node_ready(&self, name: &str, ready: bool) -> Result<()> {
        let wanted = if ready { "True" } else { "not True" };
        let waited = self.wait_for(&["node", name], Duration::from_mins(1), |node| {
            let (status, message) = condition(node, "Ready");
            if (status == "True") == ready {
                return Ok(());
            }
            bail!("Ready is {status}: {message}")
        });
        waited.map(drop).with_context(|| {
            let logs = self.node(name).map(|node| node.daemons()).unwrap_or_default();
            let tails: Vec<String> = logs
                .iter()
                .map(|daemon| format!("{}:\n{}", daemon.title, crate::command::log_tail(&daemon.log)))
                .collect();
            format!("{name} did not become Ready={wanted}; the last lines of its daemons' logs: {}", tails.join("\n"))
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

    /// `target/e2e/kubectl` and `target/e2e/helm`: the programs as they are run from a shell.
    fn write_wrappers(&self) -> Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        for (name, command) in [("kubectl", self.kubectl_command(&[])), ("helm", self.helm_command(&[]))] {
            let mut script =
                String::from("#!/bin/sh\n# Made by `cargo xtask cluster up`: runs in the test cluster's network.\n");
            for (variable, value) in command.get_envs() {
                let value = value.unwrap_or_default().to_string_lossy();
                let _ = writeln!(script, "export {}='{value}'", variable.to_string_lossy());
            }
            let _ = writeln!(script, "exec {} \"$@\"", crate::command::describe(&command));
            let path = paths::kept().join(self.wrapper_name(name));
            fs::write(&path, script).with_context(|| format!("writing {}", path.display()))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }

    /// The default cluster's wrappers have the programs' own names.
    fn wrapper_name(&self, program: &str) -> String {
        if self.options.name == Options::default().name {
            program.to_owned()
        } else {
            format!("{program}-{}", self.options.name)
        }
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

/// Status and message of an object's condition; `Unknown` if it has none of this type.
pub fn condition(object: &Value, kind: &str) -> (String, String) {
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == kind);
    let field = |name: &str, otherwise: &str| {
        found.and_then(|condition| condition[name].as_str()).unwrap_or(otherwise).to_owned()
    };
    (field("status", "Unknown"), field("message", "not reported yet"))
}
