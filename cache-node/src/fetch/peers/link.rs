//! A connection to a peer: many requests on their way at once, answered in any order. A writer sends what has queued up as one frame, a
//! reader puts each chunk's bytes straight where they are to be. Ends when it breaks, when the peer falls silent, or when nobody holds it
//! and everything is answered.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay_protocol::tls::NODE_DOMAIN;
use forebay_protocol::transfer::{
    ALPN, ClientFrame, FrameError, HELLO, Item, MAX_ITEMS, Status, check_hello, encode_request,
};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::receive;
use crate::memory::Buffers;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// All of it, with the TLS handshake.
const HELLO_TIMEOUT: Duration = Duration::from_secs(3);
/// A peer that says nothing for so long, while it owes an answer, is asked whether it is there; after twice as long it is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// How often that is looked at.
const TICK: Duration = Duration::from_millis(500);
/// rustls asks for 4 KiB at a time; the system is asked for so many.
const TLS_READ: usize = 128 << 10;

/// Requests that wait for their answers on one connection. The server takes as many, so that it never has to stop reading.
pub const OUTSTANDING: usize = MAX_ITEMS;

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkError {
    /// No connection could be made.
    #[error("connecting: {0}")]
    Connect(Arc<io::Error>),
    /// It broke.
    #[error("the connection broke: {0}")]
    Broken(Arc<io::Error>),
    /// The peer closed it.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer speaks something else.
    #[error("the peer sent nonsense: {0}")]
    Frame(#[from] FrameError),
    /// The peer answers what nobody asked.
    #[error("the peer answered a request that was not made")]
    Unasked,
    /// The peer does not answer pings.
    #[error("the peer is silent")]
    Silent,
}

/// What a peer answered.
#[derive(Debug)]
pub struct Answered {
    /// What came of it.
    pub status: Status,
    /// The chunk was there before.
    pub was_cached: bool,
    /// The chunk, or the text of a failure.
    pub bytes: Bytes,
    /// The chunk's crc32c as the peer says.
    pub crc: u32,
    /// A chunk of the right length and with that crc32c, or no chunk.
    pub sound: bool,
}

/// How to connect.
#[derive(Clone, Debug)]
pub struct Dial {
    /// Where.
    pub address: SocketAddr,
    /// With TLS, unless in plain text.
    pub tls: Option<Arc<ClientConfig>>,
    /// Where chunks' buffers come from.
    pub buffers: Buffers,
    /// Bytes that are read at once before it is known what they are: many for many small answers, few where they are copied once more.
    pub read_ahead: usize,
}

/// The users' end of a connection.
#[derive(Debug)]
pub struct Link {
    asks: mpsc::UnboundedSender<Ask>,
    state: Arc<State>,
}

#[derive(Debug)]
struct Ask {
    dataset_uid: Arc<str>,
    item: Item,
    is_suspicion: bool,
}

/// What both ends know.
#[derive(Debug)]
pub(super) struct State {
    waiting: Mutex<Waiting>,
    answered: Notify,
}

#[derive(Debug)]
struct Waiting {
    requests: HashMap<u32, Request>,
    next: u32,
    /// Of the requests, those that have been sent.
    sent: usize,
    heard: Instant,
    ended: Option<LinkError>,
}

/// A request that waits for its answer.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) length: u32,
    pub(super) answer: oneshot::Sender<Result<Answered, LinkError>>,
}

impl Link {
    /// Begins to connect.
    pub fn open(dial: Dial) -> Self {
        let state = Arc::new(State::expecting(&[]).0);
        let (asks, queue) = mpsc::unbounded_channel();
        let ends = Arc::clone(&state);
        tokio::spawn(async move {
            let error = match run(dial, &ends, queue).await {
                Ok(()) => LinkError::Closed,
                Err(error) => error,
            };
            ends.end(&error);
        });
        Self { asks, state }
    }

