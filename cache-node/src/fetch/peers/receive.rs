//! The reading half of a connection: headers from a small buffer, chunks' bytes straight into the buffers they stay in, checked as they come.

use std::sync::Arc;

use bytes::Bytes;
use forebay_protocol::transfer::{Answer, ServerFrame, Status};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::link::{Answered, Dial, LinkError, State};

/// Bytes that are checked at once, while the processor still has them at hand.
const CHECKED: usize = 256 << 10;

struct Incoming<R> {
    from: R,
    ahead: Vec<u8>,
    begin: usize,
    end: usize,
}

/// Reads until the connection ends.
pub(super) async fn run<R: AsyncRead + Unpin>(from: R, state: &State, dial: &Dial) -> Result<(), LinkError> {
    let mut incoming = Incoming { from, ahead: vec![0; dial.read_ahead], begin: 0, end: 0 };
    loop {
        match incoming.header().await? {
            ServerFrame::Pong(_) => state.heard(),
            ServerFrame::Answer(answer) => {
                let request = state.take(answer.number)?;
                if request.answer.is_closed() {
                    // Nobody wants it any more, and nobody holds memory for it.
                    incoming.discard(answer.length as usize, state).await?;
                    continue;
                }
                let length = answer.length as usize;
                let mut buffer = dial.buffers.take(length);
                let crc = incoming.fill(buffer.as_mut(), state).await?;
                let Answer { status, was_cached, .. } = answer;
                let sound = status != Status::Chunk || answer.length == request.length && crc == answer.crc;
                let bytes = if length == 0 { Bytes::new() } else { Bytes::from_owner(buffer) };
                let answered = Answered { status, was_cached, bytes, crc: answer.crc, sound };
                // Who asked may have gone meanwhile.
                let _ = request.answer.send(Ok(answered));
            }
        }
    }
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    fn ready(&self) -> &[u8] {
        self.ahead.get(self.begin..self.end).unwrap_or_default()
    }

    async fn header(&mut self) -> Result<ServerFrame, LinkError> {
        loop {
            if let Some((frame, used)) = ServerFrame::decode(self.ready())? {
                self.begin += used;
                return Ok(frame);
            }
            self.ahead.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
            // There is room: what is ready is shorter than a header.
            self.end += some(self.from.read(self.ahead.get_mut(self.end..).unwrap_or_default()).await)?;
        }
    }

    /// Fills `to` and returns its crc32c.
    async fn fill(&mut self, to: &mut [u8], state: &State) -> Result<u32, LinkError> {
        let ready = self.ready();
        let copied = ready.len().min(to.len());
        let (first, mut rest) = to.split_at_mut(copied);
        first.copy_from_slice(ready.get(..copied).unwrap_or_default());
        self.begin += copied;
        let mut crc = crc32c::crc32c(first);
        while !rest.is_empty() {
            let part = rest.len().min(CHECKED);
            let read = some(self.from.read(rest.get_mut(..part).unwrap_or_default()).await)?;
            state.heard();
            let (new, behind) = rest.split_at_mut(read);
            crc = crc32c::crc32c_append(crc, new);
            rest = behind;
        }
        Ok(crc)
    }

    async fn discard(&mut self, length: usize, state: &State) -> Result<(), LinkError> {
        let mut missing = length;
        loop {
            let skipped = missing.min(self.end - self.begin);
            self.begin += skipped;
            missing -= skipped;
            if missing == 0 {
                return Ok(());
            }
            (self.begin, self.end) = (0, some(self.from.read(&mut self.ahead).await)?);
            state.heard();
        }
    }
}

fn some(read: std::io::Result<usize>) -> Result<usize, LinkError> {
    match read {
        Ok(0) => Err(LinkError::Closed),
        Ok(read) => Ok(read),
        Err(error) => Err(LinkError::Broken(Arc::new(error))),
    }
}

/// What requests for chunks of these lengths get from a peer that sends `bytes`, and why the connection ended. For the fuzz target.
pub(crate) async fn from_peer(
    bytes: &[u8],
    lengths: &[u32],
    dial: &Dial,
) -> (Vec<Option<Answered>>, Result<(), LinkError>) {
    let (state, mut answers) = State::expecting(lengths);
    let ended = run(bytes, &state, dial).await;
    (answers.iter_mut().map(|answer| answer.try_recv().ok()?.ok()).collect(), ended)
}
