//! One connection of the local socket. Leases belong to it and end with it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use forebay_catalog::ObjectId;
use forebay_protocol::fdsocket::FdSocket;
use forebay_protocol::local::{
    Close, Closed, Ensure, Ensured, Failed, FailureKind, Held, Open, Opened, Request, Response, Served, request::Call,
    response::Result as Answer,
};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::accounts::{self, Accounts};
use super::open_object::{Hold, OpenObject};
use super::reading::{Given, Reading};
use crate::dataset::CatalogObject;
use crate::engine::Engine;
use crate::fetch::FetchError;
use crate::node::Shared;
use crate::store::StoreError;
use crate::units::ByteRange;

/// Requests of one connection that are worked on at once; more wait in the socket.
const CONCURRENT: usize = 1024;

struct Session {
    socket: FdSocket,
    shared: Arc<Shared>,
    leases: Mutex<HashMap<u64, Arc<OpenObject>>>,
    next_lease: AtomicU64,
    accounts: Accounts,
    /// Objects that are opened again because the disk could not take a chunk, or because their spill file is used up.
    unkept: Mutex<HashSet<ObjectId>>,
}

/// Serves a connection until the other end closes it.
pub(super) async fn run(socket: FdSocket, shared: Arc<Shared>) -> io::Result<()> {
    let session = Arc::new(Session {
        socket,
        shared,
        leases: Mutex::default(),
        next_lease: AtomicU64::new(1),
        accounts: Accounts::default(),
        unkept: Mutex::default(),
    });
    let turns = Arc::new(Semaphore::new(CONCURRENT));
    let mut tasks = JoinSet::new();
    loop {
        let turn = Arc::clone(&turns).acquire_owned().await.map_err(io::Error::other)?;
        let Some((request, _)) = session.socket.receive::<Request>().await? else { return Ok(()) };
        while tasks.try_join_next().is_some() {}
        let session = Arc::clone(&session);
        tasks.spawn(async move {
            session.answer(request).await;
            drop(turn);
        });
    }
}

impl Session {
    async fn answer(self: &Arc<Self>, request: Request) {
        let Request { id, call } = request;
        let mut begun = None;
        let (answer, file) = match call {
            Some(Call::Open(open)) => match self.open(open).await {
                Ok((opened, file, next)) => {
                    begun = next;
                    (Answer::Opened(opened), Some(file))
                }
                Err(failed) => (Answer::Failed(failed), None),
            },
            Some(Call::Ensure(ensure)) => {
                (self.ensured(ensure).await.map_or_else(Answer::Failed, Answer::Ensured), None)
            }
            Some(Call::Close(Close { lease })) => {
                self.close(lease);
                (Answer::Closed(Closed {}), None)
            }
            Some(Call::Served(Served { dataset_uid, bytes })) => {
                if let Some(engine) = self.shared.engine() {
                    self.accounts.served(&engine, &dataset_uid, bytes);
                }
                (Answer::Closed(Closed {}), None)
            }
            Some(Call::Held(_)) => (self.held().map_or_else(Answer::Failed, Answer::Held), None),
            Some(Call::Touched(touched)) => {
                if let Some(engine) = self.shared.engine() {
                    accounts::touched(&engine, &touched);
                }
                (Answer::Closed(Closed {}), None)
            }
            None => {
                (Answer::Failed(failed(FailureKind::Unspecified, "the request is empty or of a later version")), None)
            }
        };
        if id == 0 {
            return;
        }
        let fds: Vec<BorrowedFd<'_>> = file.iter().map(AsFd::as_fd).collect();
        if let Err(error) = self.socket.send(&Response { id, result: Some(answer) }, &fds).await {
            tracing::debug!(%error, "a local client does not take its answer");
        }
        // So that it ends with the connection, as what has been asked for does.
        if let Some(begun) = begun {
            let _ = begun.await;
        }
    }

    fn held(&self) -> Result<Held, Failed> {
        let engine = self.shared.engine().ok_or_else(closed)?;
        let store = engine.store();
        Ok(Held {
            held_bytes: store.held_bytes(),
            capacity_bytes: store.capacity(),
            waited_for: store.room_is_waited_for(),
        })
    }

    fn close(&self, lease: u64) {
        let mut leases = self.leases.lock();
        let Some(closed) = leases.remove(&lease) else { return };
        closed.give_begun_up();
        if !leases.values().any(|open| open.dataset_uid == closed.dataset_uid) {
            self.accounts.forgive(&closed.dataset_uid);
        }
    }

    /// Opens an object. If the reader names a range that it asks for next, that is on its way as long as it is awaited.
    async fn open(
        self: &Arc<Self>,
        open: Open,
    ) -> Result<(Opened, std::fs::File, Option<AbortOnDropHandle<()>>), Failed> {
        let Open { dataset_uid, object_id, offset, length } = open;
        let id: [u8; 16] =
            object_id.as_slice().try_into().map_err(|_| failed(FailureKind::NotFound, "an object id has 16 bytes"))?;
        let id = ObjectId::from_bytes(id);
        let engine = self.shared.engine().ok_or_else(closed)?;
        let (dataset, object) = engine.object(&dataset_uid, &id).map_err(|error| fetch_failed(&error))?;
        let (hold, file, complete) = self.open_file(&engine, &object).await?;
        if complete {
            engine.opened_complete(&dataset, &object);
        }
        let lease = self.next_lease.fetch_add(1, Ordering::Relaxed);
        let copy = engine.borrowed_copy(&dataset, &object);
        let open = Arc::new(OpenObject::new(hold, copy, dataset_uid, id));
        self.leases.lock().insert(lease, Arc::clone(&open));
        let begun = (length > 0 && !complete).then(|| self.begin(&open, Ensure { lease, offset, length }));
        Ok((Opened { lease, size: object.stored.size, complete }, file, begun))
    }

