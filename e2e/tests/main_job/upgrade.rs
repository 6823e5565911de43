//! The chart is upgraded while pods read: each DaemonSet's pods are replaced, and no read fails or gives other bytes.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use forebay_e2e::setup::hex;
use forebay_e2e::{Cluster, S3Server, forebay, wait_until};
use sha2::{Digest as _, Sha256};

use crate::tenant::{NAMESPACE, Volume, bytes, dataset, pod};

/// Files that are wholly cached, and their size.
const COMPLETE: (u64, usize) = (20, 1_000_000);
/// Files of two chunks that are always read from the source again, and their size.
const COLD: (u64, usize) = (20, 6_000_000);
/// What is cached of those at most: far less than one pass reads.
const COLD_CAPACITY: &str = "24Mi";
/// Blocks of the file that is open all the time; each is the SHA-256 of its number, over and over.
const BLOCKS: u64 = 16 * 1024;
const BLOCK_SIZE: usize = 4096;

/// More reads than a pass over all files has.
const PASS: u64 = 10 * (COMPLETE.0 + COLD.0);

/// Time for a pod to start reading, or to read on. A daemon's pod takes some seconds to be replaced.
const LIMIT: Duration = Duration::from_secs(90);
/// The longest that one call may take, in seconds: the time from a daemon's end to the start of the next one.
const LONGEST_CALL: f64 = 60.0;

/// Reads and verifies until it is told to stop; any error of a call ends it with a failure. Writes after each file how many reads there were, and the
/// seconds that the longest call took. Files are named by their sums. Pages are dropped, so that each read is one of the file system. A file stays open
/// that was complete at its open, and another one that was not, which the daemon serves until it is closed.
const READER: &str = r#"
import hashlib, os, random, sys, time
complete_files, cold_files, blocks = map(int, sys.argv[1:])
reads, longest = 0, 0.0
def timed(call, *arguments):
    global longest
    start = time.monotonic()
    answer = call(*arguments)
    longest = max(longest, time.monotonic() - start)
    return answer
def read(fd, size, offset):
    global reads
    reads += 1
    return timed(os.pread, fd, size, offset)
def verify(fd, path):
    found, offset = hashlib.sha256(), 0
    while part := read(fd, 1 << 20, offset):
        found.update(part)
        offset += len(part)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    if found.hexdigest() != os.path.basename(path):
        sys.exit(f"{path} has the sum {found.hexdigest()}")
def verify_path(path):
    fd = timed(os.open, path, os.O_RDONLY)
    verify(fd, path)
    os.close(fd)
def files(folder, count):
    names = timed(os.listdir, folder)
    if len(names) != count:
        sys.exit(f"{folder} has {len(names)} files")
    return [f"{folder}/{name}" for name in names]
open_file = os.open("/warm/open/blocks.bin", os.O_RDONLY)
for path in files("/warm/complete", complete_files):
    verify_path(path)
complete = os.open(path, os.O_RDONLY)
while not os.path.exists("/control/stop"):
    for each in files("/warm/complete", complete_files) + files("/cold", cold_files):
        verify_path(each)
        verify(complete, path)
        block = random.randrange(blocks)
        if read(open_file, 4096, block * 4096) != hashlib.sha256(block.to_bytes(8, "little")).digest() * 128:
            sys.exit(f"block {block} has other bytes")
        os.posix_fadvise(open_file, 0, 0, os.POSIX_FADV_DONTNEED)
        print(reads, f"{longest:.2f}", flush=True)
"#;

/// What a reader has done so far.
struct Progress {
    reads: u64,
    longest: f64,
}

