//! One opened object: the cache node's lease on it, the backing file's descriptor, and which ranges are known to be present. Leases and
//! knowledge end with the connection that gave them and are taken anew; a complete object needs neither any more.

use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use forebay_protocol::local::{Ensure, FailureKind, Open, request::Call, response};
use nix::errno::Errno;
use tokio::time::Instant;

use crate::backing::{self, BackingFile, Bytes, Now};
use crate::node_client::{CallError, Connection};
use crate::ranges::Ranges;
use crate::registry::Found;

/// How long a read waits for a cache node that is away.
pub const NODE_PATIENCE: Duration = Duration::from_secs(120);

/// The kernel asks again for a page whose read-ahead has failed; the reader has waited long enough by then.
const ASKED_AGAIN: Duration = Duration::from_secs(1);

/// How long a failure that may pass is asked about again: a node that is starting has no catalog yet, one that is ending has closed its store.
const SETTLING: Duration = Duration::from_secs(20);

/// How often.
const SETTLING_PAUSE: Duration = Duration::from_millis(200);

/// Pause before asking again after a lease turned out to be unknown or the connection broke.
const PAUSE: Duration = Duration::from_millis(10);

/// Why an object can't be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The cache node was away for too long.
    #[error("the cache node at {socket} has been away for {} s; see why its pod is not running", NODE_PATIENCE.as_secs())]
    NodeAway {
        /// Its local socket.
        socket: String,
    },
    /// The cache node says why.
    #[error("{message}")]
    Failed {
        /// What kind of failure.
        kind: FailureKind,
        /// The node's own words.
        message: String,
    },
    /// The cache node does not keep to the protocol.
    #[error("the cache node answered {0}; are node and daemon of the same version?")]
    Protocol(&'static str),
    /// The backing file ends early.
    #[error(
        "the backing file ends at byte {at}; remove the object from the cache folder's objects/ and partial/, it is loaded again"
    )]
    TooShort {
        /// Its last byte.
        at: u64,
    },
    /// The backing file can't be read.
    #[error("reading the backing file: {0}; see the node's kernel log for its disk")]
    Backing(#[from] std::io::Error),
}

impl ReadError {
    fn may_pass(&self) -> bool {
        matches!(self, Self::Failed { kind: FailureKind::NotFound | FailureKind::Store, .. })
    }

    /// What the reader's system call fails with.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Failed { kind, .. } => match kind {
                FailureKind::Changed => Errno::ESTALE,
                // The catalog names it, or the kernel would not have asked: for the reader it is there and can't be read.
                FailureKind::NotFound
                | FailureKind::Source
                | FailureKind::Store
                | FailureKind::BadLease
                | FailureKind::Unspecified => Errno::EIO,
            },
            Self::NodeAway { .. } | Self::Protocol(_) | Self::TooShort { .. } | Self::Backing(_) => Errno::EIO,
        }
    }
}

/// An object that is open, or that a reader has left open in an earlier life of this daemon.
#[derive(Debug)]
pub struct OpenObject {
    /// What it is.
    pub found: Found,
    state: RwLock<State>,
    /// Held while a lease is being asked for, so that it is asked for once.
    opening: tokio::sync::Mutex<()>,
    /// When a read last gave the node up.
    gave_up: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct State {
    file: Option<Arc<BackingFile>>,
    complete: bool,
    lease: Option<Lease>,
    /// Of the current lease.
    present: Ranges,
}

#[derive(Clone, Debug)]
struct Lease {
    id: u64,
    connection: Arc<Connection>,
}

impl OpenObject {
    /// Knows nothing yet.
    pub fn new(found: Found) -> Self {
        Self { found, state: RwLock::default(), opening: tokio::sync::Mutex::default(), gave_up: Mutex::default() }
    }

    /// Reads a range that is known to be present and in memory. `None`: it has to be asked for, or waited for.
    pub fn read_now(&self, range: &Range<u64>, buffer: &mut [u8]) -> Option<usize> {
        let (file, lease) = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            let file = Arc::clone(state.file.as_ref()?);
            if state.complete {
                (file, None)
            } else {
                let lease = state.lease.clone()?;
                if lease.connection.is_lost() || !state.present.covers(range) {
                    return None;
                }
                (file, Some(lease))
            }
        };
        match backing::read_now(&file, range.start, buffer) {
            // As in `read_once`.
            Ok(Now::Read(length)) if length == buffer.len() && lease.is_none_or(|it| !it.connection.is_lost()) => {
                Some(length)
            }
            _ => None,
        }
    }

    /// Reads a range, having it made present first. The range must lie within the object. The bytes count against the process's buffers until they are
    /// dropped.
    pub async fn read(&self, range: Range<u64>) -> Result<Bytes, ReadError> {
        let length = (range.end - range.start) as usize;
        let bytes = match self.complete_file() {
            Some(file) => {
                self.found.catalog.count_served(length as u64);
                backing::read(file, range.start, length).await?
            }
            None => self.with_patience(|connection| self.read_once(connection, &range)).await?,
        };
        if bytes.len() < length {
            return Err(ReadError::TooShort { at: range.start + bytes.len() as u64 });
        }
        Ok(bytes)
    }

    async fn read_once(&self, connection: Arc<Connection>, range: &Range<u64>) -> Result<Bytes, Attempt> {
        let (lease, file) = self.lease(&connection, range).await?;
        self.ensure(&lease, range).await?;
        let bytes = backing::read(file, range.start, (range.end - range.start) as usize).await?;
        // Without the lease the node may have punched a hole before we read: what we hold could be zeros.
        if lease.connection.is_lost() && self.complete_file().is_none() { Err(Attempt::Again) } else { Ok(bytes) }
    }