    /// Whether it is of no use any more.
    pub fn has_ended(&self) -> bool {
        self.state.waiting.lock().ended.is_some()
    }

    /// Requests that wait.
    pub fn load(&self) -> usize {
        self.state.waiting.lock().requests.len()
    }

    /// Asks for a chunk of `length` bytes. The item's number is chosen here. Who drops this takes nothing away from others.
    pub async fn ask(&self, dataset_uid: Arc<str>, item: Item, length: u32) -> Result<Answered, LinkError> {
        self.send(dataset_uid, item, length, false).await
    }

    /// Tells that a chunk's bytes were wrong; returns when the peer has looked at its own.
    pub async fn suspect(&self, dataset_uid: Arc<str>, item: Item) -> Result<Answered, LinkError> {
        self.send(dataset_uid, item, 0, true).await
    }

    async fn send(
        &self,
        dataset_uid: Arc<str>,
        item: Item,
        length: u32,
        is_suspicion: bool,
    ) -> Result<Answered, LinkError> {
        let (answer, answered) = oneshot::channel();
        {
            let mut waiting = self.state.waiting.lock();
            let waiting = &mut *waiting;
            if let Some(error) = &waiting.ended {
                return Err(error.clone());
            }
            if waiting.requests.is_empty() {
                waiting.heard = Instant::now();
            }
            while waiting.requests.contains_key(&waiting.next) {
                waiting.next = waiting.next.wrapping_add(1);
            }
            let item = Item { number: waiting.next, ..item };
            waiting.next = waiting.next.wrapping_add(1);
            waiting.requests.insert(item.number, Request { length, answer });
            // In the order of the numbers, and before it could be ended.
            let _ = self.asks.send(Ask { dataset_uid, item, is_suspicion });
        }
        answered.await.unwrap_or(Err(LinkError::Closed))
    }
}

impl State {
    /// As if requests with the numbers from 0 had been sent, for chunks of these lengths; and where their answers come.
    pub(super) fn expecting(lengths: &[u32]) -> (Self, Vec<oneshot::Receiver<Result<Answered, LinkError>>>) {
        let (mut requests, mut answers) = (HashMap::new(), Vec::new());
        for (number, length) in (0..).zip(lengths) {
            let (answer, answered) = oneshot::channel();
            requests.insert(number, Request { length: *length, answer });
            answers.push(answered);
        }
        let (next, sent) = (requests.len() as u32, requests.len());
        let waiting = Waiting { requests, next, sent, heard: Instant::now(), ended: None };
        (Self { waiting: Mutex::new(waiting), answered: Notify::new() }, answers)
    }

    pub(super) fn heard(&self) {
        self.waiting.lock().heard = Instant::now();
    }

    /// The request that an answer is for; it is not waiting any more.
    pub(super) fn take(&self, number: u32) -> Result<Request, LinkError> {
        let mut waiting = self.waiting.lock();
        waiting.heard = Instant::now();
        let request = waiting.requests.remove(&number).ok_or(LinkError::Unasked)?;
        waiting.sent = waiting.sent.saturating_sub(1);
        drop(waiting);
        self.answered.notify_one();
        Ok(request)
    }

    /// How many more may be sent.
    fn room(&self) -> usize {
        OUTSTANDING.saturating_sub(self.waiting.lock().sent)
    }

    fn is_idle(&self) -> bool {
        self.waiting.lock().requests.is_empty()
    }

    fn silence(&self) -> Option<Duration> {
        let waiting = self.waiting.lock();
        (waiting.sent > 0).then(|| waiting.heard.elapsed())
    }

    fn end(&self, error: &LinkError) {
        let requests = {
            let mut waiting = self.waiting.lock();
            waiting.ended = Some(error.clone());
            std::mem::take(&mut waiting.requests)
        };
        for request in requests.into_values() {
            // Who asked may be gone.
            let _ = request.answer.send(Err(error.clone()));
        }
    }
}

