//! Rates of chunks between two cache nodes, and the limits beside them. Each mode is a process of its own; `cargo xtask bench cache` runs them.
//!
//! `serve` is a real node over generated files, all in its cache; `fetch` asks it as another node does. `limit-sendfile` and `limit-rustls`
//! move the same bytes between two processes by nothing but `sendfile` or a rustls stream.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use forebay_cache_node::fetch::peers::link::{Dial, Link, LinkError};
use forebay_cache_node::fetch::peers::{PeerAnswer, Peers, Reach};
use forebay_cache_node::memory::Shares;
use forebay_cache_node::node::{Node, NodeOptions};
use forebay_cache_node::store::{DatasetSlot, ObjectRef};
use forebay_cache_node::units::{ChunkIndex, chunk_count};
use forebay_catalog::Catalog;
use forebay_protocol::config::{CHUNK_BYTES, DEFAULT_MEMORY_BYTES, RuntimeConfig, TlsFiles};
use forebay_protocol::tls::{Identity, NODE_DOMAIN};
use forebay_protocol::transfer::{ALPN, Item, Status};
use futures::future::join_all;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConnection, ServerConnection, StreamOwned};

const UID: &str = "transfer";
const SMALL: u64 = 4096;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// A node over generated files; prints where it is, and ends with its standard input.
    Serve {
        /// Where everything is put; has to exist.
        folder: PathBuf,
        /// Whole chunks in one large file.
        #[arg(long, default_value_t = 64)]
        chunks: u32,
        /// Files of 4 KiB.
        #[arg(long, default_value_t = 20_000)]
        small: u32,
        #[arg(long)]
        tls: bool,
        #[arg(long, default_value_t = DEFAULT_MEMORY_BYTES)]
        memory_bytes: u64,
    },
    /// Asks a node for chunks for some time.
    Fetch(Fetch),
    /// What `sendfile` does by itself.
    LimitSendfile(Limit),
    /// What a rustls stream does by itself.
    LimitRustls(Limit),
}

