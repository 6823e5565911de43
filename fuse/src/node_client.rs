//! The connection to a cache node's local socket: requests overlap and are paired with their responses by id; a lost connection is made again
//! in the background. A call fails with [`CallError::Disconnected`] when its connection goes: whether to ask again is the caller's to know,
//! because the leases of the old connection are gone with it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use forebay_catalog::ObjectId;
use forebay_protocol::fdsocket::FdSocket;
use forebay_protocol::local::{Close, Held, HeldQuery, Request, Response, Served, Touched, request::Call, response};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::counters;

/// First pause before connecting again; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// Longest pause: what a reader waits at most after the cache node is back.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Why a call has no answer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CallError {
    /// The connection was lost before the response came.
    #[error("the connection to the cache node was lost")]
    Disconnected,
    /// No connection could be made in the time allowed.
    #[error("the cache node can't be reached")]
    Away,
}

/// A cache node's local socket. Clones share the connection, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct NodeClient {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    connection: watch::Receiver<Option<Arc<Connection>>>,
    keeper: tokio::task::AbortHandle,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// One connection. Leases are only good on the connection that granted them.
#[derive(Debug)]
pub struct Connection {
    socket: FdSocket,
    next_id: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    lost: AtomicBool,
}

/// A response's result and its descriptors.
pub type Answer = (response::Result, Vec<OwnedFd>);

impl NodeClient {
    /// Starts connecting to the socket at `path`. Must be called within a tokio runtime.
    pub fn new(path: &Path) -> Self {
        let (sender, connection) = watch::channel(None);
        let keeper = tokio::spawn(keep_connected(path.to_owned(), sender)).abort_handle();
        Self { shared: Arc::new(Shared { path: path.to_owned(), connection, keeper }) }
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// The connection, if there is one now.
    pub fn connected(&self) -> Option<Arc<Connection>> {
        self.shared.connection.borrow().clone().filter(|connection| !connection.is_lost())
    }

    /// The connection; waits until `deadline` for one to be made.
    pub async fn connection(&self, deadline: Instant) -> Result<Arc<Connection>, CallError> {
        if let Some(connection) = self.connected() {
            return Ok(connection);
        }
        let mut receiver = self.shared.connection.clone();
        let made = receiver.wait_for(|connection| connection.as_ref().is_some_and(|it| !it.is_lost()));
        match tokio::time::timeout_at(deadline, made).await {
            Ok(Ok(connection)) => connection.clone().ok_or(CallError::Away),
            _ => Err(CallError::Away),
        }
    }

    /// Tells the node of bytes that readers got without asking it; false when it can't be told now.
    pub async fn report_served(&self, dataset_uid: &str, bytes: u64) -> bool {
        let Some(connection) = self.connected() else { return false };
        let call = Call::Served(Served { dataset_uid: dataset_uid.to_owned(), bytes });
        connection.socket.send(&Request { id: 0, call: Some(call) }, &[]).await.is_ok()
    }

    /// How much of the cache is held by what is unlinked; none when the node can't be asked now.
    pub async fn held(&self) -> Option<Held> {
        match self.connected()?.call(Call::Held(HeldQuery {})).await {
            Ok((response::Result::Held(held), _)) => Some(held),
            _ => None,
        }
    }

    /// Tells the node of complete objects that were opened without asking it, each standing for so many opens; false when it can't be told now.
    pub async fn report_opened(&self, dataset_uid: &str, objects: &[ObjectId], stands_for: u32) -> bool {
        let Some(connection) = self.connected() else { return false };
        let object_ids = objects.iter().flat_map(|id| *id.as_bytes()).collect();
        let call = Call::Touched(Touched { dataset_uid: dataset_uid.to_owned(), object_ids, stands_for });
        connection.socket.send(&Request { id: 0, call: Some(call) }, &[]).await.is_ok()
    }
}

impl Connection {
    /// Sends a request and waits for its response.
    pub async fn call(&self, call: Call) -> Result<Answer, CallError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.waiting().insert(id, sender);
        // Removes the entry also when the caller is cancelled: an interrupted read.
        let _entry = Waiting { connection: self, id };
        if self.is_lost() || self.socket.send(&Request { id, call: Some(call) }, &[]).await.is_err() {
            return Err(CallError::Disconnected);
        }
        receiver.await.map_err(|_| CallError::Disconnected)
    }

    /// Ends a lease, without waiting for the node to confirm it.
    pub async fn close_lease(&self, lease: u64) {
        // When the connection is gone, so is the lease.
        let _ = self.socket.send(&Request { id: 0, call: Some(Call::Close(Close { lease })) }, &[]).await;
    }

    /// Whether it has ended, and with it the leases it granted.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Answer>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands out responses until the connection ends.
    async fn receive_responses(&self) -> std::io::Result<()> {
        while let Some((response, fds)) = self.socket.receive::<Response>().await? {
            let Some(result) = response.result else { continue };
            let lease = match &result {
                response::Result::Opened(opened) => Some(opened.lease),
                _ => None,
            };
            let receiver = self.waiting().remove(&response.id);
            let delivered = receiver.is_some_and(|receiver| receiver.send((result, fds)).is_ok());
            if let Some(lease) = lease.filter(|_| !delivered) {
                // Whoever asked for it was interrupted meanwhile.
                self.close_lease(lease).await;
            }
        }
        Ok(())
    }
}

struct Waiting<'a> {
    connection: &'a Connection,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.connection.waiting().remove(&self.id);
    }
}

/// Connects, serves the connection until it ends, and begins again.
async fn keep_connected(path: PathBuf, current: watch::Sender<Option<Arc<Connection>>>) {
    let mut pause = FIRST_PAUSE;
    let mut away_said = false;
    loop {
        match FdSocket::connect(&path).await {
            Ok(socket) => {
                tracing::info!(socket = %path.display(), "connected to the cache node");
                (pause, away_said) = (FIRST_PAUSE, false);
                let connection = Arc::new(Connection {
                    socket,
                    next_id: AtomicU64::new(1),
                    waiting: Mutex::default(),
                    lost: AtomicBool::new(false),
                });
                current.send_replace(Some(Arc::clone(&connection)));
                let present = counters::connected();
                let end = connection.receive_responses().await;
                drop(present);
                counters::lost();
                connection.lost.store(true, Ordering::Release);
                current.send_replace(None);
                connection.waiting().clear();
                let cause = end.err().map_or_else(|| "closed by the node".to_owned(), |error| error.to_string());
                tracing::warn!(socket = %path.display(), cause, "lost the cache node; reads of incomplete objects wait for it");
            }
            Err(error) if !away_said => {
                away_said = true;
                tracing::warn!(socket = %path.display(), %error, "the cache node can't be reached; trying again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
