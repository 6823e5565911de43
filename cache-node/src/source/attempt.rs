//! One try to read a range: the whole of it into memory, within limits of time that follow its progress. What comes is waited for, what does
//! not come is given up within seconds.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::time::{Instant, timeout};

use super::{ObjectVersion, Source, SourceError};
use crate::memory::{Buffer, Buffers};
use crate::problem::Reason;
use crate::units::ByteRange;

/// Until an answer begins, connecting included.
pub const FIRST_BYTE: Duration = Duration::from_secs(8);
/// Longest silence within a body.
pub const SILENCE: Duration = Duration::from_secs(4);
/// In each span of this length ...
pub const SPAN: Duration = Duration::from_secs(8);
/// ... a body that goes on must bring so much: 32 KiB/s. A chunk takes at most 128 s so; a node's chunks in flight together some 1 MiB/s.
pub const LEAST_PER_SPAN: u64 = 256 << 10;

/// How far a try is, for who watches it.
#[derive(Debug, Default)]
pub struct Progress {
    received: AtomicU64,
}

impl Progress {
    /// Bytes of the body so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// What must be held while the bytes of a range come. It may take them piece by piece, so that they are not gathered in memory.
pub trait Hold {
    /// Takes what comes next. False: it is to be gathered, and so is all of the try.
    fn take(&mut self, _piece: &[u8]) -> io::Result<bool> {
        Ok(false)
    }
}

impl Hold for () {}

/// Reads a range once. `hold` gives what must be held while its bytes are in memory; it is asked for when the answer begins, so that a source
/// that is silent holds nothing. None: the node is stopping. A body that comes in pieces is gathered in one of `buffers`, unless what is held takes
/// them; then there are no bytes.
pub async fn read<H, F>(
    source: &dyn Source,
    object: &ObjectVersion,
    range: ByteRange,
    progress: &Progress,
    buffers: &Buffers,
    hold: impl FnOnce() -> F,
) -> Result<(Bytes, H), SourceError>
where
    H: Hold,
    F: Future<Output = Option<H>>,
{
    let failed = |cause: String| {
        let message = format!("reading {range} of {}: {cause}", source.describe(object));
        SourceError::transient(Reason::SourceError, message)
    };
    let wrong_length =
        |got: usize| failed(format!("the source sent {got} bytes instead of {}; it is asked again", range.length));
    let answer = timeout(FIRST_BYTE, source.get(object, range)).await;
    let late = |_| {
        failed(format!("no answer within {} s; check the source's load and the network to it", FIRST_BYTE.as_secs()))
    };
    let mut body = answer.map_err(late)??;
    let mut held = hold().await.ok_or_else(|| failed("the node is stopping".to_owned()))?;
    let mut pace = Pace::new(Instant::now());
    let length = usize::try_from(range.length).unwrap_or(usize::MAX);
    let mut all: Option<Buffer> = None;
    let mut whole: Option<Bytes> = None;
    let mut got = 0;
    loop {
        let stalled = |_| {
            failed(format!(
                "the answer stalls after {got} of {} bytes; check the source's load and the network to it",
                range.length
            ))
        };
        let Some(piece) = timeout(SILENCE, body.next()).await.map_err(stalled)? else { break };
        let piece = piece?;
        let before = got;
        got += piece.len();
        progress.received.store(got as u64, Ordering::Relaxed);
        if got > length {
            return Err(wrong_length(got));
        }
        let taken = held.take(&piece).map_err(|error| failed(format!("what came can't be written: {error}")))?;
        if !taken && all.is_none() && piece.len() == length {
            // The common case of small objects: no copy.
            whole = Some(piece);
            continue;
        }
        if !taken {
            let all = all.get_or_insert_with(|| buffers.take(length));
            if let Some(place) = all.as_mut().get_mut(before..got) {
                place.copy_from_slice(&piece);
            }
        }
        if got < length && !pace.is_enough(Instant::now(), got as u64) {
            return Err(failed(format!(
                "the answer trickles: {got} of {} bytes, less than {} KiB in {} s; check the source's load and the network to it",
                range.length,
                LEAST_PER_SPAN >> 10,
                SPAN.as_secs()
            )));
        }
    }
    if got != length {
        return Err(wrong_length(got));
    }
    Ok((whole.or_else(|| all.map(Bytes::from_owner)).unwrap_or_default(), held))
}

/// Whether a body goes on fast enough.
#[derive(Debug)]
struct Pace {
    since: Instant,
    before: u64,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { since: now, before: 0 }
    }

