//! What a node goes through: a pod deleted by force while it reads, a daemon that hangs, a kubelet that dies while pods mount, all processes killed with everything left as
//! it was, a reboot. Nothing stays mounted that nobody uses, nothing is mounted over another mount, and pods come back with right bytes from the cache.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use forebay_e2e::command::text;
use forebay_e2e::{Cluster, S3Server, forebay, wait_until};

use crate::survival::wait_all_ready;
use crate::tenant::{
    NAMESPACE, Sums, Volume, bytes, check_reader, check_sums, dataset, expected_sums, pod, sum_script,
};

/// Bucket and Dataset.
const KEPT: &str = "kept";

/// Time for pods to start or to come back. Generous: these machines are shared.
const LIMIT: Duration = Duration::from_secs(120);

/// Prints the sum of every file, then holds them all open and mapped, stays in the folder of the volume, and reads on.
const HOLDER: &str = r#"
import hashlib, mmap, os
os.chdir("/data")
held = []
for folder, _, names in os.walk("."):
    for path in (os.path.join(folder, name) for name in names):
        fd = os.open(path, os.O_RDONLY)
        held.append((fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ)))
        print(hashlib.sha256(held[-1][1]).hexdigest() + "  " + path)
print("holding", flush=True)
while True:
    for fd, mapped in held:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if os.pread(fd, 4096, 0) != mapped[:4096]:
            raise SystemExit("other bytes")
"#;

/// Loads a bucket onto both nodes; what a reader must get.
fn load(cluster: &Cluster) -> Result<Sums> {
    let s3 = S3Server::start(cluster)?;
    let folder = tempfile::tempdir_in("/dev/shm")?;
    fs::create_dir(folder.path().join("deep"))?;
    for number in 0..14 {
        let (name, size) =
            if number < 2 { (format!("{number}"), 9_000_000) } else { (format!("deep/{number}"), 200_000) };
        fs::write(folder.path().join(name), bytes(7_000 + number, size))?;
    }
    let (expected, _) = expected_sums(folder.path(), "")?;
    if cluster.get(&["dataset", KEPT, "--namespace", NAMESPACE]).is_err() {
        s3.client().create_bucket(KEPT)?;
        s3.upload(KEPT, "", folder.path())?;
        let rest = "preload: {}, placement: {mode: Everywhere}";
        cluster.apply(&dataset(KEPT, &[("/", forebay::source(&format!("s3://{KEPT}/")))], rest))?;
    }
    forebay::wait_condition(cluster, "dataset", NAMESPACE, KEPT, "Preloaded", LIMIT)?;
    Ok(expected)
}

fn claim() -> Volume<'static> {
    Volume::claim("/data", KEPT)
}

