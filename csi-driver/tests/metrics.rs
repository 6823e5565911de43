//! The plugin's pages, as Prometheus and the kubelet ask for them, and the FUSE daemon's counts among them.

// Counts are whole numbers.
#![allow(clippy::unwrap_used, clippy::float_cmp)]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use forebay_csi::mode::Wanted;
use forebay_fuse::status::{self, Question, Unwell};
use support::freeze;
use support::plugin::{World, run_daemon};
use support::process::Plugin;

in_both_modes! {
    what_is_done_is_counted_and_what_is_away_shows
    a_worker_whose_threads_do_not_go_on_is_noticed_and_one_whose_readers_wait_is_not
}

#[test]
#[ignore = "the daemon's process of the other tests"]
fn daemon_process() {
    run_daemon();
}

const FILES: &[(&str, u64)] = &[("a/b", 700_000), ("c", 3_000_000), ("d", 5000)];

/// A staged and published dataset, the plugin, and the address of its pages.
async fn world(mode: Wanted) -> (World, Plugin, SocketAddr) {
    let mut world = World::new(mode, &[FILES]).await;
    // Free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = Plugin::command(&world);
    command.args(["--listen", &address.to_string(), "--objects"]);
    let plugin = Plugin::spawn(command.arg(world.objects_file()), &world);
    world.start_daemon();
    plugin.stage(&world, 0).await.unwrap();
    plugin.publish(&world, 0, &target(&world)).await.unwrap();
    (world, plugin, address)
}

fn target(world: &World) -> std::path::PathBuf {
    world.paths.kubelet_dir.join("target")
}

