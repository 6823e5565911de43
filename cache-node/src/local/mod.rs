//! The local socket's server: `forebay-fuse` of this machine opens objects and has ranges made present; it reads the files itself.

mod accounts;
mod debts;
mod open_object;
mod readahead;
mod reading;
mod session;
pub mod spill;

use std::io;
use std::path::Path;
use std::sync::Arc;

use forebay_protocol::fdsocket::FdListener;
use forebay_protocol::layout::FOREBAY_GID;

use crate::node::Shared;

/// Listens at `path`, for this user and the forebay group.
pub async fn bind(path: &Path) -> io::Result<FdListener> {
    FdListener::bind(path, 0o660, Some(FOREBAY_GID)).await
}

/// Serves connections until dropped.
pub async fn serve(listener: FdListener, shared: Arc<Shared>) {
    let mut sessions = tokio::task::JoinSet::new();
    loop {
        match listener.accept().await {
            Ok(socket) => {
                let shared = Arc::clone(&shared);
                sessions.spawn(async move {
                    if let Err(error) = session::run(socket, shared).await {
                        tracing::debug!(%error, "a local session ended");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, for instance: others may end soon.
                tracing::warn!(%error, "accepting a local connection failed");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
        while sessions.try_join_next().is_some() {}
    }
}
