//! A range that a reader names when it opens an object: on its way before the reader asks for it, for it alone, and no longer than the reader.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::faults::{Fault, Faults};
use crate::common::gateway::Gateway;
use crate::common::process::NodeProcess;
use crate::common::{config, content, dataset, free_address, wait_for};

const UID: &str = "d1";
const CHUNK: u64 = 4 << 20;
/// Of such a size that the first reader gets a part of it before the chunk.
const SIZE: usize = (16 << 20) + 5;
const SOON: Duration = Duration::from_secs(10);

async fn node(proxy: &Faults) -> NodeProcess {
    let address = free_address([127, 0, 0, 2]);
    let source = Gateway::source_at(proxy.address, "");
    NodeProcess::start(|folder| config(folder, address, &[], vec![dataset(UID, source)])).await
}

/// Waits until the source is asked for an object.
async fn asked_for(proxy: &Faults, path: &str) {
    wait_for("the source to be asked", SOON, || async { (!proxy.times(path).is_empty()).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_on_its_way_before_it_is_asked_for_and_given_once() {
    let Some(gateway) = Gateway::start().await else { return };
    gateway.put_raw("f", &content(1, SIZE));
    gateway.put_raw("g", &content(2, SIZE));
    let proxy = Faults::start(gateway.address, |_| Fault::None).await;
    let node = node(&proxy).await;
    let reader = node.reader(UID).await;
    let files = reader.files();

    let open = reader.open_for(&files["f"], 70_000, 4096).await.unwrap();
    asked_for(&proxy, "/data/f").await;
    let part = reader.ensure(open.lease, 70_000, 4096).await.unwrap();
    assert_eq!((part.offset, part.length, part.complete), (65_536, 65_536, false));
    let of_part = proxy.seen().iter().filter(|seen| seen.asked.range == Some((65_536, 131_071))).count();
    assert_eq!(of_part, 1, "what was on its way is not fetched again");
    // The same again is a question of its own, whose answer is no part.
    let again = reader.ensure(open.lease, 70_000, 4096).await.unwrap();
    assert!(again.offset == 0 && again.length >= CHUNK, "{again:?}");

    // Who asks for something else first gets that, and then what it named.
    let open = reader.open_for(&files["g"], 0, 4096).await.unwrap();
    for (offset, length) in [(2 * CHUNK, 10), (0, 4096)] {
        let ensured = reader.ensure(open.lease, offset, length).await.unwrap();
        assert!(ensured.offset <= offset && ensured.offset + ensured.length >= offset + length, "{ensured:?}");
    }
    assert!(reader.read(&files["f"], 1 << 20).await.unwrap() == content(1, SIZE));
    assert!(reader.read(&files["g"], 1 << 20).await.unwrap() == content(2, SIZE));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_before_it_asks_leaves_nothing_behind() {
    let Some(gateway) = Gateway::start().await else { return };
    for name in ["closed", "died"] {
        gateway.put_raw(name, &content(1, SIZE));
    }
    let silent = Arc::new(AtomicBool::new(true));
    let stays_silent = Arc::clone(&silent);
    let proxy = Faults::start(gateway.address, move |asked| {
        if stays_silent.load(Ordering::SeqCst) && !asked.is_listing() { Fault::Stall(0) } else { Fault::None }
    })
    .await;
    let node = node(&proxy).await;
    let reader = node.reader(UID).await;
    let files = reader.files();
    let partial = |name: &str| node.config.node.cache_dir.join("partial").join(files[name].relative_path());
    // The empty file goes with the last lease on it, which whatever works on the range has too.
    let gone = async |name: &str| {
        let path = partial(name);
        wait_for("the lease to end", SOON, || async { (!path.exists()).then_some(()) }).await;
    };

    let open = reader.open_for(&files["closed"], 0, 4096).await.unwrap();
    asked_for(&proxy, "/data/closed").await;
    assert!(partial("closed").exists());
    reader.close(open.lease).await;
    gone("closed").await;

    reader.open_for(&files["died"], 0, 4096).await.unwrap();
    asked_for(&proxy, "/data/died").await;
    assert!(partial("died").exists());
    drop(reader);
    gone("died").await;

    silent.store(false, Ordering::SeqCst);
    let reader = node.reader(UID).await;
    assert!(reader.read(&files["died"], 1 << 20).await.unwrap() == content(1, SIZE));
}
