//! A connection from a peer that asks for chunks. What it asks for is answered in any order; it may have [`OUTSTANDING`] requests on their
//! way, and is read no further beyond that. What is not here is fetched beside the sending of what is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use forebay_catalog::ObjectId;
use forebay_protocol::transfer::{ClientFrame, FrameError, HELLO, Item, Reach, ServerFrame, Status, check_hello};
use futures::StreamExt;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::answer::{self, BATCH_BYTES, Job, SMALL, Wanted};
use super::send::{Outgoing, SendError};
use crate::engine::Brought;
use crate::fetch::peers::link::OUTSTANDING;
use crate::node::Shared;
use crate::units::ChunkIndex;

/// A client says hello at once.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client that was told that the connection ends may take to see it.
const FAREWELL: Duration = Duration::from_secs(5);
/// Chunks that one connection makes this node fetch at once.
const FETCHES: usize = 64;
/// Answers that are made ready while another one is sent.
const AHEAD: usize = 3;

/// What a connection runs over.
#[derive(Debug)]
pub enum Stream {
    /// Plain text.
    Plain(TcpStream),
    /// TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Why a connection was ended.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("reading: {0}")]
    Read(#[from] std::io::Error),
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("it said no hello within {HELLO_TIMEOUT:?}")]
    NoHello,
    #[error(transparent)]
    Send(#[from] SendError),
}

/// Serves a connection until its client or `stop` ends it; then what was asked for is answered still.
pub async fn serve(shared: Arc<Shared>, stream: Stream, from: SocketAddr, stop: CancellationToken) {
    let served = match stream {
        Stream::Plain(socket) => {
            let (reader, writer) = socket.into_split();
            run(shared, reader, Outgoing::Plain(writer), stop).await
        }
        Stream::Tls(stream) => {
            let (reader, writer) = tokio::io::split(*stream);
            run(shared, reader, Outgoing::Tls(writer), stop).await
        }
    };
    match served {
        Ok(()) => {}
        Err(ConnectionError::Frame(error)) => {
            tracing::warn!(%from, %error, "a peer sent what is no request; its connection is closed");
        }
        Err(error) => tracing::debug!(%from, %error, "a peer's connection ended"),
    }
}

async fn run<R: AsyncRead + Unpin>(
    shared: Arc<Shared>,
    mut reader: R,
    mut outgoing: Outgoing,
    stop: CancellationToken,
) -> Result<(), ConnectionError> {
    let mut hello = [0; HELLO.len()];
    let said = tokio::time::timeout(HELLO_TIMEOUT, reader.read_exact(&mut hello)).await;
    said.map_err(|_| ConnectionError::NoHello)??;
    check_hello(&hello)?;
    outgoing.bytes(&HELLO).await?;
    let (jobs, ready) = mpsc::unbounded_channel();
    let (pongs, mut pinged) = mpsc::channel(4);
    let (fetches, to_fetch) = mpsc::unbounded_channel();
    let memory = shared.memory().clone();
    let mut writer = AbortOnDropHandle::new(tokio::spawn(async move {
        let ready = UnboundedReceiverStream::new(ready).map(|job| answer::prepare(&memory, job));
        let mut ready = std::pin::pin!(ready.buffer_unordered(AHEAD));
        loop {
            // A ping is answered also while everything waits for a disk.
            tokio::select! {
                biased;
                Some(number) = pinged.recv() => outgoing.bytes(&ServerFrame::Pong(number).encode()).await?,
                answer = ready.next() => match answer {
                    Some(answer) => outgoing.answer(answer).await?,
                    None => return outgoing.finish().await,
                },
            }
        }
    }));
    let asked =
        Asked { shared: &shared, jobs: jobs.clone(), fetches, pongs, slots: Arc::new(Semaphore::new(OUTSTANDING)) };
    {
        let mut fetching = std::pin::pin!(
            UnboundedReceiverStream::new(to_fetch)
                .for_each_concurrent(FETCHES, move |wanted| fetch(wanted, jobs.clone()))
        );
        let ended = tokio::select! {
            ended = read(&mut reader, asked, &stop) => ended?,
            // Not before the reading has ended.
            () = &mut fetching => Ended::ByServer,
            written = &mut writer => return Ok(written.unwrap_or(Err(SendError::Panicked))?),
        };
        if ended == Ended::ByClient {
            return Ok(());
        }
        tokio::select! {
            () = &mut fetching => {}
            written = &mut writer => return Ok(written.unwrap_or(Err(SendError::Panicked))?),
        }
    }
    writer.await.unwrap_or(Err(SendError::Panicked))?;
    // Closing while unread requests lie here would take back what was sent.
    let mut rest = [0; 1024];
    let farewell = async { while reader.read(&mut rest).await.is_ok_and(|read| read > 0) {} };
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// Who closes the connection waits for nothing more.
    ByClient,
    ByServer,
}

/// What comes of what is read.
struct Asked<'a> {
    shared: &'a Arc<Shared>,
    jobs: mpsc::UnboundedSender<Job>,
    fetches: mpsc::UnboundedSender<Wanted>,
    pongs: mpsc::Sender<u32>,
    slots: Arc<Semaphore>,
}

