//! Which fault comes next: decided by the seed and what is up, nothing else.

use std::fmt;
use std::time::Duration;

use super::damage::Damage;
use crate::cluster::content::Random;

/// A fault, or the end of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// kill -9.
    Kill {
        /// Which.
        node: usize,
    },
    /// A node that is down comes back, perhaps with something wrong in its cache.
    Start {
        /// Which.
        node: usize,
        /// What is wrong.
        damage: Option<Damage>,
    },
    /// The members' weights, in their order; one of weight 0 owns nothing.
    Weights(Vec<u32>),
}

impl Action {
    /// For the tally.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill { .. } => "kill",
            Self::Start { damage: None, .. } => "restart",
            Self::Start { damage: Some(damage), .. } => damage.kind(),
            Self::Weights(_) => "change of members",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill { node } => write!(f, "kill node {node}"),
            Self::Start { node, damage: None } => write!(f, "start node {node}"),
            Self::Start { node, damage: Some(damage) } => write!(f, "start node {node} after: {}", damage.kind()),
            Self::Weights(weights) => write!(f, "members' weights become {weights:?}"),
        }
    }
}

/// What is up, and the numbers to come.
#[derive(Debug)]
pub struct State {
    random: Random,
    up: Vec<bool>,
}

impl State {
    /// All nodes are up.
    pub fn new(seed: u64, nodes: usize) -> Self {
        Self { random: Random::new(seed), up: vec![true; nodes] }
    }

    /// The nodes that are down.
    pub fn down(&self) -> Vec<usize> {
        self.up.iter().enumerate().filter(|(_, up)| !**up).map(|(node, _)| node).collect()
    }

    /// The next action, and how long to wait before it. Two nodes at least stay up.
    pub fn next_action(&mut self) -> (Duration, Action) {
        let pause = Duration::from_millis(self.random.next() % 1200);
        let down = self.down();
        let action = match (self.random.below(10), down.as_slice()) {
            (0, _) => Action::Weights((0..self.up.len()).map(|node| self.weight(node)).collect()),
            // The more are down, the likelier one comes back.
            (1..=4, [node, ..]) | (_, [node, _, ..]) => {
                let damage = Damage::random(&mut self.random);
                Action::Start { node: *node, damage }
            }
            _ => {
                let up: Vec<_> = self.up.iter().enumerate().filter(|(_, up)| **up).map(|(node, _)| node).collect();
                let chosen = self.random.below(up.len());
                Action::Kill { node: up.get(chosen).copied().unwrap_or_default() }
            }
        };
        match action {
            Action::Kill { node } => self.set(node, false),
            Action::Start { node, .. } => self.set(node, true),
            Action::Weights(_) => {}
        }
        (pause, action)
    }

    fn set(&mut self, node: usize, up: bool) {
        if let Some(state) = self.up.get_mut(node) {
            *state = up;
        }
    }

    /// Somebody always owns something.
    fn weight(&mut self, node: usize) -> u32 {
        if node == 0 { 1 } else { (self.random.next() % 3) as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_the_faults_and_two_nodes_always_stay_up() {
        for seed in 0..200 {
            let (mut one, mut other) = (State::new(seed, 4), State::new(seed, 4));
            let mut kinds = std::collections::BTreeSet::new();
            for _ in 0..200 {
                let (pause, action) = one.next_action();
                assert_eq!((pause, action.clone()), other.next_action());
                assert!(one.down().len() <= 2, "{action}");
                if let Action::Weights(weights) = &action {
                    assert!(weights.iter().sum::<u32>() > 0);
                }
                kinds.insert(action.kind());
            }
            assert_eq!(kinds.len(), 6, "{kinds:?}");
        }
    }
}
