//! What is done to a cluster from outside: a container, a node or its processes end as by a crash, and start again.

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Cluster;

impl Cluster {
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
}
