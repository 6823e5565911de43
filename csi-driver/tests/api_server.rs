//! The plugin with a real API server: the upstream CSI conformance suite, pods' inline volumes, and what is told of a lost session and of a cache
//! node that stays away.

#![allow(clippy::unwrap_used)]

#[path = "../../crds/tests/api_server/mod.rs"]
mod api_server;
mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use forebay_crds::{CacheRuntime, Dataset as DatasetObject};
use forebay_csi::mode::Wanted;
use forebay_fuse::NODE_PATIENCE;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::json;
use support::node::Node as CacheNode;
use support::plugin::{RUNTIME, World, run_daemon};
use support::process::{Plugin, capability};
use support::{Dataset, can_mount};

use forebay_protocol::csi;

#[test]
#[ignore = "the daemon's process of the other tests"]
fn daemon_process() {
    run_daemon();
}

const FILES: &[(&str, u64)] = &[("a/b/c", 100_000), ("d", 5000)];

/// The tests' runtimes have one name.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A node whose Dataset is in the API server, with a daemon; its plugin is to be started.
async fn world(client: &Client, namespace: &str) -> World {
    let mut world = World::new(Wanted::default(), &[]).await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for name in [RUNTIME.0, namespace] {
        let object = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        match namespaces.create(&PostParams::default(), &object).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            result => drop(result.unwrap()),
        }
    }
    let runtimes: Api<CacheRuntime> = Api::namespaced(client.clone(), RUNTIME.0);
    let _ = runtimes.delete(RUNTIME.1, &DeleteParams::default()).await;
    let runtime = json!({"metadata": {"name": RUNTIME.1},
        "spec": {"storage": [{"medium": "Disk", "capacity": "1Gi", "hostPath": world.paths.cache_roots[0]}]}});
    runtimes.create(&PostParams::default(), &serde_json::from_value(runtime).unwrap()).await.unwrap();
    let datasets: Api<DatasetObject> = Api::namespaced(client.clone(), namespace);
    let object = json!({"metadata": {"name": "data-0"}, "spec": {
        "runtimeRef": {"namespace": RUNTIME.0, "name": RUNTIME.1}, "sharedWith": {"namespaces": ["friends"]},
        "mounts": [{"path": "/", "sources": [{"url": "s3://bucket/"}]}]}});
    let object = datasets.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    let dataset = Dataset::new(&world.cache(), &object.uid().unwrap(), FILES);
    let version = json!({"id": dataset.catalog_id, "files": 2, "size": "105Ki", "bytes": 105_000, "observedAt": "2026-01-01T00:00:00Z"});
    let status = Patch::Merge(json!({"status": {"version": version}}));
    datasets.patch_status("data-0", &PatchParams::default(), &status).await.unwrap();
    world.cache_node.down().await;
    world.cache_node = CacheNode::start(&World::node_socket(&world.paths), std::slice::from_ref(&dataset)).await;
    world.datasets.push(dataset);
    world.start_daemon();
    world
}

