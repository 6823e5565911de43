//! The sending half of a connection: chunks straight from their file by `sendfile`, or through rustls from a buffer that a thread keeps. Nothing
//! is held in memory while the peer takes its time; one that takes nothing for long is given up.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use rustix::net::SendFlags;
use tokio::io::{AsyncWrite, AsyncWriteExt, Interest, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio_rustls::server::TlsStream;

use super::answer::{Body, Ready};
use crate::store::Lent;

/// A peer that takes no byte for so long is gone, or might as well be.
const STALL: Duration = Duration::from_secs(20);

/// Bytes that `sendfile` moves at once, so that one connection doesn't keep a thread for itself.
const SENDFILE: u64 = 1 << 20;

/// What is read, encrypted and written at once: as much as rustls takes.
const PIECE: usize = 64 << 10;

thread_local! {
    static PLAIN: RefCell<Vec<u8>> = RefCell::new(vec![0; PIECE]);
}

/// Where answers go.
#[derive(Debug)]
pub enum Outgoing {
    /// In plain text.
    Plain(OwnedWriteHalf),
    /// Encrypted.
    Tls(WriteHalf<TlsStream<TcpStream>>),
}

/// Why a peer can't be sent anything more.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The connection, or the file of what is being sent.
    #[error("sending: {0}")]
    Io(#[from] io::Error),
    /// Nothing is taken.
    #[error("the peer took nothing for {STALL:?}")]
    Stalled,
    /// A bug.
    #[error("sending panicked")]
    Panicked,
}

impl Outgoing {
    /// Sends an answer.
    pub async fn answer(&mut self, answer: Ready) -> Result<(), SendError> {
        match &answer.body {
            Body::None => self.bytes(&answer.frames).await,
            Body::Bytes(bytes) => {
                self.write(&answer.frames).await?;
                self.bytes(bytes).await
            }
            Body::File(lent) => match self {
                Self::Plain(half) => sendfile(half.as_ref(), &answer.frames, lent).await,
                Self::Tls(half) => {
                    progress(half.write_all(&answer.frames)).await?;
                    encrypt(half, lent).await?;
                    progress(half.flush()).await
                }
            },
        }
    }

    /// Sends bytes that are at hand.
    pub async fn bytes(&mut self, bytes: &[u8]) -> Result<(), SendError> {
        self.write(bytes).await?;
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(half) => progress(half.flush()).await,
        }
    }

    /// Nothing more will come.
    pub async fn finish(&mut self) -> Result<(), SendError> {
        match self {
            Self::Plain(half) => progress(half.shutdown()).await,
            Self::Tls(half) => progress(half.shutdown()).await,
        }
    }

    async fn write(&mut self, mut bytes: &[u8]) -> Result<(), SendError> {
        while !bytes.is_empty() {
            let written = match self {
                Self::Plain(half) => progress(half.write(bytes)).await?,
                Self::Tls(half) => progress(half.write(bytes)).await?,
            };
            bytes = bytes.get(some(written)?..).unwrap_or_default();
        }
        Ok(())
    }
}

async fn sendfile(socket: &TcpStream, header: &[u8], lent: &Lent) -> Result<(), SendError> {
    let mut header = header;
    while !header.is_empty() {
        // Goes out with what follows.
        let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
        let sent = || rustix::net::send(socket, header, flags).map_err(io::Error::from);
        let sent = progress(socket.async_io(Interest::WRITABLE, sent)).await?;
        header = header.get(some(sent)?..).unwrap_or_default();
    }
    let mut offset = lent.range.offset;
    while offset < lent.range.end() {
        let count = (lent.range.end() - offset).min(SENDFILE) as usize;
        let sent = || rustix::fs::sendfile(socket, &lent.file, Some(&mut offset), count).map_err(io::Error::from);
        some(progress(socket.async_io(Interest::WRITABLE, sent)).await?)?;
    }
    Ok(())
}

async fn encrypt(to: &mut WriteHalf<TlsStream<TcpStream>>, lent: &Lent) -> Result<(), SendError> {
    let mut offset = lent.range.offset;
    while offset < lent.range.end() {
        let written = poll_fn(|context| {
            let mut to = Pin::new(&mut *to);
            // While the peer takes nothing, nothing is read.
            ready!(to.as_mut().poll_flush(context))?;
            PLAIN.with_borrow_mut(|buffer| {
                let count = usize::try_from(lent.range.end() - offset).unwrap_or(PIECE).min(PIECE);
                let Some(buffer) = buffer.get_mut(..count) else { return Poll::Ready(Ok(0)) };
                // It was brought into memory when it was lent, so that this doesn't wait for the disk.
                lent.file.read_exact_at(buffer, offset)?;
                to.as_mut().poll_write(context, buffer)
            })
        });
        offset += some(progress(written).await?)? as u64;
    }
    Ok(())
}

async fn progress<T>(step: impl Future<Output = io::Result<T>>) -> Result<T, SendError> {
    match tokio::time::timeout(STALL, step).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(SendError::Stalled),
    }
}

fn some(count: usize) -> io::Result<usize> {
    if count == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(count) }
}
