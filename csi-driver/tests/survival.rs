//! What survives what: daemon, plugin and cache node go away under readers, and no read fails or differs.

#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use forebay_csi::mode::Wanted;
use forebay_protocol::fdsocket::FdSocket;
use support::map::shared_memory;
use support::plugin::{Daemon, World, run_daemon};
use support::pod::Pod;
use support::{Dataset, can_mount, complete_files_need_nobody, until};

in_both_modes! {
    no_read_fails_when_an_unprivileged_daemon_is_killed_twenty_times
    a_restarted_plugin_takes_the_session_back_and_a_killed_daemon_still_has_a_successor
    after_plugin_and_daemon_were_down_at_once_new_pods_read_again
    a_daemon_that_is_asked_to_end_while_there_is_no_plugin_waits_for_one_to_take_the_session
    a_daemon_that_is_asked_to_end_leaves_nothing_undone
    reads_wait_while_the_cache_node_is_away_and_then_succeed
    the_broker_gives_nothing_to_other_users
}

#[test]
#[ignore = "the daemon's process of the other tests"]
fn daemon_process() {
    run_daemon();
}

/// Threads that read and verify files of a tree until they are stopped.
struct Readers {
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
    longest: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<String>>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Readers {
    fn start(number: usize, tree: &Path, dataset: &Arc<Dataset>) -> Self {
        let mut readers = Self {
            stop: Arc::default(),
            reads: Arc::default(),
            longest: Arc::default(),
            failures: Arc::default(),
            threads: Vec::new(),
        };
        for number in 0..number {
            let (tree, dataset) = (tree.to_owned(), Arc::clone(dataset));
            let (stop, reads, longest, failures) = (
                Arc::clone(&readers.stop),
                Arc::clone(&readers.reads),
                Arc::clone(&readers.longest),
                Arc::clone(&readers.failures),
            );
            readers.threads.push(std::thread::spawn(move || {
                let mut seed = number as u64 + 1;
                while !stop.load(Ordering::Relaxed) {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let since = Instant::now();
                    if let Err(failure) = read_one(&tree, &dataset, seed >> 20, number % 2 == 0) {
                        failures.lock().unwrap().push(failure);
                    }
                    reads.fetch_add(1, Ordering::Relaxed);
                    longest.fetch_max(since.elapsed().as_millis() as u64, Ordering::Relaxed);
                }
            }));
        }
        readers
    }

    fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Number of reads, longest stall in ms.
    fn stop(mut self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        let failures = self.failures.lock().unwrap();
        assert!(failures.is_empty(), "{} failures, the first: {:?}", failures.len(), failures.first());
        (self.reads.load(Ordering::Relaxed), self.longest.load(Ordering::Relaxed))
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn read_one(tree: &Path, dataset: &Dataset, random: u64, direct: bool) -> Result<(), String> {
    let file = &dataset.files[random as usize % dataset.files.len()];
    let flags = if direct { libc::O_DIRECT } else { 0 };
    let failed = |what: &str, error: std::io::Error| format!("{what} {}: {error}", file.path);
    let opened = std::fs::File::options().read(true).custom_flags(flags).open(tree.join(&file.path));
    let opened = opened.map_err(|error| failed("opening", error))?;
    for part in 0..4_u64 {
        let offset = random.rotate_left(part as u32 * 7) % file.size / 4096 * 4096;
        let mut buffer = shared_memory(300_000.min(file.size - offset) as usize);
        opened.read_exact_at(&mut buffer, offset).map_err(|error| failed("reading", error))?;
        if buffer[..] != file.bytes(offset, buffer.len()) {
            return Err(format!("wrong bytes in {} at {offset}", file.path));
        }
        if !direct {
            // Have the next read of it reach the daemon again.
            let _ = rustix::fs::fadvise(&opened, 0, None, rustix::fs::Advice::DontNeed);
        }
    }
    Ok(())
}

const FILES: &[(&str, u64)] = &[("a", 3_000_000), ("b/c", 900_001), ("b/d", 5_000), ("e", 12_000_000)];

async fn no_read_fails_when_an_unprivileged_daemon_is_killed_twenty_times(mode: Wanted) {
    let mut world = World::new(mode, &[FILES]).await;
    world.cache_node.shared.keep_partial.store(true, Ordering::SeqCst);
    world.cache_node.slow(Duration::from_millis(2));
    world.start_plugin().await;
    world.start_daemon();
    world.stage(0).await.unwrap();
    let readers = Readers::start(6, &world.staging(0), &world.datasets[0]);
    for round in 0..20 {
        let before = readers.reads();
        until("more reads", || readers.reads() > before + 20).await;
        world.kill_daemon();
        if round % 4 == 0 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        world.start_daemon();
    }
    let before = readers.reads();
    until("reads after the last kill", || readers.reads() > before + 20).await;
    let (reads, longest) = readers.stop();
    eprintln!("20 kills: {reads} reads, longest {longest} ms");
    // As when the kubelet starts a container for the first time: there is no parent that starts the next at once.
    assert!(longest < 5000, "a read took {longest} ms");
    // What dead daemons held open is let go: only what the last one holds remains.
    until("no lease is left", || world.cache_node.shared.leases.load(Ordering::SeqCst) == 0).await;
}

async fn a_restarted_plugin_takes_the_session_back_and_a_killed_daemon_still_has_a_successor(mode: Wanted) {
    let mut world = World::new(mode, &[FILES, &[("x", 700_000)]]).await;
    world.cache_node.shared.keep_partial.store(true, Ordering::SeqCst);
    world.start_plugin().await;
    world.start_daemon();
    world.stage(0).await.unwrap();
    let readers = Readers::start(3, &world.staging(0), &world.datasets[0]);
    for _ in 0..3 {
        let before = readers.reads();
        world.stop_plugin().await;
        until("reads without a plugin", || readers.reads() > before + 20).await;
        world.start_plugin().await;
        // Staging needs the session served, so it waits until the daemon has given it back.
        world.stage(0).await.unwrap();
        world.stage(1).await.unwrap();
        world.kill_daemon();
        world.start_daemon();
        let before = readers.reads();
        until("reads by the next daemon", || readers.reads() > before + 20).await;
        let x = world.staging(1).join("x");
        let bytes = tokio::task::spawn_blocking(move || std::fs::read(x)).await.unwrap().unwrap();
        assert!(bytes == world.datasets[1].files[0].bytes(0, 700_000));
        world.plugin().unstage(&world.datasets[1].uid, &world.staging(1)).await.unwrap();
    }
    readers.stop();
}

async fn after_plugin_and_daemon_were_down_at_once_new_pods_read_again(mode: Wanted) {
    let mut world = World::new(mode, &[FILES]).await;
    world.cache_node.shared.keep_partial.store(true, Ordering::SeqCst);
    world.start_plugin().await;
    world.start_daemon();
    world.stage(0).await.unwrap();
    let uid = world.datasets[0].uid.clone();
    let staging = world.staging(0);
    let (old_pod, new_pod) = (world.scratch.path().join("pods/old"), world.scratch.path().join("pods/new"));
    world.plugin().publish(&uid, &staging, &old_pod, None).await.unwrap();
    world.stop_plugin().await;
    world.kill_daemon();
    world.start_plugin().await;
    world.start_daemon();
    until("the loss is noticed", || world.plugin().stats(&uid, &old_pod).unwrap().problem.is_some()).await;
    world.plugin().publish(&uid, &staging, &new_pod, None).await.unwrap();
    assert_eq!(world.plugin().stats(&uid, &new_pod).unwrap().problem, None);
    let file = world.datasets[0].files[0].clone();
    let path = new_pod.join(&file.path);
    let bytes = tokio::task::spawn_blocking(move || std::fs::read(path)).await.unwrap().unwrap();
    assert!(bytes == file.bytes(0, file.size as usize));
    for pod in [old_pod, new_pod] {
        world.plugin().unpublish(&uid, &pod).await.unwrap();
    }
    world.plugin().unstage(&uid, &staging).await.unwrap();
    assert!(world.scratch.mounts().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_plugin_and_daemon_were_down_at_once_running_pods_read_what_they_open_anew_where_mounts_propagate() {
    if !can_mount() {
        return;
    }
    let mut world = World::with_propagation(&[FILES]).await;
    world.cache_node.shared.keep_partial.store(true, Ordering::SeqCst);
    let dataset = Arc::clone(&world.datasets[0]);
    dataset.complete(dataset.file("a"));
    for name in ["a", "b/c", "e"] {
        let file = dataset.file(name);
        std::fs::write(world.scratch.path().join(name.replace('/', "-")), file.bytes(0, file.size as usize)).unwrap();
    }
    world.start_plugin().await;
    world.start_daemon();
    world.stage(0).await.unwrap();
    let staging = world.staging(0);
    let targets: Vec<_> = (0..2).map(|number| world.paths.kubelet_dir.join(format!("pods/{number}/mount"))).collect();
    for target in &targets {
        world.plugin().publish(&dataset.uid, &staging, target, None).await.unwrap();
    }
    let scratch = world.scratch.path().to_owned();
    let same = move |pod: &mut Pod, target: &Path, name: &str| {
        let copy = scratch.join(name.replace('/', "-"));
        pod.run(&format!("cmp {} {} && echo same", target.join(name).display(), copy.display()))
    };
    let mut pods = [Pod::start("slave"), Pod::start("slave"), Pod::start("private")];
    for pod in &mut pods {
        assert_eq!(same(pod, &targets[0], "b/c"), "same\n");
        pod.run(&format!("exec 3< {}", targets[0].join("a").display()));
    }

    world.stop_plugin().await;
    world.kill_daemon();
    let since = Instant::now();
    world.start_plugin().await;
    world.start_daemon();
    let [first, second, private] = &mut pods;
    until("the first pod reads again", || same(first, &targets[0], "e") == "same\n").await;
    until("the second pod reads again", || same(second, &targets[1], "e") == "same\n").await;
    eprintln!("read again after {:?}", since.elapsed());
    assert!(since.elapsed() < Duration::from_secs(10));
    // Without propagation: what is complete, and nothing else.
    if complete_files_need_nobody() {
        assert_eq!(same(private, &targets[0], "a"), "same\n");
    }
    assert!(same(private, &targets[0], "e").contains("not connected"), "{}", same(private, &targets[0], "e"));
    // A complete file that was open is still readable.
    for pod in [&mut *first, &mut *private].into_iter().filter(|_| complete_files_need_nobody()) {
        assert_eq!(pod.run("cat <&3 | wc -c"), "3000000\n");
    }

    // What one pod saw goes without taking away what the other one sees.
    world.plugin().unpublish(&dataset.uid, &targets[0]).await.unwrap();
    assert_eq!(same(second, &targets[1], "b/c"), "same\n");
    // And after yet another loss.
    world.stop_plugin().await;
    world.kill_daemon();
    world.start_plugin().await;
    world.start_daemon();
    until("the second pod reads again", || same(second, &targets[1], "b/c") == "same\n").await;
    world.plugin().unpublish(&dataset.uid, &targets[1]).await.unwrap();
    world.plugin().unstage(&dataset.uid, &staging).await.unwrap();
    assert_eq!(world.scratch.mounts(), [world.paths.kubelet_dir.clone()]);
}

async fn a_daemon_that_is_asked_to_end_while_there_is_no_plugin_waits_for_one_to_take_the_session(mode: Wanted) {
    let mut world = World::new(mode, &[FILES]).await;
    world.cache_node.shared.keep_partial.store(true, Ordering::SeqCst);
    world.start_plugin().await;
    world.start_daemon();
    world.stage(0).await.unwrap();
    let readers = Readers::start(2, &world.staging(0), &world.datasets[0]);
    // As when both are replaced at once.
    world.stop_plugin().await;
    let old = world.daemon.take().unwrap();
    let ending = tokio::task::spawn_blocking(|| old.terminate());
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!ending.is_finished());
    world.start_plugin().await;
    ending.await.unwrap();
    world.start_daemon();
    let before = readers.reads();
    until("reads by the next daemon", || readers.reads() > before + 20).await;
    readers.stop();
}

async fn a_daemon_that_is_asked_to_end_leaves_nothing_undone(mode: Wanted) {
    let mut world = World::new(mode, &[FILES]).await;
    world.cache_node.shared.keep_partial.store(true, Ordering::SeqCst);
    world.cache_node.slow(Duration::from_millis(1));
    world.start_plugin().await;
    world.start_daemon();
    world.stage(0).await.unwrap();
    let readers = Readers::start(4, &world.staging(0), &world.datasets[0]);
    for _ in 0..5 {
        let before = readers.reads();
        until("more reads", || readers.reads() > before + 20).await;
        let old: Daemon = world.daemon.take().unwrap();
        // As in a rolling update with a surge: the next one is there before the last one goes.
        world.start_daemon();
        tokio::task::spawn_blocking(|| old.terminate()).await.unwrap();
    }
    readers.stop();
}

async fn reads_wait_while_the_cache_node_is_away_and_then_succeed(mode: Wanted) {
    let mut world = World::new(mode, &[FILES]).await;
    world.cache_node.shared.keep_partial.store(true, Ordering::SeqCst);
    world.cache_node.slow(Duration::from_millis(2));
    world.start_plugin().await;
    world.start_daemon();
    world.stage(0).await.unwrap();
    let readers = Readers::start(4, &world.staging(0), &world.datasets[0]);
    for _ in 0..5 {
        let before = readers.reads();
        until("more reads", || readers.reads() > before + 20).await;
        world.cache_node.down().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        world.cache_node.up().await;
    }
    let before = readers.reads();
    until("reads after its return", || readers.reads() > before + 20).await;
    let (_, longest) = readers.stop();
    assert!(longest >= 250, "reads did not wait: the longest took {longest} ms");
}

async fn the_broker_gives_nothing_to_other_users(mode: Wanted) {
    let mut world = World::new(mode, &[FILES]).await;
    world.start_plugin().await;
    // Root may connect to any socket, but is not the daemon's user.
    let socket = FdSocket::connect(&world.paths.broker_socket()).await.unwrap();
    let hello = forebay_protocol::broker::FromDaemon {
        message: Some(
            forebay_protocol::broker::from_daemon::Message::Hello(forebay_protocol::broker::Hello::default()),
        ),
    };
    // Refused before or after it could be sent.
    let _ = socket.send(&hello, &[]).await;
    let answer = socket.receive::<forebay_protocol::broker::FromPlugin>().await;
    assert!(matches!(answer, Ok(None) | Err(_)), "{answer:?}");
}
