//! Traces of accesses, and how often the policies hit on them. A library for the example `eviction`, which prints the table, and for the
//! tests that hold the store's own policy to it.

use super::policies::{self, Policy};

/// One access.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Which object.
    pub object: u32,
    /// Its size.
    pub bytes: u64,
    /// Whether it counts for the hit ratio; warming up and scans do not.
    pub counts: bool,
    /// Whether the cache is told when it is a hit; what the kernel serves by itself is not seen.
    pub seen: bool,
}

/// A sequence of accesses.
#[derive(Clone, Debug)]
pub struct Trace {
    /// What it is, without blanks.
    pub name: String,
    /// The accesses.
    pub accesses: Vec<Access>,
    /// Bytes of the cache.
    pub capacity: u64,
    /// Share of the data that fits, in percent.
    pub share: u64,
}

/// How often a policy hit.
#[derive(Clone, Copy, Debug)]
pub struct Hits {
    /// Of the accesses.
    pub objects: f64,
    /// Of the bytes.
    pub bytes: f64,
}

impl Trace {
    /// Runs the trace through a policy out of [`policies::all`]; none when there is no policy of that name.
    pub fn run(&self, policy: &str) -> Option<Hits> {
        let mut policy = policies::by_name(policy, self, self.capacity)?;
        Some(self.run_with(policy.as_mut()))
    }

    /// Runs the trace through a policy.
    pub fn run_with(&self, policy: &mut dyn Policy) -> Hits {
        let (mut hits, mut all, mut hit_bytes, mut all_bytes) = (0_u64, 0_u64, 0_u64, 0_u64);
        for access in &self.accesses {
            let hit = policy.access(access.object, access.bytes, access.seen);
            if access.counts {
                all += 1;
                all_bytes += access.bytes;
                hits += u64::from(hit);
                hit_bytes += if hit { access.bytes } else { 0 };
            }
        }
        Hits { objects: hits as f64 / all.max(1) as f64, bytes: hit_bytes as f64 / all_bytes.max(1) as f64 }
    }
}

/// xorshift64*: the same numbers every time, everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// Below 1.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn shuffle(&mut self, objects: &mut [u32]) {
        for i in (1..objects.len()).rev() {
            let j = self.below(i as u64 + 1) as usize;
            objects.swap(i, j);
        }
    }
}

/// Objects of an epoch.
const IMAGES: u32 = 5000;
const WARM_EPOCHS: usize = 2;
const EPOCHS: usize = 10;

fn epoch(random: &mut Random, first: u32, counts: bool) -> Vec<Access> {
    let mut order: Vec<u32> = (first..first + IMAGES).collect();
    random.shuffle(&mut order);
    // Between 64 and 192 KiB, as photographs are.
    let bytes = |object: u32| (64 << 10) + u64::from(object.wrapping_mul(2_654_435_761) % (128 << 10));
    order.into_iter().map(|object| Access { object, bytes: bytes(object), counts, seen: true }).collect()
}

fn capacity(accesses: &[Access], share: u64) -> u64 {
    let mut sizes: Vec<_> = accesses.iter().map(|access| (access.object, access.bytes)).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes.iter().map(|(_, bytes)| bytes).sum::<u64>() / 100 * share
}

/// Training: each object once in an epoch, in a new order. The best a cache can do is its share of the data.
pub fn epochs(share: u64, seen: bool) -> Trace {
    let mut random = Random(1 + share);
    let mut accesses: Vec<_> = (0..EPOCHS).flat_map(|n| epoch(&mut random, 0, n >= WARM_EPOCHS)).collect();
    for access in &mut accesses {
        access.seen = seen;
    }
    let name = if seen { "epochs" } else { "epochs-unseen" };
    Trace { name: name.to_owned(), capacity: capacity(&accesses, share), accesses, share }
}

/// Six epochs over one dataset, then eight over another: only the second counts, from its first access on.
pub fn change(share: u64) -> Trace {
    let mut random = Random(100 + share);
    let mut accesses: Vec<_> = (0..6).flat_map(|_| epoch(&mut random, 0, false)).collect();
    let capacity = capacity(&accesses, share);
    accesses.extend((0..8).flat_map(|_| epoch(&mut random, IMAGES, true)));
    Trace { name: "change".to_owned(), accesses, capacity, share }
}

/// Objects that are asked for with a popularity of rank^-`exponent`.
const POPULAR: u32 = 20_000;
const ZIPF_ACCESSES: usize = 200_000;
const ZIPF_WARM: usize = 40_000;

