//! The object file system: every object of every mounted catalog as a regular file `ab/cdef...`, the overlay's last data layer. It keeps no
//! state that a successor would need: node ids are made of object ids, file handles are only counted, FORGET means nothing; which inodes are
//! open, and how, is in the session's table. What is known to be present is answered at once by the calling thread; everything else becomes a
//! future. A complete object is passed through.

mod folders;

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use forebay_catalog::ObjectId;
use nix::errno::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::{
    Attr, AttrOut, EntryOut, InHeader, OpenOut, ROOT_ID, ReadIn, ReleaseIn, StatfsOut, UNIQUE_RESEND, fopen, op,
};
use crate::backing::Bytes;
use crate::counters;
use crate::lease::{OpenObject, ReadError};
use crate::passthrough::{Mode, Passthrough};
use crate::registry::{Found, NotFound, Registry};
use crate::tree;

/// How long the kernel may keep names and attributes: objects never change, and a longer time would change nothing.
pub(crate) const TIMEOUT_SECONDS: u64 = 3600;

/// Node ids of objects begin here.
const FIRST_OBJECT: u64 = 1 << 63;

/// Reads longer than this in bytes are of a read-ahead.
const LONG_READ: u32 = 64 << 10;

/// Users see the catalog's owner and mode; here only the overlay reads, as root.
const OBJECT_MODE: u32 = libc::S_IFREG | 0o400;

/// What becomes of a request.
pub enum Outcome {
    /// The answer's body is in the buffer, so many bytes.
    Reply(usize),
    /// The request failed.
    Error(Errno),
    /// The kernel wants no answer.
    Silent,
    /// The answer takes time.
    Later(Later),
}

/// How long a request takes, as far as that can be told before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Microseconds.
    Quick,
    /// It may wait for another process.
    Waits,
    /// So many bytes that they are copied for a while; they come from a read-ahead, for whose end nobody waits.
    Ahead,
}

/// Resolves to what was read. Dropping it ends the work.
pub type Later = Pin<Box<dyn Future<Output = Result<Bytes, Errno>> + Send>>;

/// The file system. Clones are the same.
#[derive(Clone, Debug)]
pub struct Objects {
    registry: Registry,
    passthrough: Option<Arc<Passthrough>>,
    open: Arc<Mutex<HashMap<u64, Open>>>,
    /// Handles of this daemon, as opposed to those that its predecessor gave out.
    own_handle: u64,
}

#[derive(Debug)]
struct Open {
    object: Arc<OpenObject>,
    handles: u64,
}

impl Objects {
    /// Serves what is in `registry`.
    pub fn new(registry: Registry, passthrough: Option<Passthrough>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Differs from any earlier daemon's on this machine, unless both started in the same nanosecond.
        let passthrough = passthrough.map(Arc::new);
        Self { registry, passthrough, open: Arc::default(), own_handle: now.as_nanos() as u64 }
    }

    /// Which files the kernel reads itself, if any.
    pub fn passthrough(&self) -> Option<&Passthrough> {
        self.passthrough.as_deref()
    }

    /// How long [`Objects::handle`] will take for a request.
    pub fn pace(&self, request: &[u8]) -> Pace {
        let Ok((header, body)) = InHeader::read_from_prefix(request) else { return Pace::Quick };
        match header.opcode {
            op::READ => match ReadIn::read_from_prefix(body) {
                Ok((read, _)) if read.size > LONG_READ => Pace::Ahead,
                _ => Pace::Quick,
            },
            op::OPEN if self.passthrough.as_ref().is_some_and(|passthrough| passthrough.waits()) => Pace::Waits,
            _ => Pace::Quick,
        }
    }

