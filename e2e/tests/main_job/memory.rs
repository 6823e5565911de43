//! A CacheRuntime with memory before its disk: each node has copies of what it owns in its own memory, readers get right bytes, and nothing is left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use forebay_e2e::command::text;
use forebay_e2e::{Cluster, S3Server, forebay, wait_until};

use crate::tenant::{NAMESPACE, bytes, check_reader, dataset, expected_sums, reader, sum_script};

const RUNTIME: &str = "memory-pool";
const FILES: u64 = 30;
const SIZE: usize = 1_500_000;

/// Time for pods to start, a load, or a deletion. Generous: these machines are shared.
const LIMIT: Duration = Duration::from_secs(90);

fn runtime_manifest() -> String {
    forebay::runtime_manifest("1Gi")
        .replace(forebay::RUNTIME, RUNTIME)
        .replace("disk0", "disk2")
        .replace("storage: [", "storage: [{medium: Memory, capacity: 128Mi}, ")
}

/// Names of the objects that each node has in memory.
fn copies(cluster: &Cluster) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let folder = format!("/dev/shm/forebay/{}.{RUNTIME}/objects", forebay::SYSTEM_NAMESPACE);
    let of_node = |node: &forebay_e2e::node::Node| {
        let files = text(&mut node.command("find", &[&folder, "-type", "f", "-printf", "%P %s\n"]))?;
        let whole = |file: &str| file.strip_suffix(&format!(" {SIZE}")).map(str::to_owned);
        Ok((node.name.clone(), files.lines().filter_map(whole).collect()))
    };
    cluster.nodes().iter().map(of_node).collect()
}

pub fn memory_before_disk_serves_right_bytes(cluster: &Cluster) -> Result<()> {
    let s3 = S3Server::start(cluster)?;
    s3.client().create_bucket("in-memory")?;
    let folder = tempfile::tempdir_in("/dev/shm")?;
    for number in 0..FILES {
        fs::write(folder.path().join(format!("{number}.bin")), bytes(5_000 + number, SIZE))?;
    }
    s3.upload("in-memory", "", folder.path())?;
    let (expected, _) = expected_sums(folder.path(), "")?;
    cluster.apply(&runtime_manifest())?;
    let system = forebay::SYSTEM_NAMESPACE;
    forebay::wait_condition(cluster, "cacheruntime", system, RUNTIME, "Ready", LIMIT)?;
    // What is pinned is copied to memory as soon as it is loaded.
    let manifest = dataset("in-memory", &[("/", forebay::source("s3://in-memory/"))], "preload: {}, pin: {}");
    cluster.apply(&manifest.replace(forebay::RUNTIME, RUNTIME))?;
    forebay::wait_condition(cluster, "dataset", NAMESPACE, "in-memory", "Preloaded", LIMIT)?;
    let held = wait_until("everything to be in the memory of its owner", LIMIT, || {
        let held = copies(cluster)?;
        let all: BTreeSet<&String> = held.values().flatten().collect();
        ensure!(all.len() as u64 == FILES, "in memory: {held:?}");
        Ok(held)
    })?;
    // Each has its own: nobody has read yet, so no node has what another one owns.
    let (first, second) = (&held["node-1"], &held["node-2"]);
    ensure!(!first.is_empty() && !second.is_empty() && first.is_disjoint(second), "in memory: {held:?}");

    for node in ["node-1", "node-2"] {
        cluster.apply(&reader(&format!("in-memory-{node}"), node, "in-memory", &sum_script(2)))?;
    }
    for node in ["node-1", "node-2"] {
        let name = format!("in-memory-{node}");
        check_reader(cluster, &name, &expected, 2)?;
        cluster.kubectl(&["delete", "pod", &name, "--namespace", NAMESPACE, "--timeout=90s"])?;
    }
    cluster.kubectl(&["delete", "dataset", "in-memory", "--namespace", NAMESPACE, "--timeout=90s"])?;
    cluster.kubectl(&["delete", "cacheruntime", RUNTIME, "--namespace", system, "--timeout=90s"])?;
    for node in cluster.nodes() {
        wait_until(&format!("nothing to be left in the memory of {}", node.name), LIMIT, || {
            let left = text(&mut node.command("find", &["/dev/shm/forebay", "-type", "f"]))?;
            ensure!(left.is_empty(), "files are left: {left}");
            Ok(())
        })?;
    }
    Ok(())
}
