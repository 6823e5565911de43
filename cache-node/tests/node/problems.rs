//! What is wrong is said with reason and message within seconds, and heals without a restart once the cause is gone.

use std::time::Duration;

use crate::common::gateway::Gateway;
use crate::common::process::NodeProcess;
use crate::common::scripted::{Reply, Scripted, page};
use crate::common::{config, content, dataset, file_source, free_address, preload_all, scratch, wait_for};
use forebay_protocol::config::SourceConfig;
use forebay_protocol::local::FailureKind;
use forebay_protocol::node::SourceState;

const UID: &str = "d1";

async fn node(source: SourceConfig) -> NodeProcess {
    let address = free_address([127, 0, 0, 2]);
    NodeProcess::start(|folder| {
        let mut dataset = dataset(UID, source);
        dataset.preload = Some(preload_all());
        config(folder, address, &[], vec![dataset])
    })
    .await
}

/// Waits for the problem with the catalog; its message.
async fn problem(node: &NodeProcess, reason: &str) -> String {
    let wait = node.wait_dataset(reason, UID, |dataset| {
        dataset.catalog_problem.clone().filter(|problem| problem.reason == reason).map(|problem| problem.message)
    });
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("a problem is reported within ten seconds")
}

fn set_source(node: &mut NodeProcess, source: SourceConfig) {
    node.change(|config| config.datasets[0].mounts[0].sources = vec![source]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_bucket_wrong_credentials_and_a_dead_endpoint_each_say_so_and_heal() {
    let Some(mut gateway) = Gateway::start().await else { return };
    gateway.put([("a".to_owned(), content(1, 1000))]).await;
    let good = Gateway::source_at(gateway.address, "");

    let mut missing = good.clone();
    missing.url = "s3://later/".to_owned();
    let mut node = node(missing).await;
    let message = problem(&node, "BucketNotFound").await;
    assert!(message.contains("\"later\"") && message.contains("create it"), "{message}");
    gateway.add_bucket("later");
    node.catalog_id(UID).await;

    let mut wrong = good.clone();
    wrong.credentials.as_mut().unwrap().secret_access_key = "wrong".to_owned();
    set_source(&mut node, wrong.clone());
    let message = problem(&node, "AccessDenied").await;
    assert!(message.contains("SignatureDoesNotMatch") && message.contains("credentials"), "{message}");
    let status = node.dataset(UID).await;
    assert_eq!(status.sources[0].state, i32::from(SourceState::Unhealthy));
    assert_eq!(status.sources[0].problem.as_ref().unwrap().reason, "AccessDenied");

    wrong.credentials.as_mut().unwrap().access_key_id = "nobody".to_owned();
    set_source(&mut node, wrong.clone());
    node.wait_dataset("the other key", UID, |dataset| {
        dataset.catalog_problem.clone().filter(|p| p.message.contains("key ID"))
    })
    .await;
    wrong.credentials = None;
    set_source(&mut node, wrong.clone());
    node.wait_dataset("anonymous", UID, |dataset| {
        dataset.catalog_problem.clone().filter(|p| p.reason == "AccessDenied" && !p.message.contains("key ID"))
    })
    .await;

    set_source(&mut node, SourceConfig { url: "s3:///nothing".to_owned(), ..good.clone() });
    problem(&node, "InvalidSource").await;

    gateway.stop();
    set_source(&mut node, good);
    let message = problem(&node, "EndpointUnreachable").await;
    assert!(message.contains("refused") && message.contains(&gateway.address.to_string()), "{message}");
    gateway.restart().await;
    node.wait_preloaded(UID).await;
    let status = node.dataset(UID).await;
    assert_eq!(status.sources[0].state, i32::from(SourceState::Active));
    assert!(status.catalog_problem.is_none() && status.sources[0].problem.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_change_are_used_at_once_and_the_cache_stays() {
    let Some(gateway) = Gateway::start().await else { return };
    gateway.put((0..20).map(|i| (format!("{i}"), content(i, 1000)))).await;
    let good = Gateway::source_at(gateway.address, "");
    let mut node = node(good.clone()).await;
    node.change(|config| config.datasets[0].preload = None);
    let reader = node.reader(UID).await;
    let files: Vec<_> = reader.files().into_iter().collect();
    reader.read(&files[0].1, 1 << 20).await.unwrap();
    let mut wrong = good.clone();
    wrong.credentials.as_mut().unwrap().secret_access_key = "wrong".to_owned();
    set_source(&mut node, wrong);
    let revision = node.config.revision.clone();
    wait_for("the config", Duration::from_secs(10), || async {
        (node.status().await.revision == revision).then_some(())
    })
    .await;
    reader.read(&files[0].1, 1 << 20).await.unwrap();
    // Whatever the preload had not brought before it was switched off.
    let mut failed = 0;
    for (_, id) in &files {
        if let Err(error) = reader.read(id, 1 << 20).await {
            assert_eq!(error.kind, i32::from(FailureKind::Source), "{error:?}");
            assert!(error.message.contains("access denied"), "{error:?}");
            failed += 1;
        }
    }
    set_source(&mut node, good);
    let revision = node.config.revision.clone();
    wait_for("the config", Duration::from_secs(10), || async {
        (node.status().await.revision == revision).then_some(())
    })
    .await;
    for (_, id) in &files {
        reader.read(id, 1 << 20).await.unwrap();
    }
    eprintln!("{failed} reads failed while the credentials were wrong");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_changes_under_a_catalog_is_an_error_and_never_a_mix() {
    let Some(gateway) = Gateway::start().await else { return };
    gateway.put([("large".to_owned(), content(1, 9 << 20)), ("small".to_owned(), content(2, 10))]).await;
    let mut source = Gateway::source_at(gateway.address, "");
    source.region = None;
    let address = free_address([127, 0, 0, 2]);
    let node = NodeProcess::start(|folder| config(folder, address, &[], vec![dataset(UID, source)])).await;
    let reader = node.reader(UID).await;
    let files = reader.files();
    let open = reader.open(&files["large"]).await.unwrap();
    reader.ensure(open.lease, 0, 10).await.unwrap();
    gateway.put([("large".to_owned(), content(3, 9 << 20))]).await;
    let failed = reader.ensure(open.lease, 5 << 20, 10).await.unwrap_err();
    assert_eq!(failed.kind, i32::from(FailureKind::Changed), "{failed:?}");
    assert!(failed.message.contains("large") && failed.message.contains("changed"), "{failed:?}");
    // What was there before stays readable.
    reader.ensure(open.lease, 0, 10).await.unwrap();
    object_store::ObjectStoreExt::delete(&gateway.store("data"), &"small".into()).await.unwrap();
    let open = reader.open(&files["small"]).await.unwrap();
    let failed = reader.ensure(open.lease, 0, 10).await.unwrap_err();
    assert_eq!(failed.kind, i32::from(FailureKind::Changed), "{failed:?}");
    // A source with one bad object is not a bad source.
    assert_eq!(node.dataset(UID).await.sources[0].state, i32::from(SourceState::Active));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_can_not_be_files_are_listed_skips_and_the_rest_is_there() {
    let (long, longer) = (format!("p/{}", "n".repeat(255)), format!("p/{}", "n".repeat(256)));
    let (name, too_long) = (long[2..].to_owned(), longer.clone());
    let body = move |asked: &crate::common::scripted::Asked| {
        let first = page(
            &[
                ("p/", 0),
                ("p/good%20file", 5),
                ("p/a//b", 1),
                ("p/../x", 1),
                ("p/dir/", 0),
                ("p/c%00d", 1),
                // Not UTF-8.
                ("p/caf%E9/%FF%FE", 5),
                (&long, 1),
                (&longer, 1),
            ],
            Some("t+/="),
        );
        let second = page(&[("p/both", 1), ("p/both/x", 1), ("p/dir/f%0A%C3%BC", 5), ("p/tail/", 7)], None);
        match asked.path.as_str() {
            "/data?encoding-type=url&list-type=2&prefix=p%2F" => Reply::Answer(200, String::new(), first.into_bytes()),
            "/data?continuation-token=t%2B%2F%3D&encoding-type=url&list-type=2&prefix=p%2F" => {
                Reply::Answer(200, String::new(), second.into_bytes())
            }
            "/data/p/good%20file" | "/data/p/dir/f%0A%C3%BC" | "/data/p/caf%E9/%FF%FE" => {
                Reply::Answer(200, "etag: \"e\"\r\n".to_owned(), b"12345".to_vec())
            }
            path if path == "/data/p/both/x" || path == format!("/data/{long}") => {
                Reply::Answer(200, "etag: \"e\"\r\n".to_owned(), b"1".to_vec())
            }
            path => Reply::Answer(404, String::new(), path.as_bytes().to_vec()),
        }
    };
    let server = Scripted::start(body).await;
    let node = node(Gateway::source_at(server.address, "p/")).await;
    node.wait_preloaded(UID).await;
    let catalog = node.dataset(UID).await.catalog.unwrap();
    assert_eq!(catalog.files, 5, "{catalog:?}");
    let mut skipped: Vec<_> = catalog.skipped_keys.iter().map(|key| (key.key.as_str(), key.reason.as_str())).collect();
    skipped.sort_unstable();
    let expected = [
        ("p/../x", "has a path segment . or .."),
        ("p/a//b", "has an empty path segment"),
        ("p/both", "is a folder too"),
        ("p/c\0d", "has a NUL byte"),
        (too_long.as_str(), "has a name longer than 255 bytes"),
        ("p/tail/", "ends in / but has content"),
    ];
    assert_eq!(skipped, expected);
    assert!(catalog.skipped_keys.iter().all(|key| key.url == "s3://data"), "{catalog:?}");
    let reader = node.reader(UID).await;
    // The reader shows what is not UTF-8 as it can.
    let odd = "caf\u{fffd}/\u{fffd}\u{fffd}";
    for (path, bytes) in
        [("good file", "12345"), ("dir/f\nü", "12345"), (odd, "12345"), ("both/x", "1"), (name.as_str(), "1")]
    {
        assert_eq!(reader.read(&reader.files()[path], 100).await.unwrap(), bytes.as_bytes(), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_stumbles_is_asked_again_and_wrong_answers_are_never_kept() {
    const SIZE: usize = (4 << 20) + 1000;
    let whole = content(9, SIZE);
    let served = whole.clone();
    let server = Scripted::start(move |asked| {
        let etag = |etag: &str| format!("etag: \"{etag}\"\r\n");
        if asked.path.contains("list-type") {
            let keys = [
                ("reset", 5),
                ("busy", 5),
                ("short", 5),
                ("broken", SIZE),
                ("long", 5),
                ("other", 5),
                ("ignores", SIZE),
            ];
            return match asked.attempt {
                0 => Reply::Answer(
                    503,
                    "retry-after: 0\r\n".to_owned(),
                    b"<Error><Code>SlowDown</Code></Error>".to_vec(),
                ),
                _ => Reply::Answer(200, String::new(), page(&keys, None).into_bytes()),
            };
        }
        match (asked.path.as_str(), asked.attempt) {
            ("/data/reset", 0) => Reply::Reset,
            ("/data/busy", 0..2) => Reply::Answer(503, String::new(), b"not XML".to_vec()),
            ("/data/short", 0) => Reply::Short(200, etag("e"), 5, b"12".to_vec()),
            ("/data/long", _) => Reply::Answer(200, etag("e"), b"1234567".to_vec()),
            ("/data/other", _) => Reply::Answer(200, etag("f"), b"12345".to_vec()),
            ("/data/ignores", _) => Reply::Answer(200, etag("e"), served.clone()),
            ("/data/broken", attempt) => {
                let (first, last) = asked.range.expect("a chunk is asked for");
                let (range, body) =
                    (format!("{}content-range: bytes {first}-{last}/{SIZE}\r\n", etag("e")), &served[first..=last]);
                match attempt {
                    0 => Reply::Short(206, range, body.len(), body[..body.len() / 2].to_vec()),
                    1 => Reply::Answer(206, range.replace(&format!("/{SIZE}"), "/77"), body.to_vec()),
                    _ => Reply::Answer(206, range, body.to_vec()),
                }
            }
            _ => Reply::Answer(200, etag("e"), b"12345".to_vec()),
        }
    })
    .await;
    let address = free_address([127, 0, 0, 2]);
    let node = NodeProcess::start(|folder| {
        config(folder, address, &[], vec![dataset(UID, Gateway::source_at(server.address, ""))])
    })
    .await;
    let reader = node.reader(UID).await;
    let files = reader.files();
    for path in ["reset", "busy", "short"] {
        assert_eq!(reader.read(&files[path], 100).await.unwrap(), b"12345", "{path}");
    }
    for (path, kind) in
        [("long", FailureKind::Changed), ("other", FailureKind::Changed), ("ignores", FailureKind::Source)]
    {
        let failed = reader.read(&files[path], 100).await.unwrap_err();
        assert_eq!(failed.kind, i32::from(kind), "{path}: {failed:?}");
    }
    let requests = server.requests();
    // Of an answer for another object nothing is believed; asked anew, it is right.
    let first = reader.read(&files["broken"], 1 << 20).await;
    let bytes = match first {
        Ok(bytes) => bytes,
        Err(failed) => {
            assert_eq!(failed.kind, i32::from(FailureKind::Changed), "{failed:?}");
            reader.read(&files["broken"], 1 << 20).await.unwrap()
        }
    };
    assert!(bytes == whole);
    assert!(server.requests() > requests);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_config_file_changes_nothing_and_a_good_one_heals_it() {
    let folder = scratch();
    std::fs::write(folder.path().join("f"), "content").unwrap();
    let mut node = node(file_source(folder.path())).await;
    node.wait_preloaded(UID).await;
    let path = node.folder().join("runtime.yaml");
    std::fs::write(&path, "runtime: {unknown: field}\n").unwrap();
    wait_for("the complaint", Duration::from_secs(10), || async {
        node.log().contains("the one before stays").then_some(())
    })
    .await;
    assert_eq!(node.status().await.revision, "1");
    assert_eq!(node.dataset(UID).await.catalog.unwrap().files, 1);
    node.change(|config| config.datasets[0].name = "renamed".to_owned());
    wait_for("the new config", Duration::from_secs(10), || async {
        (node.status().await.revision == "1+").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_that_is_not_the_published_one_is_a_problem() {
    let folder = scratch();
    std::fs::write(folder.path().join("f"), "content").unwrap();
    let mut node = node(file_source(folder.path())).await;
    let id = node.catalog_id(UID).await;
    node.change(|config| config.datasets[0].catalog = Some("00000000000000000000000000000000".to_owned()));
    let message = problem(&node, "CatalogMismatch").await;
    assert!(message.contains(&id), "{message}");
    node.change(|config| config.datasets[0].catalog = Some(id.clone()));
    assert_eq!(node.catalog_id(UID).await, id);
    node.wait_preloaded(UID).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_does_not_listen_in_plain_text_beyond_this_machine() {
    let mut node = std::process::Command::new(env!("CARGO_BIN_EXE_forebay-node"));
    let folder = scratch();
    let config = config(folder.path(), "0.0.0.0:0".parse().unwrap(), &[], vec![]);
    let path = folder.path().join("runtime.yaml");
    std::fs::write(&path, serde_yaml::to_string(&config).unwrap()).unwrap();
    let output = node.arg("--config").arg(path).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("loopback"), "{error}");
}