/// Status and body of a page.
fn page(address: SocketAddr, path: &str) -> (u16, String) {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(connection, "GET {path} HTTP/1.1\r\nhost: plugin\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

/// A metric by name and labels; 0 if it is not there.
fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

/// Waits until the metrics are as they should be.
fn until_metrics(address: SocketAddr, what: &str, right: impl Fn(&str) -> bool) {
    let since = Instant::now();
    loop {
        let (status, text) = page(address, "/metrics");
        assert_eq!(status, 200);
        if right(&text) {
            return;
        }
        assert!(since.elapsed() < Duration::from_secs(30), "{what}:\n{text}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

async fn read(world: &World, path: &str) {
    let (file, expected) = (target(world).join(path), world.datasets[0].file(path).clone());
    let bytes = tokio::task::spawn_blocking(move || std::fs::read(file).unwrap()).await.unwrap();
    assert!(bytes == expected.bytes(0, expected.size as usize), "{path} has other bytes");
}

async fn what_is_done_is_counted_and_what_is_away_shows(mode: Wanted) {
    let (mut world, plugin, address) = world(mode).await;
    read(&world, "a/b").await;
    let shown = if mode == Wanted::Fuse { "Fuse" } else { "Kernel" };
    tokio::task::block_in_place(|| {
        until_metrics(address, "what has been done", |text| {
            let at_least_one = [
                "forebay_csi_operation_duration_seconds_count{operation=\"stage\",result=\"Ok\"}",
                "forebay_csi_operation_duration_seconds_count{operation=\"publish\",result=\"Ok\"}",
                "forebay_csi_sessions_total{event=\"made\"}",
                "forebay_csi_session_served",
                "forebay_csi_cache_node_connected{runtime=\"forebay.pool\"}",
                "forebay_fuse_up",
                "forebay_fuse_requests_total{kind=\"lookup\"}",
                "forebay_fuse_requests_total{kind=\"open\"}",
                "forebay_fuse_requests_total{kind=\"read\"}",
                "forebay_fuse_answers_total{when=\"at_once\"}",
                "forebay_fuse_answers_total{when=\"later\"}",
                "forebay_fuse_opens_total{mode=\"daemon\"}",
                "forebay_fuse_cache_node_connections",
            ];
            at_least_one.iter().all(|name| metric(text, name) >= 1.0)
                && ["volumes", "published_volumes", "mount_mode"]
                    .iter()
                    .all(|name| metric(text, &format!("forebay_csi_{name}{{mode=\"{shown}\"}}")) == 1.0)
                && metric(text, "forebay_fuse_waiting_requests") == 0.0
                && metric(text, "forebay_fuse_errors_total{errno=\"EIO\"}") == 0.0
        });
        // A complete object is read by the kernel alone, or by passthrough.
        let before = page(address, "/metrics").1;
        let reads = |text: &str| metric(text, "forebay_fuse_requests_total{kind=\"read\"}");
        let file = world.datasets[0].file("d").clone();
        world.datasets[0].complete(&file);
        assert!(std::fs::read(target(&world).join("d")).unwrap() == file.bytes(0, 5000));
        let after = page(address, "/metrics").1;
        assert_eq!(reads(&after), reads(&before));
        if mode == Wanted::Fuse {
            assert_eq!(metric(&after, "forebay_fuse_opens_total{mode=\"passthrough\"}"), 1.0, "{after}");
            assert_eq!(metric(&after, "forebay_csi_registrations_total{result=\"registered\"}"), 1.0, "{after}");
        }
    });
    // The plugin is healthy whatever else is away.
    world.kill_daemon();
    world.cache_node.down().await;
    tokio::task::block_in_place(|| {
        until_metrics(address, "the daemon and the cache node to be missed", |text| {
            text.contains("forebay_fuse_up 0")
                && text.contains("forebay_csi_session_served 0")
                && text.contains("forebay_csi_session_mounted 1")
                && text.contains("forebay_csi_cache_node_connected{runtime=\"forebay.pool\"} 0")
        });
        assert_eq!(page(address, "/healthz"), (200, "ok\n".into()));
        assert_eq!(page(address, "/readyz"), (200, "ready\n".into()), "it has the session itself");
        // One that does not answer on its socket is not.
        std::fs::remove_file(world.paths.csi_socket()).unwrap();
        assert_eq!(page(address, "/healthz").0, 503);
    });
    drop(plugin);
}

async fn a_worker_whose_threads_do_not_go_on_is_noticed_and_one_whose_readers_wait_is_not(mode: Wanted) {
    let (world, _plugin, address) = world(mode).await;
    let broker = world.paths.broker_socket();
    let limit = Duration::from_secs(1);
    let probe = || status::probe(&broker, Question::Ready, Duration::from_secs(10), limit);
    // 12 chunks.
    world.cache_node.slow(Duration::from_millis(400));
    let reader = {
        let path = target(&world).join("c");
        tokio::task::spawn_blocking(move || std::fs::read(path).unwrap().len())
    };
    tokio::task::block_in_place(|| {
        until_metrics(address, "a request to wait", |text| metric(text, "forebay_fuse_waiting_requests") >= 1.0);
        let since = Instant::now();
        while since.elapsed() < 2 * limit {
            probe().unwrap();
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    world.cache_node.slow(Duration::ZERO);
    assert_eq!(reader.await.unwrap(), 3_000_000);

    let frozen = freeze::threads(world.daemon.as_ref().unwrap().pid(), "fuse-");
    probe().unwrap();
    let reader = {
        let path = target(&world).join("a/b");
        tokio::task::spawn_blocking(move || std::fs::read(path).unwrap().len())
    };
    tokio::task::block_in_place(|| {
        let since = Instant::now();
        let error = loop {
            match probe() {
                Ok(()) => assert!(since.elapsed() < Duration::from_secs(30), "nothing was noticed"),
                Err(error) => break error,
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        assert!(matches!(&error, Unwell::Stalled { after, .. } if *after > limit), "{error}");
        until_metrics(address, "the stall", |text| metric(text, "forebay_fuse_stalled_seconds") > 1.0);
    });
    drop(frozen);
    assert_eq!(reader.await.unwrap(), 700_000);
    probe().unwrap();
}
