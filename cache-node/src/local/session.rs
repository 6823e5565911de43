//! One connection of the local socket. Leases belong to it and end with it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use forebay_catalog::ObjectId;
use forebay_protocol::fdsocket::FdSocket;
use forebay_protocol::local::{
    Close, Closed, Ensure, Ensured as EnsuredAnswer, Failed, FailureKind, Held, Open, Opened, Request, Response,
    Served, Touched, request::Call, response::Result as Answer,
};
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use super::debts::Debts;
use super::readahead::ReadAhead;
use super::spill::Spill;
use crate::dataset::{CatalogObject, Dataset};
use crate::engine::{BorrowedCopy, Engine};
use crate::fetch::{Ensured, FetchError, Fetched};
use crate::metrics::Origin;
use crate::node::Shared;
use crate::store::{Lease, StoreError};
use crate::units::{ByteRange, ChunkIndex};

/// Requests of one connection that are worked on at once; more wait in the socket.
const CONCURRENT: usize = 1024;

/// Chunks of one request that are fetched at once.
const CHUNKS_AT_ONCE: usize = 8;

struct Session {
    socket: FdSocket,
    shared: Arc<Shared>,
    leases: Mutex<HashMap<u64, Arc<OpenObject>>>,
    next_lease: AtomicU64,
    debts: Mutex<Debts>,
    /// Objects that are opened again because the disk could not take a chunk, or because their spill file is used up.
    unkept: Mutex<HashSet<ObjectId>>,
}

/// One open object.
struct OpenObject {
    /// Before what is to happen when it has ended.
    hold: Hold,
    _copy: Option<BorrowedCopy>,
    dataset_uid: String,
    id: ObjectId,
    read_ahead: ReadAhead,
    /// Somebody has read from it.
    asked: AtomicBool,
    /// What was begun when it was opened, until it is asked for.
    begun: Mutex<Option<(Ensure, JoinHandle<Result<EnsuredAnswer, Failed>>)>>,
}

/// What the reader has a descriptor of.
enum Hold {
    /// The object's file in the cache.
    Cached(Lease),
    /// A file in memory, since the disk can't take the object.
    Spilled(Spill),
}

impl OpenObject {
    fn is_valid(&self) -> bool {
        match &self.hold {
            Hold::Cached(lease) => lease.is_valid(),
            Hold::Spilled(_) => true,
        }
    }
}

/// Whether what a reader wants is in the file it has.
#[derive(PartialEq)]
enum Given {
    Yes,
    /// It has to open the object again, and gets a file in memory.
    NotKept,
}

