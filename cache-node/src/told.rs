//! What would be said many times a second, and is said to the log now and then.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Least time between two of the same lines in the log.
const PAUSE: Duration = Duration::from_secs(10);

/// When something was said last.
#[derive(Debug, Default)]
pub struct Told(Mutex<Option<Instant>>);

impl Told {
    /// Whether it is to be said now; if so, it is not again for a while.
    pub fn is_due(&self) -> bool {
        let mut last = self.0.lock();
        let due = last.is_none_or(|last| last.elapsed() >= PAUSE);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_once_and_again_after_a_pause() {
        let told = Told::default();
        assert!(told.is_due());
        assert!(!told.is_due());
        *told.0.lock() = Instant::now().checked_sub(PAUSE);
        assert!(told.is_due());
        assert!(!told.is_due());
    }
}