fn inline(path: &'static str) -> Volume<'static> {
    Volume::inline(path, &format!("dataset: {KEPT}"))
}

/// Mount points of the driver's mounts on a node that have more than one mount.
fn stacked(cluster: &Cluster, node: &str) -> Result<Vec<String>> {
    let mounts = cluster.node(node)?.mountinfo()?;
    let mut seen = BTreeSet::new();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let ours = points.filter(|point| point.contains("csi.forebay.dev") || point.contains("kubernetes.io~csi"));
    Ok(ours.filter(|point| !seen.insert(*point)).map(str::to_owned).collect())
}

fn ensure_none_stacked(cluster: &Cluster, node: &str) -> Result<()> {
    let stacked = stacked(cluster, node)?;
    ensure!(stacked.is_empty(), "mounts are stacked on {node}: {stacked:?}");
    Ok(())
}

/// Records of the Dataset's volumes that are staged on a node.
fn records(cluster: &Cluster, node: &str) -> Result<usize> {
    let folder = "/var/lib/kubelet/plugins/csi.forebay.dev/volumes";
    let name = format!("\"{NAMESPACE}/{KEPT}\"");
    let found = text(&mut cluster.node(node)?.command("sh", &["-c", "cat $0/*.json || true", folder]))?;
    Ok(found.matches(&name).count())
}

fn pod_field(cluster: &Cluster, name: &str, path: &str) -> Result<String> {
    let output = format!("--output=jsonpath={{{path}}}");
    cluster.kubectl(&["get", "pod", name, "--namespace", NAMESPACE, &output])
}

/// Waits until a holder that has been restarted so often holds all files, and checks what it read.
fn wait_holding(cluster: &Cluster, name: &str, restarts: u32, expected: &Sums) -> Result<()> {
    wait_until(&format!("{name} to hold its files after {restarts} restarts"), LIMIT, || {
        let restarted: u32 = pod_field(cluster, name, ".status.containerStatuses[0].restartCount")?.parse()?;
        ensure!(restarted >= restarts, "restarted {restarted} times");
        let log = cluster.logs(NAMESPACE, name, "main")?;
        let sums = log.strip_suffix("holding").with_context(|| format!("its log ends: {:?}", log.lines().last()))?;
        check_sums(name, sums, expected, 1)
    })
}

/// Waits until nothing of a pod is mounted on its node, and its folder is gone.
fn wait_gone(cluster: &Cluster, node: &str, uid: &str) -> Result<()> {
    wait_until(&format!("nothing to be left of pod {uid} on {node}"), LIMIT, || {
        let mounts = cluster.node(node)?.mountinfo()?;
        let mount = mounts.lines().find(|line| line.contains(uid));
        ensure!(mount.is_none(), "mounted: {mount:?}");
        let folder = format!("/var/lib/kubelet/pods/{uid}");
        let there = cluster.node(node)?.command("test", &["-e", &folder]).status()?.success();
        ensure!(!there, "{folder} is there");
        Ok(())
    })
}

pub fn a_pod_is_deleted_by_force(cluster: &Cluster) -> Result<()> {
    let expected = load(cluster)?;
    let command = ["python3", "-c", HOLDER];
    cluster.apply(&pod(NAMESPACE, "forced", "node-1", &command, &[claim(), inline("/inline")]))?;
    wait_holding(cluster, "forced", 0, &expected)?;
    let uid = pod_field(cluster, "forced", ".metadata.uid")?;
    ensure!(records(cluster, "node-1")? == 2, "staged: {} volumes", records(cluster, "node-1")?);

    let since = Instant::now();
    cluster.kubectl(&["delete", "pod", "forced", "--namespace", NAMESPACE, "--force", "--grace-period=0"])?;
    let script = sum_script(1);
    let volumes = [claim(), inline("/inline")];
    cluster.apply(&pod(NAMESPACE, "next", "node-1", &["sh", "-c", &script], &volumes))?;
    check_reader(cluster, "next", &expected, 1)?;
    println!("{:.1} s after a deletion by force the next pod has read everything", since.elapsed().as_secs_f64());
    ensure_none_stacked(cluster, "node-1")?;
    wait_gone(cluster, "node-1", &uid)?;

    let uid = pod_field(cluster, "next", ".metadata.uid")?;
    cluster.kubectl(&["delete", "pod", "next", "--namespace", NAMESPACE, "--force", "--grace-period=0"])?;
    wait_gone(cluster, "node-1", &uid)?;
    wait_nothing_staged(cluster, "node-1")
}

/// What the plugin of a node shows to Prometheus, its daemon's metrics among it.
fn metrics(cluster: &Cluster, node: &str) -> Result<String> {
    let plugin = daemon_set_pod(cluster, node, "csi")?;
    let path = format!("/api/v1/namespaces/{}/pods/{plugin}:7072/proxy/metrics", forebay::SYSTEM_NAMESPACE);
    cluster.kubectl(&["get", "--raw", &path])
}

/// Name of a component's pod on a node.
fn daemon_set_pod(cluster: &Cluster, node: &str, component: &str) -> Result<String> {
    let selector = format!("--selector=app.kubernetes.io/component={component}");
    let on = format!("--field-selector=spec.nodeName={node}");
    let output = "--output=jsonpath={.items[*].metadata.name}";
    cluster.kubectl(&["get", "pods", "--namespace", forebay::SYSTEM_NAMESPACE, &selector, &on, output])
}

/// Restarts of the daemon's container, and its id.
fn daemon_container(cluster: &Cluster, pod: &str) -> Result<(u64, String)> {
    let found = cluster.get(&["pod", pod, "--namespace", forebay::SYSTEM_NAMESPACE])?;
    let status = &found["status"]["containerStatuses"][0];
    let id = status["containerID"].as_str().and_then(|id| id.strip_prefix("containerd://"));
    let restarts = status["restartCount"].as_u64();
    Ok((restarts.context("no restartCount")?, id.context("the container does not run")?.to_owned()))
}

pub fn a_worker_that_hangs_is_replaced(cluster: &Cluster) -> Result<()> {
    let expected = load(cluster)?;
    let node = "node-1";
    cluster.apply(&pod(NAMESPACE, "goes-on-reading", node, &["python3", "-c", HOLDER], &[claim()]))?;
    wait_holding(cluster, "goes-on-reading", 0, &expected)?;
    let shown = metrics(cluster, node)?;
    for line in ["forebay_fuse_up 1", "forebay_fuse_stalled_seconds 0.0", "forebay_csi_session_served 1"] {
        ensure!(shown.lines().any(|shown| shown == line), "{line} is not in:\n{shown}");
    }
    let daemon = daemon_set_pod(cluster, node, "fuse")?;
    let (restarts, container) = daemon_container(cluster, &daemon)?;
    let parent = cluster.node(node)?.container_pid(&container)?;
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    let worker: i32 = children.trim().parse().with_context(|| format!("children of the parent: {children:?}"))?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), nix::sys::signal::Signal::SIGSTOP)?;
    let since = Instant::now();
    wait_until("the daemon that hangs to be replaced", LIMIT, || {
        let (now, _) = daemon_container(cluster, &daemon)?;
        ensure!(now > restarts, "it has not been restarted");
        Ok(())
    })?;
    println!("a worker that hangs was replaced after {:.1} s", since.elapsed().as_secs_f64());
    wait_all_ready(cluster)?;
    wait_until("the session to be served again", LIMIT, || {
        let shown = metrics(cluster, node)?;
        for line in ["forebay_fuse_up 1", "forebay_csi_session_served 1"] {
            ensure!(shown.lines().any(|shown| shown == line), "{line} is not in:\n{shown}");
        }
        Ok(())
    })?;
    // The reader has not noticed.
    wait_holding(cluster, "goes-on-reading", 0, &expected)?;
    let uid = pod_field(cluster, "goes-on-reading", ".metadata.uid")?;
    ensure!(pod_field(cluster, "goes-on-reading", ".status.phase")? == "Running", "the reader ended");
    cluster.kubectl(&["delete", "pod", "goes-on-reading", "--namespace", NAMESPACE])?;
    wait_gone(cluster, node, &uid)?;
    wait_nothing_staged(cluster, node)
}

