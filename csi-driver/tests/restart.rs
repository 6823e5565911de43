//! What a plugin finds when it starts: another plugin, the remains of a node that was rebooted; and what it does to mounts that are in use.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read as _;
use std::time::{Duration, Instant};

use forebay_csi::mode::Wanted;
use support::plugin::{World, run_daemon};
use support::process::Plugin;

in_both_modes! {
    a_second_plugin_refuses_to_run_beside_the_first_and_takes_over_when_that_ends
    after_a_reboot_records_and_sockets_of_before_harm_nothing
    what_is_in_use_is_taken_away_all_the_same_and_nothing_is_left
}

#[test]
#[ignore = "the daemon's process of the other tests"]
fn daemon_process() {
    run_daemon();
}

const FILES: &[(&str, u64)] = &[("a/b", 700_000), ("c", 5000)];

async fn a_second_plugin_refuses_to_run_beside_the_first_and_takes_over_when_that_ends(mode: Wanted) {
    let mut world = World::new(mode, &[FILES]).await;
    let first = Plugin::start(&world);
    world.start_daemon();
    first.stage(&world, 0).await.unwrap();
    let mounts = world.scratch.mounts();
    let mut second = Plugin::start(&world);
    let status = tokio::task::block_in_place(|| second.ended(Duration::from_secs(30))).unwrap();
    assert_eq!(status.code(), Some(1));
    // The first one has not noticed.
    first.publish(&world, 0, &world.scratch.path().join("pods/1")).await.unwrap();
    let third = Plugin::start(&world);
    drop(first);
    third.stage(&world, 0).await.unwrap();
    third.publish(&world, 0, &world.scratch.path().join("pods/1")).await.unwrap();
    assert_eq!(world.scratch.mounts().len(), mounts.len() + 1);
}

async fn after_a_reboot_records_and_sockets_of_before_harm_nothing(mode: Wanted) {
    let mut world = World::new(mode, &[FILES]).await;
    let plugin = Plugin::start(&world);
    world.start_daemon();
    plugin.stage(&world, 0).await.unwrap();
    let target = world.scratch.path().join("pods/1");
    plugin.publish(&world, 0, &target).await.unwrap();
    let mounts = world.scratch.mounts();
    drop(plugin);
    world.kill_daemon();
    // A reboot leaves files and takes mounts.
    for path in world.scratch.mounts().iter().rev() {
        rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
    for stale in [world.paths.csi_socket(), world.paths.broker_socket(), world.paths.session()] {
        assert!(stale.exists(), "{}", stale.display());
    }
    let plugin = Plugin::start(&world);
    world.start_daemon();
    drop(plugin.client().await);
    assert!(world.scratch.mounts().is_empty());
    assert_eq!(std::fs::read_dir(world.paths.volumes()).unwrap().count(), 0);
    plugin.stage(&world, 0).await.unwrap();
    plugin.publish(&world, 0, &target).await.unwrap();
    assert_eq!(world.scratch.mounts(), mounts);
    let file = world.datasets[0].file("a/b").clone();
    let bytes = tokio::task::spawn_blocking(move || std::fs::read(target.join("a/b")).unwrap()).await.unwrap();
    assert!(bytes == file.bytes(0, 700_000));
}

async fn what_is_in_use_is_taken_away_all_the_same_and_nothing_is_left(mode: Wanted) {
    let mut world = World::new(mode, &[FILES]).await;
    world.start_plugin().await;
    world.start_daemon();
    let nothing = world.scratch.mounts();
    world.stage(0).await.unwrap();
    let (uid, staging) = (world.datasets[0].uid.clone(), world.staging(0));
    let target = world.scratch.path().join("pods/1");
    world.plugin().publish(&uid, &staging, &target, None).await.unwrap();
    let path = target.join("a/b");
    let (mut open, first) = tokio::task::spawn_blocking(move || {
        let mut open = std::fs::File::open(path).unwrap();
        let mut first = vec![0; 1000];
        open.read_exact(&mut first).unwrap();
        (open, first)
    })
    .await
    .unwrap();
    let since = Instant::now();
    // As the kubelet does that lost patience.
    let (one, other) = tokio::join!(world.plugin().unpublish(&uid, &target), world.plugin().unpublish(&uid, &target));
    one.unwrap();
    other.unwrap();
    world.plugin().unstage(&uid, &staging).await.unwrap();
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
    assert_eq!(world.scratch.mounts(), nothing);
    // The kubelet unmounts when the pod's processes have ended. One that has not gets what it read before or an error, and does not hang.
    let rest = tokio::task::spawn_blocking(move || {
        let mut rest = Vec::new();
        open.read_to_end(&mut rest).map(|_| rest)
    });
    let file = world.datasets[0].file("a/b");
    if let Ok(rest) = rest.await.unwrap() {
        assert!([first, rest].concat() == file.bytes(0, 700_000));
    }
}
