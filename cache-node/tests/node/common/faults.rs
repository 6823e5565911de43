//! An HTTP proxy in front of a real S3 server that spoils answers as a test says: per request, by path, by count, or by chance with a seed. It
//! counts and times what is asked of it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// First and last byte.
pub type Range = (u64, u64);

/// One request, as much of it as rules need.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub range: Option<Range>,
    /// How many requests for this path and range came before.
    pub attempt: usize,
    /// How many requests of objects came before, listings left out.
    pub number: usize,
}

impl Asked {
    pub fn is_listing(&self) -> bool {
        self.path.contains("list-type")
    }

    /// A number from 0 to 1 that this request always has with this seed.
    pub fn chance(&self, seed: u64) -> f64 {
        let mut x = seed ^ (self.number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// What is done to a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The real answer, untouched.
    None,
    /// This status with these header lines (each with its end) and an S3 error of this code, without asking the server.
    Status(u16, &'static str, String),
    /// The real answer, so much later.
    Late(Duration),
    /// So many bytes of the body, then nothing for ever.
    Stall(usize),
    /// The body in pieces of so many bytes with this pause between them.
    Trickle(usize, Duration),
    /// The connection is reset instead of an answer ...
    Reset,
    /// ... or after so many bytes of the body.
    ResetAfter(usize),
    /// So many bytes of the body, then an orderly end of the connection.
    Short(usize),
    /// `Content-Length` says so many more bytes than there are (or fewer); the connection ends after the body.
    Length(i64),
    /// Another value of a header.
    Header(&'static str, String),
    /// One byte of the body is another one.
    Flip(usize),
    /// Something that is no HTTP.
    Garbage,
}

/// One request that came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub asked: Asked,
    pub at: Instant,
    pub spoilt: bool,
}

type Rule = dyn Fn(&Asked) -> Fault + Send + Sync;

struct Shared {
    rule: Box<Rule>,
    to: SocketAddr,
    attempts: Mutex<HashMap<(String, Option<Range>), usize>>,
    number: AtomicUsize,
    seen: Mutex<Vec<Seen>>,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
    body_bytes: AtomicU64,
}

pub struct Faults {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Faults {
    /// A proxy in plain text.
    pub async fn start(to: SocketAddr, rule: impl Fn(&Asked) -> Fault + Send + Sync + 'static) -> Self {
        Self::listen(to, None, rule).await
    }

    /// A proxy that is reached by TLS.
    pub async fn start_tls(to: SocketAddr, tls: tokio_rustls::rustls::ServerConfig) -> Self {
        Self::listen(to, Some(tls), |_| Fault::None).await
    }

    async fn listen(
        to: SocketAddr,
        tls: Option<tokio_rustls::rustls::ServerConfig>,
        rule: impl Fn(&Asked) -> Fault + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            rule: Box::new(rule),
            to,
            attempts: Mutex::default(),
            number: AtomicUsize::new(0),
            seen: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            most_in_flight: AtomicUsize::new(0),
            body_bytes: AtomicU64::new(0),
        });
        let acceptor = tls.map(|tls| tokio_rustls::TlsAcceptor::from(Arc::new(tls)));
        let serving = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                socket.set_nodelay(true).unwrap();
                let (shared, acceptor) = (Arc::clone(&serving), acceptor.clone());
                connections.spawn(async move {
                    let same = socket.as_fd().try_clone_to_owned().unwrap();
                    // Errors are what the client does to a spoilt connection.
                    let _ = match acceptor {
                        None => serve(socket, &same, &shared).await,
                        Some(acceptor) => match acceptor.accept(socket).await {
                            Ok(socket) => serve(socket, &same, &shared).await,
                            Err(error) => Err(error),
                        },
                    };
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, shared, task }
    }

    /// All requests of objects, in the order they came.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().clone()
    }

    /// When each request for a path came.
    pub fn times(&self, path: &str) -> Vec<Instant> {
        self.shared.seen.lock().iter().filter(|seen| seen.asked.path == path).map(|seen| seen.at).collect()
    }

    /// Bytes of objects that were sent.
    pub fn body_bytes(&self) -> u64 {
        self.shared.body_bytes.load(Ordering::Relaxed)
    }

    /// Most requests of objects that were under way at once.
    pub fn most_in_flight(&self) -> usize {
        self.shared.most_in_flight.load(Ordering::Relaxed)
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct InFlight<'a>(&'a Shared);

impl<'a> InFlight<'a> {
    fn begin(shared: &'a Shared) -> Self {
        let now = shared.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        shared.most_in_flight.fetch_max(now, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

fn reset(same: &OwnedFd) -> std::io::Error {
    // With no time to linger, closing sends a reset.
    let _ = rustix::net::sockopt::set_socket_linger(same, Some(Duration::ZERO));
    std::io::ErrorKind::ConnectionReset.into()
}

async fn serve(client: impl AsyncRead + AsyncWrite + Unpin, same: &OwnedFd, shared: &Shared) -> std::io::Result<()> {
    let (from_client, mut to_client) = tokio::io::split(client);
    let mut from_client = BufReader::new(from_client);
    let server = TcpStream::connect(shared.to).await?;
    server.set_nodelay(true)?;
    let (from_server, mut to_server) = server.into_split();
    let mut from_server = BufReader::new(from_server);
    loop {
        let request = match read_head(&mut from_client).await {
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                // As servers of plain HTTP answer TLS.
                to_client.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").await?;
                return to_client.shutdown().await;
            }
            request => request?,
        };
        let asked = shared.note(&request);
        let _in_flight = (!asked.is_listing()).then(|| InFlight::begin(shared));
        let fault = (shared.rule)(&asked);
        if !asked.is_listing() {
            let spoilt = !matches!(fault, Fault::None | Fault::Late(_));
            shared.seen.lock().push(Seen { asked: asked.clone(), at: Instant::now(), spoilt });
        }
        match &fault {
            Fault::Status(status, code, headers) => {
                let body = format!("<Error><Code>{code}</Code><Message>on purpose</Message></Error>");
                let head = format!("HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\n\r\n", body.len());
                to_client.write_all((head + &body).as_bytes()).await?;
                continue;
            }
            Fault::Reset => return Err(reset(same)),
            Fault::Garbage => {
                to_client.write_all(b"\x16\x03\x01 SSH-2.0 220 ready\r\n\r\n").await?;
                return to_client.shutdown().await;
            }
            Fault::Late(pause) => tokio::time::sleep(*pause).await,
            _ => {}
        }
        to_server.write_all(request.as_bytes()).await?;
        let head = read_head(&mut from_server).await?;
        let body = read_body(&mut from_server, &head).await?;
        let length = body.len() as u64;
        answer(&mut to_client, same, &head, body, &fault, shared).await?;
        if !asked.is_listing() {
            shared.body_bytes.fetch_add(length, Ordering::Relaxed);
        }
    }
}

async fn answer(
    to_client: &mut (impl AsyncWrite + Unpin),
    same: &OwnedFd,
    head: &str,
    mut body: Vec<u8>,
    fault: &Fault,
    shared: &Shared,
) -> std::io::Result<()> {
    let head = match fault {
        Fault::Length(more) => {
            let length = i64::try_from(body.len()).unwrap() + more;
            with_header(head, "content-length", &length.to_string())
        }
        Fault::Header(name, value) => with_header(head, name, value),
        Fault::Flip(at) => {
            body[*at] ^= 1;
            head.to_owned()
        }
        _ => head.to_owned(),
    };
    let mut whole = head.into_bytes();
    match fault {
        Fault::Stall(after) => {
            whole.extend(&body[..*after]);
            shared.body_bytes.fetch_add(*after as u64, Ordering::Relaxed);
            to_client.write_all(&whole).await?;
            to_client.flush().await?;
            std::future::pending::<()>().await;
        }
        Fault::ResetAfter(after) => {
            whole.extend(&body[..*after]);
            to_client.write_all(&whole).await?;
            to_client.flush().await?;
            // A reset may overtake what was sent just before; either way the body is not whole.
            return Err(reset(same));
        }
        Fault::Short(after) => {
            whole.extend(&body[..*after]);
            to_client.write_all(&whole).await?;
            return to_client.shutdown().await;
        }
        Fault::Trickle(size, pause) => {
            to_client.write_all(&whole).await?;
            for piece in body.chunks(*size) {
                to_client.write_all(piece).await?;
                to_client.flush().await?;
                tokio::time::sleep(*pause).await;
            }
        }
        Fault::Length(_) => {
            whole.extend(&body);
            to_client.write_all(&whole).await?;
            return to_client.shutdown().await;
        }
        _ => {
            whole.extend(&body);
            to_client.write_all(&whole).await?;
        }
    }
    to_client.flush().await
}

impl Shared {
    fn note(&self, request: &str) -> Asked {
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        let range = header(request, "range").and_then(|range| {
            let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some((first.parse().ok()?, last.parse().ok()?))
        });
        let mut attempts = self.attempts.lock();
        let attempt = attempts.entry((path.clone(), range)).or_default();
        *attempt += 1;
        let mut asked = Asked { path, range, attempt: *attempt - 1, number: 0 };
        if !asked.is_listing() {
            asked.number = self.number.fetch_add(1, Ordering::Relaxed);
        }
        asked
    }
}

async fn read_head(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<String> {
    let mut head = Vec::with_capacity(1024);
    while !head.ends_with(b"\r\n\r\n") {
        head.push(from.read_u8().await?);
        if head.first().is_some_and(|first| !first.is_ascii_alphabetic()) {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
    }
    String::from_utf8(head).map_err(std::io::Error::other)
}

/// A body with a length, or in chunks: the client gets it as it was, chunk by chunk.
async fn read_body(from: &mut (impl AsyncRead + Unpin), head: &str) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if header(head, "transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        loop {
            let begin = body.len();
            while !body[begin..].ends_with(b"\r\n") {
                body.push(from.read_u8().await?);
            }
            let size =
                std::str::from_utf8(&body[begin..]).ok().and_then(|size| usize::from_str_radix(size.trim(), 16).ok());
            let size = size.ok_or(std::io::ErrorKind::InvalidData)?;
            let begin = body.len();
            body.resize(begin + size + 2, 0);
            from.read_exact(&mut body[begin..]).await?;
            if size == 0 {
                return Ok(body);
            }
        }
    }
    let length = header(head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    body.resize(length, 0);
    from.read_exact(&mut body).await?;
    Ok(body)
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .find(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

fn with_header(head: &str, name: &str, value: &str) -> String {
    let is_it = |line: &&str| line.split_once(':').is_some_and(|(n, _)| n.eq_ignore_ascii_case(name));
    let mut lines: Vec<_> = head.trim_end().lines().filter(|line| !is_it(line)).map(str::to_owned).collect();
    lines.push(format!("{name}: {value}"));
    lines.join("\r\n") + "\r\n\r\n"
}
