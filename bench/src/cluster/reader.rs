//! A reader of a node's local socket, as `forebay-fuse` is one.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use forebay_catalog::{Catalog, ObjectId};
use forebay_protocol::fdsocket::FdSocket;
use forebay_protocol::local::{
    Close, Ensure, Failed, FailureKind, Open, Request, Response, request::Call, response::Result as Answer,
};

/// A connection; one request at a time.
#[derive(Debug)]
pub struct Reader {
    socket: FdSocket,
    uid: String,
    catalog: Catalog,
    next: AtomicU64,
}

/// How often an object is opened again in one read: a lease ends when what it is on was found damaged, which does not go on for ever.
const OPENED_AGAIN: usize = 5;

/// Why a read gave no bytes.
#[derive(Debug)]
pub enum ReadError {
    /// The node is gone, or never answered.
    Disconnected(anyhow::Error),
    /// The node says that it can't.
    Refused(Failed),
    /// The node said something that makes no sense.
    Wrong(anyhow::Error),
}

impl std::fmt::Display for ReadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Disconnected(error) => write!(f, "the node does not answer: {error:#}"),
            Self::Refused(failed) => write!(f, "the node refuses: {failed:?}"),
            Self::Wrong(error) => write!(f, "the node breaks the protocol: {error:#}"),
        }
    }
}

impl std::error::Error for ReadError {}

impl Reader {
    /// Connects to a node that has the catalog in this folder.
    pub async fn connect(socket: &Path, uid: &str, catalog: &Path) -> Result<Self> {
        let connected = FdSocket::connect(socket).await;
        Ok(Self {
            socket: connected.with_context(|| format!("connecting to {}", socket.display()))?,
            uid: uid.to_owned(),
            catalog: Catalog::open(catalog)?,
            next: AtomicU64::new(1),
        })
    }

    /// All files with content, by path.
    pub fn files(&self) -> BTreeMap<String, ObjectId> {
        let records = self.catalog.table().iter();
        records.map(|record| (String::from_utf8_lossy(&record.tree_path()).into_owned(), record.id)).collect()
    }

    async fn call(&self, call: Call) -> Result<(Answer, Vec<OwnedFd>), ReadError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let sent = self.socket.send(&Request { id, call: Some(call) }, &[]).await;
        sent.map_err(|error| ReadError::Disconnected(error.into()))?;
        let received = self.socket.receive::<Response>().await;
        match received.map_err(|error| ReadError::Disconnected(error.into()))? {
            Some((Response { id: answered, result: Some(result) }, fds)) if answered == id => match result {
                Answer::Failed(failed) => Err(ReadError::Refused(failed)),
                result => Ok((result, fds)),
            },
            Some(other) => Err(ReadError::Wrong(anyhow::anyhow!("request {id} was answered by {:?}", other.0))),
            None => Err(ReadError::Disconnected(anyhow::anyhow!("it has closed the connection"))),
        }
    }

    /// Reads an object from end to end, in pieces of `step` bytes. Opens it again when told to, as the daemon does.
    pub async fn read(&self, id: &ObjectId, step: u64) -> Result<Vec<u8>, ReadError> {
        for _ in 0..OPENED_AGAIN {
            match self.read_once(id, step).await {
                Err(ReadError::Refused(failed)) if failed.kind() == FailureKind::BadLease => {}
                read => return read,
            }
        }
        self.read_once(id, step).await
    }

    async fn read_once(&self, id: &ObjectId, step: u64) -> Result<Vec<u8>, ReadError> {
        let open = Open { dataset_uid: self.uid.clone(), object_id: id.as_bytes().to_vec(), ..Open::default() };
        let (opened, mut fds) = match self.call(Call::Open(open)).await? {
            (Answer::Opened(opened), fds) => (opened, fds),
            (other, _) => return Err(ReadError::Wrong(anyhow::anyhow!("Open was answered by {other:?}"))),
        };
        let file = fds.pop().map(File::from);
        let file = file.ok_or_else(|| ReadError::Wrong(anyhow::anyhow!("Opened came without a descriptor")))?;
        let bytes = self.read_opened(&file, opened.lease, opened.size, opened.complete, step.max(1)).await;
        self.call(Call::Close(Close { lease: opened.lease })).await?;
        bytes
    }

    async fn read_opened(
        &self,
        file: &File,
        lease: u64,
        size: u64,
        complete: bool,
        step: u64,
    ) -> Result<Vec<u8>, ReadError> {
        let mut bytes = vec![0; size as usize];
        for piece in bytes.chunks_mut(step as usize).enumerate() {
            let (offset, length) = (piece.0 as u64 * step, piece.1.len() as u64);
            if !complete {
                self.ensure(lease, offset, length).await?;
            }
            let read = file.read_exact_at(piece.1, offset);
            read.map_err(|error| ReadError::Wrong(anyhow::anyhow!("the backing file at {offset}: {error}")))?;
        }
        Ok(bytes)
    }

    async fn ensure(&self, lease: u64, offset: u64, length: u64) -> Result<(), ReadError> {
        let covers = |answer| -> Result<()> {
            let Answer::Ensured(ensured) = answer else { bail!("Ensure was answered by {answer:?}") };
            let end = ensured.offset.saturating_add(ensured.length);
            ensure!(
                ensured.offset <= offset && end >= offset + length,
                "asked for {length} bytes at {offset}: {ensured:?}"
            );
            Ok(())
        };
        let (answer, _) = self.call(Call::Ensure(Ensure { lease, offset, length })).await?;
        covers(answer).map_err(ReadError::Wrong)
    }
}