    fn is_enough(&mut self, now: Instant, received: u64) -> bool {
        if now.duration_since(self.since) < SPAN {
            return true;
        }
        let enough = received - self.before >= LEAST_PER_SPAN;
        (self.since, self.before) = (now, received);
        enough
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use futures::stream;

    use super::*;
    use crate::source::{Body, Listing};

    /// Sends pieces of these sizes, each after a pause.
    #[derive(Clone, Debug)]
    struct Slow {
        answers_after: Duration,
        pieces: Vec<(Duration, usize)>,
    }

    #[async_trait]
    impl Source for Slow {
        fn list(&self) -> Listing {
            stream::empty().boxed()
        }

        async fn get(&self, _: &ObjectVersion, _: ByteRange) -> Result<Body, SourceError> {
            tokio::time::sleep(self.answers_after).await;
            let pieces = self.pieces.clone().into_iter();
            let pieces = stream::iter(pieces).then(|(pause, size)| async move {
                tokio::time::sleep(pause).await;
                Ok(Bytes::from(vec![7; size]))
            });
            Ok(pieces.boxed())
        }
    }

    async fn run(answers_after: u64, pieces: Vec<(Duration, usize)>, length: u64) -> (Result<usize, String>, Duration) {
        let source = Slow { answers_after: Duration::from_secs(answers_after), pieces };
        let object = ObjectVersion { key: b"some/key".to_vec(), size: length, etag: "e".to_owned() };
        let began = Instant::now();
        let range = ByteRange { offset: 0, length };
        let result =
            read(&source, &object, range, &Progress::default(), &Buffers::fresh(), || async { Some(()) }).await;
        let result = result.map(|(bytes, ())| bytes.len()).map_err(|error| {
            assert!(error.is_transient() && error.to_string().contains("some/key"), "{error}");
            error.to_string()
        });
        (result, began.elapsed())
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn what_comes_is_waited_for() {
        let slowly = vec![(SECOND, 32 << 10); 128];
        assert_eq!(run(7, slowly, 4 << 20).await, (Ok(4 << 20), Duration::from_secs(7 + 128)));
        assert_eq!(run(0, vec![(SECOND * 3, 10)], 10).await.0, Ok(10));
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_come_is_given_up() {
        let hour = SECOND * 3600;
        let (result, after) = run(3600, vec![], 10).await;
        assert!(result.unwrap_err().contains("no answer") && after == FIRST_BYTE);
        let (result, after) = run(0, vec![(SECOND, 5), (hour, 5)], 10).await;
        assert!(result.unwrap_err().contains("stalls after 5 of 10") && after == SECOND + SILENCE);
        let (result, after) = run(0, vec![(hour, 10)], 10).await;
        assert!(result.unwrap_err().contains("stalls after 0") && after == SILENCE);
        let (result, after) = run(0, vec![(SECOND, 1); 4096], 4096).await;
        assert!(result.unwrap_err().contains("trickles") && after == SPAN);
        assert!(run(0, vec![(SECOND, 5)], 10).await.0.unwrap_err().contains("5 bytes instead of 10"));
        assert!(run(0, vec![(SECOND, 15)], 10).await.0.unwrap_err().contains("15 bytes instead of 10"));
    }
}
