//! Parts are killed while pods read: no read fails, no byte differs.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use forebay_e2e::{Cluster, S3Server, forebay, wait_until};

use crate::tenant::{NAMESPACE, bytes, check_reader, dataset, expected_sums, reader};

/// Files of the set: enough that reading takes longer than all the kills.
const FILES: u32 = 1500;
/// Bytes of each; 3 % of them are many chunks long.
const SMALL: usize = 150_000;
const LARGE: usize = 9_000_000;

/// Reads file by file, so that the log tells how far it is; pauses nowhere.
const SCRIPT: &str = "set -e; cd /data; for f in $(find . -type f | sort); do sha256sum $f; done";

pub fn no_read_fails_while_parts_are_killed(cluster: &Cluster) -> Result<()> {
    let s3 = S3Server::start(cluster)?;
    s3.client().create_bucket("survival")?;
    let folder = tempfile::tempdir_in("/dev/shm")?;
    for number in 0..FILES {
        let size = if number % 33 == 0 { LARGE } else { SMALL };
        fs::write(folder.path().join(format!("{number:04}.bin")), bytes(u64::from(number), size))?;
    }
    s3.upload("survival", "", folder.path())?;
    let (expected, _) = expected_sums(folder.path(), "")?;
    cluster.apply(&dataset("survival", &[("/", forebay::source("s3://survival/"))], ""))?;
    let readers = [("steady-1", "node-1"), ("steady-2", "node-2")];
    for (name, node) in readers {
        cluster.apply(&reader(name, node, "survival", SCRIPT))?;
    }

    let system = forebay::SYSTEM_NAMESPACE;
    let victims = [
        (30, "app.kubernetes.io/component=operator", "operator"),
        (90, "app.kubernetes.io/component=cache-node", "forebay-node"),
        (200, "app.kubernetes.io/component=fuse", "fuse"),
        (300, "app.kubernetes.io/component=csi", "csi"),
    ];
    for (lines, selector, container) in victims {
        wait_until(&format!("{lines} files to be read"), Duration::from_secs(120), || {
            let log = cluster.logs(NAMESPACE, "steady-1", "main")?;
            let read = log.lines().count();
            ensure!(read >= lines, "{read} files");
            Ok(())
        })?;
        let pods = cluster.get(&["pods", "--namespace", system, "--selector", selector])?;
        let on_node_1 = |pod: &&serde_json::Value| pod["spec"]["nodeName"] == "node-1";
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        let victim = pods.iter().find(on_node_1).or(pods.first()).with_context(|| format!("no pod with {selector}"))?;
        let pod = victim["metadata"]["name"].as_str().context("a pod without a name")?;
        let still_reading =
            cluster.get(&["pod", "steady-1", "--namespace", NAMESPACE])?["status"]["phase"] == "Running";
        cluster.kill_container(system, pod, container)?;
        println!("killed {container} of {pod} after {lines} files{}", if still_reading { "" } else { ", too late" });
        if !still_reading {
            bail!("the reader had ended before {container} was killed: the scenario shows nothing, make it longer");
        }
    }
    for (name, _) in readers {
        check_reader(cluster, name, &expected, 1)?;
    }
    // What was killed came back.
    wait_all_ready(cluster)
}

/// Waits until all of Forebay's pods are ready.
pub fn wait_all_ready(cluster: &Cluster) -> Result<()> {
    wait_until("all of Forebay's pods to be ready again", Duration::from_secs(120), || {
        let pods = cluster.get(&["pods", "--namespace", forebay::SYSTEM_NAMESPACE])?;
        for pod in pods["items"].as_array().into_iter().flatten() {
            let (ready, message) = forebay_e2e::cluster::condition(pod, "Ready");
            ensure!(ready == "True", "{}: {message}", pod["metadata"]["name"]);
        }
        Ok(())
    })
}
