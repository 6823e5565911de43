//! How fast the hand of the main queue goes round. It takes one step for each object that was read since the hand last passed it, so that one round lasts
//! as long as it takes to read about everything once: in training, an epoch. What is not read in two rounds is not part of what is read now.
//!
//! The plain S3-FIFO hand goes as fast as newcomers press, and in an epoch over more data than fits it throws out what is about to be read.

/// Steps for each newcomer, so that a cache that nobody hits is renewed in the end.
const STEPS_A_MISS: f64 = 1.0 / 16.0;

/// What a step costs when main is no longer what is read.
const CHEAP: f64 = 0.1;

/// Main is no longer what is read when objects come back from the ghost more than so many times as often as main is hit.
const RETURNS_TO_HITS: f64 = 2.0;

/// Least memory of hits and returns, in accesses; otherwise it is as long as main.
const LEAST_MEMORY: usize = 100;

/// The steps that the hand may take.
#[derive(Debug, Default)]
pub(super) struct Pace {
    steps: f64,
    /// Hits and returns, of which the older ones count less.
    hits: f64,
    returns: f64,
}

impl Pace {
    /// So many objects were read for the first time since the hand passed them.
    pub(super) fn hits(&mut self, hits: u64, main: usize) {
        self.fade(hits as f64, main);
        self.hits += hits as f64;
        self.earn(hits as f64, main);
    }

    /// An object has come, and may have been here lately.
    pub(super) fn miss(&mut self, returned: bool, main: usize) {
        self.fade(1.0, main);
        self.returns += f64::from(u8::from(returned));
        self.earn(STEPS_A_MISS, main);
    }

    /// Whether the hand may take a step now; it is taken.
    pub(super) fn step(&mut self) -> bool {
        let cost = if self.returns > RETURNS_TO_HITS * self.hits { CHEAP } else { 1.0 };
        let may = self.steps >= cost;
        if may {
            self.steps -= cost;
        }
        may
    }

    fn earn(&mut self, steps: f64, main: usize) {
        self.steps = (self.steps + steps).min(main as f64);
    }

    fn fade(&mut self, accesses: f64, main: usize) {
        let kept = (-accesses / main.max(LEAST_MEMORY) as f64).exp();
        self.hits *= kept;
        self.returns *= kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(pace: &mut Pace) -> usize {
        std::iter::from_fn(|| pace.step().then_some(())).count()
    }

    #[test]
    fn a_step_for_a_hit_and_few_for_newcomers() {
        let mut pace = Pace::default();
        pace.hits(5, 100);
        assert_eq!(steps(&mut pace), 5);
        (0..32).for_each(|_| pace.miss(false, 100));
        assert_eq!(steps(&mut pace), 2);
        pace.hits(1000, 100);
        assert_eq!(steps(&mut pace), 100, "no more than one round is saved up");
    }

    #[test]
    fn when_others_return_and_nobody_hits_main_the_hand_is_quick() {
        let mut pace = Pace::default();
        (0..32).for_each(|_| pace.miss(true, 100));
        assert!(steps(&mut pace) >= 19);
    }
}
