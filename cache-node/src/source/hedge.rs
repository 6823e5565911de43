//! When a request gets a second one beside it: when it takes longer than nearly all others of its size did lately, and to begin anew is
//! likely to be quicker. At most one request, and one byte, in a hundred is spent so; then the slow ones are waited for as before.
//! Only decides; times and sizes go in, a [`Verdict`] comes out.

use std::collections::VecDeque;
use std::time::Duration;

/// Requests that are remembered of each size class ...
const WINDOW: usize = 256;
/// ... and how many new ones change the percentiles.
const REFRESH: usize = 16;
/// With fewer than this nothing is known of a class.
const ENOUGH: usize = 20;
/// A request this much slower than the 95th percentile is slow ...
const FACTOR: u32 = 2;
/// ... but none that is quicker than this: on a fast line the percentile is noise.
const FLOOR: Duration = Duration::from_millis(50);
/// What is slow while nothing is known.
const UNKNOWN: Duration = Duration::from_secs(1);
/// Hedges for each request, ...
const SHARE: f64 = 0.01;
/// ... and how many of them may be saved up for a bad moment.
const SAVED: f64 = 10.0;
/// One is there from the beginning.
const AT_FIRST: f64 = 1.0;

/// Requests that can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeClass {
    /// Up to 64 KiB: all latency.
    Small,
    /// Up to 1 MiB.
    Medium,
    /// Up to a chunk: mostly transfer.
    Large,
}

impl SizeClass {
    /// The class of a request for so many bytes.
    pub fn of(length: u64) -> Self {
        match length {
            0..=0x1_0000 => Self::Small,
            0x1_0001..=0x10_0000 => Self::Medium,
            _ => Self::Large,
        }
    }
}

/// What to do about a request that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send another one, if the budget allows.
    Hedge,
    /// Nothing; look again when the request is so old.
    LookAgain(Duration),
}

/// The late requests to one source.
#[derive(Debug, Default)]
pub struct Hedger {
    classes: [ClassStats; 3],
}

#[derive(Debug)]
struct ClassStats {
    /// How long whole requests took, the oldest first.
    times: VecDeque<Duration>,
    unseen: usize,
    p95: Option<Duration>,
    /// Hedges that may be made.
    requests: f64,
    /// Bytes that they may ask for.
    bytes: f64,
    largest: f64,
}

impl Default for ClassStats {
    fn default() -> Self {
        Self { times: VecDeque::new(), unseen: 0, p95: None, requests: AT_FIRST, bytes: 0.0, largest: 0.0 }
    }
}

impl Hedger {
    fn class(&mut self, class: SizeClass) -> &mut ClassStats {
        let [small, medium, large] = &mut self.classes;
        match class {
            SizeClass::Small => small,
            SizeClass::Medium => medium,
            SizeClass::Large => large,
        }
    }

    /// A request for so many bytes is sent; how old it may get before it is looked at.
    pub fn begin(&mut self, length: u64) -> Duration {
        let class = self.class(SizeClass::of(length));
        let length = length as f64;
        if length > class.largest {
            // One hedge of the largest size is affordable from the beginning.
            class.bytes += AT_FIRST * (length - class.largest);
            class.largest = length;
        }
        class.requests = (class.requests + SHARE).min(SAVED);
        class.bytes = (class.bytes + SHARE * length).min(SAVED * class.largest);
        class.slow()
    }

    /// A request has ended well after so long; or it was overtaken, and would have taken at least so long.
    pub fn end(&mut self, length: u64, took: Duration) {
        self.class(SizeClass::of(length)).add(took);
    }

    /// What to do about a request that is so old and has brought so much.
    pub fn look(&mut self, length: u64, age: Duration, received: u64) -> Verdict {
        let class = self.class(SizeClass::of(length));
        let slow = class.slow();
        if age < slow {
            return Verdict::LookAgain(slow);
        }
        if received == 0 {
            return Verdict::Hedge;
        }
        // It moves. At the rate so far it needs this much longer; a new one needs about what most need.
        // While nothing is known, what moves is left alone: a narrow line is no slow source.
        let Some(fresh) = class.p95 else { return Verdict::LookAgain(age + slow / 2) };
        let left = length.saturating_sub(received) as f64 / received as f64;
        if age.as_secs_f64() * left > fresh.as_secs_f64() {
            return Verdict::Hedge;
        }
        Verdict::LookAgain(age + (slow / 2).max(FLOOR))
    }

    /// Takes a hedge of so many bytes out of the budget; false when there is none left.
    pub fn spend(&mut self, length: u64) -> bool {
        let class = self.class(SizeClass::of(length));
        let length = length as f64;
        if class.requests < 1.0 || class.bytes < length {
            return false;
        }
        class.requests -= 1.0;
        class.bytes -= length;
        true
    }
}

impl ClassStats {
    fn slow(&self) -> Duration {
        self.p95.map_or(UNKNOWN, |p95| (p95 * FACTOR).max(FLOOR))
    }

