//! Opens that the kernel serves alone are seen and told to the cache node.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::Command;

use forebay_csi::mode::Wanted;
use support::plugin::{World, run_daemon};
use support::process::Plugin;
use support::{can_mount_in, can_pass_through, until};

#[test]
#[ignore = "the daemon's process of the other tests"]
fn daemon_process() {
    run_daemon();
}

const FILES: &[(&str, u64)] =
    &[("here", 70_000), ("elsewhere", 80_000), ("never", 90_000), ("folder/empty", 0), ("sub/deep", 5000)];

/// A staged and published dataset whose files are all complete, and the plugin, which watches opens for so much of the time.
async fn world(mode: Wanted, percent: u8) -> (World, Plugin) {
    let mut world = World::new(mode, &[FILES]).await;
    for file in world.datasets[0].files.iter().filter(|file| file.size > 0) {
        world.datasets[0].complete(file);
    }
    let mut command = Plugin::command(&world);
    command.args(["--watch-opens", &percent.to_string(), "--objects"]).arg(world.objects_file());
    let plugin = Plugin::spawn(&mut command, &world);
    world.start_daemon();
    plugin.stage(&world, 0).await.unwrap();
    plugin.publish(&world, 0, &target(&world)).await.unwrap();
    (world, plugin)
}

fn target(world: &World) -> std::path::PathBuf {
    world.paths.kubelet_dir.join("target")
}

fn told(world: &World, path: &str) -> u64 {
    let id = world.datasets[0].file(path).id;
    world.cache_node.shared.touched.lock().unwrap().get(&id).copied().unwrap_or_default()
}

/// As a container does: in a mount namespace of its own.
fn read_in_another_namespace(path: &Path) {
    let read = Command::new("unshare").args(["--mount", "cat"]).arg(path).output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opens_of_complete_files_are_told_wherever_they_happen() {
    if !can_mount_in(Wanted::Kernel) {
        return;
    }
    let (world, _plugin) = world(Wanted::Kernel, 100).await;
    let pod = target(&world);
    until("what is opened is told", || {
        std::fs::read(pod.join("here")).unwrap();
        std::fs::read(pod.join("sub/deep")).unwrap();
        std::fs::read(pod.join("folder/empty")).unwrap();
        read_in_another_namespace(&pod.join("elsewhere"));
        ["here", "elsewhere", "sub/deep"].iter().all(|path| told(&world, path) > 0)
    })
    .await;
    // Names and attributes are no opens.
    std::fs::metadata(pod.join("never")).unwrap();
    assert_eq!(told(&world, "never"), 0);
    assert_eq!(world.cache_node.shared.touched.lock().unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_that_is_seen_stands_for_those_that_are_not() {
    if !can_mount_in(Wanted::Kernel) {
        return;
    }
    let (world, _plugin) = world(Wanted::Kernel, 50).await;
    let pod = target(&world);
    let mut opens = 0;
    until("a window shows opens", || {
        std::fs::read(pod.join("here")).unwrap();
        opens += 1;
        told(&world, "here") > 0
    })
    .await;
    // Half of the time is watched, in windows of a second.
    let told = told(&world, "here");
    assert!(told > 1 && told <= 4 * opens, "{told} of {opens}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_mode_fuse_each_open_is_told_once() {
    if !can_pass_through() {
        return;
    }
    let (world, _plugin) = world(Wanted::Fuse, 100).await;
    let pod = target(&world);
    for _ in 0..20 {
        std::fs::read(pod.join("here")).unwrap();
    }
    until("the daemon tells", || told(&world, "here") > 0).await;
    // What passes the daemon is told by the daemon alone.
    assert_eq!(told(&world, "here"), 20);
}
