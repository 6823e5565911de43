//! Datasets, members and whole caches that come and go while a node runs.

use std::time::Duration;

use crate::common::process::NodeProcess;
use crate::common::{config, content, dataset, file_source, free_address, preload_all, scratch, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_dataset_leaves_nothing_but_what_another_one_shares() {
    let source = scratch();
    for i in 0..10 {
        std::fs::write(source.path().join(format!("f{i}")), content(i, 10_000)).unwrap();
    }
    let address = free_address([127, 0, 0, 2]);
    let mut node = NodeProcess::start(|folder| {
        let mut all = dataset("all", file_source(source.path()));
        all.preload = Some(preload_all());
        let mut renamed = dataset("renamed", file_source(source.path()));
        renamed.mounts[0].path = "/below/here".to_owned();
        config(folder, address, &[], vec![all, renamed])
    })
    .await;
    node.wait_preloaded("all").await;
    // The same objects, whoever brought them.
    node.wait_dataset("what is shared", "renamed", |dataset| (dataset.cached_bytes == 100_000).then_some(())).await;
    let cache = node.config.node.cache_dir.clone();
    node.change(|config| config.datasets.retain(|dataset| dataset.uid != "all"));
    wait_for("the dataset to be gone", Duration::from_secs(20), || async {
        (node.status().await.datasets.len() == 1).then_some(())
    })
    .await;
    wait_for("its catalog to be gone", Duration::from_secs(20), || async {
        (!cache.join("catalogs/all").exists()).then_some(())
    })
    .await;
    assert_eq!(node.dataset("renamed").await.cached_bytes, 100_000);
    let reader = node.reader("renamed").await;
    assert_eq!(reader.read(&reader.files()["below/here/f3"], 1000).await.unwrap(), content(3, 10_000));
    drop(reader);
    node.change(|config| config.datasets.clear());
    wait_for("the cache to be empty", Duration::from_secs(20), || async {
        (node.status().await.cached_bytes == 0).then_some(())
    })
    .await;
    let objects = std::fs::read_dir(cache.join("objects"))
        .unwrap()
        .flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
    assert_eq!(objects.count(), 0);
    assert_eq!(std::fs::read_dir(cache.join("catalogs")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn erasing_empties_the_folder_says_so_and_can_be_taken_back() {
    let source = scratch();
    std::fs::write(source.path().join("f"), content(1, 5 << 20)).unwrap();
    let address = free_address([127, 0, 0, 2]);
    let mut node = NodeProcess::start(|folder| {
        let mut dataset = dataset("d", file_source(source.path()));
        dataset.preload = Some(preload_all());
        config(folder, address, &[], vec![dataset])
    })
    .await;
    node.wait_preloaded("d").await;
    let first = node.status().await;
    assert!(!first.erased);
    node.change(|config| config.erase = true);
    wait_for("the erasure", Duration::from_secs(20), || async { node.status().await.erased.then_some(()) }).await;
    assert_eq!(std::fs::read_dir(&node.config.node.cache_dir).unwrap().count(), 0);
    // It stays so over a restart.
    assert!(node.terminate().await);
    node.restart().await;
    assert!(node.status().await.erased);
    assert_eq!(std::fs::read_dir(&node.config.node.cache_dir).unwrap().count(), 0);
    node.change(|config| config.erase = false);
    node.wait_preloaded("d").await;
    let status = node.status().await;
    assert!(!status.erased && status.node_id != first.node_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_member_gets_the_catalog_and_takes_over_its_share() {
    let source = scratch();
    let bytes: u64 = (0..40)
        .map(|i| {
            std::fs::write(source.path().join(format!("f{i}")), content(i, 50_000)).unwrap();
            50_000
        })
        .sum();
    let addresses = [free_address([127, 0, 0, 2]), free_address([127, 0, 0, 3])];
    let make = |address, members: Vec<_>| {
        let mut dataset = dataset("d", file_source(source.path()));
        dataset.preload = Some(preload_all());
        move |folder: &std::path::Path| config(folder, address, &members, vec![dataset])
    };
    let mut first = NodeProcess::start(make(addresses[0], addresses[..1].to_vec())).await;
    first.wait_preloaded("d").await;
    assert_eq!(first.dataset("d").await.owned_cached_bytes, bytes);
    let id = first.catalog_id("d").await;
    // The source has changed by now, but a catalog once made stays.
    std::fs::write(source.path().join("late"), "x").unwrap();
    let second = NodeProcess::start(make(addresses[1], addresses.to_vec())).await;
    first.change(|config| {
        let mut member = config.members[0].clone();
        member.address = addresses[1];
        config.members.push(member);
    });
    assert_eq!(second.catalog_id("d").await, id);
    second.wait_preloaded("d").await;
    first.wait_dataset("the new shares", "d", |dataset| (dataset.owned_cached_bytes < bytes).then_some(())).await;
    let (a, b) = (first.dataset("d").await, second.dataset("d").await);
    assert_eq!(a.owned_cached_bytes + b.owned_cached_bytes, bytes, "{a:?} {b:?}");
    assert_eq!(a.preload.unwrap().total_files + b.preload.unwrap().total_files, 40);
    assert_eq!(a.cached_bytes, bytes, "what is no longer owned stays as a copy");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_matches_is_preloaded_and_what_does_not_fit_says_so() {
    let source = scratch();
    std::fs::create_dir_all(source.path().join("images/x")).unwrap();
    for (i, name) in ["images/a.png", "images/x/b.png", "images/x/c.txt", "d.png"].iter().enumerate() {
        std::fs::write(source.path().join(name), content(i as u64, 3 << 20)).unwrap();
    }
    let address = free_address([127, 0, 0, 2]);
    let mut node = NodeProcess::start(|folder| {
        let mut dataset = dataset("d", file_source(source.path()));
        dataset.preload = Some(forebay_protocol::config::PreloadConfig {
            include: vec!["images/**/*.png".to_owned()],
            exclude: vec!["**/b.*".to_owned()],
        });
        config(folder, address, &[], vec![dataset])
    })
    .await;
    node.wait_preloaded("d").await;
    let preload = node.dataset("d").await.preload.unwrap();
    assert_eq!((preload.total_files, preload.loaded_files, preload.total_bytes), (1, 1, 3 << 20));
    node.change(|config| {
        config.datasets[0].preload = Some(preload_all());
        config.datasets[0].capacity_bytes = Some(8 << 20);
    });
    let preload = node
        .wait_dataset("the failure", "d", |dataset| {
            dataset.preload.clone().filter(|preload| preload.failed_files == 2 && preload.loaded_files == 2)
        })
        .await;
    assert_eq!((preload.total_files, preload.loaded_files, preload.running), (4, 2, true));
    assert!(preload.failures[0].reason.contains("no room"), "{preload:?}");
    node.change(|config| config.datasets[0].capacity_bytes = None);
    node.wait_preloaded("d").await;
    assert_eq!(node.dataset("d").await.preload.unwrap().failed_files, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_member_that_is_to_list_is_dead_the_next_one_lists() {
    use forebay_cache_node::fetch::placement::Members;
    let source = scratch();
    std::fs::write(source.path().join("f"), "content").unwrap();
    let addresses = [free_address([127, 0, 0, 2]), free_address([127, 0, 0, 3])];
    let node = NodeProcess::start(|folder| {
        let mut config = config(folder, addresses[0], &addresses, vec![]);
        let members = Members::new(&config.members, "", &addresses[..1]);
        let uid = (0..100).map(|i| format!("d{i}")).find(|uid| !members.before_me_for_catalog(uid).is_empty()).unwrap();
        config.datasets = vec![dataset(&uid, file_source(source.path()))];
        config
    })
    .await;
    let uid = node.config.datasets[0].uid.clone();
    let waits = |dataset: &forebay_protocol::node::DatasetStatus| {
        dataset.catalog_problem.clone().filter(|problem| problem.reason == "WaitingForCatalog")
    };
    let problem = node.wait_dataset("the problem", &uid, waits).await;
    assert!(problem.message.contains(&addresses[1].to_string()), "{problem:?}");
    let reader = node.reader(&uid).await;
    assert_eq!(reader.read(&reader.files()["f"], 100).await.unwrap(), b"content");
}

#[test]
fn prepare_makes_the_folders_for_a_node_without_rights() {
    use std::os::unix::fs::MetadataExt;
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can give folders away");
        assert!(std::env::var_os("FOREBAY_REQUIRE_ALL").is_none(), "no test may be skipped");
        return;
    }
    let folder = scratch();
    let (cache, run) = (folder.path().join("a/cache"), folder.path().join("run"));
    for _ in 0..2 {
        let mut prepare = std::process::Command::new(env!("CARGO_BIN_EXE_forebay-node"));
        prepare.arg("prepare").arg("--cache-dir").arg(&cache).arg("--run-dir").arg(&run);
        assert!(prepare.status().unwrap().success());
        let of = |path| std::fs::metadata(path).map(|m| (m.uid(), m.gid(), m.mode() & 0o7777)).unwrap();
        assert_eq!((of(&cache), of(&run)), ((64201, 64200, 0o700), (0, 64200, 0o770)));
    }
}
