//! The Prometheus metrics of a node. Names are an interface; `docs/operations.md` lists them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

type Labels = Vec<(&'static str, String)>;
type PlainCounter = prometheus_client::metrics::counter::Counter<u64>;

/// Where a reader's bytes were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// On this node.
    Local,
    /// On a peer, or fetched by it.
    Peer,
    /// In the source.
    Source,
}

impl Origin {
    fn label(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Peer => "peer",
            Self::Source => "source",
        }
    }
}

/// A counter with its labels chosen.
#[derive(Clone, Debug)]
pub struct Counter(PlainCounter);

impl Counter {
    /// Counts `n` more.
    pub fn add(&self, n: u64) {
        self.0.inc_by(n);
    }
}

/// All metrics of a node.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    source_read_bytes: Family<Labels, PlainCounter>,
    read_bytes: Family<Labels, PlainCounter>,
    cached_bytes: Family<Labels, Gauge<u64, AtomicU64>>,
    hedged_requests: Family<Labels, PlainCounter>,
    held_bytes: Gauge<u64, AtomicU64>,
    memory_tier_bytes: Gauge<u64, AtomicU64>,
    memory_tier_held_bytes: Gauge<u64, AtomicU64>,
    source_failovers: PlainCounter,
    verification_failures: PlainCounter,
    disk_faults: Family<Labels, PlainCounter>,
    scrubbed_bytes: PlainCounter,
}

impl Default for Metrics {
    fn default() -> Self {
        // The library puts `_total` behind the names of counters.
        let mut registry = Registry::with_prefix("forebay");
        let source_read_bytes = Family::default();
        registry.register("source_read_bytes", "Bytes read from sources", source_read_bytes.clone());
        let read_bytes = Family::default();
        registry.register(
            "read_bytes",
            "Bytes that readers on this machine asked for, by where they were found",
            read_bytes.clone(),
        );
        let cached_bytes = Family::default();
        registry.register("cached_bytes", "Bytes of a dataset that this node holds", cached_bytes.clone());
        let hedged_requests = Family::default();
        registry.register(
            "hedged_requests",
            "Second requests sent beside slow ones, by whether their answer was the one that was used",
            hedged_requests.clone(),
        );
        let held_bytes = Gauge::default();
        registry.register("held_bytes", "Bytes of evicted files that readers keep on the disk", held_bytes.clone());
        let memory_tier_bytes = Gauge::default();
        registry.register("memory_tier_bytes", "Bytes of copies in the memory tier", memory_tier_bytes.clone());
        let memory_tier_held_bytes = Gauge::default();
        registry.register(
            "memory_tier_held_bytes",
            "Bytes of copies that are gone and that readers keep in memory",
            memory_tier_held_bytes.clone(),
        );
        let source_failovers = PlainCounter::default();
        registry.register(
            "source_failovers",
            "Switches from one source of a mount to another",
            source_failovers.clone(),
        );
        let verification_failures = PlainCounter::default();
        registry.register(
            "verification_failures",
            "Chunks that were not what they should be, and were fetched again",
            verification_failures.clone(),
        );
        let disk_faults = Family::default();
        registry.register("disk_faults", "What this node's own disk did wrong, by kind", disk_faults.clone());
        let scrubbed_bytes = PlainCounter::default();
        registry.register(
            "scrubbed_bytes",
            "Bytes that were read from this node's disk and verified in the background",
            scrubbed_bytes.clone(),
        );
        Self {
            registry: Mutex::new(registry),
            source_read_bytes,
            read_bytes,
            cached_bytes,
            hedged_requests,
            held_bytes,
            memory_tier_bytes,
            memory_tier_held_bytes,
            source_failovers,
            verification_failures,
            disk_faults,
            scrubbed_bytes,
        }
    }
}

impl Metrics {
    /// A new set, all zero.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Bytes read from `source` over `link` (empty: none named).
    pub fn source_read_bytes(&self, source: &str, link: &str) -> Counter {
        let labels = vec![("source", source.to_owned()), ("link", link.to_owned())];
        Counter(self.source_read_bytes.get_or_create_owned(&labels))
    }