/// From 4 KiB to 100 MiB, evenly over the orders of magnitude.
fn sizes(random: &mut Random) -> Vec<u64> {
    (0..POPULAR).map(|_| (4096.0 * 25_600_f64.powf(random.fraction())) as u64).collect()
}

/// Some objects are asked for far more often than others, of sizes from 4 KiB to 100 MiB. With `scans`, all of another dataset as large is read
/// once every 40,000 accesses, which does not count.
pub fn zipf(exponent: f64, share: u64, scans: bool) -> Trace {
    let mut random = Random(7);
    let sizes = sizes(&mut random);
    let mut sum = 0.0;
    let ranks: Vec<f64> = (1..=POPULAR)
        .map(|rank| {
            sum += f64::from(rank).powf(-exponent);
            sum
        })
        .collect();
    let mut accesses = Vec::new();
    for n in 0..ZIPF_ACCESSES {
        let at = random.fraction() * sum;
        // Popularity has nothing to do with size.
        let object = (ranks.partition_point(|up_to| *up_to < at) as u32).wrapping_mul(7919) % POPULAR;
        let bytes = sizes.get(object as usize).copied().unwrap_or(0);
        accesses.push(Access { object, bytes, counts: n >= ZIPF_WARM, seen: true });
    }
    let capacity = sizes.iter().sum::<u64>() / 100 * share;
    if scans {
        let scan: Vec<_> = (POPULAR..)
            .zip(&sizes)
            .map(|(object, bytes)| Access { object, bytes: *bytes, counts: false, seen: true })
            .collect();
        accesses = accesses.chunks(ZIPF_WARM).flat_map(|part| part.iter().chain(&scan)).copied().collect();
    }
    let name = format!("zipf-{exponent:.1}{}", if scans { "-scans" } else { "" });
    Trace { name, accesses, capacity, share }
}

/// All traces of the table.
pub fn all() -> Vec<Trace> {
    let mut traces: Vec<_> = [10, 25, 50, 75].map(|share| epochs(share, true)).into();
    traces.extend([25, 50].map(|share| epochs(share, false)));
    traces.extend([25, 50].map(change));
    for exponent in [0.8, 1.0] {
        traces.extend([false, true].map(|scans| zipf(exponent, 10, scans)));
    }
    traces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(trace: &Trace, policy: &str) -> Hits {
        trace.run(policy).unwrap()
    }

    #[test]
    fn in_epochs_ours_hits_nine_tenths_of_what_can_be_hit_and_lru_far_less() {
        for share in [10, 25, 50, 75] {
            let trace = epochs(share, true);
            let (ours, lru, best) = (hits(&trace, "ours"), hits(&trace, "lru"), hits(&trace, "belady"));
            let cached = share as f64 / 100.0;
            assert!((best.objects - cached).abs() < 0.02, "{share}: the optimum is {best:?}");
            assert!(ours.objects >= 0.9 * cached, "{share}: {ours:?}");
            assert!(ours.objects > hits(&trace, "s3-fifo").objects + 0.04, "{share}: {ours:?}");
            assert!(lru.objects < 0.6 * cached, "{share}: {lru:?}");
        }
    }

    #[test]
    fn where_some_is_popular_ours_is_no_worse_than_lru_and_scans_cost_it_little() {
        for exponent in [0.8, 1.0] {
            let (plain, scanned) = (zipf(exponent, 10, false), zipf(exponent, 10, true));
            for trace in [&plain, &scanned] {
                let (ours, lru) = (hits(trace, "ours"), hits(trace, "lru"));
                assert!(
                    ours.objects > lru.objects + 0.03 && ours.bytes > lru.bytes,
                    "{}: {ours:?} {lru:?}",
                    trace.name
                );
            }
            let lost = |policy: &str| hits(&plain, policy).objects - hits(&scanned, policy).objects;
            assert!(lost("ours") < 0.02 && lost("lru") > lost("ours"), "{} {}", lost("ours"), lost("lru"));
        }
    }

    #[test]
    fn another_dataset_takes_over() {
        for share in [25, 50] {
            let trace = change(share);
            let (ours, sieve) = (hits(&trace, "ours"), hits(&trace, "sieve"));
            assert!(
                ours.objects > hits(&trace, "lru").objects && ours.objects > sieve.objects,
                "{share}: {ours:?} {sieve:?}"
            );
        }
    }
}
