//! The ways a pod names a Dataset: inline, by a claim, a part of either, several at once; and Datasets of another namespace.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use forebay_e2e::{Cluster, S3Server, forebay, wait_until};

use crate::tenant::{
    NAMESPACE, Sums, Volume, bytes, check_reader, check_sums, dataset, expected_sums, pod, sum_script,
};

/// Namespace of the pods that a Dataset has to be shared with.
const OTHER_NAMESPACE: &str = "evaluation";

/// Group that the pod's volumes are to get; a Dataset keeps its own.
const FS_GROUP: u32 = 2000;

/// Time until the pod's events say why it waits. Kubernetes binds a claim only every 15 s.
const LIMIT: Duration = Duration::from_secs(60);

/// Time for a pod that waited to start: the kubelet backs off for up to two minutes between tries of its own.
const POD_LIMIT: Duration = Duration::from_secs(180);

/// Fills a bucket with two folders of small files and files of several chunks; what a reader of each folder must get.
fn fill(s3: &S3Server, bucket: &str) -> Result<[Sums; 2]> {
    s3.client().create_bucket(bucket)?;
    let folder = tempfile::tempdir_in("/dev/shm")?;
    let seed = bucket.bytes().fold(7_u64, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
    for (part, name) in ["train", "val"].iter().enumerate() {
        let inner = folder.path().join(name).join("deep");
        fs::create_dir_all(&inner)?;
        for number in 0..10 {
            let size = if number == 0 { 9_000_000 } else { 50_000 };
            fs::write(inner.join(format!("{number}.bin")), bytes(seed + 100 * part as u64 + number, size))?;
        }
    }
    s3.upload(bucket, "", folder.path())?;
    let sums = |name: &str| expected_sums(&folder.path().join(name), "").map(|(sums, _)| sums);
    Ok([sums("train")?, sums("val")?])
}

fn below(folder: &str, sums: &Sums) -> Sums {
    sums.iter().map(|(path, sum)| (format!("{folder}/{path}"), sum.clone())).collect()
}

pub fn a_pod_has_a_dataset_in_every_way_at_once(cluster: &Cluster) -> Result<()> {
    let s3 = S3Server::start(cluster)?;
    let [train, val] = fill(&s3, "parts")?;
    let [more_train, more_val] = fill(&s3, "more-parts")?;
    for bucket in ["parts", "more-parts"] {
        cluster.apply(&dataset(bucket, &[("/", forebay::source(&format!("s3://{bucket}/")))], ""))?;
    }
    let volumes = [
        Volume::inline("/data/inline", "dataset: parts, path: train"),
        Volume::claim("/data/claim", "more-parts"),
        Volume { sub_path: "val/deep", ..Volume::claim("/data/sub", "parts") },
    ];
    // What the sums don't show: the pod is in the group, the files are not, and nothing can be written anywhere.
    let group = format!("id -G | grep -w {FS_GROUP} >&2 || exit 1");
    let owner = "for f in inline/deep claim/train sub/0.bin; do [ $(stat -c %u:%g $f) = 0:0 ] || exit 2; done";
    let writing = "for d in inline claim sub; do touch $d/new 2>&1 | grep -q 'Read-only file system' || exit 3; done";
    let script = format!("{group}; cd /data; {owner}; {writing}; {}", sum_script(2));
    for node in ["node-1", "node-2"] {
        let pod = pod(NAMESPACE, &format!("every-way-{node}"), node, &["sh", "-c", &script], &volumes)
            .replace("runAsUser: 1000", &format!("runAsUser: 1000, fsGroup: {FS_GROUP}"));
        cluster.apply(&pod)?;
    }
    let mut expected = below("inline", &train);
    expected.extend(below("claim/train", &more_train));
    expected.extend(below("claim/val", &more_val));
    expected.extend(val.iter().map(|(path, sum)| (path.replace("deep/", "sub/"), sum.clone())));
    for node in ["node-1", "node-2"] {
        let name = format!("every-way-{node}");
        check_reader(cluster, &name, &expected, 2)?;
        cluster.kubectl(&["delete", "pod", &name, "--namespace", NAMESPACE])?;
    }
    Ok(())
}

pub fn another_namespace_waits_until_a_dataset_is_shared(cluster: &Cluster) -> Result<()> {
    let s3 = S3Server::start(cluster)?;
    let [train, val] = fill(&s3, "shared")?;
    let mut expected = below("train", &train);
    expected.extend(below("val", &val));
    cluster.apply(&dataset("shared", &[("/", forebay::source("s3://shared/"))], ""))?;
    forebay::wait_condition(cluster, "dataset", NAMESPACE, "shared", "Ready", LIMIT)?;
    cluster.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {OTHER_NAMESPACE}}}}}"))?;
    cluster.apply(&own_volume(cluster)?)?;
    let script = sum_script(1);
    let command = ["sh", "-c", &script];
    let pods = [
        ("inline", Volume::inline("/data", &format!("dataset: shared, namespace: {NAMESPACE}"))),
        ("own-volume", Volume::claim("/data", "shared")),
    ];
    let names = pods.each_ref().map(|(name, _)| *name);
    for (name, volume) in pods {
        cluster.apply(&pod(OTHER_NAMESPACE, name, "node-2", &command, &[volume]))?;
    }
    for name in names {
        wait_refused(cluster, name)?;
    }
    let share = |with: &str| {
        let patch = format!("{{\"spec\": {{\"sharedWith\": {with}}}}}");
        cluster.kubectl(&["patch", "dataset", "shared", "--namespace", NAMESPACE, "--type=merge", "--patch", &patch])
    };
    share(&format!("{{\"namespaces\": [\"{OTHER_NAMESPACE}\"]}}"))?;
    for name in names {
        let ended = cluster.wait_pod(OTHER_NAMESPACE, name, "Succeeded", POD_LIMIT)?;
        ensure!(ended["status"]["containerStatuses"][0]["restartCount"] == 0, "{name}: {}", ended["status"]);
        check_sums(name, &cluster.logs(OTHER_NAMESPACE, name, "main")?, &expected, 1)?;
        cluster.kubectl(&["delete", "pod", name, "--namespace", OTHER_NAMESPACE])?;
    }
    // What is taken back holds for pods that come later, also where a pod that has it goes on.
    cluster.apply(&pod(
        OTHER_NAMESPACE,
        "goes-on",
        "node-2",
        &["sleep", "1000"],
        &[Volume::claim("/data", "shared")],
    ))?;
    cluster.wait_pod(OTHER_NAMESPACE, "goes-on", "Running", POD_LIMIT)?;
    share("null")?;
    let late = [
        ("too-late-inline", Volume::inline("/data", &format!("dataset: shared, namespace: {NAMESPACE}"))),
        ("too-late-by-claim", Volume::claim("/data", "shared")),
    ];
    for (name, volume) in late {
        cluster.apply(&pod(OTHER_NAMESPACE, name, "node-2", &command, &[volume]))?;
        wait_refused(cluster, name)?;
    }
    cluster.kubectl(&["delete", "namespace", OTHER_NAMESPACE, "--timeout=90s"])?;
    cluster.kubectl(&["delete", "persistentvolume", OWN_VOLUME, "--timeout=90s"]).map(drop)
}

