//! versitygw over a folder in memory.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use forebay_e2e::{paths, setup};
use forebay_protocol::config::{Credentials, SourceConfig};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::client::ClientOptions;
use rustix::fs::{XattrFlags, setxattr};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::programs::Running;
use crate::wait::wait_for;

/// Access key of all servers.
pub const ACCESS: &str = "bench-access";
/// Its secret key; nothing but this machine reaches the servers.
pub const SECRET: &str = "bench-secret-key";
const REGION: &str = "us-east-1";
/// The one bucket.
pub const BUCKET: &str = "data";

/// A running server with one bucket.
#[derive(Debug)]
pub struct S3Server {
    /// Where it answers.
    pub address: SocketAddr,
    folder: TempDir,
    // Killed when dropped.
    _process: Running,
}

impl S3Server {
    /// Starts one with its files in `folder`, in the network namespace of the calling thread.
    pub async fn start(address: SocketAddr, folder: TempDir) -> Result<Self> {
        setup::ensure_programs()?;
        std::fs::create_dir(folder.path().join(BUCKET)).context("making the bucket")?;
        let mut command = Command::new(paths::bin().join("versitygw"));
        command.args(["--port", &address.to_string(), "--access", ACCESS, "--secret", SECRET, "--region", REGION]);
        command.args(["--quiet", "--keep-alive", "posix"]).arg(folder.path()).stdout(Stdio::null());
        let process = Running::start(&mut command)?;
        wait_for("versitygw to answer", Duration::from_secs(20), async || Ok(TcpStream::connect(address).await.ok()))
            .await?;
        Ok(Self { address, folder, _process: process })
    }

    /// Puts an object into the bucket behind the server's back, which is faster than an upload, with an ETag that depends on its bytes.
    pub fn put(&self, key: &str, bytes: &[u8]) -> Result<()> {
        let path = self.folder.path().join(BUCKET).join(key);
        let write = || {
            std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            std::fs::write(&path, bytes)?;
            let etag = format!("{:08x}{:x}", crc32c::crc32c(bytes), bytes.len());
            setxattr(&path, "user.etag", etag.as_bytes(), XattrFlags::empty())?;
            std::io::Result::Ok(())
        };
        write().with_context(|| format!("writing the object {}", path.display()))
    }

    /// The bucket for a plain client.
    pub fn client(&self) -> Result<AmazonS3> {
        AmazonS3Builder::new()
            .with_endpoint(format!("http://{}", self.address))
            .with_client_options(ClientOptions::new().with_allow_http(true).with_timeout(Duration::from_mins(5)))
            .with_bucket_name(BUCKET)
            .with_region(REGION)
            .with_access_key_id(ACCESS)
            .with_secret_access_key(SECRET)
            .build()
            .context("making a plain S3 client")
    }

    /// The bucket as a node's source, reached at `address`: the server's own, or a proxy's.
    pub fn source_at(address: SocketAddr) -> SourceConfig {
        SourceConfig {
            url: format!("s3://{BUCKET}/"),
            endpoint: Some(format!("http://{address}")),
            region: Some(REGION.to_owned()),
            credentials: Some(Credentials {
                access_key_id: ACCESS.to_owned(),
                secret_access_key: SECRET.to_owned(),
                session_token: None,
            }),
        }
    }
}
