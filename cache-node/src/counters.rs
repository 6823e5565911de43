//! What was read and from where, per dataset: since the start, and over the last hour in buckets of a minute.

use std::time::Instant;

use forebay_protocol::node;
use parking_lot::Mutex;

const BUCKETS: usize = 60;
const BUCKET_SECONDS: u64 = 60;

/// Counters of one dataset.
#[derive(Debug)]
pub struct ReadCounters {
    start: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    total: node::ReadCounters,
    buckets: [Bucket; BUCKETS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// Minutes since the start, plus one; 0 for never.
    minute: u64,
    counters: node::ReadCounters,
}

impl Default for ReadCounters {
    fn default() -> Self {
        let inner = Inner { total: node::ReadCounters::default(), buckets: [Bucket::default(); BUCKETS] };
        Self { start: Instant::now(), inner: Mutex::new(inner) }
    }
}

impl ReadCounters {
    /// A reader asked for so many bytes, of which so many were on some cache node before.
    pub fn add_request(&self, requested: u64, hit: u64) {
        self.add(node::ReadCounters { requested_bytes: requested, hit_bytes: hit, ..Default::default() });
    }

    /// So many bytes came from the source.
    pub fn add_source(&self, bytes: u64) {
        self.add(node::ReadCounters { source_bytes: bytes, ..Default::default() });
    }

    /// So many bytes came from a peer.
    pub fn add_peer(&self, bytes: u64) {
        self.add(node::ReadCounters { peer_bytes: bytes, ..Default::default() });
    }

    /// Since the start.
    pub fn total(&self) -> node::ReadCounters {
        self.inner.lock().total
    }

    /// Over the last 59 to 60 minutes.
    pub fn last_hour(&self) -> node::ReadCounters {
        self.last_hour_at(self.minute())
    }

    fn minute(&self) -> u64 {
        self.start.elapsed().as_secs() / BUCKET_SECONDS + 1
    }

    fn add(&self, more: node::ReadCounters) {
        self.add_at(self.minute(), more);
    }

    fn add_at(&self, minute: u64, more: node::ReadCounters) {
        let mut inner = self.inner.lock();
        sum(&mut inner.total, &more);
        if let Some(bucket) = inner.buckets.get_mut(minute as usize % BUCKETS) {
            if bucket.minute != minute {
                *bucket = Bucket { minute, counters: node::ReadCounters::default() };
            }
            sum(&mut bucket.counters, &more);
        }
    }

    fn last_hour_at(&self, minute: u64) -> node::ReadCounters {
        let mut total = node::ReadCounters::default();
        for bucket in &self.inner.lock().buckets {
            if bucket.minute != 0 && bucket.minute + BUCKETS as u64 > minute {
                sum(&mut total, &bucket.counters);
            }
        }
        total
    }
}

fn sum(into: &mut node::ReadCounters, more: &node::ReadCounters) {
    into.requested_bytes += more.requested_bytes;
    into.hit_bytes += more.hit_bytes;
    into.source_bytes += more.source_bytes;
    into.peer_bytes += more.peer_bytes;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_later_only_the_total_remembers() {
        let counters = ReadCounters::default();
        let one = node::ReadCounters { requested_bytes: 10, hit_bytes: 4, source_bytes: 6, peer_bytes: 1 };
        counters.add_at(1, one);
        counters.add_at(31, one);
        assert_eq!(counters.last_hour_at(31).requested_bytes, 20);
        assert_eq!(counters.last_hour_at(60).hit_bytes, 8);
        assert_eq!(counters.last_hour_at(61).source_bytes, 6);
        assert_eq!(counters.last_hour_at(91).peer_bytes, 0);
        counters.add_at(91, one);
        assert_eq!(counters.last_hour_at(91), one);
        assert_eq!(counters.total().requested_bytes, 30);
    }
}
