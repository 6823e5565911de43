//! The cluster's network: one namespace for the control plane with a bridge, one per node with a veth to it. Nothing is
//! made in the host's own namespace, no namespace has a default route, and none reaches another cluster's.

use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};

use crate::command::{command, run, run_with_input};

/// The control plane's address: API server, S3 server.
pub const CONTROL_ADDRESS: &str = "198.18.0.1";
/// Services' addresses; the API server's own service is the first.
pub const SERVICE_SUBNET: &str = "10.96.0.0/16";
/// All pods' addresses.
pub const POD_SUBNET: &str = "10.244.0.0/16";
/// Where nodes and control plane are.
pub const NODE_SUBNET: &str = "198.18.0.0/24";

const BRIDGE: &str = "fb0";
const NAMESPACES: &str = "/run/netns";

/// The address of the node with this number (1, 2, ...).
pub fn node_address(number: u8) -> String {
    format!("198.18.0.{}", 10 + u16::from(number))
}

/// The pod subnet of the node with this number.
pub fn pod_subnet(number: u8) -> String {
    format!("10.244.{number}.0/24")
}

/// A cluster's namespaces, by the prefix of their names.
#[derive(Debug, Clone)]
pub struct Network {
    prefix: String,
    nodes: u8,
}

impl Network {
    /// The network of a cluster of `nodes` nodes; makes nothing yet.
    pub fn new(prefix: impl Into<String>, nodes: u8) -> Self {
        Self { prefix: prefix.into(), nodes }
    }

    /// Name of the control plane's namespace.
    pub fn control(&self) -> String {
        format!("{}-control", self.prefix)
    }

    /// Name of a node's namespace.
    pub fn node(&self, number: u8) -> String {
        format!("{}-node-{number}", self.prefix)
    }

    /// Makes the namespaces, links, addresses and routes. They must not be there yet.
    pub fn create(&self) -> Result<()> {
        let control = self.control();
        run(&mut ip(["netns", "add", &control]))
            .context("making the control plane's network namespace (are we root?)")?;
        batch(
            &control,
            &format!(
                "link set lo up\n\
                 link add {BRIDGE} type bridge\n\
                 addr add {CONTROL_ADDRESS}/24 dev {BRIDGE}\n\
                 link set {BRIDGE} up\n"
            ),
        )?;
        forward(&control)?;
        for number in 1..=self.nodes {
            self.create_node(number)?;
        }
        Ok(())
    }

    fn create_node(&self, number: u8) -> Result<()> {
        let (control, node) = (self.control(), self.node(number));
        let (address, pods) = (node_address(number), pod_subnet(number));
        run(&mut ip(["netns", "add", &node]))?;
        batch(
            &control,
            &format!(
                "link add node-{number} type veth peer name eth0 netns {node}\n\
                 link set node-{number} master {BRIDGE} up\n\
                 route add {pods} via {address}\n"
            ),
        )?;
        let mut setup = format!(
            "link set lo up\n\
             addr add {address}/24 dev eth0\n\
             link set eth0 up\n\
             route add {SERVICE_SUBNET} via {CONTROL_ADDRESS}\n"
        );
        // The route to services is for processes in the node's own namespace: a packet needs one before kube-proxy's
        // rules give it its real destination.
        for other in (1..=self.nodes).filter(|other| *other != number) {
            let _ = writeln!(setup, "route add {} via {}", pod_subnet(other), node_address(other));
        }
        batch(&node, &setup)?;
        forward(&node)
    }

    /// Pulls or plugs a node's cable.
    pub fn connect_node(&self, number: u8, connected: bool) -> Result<()> {
        let state = if connected { "up" } else { "down" };
        run(&mut ip(["-n", &self.control(), "link", "set", &format!("node-{number}"), state]))?;
        Ok(())
    }

    /// Removes the namespaces that are there, and with them all links, routes and packet filter rules in them.
    pub fn remove(&self) -> Result<()> {
        for name in self.existing()? {
            run(&mut ip(["netns", "delete", &name]))?;
        }
        // `ip` has mounted this folder on itself and leaves that behind; while any namespace is there, it stays.
        let folder = Path::new(NAMESPACES);
        if folder.read_dir().is_ok_and(|mut entries| entries.next().is_none()) {
            let _ = nix::mount::umount(folder);
        }
        Ok(())
    }

    /// Names of this cluster's namespaces that are there now, also of nodes beyond this cluster's number.
    pub fn existing(&self) -> Result<Vec<String>> {
        let listed = run(&mut ip(["netns", "list"]))?;
        let node_prefix = format!("{}-node-", self.prefix);
        let control = self.control();
        let listed = String::from_utf8_lossy(&listed.stdout);
        let names = listed.lines().filter_map(|line| line.split_whitespace().next());
        let ours = names.filter(|name| {
            *name == control || name.strip_prefix(&node_prefix).is_some_and(|number| number.parse::<u8>().is_ok())
        });
        Ok(ours.map(str::to_owned).collect())
    }
}

fn ip<const N: usize>(arguments: [&str; N]) -> Command {
    command("ip", arguments)
}

fn batch(namespace: &str, lines: &str) -> Result<()> {
    run_with_input(&mut ip(["-n", namespace, "-batch", "-"]), lines.as_bytes())
        .with_context(|| format!("setting up network namespace {namespace}"))?;
    Ok(())
}

fn forward(namespace: &str) -> Result<()> {
    let path = format!("{NAMESPACES}/{namespace}");
    let script = "echo 1 > /proc/sys/net/ipv4/ip_forward";
    run(&mut command("nsenter", [&format!("--net={path}"), "--", "sh", "-c", script]))?;
    Ok(())
}

/// Calls `inside` in a network namespace: sockets it makes belong there for good. It runs on a thread of its own, so that
/// ours stays where it is.
pub fn in_namespace<T: Send>(name: &str, inside: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let path = format!("{NAMESPACES}/{name}");
    let result = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let namespace = File::open(&path).with_context(|| format!("opening {path}"))?;
            setns(&namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {path}"))?;
            inside()
        });
        thread.join()
    });
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
