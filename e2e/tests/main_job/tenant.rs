//! Namespaces, Datasets and reading pods as the scenarios need them, and what a pod must have read.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use forebay_e2e::setup::hex;
use forebay_e2e::{Cluster, forebay};
use sha2::{Digest as _, Sha256};

/// Namespace of the readers.
pub const NAMESPACE: &str = "training";

/// Time for a pod that reads everything. Generous: these machines are shared.
pub const READ_TIMEOUT: Duration = Duration::from_secs(240);

/// SHA-256 by path below a folder.
pub type Sums = BTreeMap<String, String>;

/// A Dataset; `mounts` pairs paths with sources as flow mappings, `rest` is further spec fields, also as a flow mapping's inside.
pub fn dataset(name: &str, mounts: &[(&str, String)], rest: &str) -> String {
    let mounts: Vec<String> =
        mounts.iter().map(|(path, source)| format!("{{path: {path}, sources: [{source}]}}")).collect();
    let rest = if rest.is_empty() { String::new() } else { format!(", {rest}") };
    format!(
        "
apiVersion: forebay.dev/v1alpha1
kind: Dataset
metadata: {{name: {name}, namespace: {NAMESPACE}}}
spec: {{runtimeRef: {{name: {}, namespace: {}}}, mounts: [{}]{rest}}}
",
        forebay::RUNTIME,
        forebay::SYSTEM_NAMESPACE,
        mounts.join(", ")
    )
}

/// A volume of a pod and where its container sees it.
pub struct Volume<'a> {
    /// Where it is mounted.
    pub path: &'a str,
    /// What it is, as a flow mapping's inside.
    pub source: String,
    /// The folder of it that is mounted; empty for all.
    pub sub_path: &'a str,
}

impl<'a> Volume<'a> {
    /// All of a claim.
    pub fn claim(path: &'a str, claim: &str) -> Self {
        Self { path, source: format!("persistentVolumeClaim: {{claimName: {claim}}}"), sub_path: "" }
    }

    /// An inline volume with these attributes, as a flow mapping's inside.
    pub fn inline(path: &'a str, attributes: &str) -> Self {
        let source = format!("csi: {{driver: csi.forebay.dev, readOnly: true, volumeAttributes: {{{attributes}}}}}");
        Self { path, source, sub_path: "" }
    }
}

/// A pod on `node` that runs a command in the training image with these volumes.
pub fn pod(namespace: &str, name: &str, node: &str, command: &[&str], volumes: &[Volume<'_>]) -> String {
    let command = serde_json::json!(command);
    let mounts: Vec<String> = volumes
        .iter()
        .enumerate()
        .map(|(number, Volume { path, sub_path, .. })| {
            format!("{{name: volume-{number}, mountPath: {path}, subPath: '{sub_path}'}}")
        })
        .collect();
    let sources: Vec<String> = volumes
        .iter()
        .enumerate()
        .map(|(number, Volume { source, .. })| format!("{{name: volume-{number}, {source}}}"))
        .collect();
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  securityContext: {{runAsUser: 1000, runAsNonRoot: true}}
  containers:
  - name: main
    image: forebay-train:dev
    imagePullPolicy: Never
    command: {command}
    volumeMounts: [{}]
  volumes: [{}]
",
        mounts.join(", "),
        sources.join(", ")
    )
}

/// A pod on `node` that runs a shell script with the Dataset at /data.
pub fn reader(name: &str, node: &str, dataset: &str, script: &str) -> String {
    pod(NAMESPACE, name, node, &["sh", "-c", script], &[Volume::claim("/data", dataset)])
}

/// Cheap bytes that differ between seeds and within each.
pub fn bytes(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed + 1;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(size)
    .collect()
}

/// Prints the sum of every file, once per pass.
pub fn sum_script(passes: usize) -> String {
    let pass = "find . -type f -exec sha256sum {} +";
    format!("set -e; cd /data; {}", vec![pass; passes].join("; "))
}

/// What `sha256sum` printed: per path all the sums it was given. A path that was printed twice stands twice.
pub fn printed_sums(log: &str) -> BTreeMap<String, Vec<String>> {
    let mut sums: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (sum, path) in log.lines().filter_map(|line| line.split_once("  ./")) {
        sums.entry(path.to_owned()).or_default().push(sum.to_owned());
    }
    sums
}

/// Checks that a log has exactly these files, each `passes` times with the right sum.
pub fn check_sums(who: &str, log: &str, expected: &Sums, passes: usize) -> Result<()> {
    let printed = printed_sums(log);
    for (path, sum) in expected {
        let found =
            printed.get(path).with_context(|| format!("{who} did not read {path}; its log ends:\n{}", tail(log)))?;
        ensure!(found.len() == passes, "{who} read {path} {} times instead of {passes}", found.len());
        ensure!(
            found.iter().all(|found| found == sum),
            "{who} read other bytes from {path}: {found:?} instead of {sum}"
        );
    }
    let extra = printed.keys().find(|path| !expected.contains_key(*path));
    ensure!(extra.is_none(), "{who} saw a file that the source does not have: {extra:?}");
    Ok(())
}

fn tail(log: &str) -> &str {
    let start = log.char_indices().rev().nth(600).map_or(0, |(index, _)| index);
    &log[start..]
}

/// Sums of all files below `folder`, their paths after `prefix`, and their size.
pub fn expected_sums(folder: &Path, prefix: &str) -> Result<(Sums, u64)> {
    let (mut sums, mut size) = (Sums::new(), 0);
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next)?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let content = fs::read(&path)?;
            size += content.len() as u64;
            let relative = path.strip_prefix(folder)?.display().to_string();
            sums.insert(format!("{prefix}{relative}"), hex(&Sha256::digest(&content)));
        }
    }
    Ok((sums, size))
}

/// Waits for a pod to end well and checks what it read.
pub fn check_reader(cluster: &Cluster, pod: &str, expected: &Sums, passes: usize) -> Result<()> {
    cluster.wait_pod(NAMESPACE, pod, "Succeeded", READ_TIMEOUT)?;
    check_sums(pod, &cluster.logs(NAMESPACE, pod, "main")?, expected, passes)
}