const OWN_VOLUME: &str = "evaluation-shared";

/// A volume as an administrator makes it for the claim of another namespace.
fn own_volume(cluster: &Cluster) -> Result<String> {
    let uid = cluster.kubectl(&[
        "get",
        "dataset",
        "shared",
        "--namespace",
        NAMESPACE,
        "--output=jsonpath={.metadata.uid}",
    ])?;
    Ok(format!(
        "
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {OWN_VOLUME}}}
spec:
  accessModes: [ReadOnlyMany]
  capacity: {{storage: 1Gi}}
  claimRef: {{namespace: {OTHER_NAMESPACE}, name: shared}}
  csi: {{driver: csi.forebay.dev, volumeHandle: {uid}/evaluation, volumeAttributes: {{namespace: {NAMESPACE}, dataset: shared}}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: shared, namespace: {OTHER_NAMESPACE}}}
spec: {{accessModes: [ReadOnlyMany], storageClassName: '', volumeName: {OWN_VOLUME}, resources: {{requests: {{storage: 1Gi}}}}}}
"
    ))
}

/// Waits until a pod's events say that the Dataset is not shared with its namespace, and what to do.
fn wait_refused(cluster: &Cluster, name: &str) -> Result<()> {
    wait_until(&format!("an event of pod {name} to say why it waits"), LIMIT, || {
        let selector = format!("--field-selector=involvedObject.name={name},reason=FailedMount");
        let output = "--output=jsonpath={.items[*].message}";
        let events = cluster.kubectl(&["get", "events", "--namespace", OTHER_NAMESPACE, &selector, output])?;
        let reason = format!("not shared with namespace {OTHER_NAMESPACE}: its owner must add that to spec.sharedWith");
        ensure!(events.contains(&reason), "its events: {events}");
        Ok(())
    })?;
    let phase = cluster.get(&["pod", name, "--namespace", OTHER_NAMESPACE])?["status"]["phase"].clone();
    ensure!(phase == "Pending", "{name} is refused and {phase}");
    Ok(())
}
