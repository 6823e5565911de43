//! Where the kernel can't send requests again: what a killed daemon was doing is in the session's log of requests, and is done by the next one, or
//! by another that lives.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use forebay_csi::mode::Wanted;
use support::plugin::{Daemon, World, run_daemon};
use support::{can_mount_in, patience, until};

#[test]
#[ignore = "the daemon's process of the other tests"]
fn daemon_process() {
    run_daemon();
}

const FILES: &[(&str, u64)] = &[("a", 600_000), ("b", 5000), ("c", 900_000), ("d", 300_000)];

/// A staged dataset, served by a daemon that keeps a log if it has to.
async fn world(without_resend: bool) -> Option<World> {
    if !can_mount_in(Wanted::Fuse) {
        return None;
    }
    let mut world = World::new(Wanted::Fuse, &[FILES]).await;
    world.without_resend = without_resend;
    world.cache_node.shared.keep_partial.store(true, Ordering::SeqCst);
    world.start_plugin().await;
    world.start_daemon();
    world.stage(0).await.unwrap();
    Some(world)
}

/// Processes that each read one of the files.
fn readers(world: &World) -> Vec<Child> {
    let paths = FILES.iter().map(|(name, _)| world.staging(0).join(name));
    paths.map(|path: PathBuf| Command::new("cat").arg(path).stdout(Stdio::piped()).spawn().unwrap()).collect()
}

/// Whether all of them wait for an answer of the daemon, none for another reader.
fn wait_for_answers(readers: &[Child]) -> bool {
    readers.iter().all(|reader| {
        let state = std::fs::read_to_string(format!("/proc/{}/wchan", reader.id())).unwrap_or_default();
        state.contains("request_wait_answer") || state.contains("folio_wait") || state.contains("page_wait")
    })
}

/// Whether it reads requests.
fn serves(daemon: &Daemon) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).into_iter().flatten().flatten();
    threads.filter_map(|it| std::fs::read_to_string(it.path().join("comm")).ok()).any(|name| name == "fuse-1\n")
}

/// Waits for their end; each must have read its file.
async fn finish(world: &World, readers: Vec<Child>) {
    for (mut reader, file) in readers.into_iter().zip(world.datasets[0].files.clone()) {
        let read = tokio::task::spawn_blocking(move || {
            let mut read = Vec::new();
            reader.stdout.take().unwrap().read_to_end(&mut read).unwrap();
            (reader.wait().unwrap(), read)
        });
        let (status, read) =
            tokio::time::timeout(patience(Duration::from_secs(30)), read).await.expect("a reader hangs").unwrap();
        assert!(status.success() && read == file.bytes(0, file.size as usize), "{}: {status}", file.path);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_wait_survive_the_daemon_and_the_ones_after_it() {
    let Some(mut world) = world(true).await else { return };
    world.cache_node.down().await;
    let readers = readers(&world);
    until("all wait", || wait_for_answers(&readers)).await;
    for _ in 0..5 {
        world.kill_daemon();
        world.start_daemon();
        until("the next daemon serves", || serves(world.daemon.as_ref().unwrap())).await;
    }
    world.cache_node.up().await;
    finish(&world, readers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_daemon_was_doing_is_done_by_another_that_lives() {
    let Some(mut world) = world(true).await else { return };
    world.cache_node.down().await;
    let readers = readers(&world);
    until("all wait", || wait_for_answers(&readers)).await;
    // As in a rolling update with a surge, in which the old one is then killed.
    let other = world.another_daemon();
    until("the other serves too", || serves(&other)).await;
    world.kill_daemon();
    world.cache_node.up().await;
    finish(&world, readers).await;
    world.daemon = Some(other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_waits_for_what_a_killed_daemon_was_doing_can_be_killed() {
    let Some(mut world) = world(true).await else { return };
    world.cache_node.down().await;
    let mut readers = readers(&world);
    until("all wait", || wait_for_answers(&readers)).await;
    world.kill_daemon();
    for reader in &mut readers {
        reader.kill().unwrap();
    }
    world.start_daemon();
    until("all have ended", || readers.iter_mut().all(|reader| reader.try_wait().unwrap().is_some())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_has_no_log_gets_one_and_the_next_plugin_has_it_too() {
    // As a daemon of an earlier version.
    let Some(mut world) = world(false).await else { return };
    world.kill_daemon();
    world.without_resend = true;
    world.start_daemon();
    until("the next daemon serves", || serves(world.daemon.as_ref().unwrap())).await;
    world.stop_plugin().await;
    let broker = world.start_plugin().await;
    until("the daemon has given the session back", || !broker.awaits_session()).await;
    world.cache_node.down().await;
    let readers = readers(&world);
    until("all wait", || wait_for_answers(&readers)).await;
    // It leaves nothing to a parent: the next one has what the plugin kept.
    world.kill_daemon();
    world.start_daemon();
    world.cache_node.up().await;
    finish(&world, readers).await;
}
