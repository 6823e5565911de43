//! A TCP proxy that counts what comes back through it, and the HTTP requests that go through it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

pub struct Proxy {
    pub address: SocketAddr,
    bytes: Arc<AtomicU64>,
    requests: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, bytes) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&bytes);
        let requests = Arc::new(AtomicU64::new(0));
        let asked = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (counted, asked) = (Arc::clone(&counted), Arc::clone(&asked));
                connections.spawn(async move {
                    let Ok(server) = TcpStream::connect(to).await else { return };
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let up = async {
                        let mut buffer = vec![0; 16 << 10];
                        // Requests without a body: each ends with an empty line, which may come in two parts.
                        let mut last = [0; 3];
                        while let Ok(n) = from_client.read(&mut buffer).await {
                            let seen = [&last[..], &buffer[..n]].concat();
                            let ends = seen.windows(4).filter(|window| window == b"\r\n\r\n").count();
                            asked.fetch_add(ends as u64, Ordering::Relaxed);
                            last.copy_from_slice(&seen[seen.len() - 3..]);
                            if n == 0 || to_server.write_all(&buffer[..n]).await.is_err() {
                                break;
                            }
                        }
                        let _ = to_server.shutdown().await;
                    };
                    let down = async {
                        let mut buffer = vec![0; 64 << 10];
                        while let Ok(n) = from_server.read(&mut buffer).await {
                            counted.fetch_add(n as u64, Ordering::Relaxed);
                            if n == 0 || to_client.write_all(&buffer[..n]).await.is_err() {
                                break;
                            }
                        }
                        let _ = to_client.shutdown().await;
                    };
                    tokio::join!(up, down);
                });
            }
        });
        Self { address, bytes, requests, task }
    }

    /// Bytes that the server has sent, headers and listings included.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Requests that the server was asked.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
