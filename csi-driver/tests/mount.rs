//! Reading through the whole mount: overlay over catalog, complete objects and object FUSE, served in this process.

#![allow(clippy::unwrap_used)]

mod support;

use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use forebay_csi::mode::Wanted;
use forebay_csi::mount;
use forebay_fuse::{Registry, Server, Tree};
use forebay_protocol::local::FailureKind;
use rustix::fs::OFlags;
use support::{Dataset, Scratch, node::Node, until};

in_both_modes! {
    files_read_right_while_objects_are_absent_appear_and_are_complete
    reads_fail_with_an_errno_that_says_why
    opening_does_not_wait_for_the_source_and_a_reader_that_is_interrupted_does_not_either
    a_slow_read_does_not_hold_up_others
    what_is_known_to_be_present_is_read_without_asking_and_reported
    an_open_complete_object_is_read_while_the_cache_node_is_away
    unmounting_ends_the_session
    the_object_tree_has_folders_by_prefix_and_knows_no_other_names
}

/// A mounted dataset, served in this process.
struct Mounted {
    server: Option<Server>,
    node: Node,
    dataset: Arc<Dataset>,
    tree: PathBuf,
    rest: PathBuf,
    // Last, so that the mounts go after the server.
    scratch: Scratch,
}

async fn mounted(mode: Wanted, files: &[(&str, u64)]) -> Mounted {
    let scratch = Scratch::new();
    let dataset = Dataset::new(&scratch.folder("cache"), "uid-1", files);
    let socket = scratch.path().join("node.sock");
    let node = Node::start(&socket, &[Arc::clone(&dataset)]).await;
    let (rest, tree) = (scratch.folder("rest"), scratch.folder("tree"));
    let object_fuse = mount::fuse::mount(mount::fuse::SOURCE, &rest).unwrap();
    let registry = Registry::new();
    let table = forebay_catalog::ObjectTable::open(&dataset.folder().join("objects.table")).unwrap();
    let shown = (mode == Wanted::Fuse).then(|| {
        let image = forebay_catalog::TreeImage::open(&dataset.folder().join("image.erofs")).unwrap();
        let bytes = dataset.files.iter().map(|file| file.size).sum();
        Tree::new(7, &dataset.catalog_id, image, dataset.files.len() as u64, bytes)
    });
    registry.mount(&dataset.uid, &dataset.catalog_id, table, shown, &socket);
    let server = Server::start(Arc::new(object_fuse.session), registry, None, None).unwrap();
    let mounting = Mounting { dataset: Arc::clone(&dataset), rest: rest.clone(), tree: tree.clone() };
    // The kernel asks the FUSE layer while it mounts.
    let image = scratch.folder("image");
    tokio::task::spawn_blocking(move || match mode {
        Wanted::Fuse => mount::bind(&mounting.rest.join("tree-7"), Path::new(""), &mounting.tree).unwrap(),
        _ => mounting.overlay(&image),
    })
    .await
    .unwrap();
    Mounted { server: Some(server), node, dataset, tree, rest, scratch }
}

struct Mounting {
    dataset: Arc<Dataset>,
    rest: PathBuf,
    tree: PathBuf,
}

impl Mounting {
    fn overlay(&self, image: &Path) {
        let file = mount::open_beneath(&self.dataset.folder(), Path::new("image.erofs"), OFlags::RDONLY).unwrap();
        mount::erofs::mount(file, image).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path: &Path| rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap();
        let (image, rest, objects) = (open(image), open(&self.rest), open(&self.dataset.cache.objects()));
        mount::overlay::mount("forebay", image, &[objects.as_fd(), rest.as_fd()], &self.tree).unwrap();
    }
}

impl Mounted {
    async fn read(&self, path: &str) -> std::io::Result<Vec<u8>> {
        let path = self.tree.join(path);
        tokio::task::spawn_blocking(move || std::fs::read(path)).await.unwrap()
    }
}

