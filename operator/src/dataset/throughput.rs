//! How fast a load goes, from what was loaded at successive times. Kept in memory: after a restart of the operator it is known again in seconds.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Older samples don't count: the pace of late is what tells when it will be done.
const WINDOW: Duration = Duration::from_secs(20);

/// Loaded bytes at successive times.
#[derive(Clone, Debug, Default)]
pub struct Samples(VecDeque<(Instant, u64)>);

impl Samples {
    /// Adds what was loaded at `at`; a time that is known already changes nothing. Less than before means another load.
    pub fn add(&mut self, at: Instant, bytes: u64) {
        if self.0.back().is_some_and(|(last, _)| *last >= at) {
            return;
        }
        if self.0.back().is_some_and(|(_, last)| *last > bytes) {
            self.0.clear();
        }
        self.0.push_back((at, bytes));
        while self.0.len() > 2 && self.0.front().is_some_and(|(first, _)| at.duration_since(*first) > WINDOW) {
            self.0.pop_front();
        }
    }

    /// Bytes per second over the window, once two samples are a second apart.
    pub fn bytes_per_second(&self) -> Option<u64> {
        let ((first, start), (last, end)) = (self.0.front()?, self.0.back()?);
        let seconds = last.duration_since(*first).as_secs_f64();
        (seconds >= 0.9).then(|| ((end - start) as f64 / seconds) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_that_of_the_last_twenty_seconds() {
        let (mut samples, start) = (Samples::default(), Instant::now());
        assert_eq!(samples.bytes_per_second(), None);
        for second in 0..60 {
            let rate = if second < 30 { 10 } else { 100 };
            samples.add(
                start + Duration::from_secs(second),
                if second < 30 { second * rate } else { 300 + (second - 30) * rate },
            );
        }
        assert_eq!(samples.bytes_per_second(), Some(100));
    }

    #[test]
    fn a_load_that_begins_anew_is_measured_anew() {
        let (mut samples, start) = (Samples::default(), Instant::now());
        samples.add(start, 1000);
        samples.add(start + Duration::from_secs(1), 0);
        assert_eq!(samples.bytes_per_second(), None);
    }
}
