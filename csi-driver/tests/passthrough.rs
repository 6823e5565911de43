//! Complete objects that are opened through the object FUSE: the kernel reads their files, whoever of ours is alive, and lets go of them.

#![allow(clippy::unwrap_used)]

mod support;

use forebay_csi::mode::Wanted;
use std::fs::File as StdFile;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use support::plugin::{World, run_daemon};
use support::{File, can_mount, can_pass_through, until};

#[test]
#[ignore = "the daemon's process of the other tests"]
fn daemon_process() {
    run_daemon();
}

const MIB: u64 = 1 << 20;

/// A node with a staged dataset and one that is not. Its `objects/` is a file system of its own, so that its free space is ours alone.
async fn staged(files: &[(&str, u64)]) -> World {
    let mut world = World::new(Wanted::default(), &[files, &[("other", 5000)]]).await;
    let options = Some(c"size=512m,mode=700");
    let objects = world.datasets[0].cache.objects();
    rustix::mount::mount("objects", objects, "tmpfs", rustix::mount::MountFlags::empty(), options).unwrap();
    world.cache_node.shared.keep_partial.store(true, Ordering::SeqCst);
    world.start_plugin().await;
    world.start_daemon();
    world.stage(0).await.unwrap();
    world
}

/// Where the object FUSE shows a file.
fn path(world: &World, file: &File) -> PathBuf {
    world.paths.object_fuse().join(file.id.relative_path())
}

/// Bytes in use below `objects/`, those of unlinked files included.
fn used(world: &World) -> u64 {
    let stat = rustix::fs::statvfs(world.datasets[0].cache.objects()).unwrap();
    (stat.f_blocks - stat.f_bfree) * stat.f_frsize
}

fn evict(world: &World, file: &File) {
    std::fs::remove_file(world.datasets[0].cache.objects().join(file.id.relative_path())).unwrap();
}

async fn open(path: PathBuf) -> StdFile {
    tokio::task::spawn_blocking(move || StdFile::open(path)).await.unwrap().unwrap()
}