async fn files_read_right_while_objects_are_absent_appear_and_are_complete(mode: Wanted) {
    let mounted = mounted(mode, &[("a/small", 10), ("a/large", 5_000_001), ("b/there", 70_000), ("empty", 0)]).await;
    let dataset = Arc::clone(&mounted.dataset);
    dataset.complete(dataset.file("b/there"));
    for _ in 0..2 {
        for file in &dataset.files {
            let bytes = mounted.read(&file.path).await.unwrap();
            assert!(bytes == file.bytes(0, file.size as usize), "{}", file.path);
        }
    }
    assert!(!mounted.dataset.cache.partial().join(dataset.file("a/large").id.relative_path()).exists());
    let stat = rustix::fs::stat(mounted.tree.join("a/large")).unwrap();
    assert_eq!((stat.st_uid, stat.st_gid, stat.st_mode & 0o7777, stat.st_size), (1000, 1001, 0o444, 5_000_001));
}

async fn reads_fail_with_an_errno_that_says_why(mode: Wanted) {
    let mounted = mounted(mode, &[("changed", 4000), ("gone", 4000), ("fine", 4000)]).await;
    mounted.node.fail("changed", FailureKind::Changed);
    mounted.node.fail("gone", FailureKind::Source);
    assert_eq!(mounted.read("changed").await.unwrap_err().raw_os_error(), Some(libc::ESTALE));
    assert_eq!(mounted.read("gone").await.unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(mounted.read("fine").await.unwrap().len(), 4000);
    // Once the cause is gone the same file can be read.
    mounted.node.shared.failing.lock().unwrap().clear();
    assert_eq!(mounted.read("changed").await.unwrap().len(), 4000);
}

async fn opening_does_not_wait_for_the_source_and_a_reader_that_is_interrupted_does_not_either(mode: Wanted) {
    let mounted = mounted(mode, &[("slow", 1_000_000), ("other", 1000)]).await;
    mounted.node.slow(Duration::from_secs(600));
    let path = mounted.tree.join("slow");
    let since = Instant::now();
    let file = tokio::task::spawn_blocking(move || std::fs::File::open(path)).await.unwrap().unwrap();
    assert!(since.elapsed() < Duration::from_secs(5));
    drop(file);
    for (arguments, ensures) in [("iflag=direct", 1), ("iflag=fullblock", 2)] {
        let input = format!("if={}", mounted.tree.join("slow").display());
        let mut reader = std::process::Command::new("dd").args([&input, arguments, "of=/dev/null"]).spawn().unwrap();
        until("the read is under way", || mounted.node.shared.ensures.load(Ordering::SeqCst) >= ensures).await;
        assert!(reader.try_wait().unwrap().is_none());
        reader.kill().unwrap();
        until("the killed reader is gone", || reader.try_wait().unwrap().is_some()).await;
        if ensures == 1 {
            // A buffered read's read-ahead is not interrupted: its lease stays until the node answers.
            until("its lease has ended", || mounted.node.shared.leases.load(Ordering::SeqCst) == 0).await;
        }
    }
    // Whoever came after it is served.
    mounted.node.slow(Duration::ZERO);
    assert_eq!(mounted.read("other").await.unwrap().len(), 1000);
}

async fn a_slow_read_does_not_hold_up_others(mode: Wanted) {
    let names: Vec<String> = (0..40).map(|number| format!("slow{number}")).collect();
    let mut files: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 1000)).collect();
    files.push(("fast", 1000));
    let mounted = mounted(mode, &files).await;
    mounted.read("fast").await.unwrap();
    mounted.node.slow(Duration::from_secs(600));
    let mut readers = Vec::new();
    for name in &names {
        readers.push(
            std::process::Command::new("cat").arg(mounted.tree.join(name)).stdout(Stdio::null()).spawn().unwrap(),
        );
    }
    until("all wait", || mounted.node.shared.ensures.load(Ordering::SeqCst) >= 41).await;
    let since = Instant::now();
    assert_eq!(mounted.read("fast").await.unwrap().len(), 1000);
    assert!(since.elapsed() < Duration::from_secs(2));
    for mut reader in readers {
        reader.kill().unwrap();
        reader.wait().unwrap();
    }
}