fn start_plugin(world: &World) -> Plugin {
    let kubeconfig = world.scratch.path().join("kubeconfig");
    std::fs::write(&kubeconfig, api_server::kubeconfig().unwrap()).unwrap();
    Plugin::spawn(Plugin::command(world).env("KUBECONFIG", kubeconfig), world)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_upstream_csi_conformance_suite_passes_whole() {
    if !can_mount() {
        return;
    }
    let Some(client) = api_server::client().await else { return };
    let _turn = ONE_AT_A_TIME.lock().await;
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/e2e/bin/csi-sanity");
    if !program.exists() {
        eprintln!("skipped: {} is not built (cargo xtask cluster up builds it)", program.display());
        assert!(std::env::var_os("FOREBAY_REQUIRE_ALL").is_none(), "no test may be skipped");
        return;
    }
    let world = world(&client, "sanity").await;
    let plugin = start_plugin(&world);
    drop(plugin.client().await);
    let before = world.scratch.mounts();
    let mut suite = Command::new(program);
    suite.arg("--endpoint").arg(world.paths.csi_socket()).arg("--folder").arg(world.scratch.folder("sanity"));
    suite.args(["--namespace", "sanity", "--dataset", "data-0", "--uid", &world.datasets[0].uid]);
    suite.args(["--ginkgo.no-color", "--ginkgo.fail-on-empty"]).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || suite.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let ran = said.lines().find(|line| line.starts_with("Ran ")).unwrap();
    let counts = said.lines().find(|line| line.contains(" Passed | ")).unwrap();
    eprintln!("{ran}\n{counts}");
    assert!(counts.contains(" 0 Failed"), "{counts}");
    assert_eq!(world.scratch.mounts(), before, "the suite's volumes are left");
}

/// An inline volume's request as the kubelet makes it.
fn inline(world: &World, id: &str, pod: (&str, &str), attributes: &[(&str, &str)]) -> csi::NodePublishVolumeRequest {
    let mut context: std::collections::HashMap<String, String> =
        attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    for (key, value) in [("pod.namespace", pod.0), ("pod.name", pod.1), ("pod.uid", "u-1"), ("ephemeral", "true")] {
        context.insert(format!("csi.storage.k8s.io/{key}"), value.to_owned());
    }
    let mut capability = capability();
    capability.access_mode.as_mut().unwrap().mode = csi::volume_capability::access_mode::Mode::SingleNodeWriter.into();
    csi::NodePublishVolumeRequest {
        volume_id: id.to_owned(),
        target_path: world.paths.kubelet_dir.join("pods").join(id).join("mount").display().to_string(),
        volume_capability: Some(capability),
        volume_context: context,
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inline_volume_shows_a_sub_tree_and_a_namespace_needs_to_be_let_in() {
    if !can_mount() {
        return;
    }
    let Some(client) = api_server::client().await else { return };
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = world(&client, "inline").await;
    let plugin = start_plugin(&world);
    let mut node = plugin.client().await;
    let nothing = world.scratch.mounts();

    let own = inline(&world, "csi-1", ("inline", "p"), &[("dataset", "data-0"), ("path", "/a/b")]);
    let whole = inline(&world, "csi-2", ("friends", "p"), &[("dataset", "data-0"), ("namespace", "inline")]);
    for _ in 0..2 {
        node.node_publish_volume(own.clone()).await.unwrap();
        node.node_publish_volume(whole.clone()).await.unwrap();
    }
    for path in [Path::new(&own.target_path).join("c"), Path::new(&whole.target_path).join("a/b/c")] {
        let bytes = tokio::task::spawn_blocking(move || std::fs::read(path)).await.unwrap().unwrap();
        assert!(bytes == world.datasets[0].file("a/b/c").bytes(0, 100_000));
    }
    assert!(!Path::new(&own.target_path).join("d").exists());

    for (pod, attributes, code, words) in [
        (
            ("strangers", "p"),
            vec![("dataset", "data-0"), ("namespace", "inline")],
            tonic::Code::PermissionDenied,
            "not shared with namespace strangers",
        ),
        (
            ("inline", "p"),
            vec![("dataset", "data-0"), ("path", "a/x")],
            tonic::Code::FailedPrecondition,
            "has no such folder",
        ),
        (
            ("inline", "p"),
            vec![("dataset", "data-0"), ("path", "d")],
            tonic::Code::FailedPrecondition,
            "has no such folder",
        ),
        (
            ("inline", "p"),
            vec![("dataset", "data-0"), ("path", "../..")],
            tonic::Code::FailedPrecondition,
            "must stay within",
        ),
        (
            ("inline", "p"),
            vec![("dataset", "data-0"), ("version", "1")],
            tonic::Code::FailedPrecondition,
            "version is not known",
        ),
    ] {
        let request = inline(&world, "csi-3", pod, &attributes);
        let refused = node.node_publish_volume(request.clone()).await.unwrap_err();
        assert!(refused.code() == code && refused.message().contains(words), "{refused}");
        assert!(!Path::new(&request.target_path).exists(), "{words}");
    }
    for request in [own, whole] {
        for _ in 0..2 {
            let unpublish = csi::NodeUnpublishVolumeRequest {
                volume_id: request.volume_id.clone(),
                target_path: request.target_path.clone(),
            };
            node.node_unpublish_volume(unpublish).await.unwrap();
        }
        assert!(!Path::new(&request.target_path).exists());
    }
    assert_eq!(world.scratch.mounts(), nothing);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_a_session_is_an_event_on_the_pod() {
    if !can_mount() {
        return;
    }
    let Some(client) = api_server::client().await else { return };
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut world = world(&client, "lost").await;
    let plugin = start_plugin(&world);
    let request = inline(&world, "csi-1", ("lost", "train"), &[("dataset", "data-0")]);
    plugin.client().await.node_publish_volume(request).await.unwrap();
    drop(plugin);
    world.kill_daemon();
    let since = Instant::now();
    world.start_daemon();
    let _plugin = start_plugin(&world);
    let note = event_of_pod(&client, ("lost", "train"), "DatasetSessionLost").await;
    assert!(note.contains("HostToContainer"), "{note}");
    eprintln!("mounted anew and told in {:?}", since.elapsed());
}

/// Waits for an Event on a pod; its text.
async fn event_of_pod(client: &Client, (namespace, pod): (&str, &str), reason: &str) -> String {
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let since = Instant::now();
    loop {
        let all = events.list(&ListParams::default()).await.unwrap();
        if let Some(event) = all.iter().find(|event| event.reason.as_deref() == Some(reason)) {
            let regarding = event.regarding.as_ref().unwrap();
            assert_eq!((regarding.kind.as_deref(), regarding.name.as_deref()), (Some("Pod"), Some(pod)));
            return event.note.clone().unwrap();
        }
        assert!(since.elapsed() < Duration::from_secs(30), "no Event: {all:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_waits_for_the_cache_node_so_long_and_no_longer_and_the_pod_is_told() {
    if !can_mount() {
        return;
    }
    let Some(client) = api_server::client().await else { return };
    let turn = ONE_AT_A_TIME.lock().await;
    let mut world = world(&client, "away").await;
    let plugin = start_plugin(&world);
    let request = inline(&world, "csi-1", ("away", "train"), &[("dataset", "data-0")]);
    let tree = Path::new(&request.target_path).to_owned();
    plugin.client().await.node_publish_volume(request).await.unwrap();
    drop(turn);
    let file = world.datasets[0].file("d").clone();
    world.datasets[0].complete(&file);
    world.cache_node.down().await;
    let since = Instant::now();
    let missing = tree.join("a/b/c");
    let failed = tokio::task::spawn_blocking(move || std::fs::read(missing).unwrap_err()).await.unwrap();
    assert_eq!(failed.raw_os_error(), Some(libc::EIO), "{failed}");
    assert!(since.elapsed() >= NODE_PATIENCE, "it gave up after {:?}", since.elapsed());
    assert!(since.elapsed() < NODE_PATIENCE + Duration::from_secs(30), "it waited {:?}", since.elapsed());
    let note = event_of_pod(&client, ("away", "train"), "CacheNodeAway").await;
    assert!(note.contains("away/data-0"), "{note}");
    // What is complete needs no node, and the rest is read when it is back.
    let path = tree.join("d");
    assert!(tokio::task::spawn_blocking(|| std::fs::read(path).unwrap()).await.unwrap() == file.bytes(0, 5000));
    world.cache_node.up().await;
    let file = world.datasets[0].file("a/b/c").clone();
    let path = tree.join("a/b/c");
    assert!(tokio::task::spawn_blocking(|| std::fs::read(path).unwrap()).await.unwrap() == file.bytes(0, 100_000));
}
