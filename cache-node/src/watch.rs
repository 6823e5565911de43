//! Watching `runtime.yaml`: a mounted Secret changes by a swap of symbolic links, which polling the content sees like any other change. A file
//! that can't be used is reported once and changes nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use forebay_protocol::config::{ConfigError, RuntimeConfig};

use crate::node::Shared;
use crate::server;

const POLL: Duration = Duration::from_millis(500);
/// Between two attempts to apply a config that could not be applied.
const RETRY: Duration = Duration::from_secs(5);

/// Applies the file whenever it changes; runs until dropped.
pub(crate) async fn run(path: PathBuf, shared: Arc<Shared>) {
    let mut seen = state(&path);
    loop {
        tokio::time::sleep(POLL).await;
        let now = state(&path);
        if now == seen {
            continue;
        }
        seen = now;
        match read(&path).await {
            Ok(config) => {
                if let Err(error) = shared.apply(config).await {
                    tracing::error!(path = %path.display(), %error, "the new config can't be applied; it is tried again");
                    // What is seen next differs from nothing, so the file is read again.
                    tokio::time::sleep(RETRY).await;
                    seen = None;
                }
            }
            Err(error) => tracing::error!(%error, "the new config is not used; the one before stays"),
        }
    }
}

async fn read(path: &Path) -> Result<RuntimeConfig, ConfigError> {
    let path = path.to_owned();
    let missing = ConfigError::Read { path: path.clone(), source: std::io::Error::other("the reader panicked") };
    tokio::task::spawn_blocking(move || RuntimeConfig::read(&path)).await.unwrap_or(Err(missing))
}

/// Stands for the content of the file and of the TLS files it names; none when it can't be read.
fn state(path: &Path) -> Option<([u8; 32], Option<[u8; 32]>)> {
    let content = std::fs::read(path).ok()?;
    let tls = RuntimeConfig::read(path).ok().and_then(|config| config.tls);
    Some((*blake3::hash(&content).as_bytes(), tls.and_then(|files| server::fingerprint(&files))))
}