    /// Answers one request. `answer` holds at least [`crate::session::ANSWER_BYTES`].
    pub fn handle(&self, header: &InHeader, body: &[u8], answer: &mut [u8]) -> Outcome {
        if let Some(result) = tree::handle(&self.registry, header, body, answer) {
            return result.unwrap_or_else(Outcome::Error);
        }
        let result = match header.opcode {
            op::LOOKUP => self.lookup(header.nodeid, body).map(|entry| put(&entry, answer)),
            op::GETATTR => self.attributes(header.nodeid).map(|attr| {
                let out = AttrOut { attr_valid: TIMEOUT_SECONDS, attr, ..AttrOut::default() };
                put(&out, answer)
            }),
            op::OPEN => self.open(header.nodeid, answer),
            op::READ => self.read(header.nodeid, body, answer),
            op::RELEASE => self.release(header, body),
            op::OPENDIR => {
                let flags = fopen::KEEP_CACHE | fopen::CACHE_DIR;
                Ok(put(&OpenOut { open_flags: flags, ..OpenOut::default() }, answer))
            }
            op::READDIR | op::READDIRPLUS => {
                folders::list(header.nodeid, body, header.opcode == op::READDIRPLUS, answer).map(Outcome::Reply)
            }
            // Not ENOSYS, which the kernel would take to hold for the trees too.
            op::GETXATTR => Err(Errno::EOPNOTSUPP),
            op::LISTXATTR => tree::no_xattrs(body, answer),
            op::STATFS => {
                Ok(put(&StatfsOut { bsize: 4096, frsize: 4096, namelen: 255, ..StatfsOut::default() }, answer))
            }
            op::RELEASEDIR | op::FLUSH | op::FSYNC | op::FSYNCDIR | op::ACCESS | op::DESTROY => Ok(Outcome::Reply(0)),
            op::FORGET | op::BATCH_FORGET => Ok(Outcome::Silent),
            op::SETATTR
            | op::SYMLINK
            | op::MKNOD
            | op::MKDIR
            | op::UNLINK
            | op::RMDIR
            | op::RENAME
            | op::RENAME2
            | op::LINK
            | op::WRITE
            | op::CREATE
            | op::TMPFILE
            | op::FALLOCATE => Err(Errno::EROFS),
            // The kernel remembers ENOSYS and does not ask again: LSEEK (the file is all data), POLL, ...
            _ => Err(Errno::ENOSYS),
        };
        result.unwrap_or_else(Outcome::Error)
    }

    fn lookup(&self, parent: u64, body: &[u8]) -> Result<EntryOut, Errno> {
        let name = body.strip_suffix(&[0]).unwrap_or(body);
        let attr = match parent {
            ROOT_ID => folders::attributes(folders::of_name(name).ok_or(Errno::ENOENT)?),
            folders::FIRST..folders::AFTER_LAST => {
                let id = ObjectId::from_folder_and_name(&folders::name(parent), name).ok_or(Errno::ENOENT)?;
                match self.registry.find(&id) {
                    Ok(found) => object_attributes(&found),
                    Err(NotFound::Unknown) => return Err(Errno::ENOENT),
                    Err(NotFound::Collides(other)) => {
                        tracing::error!(object = %id, %other, "two objects of different datasets have the same FUSE node id; read them on different nodes");
                        return Err(Errno::EIO);
                    }
                }
            }
            _ => return Err(Errno::ENOTDIR),
        };
        Ok(EntryOut {
            nodeid: attr.ino,
            entry_valid: TIMEOUT_SECONDS,
            attr_valid: TIMEOUT_SECONDS,
            attr,
            ..EntryOut::default()
        })
    }

    fn attributes(&self, node_id: u64) -> Result<Attr, Errno> {
        match node_id {
            ROOT_ID | folders::FIRST..folders::AFTER_LAST => Ok(folders::attributes(node_id)),
            _ => Ok(object_attributes(&self.find(node_id)?)),
        }
    }

    /// The object with this node id. It was there when the kernel looked it up, so if not, its catalog has been unmounted since.
    fn find(&self, node_id: u64) -> Result<Found, Errno> {
        if tree::owns(node_id) {
            return tree::find(&self.registry, node_id);
        }
        self.registry.find_by_node_id(node_id).ok_or(Errno::ESTALE)
    }

    /// Waits for nothing but the registrar: the lease is taken at the first read, of which there is none if the kernel still has the pages.
    fn open(&self, node_id: u64, answer: &mut [u8]) -> Result<Outcome, Errno> {
        if node_id < FIRST_OBJECT && !tree::owns(node_id) {
            return Err(Errno::EISDIR);
        }
        let found = self.find(node_id)?;
        let mode = self.passthrough.as_ref().map_or(Mode::Daemon, |passthrough| passthrough.open(node_id, &found));
        counters::open(mode);
        let out = match mode {
            Mode::Passthrough(id) => {
                found.catalog.count_opened(found.id);
                let open_flags = fopen::PASSTHROUGH | fopen::NOFLUSH;
                OpenOut { fh: self.own_handle, open_flags, backing_id: id.get().cast_signed() }
            }
            Mode::Daemon => {
                self.object(node_id, found, 1);
                OpenOut { fh: self.own_handle, open_flags: fopen::KEEP_CACHE | fopen::NOFLUSH, ..OpenOut::default() }
            }
        };
        Ok(put(&out, answer))
    }