fn verify(opened: &StdFile, file: &File, seed: u64) -> Result<(), String> {
    let offset = seed % file.size / 4096 * 4096;
    let mut buffer = vec![0; 200_000.min(file.size - offset) as usize];
    let read = opened.read_exact_at(&mut buffer, offset);
    read.map_err(|error| format!("reading {} at {offset}: {error}", file.path))?;
    if buffer == file.bytes(offset, buffer.len()) { Ok(()) } else { Err(format!("wrong bytes in {}", file.path)) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn complete_objects_need_no_cache_node_to_be_opened_and_nobody_to_be_read() {
    if !can_pass_through() {
        return;
    }
    let mut world = staged(&[("a", 3 * MIB), ("b", 5000)]).await;
    let files = world.datasets[0].files.clone();
    for file in &files {
        world.datasets[0].complete(file);
    }
    world.cache_node.down().await;
    let mut opened = Vec::new();
    for file in &files {
        opened.push(open(path(&world, file)).await);
    }
    world.kill_daemon();
    world.stop_plugin().await;
    for (opened, file) in opened.iter().zip(&files) {
        for seed in [0, 77_777, file.size - 1] {
            verify(opened, file, seed).unwrap();
        }
    }
    assert_eq!(world.cache_node.shared.opens.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_becomes_complete_while_it_is_open_is_passed_through_after_its_last_close() {
    if !can_pass_through() {
        return;
    }
    let mut world = staged(&[("a", 3 * MIB)]).await;
    let file = world.datasets[0].files[0].clone();
    let by_daemon = open(path(&world, &file)).await;
    world.datasets[0].complete(&file);
    let also_by_daemon = open(path(&world, &file)).await;
    // The next daemon must know how it is open.
    world.kill_daemon();
    world.start_daemon();
    let by_next_daemon = open(path(&world, &file)).await;
    for opened in [&by_daemon, &also_by_daemon, &by_next_daemon] {
        let opened = opened.try_clone().unwrap();
        let file = file.clone();
        tokio::task::spawn_blocking(move || verify(&opened, &file, 1_000_000)).await.unwrap().unwrap();
    }
    assert!(world.cache_node.shared.opens.load(Ordering::SeqCst) > 0);
    drop((by_daemon, also_by_daemon, by_next_daemon));
    until("its leases end", || world.cache_node.shared.leases.load(Ordering::SeqCst) == 0).await;
    world.cache_node.down().await;
    let passed_through = open(path(&world, &file)).await;
    world.kill_daemon();
    verify(&passed_through, &file, 2_000_000).unwrap();
}

/// What readers have seen.
#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    reads: AtomicU64,
    failures: Mutex<Vec<String>>,
}

/// Opens, reads and closes until it is told to stop, complete and incomplete files.
fn reader(number: u64, paths: &[(PathBuf, File)], seen: &Seen) {
    let failed = |failure: String| seen.failures.lock().unwrap().push(failure);
    let mut seed = number + 1;
    let mut held: Vec<(StdFile, File)> = Vec::new();
    while !seen.stop.load(Ordering::Relaxed) {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (path, file) = &paths[(seed >> 20) as usize % paths.len()];
        match StdFile::open(path) {
            Ok(opened) => held.push((opened, file.clone())),
            Err(error) => failed(format!("opening {}: {error}", file.path)),
        }
        if held.len() > 3 {
            held.swap_remove((seed >> 30) as usize % held.len());
        }
        for (opened, file) in &held {
            if let Err(failure) = verify(opened, file, seed >> 24) {
                failed(failure);
            }
        }
        seen.reads.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_open_and_no_read_fails_while_daemon_and_plugin_are_killed_in_turn() {
    if !can_mount() {
        return;
    }
    let mut world = staged(&[("a", 3 * MIB), ("b", 5000), ("c", 900_001), ("d", 2 * MIB)]).await;
    let files = world.datasets[0].files.clone();
    for file in &files[..3] {
        world.datasets[0].complete(file);
    }
    let paths: Vec<_> = files.iter().map(|file| (path(&world, file), file.clone())).collect();
    let (paths, seen) = (Arc::new(paths), Arc::new(Seen::default()));
    let threads: Vec<_> = (0..4)
        .map(|number| {
            let (paths, seen) = (Arc::clone(&paths), Arc::clone(&seen));
            std::thread::spawn(move || reader(number, &paths, &seen))
        })
        .collect();
    for round in 0..12 {
        if round % 3 == 2 {
            world.stop_plugin().await;
            world.start_plugin().await;
            // Staging another volume waits until the daemon has given the session back.
            world.stage(1).await.unwrap();
            world.plugin().unstage(&world.datasets[1].uid, &world.staging(1)).await.unwrap();
        } else {
            world.kill_daemon();
            world.start_daemon();
        }
        let before = seen.reads.load(Ordering::Relaxed);
        until("more reads", || seen.reads.load(Ordering::Relaxed) > before + 20).await;
    }
    seen.stop.store(true, Ordering::Relaxed);
    let joined = tokio::task::spawn_blocking(|| threads.into_iter().all(|thread| thread.join().is_ok()));
    assert!(joined.await.unwrap());
    let failures = seen.failures.lock().unwrap();
    assert!(failures.is_empty(), "{} failures, the first: {:?}", failures.len(), failures.first());
}

fn open_and_close(path: &Path, times: usize) {
    for _ in 0..times {
        let opened = StdFile::open(path).unwrap();
        assert!(opened.read_at(&mut [0; 512], 0).unwrap() == 512);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_space_of_evicted_objects_is_free_when_they_are_closed_after_a_thousand_opens() {
    if !can_pass_through() {
        return;
    }
    let names: Vec<_> = (0..50).map(|number| format!("f{number}")).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), MIB)).collect();
    let mut world = staged(&files).await;
    let files = world.datasets[0].files.clone();
    let empty = used(&world);
    for file in &files {
        world.datasets[0].complete(file);
    }
    let paths: Vec<_> = files.iter().map(|file| path(&world, file)).collect();
    let all = paths.clone();
    tokio::task::spawn_blocking(move || {
        for path in &all {
            open_and_close(path, 20);
        }
    })
    .await
    .unwrap();
    let touched = || world.cache_node.shared.touched.lock().unwrap().values().sum::<u64>();
    until("the cache node knows what is in use", || touched() == 1000).await;
    let held = open(paths[0].clone()).await;
    for file in &files[..40] {
        evict(&world, file);
    }
    // The folders stay, and take a page each.
    until("only what is open is held", || used(&world) - empty < 12 * MIB).await;
    assert!(used(&world) - empty >= 11 * MIB, "the file that is open is gone");
    verify(&held, &files[0], 0).unwrap();
    // Closed while nobody can take the registration back: the next open after the plugin's return does.
    world.stop_plugin().await;
    drop(held);
    world.start_plugin().await;
    world.stage(0).await.unwrap();
    let other = paths[45].clone();
    until("what was closed without a plugin is free", || {
        open_and_close(&other, 1);
        used(&world) - empty < 11 * MIB
    })
    .await;
}