/// Serves a connection until the other end closes it.
pub(super) async fn run(socket: FdSocket, shared: Arc<Shared>) -> io::Result<()> {
    let session = Arc::new(Session {
        socket,
        shared,
        leases: Mutex::default(),
        next_lease: AtomicU64::new(1),
        debts: Mutex::default(),
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
        let (answer, file) = match call {
            Some(Call::Open(open)) => match self.open(open).await {
                Ok((opened, file)) => (Answer::Opened(opened), Some(file)),
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
                self.served(&dataset_uid, bytes);
                (Answer::Closed(Closed {}), None)
            }
            Some(Call::Held(_)) => (self.held().map_or_else(Answer::Failed, Answer::Held), None),
            Some(Call::Touched(touched)) => {
                self.touched(&touched);
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
        if let Some(closed) = leases.remove(&lease)
            && !leases.values().any(|open| open.dataset_uid == closed.dataset_uid)
        {
            self.debts.lock().forgive(&closed.dataset_uid);
        }
    }

    async fn open(self: &Arc<Self>, open: Open) -> Result<(Opened, std::fs::File), Failed> {
        let Open { dataset_uid, object_id, offset, length } = open;
        let id: [u8; 16] = object_id
            .as_slice()
            .try_into()
            .map_err(|_| failed(FailureKind::NotFound, "an object id has 16 bytes"))?;
        let id = ObjectId::from_bytes(id);
        let engine = self.shared.engine().ok_or_else(closed)?;
        let (dataset, object) = engine.object(&dataset_uid, &id).map_err(|error| fetch_failed(&error))?;
        let (hold, file, complete) = self.open_file(&engine, &object).await?;
        if complete {
            engine.opened_complete(&dataset, &object);
        }
        let lease = self.next_lease.fetch_add(1, Ordering::Relaxed);
        let next = Ensure { lease, offset, length };
        let open = OpenObject {
            hold,
            _copy: engine.borrowed_copy(&dataset, &object),
            dataset_uid,
            id,
            read_ahead: ReadAhead::default(),
            asked: AtomicBool::new(false),
            begun: Mutex::new(None),
        };
        let open = Arc::new(open);
        self.leases.lock().insert(lease, Arc::clone(&open));
        if next.length > 0 && !complete {
            let this = Arc::clone(self);
            let task = tokio::spawn(async move { this.ensure(next).await });
            *open.begun.lock() = Some((next, task));
        }
        Ok((Opened { lease, size: object.stored.size, complete }, file))
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

    /// As [`Self::ensure`]; what was begun when the object was opened is waited for.
    async fn ensured(&self, ensure: Ensure) -> Result<EnsuredAnswer, Failed> {
        let open = self.leases.lock().get(&ensure.lease).cloned();
        let begun = open.and_then(|open| open.begun.lock().take_if(|(begun, _)| *begun == ensure));
        match begun {
            Some((_, task)) => task.await.unwrap_or_else(|_| Err(failed(FailureKind::Unspecified, "a fetch panicked"))),
            None => self.ensure(ensure).await,
        }
    }

    async fn ensure(&self, ensure: Ensure) -> Result<EnsuredAnswer, Failed> {
        let open = self.leases.lock().get(&ensure.lease).cloned();
        let open = open.filter(|open| open.is_valid());
        let open =
            open.ok_or_else(|| failed(FailureKind::BadLease, "there is no such lease (any more); open again"))?;
        let engine = self.shared.engine().ok_or_else(closed)?;
        let (dataset, object) = engine.object(&open.dataset_uid, &open.id).map_err(|error| fetch_failed(&error))?;
        let range = ByteRange { offset: ensure.offset, length: ensure.length }.within(object.stored.size);
        if let Hold::Spilled(spill) = &open.hold {
            if spill.is_used_up(range) {
                return Err(self.open_again(ensure.lease, open.id, "the file in memory is used up; open again"));
            }
            let spilled = self.spill(&engine, &dataset, &object, spill, range).await;
            return spilled.map_err(|error| fetch_failed(&error));
        }
        if let Some(part) = self.first_part(&engine, &dataset, &object, &open, range).await? {
            return Ok(EnsuredAnswer { offset: part.offset, length: part.length, complete: false });
        }
        let given = self.make_present(&engine, &dataset, &object, &open, range).await;
        if given.map_err(|error| fetch_failed(&error))? == Given::NotKept {
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
        Ok(EnsuredAnswer { offset: present.offset, length: present.length, complete })
    }

    /// What the first reader of a cold object gets before its chunk is here; the chunk is on its way then.
    async fn first_part(
        &self,
        engine: &Arc<Engine>,
        dataset: &Arc<Dataset>,
        object: &CatalogObject,
        open: &Arc<OpenObject>,
        range: ByteRange,
    ) -> Result<Option<ByteRange>, Failed> {
        let Hold::Cached(lease) = &open.hold else { return Ok(None) };
        if open.asked.swap(true, Ordering::Relaxed) {
            return Ok(None);
        }
        let part = engine.bring_part(dataset, object, lease, range).await.map_err(|error| fetch_failed(&error))?;
        if part.is_some() {
            dataset.counters.add_request(range.length, 0);
            dataset.count_served(Origin::Source, range.length);
            fetch_ahead(engine, dataset, object, open, ChunkIndex::containing(range.offset));
        }
        Ok(part)
    }

    /// Makes the chunks of a range present and counts what the reader gets; begins to fetch what it will want next.
    async fn make_present(
        &self,
        engine: &Arc<Engine>,
        dataset: &Arc<Dataset>,
        object: &CatalogObject,
        open: &Arc<OpenObject>,
        range: ByteRange,
    ) -> Result<Given, FetchError> {
        for chunk in open.read_ahead.observe(range, object.stored.size) {
            if !engine.store().is_verified(&open.id, chunk) && !engine.store().faults().writes_fail() {
                fetch_ahead(engine, dataset, object, open, chunk);
            }
        }
        let mut chunks = stream::iter(range.chunks())
            .map(|chunk| async move { (chunk, engine.ensure_for_reader(dataset, object, chunk).await) })
            .buffer_unordered(CHUNKS_AT_ONCE);
        while let Some((chunk, ensured)) = chunks.next().await {
            let (hit, origin) = match ensured? {
                Ensured::Present => open.read_ahead.take(chunk).unwrap_or((true, Origin::Local)),
                Ensured::Fetched(Fetched { kept: Err(_), .. }) => return Ok(Given::NotKept),
                Ensured::Fetched(fetched) => (fetched.was_cached, fetched.origin),
            };
            self.count(dataset, object, chunk, range, hit, origin);
        }
        Ok(Given::Yes)
    }

    /// Brings the chunks of a range into a file in memory, from the cache as far as it has them.
    async fn spill(
        &self,
        engine: &Engine,
        dataset: &Arc<Dataset>,
        object: &CatalogObject,
        spill: &Spill,
        range: ByteRange,
    ) -> Result<EnsuredAnswer, FetchError> {
        for chunk in range.chunks() {
            let (mut hit, mut origin) = (true, Origin::Local);
            // Present and then not: evicted or found damaged between two looks.
            for _ in 0..5 {
                if spill.has(chunk) {
                    break;
                }
                match engine.ensure_for_reader(dataset, object, chunk).await? {
                    Ensured::Fetched(fetched) => {
                        (hit, origin) = (fetched.was_cached, fetched.origin);
                        spill.put(chunk, fetched.bytes).await?;
                    }
                    Ensured::Present => {
                        let _memory = engine.memory().local.reserve(chunk.range(object.stored.size).length).await;
                        if let Some((bytes, _)) = engine.store().read_chunk(&object.stored, chunk).await? {
                            spill.put(chunk, bytes).await?;
                        }
                    }
                }
            }
            if !spill.has(chunk) {
                return Err(FetchError::internal(format!("object {} can't be held", object.stored.id)));
            }
            self.count(dataset, object, chunk, range, hit, origin);
        }
        let (first, last) = (range.chunks().next(), range.chunks().next_back());
        let (Some(first), Some(last)) = (first, last) else {
            return Ok(EnsuredAnswer { offset: range.offset, length: 0, complete: false });
        };
        let offset = first.range(object.stored.size).offset;
        Ok(EnsuredAnswer { offset, length: last.range(object.stored.size).end() - offset, complete: false })
    }

    /// Counts what a reader gets of a chunk.
    fn count(
        &self,
        dataset: &Dataset,
        object: &CatalogObject,
        chunk: ChunkIndex,
        range: ByteRange,
        hit: bool,
        origin: Origin,
    ) {
        let of_chunk = chunk.range(object.stored.size);
        let wanted = range.end().min(of_chunk.end()) - range.offset.max(of_chunk.offset);
        dataset.counters.add_request(wanted, if hit { wanted } else { 0 });
        dataset.count_served(origin, wanted);
        if !hit {
            self.debts.lock().owe(dataset.uid(), of_chunk.length - wanted);
        }
    }

    /// Complete objects were opened that the kernel reads.
    fn touched(&self, Touched { dataset_uid, object_ids, stands_for }: &Touched) {
        let Some(engine) = self.shared.engine() else { return };
        let (ids, _) = object_ids.as_chunks();
        for id in ids {
            let id = ObjectId::from_bytes(*id);
            // Of a dataset that has just gone.
            let Ok((dataset, object)) = engine.object(dataset_uid, &id) else { return };
            // Who watches opens sees those of incomplete objects too, which are counted where they are read.
            if !engine.store().is_complete(&id) {
                continue;
            }
            engine.store().touch(&id);
            engine.opened_complete(&dataset, &object);
            let bytes = object.stored.size.saturating_mul((*stands_for).max(1).into());
            dataset.counters.add_request(bytes, bytes);
            dataset.count_served(Origin::Local, bytes);
        }
    }

    fn served(&self, dataset_uid: &str, bytes: u64) {
        if let Some(dataset) = self.shared.engine().and_then(|engine| engine.dataset(dataset_uid)) {
            let missed = self.debts.lock().pay(dataset_uid, bytes);
            dataset.counters.add_request(bytes, bytes - missed);
            dataset.count_served(Origin::Local, bytes);
        }
    }
}

/// Begins to fetch a chunk that the reader will want.
fn fetch_ahead(
    engine: &Arc<Engine>,
    dataset: &Arc<Dataset>,
    object: &CatalogObject,
    open: &Arc<OpenObject>,
    chunk: ChunkIndex,
) {
    let (engine, dataset, object, open) = (Arc::clone(engine), Arc::clone(dataset), object.clone(), Arc::clone(open));
    tokio::spawn(async move {
        // A failure is the reader's to see, when it gets there.
        if let Ok(Ensured::Fetched(fetched)) = engine.ensure_for_reader(&dataset, &object, chunk).await
            && fetched.kept.is_ok()
        {
            open.read_ahead.fetched(chunk, fetched.was_cached, fetched.origin);
        }
    });
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
