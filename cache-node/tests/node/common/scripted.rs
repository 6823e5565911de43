//! An S3 endpoint that does what a test says: for answers that no real server can be brought to give.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// One request, as much of it as tests need.
pub struct Asked {
    pub path: String,
    pub range: Option<(usize, usize)>,
    /// How many requests for this path came before.
    pub attempt: usize,
}

/// What to answer.
pub enum Reply {
    /// Status, headers (each with its line end), body.
    Answer(u16, String, Vec<u8>),
    /// Status, headers; promises so many bytes, sends these, and closes.
    Short(u16, String, usize, Vec<u8>),
    /// Closes without a word.
    Reset,
}

pub struct Scripted {
    pub address: SocketAddr,
    requests: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Scripted {
    pub async fn start(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, requests) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let (script, counted) = (Arc::new(script), Arc::clone(&requests));
        let seen = Arc::new(parking_lot::Mutex::new(std::collections::HashMap::<String, usize>::new()));
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (script, counted, seen) = (Arc::clone(&script), Arc::clone(&counted), Arc::clone(&seen));
                tokio::spawn(async move {
                    let attempts = |path: &str| {
                        counted.fetch_add(1, Ordering::Relaxed);
                        let mut seen = seen.lock();
                        let count = seen.entry(path.to_owned()).or_default();
                        *count += 1;
                        *count - 1
                    };
                    let _ = serve(socket, script.as_ref(), attempts).await;
                });
            }
        });
        Self { address, requests, task }
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut socket: TcpStream,
    script: &(dyn Fn(&Asked) -> Reply + Send + Sync),
    attempts: impl Fn(&str) -> usize,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let range = head.lines().find_map(|line| {
        let (first, last) = line
            .to_lowercase()
            .strip_prefix("range: bytes=")?
            .split_once('-')
            .map(|(a, b)| (a.to_owned(), b.to_owned()))?;
        Some((first.parse().ok()?, last.parse().ok()?))
    });
    let attempt = attempts(&path);
    match script(&Asked { path, range, attempt }) {
        Reply::Answer(status, headers, body) => {
            let head =
                format!("HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
            socket.write_all(head.as_bytes()).await?;
            socket.write_all(&body).await?;
        }
        Reply::Short(status, headers, promised, body) => {
            let head =
                format!("HTTP/1.1 {status} X\r\n{headers}content-length: {promised}\r\nconnection: close\r\n\r\n");
            socket.write_all(head.as_bytes()).await?;
            socket.write_all(&body).await?;
        }
        Reply::Reset => rustix::net::sockopt::set_socket_linger(&socket, Some(std::time::Duration::ZERO))?,
    }
    socket.shutdown().await
}

/// The XML of one page with these keys and sizes (keys as they are to stand in the XML), all with ETag `e`.
pub fn page(keys: &[(&str, usize)], next: Option<&str>) -> String {
    let rest = "<LastModified>2026-11-23T14:03:59.000Z</LastModified><ETag>&quot;e&quot;</ETag>";
    let contents = keys.iter().fold(String::new(), |contents, (key, size)| {
        contents + &format!("<Contents><Key>{key}</Key>{rest}<Size>{size}</Size></Contents>")
    });
    let next = next.map_or("<IsTruncated>false</IsTruncated>".to_owned(), |token| {
        format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>")
    });
    format!("<ListBucketResult><EncodingType>url</EncodingType>{next}{contents}</ListBucketResult>")
}
