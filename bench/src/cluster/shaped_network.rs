//! A network of its own with lines of a given width: a namespace with a bridge (the switch), and one per node with a line to it. Each line is
//! limited at both of its ends by a token bucket, so that it is in either direction as narrow as a real one. Needs root, `ip` and `tc`.

use std::fmt::Write as _;
use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use forebay_e2e::command::{command, run, run_with_input};
use forebay_e2e::network::in_namespace;

use crate::run_folder;

/// The hub's address: the S3 server, and whoever measures.
const HUB: [u8; 4] = [198, 18, 0, 1];
const PORT: u16 = 7070;

/// Half a millisecond of a line of 4 Gbit/s, 10 ms of one of 200 Mbit/s: enough for the kernel's timer, small beside any transfer.
const BURST_BYTES: u32 = 256 << 10;

/// The network; gone when the value is.
#[derive(Debug)]
pub struct ShapedNetwork {
    prefix: String,
    nodes: u8,
}

impl ShapedNetwork {
    /// Makes a network of `nodes` lines of `bits_per_second` each.
    pub fn new(nodes: u8, bits_per_second: u64) -> Result<Self> {
        sweep()?;
        let network = Self { prefix: format!("{}{}", run_folder::PREFIX, std::process::id()), nodes };
        network.create(bits_per_second).context("making a shaped network (are we root?)")?;
        Ok(network)
    }

    fn create(&self, bits_per_second: u64) -> Result<()> {
        let hub = self.hub();
        run(&mut command("ip", ["netns", "add", &hub]))?;
        let address = std::net::Ipv4Addr::from(HUB);
        let mut setup = format!(
            "link set lo up\nlink add switch type bridge\naddr add {address}/24 dev switch\nlink set switch up\n"
        );
        for number in 1..=self.nodes {
            let node = self.node(number);
            run(&mut command("ip", ["netns", "add", &node]))?;
            let _ = writeln!(setup, "link add node-{number} type veth peer name line netns {node}");
            let _ = writeln!(setup, "link set node-{number} master switch up");
        }
        batch("ip", &hub, &setup)?;
        for number in 1..=self.nodes {
            let address = Self::node_address(number).ip();
            let setup = format!("link set lo up\naddr add {address}/24 dev line\nlink set line up\n");
            batch("ip", &self.node(number), &setup)?;
            // A queue of 50 ms, as a good switch has.
            let shape = |device: &str| {
                format!("qdisc add dev {device} root tbf rate {bits_per_second}bit burst {BURST_BYTES}b latency 50ms\n")
            };
            batch("tc", &self.node(number), &shape("line"))?;
            batch("tc", &hub, &shape(&format!("node-{number}")))?;
        }
        Ok(())
    }

    /// Name of the switch's namespace, from which all nodes are reached, each over its own line.
    pub fn hub(&self) -> String {
        format!("{}-hub", self.prefix)
    }

    /// Where the S3 server listens.
    pub fn hub_address() -> SocketAddr {
        SocketAddr::from((HUB, 9000))
    }

    /// Name of a node's namespace; nodes are counted from 1.
    pub fn node(&self, number: u8) -> String {
        format!("{}-node-{number}", self.prefix)
    }

    /// Where a node listens.
    pub fn node_address(number: u8) -> SocketAddr {
        let [a, b, c, d] = HUB;
        SocketAddr::from(([a, b, c, d + 9 + number], PORT))
    }

    /// Runs something in one of the namespaces, with all the processes it starts, on a runtime of its own.
    pub fn run_in<T: Send>(name: &str, work: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
        in_namespace(name, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(crate::wait::or_interrupted(work()))
        })
    }
}

impl Drop for ShapedNetwork {
    fn drop(&mut self) {
        for name in std::iter::once(self.hub()).chain((1..=self.nodes).map(|number| self.node(number))) {
            remove(&name);
        }
    }
}

fn batch(program: &str, namespace: &str, lines: &str) -> Result<()> {
    run_with_input(&mut command(program, ["-n", namespace, "-batch", "-"]), lines.as_bytes())
        .with_context(|| format!("setting up network namespace {namespace}"))?;
    Ok(())
}

fn remove(name: &str) {
    // It is not there when making it failed; anything else shows in `ip netns list`.
    if std::path::Path::new("/run/netns").join(name).exists()
        && let Err(error) = run(&mut command("ip", ["netns", "delete", name]))
    {
        eprintln!("network namespace {name} stays: {error:#}");
    }
}

/// Removes what killed runs left behind.
fn sweep() -> Result<()> {
    let listed = run(&mut command("ip", ["netns", "list"])).context("ip is needed: install iproute2")?;
    let listed = String::from_utf8_lossy(&listed.stdout);
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| run_folder::is_left_over(name)).for_each(remove);
    Ok(())
}
