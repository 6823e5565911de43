//! What a real API server says to good and bad objects: the CRDs are accepted (CEL cost limits included), every rule refuses what it is for with
//! its own message, and nothing else is refused.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "test support")]

mod api_server;

use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

fn api(client: &Client, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("forebay.dev", "v1alpha1", kind));
    Api::namespaced_with(client.clone(), "default", &resource)
}

fn object(kind: &str, name: &str, spec: Value) -> DynamicObject {
    let value = json!({"apiVersion": "forebay.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    serde_json::from_value(value).unwrap()
}

fn dataset() -> Value {
    json!({
        "runtimeRef": {"name": "pool"},
        "mounts": [{"path": "/images", "sources": [{"url": "s3://notes/2026/", "endpoint": "https://s3.example.com", "secretRef": {"name": "cloud"}}]}],
    })
}

fn runtime() -> Value {
    json!({"storage": [{"medium": "Disk", "capacity": "2Ti", "hostPath": "/var/lib/forebay/nvme0"}]})
}

/// `spec` with the value at a JSON pointer replaced or added.
fn with(mut spec: Value, pointer: &str, value: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    spec.pointer_mut(parent).unwrap()[name] = value;
    spec
}

/// Asks the server without storing anything: the refusal's message, or none.
async fn refusal(client: &Client, kind: &str, name: &str, spec: Value) -> Option<String> {
    let parameters = PostParams { dry_run: true, ..PostParams::default() };
    match api(client, kind).create(&parameters, &object(kind, name, spec)).await {
        Ok(_) => None,
        Err(kube::Error::Api(status)) => Some(status.message),
        Err(error) => panic!("{error}"),
    }
}

async fn refuses(client: &Client, kind: &str, cases: Vec<(Value, &str)>) {
    for (spec, expected) in cases {
        let refusal = refusal(client, kind, "test", spec.clone()).await;
        assert!(
            refusal.as_ref().is_some_and(|message| message.contains(expected)),
            "{spec}\nexpected: {expected}\n   found: {refusal:?}"
        );
    }
}

async fn accepts(client: &Client, kind: &str, cases: Vec<Value>) {
    for spec in cases {
        assert_eq!(refusal(client, kind, "test", spec.clone()).await, None, "{spec}");
    }
}

#[tokio::test]
async fn a_dataset_of_what_this_release_supports_is_accepted() {
    let Some(client) = api_server::client().await else { return };
    let mount = |path: &str, url: &str| json!({"path": path, "sources": [{"url": url}]});
    let many: Vec<Value> = (0..32).map(|i| mount(&format!("/folder-{i}"), "s3://bucket/prefix/")).collect();
    accepts(
        &client,
        "Dataset",
        vec![
            dataset(),
            with(dataset(), "/mounts", json!([mount("/", "s3://bucket")])),
            with(
                dataset(),
                "/mounts",
                json!([mount("/a/b", "file:///mnt/data/"), mount("/a/c d", "file:///mnt/data")]),
            ),
            with(dataset(), "/mounts", json!(many)),
            with(dataset(), "/mounts/0/path", json!("/..images/.hidden...")),
            with(dataset(), "/mounts/0/sources/0/endpoint", json!("http://198.18.0.1:7480")),
            with(dataset(), "/mounts/0/sources/0/endpoint", json!("https://store.example.com/base/")),
            with(dataset(), "/version", json!("Snapshot")),
            with(dataset(), "/placement", json!({"mode": "Auto", "replicas": 1})),
            with(dataset(), "/placement", json!({})),
            with(dataset(), "/placement", json!({"mode": "Auto", "replicas": 16})),
            with(dataset(), "/placement", json!({"mode": "Sharded", "replicas": 2})),
            with(dataset(), "/placement", json!({"mode": "Everywhere"})),
            with(dataset(), "/pin", json!({})),
            with(dataset(), "/pin", json!({"include": ["labels/**"], "newerThan": "168h"})),
            with(dataset(), "/capacity", json!("0.5Gi")),
            with(dataset(), "/capacity", json!("500Gi")),
            with(dataset(), "/capacity", json!(500)),
            with(dataset(), "/preload", json!({})),
            with(dataset(), "/preload", json!({"include": ["**/*.jpg"], "exclude": ["tmp/**"]})),
            with(dataset(), "/access", json!({"uid": 1000, "gid": 1000, "fileMode": "0444", "dirMode": "555"})),
            with(dataset(), "/runtimeRef/namespace", json!("forebay")),
        ],
    )
    .await;
}

#[tokio::test]
async fn what_a_dataset_can_not_have_yet_is_refused_by_name() {
    let Some(client) = api_server::client().await else { return };
    let source = "/mounts/0/sources/0";
    let url = |url: &str| with(dataset(), &format!("{source}/url"), json!(url));
    refuses(
        &client,
        "Dataset",
        vec![
            (
                with(dataset(), "/version", json!("Follow")),
                r#"spec.version: Unsupported value: "Follow": supported values: "Snapshot""#,
            ),
            (with(dataset(), "/version", json!({"Follow": {"interval": "10m"}})), "Follow"),
            (with(dataset(), "/preload", json!({"newerThan": "168h"})), "spec.preload.newerThan is not supported yet"),
            (
                with(dataset(), "/preload", json!({"schedule": "0 3 * * *"})),
                "spec.preload.schedule is not supported yet",
            ),
            (with(dataset(), "/preload", json!({"priority": 50})), "spec.preload.priority is not supported yet"),
            (with(dataset(), &format!("{source}/link"), json!("line-a")), "sources[].link is not supported yet"),
            (
                with(dataset(), "/mounts/0/sources", json!([{"url": "s3://a-bucket/"}, {"url": "s3://b-bucket/"}])),
                "more than one source of a mount is not supported yet",
            ),
            (url("gs://bucket/"), "gs://, az://, hdfs:// and https:// are not supported yet"),
            (url("az://bucket/"), "are not supported yet"),
            (url("hdfs://nn:8020/labels"), "are not supported yet"),
            (url("https://example.com/data/"), "are not supported yet"),
        ],
    )
    .await;
}

#[tokio::test]
async fn what_is_wrong_in_a_dataset_is_refused_with_the_field_and_an_example() {
    let Some(client) = api_server::client().await else { return };
    let source = "/mounts/0/sources/0";
    let url = |url: &str| with(dataset(), &format!("{source}/url"), json!(url));
    let endpoint = |endpoint: &str| with(dataset(), &format!("{source}/endpoint"), json!(endpoint));
    let path = |path: &str| with(dataset(), "/mounts/0/path", json!(path));
    let file = json!({"url": "file:///mnt/data", "region": "r1"});
    let twice =
        json!([{"path": "/a", "sources": [{"url": "s3://abc"}]}, {"path": "/a", "sources": [{"url": "s3://abd"}]}]);
    let mut cases = vec![
        (url("ftp://host/folder"), "url must begin with s3:// or file://"),
        (url("notes/2026"), "url must begin with s3:// or file://"),
        (url("s3:///prefix"), "url must be s3://BUCKET"),
        (url("file://relative"), "url must be file:// and an absolute"),
        (url("file:///a/../b"), "url must be file:// and an absolute"),
        (
            with(dataset(), "/mounts/0/sources", json!([file])),
            "a file:// source takes no endpoint, region or secretRef",
        ),
        (endpoint("s3.example.com"), "endpoint must be an http:// or https:// URL"),
        (endpoint("https://user@host"), "endpoint must be an http:// or https:// URL"),
        (with(dataset(), "/mounts", twice), "Duplicate value"),
        (with(dataset(), "/mounts", json!([])), "spec.mounts"),
        (with(dataset(), "/mounts/0/sources", json!([])), "sources"),
        (with(dataset(), "/capacity", json!("lots")), "spec.capacity"),
        (with(dataset(), "/capacity", json!("-5Gi")), "spec.capacity"),
        (with(dataset(), "/capacity", json!(-5)), "spec.capacity"),
        (with(dataset(), "/capacity", json!("0Gi")), "spec.capacity"),
        (with(dataset(), "/capacity", json!("0.0")), "spec.capacity"),
        (
            with(dataset(), "/placement", json!({"mode": "Everywhere", "replicas": 2})),
            "spec.placement.replicas contradicts mode Everywhere",
        ),
        (with(dataset(), "/placement", json!({"mode": "All"})), r#"supported values: "Auto", "Sharded", "Everywhere""#),
        (with(dataset(), "/placement", json!({"replicas": 0})), "spec.placement.replicas"),
        (with(dataset(), "/placement", json!({"replicas": 17})), "spec.placement.replicas"),
        (with(dataset(), "/pin", json!({"include": [""]})), "spec.pin.include[0]"),
        (with(dataset(), "/pin", json!({"newerThan": "7 days"})), "spec.pin.newerThan"),
        (with(dataset(), "/access", json!({"fileMode": "rw"})), "spec.access.fileMode"),
        (with(dataset(), "/access", json!({"uid": -1})), "spec.access.uid"),
        (json!({"mounts": [{"path": "/", "sources": [{"url": "s3://abc"}]}]}), "spec.runtimeRef"),
    ];
    for bad in ["images", "/images/", "//", "/a//b", "/a/./b", "/..", "/a/..", "/a\nb"] {
        cases.push((path(bad), "path must be absolute and normalised"));
    }
    refuses(&client, "Dataset", cases).await;
    let long = "a".repeat(181);
    let message = refusal(&client, "Dataset", &long, dataset()).await.unwrap();
    assert!(message.contains("metadata.name must have at most 180 characters"), "{message}");
}

#[tokio::test]
async fn an_unknown_field_is_refused_under_strict_validation_as_kubectl_apply_asks_for() {
    let Some(client) = api_server::client().await else { return };
    let datasets = api(&client, "Dataset");
    let parameters = PatchParams { dry_run: true, ..PatchParams::apply("test").validation_strict() };
    let dataset = object("Dataset", "test", with(dataset(), "/preloads", json!({})));
    let error = datasets.patch("test", &parameters, &Patch::Apply(&dataset)).await.unwrap_err().to_string();
    assert!(error.contains("spec.preloads"), "{error}");
}

#[tokio::test]
async fn what_a_dataset_shows_is_immutable_once_it_has_a_version_and_its_way_there_is_not() {
    let Some(client) = api_server::client().await else { return };
    let datasets = api(&client, "Dataset");
    let name = "transitions";
    datasets.create(&PostParams::default(), &object("Dataset", name, dataset())).await.unwrap();
    let merge = async |patch: Value| match datasets.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    };
    let mounts = |url: &str, endpoint: &str| json!({"spec": {"mounts": [{"path": "/images", "sources": [{"url": url, "endpoint": endpoint}]}]}});
    assert_eq!(
        merge(mounts("s3://other/", "https://wrong.example.com")).await,
        None,
        "before there is a version all may change, so that a wrong endpoint can be healed"
    );
    let refusal = merge(json!({"spec": {"runtimeRef": {"name": "other"}}})).await.unwrap_or_default();
    assert!(refusal.contains("spec.runtimeRef is immutable"), "{refusal}");

    let status =
        json!({"status": {"phase": "Ready", "version": {"id": "0123", "files": 1, "size": "1Ki", "bytes": 1024}}});
    datasets.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    for other in
        [mounts("s3://third/", "https://wrong.example.com"), mounts("s3://other/", "https://right.example.com")]
    {
        let refusal = merge(other).await.unwrap_or_default();
        assert!(refusal.contains("paths, URLs and endpoints are immutable once"), "{refusal}");
    }
    let refusal = merge(json!({"spec": {"access": {"uid": 5}}})).await.unwrap_or_default();
    assert!(refusal.contains("spec.access is immutable once"), "{refusal}");
    assert_eq!(
        merge(json!({"spec": {"capacity": "1Gi", "preload": {}, "placement": {"mode": "Everywhere"}, "pin": {}}}))
            .await,
        None,
        "capacity, preload, placement and pin may change"
    );
    let status = json!({"status": {"version": {"files": 2}}});
    datasets.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

#[tokio::test]
async fn a_cache_runtime_of_what_this_release_supports_is_accepted() {
    let Some(client) = api_server::client().await else { return };
    let nodes = json!({
        "selector": {"matchLabels": {"nvidia.com/gpu.present": "true"}, "matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "replicas": 8,
    });
    accepts(
        &client,
        "CacheRuntime",
        vec![
            runtime(),
            with(runtime(), "/nodes", nodes),
            with(runtime(), "/access", json!({"namespaces": {"matchLabels": {"forebay.dev/tenant": "true"}}})),
            with(runtime(), "/gateway", json!({"s3": {"enabled": false}})),
            with(runtime(), "/links", json!([])),
            with(runtime(), "/nodes", json!({"memory": "64Mi"})),
            with(runtime(), "/nodes", json!({"memory": 67_108_864})),
            with(runtime(), "/nodes", json!({"memory": "2Gi"})),
            with(runtime(), "/storage", json!([{"medium": "Memory", "capacity": "64Gi"}])),
            with(
                runtime(),
                "/storage",
                json!([{"medium": "Memory", "capacity": "64Gi"}, {"medium": "Disk", "capacity": "1Ti", "hostPath": "/var/lib/forebay/b"}]),
            ),
            with(
                runtime(),
                "/access",
                json!({"quotas": [{"namespace": "training", "capacity": "1Ti"}, {"namespace": "eval", "capacity": 500}]}),
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn what_a_cache_runtime_can_not_have_is_refused_by_name() {
    let Some(client) = api_server::client().await else { return };
    let disk = json!({"medium": "Disk", "capacity": "1Ti", "hostPath": "/var/lib/forebay/b"});
    let memory = json!({"medium": "Memory", "capacity": "64Gi"});
    let tier = |tier: Value| with(runtime(), "/storage", json!([tier]));
    let host_path = |path: &str| tier(json!({"medium": "Disk", "capacity": "1Ti", "hostPath": path}));
    refuses(
        &client,
        "CacheRuntime",
        vec![
            (
                tier(json!({"medium": "Memory", "capacity": "64Gi", "hostPath": "/dev/shm/forebay"})),
                "medium Memory has no hostPath",
            ),
            (with(runtime(), "/storage", json!([disk, disk])), "other combinations are not supported yet"),
            (with(runtime(), "/storage", json!([disk, memory])), "other combinations are not supported yet"),
            (with(runtime(), "/storage", json!([memory, memory, disk])), "other combinations are not supported yet"),
            (
                tier(json!({"medium": "Disk", "capacity": "1Ti", "volumeClaimTemplate": {"spec": {}}})),
                "volumeClaimTemplate is not supported yet",
            ),
            (tier(json!({"medium": "Disk", "capacity": "1Ti"})), "hostPath is required"),
            (tier(json!({"medium": "Disk", "hostPath": "/var/lib/forebay"})), "capacity"),
            (host_path("/var/lib/../../etc"), "hostPath must be absolute and normalised"),
            (host_path("/"), "hostPath must be absolute and normalised"),
            (host_path("data"), "hostPath must be absolute and normalised"),
            (
                with(runtime(), "/links", json!([{"name": "line-a", "bandwidth": "10G"}])),
                "spec.links is not supported yet",
            ),
            (
                with(
                    runtime(),
                    "/access",
                    json!({"quotas": [{"namespace": "a", "capacity": "1Ti"}, {"namespace": "a", "capacity": "2Ti"}]}),
                ),
                "Duplicate value",
            ),
            (
                with(runtime(), "/access", json!({"quotas": [{"namespace": "a", "capacity": "0"}]})),
                "spec.access.quotas[0].capacity",
            ),
            (with(runtime(), "/access", json!({"quotas": [{"namespace": "a"}]})), "spec.access.quotas[0].capacity"),
            (with(runtime(), "/nodes", json!({"memory": "63Mi"})), "spec.nodes.memory must be at least 64Mi"),
            (with(runtime(), "/nodes", json!({"memory": 1_000_000})), "spec.nodes.memory must be at least 64Mi"),
            (with(runtime(), "/nodes", json!({"memory": "much"})), "spec.nodes.memory"),
            (with(runtime(), "/gateway", json!({"s3": {"enabled": true}})), "spec.gateway.s3 is not supported yet"),
            (
                with(runtime(), "/gateway", json!({"webhdfs": {"enabled": true}})),
                "spec.gateway.webhdfs is not supported yet",
            ),
            (
                with(runtime(), "/nodes", json!({"selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}})),
                "the operators In and NotIn need values",
            ),
        ],
    )
    .await;
    let message = refusal(&client, "CacheRuntime", "a.b", runtime()).await.unwrap();
    assert!(message.contains("metadata.name must have at most 45 characters"), "{message}");
}

#[tokio::test]
async fn where_a_cache_runtime_keeps_content_is_immutable() {
    let Some(client) = api_server::client().await else { return };
    let runtimes = api(&client, "CacheRuntime");
    let spec = with(runtime(), "/nodes", json!({"selector": {"matchLabels": {"a": "b"}}}));
    runtimes.create(&PostParams::default(), &object("CacheRuntime", "transitions", spec)).await.unwrap();
    for (patch, expected) in [
        (
            json!({"spec": {"storage": [{"medium": "Disk", "capacity": "3Ti", "hostPath": "/var/lib/forebay/nvme0"}]}}),
            "spec.storage is immutable",
        ),
        (json!({"spec": {"nodes": {"selector": {"matchLabels": {"a": "c"}}}}}), "spec.nodes.selector is immutable"),
        (json!({"spec": {"nodes": null}}), "spec.nodes.selector is immutable"),
        (json!({"spec": {"nodes": {"replicas": 3, "memory": "1Gi"}}}), ""),
        (json!({"spec": {"access": {"quotas": [{"namespace": "training", "capacity": "1Ti"}]}}}), ""),
    ] {
        let result = runtimes.patch("transitions", &PatchParams::default(), &Patch::Merge(&patch)).await;
        match (result, expected) {
            (Ok(_), "") => {}
            (Err(error), expected) if !expected.is_empty() => {
                assert!(error.to_string().contains(expected), "{patch}: {error}");
            }
            (result, _) => panic!("{patch}: {result:?}"),
        }
    }
}

#[tokio::test]
async fn the_kind_preload_is_refused() {
    let Some(client) = api_server::client().await else { return };
    refuses(
        &client,
        "Preload",
        vec![(json!({"datasetRef": {"name": "images"}}), "the kind Preload is not supported yet")],
    )
    .await;
}
