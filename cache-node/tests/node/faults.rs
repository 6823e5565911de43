//! A source that misbehaves in every way we know of, between a real node and a real S3 server: what may pass is asked again, so often and no
//! sooner than is right; what won't pass is said at once; the bytes are the right ones; and who reads something else notices nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use forebay_cache_node::source::attempt::{FIRST_BYTE, SILENCE};
use forebay_cache_node::source::retry::{LONGEST, READING};
use forebay_protocol::config::SourceConfig;
use forebay_protocol::local::{Failed, FailureKind};
use futures::future::join_all;
use object_store::aws::{AmazonS3Builder, Checksum};
use object_store::{ObjectStoreExt, PutPayload};

use crate::common::faults::{Asked, Fault, Faults};
use crate::common::gateway::{ACCESS, Gateway, SECRET};
use crate::common::process::NodeProcess;
use crate::common::{config, content, dataset, free_address, preload_all};

const UID: &str = "d1";
const SMALL: usize = 1000;
const CHUNK: usize = 4 << 20;
const LARGE: usize = CHUNK + 1000;

/// A source is asked so often for one thing: the first try, each retry, and perhaps a second request beside each.
const MOST_REQUESTS: usize = 2 * (1 + READING.retries);
/// A try and its second request fail within this.
const LONGEST_TRY: Duration = FIRST_BYTE.saturating_add(SILENCE).saturating_mul(2);
/// A reader waits so long at most for something that does not come.
const LONGEST_READ: Duration = LONGEST.saturating_add(LONGEST_TRY);
/// A reader of something else waits so long at most on this busy machine; what it must not wait for takes longer.
const PROMPT: Duration = Duration::from_secs(3);

async fn node(source: SourceConfig) -> NodeProcess {
    let address = free_address([127, 0, 0, 2]);
    NodeProcess::start(|folder| config(folder, address, &[], vec![dataset(UID, source)])).await
}

fn size_of(name: &str) -> usize {
    if name.starts_with("large") { LARGE } else { SMALL }
}

