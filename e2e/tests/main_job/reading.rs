//! Two pods on two nodes read everything twice: right bytes, each over the line once, and kubectl says so.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use forebay_e2e::{Cluster, S3Server, data, forebay};

use crate::tenant::{NAMESPACE, Sums, check_reader, dataset, expected_sums, reader, sum_script};

/// Bytes over the line may exceed the data's size by this share: HTTP retries, no more.
const TOLERANCE: f64 = 0.01;

pub fn a_runtime_becomes_ready(cluster: &Cluster) -> Result<()> {
    let s3 = S3Server::start(cluster)?;
    forebay::install(cluster)?;
    cluster.apply(&forebay::runtime_manifest("4Gi"))?;
    cluster.apply(&forebay::tenant_manifest(NAMESPACE, &s3))?;
    let (kind, namespace) = ("cacheruntime", forebay::SYSTEM_NAMESPACE);
    let timeout = Duration::from_secs(60);
    let runtime = forebay::wait_condition(cluster, kind, namespace, forebay::RUNTIME, "Ready", timeout)?;
    let nodes = &runtime["status"]["nodes"];
    ensure!(nodes["ready"] == 2 && nodes["desired"] == 2, "one cache node on each of two nodes, not {nodes}");
    Ok(())
}

pub fn two_pods_read_every_file_right(cluster: &Cluster) -> Result<()> {
    let s3 = S3Server::start(cluster)?;
    s3.client().create_bucket("notes")?;
    let (icons, model) = (data::icons()?, data::model()?);
    s3.upload("notes", "2026/icons/", &icons)?;
    s3.upload("notes", "models/minilm/", &model)?;
    let (mut expected, icons_size) = expected_sums(&icons, "icons/")?;
    let (weights, model_size): (Sums, u64) = expected_sums(&model, "model/")?;
    expected.extend(weights);
    let size = icons_size + model_size;
    s3.reset_traffic()?;

    let mounts = [
        ("/icons", forebay::source("s3://notes/2026/icons/")),
        ("/model", forebay::source("s3://notes/models/minilm")),
    ];
    // Preload and readers start at once: what one of them fetches, nobody fetches again.
    cluster.apply(&dataset("notes", &mounts, "preload: {include: ['**']}, access: {uid: 1000, gid: 1000}"))?;
    for node in ["node-1", "node-2"] {
        cluster.apply(&reader(&format!("sum-{node}"), node, "notes", &sum_script(2)))?;
    }
    for node in ["node-1", "node-2"] {
        check_reader(cluster, &format!("sum-{node}"), &expected, 2)?;
    }
    let served = s3.bytes_served()?;
    let share = served as f64 / size as f64;
    println!(
        "{} files, {size} bytes, read twice by two pods: {served} bytes left the S3 server ({share:.4} x)",
        expected.len()
    );
    ensure!(
        (1.0 - TOLERANCE..=1.0 + TOLERANCE).contains(&share),
        "{served} bytes left the S3 server for {size} of data"
    );

    let preloaded =
        forebay::wait_condition(cluster, "dataset", NAMESPACE, "notes", "Preloaded", Duration::from_secs(60))?;
    let status = &preloaded["status"];
    ensure!(status["preload"]["percent"] == 100 && status["preload"]["verified"] == true, "{}", status["preload"]);
    ensure!(status["version"]["files"] == expected.len(), "{}", status["version"]);
    ensure!(status["version"]["bytes"] == size, "{}", status["version"]);
    ensure!(status["cache"]["percent"] == 100, "{}", status["cache"]);
    Ok(())
}

pub fn kubectl_shows_what_is_loaded(cluster: &Cluster) -> Result<()> {
    let shown = cluster.kubectl(&["get", "datasets", "--namespace", NAMESPACE])?;
    let (header, row) = shown.split_once('\n').context("kubectl get datasets shows no row")?;
    for column in ["PHASE", "FILES", "SIZE", "CACHED", "PRELOAD", "HIT RATE", "SOURCE", "AGE"] {
        ensure!(header.contains(column), "no column {column} in:\n{shown}");
    }
    ensure!(row.contains("Ready") && row.contains("100%"), "{shown}");
    let explained = cluster.kubectl(&["explain", "dataset.spec.mounts.sources.url"])?;
    ensure!(explained.contains("s3://"), "kubectl explain does not teach:\n{explained}");
    Ok(())
}

pub fn a_file_source_is_read(cluster: &Cluster) -> Result<()> {
    let labels = forebay::shared_folder(cluster).join("labels");
    fs::create_dir_all(labels.join("deep"))?;
    fs::write(labels.join("one.txt"), "one\n")?;
    fs::write(labels.join("deep/two.txt"), "two\n")?;
    fs::write(labels.join("empty"), "")?;
    let source = format!("{{url: 'file://{}'}}", labels.display());
    cluster.apply(&dataset("labels", &[("/labels", source)], ""))?;
    let script = "set -e; cd /data/labels; cat one.txt deep/two.txt empty; ls -A | sort | tr '\\n' ' '";
    cluster.apply(&reader("labels", "node-2", "labels", script))?;
    cluster.wait_pod(NAMESPACE, "labels", "Succeeded", Duration::from_secs(60))?;
    let log = cluster.logs(NAMESPACE, "labels", "main")?;
    ensure!(log.trim() == "one\ntwo\ndeep empty one.txt", "the pod saw {log:?}");
    Ok(())
}
