//! A TCP proxy that counts what comes back through it, all that crosses the line to the source, headers and listings included; and how many
//! requests wait for an answer at once. It can hold answers back as a long line does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A running proxy.
#[derive(Debug)]
pub struct CountingProxy {
    /// Where it listens.
    pub address: SocketAddr,
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Counts {
    bytes: AtomicU64,
    waiting: AtomicU64,
    most_waiting: AtomicU64,
}

impl CountingProxy {
    /// Starts one in front of `to`.
    pub async fn start(to: SocketAddr) -> Result<Self> {
        Self::start_slow(to, Duration::ZERO).await
    }

    /// Starts one that holds the beginning of each answer back for `delay`.
    pub async fn start_slow(to: SocketAddr, delay: Duration) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("listening as a proxy")?;
        let (address, counts) = (listener.local_addr()?, Arc::new(Counts::default()));
        let counted = Arc::clone(&counts);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(pass(client, to, delay, Arc::clone(&counted)));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, counts, task })
    }

    /// Bytes that have come from the server.
    pub fn bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::Relaxed)
    }

    /// The most requests that waited for the beginning of their answer at once.
    pub fn most_waiting(&self) -> u64 {
        self.counts.most_waiting.load(Ordering::Relaxed)
    }
}

impl Drop for CountingProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Counts {
    /// A connection begins or ends to wait. HTTP/1.1 has one request at a time on each.
    fn set_waiting(&self, connection: &AtomicBool, waits: bool) {
        let waited = connection.swap(waits, Ordering::Relaxed);
        if waits && !waited {
            let now = self.waiting.fetch_add(1, Ordering::Relaxed) + 1;
            self.most_waiting.fetch_max(now, Ordering::Relaxed);
        } else if !waits && waited {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

async fn pass(client: TcpStream, to: SocketAddr, delay: Duration, counts: Arc<Counts>) {
    // A connection that fails is closed: what the client sees of a server that does so.
    let Ok(server) = TcpStream::connect(to).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let waits = AtomicBool::new(false);
    let up = async {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            counts.set_waiting(&waits, true);
            if to_server.write_all(buffer.get(..length).unwrap_or_default()).await.is_err() {
                break;
            }
        }
        let _ = to_server.shutdown().await;
    };
    let down = async {
        let mut buffer = vec![0; 256 << 10];
        while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
            counts.bytes.fetch_add(length as u64, Ordering::Relaxed);
            if waits.load(Ordering::Relaxed) {
                tokio::time::sleep(delay).await;
                counts.set_waiting(&waits, false);
            }
            if to_client.write_all(buffer.get(..length).unwrap_or_default()).await.is_err() {
                break;
            }
        }
        let _ = to_client.shutdown().await;
    };
    tokio::join!(up, down);
    counts.set_waiting(&waits, false);
}
