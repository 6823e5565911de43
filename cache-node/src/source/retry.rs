//! Trying again: with exponential backoff and jitter, as long as the failure is one that may pass, and never sooner than the source asks.

use std::future::Future;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;

use super::{ObjectVersion, Source, SourceError};
use crate::problem::Reason;
use crate::units::ByteRange;

/// The longest that a source's `Retry-After` is obeyed; a reader waits meanwhile.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

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
pub async fn with_retries<T, F, Fut>(patience: Patience, attempt: F) -> Result<T, SourceError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, SourceError>>,
{
    let backoff = ExponentialBuilder::default()
        .with_min_delay(patience.first_wait)
        .with_max_delay(LONGEST_WAIT)
        .with_max_times(patience.retries)
        .with_jitter();
    attempt
        .retry(backoff)
        .when(SourceError::is_transient)
        .adjust(|error, wait| wait.map(|wait| wait.max(error.retry_after().unwrap_or_default()).min(LONGEST_WAIT)))
        .notify(|error, wait| tracing::debug!(%error, ?wait, "trying the source again"))
        .await
}

/// Reads a whole range into memory, so that a body that breaks off is asked for again. Exactly `range.length` bytes, or an error.
pub async fn read_range(
    source: &dyn Source,
    patience: Patience,
    object: &ObjectVersion,
    range: ByteRange,
) -> Result<Bytes, SourceError> {
    with_retries(patience, || read_once(source, object, range)).await
}

async fn read_once(source: &dyn Source, object: &ObjectVersion, range: ByteRange) -> Result<Bytes, SourceError> {
    let wrong_length = |got: usize| {
        SourceError::transient(
            Reason::SourceError,
            format!("reading {range} of {object:?}: the source sent {got} bytes instead of {}", range.length),
        )
    };
    let mut body = source.get(object, range).await?;
    let length = usize::try_from(range.length).unwrap_or(usize::MAX);
    let mut all: Option<BytesMut> = None;
    while let Some(piece) = body.next().await {
        let piece = piece?;
        if all.is_none() && piece.len() == length {
            // The common case of small objects: no copy.
            return match body.next().await {
                None => Ok(piece),
                Some(Ok(more)) => Err(wrong_length(length + more.len())),
                Some(Err(error)) => Err(error),
            };
        }
        let all = all.get_or_insert_with(|| BytesMut::with_capacity(length));
        if all.len() + piece.len() > length {
            return Err(wrong_length(all.len() + piece.len()));
        }
        all.extend_from_slice(&piece);
    }
    let all = all.unwrap_or_default();
    if all.len() == length { Ok(all.freeze()) } else { Err(wrong_length(all.len())) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const QUICK: Patience = Patience { retries: 3, first_wait: Duration::from_millis(1) };

    async fn tries(error: SourceError) -> usize {
        let count = AtomicUsize::new(0);
        let result: Result<(), _> = with_retries(QUICK, || {
            count.fetch_add(1, Ordering::Relaxed);
            let error = error.clone();
            async move { Err(error) }
        })
        .await;
        assert_eq!(result.unwrap_err(), error);
        count.into_inner()
    }

    #[tokio::test]
    async fn only_what_may_pass_is_tried_again() {
        assert_eq!(tries(SourceError::transient(Reason::SourceError, "503")).await, 4);
        assert_eq!(tries(SourceError::permanent(Reason::AccessDenied, "403")).await, 1);
    }
}
