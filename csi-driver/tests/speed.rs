//! Figures, printed: `cargo test --release -p forebay-csi --test speed -- --ignored --nocapture figures`. Native is the same loop on the same tmpfs.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use forebay_csi::mount::mode::Wanted;
use support::can_mount;
use support::plugin::{World, run_daemon};

const SIZE: u64 = 512 << 20;
const SMALL: usize = 2000;

#[test]
#[ignore = "the daemon's process of the other tests"]
fn daemon_process() {
    run_daemon();
}

fn open(path: &Path, direct: bool) -> File {
    File::options().read(true).custom_flags(if direct { libc::O_DIRECT } else { 0 }).open(path).unwrap()
}

fn drop_caches() {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

/// GiB/s of `jobs` threads that each read the whole file once.
fn sequential(path: &Path, direct: bool, jobs: usize) -> f64 {
    drop_caches();
    let since = Instant::now();
    std::thread::scope(|scope| {
        for job in 0..jobs {
            scope.spawn(move || {
                let (file, mut buffer) = (open(path, direct), vec![1_u8; (1 << 20) + 4096]);
                let skip = buffer.as_ptr().align_offset(4096);
                let buffer = &mut buffer[skip..skip + (1 << 20)];
                // The second begins in the middle, so that it does not live on what the first has read.
                for block in 0..SIZE >> 20 {
                    let block = (block + job as u64 * (SIZE >> 21)) % (SIZE >> 20);
                    file.read_exact_at(buffer, block << 20).unwrap();
                }
            });
        }
    });
    (SIZE * jobs as u64) as f64 / since.elapsed().as_secs_f64() / f64::from(1 << 30)
}

/// Thousands of 4 KiB reads a second at random places.
fn random(path: &Path, direct: bool, jobs: u64) -> f64 {
    drop_caches();
    let per_job = 40_000;
    let since = Instant::now();
    std::thread::scope(|scope| {
        for job in 0..jobs {
            scope.spawn(move || {
                let (file, mut buffer) = (open(path, direct), vec![1_u8; 8192]);
                // Buffered: no read-ahead, as a database would ask for.
                if !direct {
                    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
                }
                let skip = buffer.as_ptr().align_offset(4096);
                let mut seed = job + 1;
                for _ in 0..per_job {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let offset = (seed >> 20) % (SIZE / 4096) * 4096;
                    file.read_exact_at(&mut buffer[skip..skip + 4096], offset).unwrap();
                }
            });
        }
    });
    (per_job * jobs) as f64 / since.elapsed().as_secs_f64() / 1000.0
}

/// Thousands of files a second: open, read 64 KiB, close.
fn small(folder: &Path, cold: bool) -> f64 {
    if cold {
        drop_caches();
    }
    let mut buffer = vec![1_u8; 65536];
    let since = Instant::now();
    for number in 0..SMALL {
        File::open(folder.join(format!("small/{number}"))).unwrap().read_exact_at(&mut buffer, 0).unwrap();
    }
    SMALL as f64 / since.elapsed().as_secs_f64() / 1000.0
}

fn measure(name: &str, folder: &Path) {
    let median = |measure: &dyn Fn() -> f64| {
        let mut runs: Vec<_> = (0..5).map(|_| measure()).collect();
        runs.sort_by(f64::total_cmp);
        runs[2]
    };
    let large = folder.join("large");
    let mut figures = vec![format!("{name:>10}:")];
    for (direct, kind) in [(false, "B"), (true, "D")] {
        for jobs in [1, 2] {
            figures.push(format!("seq{kind}{jobs} {:.1}", median(&|| sequential(&large, direct, jobs))));
        }
        for jobs in [1, 4] {
            figures.push(format!("rnd{kind}{jobs} {:.0}k", median(&|| random(&large, direct, jobs))));
        }
    }
    figures.push(format!("small cold {:.1}k", median(&|| small(folder, true))));
    figures.push(format!("again {:.1}k", median(&|| small(folder, false))));
    println!("{}", figures.join(" "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn figures() {
    if !can_mount() {
        return;
    }
    let names: Vec<_> = (0..SMALL).map(|number| format!("small/{number}")).collect();
    let mut files: Vec<(&str, u64)> = vec![("large", SIZE)];
    files.extend(names.iter().map(|name| (name.as_str(), 65536)));
    let mut world = World::new(Wanted::Kernel, &[&files, &files]).await;
    // The second dataset's objects have the same ids, as they have the same source: only the first to complete them.
    let native = world.scratch.folder("native");
    std::fs::create_dir_all(native.join("small")).unwrap();
    for file in &world.datasets[0].files {
        std::fs::write(native.join(&file.path), file.bytes(0, file.size as usize)).unwrap();
    }
    world.cache_node.shared.keep_partial.store(true, Ordering::SeqCst);
    world.start_plugin().await;
    world.start_daemon();
    world.stage(0).await.unwrap();
    let tree = world.staging(0);
    let pid = world.daemon.as_ref().unwrap().pid();
    let task = tokio::task::spawn_blocking(move || {
        measure("native", &native);
        // Once, so that it is present.
        let since = Instant::now();
        sequential(&tree.join("large"), false, 1);
        println!("     first: {:.2} s, filling by the reference node included", since.elapsed().as_secs_f64());
        measure("daemon", &tree);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        println!("    daemon: {}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap());
        (native, tree)
    });
    let (native, tree) = task.await.unwrap();
    for file in &world.datasets[0].files {
        world.datasets[0].complete(file);
    }
    // Lets the overlay forget which layer it found them in.
    world.plugin().unstage("uid-0", &tree).await.unwrap();
    world.stage(0).await.unwrap();
    tokio::task::spawn_blocking(move || {
        measure("overlay", &tree);
        measure("native", &native);
    })
    .await
    .unwrap();
}

/// Files of the folder that is listed.
const MANY: usize = 100_000;

/// Thousands a second of stat of known paths.
fn stats(folder: &Path, threads: usize) -> f64 {
    let each = 20_000;
    let paths: Vec<_> = (0..each * threads).map(|number| folder.join(format!("many/{number}"))).collect();
    drop_caches();
    let since = Instant::now();
    std::thread::scope(|scope| {
        for paths in paths.chunks(each) {
            scope.spawn(move || paths.iter().for_each(|path| assert_eq!(path.metadata().unwrap().len(), 5)));
        }
    });
    paths.len() as f64 / since.elapsed().as_secs_f64() / 1000.0
}

/// Seconds of reading a folder and the attributes of each entry.
fn listing(folder: &Path, cold: bool) -> f64 {
    if cold {
        drop_caches();
    }
    let since = Instant::now();
    let sizes = std::fs::read_dir(folder.join("many")).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    assert_eq!(sizes.sum::<u64>(), 5 * MANY as u64);
    since.elapsed().as_secs_f64()
}

fn measure_names(name: &str, folder: &Path) {
    let median = |measure: &dyn Fn() -> f64| {
        let mut runs: Vec<_> = (0..5).map(|_| measure()).collect();
        runs.sort_by(f64::total_cmp);
        runs[2]
    };
    println!(
        "{name:>10}: small cold {:.1}k again {:.1}k, stat cold {:.0}k, 2 threads {:.0}k, list {MANY} cold {:.3} s again {:.3} s",
        median(&|| small(folder, true)),
        median(&|| small(folder, false)),
        median(&|| stats(folder, 1)),
        median(&|| stats(folder, 2)),
        median(&|| listing(folder, true)),
        median(&|| listing(folder, false)),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn figures_of_the_tree() {
    if !can_mount() {
        return;
    }
    let small_names: Vec<_> = (0..SMALL).map(|number| format!("small/{number}")).collect();
    let many: Vec<_> = (0..MANY).map(|number| format!("many/{number}")).collect();
    let mut files: Vec<(&str, u64)> = small_names.iter().map(|name| (name.as_str(), 65536)).collect();
    files.extend(many.iter().map(|name| (name.as_str(), 5)));
    let mut worlds = Vec::new();
    for mode in [Wanted::Kernel, Wanted::Fuse] {
        let mut world = World::new(mode, &[&files]).await;
        world.start_plugin().await;
        world.start_daemon();
        for file in world.datasets[0].files.iter().filter(|file| file.size > 5) {
            world.datasets[0].complete(file);
        }
        world.stage(0).await.unwrap();
        worlds.push(world);
    }
    let native = worlds[0].scratch.folder("native");
    for folder in ["small", "many"] {
        std::fs::create_dir_all(native.join(folder)).unwrap();
    }
    for file in &worlds[0].datasets[0].files {
        std::fs::write(native.join(&file.path), file.bytes(0, file.size as usize)).unwrap();
    }
    let (kernel, fuse) = (worlds[0].staging(0), worlds[1].staging(0));
    let pid = worlds[1].daemon.as_ref().unwrap().pid();
    tokio::task::spawn_blocking(move || {
        println!("load {}", std::fs::read_to_string("/proc/loadavg").unwrap().trim());
        for _ in 0..2 {
            measure_names("native", &native);
            measure_names("Kernel", &kernel);
            measure_names("Fuse", &fuse);
        }
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let memory = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        println!("daemon: {} {} {}", memory("VmHWM"), memory("RssAnon"), memory("RssFile"));
    })
    .await
    .unwrap();
}
