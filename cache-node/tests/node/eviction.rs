//! Quotas and pins of a node that has less room than its datasets have bytes.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use forebay_protocol::config::{PinConfig, QuotaConfig};

use crate::common::process::NodeProcess;
use crate::common::{config, content, dataset, file_source, free_address, scratch, wait_for};
use crate::faults_disk::Disk;

const FILE: usize = 2 << 20;
const QUOTA: u64 = 12 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_holds_what_is_pinned_stays_and_everything_reads_right() {
    // Of its own: what others write to a disk beside the cache may be taken for bytes that readers hold, and lowers the room, down to less than what is
    // pinned when the cache is as small as here. Other tests do that to /dev/shm.
    let Some(disk) = Disk::tmpfs("256m") else { return };
    let (limited, pinning) = (scratch(), scratch());
    let name = |n: u64| if n < 5 { format!("keep/{n}") } else { format!("other/{n}") };
    for (seed, source) in [(0, &limited), (100, &pinning)] {
        for folder in ["keep", "other"] {
            std::fs::create_dir(source.path().join(folder)).unwrap();
        }
        for n in 0..16 {
            std::fs::write(source.path().join(name(n)), content(seed + n, FILE)).unwrap();
        }
    }
    let address = free_address([127, 0, 0, 2]);
    let mut node = NodeProcess::start(|folder| {
        let datasets = [("limited", &limited), ("pinning", &pinning)].map(|(name, source)| {
            let mut dataset = dataset(name, file_source(source.path()));
            name.clone_into(&mut dataset.namespace);
            dataset
        });
        let mut config = config(folder, address, &[], datasets.into());
        config.datasets[1].pin =
            Some(PinConfig { include: vec!["keep/*".to_owned()], newer_than_seconds: Some(24 * 3600) });
        config.quotas = vec![QuotaConfig { namespace: "limited".to_owned(), capacity_bytes: QUOTA }];
        config.node.cache_dir = disk.path().join("cache");
        config.node.capacity_bytes = 32 << 20;
        config
    })
    .await;
    let pinned = node.reader("pinning").await;
    let limits = node.reader("limited").await;
    let on_disk = |reader: &crate::common::reader::Reader, n: u64| {
        let id = reader.files()[&name(n)];
        let path = node.config.node.cache_dir.join("objects").join(id.relative_path());
        std::fs::metadata(path).map(|metadata| metadata.ino()).ok()
    };
    let mut inodes = None;
    for _ in 0..2 {
        for n in 0..16 {
            for (seed, reader) in [(100, &pinned), (0, &limits)] {
                let bytes = reader.read(&reader.files()[&name(n)], 1 << 20).await.unwrap();
                assert!(bytes == content(seed + n, FILE), "{}", name(n));
            }
        }
        wait_for("the quota to be kept", Duration::from_secs(10), || async {
            (node.dataset("limited").await.cached_bytes <= QUOTA).then_some(())
        })
        .await;
        assert!(node.status().await.cached_bytes <= 32 << 20);
        let now: Vec<_> = (0..5).map(|n| on_disk(&pinned, n).expect("what is pinned stays")).collect();
        assert_eq!(*inodes.get_or_insert_with(|| now.clone()), now, "it was never evicted");
    }
    // Both compete for the node's 32 MiB, of which 10 MiB are pinned: 42 MiB are wanted where 28.8 MiB to 30.4 MiB may be. What is left of the limited
    // one is for the order of eviction to decide, seldom less than two files; what a quota alone leaves is the other test's.
    assert!(node.dataset("limited").await.cached_bytes > 0);
    let evicted = (0..16).filter(|n| on_disk(&limits, *n).is_none()).count();
    assert!(evicted >= 10, "{evicted}");
    assert_eq!(node.metric("forebay_verification_failures_total").await, 0);
    drop((pinned, limits));
    // A pattern that is none is refused by name; what was applied before goes on.
    let revision = node.status().await.revision;
    node.change(|config| {
        if let Some(pin) = &mut config.datasets[1].pin {
            pin.include.push("keep/[".to_owned());
        }
    });
    wait_for("the refusal", Duration::from_secs(10), || async {
        let log = node.log();
        (log.contains("keep/[") && log.contains("pinning/pinning")).then_some(())
    })
    .await;
    assert_eq!(node.status().await.revision, revision);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_used_up_but_for_what_the_low_watermark_leaves() {
    let source = scratch();
    for n in 0..16 {
        std::fs::write(source.path().join(format!("{n:02}")), content(n, FILE)).unwrap();
    }
    let address = free_address([127, 0, 0, 2]);
    let node = NodeProcess::start(|folder| {
        let mut dataset = dataset("limited", file_source(source.path()));
        "limited".clone_into(&mut dataset.namespace);
        let mut config = config(folder, address, &[], vec![dataset]);
        config.quotas = vec![QuotaConfig { namespace: "limited".to_owned(), capacity_bytes: QUOTA }];
        config
    })
    .await;
    let reader = node.reader("limited").await;
    let files = reader.files();
    // A file that comes has 90 % of the quota left with it when it would be above 95 % otherwise, and whole files go.
    let least = QUOTA / 10 * 9 - FILE as u64;
    for round in 0..2 {
        for (n, (name, id)) in files.iter().enumerate() {
            assert!(reader.read(id, 1 << 20).await.unwrap() == content(n as u64, FILE), "{name}");
            let read = (round * files.len() + n + 1) as u64 * FILE as u64;
            node.wait_dataset("the quota to be kept and used", "limited", |dataset| {
                (least.min(read)..=QUOTA).contains(&dataset.cached_bytes).then_some(())
            })
            .await;
        }
    }
}
