//! The ways a pod names a Dataset: inline, by a claim, a part of either, several at once.

use std::fs;

use anyhow::Result;
use forebay_e2e::{Cluster, S3Server, forebay};

use crate::tenant::{NAMESPACE, Sums, Volume, bytes, check_reader, dataset, expected_sums, pod, sum_script};

/// Group that the pod's volumes are to get; a Dataset keeps its own.
const FS_GROUP: u32 = 2000;

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
