//! The cache nodes as one pool: what is to be everywhere gets there once over the line, a node that is not wanted any more hands over before it goes,
//! and a damaged file is found, told and healed.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use forebay_e2e::command::{run, text};
use forebay_e2e::{Cluster, S3Server, forebay, wait_until};
use serde_json::Value;

use crate::tenant::{NAMESPACE, Sums, bytes, check_reader, dataset, expected_sums, reader, sum_script};

/// Time for a load, a drain, or a change of members. Generous: these machines are shared.
const LIMIT: Duration = Duration::from_secs(90);

/// Many small files and some of several chunks: about 40 MB.
const SMALL: (u32, usize) = (60, 120_000);
const LARGE: (u32, usize) = (4, 9_000_000);
/// The size of one file that no other object has, so that it is found on a node's disk.
const MARKED: usize = 9_123_457;

/// Fills a bucket and returns what readers must get, and its size.
fn fill(s3: &S3Server, bucket: &str) -> Result<(Sums, u64)> {
    s3.client().create_bucket(bucket)?;
    let folder = tempfile::tempdir_in("/dev/shm")?;
    // Buckets differ, or their objects would be cached already.
    let seed = bucket.bytes().fold(7_u64, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
    for (count, size) in [SMALL, LARGE] {
        for number in 0..count {
            write(&folder.path().join(format!("{size}-{number:03}.bin")), seed + u64::from(number), size)?;
        }
    }
    write(&folder.path().join("marked.bin"), seed, MARKED)?;
    s3.upload(bucket, "", folder.path())?;
    expected_sums(folder.path(), "")
}

fn write(path: &Path, seed: u64, size: usize) -> Result<()> {
    fs::write(path, bytes(seed, size)).with_context(|| format!("writing {}", path.display()))
}

/// Applies a Dataset of a bucket that is loaded ahead and waits until all of it is there; its status.
fn load(cluster: &Cluster, bucket: &str, placement: &str) -> Result<Value> {
    let rest = format!("preload: {{}}, placement: {placement}");
    cluster.apply(&dataset(bucket, &[("/", forebay::source(&format!("s3://{bucket}/")))], &rest))?;
    let loaded = forebay::wait_condition(cluster, "dataset", NAMESPACE, bucket, "Preloaded", LIMIT)?;
    Ok(loaded["status"].clone())
}

/// The CacheRuntime's status.
fn status(cluster: &Cluster) -> Result<Value> {
    let runtime = cluster.get(&["cacheruntime", forebay::RUNTIME, "--namespace", forebay::SYSTEM_NAMESPACE])?;
    Ok(runtime["status"].clone())
}

/// Waits until an Event of the CacheRuntime with this reason names `what`.
fn wait_event(cluster: &Cluster, reason: &str, what: &str) -> Result<()> {
    let selector = format!("--field-selector=involvedObject.name={},reason={reason}", forebay::RUNTIME);
    wait_until(&format!("an Event {reason} about {what}"), LIMIT, || {
        let namespace = forebay::SYSTEM_NAMESPACE;
        let output = "--output=jsonpath={.items[*].message}";
        let told = cluster.kubectl(&["get", "events", "--namespace", namespace, &selector, output])?;
        ensure!(told.contains(what), "told: {told:?}");
        Ok(())
    })
}

pub fn what_is_to_be_everywhere_crosses_the_line_once(cluster: &Cluster) -> Result<()> {
    let s3 = S3Server::start(cluster)?;
    let (expected, size) = fill(&s3, "everywhere")?;
    s3.reset_traffic()?;
    let status = load(cluster, "everywhere", "{mode: Everywhere}")?;
    let served = s3.bytes_served()?;
    println!("{size} bytes on both nodes: {served} left the S3 server ({:.4} x)", served as f64 / size as f64);
    ensure!(served >= size && served <= size + size / 100, "{served} bytes left the S3 server for {size} of data");
    ensure!(status["preload"]["loadedFiles"] == expected.len(), "{}", status["preload"]);
    ensure!(status["preload"]["totalBytes"] == size && status["cache"]["percent"] == 100, "{status}");
    // Each node has all of it on its own disk.
    let holders = marked(cluster)?;
    ensure!(holders.len() == 2, "marked.bin is whole on {holders:?}");
    for node in ["node-1", "node-2"] {
        cluster.apply(&reader(&format!("everywhere-{node}"), node, "everywhere", &sum_script(1)))?;
    }
    for node in ["node-1", "node-2"] {
        check_reader(cluster, &format!("everywhere-{node}"), &expected, 1)?;
    }
    ensure!(s3.bytes_served()? == served, "readers of what is everywhere read the source");
    Ok(())
}

pub fn a_node_that_is_not_wanted_hands_over_and_goes(cluster: &Cluster) -> Result<()> {
    let s3 = S3Server::start(cluster)?;
    let (expected, _) = fill(&s3, "handed-over")?;
    load(cluster, "handed-over", "{mode: Sharded}")?;
    let namespace = forebay::SYSTEM_NAMESPACE;
    let first = cluster.get(&["pod", &format!("{}-0", forebay::RUNTIME), "--namespace", namespace])?;
    let node = first["spec"]["nodeName"].as_str().context("the first cache node's pod is on no node")?.to_owned();
    let scale = |replicas: &str| {
        let patch = format!("{{\"spec\": {{\"nodes\": {{\"replicas\": {replicas}}}}}}}");
        cluster.kubectl(&[
            "patch",
            "cacheruntime",
            forebay::RUNTIME,
            "--namespace",
            namespace,
            "--type=merge",
            "--patch",
            &patch,
        ])
    };
    s3.reset_traffic()?;
    // One reads all the time, before, while and after the other cache node leaves.
    let passes = 12;
    cluster.apply(&reader("steady", &node, "handed-over", &sum_script(passes)))?;
    cluster.wait_pod(NAMESPACE, "steady", "Running", LIMIT)?;
    scale("1")?;
    let last = format!("{}-1", forebay::RUNTIME);
    wait_event(cluster, "NodeLeaving", &last)?;
    wait_until(&format!("{last} to be gone"), LIMIT, || {
        let status = status(cluster)?;
        let members = status["members"].as_array().map(Vec::len).unwrap_or_default();
        let pods =
            cluster.get(&["pods", "--namespace", namespace, "--selector", "app.kubernetes.io/component=cache-node"])?;
        let pods = pods["items"].as_array().map(Vec::len).unwrap_or_default();
        ensure!(members == 1 && pods == 1, "{members} members, {pods} pods; status {status}");
        Ok(())
    })?;
    wait_event(cluster, "NodeLeft", &last)?;
    cluster.apply(&reader("after", &node, "handed-over", &sum_script(1)))?;
    check_reader(cluster, "after", &expected, 1)?;
    check_reader(cluster, "steady", &expected, passes)?;
    let served = s3.bytes_served()?;
    ensure!(served == 0, "{served} bytes were read from the source again although all was handed over");

    scale("null")?;
    wait_until("both cache nodes to be back", LIMIT, || {
        let status = status(cluster)?;
        ensure!(status["nodes"]["ready"] == 2 && status["phase"] == "Ready", "{status}");
        Ok(())
    })
}

pub fn a_damaged_file_is_told_and_healed(cluster: &Cluster) -> Result<()> {
    let s3 = S3Server::start(cluster)?;
    let (expected, _) = fill(&s3, "damaged")?;
    // Other Datasets' content of that size is gone or is on both nodes; of this one each file is on one.
    let before = marked(cluster)?;
    load(cluster, "damaged", "{mode: Sharded}")?;
    let now = marked(cluster)?;
    let Some((node, file)) = now.iter().find(|found| !before.contains(found)) else {
        bail!("no node has marked.bin: {now:?}")
    };
    let owner = cluster.node(node)?;
    run(&mut owner
        .command("dd", &["if=/dev/zero", &format!("of={file}"), "bs=4096", "seek=1000", "count=1", "conv=notrunc"]))?;
    let other = if node == "node-1" { "node-2" } else { "node-1" };
    cluster.apply(&reader("healed", other, "damaged", &sum_script(1)))?;
    check_reader(cluster, "healed", &expected, 1)?;
    wait_event(cluster, "ChunksDamaged", node)?;
    wait_until("the damage to be mended", LIMIT, || {
        let status = status(cluster)?;
        let members = status["members"].as_array().cloned().unwrap_or_default();
        let faults = members
            .iter()
            .filter(|member| member["node"] == node.as_str())
            .flat_map(|member| member["diskFaults"].as_array().cloned().unwrap_or_default());
        let counted =
            faults.filter(|fault| fault["kind"] == "ChunksDamaged").any(|fault| fault["count"].as_i64() >= Some(1));
        let healthy = status["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "StorageHealthy" && condition["status"] == "True");
        ensure!(counted && healthy, "{status}");
        Ok(())
    })?;
    // Its owner has the right bytes again.
    cluster.apply(&reader("healed-here", node, "damaged", &sum_script(1)))?;
    check_reader(cluster, "healed-here", &expected, 1)
}

/// Nodes and files of objects that have the marked size.
fn marked(cluster: &Cluster) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for node in cluster.nodes() {
        let objects = format!("/var/lib/forebay/disk0/{}.{}/objects", forebay::SYSTEM_NAMESPACE, forebay::RUNTIME);
        let of_size = format!("{MARKED}c");
        let files = text(&mut node.command("find", &[&objects, "-type", "f", "-size", &of_size]))?;
        found.extend(files.lines().map(|file| (node.name.clone(), file.to_owned())));
    }
    Ok(found)
}
