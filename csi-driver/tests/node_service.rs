//! Staging and publishing as the kubelet does it: repeated, in parallel, after failures.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use forebay_csi::mode::Wanted;
use forebay_csi::node::{NodeError, Stats};
use support::plugin::{World, run_daemon};
use support::until;

in_both_modes! {
    calls_may_be_repeated_and_come_in_parallel_and_nothing_is_left
    without_a_daemon_staging_says_so_and_leaves_nothing_and_then_succeeds
    a_dataset_that_becomes_ready_while_staging_waits_is_mounted
    a_cache_folder_with_a_link_in_it_is_not_followed
    statistics_and_condition_wait_for_neither_source_nor_daemon_nor_cache_node
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

/// The volume's figures, which must be there at once.
async fn stats_at_once(world: &World, target: &Path) -> Stats {
    let (plugin, uid, target) = (world.plugin().clone(), world.datasets[0].uid.clone(), target.to_owned());
    let asked = tokio::task::spawn_blocking(move || plugin.stats(&uid, &target));
    let answer = tokio::time::timeout(Duration::from_secs(2), asked).await;
    answer.expect("the figures wait for something").unwrap().unwrap()
}

async fn statistics_and_condition_wait_for_neither_source_nor_daemon_nor_cache_node(mode: Wanted) {
    let mut world = World::new(mode, &[&[("folder/a", 100_000)]]).await;
    world.start_plugin().await;
    world.start_daemon();
    world.stage(0).await.unwrap();
    let target = world.scratch.path().join("pods/1/mount");
    world.plugin().publish(&world.datasets[0].uid, &world.staging(0), &target, None).await.unwrap();
    let good = Stats { files: 1, bytes: 100_000, problem: None };
    assert_eq!(stats_at_once(&world, &target).await, good);

    // A source that gives nothing: a reader hangs.
    world.cache_node.slow(Duration::from_secs(600));
    let reader = |program: &str, path: &Path| Command::new(program).arg(path).stdout(Stdio::null()).spawn().unwrap();
    let mut readers = vec![reader("cat", &target.join("folder/a"))];
    until("a reader waits", || world.cache_node.shared.ensures.load(Ordering::SeqCst) > 0).await;
    assert_eq!(stats_at_once(&world, &target).await, good);

    // Nobody serves the tree: in mode Fuse even a look at a name that is not known yet hangs.
    world.kill_daemon();
    readers.push(reader("stat", &target.join("folder/missing")));
    assert_eq!(stats_at_once(&world, &target).await, good);

    world.cache_node.down().await;
    assert_eq!(stats_at_once(&world, &target).await, good);
    // Longer than a restart takes: that is a condition.
    let (plugin, uid) = (world.plugin().clone(), world.datasets[0].uid.clone());
    until("the condition tells", || plugin.stats(&uid, &target).unwrap().problem.is_some()).await;
    let problem = stats_at_once(&world, &target).await.problem.unwrap();
    assert!(problem.contains("cache node has been away"), "{problem}");

    for reader in &mut readers {
        reader.kill().unwrap();
    }
    // So that whoever hangs in a call ends.
    world.cache_node.slow(Duration::ZERO);
    world.cache_node.up().await;
    world.start_daemon();
    until("the readers are gone", || readers.iter_mut().all(|reader| reader.try_wait().unwrap().is_some())).await;
}