#[derive(Args)]
struct Fetch {
    /// The folder of `serve`.
    folder: PathBuf,
    /// As `serve` printed it.
    #[arg(long)]
    address: SocketAddr,
    /// The node's process; its largest memory is printed.
    #[arg(long)]
    pid: Option<u32>,
    #[arg(long)]
    tls: bool,
    /// Files of 4 KiB instead of whole chunks.
    #[arg(long)]
    small: bool,
    /// With `--small`: so many in one call.
    #[arg(long)]
    batch: Option<usize>,
    /// Each on a connection of its own, past the pool of connections.
    #[arg(long)]
    streams: bool,
    #[arg(long, default_value_t = 4)]
    concurrent: usize,
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

#[derive(Args)]
struct Limit {
    /// A folder in memory.
    folder: PathBuf,
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// What is read at once.
    #[arg(long, default_value_t = 256 << 10)]
    buffer: usize,
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// The sending process; used by the receiving one.
    #[arg(long, hide = true)]
    sends: bool,
}

fn main() {
    match Cli::parse().mode {
        Mode::Serve { folder, chunks, small, tls, memory_bytes } => {
            runtime().block_on(serve(&folder, chunks, small, tls, memory_bytes));
        }
        Mode::Fetch(fetch) => runtime().block_on(run_fetch(fetch)),
        Mode::LimitSendfile(limit) => run_limit(&limit, "limit-sendfile"),
        Mode::LimitRustls(limit) => run_limit(&limit, "limit-rustls"),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

fn print_rates(began: Instant, bytes: u64, objects: u64) {
    let seconds = began.elapsed().as_secs_f64();
    println!("bytes_per_second={:.0}", bytes as f64 / seconds);
    println!("objects_per_second={:.0}", objects as f64 / seconds);
}

fn vm_hwm(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Writes `length` bytes that do not repeat, a MiB at a time.
fn generate(path: &Path, seed: u64, length: u64) {
    let mut file = File::create(path).unwrap();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut missing = length;
    while missing > 0 {
        let mut piece = Vec::with_capacity(1 << 20);
        while piece.len() < 1 << 20 && (piece.len() as u64) < missing {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            piece.extend(state.to_le_bytes());
        }
        piece.truncate(usize::try_from(missing).unwrap());
        file.write_all(&piece).unwrap();
        missing -= piece.len() as u64;
    }
}

fn write_identity(folder: &Path) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(vec![NODE_DOMAIN.to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    for (name, text) in [("ca.pem", authority.pem()), ("cert.pem", cert.pem()), ("key.pem", key.serialize_pem())] {
        std::fs::write(folder.join(name), text).unwrap();
    }
}

fn tls_files(folder: &Path) -> TlsFiles {
    TlsFiles { ca: folder.join("ca.pem"), cert: folder.join("cert.pem"), key: folder.join("key.pem") }
}

fn identity(folder: &Path) -> Identity {
    Identity::read(&tls_files(folder)).unwrap()
}

async fn serve(folder: &Path, chunks: u32, small: u32, tls: bool, memory_bytes: u64) {
    let source = folder.join("source");
    std::fs::create_dir_all(source.join("small")).unwrap();
    generate(&source.join("large"), 1, u64::from(chunks) * CHUNK_BYTES);
    for i in 0..small {
        generate(&source.join(format!("small/{i}")), u64::from(i) + 2, SMALL);
    }
    write_identity(folder);
    let yaml = format!(
        "runtime: {{namespace: bench, name: transfer}}
node: {{cacheDir: '{cache}', capacityBytes: 1099511627776, memoryBytes: {memory_bytes}, listen: '127.0.0.1:0'}}
datasets:
- {{uid: {UID}, namespace: bench, name: transfer, mounts: [{{path: /, sources: [{{url: 'file://{source}'}}]}}], preload: {{}}}}
",
        cache = folder.join("cache").display(),
        source = source.display(),
    );
    std::fs::write(folder.join("runtime.yaml"), yaml).unwrap();
    let mut config = RuntimeConfig::read(&folder.join("runtime.yaml")).unwrap();
    config.tls = tls.then(|| tls_files(folder));
    let node = Node::start(config, NodeOptions::default()).await.unwrap();
    loop {
        let status = node.status();
        let preload = status.datasets.first().and_then(|dataset| dataset.preload.clone());
        if preload.is_some_and(|preload| preload.total_bytes > 0 && preload.loaded_bytes == preload.total_bytes) {
            let catalog = &status.datasets.first().unwrap().catalog.as_ref().unwrap().id;
            println!("address={}", node.address());
            println!("pid={}", std::process::id());
            println!("catalog={catalog}");
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    node.shutdown().await;
}

async fn run_fetch(fetch: Fetch) {
    let catalogs = fetch.folder.join("cache/catalogs").join(UID);
    let folder = std::fs::read_dir(catalogs).unwrap().next().unwrap().unwrap().path();
    let catalog = Catalog::open(&folder).unwrap();
    let object = |id, size| ObjectRef { id, size, dataset: DatasetSlot(0) };
    let objects: Vec<_> = catalog.table().iter().map(|record| object(record.id, record.size)).collect();
    let (small, large): (Vec<_>, Vec<_>) = objects.into_iter().partition(|object| object.size <= SMALL);
    let shares = Shares::of(DEFAULT_MEMORY_BYTES);
    let identity = fetch.tls.then(|| identity(&fetch.folder));
    let tls = identity.as_ref().map(|identity| identity.connector(ALPN).unwrap());
    let peers = Peers::new(identity, shares.buffers.clone());
    let (bytes, count) = (AtomicU64::new(0), AtomicU64::new(0));
    let large = large[0];
    let began = Instant::now();
    let until = began + Duration::from_secs(fetch.seconds);
    let tally = |answer: PeerAnswer, length: u64| {
        let PeerAnswer::Chunk { bytes: got, .. } = answer else { panic!("{answer:?}") };
        assert_eq!(got.len() as u64, length);
        bytes.fetch_add(length, Ordering::Relaxed);
        count.fetch_add(1, Ordering::Relaxed);
    };
    let chunks = chunk_count(large.size);
    if fetch.streams {
        let buffers = shares.buffers.clone();
        let dial = || Dial { address: fetch.address, tls: tls.clone(), buffers: buffers.clone(), read_ahead: 4096 };
        let uid: Arc<str> = Arc::from(UID);
        join_all((0..fetch.concurrent).map(|worker| {
            let (uid, shares, bytes, count, dial) = (&uid, &shares, &bytes, &count, &dial);
            async move {
                let mut link = Link::open(dial());
                let mut chunk = worker as u32;
                while Instant::now() < until {
                    // As a node does: no request without memory for its answer. Here the least, so that all streams are busy.
                    let _memory = shares.from_peers.reserve(4096).await;
                    let item =
                        Item { number: 0, object: *large.id.as_bytes(), chunk: chunk % chunks, reach: Reach::Cache };
                    let answer = match link.ask(Arc::clone(uid), item, CHUNK_BYTES as u32).await {
                        Ok(answer) => answer,
                        // A thousand at once are more than a second's work for a busy machine.
                        Err(LinkError::Connect(_)) => {
                            link = Link::open(dial());
                            continue;
                        }
                        Err(error) => panic!("{error}"),
                    };
                    assert!(answer.status == Status::Chunk && answer.sound);
                    bytes.fetch_add(answer.bytes.len() as u64, Ordering::Relaxed);
                    count.fetch_add(1, Ordering::Relaxed);
                    chunk = chunk.wrapping_add(7);
                }
            }
        }))
        .await;
    } else if fetch.small {
        join_all((0..fetch.concurrent).map(|worker| {
            let (peers, small, tally, fetch) = (&peers, &small, &tally, &fetch);
            async move {
                let mut at = worker * small.len() / fetch.concurrent;
                while Instant::now() < until {
                    let Some(batch) = fetch.batch else {
                        let object = &small[at % small.len()];
                        let answer = peers.read_chunk(fetch.address, UID, object, ChunkIndex(0), Reach::Cache).await;
                        tally(answer, SMALL);
                        at += 1;
                        continue;
                    };
                    let reads = (at..at + batch).map(|at| {
                        let object = &small[at % small.len()];
                        peers.read_chunk(fetch.address, UID, object, ChunkIndex(0), Reach::Cache)
                    });
                    for answer in join_all(reads).await {
                        tally(answer, SMALL);
                    }
                    at += batch;
                }
            }
        }))
        .await;
    } else {
        let next = AtomicU64::new(0);
        join_all((0..fetch.concurrent).map(|_| {
            let (peers, next, tally, fetch) = (&peers, &next, &tally, &fetch);
            async move {
                while Instant::now() < until {
                    let chunk = ChunkIndex(next.fetch_add(1, Ordering::Relaxed) as u32 % chunks);
                    let answer = peers.read_chunk(fetch.address, UID, &large, chunk, Reach::Cache).await;
                    tally(answer, CHUNK_BYTES);
                }
            }
        }))
        .await;
    }
    print_rates(began, bytes.into_inner(), count.into_inner());
    println!("client_vm_hwm_bytes={}", vm_hwm(std::process::id()));
    if let Some(pid) = fetch.pid {
        println!("vm_hwm_bytes={}", vm_hwm(pid));
    }
}

fn run_limit(limit: &Limit, mode: &str) {
    let tls = mode == "limit-rustls";
    if limit.sends {
        return send_limit(limit, tls);
    }
    let file = limit.folder.join("limit");
    generate(&file, 1, 16 * CHUNK_BYTES);
    write_identity(&limit.folder);
    let mut sender = Command::new(std::env::current_exe().unwrap())
        .arg(mode)
        .arg(&limit.folder)
        .args(["--sends", "--connections", &limit.connections.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(sender.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address: SocketAddr = line.trim().parse().unwrap();
    let identity = identity(&limit.folder);
    let began = Instant::now();
    let total: u64 = std::thread::scope(|scope| {
        let receive = || {
            let socket = TcpStream::connect(address).unwrap();
            let mut from: Box<dyn Read> = if tls {
                let name = ServerName::try_from(NODE_DOMAIN).unwrap();
                let session = ClientConnection::new(identity.connector(ALPN).unwrap(), name).unwrap();
                Box::new(StreamOwned::new(session, socket))
            } else {
                Box::new(socket)
            };
            let (mut buffer, mut bytes) = (vec![0; limit.buffer], 0);
            while began.elapsed() < Duration::from_secs(limit.seconds) {
                bytes += from.read(&mut buffer).unwrap() as u64;
            }
            bytes
        };
        let threads: Vec<_> = (0..limit.connections).map(|_| scope.spawn(receive)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    print_rates(began, total, total / CHUNK_BYTES);
    sender.wait().unwrap();
    std::fs::remove_file(file).unwrap();
}

/// Sends until each receiver is gone.
fn send_limit(limit: &Limit, tls: bool) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    let file = File::open(limit.folder.join("limit")).unwrap();
    let identity = identity(&limit.folder);
    std::thread::scope(|scope| {
        for _ in 0..limit.connections {
            let (socket, _) = listener.accept().unwrap();
            let (file, identity) = (&file, &identity);
            scope.spawn(move || {
                if tls {
                    let session = ServerConnection::new(identity.listener(&[ALPN]).unwrap()).unwrap();
                    let mut to = StreamOwned::new(session, socket);
                    let chunk = vec![7; CHUNK_BYTES as usize];
                    while to.write_all(&chunk).is_ok() {}
                } else {
                    let mut sent = Ok(1);
                    while matches!(sent, Ok(1..)) {
                        let mut offset = 0;
                        let length = 16 * CHUNK_BYTES;
                        while offset < length && matches!(sent, Ok(1..)) {
                            let count = (length - offset) as usize;
                            sent = rustix::fs::sendfile(&socket, file, Some(&mut offset), count);
                        }
                    }
                }
            });
        }
    });
}
