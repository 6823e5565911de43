//! Waits for a condition, never for a time: polls a probe until it answers, and says what it saw last when it never did.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const INTERVAL: Duration = Duration::from_millis(50);
const LONGEST_INTERVAL: Duration = Duration::from_millis(500);

/// Polls `probe` until it returns a value; each error of it is the current state, and the last one is in our own error.
pub fn wait_until<T>(what: &str, timeout: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let mut interval = INTERVAL;
    loop {
        let state = match probe() {
            Ok(value) => return Ok(value),
            Err(state) => state,
        };
        if let Some(fatal) = state.downcast_ref::<Fatal>() {
            bail!("{what}: {}", fatal.0);
        }
        if start.elapsed() >= timeout {
            bail!("{what}: not within {} s; last state: {state:#}", timeout.as_secs());
        }
        std::thread::sleep(interval);
        interval = (interval * 5 / 4).min(LONGEST_INTERVAL);
    }
}

/// An error of a probe that no waiting heals, such as a process that died.
#[derive(Debug)]
pub struct Fatal(pub String);

impl std::fmt::Display for Fatal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fatal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_that_comes_true_ends_the_wait_with_its_value() {
        let mut tries = 0;
        let value = wait_until("three tries", Duration::from_secs(5), || {
            tries += 1;
            if tries < 3 {
                bail!("{tries}")
            }
            Ok(tries)
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn a_wait_in_vain_names_the_condition_and_the_last_state() {
        let error =
            wait_until("the moon to rise", Duration::ZERO, || -> Result<()> { bail!("still below the horizon") });
        let message = error.unwrap_err().to_string();
        assert_eq!(message, "the moon to rise: not within 0 s; last state: still below the horizon");
    }

    #[test]
    fn a_fatal_state_ends_the_wait_at_once() {
        let error = wait_until("etcd", Duration::from_mins(10), || -> Result<()> { bail!(Fatal("it died".into())) });
        assert_eq!(error.unwrap_err().to_string(), "etcd: it died");
    }
}
