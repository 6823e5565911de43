//! Space that unlinked objects keep because the kernel caches their inodes: when the cache node says that it is missed, the trees over its cache are
//! remounted, which lets go. Not oftener than pays: what is looked up after a remount costs its lookup again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_fuse::NodeClient;
use forebay_protocol::local::Held;
use tokio::time::Instant;

use crate::mount;

/// How often the node is asked. Somebody who waits for room gives up after 5 s.
pub const LOOK: Duration = Duration::from_secs(1);

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Least time between two remounts. It doubles up to [`LONGEST_PAUSE`] while they don't help, because what is held is open.
const PAUSE: Duration = Duration::from_secs(10);

/// Most time between two remounts that are due.
const LONGEST_PAUSE: Duration = Duration::from_secs(160);

/// The part of the capacity that may be held while nobody waits: 1 %.
const TOLERATED: u64 = 100;

/// What is known of one cache's held space.
#[derive(Debug)]
pub struct Space {
    node: NodeClient,
    rate: Rate,
    held_bytes: u64,
}

impl Space {
    /// Of the cache whose node listens at `socket`. Must be called within a tokio runtime.
    pub fn new(socket: &Path) -> Self {
        Self { node: NodeClient::new(socket), rate: Rate::default(), held_bytes: 0 }
    }

    /// Whether the node is there to be asked.
    pub fn is_node_there(&self) -> bool {
        self.node.connected().is_some()
    }

    /// How much was held when the node was asked last.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Asks the node, and remounts the trees over its cache if that is due. Gives how many were.
    pub async fn look(&mut self, trees: Vec<PathBuf>) -> u64 {
        let Ok(Some(held)) = tokio::time::timeout(PATIENCE, self.node.held()).await else { return 0 };
        self.held_bytes = held.held_bytes;
        let mut remounted = 0;
        if !self.rate.is_due(&held, Instant::now()) {
            return remounted;
        }
        for tree in trees {
            let at = tree.display().to_string();
            match tokio::task::spawn_blocking(move || mount::overlay::let_go(&tree)).await {
                Ok(Ok(())) => {
                    remounted += 1;
                    tracing::info!(tree = at, held_bytes = held.held_bytes, "remounted to free evicted objects");
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, held_bytes = held.held_bytes, "evicted objects keep their space");
                }
                Err(error) => tracing::warn!(%error, "a thread panicked"),
            }
        }
        remounted
    }
}

/// When a remount is due.
#[derive(Debug, Default)]
struct Rate {
    /// The last one: when, how much was held before it, and how long the next one has to wait if that stays so.
    last: Option<(Instant, u64, Duration)>,
}

impl Rate {
    fn is_due(&mut self, held: &Held, now: Instant) -> bool {
        let missed = held.held_bytes > held.capacity_bytes / TOLERATED || held.waited_for && held.held_bytes > 0;
        if !missed {
            return false;
        }
        let about = |before: u64| held.held_bytes.abs_diff(before) <= before / 10;
        let in_vain = self.last.filter(|(_, before, _)| about(*before));
        let pause = in_vain.map_or(PAUSE, |(.., pause)| pause);
        if self.last.is_some_and(|(at, ..)| now - at < pause) {
            return false;
        }
        let next = if in_vain.is_some() { (pause * 2).min(LONGEST_PAUSE) } else { PAUSE };
        self.last = Some((now, held.held_bytes, next));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(held_bytes: u64, waited_for: bool) -> Held {
        Held { held_bytes, capacity_bytes: 1000, waited_for }
    }

    #[test]
    fn a_remount_is_due_when_more_than_a_hundredth_is_held_or_somebody_waits() {
        let now = Instant::now();
        assert!(!Rate::default().is_due(&held(10, false), now));
        assert!(Rate::default().is_due(&held(11, false), now));
        assert!(Rate::default().is_due(&held(1, true), now));
        assert!(!Rate::default().is_due(&held(0, true), now));
    }

    #[test]
    fn remounts_that_do_not_help_become_rare_and_new_evictions_make_them_usual_again() {
        let (began, mut rate) = (Instant::now(), Rate::default());
        let mut remounts = Vec::new();
        for second in 0..600 {
            if rate.is_due(&held(500, true), began + Duration::from_secs(second)) {
                remounts.push(second);
            }
        }
        assert_eq!(remounts, [0, 10, 30, 70, 150, 310, 470]);
        assert!(rate.is_due(&held(700, false), began + Duration::from_secs(600)));
        assert!(!rate.is_due(&held(900, false), began + Duration::from_secs(605)));
        assert!(rate.is_due(&held(900, false), began + Duration::from_secs(610)));
    }
}