    /// The kernel did not take the answer to a request. Of an open it will not tell the end.
    pub fn not_taken(&self, header: &InHeader) {
        if header.opcode == op::OPEN {
            self.end_open(header.nodeid);
            self.end_handle(header.nodeid, 1);
        }
    }

    fn end_open(&self, node_id: u64) {
        if let Some(passthrough) = &self.passthrough
            && !tree::is_empty_file(&self.registry, node_id)
        {
            passthrough.close(node_id);
        }
    }

    fn read(&self, node_id: u64, body: &[u8], answer: &mut [u8]) -> Result<Outcome, Errno> {
        let (request, _) = ReadIn::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
        // Without a handle of ours it was opened in a predecessor's life.
        let object = match self.opened(node_id) {
            Some(object) => object,
            None => self.object(node_id, self.find(node_id)?, 0),
        };
        let size = object.found.size;
        let end = request.offset.saturating_add(u64::from(request.size)).min(size);
        let range = request.offset.min(end)..end;
        let length = (range.end - range.start) as usize;
        let buffer = answer.get_mut(..length).ok_or(Errno::EINVAL)?;
        if length == 0 {
            return Ok(Outcome::Reply(0));
        }
        if let Some(length) = object.read_now(&range, buffer) {
            object.found.catalog.count_served(length as u64);
            return Ok(Outcome::Reply(length));
        }
        Ok(Outcome::Later(Box::pin(async move {
            object.read(range).await.map_err(|error| log_failure(&object.found, &error))
        })))
    }

    fn release(&self, header: &InHeader, body: &[u8]) -> Result<Outcome, Errno> {
        let (request, _) = ReleaseIn::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
        // Whoever had it before it was sent again may have counted it: rather one open too many than one too few.
        if header.unique & UNIQUE_RESEND == 0 {
            self.end_open(header.nodeid);
        }
        self.end_handle(header.nodeid, u64::from(request.fh == self.own_handle));
        Ok(Outcome::Reply(0))
    }

    fn opened(&self, node_id: u64) -> Option<Arc<OpenObject>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&node_id).map(|known| Arc::clone(&known.object))
    }

    /// The opened object, entered with `handles` more handles.
    fn object(&self, node_id: u64, found: Found, handles: u64) -> Arc<OpenObject> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            open.entry(node_id).or_insert_with(|| Open { object: Arc::new(OpenObject::new(found)), handles: 0 });
        known.handles += handles;
        Arc::clone(&known.object)
    }

    /// Takes handles away; with the last one the lease ends. A predecessor's handle that is still open takes a new lease at its next read.
    fn end_handle(&self, node_id: u64, handles: u64) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = open.get_mut(&node_id) else { return };
        known.handles = known.handles.saturating_sub(handles);
        if known.handles > 0 {
            return;
        }
        let last = open.remove(&node_id);
        // Not under the lock: it may be the last to know the object.
        drop(open);
        drop(last);
    }
}

fn log_failure(found: &Found, error: &ReadError) -> Errno {
    let errno = error.errno();
    tracing::error!(
        object = %found.id, dataset = found.catalog.dataset_uid, catalog = found.catalog.catalog_id, %errno, %error,
        "reading an object failed"
    );
    errno
}

pub(crate) fn put<T: IntoBytes + Immutable + KnownLayout>(value: &T, answer: &mut [u8]) -> Outcome {
    let bytes = value.as_bytes();
    match answer.get_mut(..bytes.len()) {
        Some(space) => {
            space.copy_from_slice(bytes);
            Outcome::Reply(bytes.len())
        }
        None => Outcome::Error(Errno::EINVAL),
    }
}

fn object_attributes(found: &Found) -> Attr {
    Attr {
        ino: found.id.fuse_node_id(),
        size: found.size,
        blocks: found.size.div_ceil(512),
        mode: OBJECT_MODE,
        nlink: 1,
        blksize: 4096,
        ..Attr::default()
    }
}
