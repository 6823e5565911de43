//! Mode Fuse: what the FUSE daemon's tree shows beyond what both modes do, and what a slot's next tree does not show of the last.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use forebay_csi::mode::Wanted;
use support::plugin::{World, run_daemon};
use support::{Dataset, can_mount};

#[test]
#[ignore = "the daemon's process of the other tests"]
fn daemon_process() {
    run_daemon();
}

/// A node in mode Fuse with these datasets, the first of which is staged.
async fn staged(datasets: &[&[(&str, u64)]]) -> World {
    let mut world = World::new(Wanted::Fuse, datasets).await;
    world.start_plugin().await;
    world.start_daemon();
    world.stage(0).await.unwrap();
    world
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Has the kernel forget names and attributes that nobody uses.
fn drop_caches() {
    std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

/// Everything below a folder: paths, sizes, whether folders.
fn walk(root: &Path) -> BTreeMap<PathBuf, (u64, bool)> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            assert_eq!(metadata.is_dir(), entry.file_type().unwrap().is_dir());
            if metadata.is_dir() {
                folders.push(entry.path());
            }
            let size = if metadata.is_dir() { 0 } else { metadata.size() };
            found.insert(entry.path().strip_prefix(root).unwrap().to_owned(), (size, metadata.is_dir()));
        }
    }
    found
}

