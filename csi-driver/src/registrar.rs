//! Registering complete objects' files with the kernel for the daemon, which may not: the plugin opens the file itself, by the object's id, in the
//! cache folder of a mounted catalog; so the daemon can have nothing else registered. What a killed daemon had registered and not
//! entered into the session's table is taken back.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use forebay_catalog::ObjectId;
use forebay_fuse::passthrough::{BackingId, OpenTable, complete_file, device};
use forebay_protocol::blocking::BlockingSocket;
use forebay_protocol::broker::{Register, Registered, Registration, registration::Call};

use crate::metrics::Metrics;

/// Most files that are registered at once: as many as the table of open inodes has room for. Each is an open file of the kernel.
const MOST: usize = 1 << 18;

/// The `objects/` folders of a catalog's cache, fastest first.
pub type Folders = Vec<Arc<OwnedFd>>;

/// The registered files of one session.
#[derive(Debug)]
pub struct Registrations {
    session: Arc<OwnedFd>,
    table: OpenTable,
    /// Those of this process's life, with the number of the connection that asked for each.
    asked_by: Mutex<HashMap<BackingId, u64>>,
    metrics: Metrics,
}

impl Registrations {
    /// For a session and its table of open inodes.
    pub fn new(session: Arc<OwnedFd>, table: OpenTable, metrics: Metrics) -> Self {
        Self { session, table, asked_by: Mutex::default(), metrics }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.asked_by().len()
    }

    /// The table of open inodes.
    pub fn table(&self) -> &OpenTable {
        &self.table
    }

    /// Answers a daemon until it closes; then takes back what it could not use any more. `folders` finds a mounted catalog by dataset UID and
    /// catalog id.
    pub fn serve(
        &self,
        socket: &BlockingSocket,
        connection: u64,
        folders: impl Fn(&str, &str) -> Option<Folders>,
    ) -> io::Result<()> {
        let served = (|| {
            while let Some(Registration { call }) = socket.receive()? {
                match call {
                    Some(Call::Register(wanted)) => {
                        let registered = self.register(connection, &wanted, &folders);
                        self.metrics.registration(registered.as_ref().ok().map(Option::is_some));
                        let id = registered.unwrap_or_else(|error| {
                            let id = ObjectId::from_bytes(wanted.object_id.try_into().unwrap_or_default());
                            tracing::warn!(object = %id, %error, "the object's file can't be registered; the daemon reads it");
                            None
                        });
                        socket.send(&Registered { backing_id: id.map_or(0, BackingId::get) })?;
                    }
                    Some(Call::Unregister(unregister)) => {
                        if let Some(id) = BackingId::new(unregister.backing_id) {
                            self.unregister(id);
                        }
                    }
                    None => return Err(io::Error::new(io::ErrorKind::InvalidData, "a message of a newer daemon")),
                }
            }
            Ok(())
        })();
        self.take_back_unused(connection);
        served
    }

    fn register(
        &self,
        connection: u64,
        wanted: &Register,
        folders: impl Fn(&str, &str) -> Option<Folders>,
    ) -> io::Result<Option<BackingId>> {
        let id = wanted.object_id.as_slice().try_into().map_err(io::Error::other)?;
        // Unmounted just now.
        let Some(folders) = folders(&wanted.dataset_uid, &wanted.catalog_id) else { return Ok(None) };
        if self.asked_by().len() >= MOST {
            return Err(io::Error::other(format!("{MOST} files are registered, and no more are taken")));
        }
        let file = complete_file(folders.iter().map(|folder| &**folder), &ObjectId::from_bytes(id), wanted.size)?;
        let Some(file) = file else { return Ok(None) };
        let mut asked_by = self.asked_by();
        let registered = device::register(self.session.as_fd(), file)?;
        asked_by.insert(registered, connection);
        Ok(Some(registered))
    }

    fn unregister(&self, id: BackingId) {
        // Also one of our predecessor.
        self.asked_by().remove(&id);
        if let Err(error) = device::unregister(self.session.as_fd(), id) {
            tracing::warn!(id, %error, "taking a registration back failed");
        }
    }

    fn take_back_unused(&self, connection: u64) {
        let asked: Vec<_> = {
            let asked_by = self.asked_by();
            asked_by.iter().filter(|(_, by)| **by == connection).map(|(id, _)| *id).collect()
        };
        // The daemon may have lost only this connection, and be about to enter what it was given, or to put aside what it could not give back.
        let taken_back = self.table.settled(|used| {
            for id in asked.into_iter().filter(|id| !used.contains(id)) {
                self.unregister(id);
            }
        });
        if let Err(error) = taken_back {
            tracing::error!(%error, "the table of open inodes can't be read; files may stay open until the session ends");
        }
    }

    fn asked_by(&self) -> MutexGuard<'_, HashMap<BackingId, u64>> {
        self.asked_by.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
