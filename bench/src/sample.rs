//! Repeated measurements of one thing, and of two in turn.

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// What several runs gave; never empty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    runs: Vec<f64>,
}

impl Sample {
    /// Of these runs; none when there was none, or one gave no number.
    pub fn new(runs: Vec<f64>) -> Option<Self> {
        (!runs.is_empty() && runs.iter().all(|run| run.is_finite())).then_some(Self { runs })
    }

    /// A thing that was measured once.
    pub fn one(run: f64) -> Option<Self> {
        Self::new(vec![run])
    }

    /// How many runs.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Never, see [`Sample::new`].
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The middle one; of an even number the mean of the middle two.
    pub fn median(&self) -> f64 {
        let mut sorted = self.runs.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        let middle = sorted.len() / 2;
        if sorted.len() % 2 == 1 { at(middle) } else { f64::midpoint(at(middle.saturating_sub(1)), at(middle)) }
    }

    /// The smallest.
    pub fn min(&self) -> f64 {
        self.runs.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The largest.
    pub fn max(&self) -> f64 {
        self.runs.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// Each run divided by its neighbour in time, so that what slows the machine for a while slows both.
    pub fn ratio_to(&self, limit: &Self) -> Option<Self> {
        self.with(limit, |ours, limit| ours / limit)
    }

    /// What each run makes with its neighbour in time.
    pub fn with(&self, other: &Self, make: impl Fn(f64, f64) -> f64) -> Option<Self> {
        Self::new(self.runs.iter().zip(&other.runs).map(|(one, other)| make(*one, *other)).collect())
    }
}

/// Measures two things in turn; who begins changes from run to run.
pub async fn in_turn(
    runs: usize,
    mut ours: impl AsyncFnMut() -> Result<f64>,
    mut limit: impl AsyncFnMut() -> Result<f64>,
) -> Result<(Sample, Sample)> {
    let (mut our_runs, mut limit_runs) = (Vec::new(), Vec::new());
    for run in 0..runs.max(1) {
        if run % 2 == 0 {
            our_runs.push(ours().await?);
            limit_runs.push(limit().await?);
        } else {
            limit_runs.push(limit().await?);
            our_runs.push(ours().await?);
        }
    }
    let both = Sample::new(our_runs).zip(Sample::new(limit_runs));
    both.ok_or_else(|| anyhow::anyhow!("a run gave no number: it took no time, or moved nothing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(runs: &[f64]) -> Sample {
        Sample::new(runs.to_vec()).unwrap()
    }

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        assert!((sample(&[9.0, 1.0, 4.0]).median() - 4.0).abs() < 1e-9);
        assert!((sample(&[9.0, 1.0, 4.0, 5.0]).median() - 4.5).abs() < 1e-9);
        assert!((sample(&[7.0]).median() - 7.0).abs() < 1e-9);
        assert_eq!((sample(&[9.0, 1.0]).min(), sample(&[9.0, 1.0]).max()), (1.0, 9.0));
        assert!(Sample::new(vec![]).is_none() && Sample::new(vec![1.0, f64::NAN]).is_none());
    }

    #[test]
    fn a_ratio_compares_runs_that_were_neighbours() {
        // The machine was slow in the second pair: both halved, and the ratio stays.
        let ratio = sample(&[80.0, 40.0]).ratio_to(&sample(&[100.0, 50.0])).unwrap();
        assert_eq!((ratio.min(), ratio.max()), (0.8, 0.8));
    }

    #[tokio::test]
    async fn two_things_are_measured_in_turn_and_each_begins_half_the_time() {
        let order = std::cell::RefCell::new(String::new());
        let mark = async |letter: char| {
            order.borrow_mut().push(letter);
            Ok(1.0)
        };
        let (ours, limit) = in_turn(3, async || mark('o').await, async || mark('l').await).await.unwrap();
        assert_eq!((order.into_inner().as_str(), ours.len(), limit.len()), ("ollool", 3, 3));
    }
}
