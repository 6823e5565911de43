//! `kill -9` again and again under 16 readers of every kind: the FUSE worker, the CSI plugin, both in turn and at once, the cache node. No read
//! fails, no byte differs, also where the kernel can't send requests again. `FOREBAY_KILLS=100` kills as often as that; without it a run is short.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use forebay_csi::mode::Wanted;
use forebay_csi::mount;
use support::plugin::{World, kill, run_daemon};
use support::process::Plugin;
use support::readers::{self, Readers};
use support::{File, can_mount_in, can_pass_through, patience, until};

in_both_modes! {
    no_reader_notices_that_the_fuse_worker_is_killed_again_and_again
    no_reader_notices_that_the_plugin_is_killed_again_and_again
    no_reader_notices_that_plugin_and_fuse_worker_are_killed_in_turn
    no_reader_notices_that_plugin_and_fuse_worker_are_killed_at_the_same_moment
    without_a_cache_node_complete_files_are_read_as_before_and_the_others_when_it_is_back
    complete_files_are_read_no_slower_without_a_cache_node
    a_thousand_opens_and_closes_while_the_cache_node_dies_leak_no_descriptor_and_no_lease
}

#[test]
#[ignore = "the daemon's process of the other tests"]
fn daemon_process() {
    run_daemon();
}

#[test]
#[ignore = "the readers' process of the other tests"]
fn readers_process() {
    readers::run();
}

const FILES: &[(&str, u64)] = &[
    ("a", 3_000_000),
    ("b/c", 900_001),
    ("b/d", 5_000),
    ("e", 6_000_000),
    ("full/f", 2_000_000),
    ("full/g/h", 70_001),
];

/// The longest that a call may take. The processes that others run on a test machine take from it.
const PAUSE: Duration = Duration::from_secs(1);

/// The same while plugin and worker both start, and the worker tries to connect at ever longer intervals: 0.2 to 0.35 s on a quiet machine, up to
/// 1.2 s where others keep its two cores busy.
const PAUSE_OF_BOTH: Duration = Duration::from_secs(3);

fn is_complete(file: &File) -> bool {
    file.path.starts_with("full/")
}

/// How often to kill.
fn kills() -> usize {
    std::env::var("FOREBAY_KILLS").map_or(15, |kills| kills.parse().unwrap())
}

/// A staged dataset, partly complete, with plugin and daemon as processes.
async fn world(mode: Wanted) -> (World, Plugin) {
    world_with(mode, false).await
}

/// The same; `without_resend` as on kernels before 6.9.
async fn world_with(mode: Wanted, without_resend: bool) -> (World, Plugin) {
    let mut world = World::new(mode, &[FILES]).await;
    world.without_resend = without_resend;
    for file in world.datasets[0].files.iter().filter(|file| is_complete(file)) {
        world.datasets[0].complete(file);
    }
    world.cache_node.shared.keep_partial.store(true, Ordering::SeqCst);
    let plugin = Plugin::start(&world);
    world.start_supervised_daemon();
    plugin.stage(&world, 0).await.unwrap();
    (world, plugin)
}

fn readers(world: &World) -> Readers {
    Readers::start(16, &world.staging(0), &world.datasets[0], is_complete)
}

