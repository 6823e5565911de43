//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two looks: a hundredth of the time that has passed, so that it neither shows in what is measured nor keeps the machine busy.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(5);
const LONGEST_INTERVAL: Duration = Duration::from_millis(250);

/// Looks until there is a value; an error when that takes longer than `patience`, a look that does not end included, at once when the look itself
/// fails.
pub async fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut look: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let began = Instant::now();
    let looking = async {
        loop {
            if let Some(value) = look().await? {
                return Ok(value);
            }
            tokio::time::sleep((began.elapsed() / 100).clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL)).await;
        }
    };
    let looked = tokio::time::timeout(patience, looking).await;
    looked.unwrap_or_else(|_| bail!("waited {} s in vain for {what}", patience.as_secs()))
}

/// Runs something until it is done or this process is told to end. What is dropped then cleans up after itself.
pub async fn or_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut hangup) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    tokio::select! {
        result = work => result,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminate.recv() => bail!("told to end"),
        _ = hangup.recv() => bail!("the terminal is gone"),
    }
}
