//! A Dataset's life, and what is refused.

use std::time::{Duration, Instant};

use forebay_crds::{CacheRuntime, Dataset};
use forebay_operator::cache_runtime::build::read_config;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::fake_node::start_node;
use crate::world::{condition, create, dataset, gone, namespace, operator, runtime, wait};

#[tokio::test]
async fn a_dataset_whose_secret_is_missing_says_so_and_heals() {
    let Some(client) = operator().await else { return };
    namespace(&client, "missing-secret").await;
    create::<CacheRuntime>(&client, "missing-secret", runtime("pool")).await;
    let source = json!({"url": "s3://notes/", "secretRef": {"name": "cloud"}});
    let datasets = create::<Dataset>(&client, "missing-secret", dataset("images", "pool", source)).await;
    let message = condition(&datasets, "images", "Catalogued", "False", "SecretNotFound").await;
    assert!(message.contains("missing-secret/cloud") && message.contains("AWS_ACCESS_KEY_ID"), "{message}");
    let events = Api::<Event>::namespaced(client.clone(), "missing-secret");
    let deadline = Instant::now() + Duration::from_secs(30);
    let told =
        |event: &Event| event.reason.as_deref() == Some("SecretNotFound") && event.type_.as_deref() == Some("Warning");
    while !events.list(&ListParams::default()).await.unwrap().iter().any(told) {
        assert!(Instant::now() < deadline, "no Event");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let secret = |data: Value| json!({"metadata": {"name": "cloud"}, "stringData": data});
    let secrets = create::<Secret>(&client, "missing-secret", secret(json!({"AWS_ACCESS_KEY_ID": "a"}))).await;
    condition(&datasets, "images", "Catalogued", "False", "SecretIncomplete").await;
    let patch = Patch::Merge(secret(json!({"AWS_SECRET_ACCESS_KEY": "b"})));
    secrets.patch("cloud", &PatchParams::default(), &patch).await.unwrap();
    condition(&datasets, "images", "Catalogued", "False", "WaitingForRuntime").await;
}

#[tokio::test]
async fn a_dataset_whose_runtime_is_missing_says_so_heals_and_can_be_deleted() {
    let Some(client) = operator().await else { return };
    namespace(&client, "missing-runtime").await;
    let source = json!({"url": "s3://notes/"});
    let datasets = create::<Dataset>(&client, "missing-runtime", dataset("images", "pool", source.clone())).await;
    let message = condition(&datasets, "images", "RuntimeAvailable", "False", "RuntimeNotFound").await;
    assert!(message.contains("missing-runtime/pool does not exist"), "{message}");
    create::<Dataset>(&client, "missing-runtime", dataset("other", "nowhere", source)).await;
    condition(&datasets, "other", "Ready", "False", "RuntimeNotFound").await;
    datasets.delete("other", &DeleteParams::default()).await.unwrap();
    gone(&datasets, "other").await;
    create::<CacheRuntime>(&client, "missing-runtime", runtime("pool")).await;
    condition(&datasets, "images", "RuntimeAvailable", "False", "WaitingForNodes").await;
}

#[tokio::test]
async fn a_runtime_serves_only_the_namespaces_it_selects() {
    let Some(client) = operator().await else { return };
    namespace(&client, "tenants").await;
    namespace(&client, "stranger").await;
    let mut pool = runtime("pool");
    pool["spec"]["access"] = json!({"namespaces": {"matchLabels": {"tenant": "true"}}});
    create::<CacheRuntime>(&client, "tenants", pool).await;
    let mut images = dataset("images", "pool", json!({"url": "s3://notes/"}));
    images["spec"]["runtimeRef"]["namespace"] = json!("tenants");
    let datasets = create::<Dataset>(&client, "stranger", images).await;
    let message = condition(&datasets, "images", "Ready", "False", "NotAllowed").await;
    assert!(message.contains("does not serve the namespace stranger"), "{message}");
    let labels = json!({"metadata": {"labels": {"tenant": "true"}}});
    Api::<Namespace>::all(client.clone())
        .patch("stranger", &PatchParams::default(), &Patch::Merge(labels))
        .await
        .unwrap();
    condition(&datasets, "images", "RuntimeAvailable", "False", "WaitingForNodes").await;
}

#[tokio::test]
async fn sources_and_folders_outside_of_what_the_administrator_allowed_are_refused() {
    let Some(client) = operator().await else { return };
    namespace(&client, "folders").await;
    let mut bad = runtime("bad");
    bad["spec"]["storage"][0]["hostPath"] = json!("/etc");
    let runtimes = create::<CacheRuntime>(&client, "folders", bad).await;
    let message = condition(&runtimes, "bad", "Ready", "False", "HostPathNotAllowed").await;
    assert!(message.contains("/var/lib/forebay"), "{message}");
    assert!(Api::<StatefulSet>::namespaced(client.clone(), "folders").get_opt("bad").await.unwrap().is_none());
    create::<CacheRuntime>(&client, "folders", runtime("pool")).await;
    let datasets =
        create::<Dataset>(&client, "folders", dataset("files", "pool", json!({"url": "file:///etc/"}))).await;
    condition(&datasets, "files", "Catalogued", "False", "FileSourceNotAllowed").await;
    runtimes.delete("bad", &DeleteParams::default()).await.unwrap();
    gone(&runtimes, "bad").await;
}

#[tokio::test]
async fn a_dataset_gets_ready_shows_what_is_cached_and_leaves_nothing_behind() {
    let Some(client) = operator().await else { return };
    namespace(&client, "whole").await;
    let runtimes = create::<CacheRuntime>(&client, "whole", runtime("pool")).await;
    let sets = Api::<StatefulSet>::namespaced(client.clone(), "whole");
    assert_eq!(wait(&sets, "pool", |set| set.spec.as_ref()?.replicas).await, 1);
    start_node(&client, "whole", "pool", "127.0.0.77:7070".parse().unwrap()).await;
    condition(&runtimes, "pool", "Ready", "True", "AllNodesReady").await;

    let keys = json!({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"});
    create::<Secret>(&client, "whole", json!({"metadata": {"name": "cloud"}, "stringData": keys})).await;
    let source = |secret: &str| json!({"url": "s3://notes/", "secretRef": {"name": secret}});
    // One that can't be served does not block the other.
    create::<Dataset>(&client, "whole", dataset("broken", "pool", source("none"))).await;
    let datasets = create::<Dataset>(&client, "whole", dataset("images", "pool", source("cloud"))).await;
    condition(&datasets, "images", "Ready", "True", "Ready").await;
    condition(&datasets, "images", "Preloaded", "True", "Complete").await;
    let status = wait(&datasets, "images", |dataset| dataset.status.clone()).await;
    assert_eq!(status.preload.unwrap().progress, "100%");
    assert_eq!((status.version.unwrap().size.as_str(), status.cache.unwrap().percent), ("3Mi", 100));
    condition(&datasets, "broken", "Ready", "False", "SecretNotFound").await;

    // The published version is pinned, and the pods are told of each revision.
    let secrets = Api::<Secret>::namespaced(client.clone(), "whole");
    let config = wait(&secrets, "pool-config", |secret| {
        read_config(secret)
            .filter(|config| config.datasets.len() == 1 && config.datasets[0].catalog.as_deref() == Some("c1"))
    })
    .await;
    assert_eq!(config.members[0].id.as_deref(), Some("id-of-pool"));
    assert_eq!(config.datasets[0].mounts[0].sources[0].credentials.as_ref().unwrap().access_key_id, "a");
    let pods = Api::<Pod>::namespaced(client.clone(), "whole");
    wait(&pods, "pool-0", |pod| {
        let revision = pod.metadata.annotations.as_ref()?.get("forebay.dev/config-revision")?;
        (*revision == config.revision).then_some(())
    })
    .await;

    // What has settled is not written again and again.
    let version = datasets.get("images").await.unwrap().metadata.resource_version;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(datasets.get("images").await.unwrap().metadata.resource_version, version);

    // A Secret that vanishes takes nothing from a Dataset that nodes hold.
    secrets.delete("cloud", &DeleteParams::default()).await.unwrap();
    condition(&datasets, "images", "SourcesHealthy", "False", "SecretNotFound").await;
    condition(&datasets, "images", "Ready", "True", "Ready").await;
    let config = read_config(&secrets.get("pool-config").await.unwrap()).unwrap();
    assert_eq!(config.datasets.len(), 1);

    let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), "whole");
    let volumes = Api::<PersistentVolume>::all(client.clone());
    let volume = wait(&claims, "images", |claim| claim.spec.as_ref()?.volume_name.clone()).await;
    let handle =
        wait(&volumes, &volume, |volume| Some(volume.spec.as_ref()?.csi.as_ref()?.volume_handle.clone())).await;
    assert_eq!(Some(handle), datasets.get("images").await.unwrap().metadata.uid);

    // A runtime that is referred to stays; then both go.
    runtimes.delete("pool", &DeleteParams::default()).await.unwrap();
    let message = condition(&runtimes, "pool", "Deleting", "True", "DatasetsRefer").await;
    assert!(message.contains("whole/broken, whole/images"), "{message}");
    for name in ["images", "broken"] {
        datasets.delete(name, &DeleteParams::default()).await.unwrap();
        gone(&datasets, name).await;
        gone(&claims, name).await;
    }
    gone(&volumes, &volume).await;
    gone(&runtimes, "pool").await;
}