async fn run(dial: Dial, state: &State, queue: mpsc::UnboundedReceiver<Ask>) -> Result<(), LinkError> {
    let connected = tokio::time::timeout(HELLO_TIMEOUT, connect(&dial)).await;
    let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let (reader, writer) = connected.map_err(|error| LinkError::Connect(Arc::new(error)))?;
    state.heard();
    tokio::select! {
        read = receive::run(reader, state, &dial) => read,
        written = write(writer, state, queue) => written,
    }
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

async fn connect(dial: &Dial) -> io::Result<(Reader, Writer)> {
    let socket = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(dial.address)).await;
    let socket = socket.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    socket.set_nodelay(true)?;
    let (mut reader, mut writer): (Reader, Writer) = match &dial.tls {
        None => {
            let (reader, writer) = socket.into_split();
            (Box::new(reader), Box::new(writer))
        }
        Some(config) => {
            let name = ServerName::try_from(NODE_DOMAIN).map_err(io::Error::other)?;
            let socket = BufReader::with_capacity(TLS_READ, socket);
            let stream = TlsConnector::from(Arc::clone(config)).connect(name, socket).await?;
            if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
                return Err(io::Error::other("the peer does not speak forebay/1"));
            }
            let (reader, writer) = tokio::io::split(stream);
            (Box::new(reader), Box::new(writer))
        }
    };
    writer.write_all(&HELLO).await?;
    writer.flush().await?;
    let mut hello = [0; HELLO.len()];
    reader.read_exact(&mut hello).await?;
    check_hello(&hello).map_err(io::Error::other)?;
    Ok((reader, writer))
}

async fn write(mut to: Writer, state: &State, mut queue: mpsc::UnboundedReceiver<Ask>) -> Result<(), LinkError> {
    let broken = |error| LinkError::Broken(Arc::new(error));
    let (mut asks, mut frames) = (Vec::new(), Vec::new());
    let mut tick = tokio::time::interval(TICK);
    let (mut pinged, mut users_left) = (0_u32, true);
    loop {
        let room = state.room();
        frames.clear();
        tokio::select! {
            count = queue.recv_many(&mut asks, room), if room > 0 && users_left => {
                users_left = count > 0;
                state.waiting.lock().sent += count;
                encode(&mut asks, &mut frames);
            }
            () = state.answered.notified() => {}
            _ = tick.tick() => match state.silence() {
                Some(silence) if silence > 2 * KEEP_ALIVE => return Err(LinkError::Silent),
                Some(silence) if silence > KEEP_ALIVE => {
                    pinged = pinged.wrapping_add(1);
                    ClientFrame::Ping(pinged).encode(&mut frames);
                }
                _ => {}
            }
        }
        if !users_left && state.is_idle() {
            return to.shutdown().await.map_err(broken);
        }
        if !frames.is_empty() {
            // The server always reads; one that doesn't is as good as silent.
            let written = async {
                to.write_all(&frames).await?;
                to.flush().await
            };
            match tokio::time::timeout(2 * KEEP_ALIVE, written).await {
                Ok(written) => written.map_err(broken)?,
                Err(_) => return Err(LinkError::Silent),
            }
        }
    }
}

/// Neighbours of the same dataset become one frame.
fn encode(asks: &mut Vec<Ask>, frames: &mut Vec<u8>) {
    let mut items = Vec::with_capacity(asks.len());
    for same in asks.chunk_by(|a, b| a.dataset_uid == b.dataset_uid && !a.is_suspicion && !b.is_suspicion) {
        let Some(first) = same.first() else { continue };
        if first.is_suspicion {
            ClientFrame::Suspect { dataset_uid: first.dataset_uid.to_string(), item: first.item }.encode(frames);
        } else {
            items.clear();
            items.extend(same.iter().map(|ask| ask.item));
            encode_request(&first.dataset_uid, &items, frames);
        }
    }
    asks.clear();
}