    /// Bytes that readers of `dataset` asked for and that were found at `origin`.
    pub fn read_bytes(&self, dataset: &str, origin: Origin) -> Counter {
        let labels = vec![("dataset", dataset.to_owned()), ("origin", origin.label().to_owned())];
        Counter(self.read_bytes.get_or_create_owned(&labels))
    }

    /// Second requests to `source` beside slow ones; whether their answer was used.
    pub fn hedged_requests(&self, source: &str, won: bool) -> Counter {
        let labels = vec![("source", source.to_owned()), ("won", won.to_string())];
        Counter(self.hedged_requests.get_or_create_owned(&labels))
    }

    /// Where chunks are counted that were not what they should be.
    pub fn verification_failure_counter(&self) -> Counter {
        Counter(self.verification_failures.clone())
    }

    /// Reads of a mount have moved to another of its sources.
    pub fn count_source_failover(&self) {
        self.source_failovers.inc();
    }

    /// A chunk was not what it should be.
    pub fn count_verification_failure(&self) {
        self.verification_failures.inc();
    }

    /// Chunks that were not what they should be, so far.
    pub fn verification_failures(&self) -> u64 {
        self.verification_failures.get()
    }

    /// So many faults of a kind so far.
    pub fn set_disk_faults(&self, kind: &'static str, count: u64) {
        let counter = self.disk_faults.get_or_create_owned(&vec![("kind", kind.to_owned())]);
        counter.inner().store(count, Ordering::Relaxed);
    }

    /// So many bytes were scrubbed so far.
    pub fn set_scrubbed_bytes(&self, bytes: u64) {
        self.scrubbed_bytes.inner().store(bytes, Ordering::Relaxed);
    }

    /// How many bytes of `dataset` this node holds.
    pub fn set_cached_bytes(&self, dataset: &str, bytes: u64) {
        self.cached_bytes.get_or_create(&vec![("dataset", dataset.to_owned())]).set(bytes);
    }

    /// How many bytes of evicted files are still on the disk.
    pub fn set_held_bytes(&self, bytes: u64) {
        self.held_bytes.set(bytes);
    }

    /// How many bytes the copies in the memory tier have, and those that are gone and not free.
    pub fn set_memory_tier(&self, bytes: u64, held: u64) {
        self.memory_tier_bytes.set(bytes);
        self.memory_tier_held_bytes.set(held);
    }

    /// A dataset that is gone has no metrics.
    pub fn forget_dataset(&self, dataset: &str) {
        self.cached_bytes.remove(&vec![("dataset", dataset.to_owned())]);
        for origin in [Origin::Local, Origin::Peer, Origin::Source] {
            self.read_bytes.remove(&vec![("dataset", dataset.to_owned()), ("origin", origin.label().to_owned())]);
        }
    }

    /// The text that Prometheus scrapes.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry.lock()) {
            tracing::error!(%error, "writing the metrics failed");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_out_exactly_as_promised() {
        let metrics = Metrics::default();
        metrics.source_read_bytes("s3://b/p", "").add(5);
        metrics.read_bytes("ns/d", Origin::Peer).add(7);
        metrics.set_cached_bytes("ns/d", 9);
        metrics.set_held_bytes(11);
        metrics.set_memory_tier(13, 17);
        metrics.count_verification_failure();
        metrics.set_disk_faults("disk_full", 3);
        metrics.set_scrubbed_bytes(11);
        metrics.hedged_requests("s3://b/p", true).add(3);
        let text = metrics.render();
        for line in [
            "forebay_source_read_bytes_total{source=\"s3://b/p\",link=\"\"} 5",
            "forebay_read_bytes_total{dataset=\"ns/d\",origin=\"peer\"} 7",
            "forebay_cached_bytes{dataset=\"ns/d\"} 9",
            "forebay_hedged_requests_total{source=\"s3://b/p\",won=\"true\"} 3",
            "forebay_held_bytes 11",
            "forebay_memory_tier_bytes 13",
            "forebay_memory_tier_held_bytes 17",
            "forebay_source_failovers_total 0",
            "forebay_verification_failures_total 1",
            "forebay_disk_faults_total{kind=\"disk_full\"} 3",
            "forebay_scrubbed_bytes_total 11",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
