//! A cache that is smaller than what is read keeps its size, under open files, mapped files and inodes that the kernel caches: seen by the bytes of `df` and
//! by what the node says of itself.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::cell::Cell;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::program::{Foreground, Mode, mount_with_capacity};
use support::{Scratch, bytes, wait_for};

in_both_modes! { what_is_evicted_is_free_again_and_what_is_held_is_accounted_for }

const FILE: u64 = 2 << 20;
const FILES: u64 = 60;
const CAPACITY: u64 = 48 << 20;
/// What the cache has on its disk beside files: index, catalog, folders, log.
const BESIDE: u64 = 12 << 20;

/// Bytes in use on the file system that only the cache is on: what `df` says.
fn used(cache: &Path) -> u64 {
    let facts = rustix::fs::statvfs(cache).unwrap();
    (facts.f_blocks - facts.f_bfree) * facts.f_frsize
}

/// The value of a metric, summed over its labels.
fn metric(address: SocketAddr, name: &str) -> u64 {
    let mut connection = TcpStream::connect(address).unwrap();
    write!(connection, "GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// How many objects the cache has wholly.
fn complete(cache: &Path) -> usize {
    let folders = std::fs::read_dir(cache.join("cache/objects")).into_iter().flatten().flatten();
    folders.map(|folder| std::fs::read_dir(folder.path()).map_or(0, Iterator::count)).sum()
}

/// How many objects a process has open.
fn open_below(process: u32, cache: &Path) -> usize {
    let objects = ["objects", "partial"].map(|name| cache.join("cache").join(name));
    let descriptors = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().flatten();
    let files = descriptors.filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok());
    files.filter(|file| file.is_file() && objects.iter().any(|folder| file.starts_with(folder))).count()
}

/// A file of the tree in memory, as programs map it.
#[allow(unsafe_code, reason = "mmap; the files of a read-only tree don't change")]
fn mapped(file: &File) -> &'static [u8] {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    let (length, read, shared) = (FILE as usize, ProtFlags::READ, MapFlags::SHARED);
    // SAFETY: a new mapping of a file that nobody writes, at a place of the kernel's choice.
    let start = unsafe { mmap(std::ptr::null_mut(), length, read, shared, file, 0) }.unwrap();
    // SAFETY: mapped so long, until `unmap`.
    unsafe { std::slice::from_raw_parts(start.cast(), length) }
}

#[allow(unsafe_code, reason = "munmap")]
fn unmap(map: &'static [u8]) {
    // SAFETY: of `mapped`, and not used any more.
    unsafe { rustix::mm::munmap(map.as_ptr().cast_mut().cast(), map.len()) }.unwrap();
}

fn what_is_evicted_is_free_again_and_what_is_held_is_accounted_for(mode: Mode) {
    let scratch = Scratch::in_memory();
    let (source, tree, disk) = (scratch.folder("source"), scratch.folder("tree"), scratch.folder("disk"));
    let content: Vec<_> = (0..FILES).map(|number| bytes(number, FILE as usize)).collect();
    for (number, bytes) in content.iter().enumerate() {
        std::fs::write(source.join(number.to_string()), bytes).unwrap();
    }
    rustix::mount::mount("disk", &disk, "tmpfs", rustix::mount::MountFlags::empty(), Some(c"size=256m")).unwrap();
    let manifest = scratch.file(
        "dataset.yaml",
        format!(
            "{{apiVersion: forebay.dev/v1alpha1, kind: Dataset, metadata: {{name: files}}, spec: {{mounts: [{{path: /, sources: [{{url: 'file://{}/'}}]}}]}}}}",
            source.display()
        ),
    );
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let capacity = CAPACITY.to_string();
    let mut command = mount_with_capacity(&capacity, mode, &manifest, &tree, &disk.join("cache"));
    let process = Foreground::start(command.args(["--metrics", &address.to_string()]), &scratch);
    let path = |number: u64| -> PathBuf { tree.join(number.to_string()) };
    let most = Cell::new(0);
    let read = |number: u64| {
        assert!(std::fs::read(path(number)).unwrap() == content[number as usize], "file {number}");
        most.set(most.get().max(used(&disk)));
    };

    // Open since before it was complete, open and mapped since then.
    let early = File::open(path(0)).unwrap();
    (0..3).for_each(read);
    // What is read through the daemon is leased and not evicted; the two others are to be opened as complete files are.
    wait_for("the files to be complete, and the reads of them to be over", Duration::from_secs(20), || {
        complete(&disk) >= 3 && open_below(process.pid(), &disk) <= 1
    });
    // The kernel knows them as what they are by now, not as what they were at their first open.
    std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    let open = File::open(path(1)).unwrap();
    let file = File::open(path(2)).unwrap();
    let map = mapped(&file);
    drop(file);
    assert!(*map == *content[2]);

    // Everything passes through the cache, again and again. Whether what is open goes too is the eviction's to say: a scan need not push it out. That it
    // is let go when it does is in `csi-driver/tests/space.rs`.
    let (began, mut held) = (Instant::now(), 0);
    for _ in 0..4 {
        (3..FILES).for_each(read);
        held = held.max(metric(address, "forebay_held_bytes"));
    }
    // What is held counts: with it the disk is not fuller than it may be.
    assert!(most.get() <= CAPACITY + BESIDE, "{} bytes were in use of {CAPACITY}", most.get());
    let accounted = || metric(address, "forebay_cached_bytes") + metric(address, "forebay_held_bytes");
    let (used_now, accounted_now) = (used(&disk), accounted());
    assert!(
        used_now.abs_diff(accounted_now) <= BESIDE,
        "{used_now} bytes are in use, {accounted_now} are accounted for"
    );

    // Whoever has a file has its bytes.
    let mut seen = vec![0; FILE as usize];
    for (file, number) in [(&early, 0), (&open, 1)] {
        file.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen == content[number], "file {number}");
    }
    assert!(*map == *content[2], "the mapped file");

    drop((early, open));
    unmap(map);
    // In mode Kernel with the next remount, which is tried ever less often while it does not help.
    wait_for("nothing to be held", Duration::from_secs(200), || metric(address, "forebay_held_bytes") == 0);
    assert!(used(&disk) <= metric(address, "forebay_cached_bytes") + BESIDE, "{} bytes are in use", used(&disk));
    (0..FILES).for_each(read);
    assert_eq!(metric(address, "forebay_verification_failures_total"), 0);
    eprintln!("{mode:?}: at most {} bytes in use of {CAPACITY}, {held} held; {:?}", most.get(), began.elapsed());
    drop(process);
}
