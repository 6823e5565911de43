//! Staging and publishing as the kubelet does it: repeated, in parallel, after failures.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use forebay_csi::mount::mode::Wanted;
use forebay_csi::node::NodeError;
use support::plugin::{World, run_daemon};

in_both_modes! {
    calls_may_be_repeated_and_come_in_parallel_and_nothing_is_left
    without_a_daemon_staging_says_so_and_leaves_nothing_and_then_succeeds
    a_dataset_that_becomes_ready_while_staging_waits_is_mounted
    a_cache_folder_with_a_link_in_it_is_not_followed
}

#[test]
#[ignore = "the daemon's process of the other tests"]
fn daemon_process() {
    run_daemon();
}

async fn calls_may_be_repeated_and_come_in_parallel_and_nothing_is_left(mode: Wanted) {
    let mut world = World::new(mode, &[&[("a", 100_000)], &[("b", 10)]]).await;
    world.start_plugin().await;
    world.start_daemon();
    let nothing = world.scratch.mounts();
    let plugin = world.plugin().clone();
    for _ in 0..2 {
        let (first, second, other) = tokio::join!(world.stage(0), world.stage(0), world.stage(1));
        first.unwrap();
        second.unwrap();
        other.unwrap();
        let uid = &world.datasets[0].uid;
        let targets = [world.scratch.path().join("pods/1/mount"), world.scratch.path().join("pods/2/mount")];
        for _ in 0..2 {
            for target in &targets {
                plugin.publish(uid, &world.staging(0), target, None).await.unwrap();
            }
        }
        // Object FUSE, in mode Kernel two catalogs, two trees, two pods: none stacked.
        let catalogs = if mode == Wanted::Kernel { 2 } else { 0 };
        let mut mounts = world.scratch.mounts();
        assert_eq!(mounts.len(), 5 + catalogs, "{mounts:#?}");
        mounts.sort();
        mounts.dedup();
        assert_eq!(mounts.len(), 5 + catalogs);
        let path = targets[0].join("a");
        let (bytes, write) = tokio::task::spawn_blocking(move || {
            (std::fs::read(&path).unwrap(), std::fs::File::options().write(true).open(&path).unwrap_err())
        })
        .await
        .unwrap();
        assert!(bytes == world.datasets[0].files[0].bytes(0, 100_000));
        assert_eq!(write.raw_os_error(), Some(libc::EROFS));
        let stats = plugin.stats(uid, &targets[0]).unwrap();
        assert_eq!((stats.files, stats.bytes, stats.problem), (1, 100_000, None));
        for _ in 0..2 {
            for target in &targets {
                plugin.unpublish(uid, target).await.unwrap();
                assert!(!target.exists());
            }
            assert!(matches!(plugin.stats(uid, &targets[0]), Err(NodeError::NotFound(_))));
            let staging = world.staging(0);
            let (first, second) = tokio::join!(plugin.unstage(uid, &staging), plugin.unstage(uid, &staging));
            first.unwrap();
            second.unwrap();
        }
        assert_eq!(world.scratch.mounts().len(), 2 + catalogs / 2);
        plugin.unstage(&world.datasets[1].uid, &world.staging(1)).await.unwrap();
        assert_eq!(world.scratch.mounts(), nothing);
    }
}

async fn without_a_daemon_staging_says_so_and_leaves_nothing_and_then_succeeds(mode: Wanted) {
    let mut world = World::new(mode, &[&[("a", 100_000)]]).await;
    world.start_plugin().await;
    let error = world.stage(0).await.unwrap_err();
    assert!(error.to_string().contains("no forebay-fuse daemon is connected on this node"), "{error}");
    assert!(world.scratch.mounts().is_empty());
    world.start_daemon();
    world.stage(0).await.unwrap();
}

async fn a_dataset_that_becomes_ready_while_staging_waits_is_mounted(mode: Wanted) {
    let mut world = World::new(mode, &[&[("a", 100_000)]]).await;
    world.write_objects(|_, dataset| dataset["status"] = serde_json::json!({}));
    world.start_plugin().await;
    world.start_daemon();
    let since = Instant::now();
    let ((), staged) = tokio::join!(
        async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            world.write_objects(|_, _| {});
        },
        world.stage(0)
    );
    staged.unwrap();
    assert!(since.elapsed() < Duration::from_secs(8));
}

async fn a_cache_folder_with_a_link_in_it_is_not_followed(mode: Wanted) {
    let mut world = World::new(mode, &[&[("a", 100_000)]]).await;
    world.start_plugin().await;
    world.start_daemon();
    let (bent, target) = match mode {
        Wanted::Fuse => (world.datasets[0].folder().join("image.erofs"), "/etc/passwd"),
        _ => (world.datasets[0].cache.objects(), "/etc"),
    };
    std::fs::rename(&bent, bent.with_extension("moved")).unwrap();
    std::os::unix::fs::symlink(target, &bent).unwrap();
    let error = world.stage(0).await.unwrap_err();
    assert!(matches!(error, NodeError::File { .. }), "{error}");
    assert!(world.scratch.mounts().is_empty());
}