/// What [`walk`] finds of a dataset.
fn expected(dataset: &Dataset) -> BTreeMap<PathBuf, (u64, bool)> {
    let mut all = BTreeMap::new();
    for file in &dataset.files {
        all.insert(PathBuf::from(&file.path), (file.size, false));
        for folder in Path::new(&file.path).ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()) {
            all.insert(folder.to_owned(), (0, true));
        }
    }
    all
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_attributes_and_errors_are_those_of_a_read_only_file_system() {
    if !can_mount() {
        return;
    }
    let names: Vec<_> = (0..3000).map(|number| format!("many/file-{number}")).collect();
    let long = format!("deep/{}{}", "d/".repeat(60), "n".repeat(255));
    let mut files: Vec<_> = names.iter().map(|name| (name.as_str(), 5)).collect();
    files.extend([(long.as_str(), 7), ("größe/日本", 70_000), ("empty", 0), ("a", 4096)]);
    let world = staged(&[&files]).await;
    let (tree, dataset) = (world.staging(0), Arc::clone(&world.datasets[0]));
    blocking(move || {
        for _ in 0..2 {
            assert_eq!(walk(&tree), expected(&dataset));
            drop_caches();
        }
        let stat = tree.join("größe/日本").metadata().unwrap();
        assert_eq!((stat.uid(), stat.gid(), stat.mode(), stat.nlink()), (1000, 1001, 0o100_444, 1));
        assert_eq!((stat.mtime(), stat.mtime_nsec(), stat.size()), (1_700_000_000, 0, 70_000));
        let folder = tree.join("many").metadata().unwrap();
        assert_eq!((folder.mode(), folder.nlink()), (0o040_555, 2));
        // The same numbers by name and in a listing, and those of the folder itself.
        let listed = rustix::fs::Dir::new(std::fs::File::open(tree.join("many")).unwrap()).unwrap();
        for entry in listed.map(Result::unwrap) {
            let name = entry.file_name().to_str().unwrap();
            assert_eq!(entry.ino(), tree.join("many").join(name).metadata().unwrap().ino(), "{name}");
        }
        let statfs = rustix::fs::statvfs(&tree).unwrap();
        let bytes: u64 = dataset.files.iter().map(|file| file.size).sum();
        assert_eq!((statfs.f_files, statfs.f_blocks), (3004, bytes.div_ceil(4096)));
        assert_eq!((statfs.f_bfree, statfs.f_frsize, statfs.f_namemax), (0, 4096, 255));

        let attribute = |name: &str| {
            let mut value = [0; 100];
            rustix::fs::getxattr(tree.join("a"), name, &mut value).map(|length| value[..length].to_vec())
        };
        assert_eq!(attribute("user.forebay.source").unwrap(), b"test://bucket/a");
        assert_eq!(attribute("user.forebay.etag").unwrap(), b"etag");
        assert_eq!(attribute("user.other"), Err(rustix::io::Errno::NODATA));
        assert_eq!(attribute("trusted.overlay.redirect"), Err(rustix::io::Errno::OPNOTSUPP));
        let mut list = [0; 100];
        let length = rustix::fs::listxattr(tree.join("a"), &mut list[..]).unwrap();
        assert_eq!(&list[..length], b"user.forebay.source\0user.forebay.etag\0");
        assert_eq!(rustix::fs::listxattr(tree.join("a"), &mut list[..5]), Err(rustix::io::Errno::RANGE));
        assert_eq!(rustix::fs::listxattr(tree.join("many"), &mut list[..]), Ok(0));

        assert_eq!(errno(tree.join("missing").metadata()), Some(libc::ENOENT));
        assert_eq!(errno(tree.join("a/b").metadata()), Some(libc::ENOTDIR));
        assert_eq!(errno(tree.join("n".repeat(256)).metadata()), Some(libc::ENAMETOOLONG));
        assert_eq!(errno(std::fs::read_dir(tree.join("a"))), Some(libc::ENOTDIR));
        assert_eq!(errno(std::fs::read(tree.join("many"))), Some(libc::EISDIR));
        assert_eq!(errno(std::fs::write(tree.join("a"), "x")), Some(libc::EROFS));
        assert_eq!(errno(std::fs::write(tree.join("new"), "x")), Some(libc::EROFS));
        assert_eq!(errno(std::fs::create_dir(tree.join("new"))), Some(libc::EROFS));
        assert_eq!(errno(std::fs::remove_file(tree.join("a"))), Some(libc::EROFS));
        assert_eq!(errno(std::fs::rename(tree.join("a"), tree.join("b"))), Some(libc::EROFS));

        assert_eq!(std::fs::read(tree.join("empty")).unwrap(), b"");
        let file = std::fs::File::open(tree.join("a")).unwrap();
        assert!(std::fs::read(tree.join("a")).unwrap() == dataset.file("a").bytes(0, 4096));
        assert_eq!(file.read_at(&mut [0; 10], 4096).unwrap(), 0);
        // No holes: all data.
        assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap(), 4096);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kernel_checks_the_tree_s_modes_and_lets_other_users_see_no_object() {
    if !can_mount() {
        return;
    }
    let world = staged(&[&[("folder/a", 1000)]]).await;
    let (tree, objects) = (world.staging(0), world.paths.object_fuse());
    for folder in objects.ancestors().skip(1).take_while(|folder| *folder != world.scratch.path()) {
        support::set_mode(folder, 0o755);
    }
    blocking(move || {
        let run = |program: &str, path: &Path| Command::new(program).arg(path).uid(65534).gid(65534).output().unwrap();
        let read = run("cat", &tree.join("folder/a"));
        assert!(read.status.success() && read.stdout.len() == 1000, "{read:?}");
        let listed = run("ls", &objects);
        assert!(String::from_utf8_lossy(&listed.stderr).contains("Permission denied"), "{listed:?}");
        let through = run("ls", &objects.join("tree-0"));
        assert!(String::from_utf8_lossy(&through.stderr).contains("Permission denied"), "{through:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_image_gives_eio_for_what_is_damaged_and_the_rest_is_served() {
    if !can_mount() {
        return;
    }
    let names: Vec<_> = (0..500).map(|number| format!("zone/{number}")).collect();
    let mut files: Vec<_> = names.iter().map(|name| (name.as_str(), 5)).collect();
    files.push(("a", 1000));
    let world = staged(&[&files, &[("other", 1000)]]).await;
    world.stage(1).await.unwrap();
    let image = world.datasets[0].folder().join("image.erofs");
    let (tree, other) = (world.staging(0), world.staging(1));
    blocking(move || {
        // Root and `a` come first, then `zone`, then its files.
        let zone = tree.join("zone").metadata().unwrap().ino() & ((1 << 46) - 1);
        let file = std::fs::File::options().write(true).open(&image).unwrap();
        let (start, end) = (zone * 32, file.metadata().unwrap().len());
        file.write_all_at(&vec![0xff; (end - start) as usize], start).unwrap();
        drop_caches();
        assert_eq!(errno(tree.join("zone").metadata()), Some(libc::EIO));
        let names: Vec<_> = std::fs::read_dir(&tree).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert_eq!(std::fs::read(tree.join("a")).unwrap().len(), 1000);
        assert_eq!(std::fs::read(other.join("other")).unwrap().len(), 1000);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_tree_of_a_slot_shows_nothing_of_the_last() {
    if !can_mount() {
        return;
    }
    // The third keeps the session while the others come and go.
    let world = staged(&[&[("a", 1000), ("only-here", 5)], &[("a", 2000), ("folder/b", 5)], &[("c", 5)]]).await;
    world.stage(2).await.unwrap();
    world.plugin().unstage("uid-0", &world.staging(0)).await.unwrap();
    // The same slot each time, not the next one: the worst case.
    let session = world.paths.session();
    for round in 0..6 {
        let number = round % 2;
        let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&session).unwrap()).unwrap();
        record["next_slot"] = serde_json::json!(0);
        std::fs::write(&session, record.to_string()).unwrap();
        world.stage(number).await.unwrap();
        let (tree, dataset) = (world.staging(number), Arc::clone(&world.datasets[number]));
        blocking(move || {
            assert_eq!(walk(&tree), expected(&dataset), "round {round}");
            for file in &dataset.files {
                let bytes = std::fs::read(tree.join(&file.path)).unwrap();
                assert!(bytes == file.bytes(0, file.size as usize), "round {round}: {}", file.path);
            }
        })
        .await;
        world.plugin().unstage(&format!("uid-{number}"), &world.staging(number)).await.unwrap();
        // In earnest there are 65,535 other slots' turns in between: the daemon has let go of the tree by then.
        let slot = world.paths.object_fuse().join("tree-0");
        let since = Instant::now();
        while slot.symlink_metadata().is_ok() {
            assert!(since.elapsed() < Duration::from_secs(10), "the daemon still shows the tree");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn walks_go_on_while_the_daemon_is_killed_again_and_again() {
    if !can_mount() {
        return;
    }
    let names: Vec<_> = (0..2000).map(|number| format!("{}/{}/{number}", number % 7, number % 3)).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), 5)).collect();
    let mut world = staged(&[&files]).await;
    let (stop, walks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let walkers: Vec<_> = (0..3)
        .map(|_| {
            let (stop, walks) = (Arc::clone(&stop), Arc::clone(&walks));
            let (tree, dataset) = (world.staging(0), Arc::clone(&world.datasets[0]));
            std::thread::spawn(move || {
                let expected = expected(&dataset);
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(walk(&tree), expected);
                    walks.fetch_add(1, Ordering::Relaxed);
                    drop_caches();
                }
            })
        })
        .collect();
    for _ in 0..20 {
        let before = walks.load(Ordering::Relaxed);
        let since = Instant::now();
        while walks.load(Ordering::Relaxed) < before + 3 {
            assert!(since.elapsed() < Duration::from_secs(60), "the walks stand still");
            assert!(walkers.iter().all(|walker| !walker.is_finished()), "a walk failed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        world.kill_daemon();
        world.start_daemon();
    }
    stop.store(true, Ordering::Relaxed);
    blocking(|| walkers.into_iter().for_each(|walker| walker.join().unwrap())).await;
}