async fn what_is_known_to_be_present_is_read_without_asking_and_reported(mode: Wanted) {
    let mounted = mounted(mode, &[("a", 1_000_000)]).await;
    mounted.node.shared.keep_partial.store(true, Ordering::SeqCst);
    let path = mounted.tree.join("a");
    let expected = mounted.dataset.file("a").bytes(0, 1_000_000);
    let node = Arc::clone(&mounted.node.shared);
    let (first, second) = tokio::task::spawn_blocking(move || {
        let file = std::fs::File::options().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
        let mut buffer = vec![0; 1_000_000];
        file.read_exact_at(&mut buffer, 0).unwrap();
        let first = node.ensures.load(Ordering::SeqCst);
        for _ in 0..10 {
            buffer.fill(0);
            file.read_exact_at(&mut buffer, 0).unwrap();
            assert!(buffer == expected);
        }
        (first, node.ensures.load(Ordering::SeqCst))
    })
    .await
    .unwrap();
    assert_eq!(first, second);
    until("the bytes are reported", || mounted.node.shared.served.load(Ordering::SeqCst) == 10_000_000).await;
}

async fn an_open_complete_object_is_read_while_the_cache_node_is_away(mode: Wanted) {
    let mut mounted = mounted(mode, &[("a", 1_000_000)]).await;
    let path = mounted.tree.join("a");
    let file = tokio::task::spawn_blocking(move || {
        let file = std::fs::File::options().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
        file.read_exact_at(&mut vec![0; 1_000_000], 0).unwrap();
        file
    });
    let file = file.await.unwrap();
    mounted.node.down().await;
    let expected = mounted.dataset.file("a").bytes(0, 1_000_000);
    tokio::task::spawn_blocking(move || {
        let mut buffer = vec![0; 1_000_000];
        file.read_exact_at(&mut buffer, 0).unwrap();
        assert!(buffer == expected);
    })
    .await
    .unwrap();
}

async fn unmounting_ends_the_session(mode: Wanted) {
    let mut mounted = mounted(mode, &[("a", 100)]).await;
    mounted.read("a").await.unwrap();
    for path in mounted.scratch.mounts().into_iter().rev() {
        mount::unmount(&path).unwrap();
    }
    let server = mounted.server.take().unwrap();
    tokio::time::timeout(Duration::from_secs(10), server.ended()).await.unwrap();
    server.stop().await;
}

async fn the_object_tree_has_folders_by_prefix_and_knows_no_other_names(mode: Wanted) {
    let mounted = mounted(mode, &[("a", 100)]).await;
    let (rest, id) = (mounted.rest.clone(), mounted.dataset.file("a").id);
    tokio::task::spawn_blocking(move || {
        let mut names: Vec<_> =
            std::fs::read_dir(&rest).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, (0..256).map(|number| format!("{number:02x}")).collect::<Vec<_>>());
        let object = rest.join(id.relative_path());
        assert_eq!(std::fs::metadata(&object).unwrap().len(), 100);
        let errno = |path: PathBuf| std::fs::metadata(path).unwrap_err().raw_os_error();
        assert_eq!(errno(rest.join("xy")), Some(libc::ENOENT));
        assert_eq!(errno(object.with_file_name("0".repeat(30))), Some(libc::ENOENT));
        assert_eq!(errno(object.join("x")), Some(libc::ENOTDIR));
        let write = std::fs::write(rest.join("new"), "x").unwrap_err();
        assert_eq!(write.raw_os_error(), Some(libc::EROFS));
    })
    .await
    .unwrap();
}
