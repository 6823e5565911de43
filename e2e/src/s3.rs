//! A real S3 server (versitygw) for a cluster, behind a meter that counts body bytes exactly. Server and meter are in the
//! control namespace, where pods of all nodes reach them at [`ENDPOINT`]; objects lie in memory, in the run folder.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::cluster::Cluster;
use crate::daemon::{Daemon, Namespaces};
use crate::network::CONTROL_ADDRESS;
use crate::paths;
use crate::s3_client::{Client, Credentials};

/// Where pods and our own client reach the server.
pub const ENDPOINT: &str = "http://198.18.0.1:9000";
/// The server's region.
pub const REGION: &str = "us-east-1";

const PORT: u16 = 9000;
const SERVER_PORT: u16 = 7070;

/// Counts of one kind of request since the server's start or the last [`S3Server::reset_traffic`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct Traffic {
    /// Requests that were answered.
    pub requests: u64,
    /// Those that were answered with a status of 400 or more.
    pub failures: u64,
    /// Body bytes of the answers.
    pub response_bytes: u64,
    /// Body bytes of the requests.
    pub request_bytes: u64,
}

/// The S3 server of a cluster.
#[derive(Debug, Clone)]
pub struct S3Server {
    folder: PathBuf,
    namespace: String,
    credentials: Credentials,
}

impl S3Server {
    /// Starts the server, empty, or finds the one that runs already.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let server = Self::of(cluster);
        if server.daemons().iter().all(|daemon| daemon.as_ref().is_ok_and(Daemon::alive)) {
            return Ok(server);
        }
        server.stop()?;
        fs::create_dir_all(server.folder.join("objects")).context("making the S3 server's folder")?;
        let control = cluster.control_plane();
        let namespaces = Namespaces::Network(server.namespace.clone());
        let upstream = format!("127.0.0.1:{SERVER_PORT}");
        let gateway = [
            paths::bin().join("versitygw").display().to_string(),
            format!("--access={}", server.credentials.access_key),
            format!("--secret={}", server.credentials.secret_key),
            format!("--region={REGION}"),
            format!("--port={upstream}"),
            "--quiet".into(),
            "--health=/health".into(),
            "posix".into(),
            server.folder.join("objects").display().to_string(),
        ];
        let gateway =
            Daemon::start("versitygw", "the S3 server", &server.folder, &namespaces, &control.cgroup, &gateway)?;
        let meter = [
            paths::bin().join("forebay-cluster").display().to_string(),
            "s3-meter".into(),
            format!("--listen={CONTROL_ADDRESS}:{PORT}"),
            format!("--upstream=http://{upstream}"),
            format!("--control={}", server.meter_socket().display()),
        ];
        let meter =
            Daemon::start("s3-meter", "the S3 server's meter", &server.folder, &namespaces, &control.cgroup, &meter)?;
        meter.wait_ready(Duration::from_secs(10), || server.traffic().map(drop))?;
        let client = server.client();
        gateway.wait_ready(Duration::from_secs(20), || client.list_buckets().map(drop))?;
        server.reset_traffic()?;
        Ok(server)
    }

    /// The server of this cluster, whether it runs or not.
    pub fn of(cluster: &Cluster) -> Self {
        Self {
            folder: cluster.run_folder.join("s3"),
            namespace: cluster.control_plane().namespace,
            // Nothing outside of the cluster's namespaces reaches the server.
            credentials: Credentials { access_key: "forebay-test".into(), secret_key: "forebay-test-secret".into() },
        }
    }

    /// Ends the server, as an outage does; what it holds stays for the next [`S3Server::start`].
    pub fn stop(&self) -> Result<()> {
        for daemon in self.daemons().into_iter().flatten() {
            daemon.kill()?;
        }
        Ok(())
    }

    /// Access key and secret key.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// A client that reaches the server from here, through the meter.
    pub fn client(&self) -> Client {
        Client::new(&self.namespace, &format!("{CONTROL_ADDRESS}:{PORT}"), REGION, self.credentials.clone())
    }

    /// Uploads all files below a folder, keys being paths below it after `prefix`; returns how many, and their size.
    pub fn upload(&self, bucket: &str, prefix: &str, folder: &Path) -> Result<(u64, u64)> {
        let mut files = Vec::new();
        list_files(folder, &mut files)?;
        let queue = Mutex::new(files.iter());
        let bytes = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| -> Result<()> {
                        let client = self.client();
                        loop {
                            let Some(file) = queue.lock().ok().and_then(|mut queue| queue.next()) else {
                                return Ok(());
                            };
                            let key = file
                                .strip_prefix(folder)
                                .unwrap_or(file)
                                .to_str()
                                .context("a file name is not UTF-8")?;
                            let content = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
                            client.put(bucket, &format!("{prefix}{key}"), &content)?;
                            bytes.fetch_add(content.len() as u64, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            for worker in workers {
                worker.join().map_err(|_| anyhow::anyhow!("an upload panicked"))??;
            }
            Ok::<(), anyhow::Error>(())
        })
        .with_context(|| format!("uploading {} to bucket {bucket}", folder.display()))?;
        Ok((files.len() as u64, bytes.into_inner()))
    }

    /// Traffic by kind of request: `GET object`, `HEAD object`, `PUT object`, `GET bucket` (listings), ...
    pub fn traffic(&self) -> Result<BTreeMap<String, Traffic>> {
        self.ask_meter("GET")
    }

    /// Body bytes that left the server as objects' content.
    pub fn bytes_served(&self) -> Result<u64> {
        Ok(self.traffic()?.get("GET object").map_or(0, |traffic| traffic.response_bytes))
    }

    /// Starts counting anew; returns what was counted until now.
    pub fn reset_traffic(&self) -> Result<BTreeMap<String, Traffic>> {
        self.ask_meter("POST")
    }

    fn ask_meter(&self, method: &str) -> Result<BTreeMap<String, Traffic>> {
        let socket = self.meter_socket();
        let mut stream =
            UnixStream::connect(&socket).with_context(|| format!("the S3 meter at {}", socket.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "{method} / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("reading the S3 meter's counts")?;
        let Some((_, body)) = answer.split_once("\r\n\r\n") else { bail!("the S3 meter answered {answer:?}") };
        serde_json::from_str(body).with_context(|| format!("the S3 meter answered {body:?}"))
    }

    fn meter_socket(&self) -> PathBuf {
        self.folder.join("meter.sock")
    }

    fn daemons(&self) -> [Result<Daemon>; 2] {
        ["versitygw", "s3-meter"].map(|name| Daemon::recorded(name, name, &self.folder))
    }
}

fn list_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        // Links to files count as the files they name; links to nothing are left out.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        if metadata.is_dir() {
            list_files(&path, files)?;
        } else if metadata.is_file() {
            files.push(path);
        }
    }
    Ok(())
}