    fn add(&mut self, took: Duration) {
        if self.times.len() == WINDOW {
            self.times.pop_front();
        }
        self.times.push_back(took);
        self.unseen += 1;
        if self.times.len() >= ENOUGH && (self.p95.is_none() || self.unseen >= REFRESH) {
            self.unseen = 0;
            let mut sorted: Vec<_> = self.times.iter().copied().collect();
            let rank = sorted.len() * 95 / 100;
            let (_, p95, _) = sorted.select_nth_unstable(rank);
            self.p95 = Some(*p95);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Runs requests of these times one after the other, a second request taking the next time of the trace; the times as a reader sees
    /// them, how many hedges there were, and how many bytes were asked for.
    fn replay(hedger: &mut Hedger, length: u64, times: &[Duration]) -> (Vec<Duration>, usize, u64) {
        let (mut seen, mut hedges, mut bytes) = (Vec::new(), 0, 0);
        for (n, first) in times.iter().enumerate() {
            bytes += length;
            let mut age = hedger.begin(length);
            let mut took = *first;
            while age < *first {
                match hedger.look(length, age, 0) {
                    Verdict::LookAgain(later) => age = later,
                    Verdict::Hedge => {
                        if hedger.spend(length) {
                            hedges += 1;
                            bytes += length;
                            took = took.min(age + times[(n + 1) % times.len()]);
                        }
                        break;
                    }
                }
            }
            hedger.end(length, took);
            seen.push(took);
        }
        (seen, hedges, bytes)
    }

    fn percentile(times: &[Duration], share: f64) -> Duration {
        let mut times = times.to_vec();
        times.sort_unstable();
        times[((times.len() - 1) as f64 * share) as usize]
    }

    #[test]
    fn the_tail_is_cut_and_the_budget_holds() {
        // One of 150 stalls for ten seconds, the others take 20 to 60 ms.
        let times: Vec<_> = (0_u32..15_000)
            .map(|n| if n % 150 == 149 { MS * 10_000 } else { MS * (20 + n.wrapping_mul(2_654_435_761) % 41) })
            .collect();
        assert!(percentile(&times, 0.995) >= MS * 10_000);
        let (seen, hedges, bytes) = replay(&mut Hedger::default(), 4096, &times);
        assert!(percentile(&seen, 0.999) < MS * 200, "{:?}", percentile(&seen, 0.999));
        assert!(hedges <= 15_000 / 100 + 1 && bytes <= 15_000 * 4096 * 101 / 100 + 4096, "{hedges} {bytes}");
    }

    #[test]
    fn on_a_narrow_line_the_first_requests_are_not_sent_twice() {
        let (mut hedger, length) = (Hedger::default(), 4 << 20);
        let age = hedger.begin(length);
        assert_eq!(hedger.look(length, age, 0), Verdict::Hedge);
        assert!(matches!(hedger.look(length, age, 1000), Verdict::LookAgain(later) if later > age));
    }

    #[test]
    fn a_source_that_turns_slow_altogether_is_not_asked_twice() {
        let mut hedger = Hedger::default();
        replay(&mut hedger, 4096, &vec![MS * 30; 2000]);
        let (_, hedges, _) = replay(&mut hedger, 4096, &vec![MS * 300; 1000]);
        assert!(hedges <= 20, "{hedges}");
        let (_, hedges, _) = replay(&mut hedger, 4096, &vec![MS * 300; 10_000]);
        assert_eq!(hedges, 0, "it is what most take now");
    }

    #[test]
    fn noise_on_a_fast_line_is_no_reason() {
        let times: Vec<_> = (0..5000).map(|n| if n % 20 == 0 { MS * 40 } else { MS }).collect();
        assert_eq!(replay(&mut Hedger::default(), 4096, &times).1, 0);
    }

    #[test]
    fn a_body_that_nearly_is_there_is_waited_for() {
        let (mut hedger, chunk) = (Hedger::default(), 4 << 20);
        replay(&mut hedger, chunk, &vec![MS * 100; 100]);
        assert_eq!(hedger.begin(chunk), MS * 200);
        assert_eq!(hedger.look(chunk, MS * 100, chunk / 8), Verdict::LookAgain(MS * 200));
        assert_eq!(hedger.look(chunk, MS * 200, chunk - chunk / 8), Verdict::LookAgain(MS * 300));
        // It has stopped there.
        assert_eq!(hedger.look(chunk, MS * 1000, chunk - chunk / 8), Verdict::Hedge);
        assert_eq!(hedger.look(chunk, MS * 200, chunk / 8), Verdict::Hedge);
        assert_eq!(hedger.look(chunk, MS * 200, 0), Verdict::Hedge);
    }

    #[test]
    fn while_nothing_is_known_a_second_is_slow_and_one_hedge_is_there() {
        let mut hedger = Hedger::default();
        assert_eq!(hedger.begin(4096), UNKNOWN);
        assert_eq!(hedger.look(4096, UNKNOWN, 0), Verdict::Hedge);
        assert!(hedger.spend(4096) && !hedger.spend(4096));
        hedger.begin(4 << 20);
        assert!(hedger.spend(4 << 20), "another size has its own budget");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]

        #[test]
        fn whatever_the_times_one_percent_and_what_was_saved_is_all(times in proptest::collection::vec(0_u32..20_000, 1..2000), length in 1_u64..(4 << 20)) {
            let times: Vec<_> = times.into_iter().map(|time| MS * time).collect();
            let (_, hedges, bytes) = replay(&mut Hedger::default(), length, &times);
            prop_assert!(hedges as f64 <= times.len() as f64 * SHARE + AT_FIRST + 1e-6);
            prop_assert!(bytes as f64 <= (times.len() as f64 * (1.0 + SHARE) + AT_FIRST + 1e-6) * length as f64);
        }
    }
}
