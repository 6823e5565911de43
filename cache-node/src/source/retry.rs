//! Trying again: with exponential backoff and jitter, as long as the failure is one that may pass, and never sooner than the source asks.
//!
//! A reader waits at most [`LONGEST`] for the last try to begin. One try fails after the times in [`super::attempt`], its second request (see
//! [`super::hedge`]) as much later.

use std::future::Future;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use tokio::time::Instant;

use super::attempt::{self, Progress};
use super::{ObjectVersion, Source, SourceError};
use crate::memory::Buffers;
use crate::units::ByteRange;

/// After this no further try begins. A `Retry-After` that leads beyond it is a failure at once: who asks later may have more luck.
pub const LONGEST: Duration = Duration::from_secs(30);

/// Longest pause that the backoff makes by itself.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Most that a pause asked for by the source is longer than that, so that not everyone comes back at once.
const SPREAD: Duration = Duration::from_millis(250);

/// How often and how patiently to try again.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Tries after the first.
    pub retries: usize,
    /// Before the second try; doubled for each further one.
    pub first_wait: Duration,
}

/// For the first page of a listing: a problem is to be seen within seconds, and the listing is begun again anyway.
pub const FIRST_PAGE: Patience = Patience { retries: 1, first_wait: Duration::from_millis(100) };

/// For further pages: to begin again may cost thousands of requests.
pub const FURTHER_PAGES: Patience = READING;

/// For reads: about six seconds of a source that is away.
pub const READING: Patience = Patience { retries: 6, first_wait: Duration::from_millis(100) };

/// Runs `attempt` until it succeeds, fails for good, or patience ends.
pub async fn with_retries<T, F, Fut>(patience: Patience, mut attempt: F) -> Result<T, SourceError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, SourceError>>,
{
    let began = Instant::now();
    let mut backoff = ExponentialBuilder::default()
        .with_min_delay(patience.first_wait)
        .with_max_delay(LONGEST_PAUSE)
        .with_max_times(patience.retries)
        .with_jitter()
        .build();
    loop {
        let error = match attempt().await {
            Err(error) if error.is_transient() => error,
            result => return result,
        };
        let Some(pause) = backoff.next() else { return Err(error) };
        let asked = error.retry_after().unwrap_or_default();
        let pause = if asked > pause { asked.saturating_add(pause.min(SPREAD)) } else { pause };
        if began.elapsed().saturating_add(pause) > LONGEST {
            let why = if asked.is_zero() {
                String::new()
            } else {
                format!("; it asks to be left alone for {} s, which is longer than a reader waits", asked.as_secs())
            };
            return Err(error.and(&why));
        }
        tracing::debug!(%error, ?pause, "trying the source again");
        tokio::time::sleep(pause).await;
    }
}

/// Reads a whole range into memory, so that a body that breaks off is asked for again. Exactly `range.length` bytes, or an error.
pub async fn read_range(
    source: &dyn Source,
    patience: Patience,
    object: &ObjectVersion,
    range: ByteRange,
) -> Result<Bytes, SourceError> {
    let once = || async {
        let (bytes, ()) =
            attempt::read(source, object, range, &Progress::default(), &Buffers::fresh(), || async { Some(()) })
                .await?;
        Ok(bytes)
    };
    with_retries(patience, once).await
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::problem::Reason;

    /// When each try began, for a source that always fails so.
    async fn tries(patience: Patience, error: SourceError) -> (Vec<Duration>, SourceError) {
        let (began, times) = (Instant::now(), Mutex::new(Vec::new()));
        let result: Result<(), _> = with_retries(patience, || {
            times.lock().push(began.elapsed());
            let error = error.clone();
            async move { Err(error) }
        })
        .await;
        (times.into_inner(), result.unwrap_err())
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_may_pass_is_tried_again_and_only_so_often() {
        let (times, error) = tries(READING, SourceError::transient(Reason::SourceError, "500")).await;
        assert_eq!((times.len(), error.to_string().as_str()), (7, "500"));
        assert!(*times.last().unwrap() >= Duration::from_millis(6300), "{times:?}");
        assert!(*times.last().unwrap() < LONGEST, "{times:?}");
        let (times, _) = tries(READING, SourceError::permanent(Reason::AccessDenied, "403")).await;
        assert_eq!(times.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_source_is_never_asked_sooner_than_it_wants() {
        for seconds in [1, 3, 9] {
            let asked = Duration::from_secs(seconds);
            let (times, error) = tries(READING, SourceError::overload("503").with_retry_after(Some(asked))).await;
            assert!(times.array_windows().all(|[a, b]| *b >= *a + asked), "{times:?}");
            assert!(times.len() >= 3 && *times.last().unwrap() <= LONGEST, "{times:?}");
            assert_eq!(error.to_string().contains("longer than a reader waits"), times.len() < 7, "{error}");
        }
        let hour = SourceError::overload("503").with_retry_after(Some(Duration::from_secs(3600)));
        let (times, error) = tries(READING, hour).await;
        assert_eq!(times.len(), 1);
        assert!(error.to_string().contains("3600 s"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn slow_failures_end_patience_too() {
        let (began, mut count) = (Instant::now(), 0);
        let result: Result<(), _> = with_retries(READING, || {
            count += 1;
            async {
                tokio::time::sleep(Duration::from_secs(8)).await;
                Err(SourceError::transient(Reason::SourceError, "stalled"))
            }
        })
        .await;
        assert!(result.is_err() && (3..=5).contains(&count), "{count}");
        assert!(began.elapsed() < LONGEST + Duration::from_secs(9));
    }
}