    /// Tries on each new connection. A node that is away, or that keeps breaking the connection, has [`NODE_PATIENCE`] to come back.
    async fn with_patience<T, F>(&self, attempt: impl Fn(Arc<Connection>) -> F) -> Result<T, ReadError>
    where
        F: Future<Output = Result<T, Attempt>>,
    {
        let gave_up = || self.gave_up.lock().unwrap_or_else(PoisonError::into_inner);
        let away = || {
            *gave_up() = Some(Instant::now());
            ReadError::NodeAway { socket: self.found.catalog.node.path().display().to_string() }
        };
        let asked_again = gave_up().is_some_and(|at| at.elapsed() < ASKED_AGAIN);
        let mut deadline = Instant::now() + if asked_again { Duration::ZERO } else { NODE_PATIENCE };
        let mut settled_by = None;
        let mut lost_before = false;
        loop {
            let connection = self.found.catalog.node.connection(deadline).await.map_err(|_| away())?;
            match attempt(connection).await {
                Ok(value) => return Ok(value),
                Err(Attempt::Failed(error)) => {
                    if !error.may_pass()
                        || Instant::now() >= *settled_by.get_or_insert_with(|| Instant::now() + SETTLING)
                    {
                        return Err(error);
                    }
                    tokio::time::sleep(SETTLING_PAUSE).await;
                }
                Err(Attempt::Again) if lost_before && Instant::now() >= deadline => return Err(away()),
                Err(Attempt::Again) => {
                    if !lost_before {
                        // The first attempt may have waited long for the source before its connection broke.
                        deadline = Instant::now() + NODE_PATIENCE;
                    }
                    lost_before = true;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn complete_file(&self) -> Option<Arc<BackingFile>> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.file.clone().filter(|_| state.complete)
    }

    /// The lease on this connection, and the file. If it has to be asked for, the node begins with `next` at once.
    async fn lease(
        &self,
        connection: &Arc<Connection>,
        next: &Range<u64>,
    ) -> Result<(Lease, Arc<BackingFile>), Attempt> {
        let held = || {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            let lease = state.lease.clone().filter(|lease| !lease.connection.is_lost())?;
            Some((lease, state.file.clone()?))
        };
        if let Some(held) = held() {
            return Ok(held);
        }
        let _opening = self.opening.lock().await;
        if let Some(held) = held() {
            return Ok(held);
        }
        let call = Call::Open(Open {
            dataset_uid: self.found.catalog.dataset_uid.clone(),
            object_id: self.found.id.as_bytes().to_vec(),
            offset: next.start,
            length: next.end - next.start,
        });
        let (opened, file) = match connection.call(call).await? {
            (response::Result::Opened(opened), mut fds) => {
                (opened, fds.pop().ok_or(ReadError::Protocol("an Open without a descriptor"))?)
            }
            (response::Result::Failed(failed), _) => return Err(failed.into()),
            _ => return Err(ReadError::Protocol("an Open with something else").into()),
        };
        let lease = Lease { id: opened.lease, connection: Arc::clone(connection) };
        let file = Arc::new(BackingFile::from(file));
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.file = Some(Arc::clone(&file));
        state.complete = opened.complete;
        state.lease = Some(lease.clone());
        state.present.clear();
        Ok((lease, file))
    }

    async fn ensure(&self, lease: &Lease, range: &Range<u64>) -> Result<(), Attempt> {
        let call = Call::Ensure(Ensure { lease: lease.id, offset: range.start, length: range.end - range.start });
        let ensured = match lease.connection.call(call).await? {
            (response::Result::Ensured(ensured), _) => ensured,
            (response::Result::Failed(failed), _) => {
                if failed.kind() == FailureKind::BadLease {
                    let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
                    state.lease = None;
                    state.present.clear();
                }
                return Err(failed.into());
            }
            _ => return Err(ReadError::Protocol("an Ensure with something else").into()),
        };
        let present = ensured.offset..ensured.offset.saturating_add(ensured.length);
        if !ensured.complete && (present.start > range.start || present.end < range.end) {
            return Err(ReadError::Protocol("an Ensure with less than the range").into());
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        // Only if the lease is still the one that was asked with.
        if state
            .lease
            .as_ref()
            .is_some_and(|held| held.id == lease.id && Arc::ptr_eq(&held.connection, &lease.connection))
        {
            state.present.insert(present);
            state.complete |= ensured.complete;
        }
        Ok(())
    }
}

impl Drop for OpenObject {
    /// Ends the lease, when no handle and no read under way needs it any more.
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Without a runtime the process is ending, and its leases with it.
        if let (Some(lease), Ok(runtime)) = (state.lease.take(), tokio::runtime::Handle::try_current()) {
            let catalog = Arc::clone(&self.found.catalog);
            runtime.spawn(async move {
                // In this order: the node settles its account of a dataset with the last lease.
                catalog.report_served().await;
                lease.connection.close_lease(lease.id).await;
            });
        }
    }
}

/// Why one attempt gave no result.
enum Attempt {
    /// The connection or the lease is gone: worth another one.
    Again,
    Failed(ReadError),
}

impl From<CallError> for Attempt {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Disconnected | CallError::Away => Self::Again,
        }
    }
}

impl From<forebay_protocol::local::Failed> for Attempt {
    fn from(failed: forebay_protocol::local::Failed) -> Self {
        match failed.kind() {
            FailureKind::BadLease => Self::Again,
            kind => Self::Failed(ReadError::Failed { kind, message: failed.message }),
        }
    }
}

impl From<ReadError> for Attempt {
    fn from(error: ReadError) -> Self {
        Self::Failed(error)
    }
}

impl From<std::io::Error> for Attempt {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.into())
    }
}
