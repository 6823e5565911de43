//! The FUSE daemon's memory is bounded, whatever is read by it. `FOREBAY_CYCLES=1000000` opens, reads and closes as often as that; without it a run
//! is short.

#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use forebay_csi::mode::Wanted;
use support::plugin::{World, run_daemon};

#[test]
#[ignore = "the daemon's process of the other tests"]
fn daemon_process() {
    run_daemon();
}

/// Resident, at any time.
const MOST_BYTES: u64 = 64 << 20;
/// What counts as no growth: less than an allocator's scatter.
const GROWTH_BYTES: u64 = 4 << 20;

const LARGE: u64 = 256 << 20;

fn cycles() -> u64 {
    std::env::var("FOREBAY_CYCLES").map_or(40_000, |cycles| cycles.parse().unwrap())
}

fn memory(world: &World, line: &str) -> u64 {
    let status = format!("/proc/{}/status", world.daemon.as_ref().unwrap().pid());
    let status = std::fs::read_to_string(status).unwrap();
    let kib = status.lines().find_map(|it| it.strip_prefix(line)?.trim().strip_suffix("kB")).unwrap();
    kib.trim().parse::<u64>().unwrap() << 10
}

fn read(paths: &[PathBuf], cycles: u64) {
    let mut buffer = vec![0; 4096];
    for cycle in 0..cycles {
        let file = std::fs::File::open(&paths[cycle as usize % paths.len()]).unwrap();
        assert!(file.read_at(&mut buffer, cycle * 7919 % 100 * 4096).unwrap() > 0);
    }
}

/// All of it, by four threads at once.
fn read_whole(path: &Path) {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let (file, mut buffer) = (std::fs::File::open(path).unwrap(), vec![0; 1 << 20]);
                for offset in (0..LARGE).step_by(1 << 20) {
                    file.read_exact_at(&mut buffer, offset).unwrap();
                }
            });
        }
    });
}

async fn the_daemon_stays_small(mode: Wanted) {
    let names: Vec<_> =
        (0..40).map(|number| format!("{}/{number}", if number % 2 == 0 { "partial" } else { "full" })).collect();
    let files = names.iter().map(|name| (name.as_str(), 500_000)).chain([("large", LARGE)]);
    let mut world = World::new(mode, &[&files.collect::<Vec<_>>()]).await;
    for file in world.datasets[0].files.iter().filter(|file| file.path.starts_with("full/")) {
        world.datasets[0].complete(file);
    }
    world.cache_node.shared.keep_partial.store(true, Ordering::SeqCst);
    world.start_plugin().await;
    world.start_daemon();
    world.stage(0).await.unwrap();
    let tree = world.staging(0);
    let paths: Vec<_> = names.iter().map(|name| tree.join(name)).collect();
    let in_thread = |work: Box<dyn FnOnce() + Send>| async { tokio::task::spawn_blocking(work).await.unwrap() };
    let (large, some) = (tree.join("large"), paths.clone());
    in_thread(Box::new(move || {
        read_whole(&large);
        read(&some, cycles() / 10);
    }))
    .await;
    let before = memory(&world, "VmRSS:");
    in_thread(Box::new(move || read(&paths, cycles() - cycles() / 10))).await;
    let (after, most) = (memory(&world, "VmRSS:"), memory(&world, "VmHWM:"));
    eprintln!("{mode:?}: {} cycles, {after} bytes resident, {most} at most", cycles());
    assert!(most <= MOST_BYTES, "{most}");
    assert!(after <= before + GROWTH_BYTES, "{before} grew to {after}");
}

in_both_modes! { the_daemon_stays_small }
