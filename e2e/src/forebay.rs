//! Forebay on a test cluster: builds the programs and their image, installs the chart, and knows the manifests that tests and the demo
//! share. What is specific to one scenario is the scenario's.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cluster::Cluster;
use crate::command::{command, run, run_shown, text};
use crate::images::{self, ImageConfig};
use crate::paths;
use crate::s3::{ENDPOINT, REGION, S3Server};
use crate::setup;

/// Namespace of the chart and of cache runtimes.
pub const SYSTEM_NAMESPACE: &str = "forebay";

/// Name of the CacheRuntime that [`runtime_manifest`] makes.
pub const RUNTIME: &str = "gpu-pool";

/// The image with all programs.
pub const IMAGE: &str = "forebay:dev";

/// The certificate authorities of Debian's `ca-certificates`, which [`crate::setup::ensure`] installs.
const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Crates and the programs they make.
const PROGRAMS: &[(&str, &str)] = &[
    ("forebay-cache-node", "forebay-node"),
    ("forebay-fuse", "forebay-fuse"),
    ("forebay-csi", "forebay-csi"),
    ("forebay-operator", "forebay-operator"),
    ("forebay-cli", "forebay"),
];

/// Builds all programs, linked statically; returns the folder they are in.
pub fn build_programs() -> Result<PathBuf> {
    let mut cargo = command("cargo", ["build", "--quiet"]);
    for (package, _) in PROGRAMS {
        cargo.args(["--package", package]);
    }
    run_shown(cargo.arg("--bins").current_dir(paths::repository())).context("building Forebay's programs")?;
    let version = text(command("rustc", ["-vV"]).current_dir(paths::repository()))?;
    let Some(host) = version.lines().find_map(|line| line.strip_prefix("host: ")) else {
        bail!("rustc -vV names no host: {version}");
    };
    Ok(paths::target().join(host).join("debug"))
}

/// Builds the image with all programs, stripped; returns its archive.
pub fn image() -> Result<PathBuf> {
    setup::ensure()?;
    let built = build_programs()?;
    let stripped = paths::kept().join("stripped");
    fs::create_dir_all(&stripped).with_context(|| format!("making {}", stripped.display()))?;
    let mut files = Vec::new();
    for (_, program) in PROGRAMS {
        let target = stripped.join(program);
        run(command("strip", ["-o"]).arg(&target).arg(built.join(program)))
            .with_context(|| format!("stripping {program}"))?;
        files.push((format!("/{program}"), target));
    }
    // What https:// endpoints are trusted by.
    files.push((CA_BUNDLE.into(), PathBuf::from(CA_BUNDLE)));
    let config = ImageConfig { name: IMAGE.into(), entrypoint: vec![], environment: vec![] };
    images::from_programs(&config, &files)
}

/// A folder that all nodes see, as a shared file system: `file://` sources may lie below it.
pub fn shared_folder(cluster: &Cluster) -> PathBuf {
    cluster.run_folder.join("shared")
}

/// Installs the chart and waits until everything it installs is ready.
pub fn install(cluster: &Cluster) -> Result<()> {
    upgrade(cluster, "").context("installing the chart")
}

/// Upgrades the chart, or installs it, with these values beside the tests' own (as for `--set`), and waits until every DaemonSet has replaced all of
/// its pods that these values change.
pub fn upgrade(cluster: &Cluster, values: &str) -> Result<()> {
    let shared = shared_folder(cluster);
    fs::create_dir_all(&shared).with_context(|| format!("making {}", shared.display()))?;
    let chart = paths::repository().join("charts/forebay").display().to_string();
    cluster.helm(&[
        "upgrade",
        "--install",
        "forebay",
        &chart,
        "--namespace",
        SYSTEM_NAMESPACE,
        "--create-namespace",
        "--set=image.repository=forebay,image.tag=dev,image.pullPolicy=Never",
        &format!("--set=fileSourceRoots={{{}}}", shared.display()),
        &format!("--set={values}"),
        "--wait",
        "--timeout=120s",
    ])?;
    // Helm is content when only as many of a DaemonSet's pods are missing as may be.
    for daemon_set in ["daemonset/forebay-csi", "daemonset/forebay-fuse"] {
        let namespace = format!("--namespace={SYSTEM_NAMESPACE}");
        cluster.kubectl(&["rollout", "status", daemon_set, &namespace, "--timeout=120s"])?;
    }
    Ok(())
}

/// The CacheRuntime of all tests: every node, a disk tier on the node's own disk.
pub fn runtime_manifest(capacity: &str) -> String {
    format!(
        "
apiVersion: forebay.dev/v1alpha1
kind: CacheRuntime
metadata: {{name: {RUNTIME}, namespace: {SYSTEM_NAMESPACE}}}
spec:
  nodes: {{selector: {{matchLabels: {{forebay.dev/cache: \"true\"}}}}}}
  storage: [{{medium: Disk, capacity: {capacity}, hostPath: /var/lib/forebay/disk0}}]
"
    )
}

/// A namespace with a Secret `s3` that opens the S3 server.
pub fn tenant_manifest(namespace: &str, s3: &S3Server) -> String {
    let credentials = s3.credentials();
    format!(
        "
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}}}
---
apiVersion: v1
kind: Secret
metadata: {{name: s3, namespace: {namespace}}}
stringData: {{AWS_ACCESS_KEY_ID: {}, AWS_SECRET_ACCESS_KEY: {}}}
",
        credentials.access_key, credentials.secret_key
    )
}

/// A source in the S3 server, as a flow mapping.
pub fn source(url: &str) -> String {
    format!("{{url: '{url}', endpoint: '{ENDPOINT}', region: {REGION}, secretRef: {{name: s3}}}}")
}

/// Waits until a condition of a Forebay object is True, and returns the object.
pub fn wait_condition(
    cluster: &Cluster,
    kind: &str,
    namespace: &str,
    name: &str,
    condition: &str,
    timeout: Duration,
) -> Result<serde_json::Value> {
    cluster.wait_for(&[kind, name, "--namespace", namespace], timeout, |object| {
        let (status, message) = crate::cluster::condition(object, condition);
        if status == "True" {
            return Ok(());
        }
        bail!("{condition} is {status}: {message}; status {}", object["status"])
    })
}