pub fn no_read_fails_while_daemon_sets_are_replaced(cluster: &Cluster) -> Result<()> {
    let s3 = S3Server::start(cluster)?;
    fill(&s3)?;
    let mounts =
        [("/complete", forebay::source("s3://rolled/complete/")), ("/open", forebay::source("s3://rolled/open/"))];
    cluster.apply(&dataset("rolled", &mounts, "preload: {include: ['complete/**']}"))?;
    let cold = [("/", forebay::source("s3://rolled/cold/"))];
    cluster.apply(&dataset("rolled-cold", &cold, &format!("capacity: {COLD_CAPACITY}")))?;
    forebay::wait_condition(cluster, "dataset", NAMESPACE, "rolled", "Preloaded", LIMIT)?;

    let control = forebay::shared_folder(cluster).join("rolled");
    fs::create_dir_all(&control)?;
    let readers = [("rolled-1", "node-1"), ("rolled-2", "node-2")];
    let counts = [COMPLETE.0, COLD.0, BLOCKS].map(|count| count.to_string());
    let command = ["python3", "-c", READER, &counts[0], &counts[1], &counts[2]];
    for (name, node) in readers {
        let stop =
            Volume { path: "/control", source: format!("hostPath: {{path: {}}}", control.display()), sub_path: "" };
        let volumes = [Volume::claim("/warm", "rolled"), Volume::claim("/cold", "rolled-cold"), stop];
        cluster.apply(&pod(NAMESPACE, name, node, &command, &volumes))?;
    }
    // A pass over everything is behind them: what is to be complete on their nodes is.
    for (name, _) in readers {
        wait_reads(cluster, name, 2 * PASS)?;
    }

    // The last values change the templates of both, so that plugin and daemon of a node may go at once.
    let steps = [
        ("the plugins", "csi.resources.requests.memory=33Mi", &["csi"][..]),
        ("the daemons", "csi.resources.requests.memory=33Mi,fuse.resources.requests.memory=65Mi", &["fuse"]),
        ("both", "csi.resources.requests.memory=34Mi,fuse.resources.requests.memory=66Mi", &["csi", "fuse"]),
    ];
    for (what, values, components) in steps {
        let pods = |component| pods_of(cluster, component);
        let before = components.iter().map(|component| pods(component)).collect::<Result<Vec<_>>>()?;
        let reads = readers.iter().map(|(name, _)| progress(cluster, name)).collect::<Result<Vec<_>>>()?;
        let served = s3.bytes_served()?;
        forebay::upgrade(cluster, values).with_context(|| format!("replacing {what}"))?;
        for (component, before) in components.iter().zip(&before) {
            let after = pods(component)?;
            ensure!(before.len() == 2 && after.len() == 2, "{component} had {before:?} and has {after:?}");
            ensure!(before.is_disjoint(&after), "the upgrade replaced not all of {component}: {before:?}, {after:?}");
        }
        ensure!(s3.bytes_served()? > served, "nothing was read from the source while {what} were replaced");
        for ((name, _), before) in readers.iter().zip(&reads) {
            let during = progress(cluster, name)?;
            ensure!(during.reads > before.reads, "{name} read nothing while {what} were replaced");
            // More than a pass after all pods are new.
            let after = wait_reads(cluster, name, during.reads + 2 * PASS)?;
            println!(
                "{name}: {} reads while {what} were replaced; longest call so far {:.2} s",
                during.reads - before.reads,
                after.longest
            );
        }
    }
    fs::write(control.join("stop"), "")?;
    for (name, _) in readers {
        cluster.wait_pod(NAMESPACE, name, "Succeeded", LIMIT)?;
        let longest = progress(cluster, name)?.longest;
        ensure!(longest < LONGEST_CALL, "a call of {name} took {longest} s");
        cluster.kubectl(&["delete", "pod", name, "--namespace", NAMESPACE])?;
    }
    fs::remove_dir_all(&control).with_context(|| format!("removing {}", control.display()))
}

fn fill(s3: &S3Server) -> Result<()> {
    s3.client().create_bucket("rolled")?;
    let folder = tempfile::tempdir_in("/dev/shm")?;
    for (name, (count, size)) in [("complete", COMPLETE), ("cold", COLD)] {
        fs::create_dir(folder.path().join(name))?;
        for number in 0..count {
            let content = bytes(number + size as u64, size);
            fs::write(folder.path().join(name).join(hex(&Sha256::digest(&content))), content)?;
        }
    }
    fs::create_dir(folder.path().join("open"))?;
    let blocks = (0..BLOCKS).flat_map(|number| Sha256::digest(number.to_le_bytes()).repeat(BLOCK_SIZE / 32));
    fs::write(folder.path().join("open/blocks.bin"), blocks.collect::<Vec<u8>>())?;
    s3.upload("rolled", "", folder.path()).map(drop)
}

/// UIDs of a component's pods.
fn pods_of(cluster: &Cluster, component: &str) -> Result<BTreeSet<String>> {
    let selector = format!("--selector=app.kubernetes.io/component={component}");
    let output = "--output=jsonpath={.items[*].metadata.uid}";
    let listed = cluster.kubectl(&["get", "pods", "--namespace", forebay::SYSTEM_NAMESPACE, &selector, output])?;
    Ok(listed.split_whitespace().map(str::to_owned).collect())
}

/// What a reader said last; why it ended, if it failed.
fn progress(cluster: &Cluster, reader: &str) -> Result<Progress> {
    let log = cluster.kubectl(&["logs", "--namespace", NAMESPACE, reader, "--tail=3"])?;
    let last = log.lines().last().unwrap_or_default();
    let read = last.split_once(' ').and_then(|(reads, longest)| Some((reads.parse().ok()?, longest.parse().ok()?)));
    let (reads, longest) = read.with_context(|| format!("{reader} has not read, or failed; its log ends:\n{log}"))?;
    Ok(Progress { reads, longest })
}

fn wait_reads(cluster: &Cluster, reader: &str, reads: u64) -> Result<Progress> {
    wait_until(&format!("{reader} to have read {reads} times"), LIMIT, || {
        let progress = progress(cluster, reader)?;
        ensure!(progress.reads >= reads, "it read {} times", progress.reads);
        Ok(progress)
    })
}
