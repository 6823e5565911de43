//! versitygw over a folder.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use forebay_protocol::config::{Credentials, SourceConfig};
use futures::{StreamExt, stream};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{ObjectStoreExt, PutPayload};
use tempfile::TempDir;

use super::{free_address, scratch, wait_for};

const VERSION: &str = "v1.8.0";
pub const ACCESS: &str = "test-access";
pub const SECRET: &str = "test-secret-key";

pub struct Gateway {
    pub address: SocketAddr,
    folder: TempDir,
    process: Child,
}

/// The program: built already, or to be had, or none.
fn program() -> Option<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/e2e/bin");
    let program = folder.join("versitygw");
    if !program.exists() {
        let package = format!("github.com/versity/versitygw/cmd/versitygw@{VERSION}");
        let installed = Command::new("go").args(["install", &package]).env("GOBIN", &folder).status();
        if !installed.is_ok_and(|status| status.success()) {
            return None;
        }
    }
    Some(program)
}

impl Gateway {
    /// A running server with a bucket `data`; none, and a word about it, where versitygw can't be had.
    pub async fn start() -> Option<Self> {
        let Some(program) = program() else {
            eprintln!("SKIPPED: versitygw can't be installed on this machine (needs Go and the module proxy)");
            assert!(std::env::var_os("FOREBAY_REQUIRE_ALL").is_none(), "no test may be skipped");
            return None;
        };
        let (folder, address) = (scratch(), free_address([127, 0, 0, 1]));
        std::fs::create_dir(folder.path().join("data")).unwrap();
        let process = Self::spawn(&program, address, &folder);
        let gateway = Self { address, folder, process };
        gateway.wait().await;
        Some(gateway)
    }

    fn spawn(program: &PathBuf, address: SocketAddr, folder: &TempDir) -> Child {
        Command::new(program)
            .args([
                "--port",
                &address.to_string(),
                "--access",
                ACCESS,
                "--secret",
                SECRET,
                "--quiet",
                "--keep-alive",
                "posix",
            ])
            .arg(folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    async fn wait(&self) {
        let address = self.address;
        wait_for(
            "versitygw",
            Duration::from_secs(20),
            || async move { tokio::net::TcpStream::connect(address).await.ok() },
        )
        .await;
    }

    pub fn stop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    pub async fn restart(&mut self) {
        self.process = Self::spawn(&program().unwrap(), self.address, &self.folder);
        self.wait().await;
    }

    pub fn add_bucket(&self, name: &str) {
        std::fs::create_dir(self.folder.path().join(name)).unwrap();
    }

    pub fn store(&self, bucket: &str) -> AmazonS3 {
        AmazonS3Builder::new()
            .with_endpoint(format!("http://{}", self.address))
            .with_allow_http(true)
            .with_bucket_name(bucket)
            .with_region("us-east-1")
            .with_access_key_id(ACCESS)
            .with_secret_access_key(SECRET)
            .build()
            .unwrap()
    }

    /// Uploads objects into `data`.
    pub async fn put<I: IntoIterator<Item = (String, Vec<u8>)>>(&self, objects: I) {
        let store = self.store("data");
        stream::iter(objects)
            .for_each_concurrent(16, |(key, bytes)| {
                let store = &store;
                async move {
                    store.put(&object_store::path::Path::parse(&key).unwrap(), PutPayload::from(bytes)).await.unwrap();
                }
            })
            .await;
    }

    /// Puts an object into `data` behind the gateway's back, with an ETag that depends on its bytes.
    pub fn put_raw(&self, key: &str, bytes: &[u8]) {
        let path = self.folder.path().join("data").join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let etag = format!("{:08x}", crc32c::crc32c(bytes));
        rustix::fs::setxattr(&path, "user.etag", etag.as_bytes(), rustix::fs::XattrFlags::empty()).unwrap();
    }

    /// The bucket `data` as a source, reached at `address`.
    pub fn source_at(address: SocketAddr, prefix: &str) -> SourceConfig {
        SourceConfig {
            url: format!("s3://data/{prefix}"),
            endpoint: Some(format!("http://{address}")),
            region: Some("us-east-1".to_owned()),
            credentials: Some(credentials()),
        }
    }
}

pub fn credentials() -> Credentials {
    Credentials { access_key_id: ACCESS.to_owned(), secret_access_key: SECRET.to_owned(), session_token: None }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop();
    }
}
