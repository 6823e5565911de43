//! Faults of a node's own disk: real file systems that are full, read-only or broken, and files that are damaged behind the node's back. Readers
//! get right bytes all the time, nothing else is lost, the node says what is wrong, and it heals.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_cache_node::node::{Node, NodeOptions};
use forebay_cache_node::store::scrub::Pace;
use forebay_catalog::ObjectId;
use forebay_protocol::node::{DiskFault, DiskFaultKind, StatusResponse};
use forebay_protocol::transfer::Reach;
use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

use crate::common::asker::Asker;
use crate::common::process::NodeProcess;
use crate::common::reader::Reader;
use crate::common::{config, content, dataset, file_source, free_address, preload_all, scratch, wait_for};

const UID: &str = "d1";
const CHUNK: u64 = 4 << 20;

/// A folder to be served, which can be taken away.
struct Source {
    folder: TempDir,
    files: BTreeMap<String, Vec<u8>>,
}

impl Source {
    fn new(files: impl IntoIterator<Item = (&'static str, usize)>) -> Self {
        let folder = scratch();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        let files = files.into_iter().zip(1..).map(|((name, length), seed)| (name.to_owned(), content(seed, length)));
        let this = Self { files: files.collect(), folder };
        for (name, bytes) in &this.files {
            std::fs::write(this.path().join(name), bytes).unwrap();
        }
        this
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn take_away(&self) {
        std::fs::rename(self.path(), self.folder.path().join("away")).unwrap();
    }

    fn total(&self) -> u64 {
        self.files.values().map(|bytes| bytes.len() as u64).sum()
    }

    async fn assert_reads(&self, reader: &Reader, name: &str) {
        let read = reader.read(&reader.files()[name], 1 << 20).await;
        let read = read.unwrap_or_else(|failed| panic!("{name}: {failed:?}"));
        assert!(read == self.files[name], "{name} differs");
    }

    async fn assert_all_read(&self, node: &NodeProcess) {
        let reader = node.reader(UID).await;
        for name in self.files.keys() {
            self.assert_reads(&reader, name).await;
        }
    }
}

/// A file system of its own, below a folder.
pub struct Disk {
    folder: TempDir,
}

impl Disk {
    /// None, and a word about it, without the right to mount.
    fn new() -> Option<Self> {
        if rustix::process::geteuid().is_root() {
            let folder = scratch();
            std::fs::create_dir(folder.path().join("disk")).unwrap();
            return Some(Self { folder });
        }
        eprintln!("SKIPPED: only root can mount");
        assert!(std::env::var_os("FOREBAY_REQUIRE_ALL").is_none(), "no test may be skipped");
        None
    }

    pub fn tmpfs(size: &str) -> Option<Self> {
        let this = Self::new()?;
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        rustix::mount::mount("tmpfs", this.path(), "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
        Some(this)
    }

    /// ext4 in a file, by a loop device.
    fn ext4() -> Option<Self> {
        let this = Self::new()?;
        std::fs::File::create(this.image()).unwrap().set_len(96 << 20).unwrap();
        let made = std::process::Command::new("mkfs.ext4").arg("-q").arg(this.image()).status();
        if made.is_ok_and(|status| status.success()) && this.mount_image() {
            return Some(this);
        }
        eprintln!("SKIPPED: ext4 on a loop device can't be had on this machine");
        assert!(std::env::var_os("FOREBAY_REQUIRE_ALL").is_none(), "no test may be skipped");
        None
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn mount_image(&self) -> bool {
        let mount =
            std::process::Command::new("mount").args(["-o", "loop"]).arg(self.image()).arg(self.path()).status();
        mount.is_ok_and(|status| status.success())
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Takes all the room that is left.
    fn fill(&self) -> PathBuf {
        let path = self.path().join("filler");
        let file = std::fs::File::create(&path).unwrap();
        let mut offset = 0;
        for piece in [1 << 20, 4096] {
            while file.write_all_at(&vec![1; piece], offset).is_ok() {
                offset += piece as u64;
            }
        }
        path
    }

    /// Covers the file system with a read-only view of itself: new files can't be made nor opened for writing.
    fn make_read_only(&self) {
        rustix::mount::mount_bind(self.path(), self.path()).unwrap();
        rustix::mount::mount_remount(self.path(), MountFlags::BIND | MountFlags::RDONLY, c"").unwrap();
    }

    fn unmount(&self) {
        rustix::mount::unmount(self.path(), UnmountFlags::DETACH).unwrap();
    }

    /// Everything on it fails with EIO from now on, as when the device is gone.
    fn shut_down(&self) {
        use rustix::ioctl::{Setter, ioctl, opcode};
        /// EXT4_GOING_FLAGS_NOLOGFLUSH.
        const NO_LOG_FLUSH: u32 = 2;
        let root = std::fs::File::open(self.path()).unwrap();
        // SAFETY: EXT4_IOC_SHUTDOWN is `_IOR('X', 125, __u32)` and reads one u32, which is what the setter passes.
        unsafe { ioctl(&root, Setter::<{ opcode::read::<u32>(b'X', 125) }, u32>::new(NO_LOG_FLUSH)) }.unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        while rustix::mount::unmount(self.path(), UnmountFlags::DETACH).is_ok() {}
    }
}

async fn node_at(cache: Option<&Disk>, source: &Source, preload: bool) -> NodeProcess {
    let address = free_address([127, 0, 0, 2]);
    NodeProcess::start(|folder| {
        let mut dataset = dataset(UID, file_source(&source.path()));
        dataset.preload = preload.then(preload_all);
        let mut config = config(folder, address, &[], vec![dataset]);
        if let Some(disk) = cache {
            config.node.cache_dir = disk.path().join("cache");
        }
        config
    })
    .await
}

fn object_path(cache: &Path, id: &ObjectId) -> PathBuf {
    cache.join("objects").join(id.relative_path())
}

fn flip(path: &Path, at: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn fault(status: &StatusResponse, kind: DiskFaultKind) -> Option<DiskFault> {
    status.disk_faults.iter().find(|fault| fault.kind() == kind).cloned()
}

async fn wait_fault(node: &NodeProcess, kind: DiskFaultKind, current: bool) -> DiskFault {
    wait_for(&format!("{kind:?} with current: {current}"), Duration::from_secs(30), || async {
        fault(&node.status().await, kind).filter(|fault| fault.current == current)
    })
    .await
}

async fn source_bytes(node: &NodeProcess) -> u64 {
    node.metric("forebay_source_read_bytes_total").await
}

/// Waits until everything is complete in `objects/`.
async fn wait_published(node: &NodeProcess, paths: &[PathBuf]) {
    wait_for("the objects to be published", Duration::from_secs(30), || async {
        paths.iter().all(|path| path.exists()).then_some(())
    })
    .await;
    node.status().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_chunk_is_never_served_and_comes_back_from_a_peer_without_the_source() {
    let source = Source::new([("a", 11 << 20), ("b", 9 << 20), ("c", 3000), ("d", 5000)]);
    let addresses = [free_address([127, 0, 0, 2]), free_address([127, 0, 0, 3])];
    let mut nodes = Vec::new();
    for address in addresses {
        let make = |folder: &Path| {
            let mut dataset = dataset(UID, file_source(&source.path()));
            dataset.preload = Some(preload_all());
            config(folder, address, &addresses, vec![dataset])
        };
        nodes.push(NodeProcess::start(make).await);
    }
    for node in &nodes {
        node.wait_preloaded(UID).await;
        // Both hold everything after that.
        source.assert_all_read(node).await;
    }
    let ids = nodes[0].reader(UID).await.files();
    let cache = nodes[0].config.node.cache_dir.clone();
    let paths: Vec<_> = ids.values().map(|id| object_path(&cache, id)).collect();
    wait_published(&nodes[0], &paths).await;
    nodes[0].kill();
    flip(&object_path(&cache, &ids["a"]), CHUNK + 12345);
    flip(&object_path(&cache, &ids["b"]), 5);
    flip(&object_path(&cache, &ids["c"]), 2999);
    source.take_away();
    nodes[0].restart().await;
    source.assert_all_read(&nodes[0]).await;
    assert_eq!(source_bytes(&nodes[0]).await, 0);
    let status = nodes[0].status().await;
    assert_eq!(status.verification_failures, 3);
    let damaged = wait_fault(&nodes[0], DiskFaultKind::ChunkDamaged, false).await;
    assert_eq!(damaged.count, 3);
    assert!(damaged.message.contains("checksum") && damaged.last_unix_seconds >= damaged.first_unix_seconds);
    assert_eq!(nodes[0].metric("forebay_disk_faults_total{kind=\"chunk_damaged\"}").await, 3);
    let peer = nodes[0].dataset(UID).await.total.unwrap().peer_bytes;
    assert_eq!(peer, 2 * CHUNK + 3000, "one chunk of each damaged object");
    // What the kernel reads by itself is right again.
    wait_published(&nodes[0], &paths).await;
    for (name, id) in &ids {
        assert!(std::fs::read(object_path(&cache, id)).unwrap() == source.files[name], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_peer_a_damaged_cut_or_missing_file_comes_back_from_the_source_and_nothing_else_does() {
    let source = Source::new([("cut", 6 << 20), ("flipped", 9 << 20), ("gone", 2 << 20), ("good", 13 << 20)]);
    let mut node = node_at(None, &source, true).await;
    node.wait_preloaded(UID).await;
    let ids = node.reader(UID).await.files();
    let cache = node.config.node.cache_dir.clone();
    let paths: Vec<_> = ids.values().map(|id| object_path(&cache, id)).collect();
    wait_published(&node, &paths).await;
    node.kill();
    flip(&object_path(&cache, &ids["flipped"]), 2 * CHUNK + 7);
    std::fs::remove_file(object_path(&cache, &ids["gone"])).unwrap();
    let cut = std::fs::OpenOptions::new().write(true).open(object_path(&cache, &ids["cut"])).unwrap();
    cut.set_len(CHUNK + 1).unwrap();
    node.restart().await;
    source.assert_all_read(&node).await;
    source.assert_all_read(&node).await;
    // The last chunk of the flipped one, and two whole files.
    assert_eq!(source_bytes(&node).await, (1 << 20) + (6 << 20) + (2 << 20));
    assert_eq!(wait_fault(&node, DiskFaultKind::FileMissing, false).await.count, 2);
    assert_eq!(wait_fault(&node, DiskFaultKind::ChunkDamaged, false).await.count, 1);
    assert_eq!(node.status().await.verification_failures, 3);
    wait_published(&node, &paths).await;
    node.wait_dataset("everything to be back", UID, |d| (d.cached_bytes == source.total()).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scrub_finds_and_mends_damage_that_nobody_reads() {
    let source = Source::new([("a", 9 << 20), ("b", 100_000)]);
    let folder = scratch();
    let mut dataset = dataset(UID, file_source(&source.path()));
    dataset.preload = Some(preload_all());
    let config = config(folder.path(), free_address([127, 0, 0, 2]), &[], vec![dataset]);
    let cache = config.node.cache_dir.clone();
    let pace = Pace { period: Duration::from_millis(500), bytes_per_second: 1 << 30 };
    let node = Node::start(config, NodeOptions { scrub: pace, ..NodeOptions::default() }).await.unwrap();
    let catalog = wait_for("the preload", Duration::from_secs(30), || async {
        let dataset = node.status().datasets.first().cloned()?;
        (dataset.cached_bytes == source.total()).then(|| dataset.catalog.unwrap().id)
    })
    .await;
    let catalog = forebay_catalog::Catalog::open(&cache.join("catalogs").join(UID).join(catalog)).unwrap();
    for (record, at) in catalog.table().iter().zip([CHUNK + 1, 77]) {
        let at = at.min(record.size - 1);
        let path = object_path(&cache, &record.id);
        wait_for("the object to be published", Duration::from_secs(30), || async { path.exists().then_some(()) }).await;
        flip(&path, at);
    }
    let status = wait_for("both to be found and mended", Duration::from_secs(60), || async {
        let status = node.status();
        fault(&status, DiskFaultKind::ChunkDamaged).filter(|fault| fault.count == 2 && !fault.current).map(|_| status)
    })
    .await;
    assert!(status.scrubbed_bytes > 0 && status.verification_failures == 2);
    for record in catalog.table().iter() {
        let name = String::from_utf8(record.tree_path()).unwrap();
        let path = object_path(&cache, &record.id);
        wait_for("right bytes in objects/", Duration::from_secs(30), || async {
            std::fs::read(&path).is_ok_and(|bytes| bytes == source.files[&name]).then_some(())
        })
        .await;
    }
    node.shutdown().await;
}

/// What a peer would get.
async fn read_as_peer(node: &NodeProcess, id: &ObjectId, length: usize) -> Vec<u8> {
    let mut asker = Asker::connect(node.address()).await;
    let mut bytes = Vec::new();
    for chunk in 0..length.div_ceil(CHUNK as usize) as u32 {
        bytes.extend(asker.one(UID, id, chunk, Reach::Source).await.1);
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_disk_is_full_everything_is_read_and_little_is_lost() {
    let Some(disk) = Disk::tmpfs("64m") else { return };
    let names: Vec<&'static str> = (0..20).map(|i| &*Box::leak(format!("small{i:02}").into_boxed_str())).collect();
    let files = names.iter().map(|name| (*name, 1 << 20)).chain([("big", 21 << 20), ("late", 9 << 20)]);
    let source = Source::new(files);
    let node = node_at(Some(&disk), &source, false).await;
    let reader = node.reader(UID).await;
    for name in &names {
        source.assert_reads(&reader, name).await;
    }
    node.wait_dataset("all to be kept", UID, |dataset| (dataset.cached_bytes == 20 << 20).then_some(())).await;
    let filler = disk.fill();
    let began = std::time::Instant::now();
    // While it is full a twentieth goes every 10 s: one file, or two when what was half written counts too.
    let least = || (20_u64 << 20).saturating_sub((2 << 20) * (1 + began.elapsed().as_secs() / 10));
    source.assert_reads(&reader, "big").await;
    let full = wait_fault(&node, DiskFaultKind::DiskFull, true).await;
    assert!(full.count > 0 && full.message.contains("free space"), "{full:?}");
    let late = reader.files()["late"];
    assert!(read_as_peer(&node, &late, 9 << 20).await == source.files["late"]);
    source.assert_reads(&reader, "late").await;
    let kept = node.dataset(UID).await.cached_bytes;
    assert!(kept >= least(), "{kept} bytes are kept after {:?}", began.elapsed());
    // What is here is still read from here.
    let before = source_bytes(&node).await;
    for name in &names {
        source.assert_reads(&reader, name).await;
    }
    let again = source_bytes(&node).await - before;
    assert!(again <= (20 << 20) - least(), "{again} bytes were read again after {:?}", began.elapsed());
    std::fs::remove_file(filler).unwrap();
    wait_fault(&node, DiskFaultKind::DiskFull, false).await;
    // Small ones too: what went while the disk was full comes back when it is read.
    for name in source.files.keys() {
        source.assert_reads(&reader, name).await;
    }
    node.wait_dataset("all to be kept", UID, |d| (d.cached_bytes == source.total()).then_some(())).await;
    assert_eq!(node.metric("forebay_verification_failures_total").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_disk_is_read_only_everything_is_read_and_nothing_is_lost() {
    let Some(disk) = Disk::tmpfs("128m") else { return };
    let source = Source::new([("before", 9 << 20), ("small", 1000), ("during", 40 << 20)]);
    let mut node = node_at(Some(&disk), &source, false).await;
    node.change(|config| config.node.memory_bytes = 128 << 20);
    let reader = node.reader(UID).await;
    source.assert_reads(&reader, "before").await;
    // Open from before, when nothing was wrong: its descriptor is of a file that now takes nothing.
    let open = reader.open(&reader.files()["small"]).await.unwrap();
    node.wait_dataset("it to be kept", UID, |dataset| (dataset.cached_bytes == 9 << 20).then_some(())).await;
    disk.make_read_only();
    let failed = reader.ensure(open.lease, 0, 1000).await.unwrap_err();
    assert_eq!(failed.kind(), forebay_protocol::local::FailureKind::BadLease, "{failed:?}");
    source.assert_reads(&reader, "small").await;
    // More than the memory that one reader may hold.
    source.assert_reads(&reader, "during").await;
    assert!(read_as_peer(&node, &reader.files()["during"], 40 << 20).await == source.files["during"]);
    let read_only = wait_fault(&node, DiskFaultKind::ReadOnly, true).await;
    assert!(read_only.message.contains("mount it writable"), "{read_only:?}");
    let before = source_bytes(&node).await;
    source.assert_reads(&reader, "before").await;
    assert_eq!(source_bytes(&node).await, before, "what is here is read from here");
    assert_eq!(node.dataset(UID).await.cached_bytes, 9 << 20);
    disk.unmount();
    wait_fault(&node, DiskFaultKind::ReadOnly, false).await;
    source.assert_all_read(&node).await;
    node.wait_dataset("all to be kept", UID, |dataset| (dataset.cached_bytes == source.total()).then_some(())).await;
    assert_eq!(node.metric("forebay_verification_failures_total").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_every_call_to_the_disk_fails_the_node_stays_up_and_reads_go_on() {
    let Some(disk) = Disk::ext4() else { return };
    let source = Source::new([("before", 5 << 20), ("during", 9 << 20)]);
    let mut node = node_at(Some(&disk), &source, false).await;
    let reader = node.reader(UID).await;
    source.assert_reads(&reader, "before").await;
    node.wait_dataset("it to be kept", UID, |dataset| (dataset.cached_bytes == 5 << 20).then_some(())).await;
    disk.shut_down();
    source.assert_reads(&reader, "during").await;
    source.assert_reads(&reader, "before").await;
    assert!(wait_fault(&node, DiskFaultKind::IoError, true).await.count > 0);
    // Mounted anew, it has what it had.
    node.kill();
    // It maps the catalog.
    drop(reader);
    // Not lazily: as long as anything holds it, the same broken file system would be mounted again.
    wait_for("the file system to be let go", Duration::from_secs(20), || async {
        rustix::mount::unmount(disk.path(), UnmountFlags::empty()).ok()
    })
    .await;
    assert!(disk.mount_image());
    node.restart().await;
    source.assert_all_read(&node).await;
    assert!(node.status().await.disk_faults.iter().all(|fault| !fault.current), "{:?}", node.status().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_is_told() {
    let source = Source::new([("a", 5 << 20)]);
    let mut node = node_at(None, &source, true).await;
    node.wait_preloaded(UID).await;
    assert!(node.terminate().await);
    let log = node.config.node.cache_dir.join("index/log-1");
    let mut bytes = std::fs::read(&log).unwrap();
    // Its first commit, which others follow: something may have been removed there.
    bytes.iter_mut().skip(4).take(12).for_each(|byte| *byte ^= 0x5a);
    std::fs::write(&log, bytes).unwrap();
    node.restart().await;
    node.wait_preloaded(UID).await;
    source.assert_all_read(&node).await;
    let damaged = fault(&node.status().await, DiskFaultKind::IndexDamaged).unwrap();
    assert!(damaged.count == 1 && !damaged.current && damaged.message.contains("starts empty"), "{damaged:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_which_nothing_can_be_read_is_told_too() {
    let source = Source::new([("a", 5 << 20)]);
    let mut node = node_at(None, &source, true).await;
    for what in ["overwritten", "cut", "deleted"] {
        node.wait_preloaded(UID).await;
        let ids = node.reader(UID).await.files();
        wait_published(&node, &[object_path(&node.config.node.cache_dir, &ids["a"])]).await;
        assert!(node.terminate().await);
        let index = node.config.node.cache_dir.join("index");
        for entry in std::fs::read_dir(&index).unwrap() {
            let path = entry.unwrap().path();
            match what {
                _ if path.ends_with("lock") => {}
                "overwritten" => std::fs::write(&path, content(1, 3000)).unwrap(),
                "cut" => std::fs::write(&path, b"").unwrap(),
                _ => std::fs::remove_file(&path).unwrap(),
            }
        }
        node.restart().await;
        let damaged = fault(&node.status().await, DiskFaultKind::IndexDamaged).unwrap_or_else(|| panic!("{what}"));
        assert!(damaged.count == 1 && !damaged.current && damaged.message.contains("starts empty"), "{damaged:?}");
        node.wait_preloaded(UID).await;
        source.assert_all_read(&node).await;
    }
}