/// A file's name, and what is done to the requests for it.
type Rule = (&'static str, fn(&Asked) -> Fault);

/// The rule of the object that a request is for.
fn rule_for(rules: &[Rule], asked: &Asked) -> Fault {
    let name = asked.path.trim_start_matches("/data/");
    rules.iter().find(|(of, _)| *of == name).map_or(Fault::None, |(_, rule)| rule(asked))
}

/// Reads healthy files one after the other until told to stop; how long the slowest took.
async fn read_something_else(node: &NodeProcess, stop: &AtomicBool) -> Duration {
    let (reader, mut slowest, mut read) = (node.reader(UID).await, Duration::ZERO, 0);
    for (name, id) in reader.files().into_iter().filter(|(name, _)| name.starts_with("healthy")) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let began = Instant::now();
        assert!(reader.read(&id, 1 << 20).await.unwrap() == content(1, SMALL), "{name}");
        slowest = slowest.max(began.elapsed());
        read += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(read > 20, "only {read} healthy files were read beside");
    slowest
}

async fn world(rules: &'static [Rule]) -> Option<(Gateway, Faults, NodeProcess)> {
    let gateway = Gateway::start().await?;
    for (name, _) in rules {
        gateway.put_raw(name, &content(7, size_of(name)));
    }
    for i in 0..3000 {
        gateway.put_raw(&format!("healthy/{i}"), &content(1, SMALL));
    }
    let proxy = Faults::start(gateway.address, |asked| rule_for(rules, asked)).await;
    let node = node(Gateway::source_at(proxy.address, "")).await;
    Some((gateway, proxy, node))
}

/// Reads every file that has a rule at once, each by a reader of its own, while somebody reads something else.
async fn read_all(node: &NodeProcess, rules: &[Rule]) -> Vec<(&'static str, Result<Vec<u8>, Failed>, Duration)> {
    let files = node.reader(UID).await.files();
    let stop = AtomicBool::new(false);
    let reads = async {
        let results = join_all(rules.iter().map(|(name, _)| {
            let id = files[*name];
            async move {
                let (reader, began) = (node.reader(UID).await, Instant::now());
                (*name, reader.read(&id, 8 << 20).await, began.elapsed())
            }
        }))
        .await;
        stop.store(true, Ordering::Relaxed);
        results
    };
    let (results, slowest) = tokio::join!(reads, read_something_else(node, &stop));
    assert!(slowest < PROMPT, "a reader of something else waited {slowest:?}");
    results
}

fn first(asked: &Asked, tries: usize, fault: Fault) -> Fault {
    if asked.attempt < tries { fault } else { Fault::None }
}

fn in_three_seconds() -> String {
    let then = SystemTime::now() + Duration::from_secs(3);
    format!(
        "retry-after: {}\r\ndate: {}\r\n",
        httpdate::fmt_http_date(then),
        httpdate::fmt_http_date(SystemTime::now())
    )
}

/// What passes.
const TRANSIENT: &[Rule] = &[
    ("500", |a| first(a, 2, Fault::Status(500, "InternalError", String::new()))),
    ("502", |a| first(a, 2, Fault::Status(502, "", String::new()))),
    ("503", |a| first(a, 3, Fault::Status(503, "SlowDown", String::new()))),
    ("429-seconds", |a| first(a, 2, Fault::Status(429, "TooManyRequests", "retry-after: 2\r\n".to_owned()))),
    ("503-date", |a| first(a, 1, Fault::Status(503, "SlowDown", in_three_seconds()))),
    ("late", |a| first(a, 2, Fault::Late(Duration::from_secs(60)))),
    ("stalled-at-once", |a| first(a, 2, Fault::Stall(0))),
    ("stalled", |a| first(a, 2, Fault::Stall(500))),
    ("large-stalled", |a| first(a, 2, Fault::Stall(500))),
    ("trickles", |a| first(a, 2, Fault::Trickle(1, Duration::from_millis(100)))),
    ("large-trickles", |a| first(a, 2, Fault::Trickle(100, Duration::from_millis(10)))),
    ("reset", |a| first(a, 2, Fault::Reset)),
    ("reset-in-the-body", |a| first(a, 2, Fault::ResetAfter(500))),
    ("large-reset-in-the-body", |a| first(a, 2, Fault::ResetAfter(2_000_000))),
    ("short", |a| first(a, 2, Fault::Short(500))),
    ("large-short", |a| first(a, 2, Fault::Short(2_000_000))),
    ("large-says-more", |a| first(a, 2, Fault::Length(5))),
    ("large-says-less", |a| first(a, 2, Fault::Length(-5))),
    ("large-other-range", |a| first(a, 2, Fault::Header("content-range", format!("bytes 5-{}/{LARGE}", CHUNK + 4)))),
    ("large-no-range", |a| first(a, 2, Fault::Header("content-range", "bytes none".to_owned()))),
    ("garbage", |a| first(a, 2, Fault::Garbage)),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_may_pass_is_asked_again_and_nobody_else_waits() {
    let Some((_gateway, proxy, node)) = world(TRANSIENT).await else { return };
    for (name, result, took) in read_all(&node, TRANSIENT).await {
        let bytes = result.unwrap_or_else(|failed| panic!("{name}: {failed:?}\n{}", node.log()));
        assert!(bytes == content(7, size_of(name)), "{name}: wrong bytes");
        assert!(took < LONGEST_READ, "{name} took {took:?}");
        let times = proxy.times(&format!("/data/{name}"));
        // Each chunk was asked for a third (fourth) time at most, and perhaps once beside.
        let chunks = if size_of(name) == LARGE { 2 } else { 1 };
        assert!((2..=5 * chunks).contains(&times.len()), "{name}: {} requests", times.len());
        let asked_for = match name {
            // The dates are whole seconds: three may be two and a bit.
            "429-seconds" | "503-date" => Duration::from_secs(2),
            _ => Duration::ZERO,
        };
        assert!(times.array_windows().all(|[a, b]| *b >= *a + asked_for), "{name}: asked again too soon");
        println!("{name}: {} requests, {took:?}", times.len());
    }
    assert!(node.metric("forebay_hedged_requests_total").await > 0);
}

/// What does not pass, and what fails again and again.
const PERMANENT: &[Rule] = &[
    ("403", |_| Fault::Status(403, "AccessDenied", String::new())),
    ("404", |_| Fault::Status(404, "NoSuchKey", String::new())),
    ("412", |_| Fault::Status(412, "PreconditionFailed", String::new())),
    ("other-etag", |_| Fault::Header("etag", "\"another\"".to_owned())),
    ("says-more", |_| Fault::Length(5)),
    ("large-changes-half-way", |a| match a.range {
        Some((first, _)) if first > 0 => Fault::Header("etag", "\"another\"".to_owned()),
        _ => Fault::None,
    }),
    ("large-other-size", |_| Fault::Header("content-range", format!("bytes 0-{}/77", CHUNK - 1))),
    ("redirect", |_| Fault::Status(307, "TemporaryRedirect", "location: http://127.0.0.1:1/\r\n".to_owned())),
    ("rest-for-an-hour", |_| Fault::Status(503, "SlowDown", "retry-after: 3600\r\n".to_owned())),
    ("always-500", |_| Fault::Status(500, "InternalError", String::new())),
    ("always-stalled", |_| Fault::Stall(10)),
    ("always-late", |_| Fault::Late(Duration::from_secs(600))),
    ("always-short", |_| Fault::Short(10)),
    ("always-reset", |_| Fault::Reset),
    ("always-garbage", |_| Fault::Garbage),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_will_not_pass_is_said_and_what_never_ends_is_given_up() {
    let Some((_gateway, proxy, node)) = world(PERMANENT).await else { return };
    for (name, result, took) in read_all(&node, PERMANENT).await {
        let failed = result.expect_err(name);
        let times = proxy.times(&format!("/data/{name}")).len();
        println!("{name}: {times} requests, {took:?}: {}", failed.message);
        let (kind, says, most) = match name {
            "403" => (FailureKind::Source, "check the source's credentials", 1),
            "404" => (FailureKind::Changed, "is gone", 1),
            "412" | "other-etag" | "says-more" | "large-other-size" | "large-changes-half-way" => {
                (FailureKind::Changed, "changed", 2)
            }
            "redirect" => (FailureKind::Source, "correct the source's endpoint", 1),
            "rest-for-an-hour" => (FailureKind::Source, "3600 s", 1),
            "always-stalled" | "always-late" => (FailureKind::Source, "check the source's load", MOST_REQUESTS),
            _ => (FailureKind::Source, "asked again", MOST_REQUESTS),
        };
        assert_eq!(failed.kind, i32::from(kind), "{name}: {failed:?}");
        assert!(failed.message.contains(says) && failed.message.contains(name), "{name}: {failed:?}");
        assert!(times <= most, "{name}: {times} requests");
        assert!(took < LONGEST_READ, "{name} took {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_has_too_much_to_do_gets_less_at_once() {
    const FILES: usize = 3000;
    const TAKES: usize = 12;
    let Some(gateway) = Gateway::start().await else { return };
    for i in 0..FILES {
        gateway.put_raw(&format!("{i}"), &content(i as u64, SMALL));
    }
    // Each request takes 20 ms of its own; more than so many at once are refused.
    let busy = Arc::new(AtomicUsize::new(0));
    let refused = Arc::new(AtomicUsize::new(0));
    let (gate, counted) = (Arc::clone(&busy), Arc::clone(&refused));
    let proxy = Faults::start(gateway.address, move |asked| {
        if asked.is_listing() {
            return Fault::None;
        }
        if gate.fetch_add(1, Ordering::SeqCst) >= TAKES {
            gate.fetch_sub(1, Ordering::SeqCst);
            counted.fetch_add(1, Ordering::SeqCst);
            return Fault::Status(503, "SlowDown", String::new());
        }
        let gate = Arc::clone(&gate);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            gate.fetch_sub(1, Ordering::SeqCst);
        });
        Fault::Late(Duration::from_millis(20))
    })
    .await;
    let address = free_address([127, 0, 0, 2]);
    let node = NodeProcess::start(|folder| {
        let mut dataset = dataset(UID, Gateway::source_at(proxy.address, ""));
        dataset.preload = Some(preload_all());
        config(folder, address, &[], vec![dataset])
    })
    .await;
    node.wait_preloaded(UID).await;
    let refused = refused.load(Ordering::SeqCst);
    println!("{refused} of {} requests were refused", proxy.seen().len());
    assert!(refused > 0, "the test did not overload anything");
    assert!(refused < FILES / 6, "{refused} refusals of {FILES} files: the node does not back off");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_tail_is_cut_by_second_requests_for_a_hundredth_of_the_bytes() {
    const FILES: usize = 6000;
    const READERS: usize = 12;
    let Some(gateway) = Gateway::start().await else { return };
    for i in 0..FILES {
        gateway.put_raw(&format!("{i:05}"), &content(i as u64, 4096));
    }
    let proxy = Faults::start(gateway.address, |asked| {
        let stalls = !asked.is_listing() && asked.chance(42) < 0.01;
        if stalls { Fault::Late(Duration::from_secs(10)) } else { Fault::None }
    })
    .await;
    let node = node(Gateway::source_at(proxy.address, "")).await;
    let files: Vec<_> = node.reader(UID).await.files().into_iter().collect();
    let times = join_all((0..READERS).map(|part| {
        let (node, files) = (&node, &files);
        async move {
            let (reader, mut times) = (node.reader(UID).await, Vec::new());
            for (name, id) in files.iter().skip(part).step_by(READERS) {
                let began = Instant::now();
                let bytes = reader.read(id, 1 << 20).await.unwrap();
                times.push(began.elapsed());
                assert!(bytes == content(name.parse().unwrap(), 4096), "{name}");
            }
            times
        }
    }))
    .await;
    let mut times = times.concat();
    times.sort_unstable();
    let seen = proxy.seen();
    let late = seen.iter().filter(|seen| seen.asked.chance(42) < 0.01).count();
    let (requests, bytes) = (seen.len() as f64 / FILES as f64, proxy.body_bytes() as f64 / (FILES * 4096) as f64);
    let p = |share: f64| times[(times.len() as f64 * share) as usize];
    println!(
        "{late} stalled; p50 {:?}, p99 {:?}, p99.5 {:?}; requests {requests:.4}, bytes {bytes:.4}",
        p(0.5),
        p(0.99),
        p(0.995)
    );
    assert!(late > FILES / 200, "the test did not stall enough");
    assert!(p(0.99) < Duration::from_secs(2), "p99 is {:?}", p(0.99));
    assert!(requests <= 1.012 && bytes <= 1.012, "{requests} {bytes}");
    let won = node.metric("forebay_hedged_requests_total{").await;
    assert!(won as usize > late / 2, "{won} second requests for {late} slow ones");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_do_not_match_the_providers_checksum_are_never_kept() {
    let Some(gateway) = Gateway::start().await else { return };
    let kinds = [(Checksum::SHA256, "sha256"), (Checksum::CRC64NVME, "crc64nvme")];
    for (checksum, name) in kinds {
        let store = AmazonS3Builder::new()
            .with_endpoint(format!("http://{}", gateway.address))
            .with_allow_http(true)
            .with_bucket_name("data")
            .with_region("us-east-1")
            .with_access_key_id(ACCESS)
            .with_secret_access_key(SECRET)
            .with_checksum_algorithm(checksum)
            .build()
            .unwrap();
        store.put(&name.into(), PutPayload::from(content(5, 100_000))).await.unwrap();
    }
    let proxy = Faults::start(gateway.address, |asked| first(asked, 2, Fault::Flip(50_000))).await;
    let node = node(Gateway::source_at(proxy.address, "")).await;
    let reader = node.reader(UID).await;
    for (n, (_, name)) in kinds.iter().enumerate() {
        assert!(reader.read(&reader.files()[*name], 1 << 20).await.unwrap() == content(5, 100_000), "{name}");
        assert_eq!(proxy.times(&format!("/data/{name}")).len(), 3, "{name}");
        assert_eq!(node.metric("forebay_verification_failures_total").await, 2 * (n as u64 + 1));
    }
}
