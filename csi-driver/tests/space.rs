//! Space of evicted objects: what the kernel caches is let go when the cache node misses it, what is open stays readable.

#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::FileExt;
use std::path::Path;

use forebay_csi::mode::Wanted;
use forebay_protocol::local::Held;
use support::plugin::{World, run_daemon};
use support::{can_mount_in, mapped, until};

#[test]
#[ignore = "the daemon's process of the other tests"]
fn daemon_process() {
    run_daemon();
}

const SIZE: u64 = 4 << 20;

/// Bytes in use on a file system that only the test's cache is on.
fn used(folder: &Path) -> u64 {
    let facts = rustix::fs::statvfs(folder).unwrap();
    (facts.f_blocks - facts.f_bfree) * facts.f_frsize
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evicted_objects_give_their_space_back_except_those_that_are_open() {
    if !can_mount_in(Wanted::Kernel) {
        return;
    }
    let names: Vec<_> = (0..10).map(|number| format!("f{number}")).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), SIZE)).collect();
    let mut world = World::on_own_file_system(&[&files]).await;
    let dataset = world.datasets[0].clone();
    for file in &dataset.files {
        dataset.complete(file);
    }
    world.start_plugin().await;
    world.start_daemon();
    world.stage(0).await.unwrap();
    let root = world.paths.cache_roots[0].clone();
    let tree = world.staging(0);
    for file in &dataset.files {
        assert!(std::fs::read(tree.join(&file.path)).unwrap() == file.bytes(0, SIZE as usize));
    }
    let open = std::fs::File::open(tree.join("f0")).unwrap();
    let map = mapped(&std::fs::File::open(tree.join("f1")).unwrap(), SIZE as usize);
    let full = used(&root);

    // What the store does when it evicts.
    for file in &dataset.files {
        std::fs::remove_file(dataset.cache.objects().join(file.id.relative_path())).unwrap();
    }
    assert_eq!(used(&root), full, "the kernel lets go by itself: the test shows nothing");
    let held = Held { held_bytes: 10 * SIZE, capacity_bytes: 100 * SIZE, waited_for: false };
    *world.cache_node.shared.held.lock().unwrap() = held;
    until("all but the open ones is free", || used(&root) <= full - 8 * SIZE).await;
    assert_eq!(used(&root), full - 8 * SIZE);

    let mut bytes = vec![0; SIZE as usize];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == dataset.files[0].bytes(0, SIZE as usize));
    assert!(map[..] == dataset.files[1].bytes(0, SIZE as usize)[..]);
    drop((open, map));
    // They went with their last user, or go with the next remount.
    until("the rest is free", || used(&root) <= full - 10 * SIZE).await;
    // And what is gone is read again by way of the daemon.
    let path = tree.join("f5");
    let again = tokio::task::spawn_blocking(move || std::fs::read(path).unwrap()).await.unwrap();
    assert!(again == dataset.files[5].bytes(0, SIZE as usize));
}