async fn read<R: AsyncRead + Unpin>(
    reader: &mut R,
    asked: Asked<'_>,
    stop: &CancellationToken,
) -> Result<Ended, ConnectionError> {
    let mut buffer = BytesMut::new();
    loop {
        while let Some((frame, used)) = ClientFrame::decode(&buffer)? {
            buffer.advance(used);
            asked.take(frame).await;
        }
        tokio::select! {
            read = reader.read_buf(&mut buffer) => if read? == 0 { return Ok(Ended::ByClient) },
            () = stop.cancelled() => return Ok(Ended::ByServer),
        }
    }
}

impl Asked<'_> {
    async fn take(&self, frame: ClientFrame) {
        match frame {
            ClientFrame::Ping(number) => {
                // Who sends many pings gets few pongs.
                let _ = self.pongs.try_send(number);
            }
            ClientFrame::Request { dataset_uid, items } => {
                let Ok(mut slots) = Arc::clone(&self.slots).acquire_many_owned(items.len() as u32).await else {
                    return;
                };
                let mut small = Vec::new();
                let mut small_bytes = 0;
                for item in items {
                    let Some(slot) = slots.split(1) else { return };
                    let wanted = match self.find(&dataset_uid, &item, slot) {
                        Ok(wanted) => wanted,
                        Err(refusal) => {
                            self.answer(*refusal);
                            continue;
                        }
                    };
                    if !wanted.is_here() {
                        self.fetch_unless_cached_only(wanted);
                    } else if wanted.length() > SMALL {
                        self.answer(Job::Large { wanted, was_cached: true });
                    } else {
                        if small_bytes + wanted.length() > BATCH_BYTES {
                            self.answer(Job::Small(std::mem::take(&mut small)));
                            small_bytes = 0;
                        }
                        small_bytes += wanted.length();
                        small.push((wanted, true));
                    }
                }
                if !small.is_empty() {
                    self.answer(Job::Small(small));
                }
            }
            ClientFrame::Suspect { dataset_uid, item } => {
                let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else { return };
                self.answer(match self.find(&dataset_uid, &item, slot) {
                    Ok(wanted) => Job::Verify(wanted),
                    Err(refusal) => *refusal,
                });
            }
        }
    }

    /// What an item names; the ids are looked up, and nothing else is read because of them.
    fn find(&self, dataset_uid: &str, item: &Item, slot: OwnedSemaphorePermit) -> Result<Wanted, Box<Job>> {
        let refusal = |status, message: &dyn std::fmt::Display, slot| {
            Box::new(Job::Told { number: item.number, status, message: message.to_string(), slot })
        };
        let Some(engine) = self.shared.engine() else {
            return Err(refusal(Status::Closed, &"the node's cache is closed", slot));
        };
        let id = ObjectId::from_bytes(item.object);
        let (dataset, object) = match engine.object(dataset_uid, &id) {
            Ok(found) => found,
            Err(error) => return Err(refusal(error.to_peer(), &error, slot)),
        };
        let chunk = ChunkIndex(item.chunk);
        if chunk.range(object.stored.size).is_empty() {
            let message = format!("object {id} has no chunk {}", item.chunk);
            return Err(refusal(Status::Invalid, &message, slot));
        }
        Ok(Wanted { number: item.number, engine, dataset, object, chunk, reach: item.reach, slot })
    }

    fn fetch_unless_cached_only(&self, wanted: Wanted) {
        if wanted.reach == Reach::Cache {
            self.answer(wanted.told(Status::Lacking, String::new()));
        } else {
            // The writer may have ended; then nobody waits.
            let _ = self.fetches.send(wanted);
        }
    }

    fn answer(&self, job: Job) {
        // As above.
        let _ = self.jobs.send(job);
    }
}

async fn fetch(wanted: Wanted, jobs: mpsc::UnboundedSender<Job>) {
    let job = match wanted.engine.bring_for_peer(&wanted.dataset, &wanted.object, wanted.chunk, wanted.reach).await {
        Ok(Brought::Kept { was_cached }) if wanted.length() > SMALL => Job::Large { wanted, was_cached },
        Ok(Brought::Kept { was_cached }) => Job::Small(vec![(wanted, was_cached)]),
        Ok(Brought::Passing(fetched)) => Job::Passing { wanted, fetched },
        Err(error) => wanted.told(error.to_peer(), error.to_string()),
    };
    let _ = jobs.send(job);
}
