//! Who waits for room, and when waiting is no use: after one wait in vain those that come are refused at once, until something has been let go.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How long a write waits for room.
pub(super) const LONGEST: Duration = Duration::from_secs(5);

/// How long a wait in vain is remembered after the last refusal because of it. Longer than the plugin's pause between two looks at who waits.
const REMEMBERED: Duration = LONGEST;

/// The writers that can't go on before there is room.
#[derive(Debug, Default)]
pub(super) struct Patience {
    waiting: AtomicUsize,
    in_vain: Mutex<Option<InVain>>,
}

/// Somebody has waited so long that others need not.
#[derive(Debug)]
struct InVain {
    /// Bytes that were taken then, and would have had to be let go.
    taken: u64,
    /// When a writer was refused last.
    refused: Instant,
}

/// A writer that waits for room, until this is dropped.
#[derive(Debug)]
pub(super) struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Patience {
    /// Somebody waits for room from now on.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(&self.waiting)
    }

    /// Somebody has waited as long as there is patience, and so many bytes are taken still.
    pub(super) fn end(&self, taken: u64) {
        *self.in_vain.lock() = Some(InVain { taken, refused: Instant::now() });
    }

    /// Whether it is no use to wait while so many bytes are taken: nothing has been let go since somebody waited in vain.
    pub(super) fn is_no_use(&self, taken: u64) -> bool {
        let mut in_vain = self.in_vain.lock();
        let now = Instant::now();
        *in_vain = in_vain.take().filter(|it| taken >= it.taken && now - it.refused < REMEMBERED);
        in_vain.as_mut().is_some_and(|it| {
            it.refused = now;
            true
        })
    }

    /// Whether somebody needs room now, waiting for it or refused.
    pub(super) fn is_tried(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
            || self.in_vain.lock().as_ref().is_some_and(|it| it.refused.elapsed() < REMEMBERED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_waits_in_vain_for_all_until_something_is_let_go_or_nobody_comes() {
        let patience = Patience::default();
        assert!(!patience.is_no_use(100) && !patience.is_tried());
        let waiting = patience.wait();
        assert!(patience.is_tried());
        patience.end(100);
        drop(waiting);
        for taken in [100, 120, 100] {
            assert!(patience.is_no_use(taken));
            tokio::time::advance(REMEMBERED / 2).await;
            assert!(patience.is_tried());
        }
        assert!(!patience.is_no_use(99));
        assert!(!patience.is_no_use(100) && !patience.is_tried(), "the next waits again");
        patience.end(100);
        tokio::time::advance(REMEMBERED).await;
        assert!(!patience.is_tried());
        assert!(!patience.is_no_use(100), "much may have happened since");
    }
}
