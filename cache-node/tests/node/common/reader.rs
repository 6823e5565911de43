//! A reader of a node's local socket, as `forebay-fuse` is one.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use forebay_catalog::{Catalog, ObjectId};
use forebay_protocol::fdsocket::FdSocket;
use forebay_protocol::local::{
    Close, Ensure, Ensured, Failed, FailureKind, Open, Request, Response, Served, Touched, request::Call,
    response::Result as Answer,
};

pub struct Reader {
    socket: FdSocket,
    uid: String,
    catalog: Catalog,
    next: AtomicU64,
}

pub struct OpenFile {
    pub lease: u64,
    pub size: u64,
    pub complete: bool,
    pub file: std::fs::File,
}

impl Reader {
    pub async fn connect(socket: &Path, uid: &str, catalog: &Path) -> Self {
        let socket = FdSocket::connect(socket).await.unwrap();
        Self { socket, uid: uid.to_owned(), catalog: Catalog::open(catalog).unwrap(), next: AtomicU64::new(1) }
    }

    /// All files with content, by path.
    pub fn files(&self) -> BTreeMap<String, ObjectId> {
        let table = self.catalog.table();
        table.iter().map(|record| (String::from_utf8_lossy(&record.tree_path()).into_owned(), record.id)).collect()
    }

    async fn call(&self, call: Call) -> (Answer, Vec<std::os::fd::OwnedFd>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.socket.send(&Request { id, call: Some(call) }, &[]).await.unwrap();
        let (response, fds) = self.socket.receive::<Response>().await.unwrap().expect("the node answers");
        assert_eq!(response.id, id);
        (response.result.unwrap(), fds)
    }

    pub async fn open(&self, id: &ObjectId) -> Result<OpenFile, Failed> {
        self.open_for(id, 0, 0).await
    }

    /// Opens an object and says which range it asks for next.
    pub async fn open_for(&self, id: &ObjectId, offset: u64, length: u64) -> Result<OpenFile, Failed> {
        let (dataset_uid, object_id) = (self.uid.clone(), id.as_bytes().to_vec());
        let open = Open { dataset_uid, object_id, offset, length };
        match self.call(Call::Open(open)).await {
            (Answer::Opened(opened), mut fds) => {
                let file = std::fs::File::from(fds.pop().expect("a descriptor"));
                Ok(OpenFile { lease: opened.lease, size: opened.size, complete: opened.complete, file })
            }
            (Answer::Failed(failed), _) => Err(failed),
            other => panic!("{other:?}"),
        }
    }

    pub async fn ensure(&self, lease: u64, offset: u64, length: u64) -> Result<Ensured, Failed> {
        match self.call(Call::Ensure(Ensure { lease, offset, length })).await.0 {
            Answer::Ensured(ensured) => Ok(ensured),
            Answer::Failed(failed) => Err(failed),
            other => panic!("{other:?}"),
        }
    }

    pub async fn close(&self, lease: u64) {
        assert!(matches!(self.call(Call::Close(Close { lease })).await.0, Answer::Closed(_)));
    }

    /// Reports opens of objects that nobody asked the node for, each standing for so many.
    pub async fn touched(&self, ids: &[ObjectId], stands_for: u32) {
        let object_ids = ids.iter().flat_map(|id| *id.as_bytes()).collect();
        let touched = Touched { dataset_uid: self.uid.clone(), object_ids, stands_for };
        assert!(matches!(self.call(Call::Touched(touched)).await.0, Answer::Closed(_)));
    }

    /// Reads an object from end to end, in pieces of `step`.
    pub async fn read(&self, id: &ObjectId, step: u64) -> Result<Vec<u8>, Failed> {
        let mut open = self.open(id).await?;
        let mut reopened = 0;
        let mut bytes = vec![0; usize::try_from(open.size).unwrap()];
        let mut offset = 0;
        while offset < open.size {
            let length = step.min(open.size - offset);
            if !open.complete {
                let ensured = match self.ensure(open.lease, offset, length).await {
                    // As the daemon does: the lease is gone, or the disk can't take the object.
                    Err(failed) if failed.kind() == FailureKind::BadLease && reopened < 1000 => {
                        reopened += 1;
                        open = self.open(id).await?;
                        continue;
                    }
                    ensured => ensured?,
                };
                assert!(ensured.offset <= offset && ensured.offset + ensured.length >= offset + length);
            }
            let range = usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap();
            open.file.read_exact_at(&mut bytes[range], offset).unwrap();
            offset += length;
        }
        if open.complete {
            // The daemon asks for nothing that it knows to be there, and tells so later.
            let served = Served { dataset_uid: self.uid.clone(), bytes: open.size };
            assert!(matches!(self.call(Call::Served(served)).await.0, Answer::Closed(_)));
        }
        self.close(open.lease).await;
        Ok(bytes)
    }
}