fn wait_nothing_staged(cluster: &Cluster, node: &str) -> Result<()> {
    wait_until("the staged volume to go with its last pod", LIMIT, || {
        let records = records(cluster, node)?;
        ensure!(records == 0, "{records} volumes of {KEPT} are staged");
        Ok(())
    })?;
    ensure_none_stacked(cluster, node)
}

pub fn the_kubelet_dies_while_pods_mount(cluster: &Cluster) -> Result<()> {
    let expected = load(cluster)?;
    let script = sum_script(1);
    let names: Vec<String> = (0..4).map(|number| format!("amid-{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        let volume = if number % 2 == 0 { claim() } else { inline("/data") };
        let pod = pod(NAMESPACE, name, "node-1", &["sh", "-c", &script], &[volume]);
        // A container whose start the kubelet was just waiting for ends with it, "context canceled".
        cluster.apply(&pod.replace("restartPolicy: Never", "restartPolicy: OnFailure"))?;
    }
    wait_until("the first of the volumes to be staged", LIMIT, || {
        let records = records(cluster, "node-1")?;
        ensure!(records > 0, "none is");
        Ok(())
    })?;
    cluster.restart_kubelet("node-1")?;
    wait_until("the kubelet to serve again", LIMIT, || cluster.logs(NAMESPACE, &names[0], "main"))?;
    let mut uids = Vec::new();
    for name in &names {
        check_reader(cluster, name, &expected, 1)?;
        uids.push(pod_field(cluster, name, ".metadata.uid")?);
    }
    ensure_none_stacked(cluster, "node-1")?;
    let mut delete = vec!["delete", "pod", "--namespace", NAMESPACE];
    delete.extend(names.iter().map(String::as_str));
    cluster.kubectl(&delete)?;
    for uid in uids {
        wait_gone(cluster, "node-1", &uid)?;
    }
    wait_nothing_staged(cluster, "node-1")
}

/// Something that is done to a node.
type Act = fn(&Cluster, &str) -> Result<()>;

pub fn pods_come_back_with_their_node(cluster: &Cluster) -> Result<()> {
    let expected = load(cluster)?;
    let s3 = S3Server::start(cluster)?;
    let node = "node-2";
    let command = ["python3", "-c", HOLDER];
    for (name, volume) in [("back-claim", claim()), ("back-inline", inline("/data"))] {
        let pod = pod(NAMESPACE, name, node, &command, &[volume]);
        cluster.apply(&pod.replace("restartPolicy: Never", "restartPolicy: Always"))?;
    }
    let pods = ["back-claim", "back-inline"];
    for name in pods {
        wait_holding(cluster, name, 0, &expected)?;
    }
    s3.reset_traffic()?;
    let rounds: [(&str, Act, Act); 2] = [
        // Mounts whose session nobody has, sockets that nobody listens to, records: all as they were.
        ("its processes were killed", Cluster::kill_processes, Cluster::start_processes),
        // The mounts are gone, and the node's /run; the other files are there.
        ("it was rebooted", Cluster::kill_node, Cluster::boot_node),
    ];
    for (round, (what, kill, start)) in rounds.into_iter().enumerate() {
        kill(cluster, node)?;
        let since = Instant::now();
        start(cluster, node)?;
        for name in pods {
            wait_holding(cluster, name, round as u32 + 1, &expected)
                .with_context(|| format!("on {node}, after {what}"))?;
        }
        println!("{:.1} s after {what} pods of {node} have read everything", since.elapsed().as_secs_f64());
        cluster.wait_node_ready(node, true)?;
        wait_all_ready(cluster)?;
        ensure_none_stacked(cluster, node).with_context(|| format!("after {what}"))?;
    }
    let fetched = s3.bytes_served()?;
    ensure!(fetched == 0, "{fetched} bytes that were cached were fetched again");
    for name in pods {
        let uid = pod_field(cluster, name, ".metadata.uid")?;
        cluster.kubectl(&["delete", "pod", name, "--namespace", NAMESPACE])?;
        wait_gone(cluster, node, &uid)?;
    }
    wait_nothing_staged(cluster, node)
}