async fn no_reader_notices_that_the_fuse_worker_is_killed_again_and_again(mode: Wanted) {
    kill_the_worker_again_and_again(world(mode).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reader_notices_it_either_where_the_kernel_cannot_send_requests_again() {
    if can_mount_in(Wanted::Fuse) {
        kill_the_worker_again_and_again(world_with(Wanted::Fuse, true).await).await;
    }
}

async fn kill_the_worker_again_and_again((world, _plugin): (World, Plugin)) {
    let mut readers = readers(&world);
    for kill in 0..kills() {
        readers.go_on("between kills").await;
        // At any moment of what they do.
        tokio::time::sleep(Duration::from_micros(kill as u64 * 7919 % 20_000)).await;
        world.daemon.as_ref().unwrap().kill_worker();
    }
    readers.go_on("after the last kill").await;
    let longest = readers.stop().await;
    assert!(longest < patience(PAUSE), "a call took {longest:?}");
}

async fn no_reader_notices_that_the_plugin_is_killed_again_and_again(mode: Wanted) {
    let (world, mut plugin) = world(mode).await;
    let mut readers = readers(&world);
    for _ in 0..kills() {
        readers.go_on("between kills").await;
        drop(plugin);
        plugin = Plugin::start(&world);
        plugin.has_the_session().await;
    }
    readers.go_on("after the last kill").await;
    let longest = readers.stop().await;
    assert!(longest < patience(PAUSE), "a call took {longest:?}");
}

async fn no_reader_notices_that_plugin_and_fuse_worker_are_killed_in_turn(mode: Wanted) {
    let (world, mut plugin) = world(mode).await;
    let mut readers = readers(&world);
    for _ in 0..kills() {
        drop(plugin);
        plugin = Plugin::start(&world);
        plugin.has_the_session().await;
        readers.go_on("after the plugin").await;
        world.daemon.as_ref().unwrap().kill_worker();
        // The next plugin is given the session by the next worker. That readers go on does not show that it is there: what they need may be cached.
        until("the next worker has the session", || world.daemon.as_ref().unwrap().has_a_session()).await;
        readers.go_on("after the worker").await;
    }
    let longest = readers.stop().await;
    assert!(longest < patience(PAUSE), "a call took {longest:?}");
}

async fn no_reader_notices_that_plugin_and_fuse_worker_are_killed_at_the_same_moment(mode: Wanted) {
    kill_both_at_the_same_moment(world(mode).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_where_the_kernel_cannot_send_requests_again() {
    if can_mount_in(Wanted::Fuse) {
        kill_both_at_the_same_moment(world_with(Wanted::Fuse, true).await).await;
    }
}

async fn kill_both_at_the_same_moment((world, mut plugin): (World, Plugin)) {
    let mut readers = readers(&world);
    for time in 0..kills() {
        readers.go_on("between kills").await;
        // Every third time also while both are starting again, at any moment of that.
        for again in 0..=u64::from(time % 3 == 2) {
            tokio::time::sleep(Duration::from_micros(again * time as u64 * 17_389 % 150_000)).await;
            let mut both = [plugin.pid(), world.daemon.as_ref().unwrap().pid()];
            both.rotate_left(time % 2);
            for process in both {
                kill(process);
            }
            // Neither knows the other: what the next ones have, the worker's parent kept.
            drop(plugin);
            plugin = Plugin::start(&world);
        }
    }
    readers.go_on("after the last kill").await;
    let longest = readers.stop().await;
    eprintln!("plugin and worker killed at once, {} times: the longest call took {longest:?}", kills());
    assert!(longest < patience(PAUSE_OF_BOTH), "a call took {longest:?}");
}

async fn without_a_cache_node_complete_files_are_read_as_before_and_the_others_when_it_is_back(mode: Wanted) {
    if mount::kernel::check().is_err() && !can_pass_through() {
        return;
    }
    let (mut world, _plugin) = world(mode).await;
    for _ in 0..2 {
        let mut all = readers(&world);
        all.go_on("before").await;
        world.cache_node.down().await;
        // Readers of what is complete, alone: the others wait.
        let complete = world.datasets[0].file("full/f").clone();
        let path = world.staging(0).join(&complete.path);
        let alone = tokio::task::spawn_blocking(move || {
            let mut longest = Duration::ZERO;
            for _ in 0..30 {
                let since = std::time::Instant::now();
                let bytes = std::fs::read(&path).unwrap();
                longest = longest.max(since.elapsed());
                assert!(bytes == complete.bytes(0, bytes.len()));
            }
            longest
        });
        let longest = alone.await.unwrap();
        assert!(longest < patience(PAUSE), "a complete file took {longest:?}");
        world.cache_node.up().await;
        all.go_on("after").await;
        all.stop().await;
    }
}

async fn complete_files_are_read_no_slower_without_a_cache_node(mode: Wanted) {
    const TIMES: usize = 15;
    if mount::kernel::check().is_err() && !can_pass_through() {
        return;
    }
    let (mut world, _plugin) = world(mode).await;
    let file = world.datasets[0].file("full/f").clone();
    let path = world.staging(0).join(&file.path);
    let expected = std::sync::Arc::new(file.bytes(0, file.size as usize));
    let read = || {
        let (path, expected) = (path.clone(), std::sync::Arc::clone(&expected));
        tokio::task::spawn_blocking(move || -> Vec<Duration> {
            let timed = (0..TIMES).map(|_| {
                let since = std::time::Instant::now();
                let bytes = std::fs::read(&path).unwrap();
                let took = since.elapsed();
                assert!(bytes == *expected);
                took
            });
            timed.collect()
        })
    };
    // In turn, so that what else the machine does hits both.
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        with.extend(read().await.unwrap());
        world.cache_node.down().await;
        without.extend(read().await.unwrap());
        world.cache_node.up().await;
    }
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    let (with, without) = (median(with), median(without));
    eprintln!("{mode:?}: opened and read in {with:?}, without a cache node in {without:?}");
    assert!(without < with * 5 / 4 + Duration::from_micros(50), "{without:?} instead of {with:?}");
}

/// How many files and sockets a process has open.
fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(usize::MAX, Iterator::count)
}

async fn a_thousand_opens_and_closes_while_the_cache_node_dies_leak_no_descriptor_and_no_lease(mode: Wanted) {
    let (mut world, plugin) = world(mode).await;
    let cycle = |world: &World, times: usize| {
        let tree = world.staging(0);
        let files = ["b/c", "full/g/h", "e"].map(|path| world.datasets[0].file(path).clone());
        tokio::task::spawn_blocking(move || {
            for file in files.iter().cycle().take(times) {
                let opened = std::fs::File::open(tree.join(&file.path)).unwrap();
                let mut bytes = [0; 100];
                std::os::unix::fs::FileExt::read_exact_at(&opened, &mut bytes, 4096).unwrap();
                assert!(bytes[..] == file.bytes(4096, 100)[..]);
            }
        })
    };
    let open = |world: &World| [world.daemon.as_ref().unwrap().pid(), plugin.pid()].map(descriptors);
    cycle(&world, 10).await.unwrap();
    until("all is closed", || world.cache_node.shared.leases.load(Ordering::SeqCst) == 0).await;
    let before = open(&world);
    for _ in 0..20 {
        let cycles = cycle(&world, 50);
        world.cache_node.down().await;
        world.cache_node.up().await;
        cycles.await.unwrap();
    }
    let since = std::time::Instant::now();
    loop {
        let (leases, now) = (world.cache_node.shared.leases.load(Ordering::SeqCst), open(&world));
        if leases == 0 && now[0] <= before[0] && now[1] <= before[1] {
            break;
        }
        let patience = Duration::from_secs(20);
        assert!(
            since.elapsed() < patience,
            "{leases} leases; daemon and plugin had {before:?} descriptors, and have {now:?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
