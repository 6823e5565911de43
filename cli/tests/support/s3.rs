//! A real S3 server (versitygw) on a loopback port, with its objects in a scratch folder.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::{ObjectStoreExt as _, PutPayload};

use super::wait_for;

pub const KEY_ID: &str = "test-key";
pub const SECRET: &str = "test-secret-never-shown";

/// A running server; dropping it ends it.
pub struct S3 {
    child: Child,
    port: u16,
    folder: PathBuf,
}

/// The server's program.
pub fn program() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    target.join("e2e/bin/versitygw")
}

impl S3 {
    pub fn start(folder: &Path) -> Self {
        // Another process could take the port before the server does; then it ends, and the test says so.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = std::fs::File::create(folder.with_extension("log")).unwrap();
        let child = Command::new(program())
            .args(["--access", KEY_ID, "--secret", SECRET, "--region", "us-east-1", "--keep-alive", "--quiet"])
            .args(["--port", &format!("127.0.0.1:{port}"), "posix"])
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut server = Self { child, port, folder: folder.to_owned() };
        wait_for("the S3 server", Duration::from_secs(20), || {
            assert!(server.child.try_wait().unwrap().is_none(), "the S3 server ended: {}", server.log());
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        server
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn make_bucket(&self, bucket: &str) {
        std::fs::create_dir(self.folder.join(bucket)).unwrap();
    }

    /// Where the server keeps an object.
    pub fn path(&self, bucket: &str, key: &str) -> PathBuf {
        self.folder.join(bucket).join(key)
    }

    /// Makes a folder with nothing in it, as the server keeps an empty object whose key ends with `/`: `object_store` can't send such a key.
    pub fn make_folder(&self, bucket: &str, key: &str) {
        let path = self.path(bucket, key);
        std::fs::create_dir_all(&path).unwrap();
        let etag = b"\"d41d8cd98f00b204e9800998ecf8427e\"";
        rustix::fs::setxattr(path, "user.etag", etag, rustix::fs::XattrFlags::empty()).unwrap();
    }

    /// Uploads objects.
    pub fn upload(&self, bucket: &str, objects: &[(&str, Vec<u8>)]) {
        let store = AmazonS3Builder::new()
            .with_endpoint(self.endpoint())
            .with_allow_http(true)
            .with_region("us-east-1")
            .with_bucket_name(bucket)
            .with_access_key_id(KEY_ID)
            .with_secret_access_key(SECRET)
            .build()
            .unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            for (key, content) in objects {
                let path = object_store::path::Path::parse(key).unwrap();
                store.put(&path, PutPayload::from(content.clone())).await.unwrap();
            }
        });
    }

    /// Ends the server.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.with_extension("log")).unwrap_or_default()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.stop();
    }
}
