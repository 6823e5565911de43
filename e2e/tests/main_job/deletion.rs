//! The chart itself, and the end: deleting everything leaves no mount, volume, finalizer or file.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use forebay_e2e::command::{command, run, text};
use forebay_e2e::{Cluster, forebay, paths, setup, wait_until};

use crate::tenant::NAMESPACE;

pub fn the_chart_passes_lint_and_renders(_: &Cluster) -> Result<()> {
    let helm = paths::bin().join("helm").display().to_string();
    let chart = paths::repository().join("charts/forebay").display().to_string();
    run(&mut command(&helm, ["lint", "--strict", &chart]))?;
    let rendered = text(&mut command(
        &helm,
        [
            "template",
            "forebay",
            &chart,
            "--namespace",
            "forebay",
            "--include-crds",
            "--kube-version",
            setup::KUBERNETES_VERSION,
        ],
    ))?;
    for kind in ["CustomResourceDefinition", "CSIDriver", "DaemonSet", "Deployment", "ClusterRole"] {
        ensure!(rendered.contains(&format!("kind: {kind}")), "the chart renders no {kind}");
    }
    // Plugin, daemon and operator have probes, and the plugin shows metrics.
    for (part, times) in [("livenessProbe:", 3), ("readinessProbe:", 3), ("--probe=alive", 2), ("port: \"7072\"", 1)] {
        ensure!(rendered.matches(part).count() == times, "the chart has not {part} {times} times");
    }
    Ok(())
}

pub fn deleting_everything_leaves_nothing(cluster: &Cluster) -> Result<()> {
    let minute = "--timeout=90s";
    cluster.kubectl(&["delete", "pods", "--all", "--namespace", NAMESPACE, minute])?;
    cluster.kubectl(&["delete", "datasets", "--all", "--namespace", NAMESPACE, minute])?;
    cluster.kubectl(&["delete", "cacheruntimes", "--all", "--namespace", forebay::SYSTEM_NAMESPACE, minute])?;
    for kind in ["datasets", "cacheruntimes", "persistentvolumeclaims", "persistentvolumes"] {
        let left = cluster.kubectl(&["get", kind, "--all-namespaces", "--output=name"])?;
        ensure!(left.is_empty(), "these are left: {left}");
    }
    wait_until("cache nodes to be gone", Duration::from_secs(90), || {
        let selector = "app.kubernetes.io/component=cache-node";
        let left = cluster.kubectl(&[
            "get",
            "statefulsets,pods,secrets,services,pdb",
            "--all-namespaces",
            "--selector",
            selector,
            "--output=name",
        ])?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })?;
    for node in cluster.nodes() {
        wait_until(&format!("{} to be clean", node.name), Duration::from_secs(60), || {
            let mounts = node.mountinfo()?;
            let ours = |line: &&str| line.contains("csi.forebay.dev") && !line.contains("csi.forebay.dev/csi.sock");
            if let Some(mount) = mounts.lines().find(ours) {
                bail!("a mount is left: {mount}");
            }
            // What the plugin tells about itself stays as long as the plugin.
            let files = [
                "/var/lib/forebay",
                "/dev/shm/forebay",
                "-type",
                "f",
                "-not",
                "-path",
                "/var/lib/forebay/run/mount-mode",
            ];
            let files = text(&mut node.command("find", &files))?;
            ensure!(files.is_empty(), "files are left: {files}");
            Ok(())
        })?;
    }
    Ok(())
}