    /// Begins what the reader asks for next.
    fn begin(self: &Arc<Self>, open: &OpenObject, next: Ensure) -> AbortOnDropHandle<()> {
        let (mut given, begun) = oneshot::channel();
        open.begin(next, begun);
        let this = Arc::clone(self);
        AbortOnDropHandle::new(tokio::spawn(async move {
            let ensured = tokio::select! {
                ensured = this.ensure(next) => ensured,
                () = given.closed() => return,
            };
            // Given up just now.
            let _ = given.send(ensured);
        }))
    }

    /// The object's file in the cache, or one in memory when the disk can't take the object.
    async fn open_file(&self, engine: &Engine, object: &CatalogObject) -> Result<(Hold, std::fs::File, bool), Failed> {
        let (store, id) = (engine.store(), &object.stored.id);
        let unkept = self.unkept.lock().remove(id) || (store.faults().writes_fail() && !store.is_complete(id));
        if !unkept {
            match store.open_object(&object.stored).await {
                Ok(opened) => return Ok((Hold::Cached(opened.lease), opened.file, opened.complete)),
                Err(error @ StoreError::Closed) => return Err(failed(FailureKind::Store, error.to_string())),
                Err(error) => tracing::debug!(%id, %error, "an object is opened in memory"),
            }
        }
        let opened = engine.spills().open(object.stored.size);
        let (spill, file) = opened
            .map_err(|error| failed(FailureKind::Store, format!("making a file in memory for object {id}: {error}")))?;
        Ok((Hold::Spilled(spill), file, false))
    }

    /// The reader is to open the object again and gets a file in memory.
    fn open_again(&self, lease: u64, id: ObjectId, why: &str) -> Failed {
        self.unkept.lock().insert(id);
        self.leases.lock().remove(&lease);
        failed(FailureKind::BadLease, why)
    }

    /// Makes a range present, unless that was begun when the object was opened.
    async fn ensured(&self, ensure: Ensure) -> Result<Ensured, Failed> {
        let open = self.leases.lock().get(&ensure.lease).cloned();
        match open.and_then(|open| open.take_begun(&ensure)) {
            Some(begun) => begun.await.unwrap_or_else(|_| Err(failed(FailureKind::Unspecified, "a fetch panicked"))),
            None => self.ensure(ensure).await,
        }
    }

    async fn ensure(&self, ensure: Ensure) -> Result<Ensured, Failed> {
        let open = self.leases.lock().get(&ensure.lease).cloned();
        let open = open.filter(|open| open.is_valid());
        let open =
            open.ok_or_else(|| failed(FailureKind::BadLease, "there is no such lease (any more); open again"))?;
        let engine = self.shared.engine().ok_or_else(closed)?;
        let (dataset, object) = engine.object(&open.dataset_uid, &open.id).map_err(|error| fetch_failed(&error))?;
        let range = ByteRange { offset: ensure.offset, length: ensure.length }.within(object.stored.size);
        let accounts = &self.accounts;
        let reading = Reading { engine: &engine, dataset: &dataset, object: &object, open: &open, accounts, range };
        let lease = match &open.hold {
            Hold::Spilled(spill) if spill.is_used_up(range) => {
                return Err(self.open_again(ensure.lease, open.id, "the file in memory is used up; open again"));
            }
            Hold::Spilled(spill) => {
                let spilled = reading.spill(spill).await.map_err(|error| fetch_failed(&error))?;
                return Ok(Ensured { offset: spilled.offset, length: spilled.length, complete: false });
            }
            Hold::Cached(lease) => lease,
        };
        if let Some(part) = reading.first_part(lease).await.map_err(|error| fetch_failed(&error))? {
            return Ok(Ensured { offset: part.offset, length: part.length, complete: false });
        }
        if reading.make_present().await.map_err(|error| fetch_failed(&error))? == Given::NotKept {
            return Err(self.open_again(ensure.lease, open.id, "the disk can't keep the object; open again"));
        }
        if !open.is_valid() {
            return Err(failed(FailureKind::BadLease, "the object was found damaged meanwhile; open again"));
        }
        let complete = engine.store().is_whole(&open.id);
        let present = if complete {
            ByteRange { offset: 0, length: object.stored.size }
        } else {
            engine.present_around(&object, range)
        };
        Ok(Ensured { offset: present.offset, length: present.length, complete })
    }
}

fn failed(kind: FailureKind, message: impl Into<String>) -> Failed {
    Failed { kind: kind.into(), message: message.into() }
}

fn fetch_failed(error: &FetchError) -> Failed {
    failed(error.to_local(), error.to_string())
}

fn closed() -> Failed {
    failed(FailureKind::Store, "the node's cache is closed")
}
