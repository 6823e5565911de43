//! Passthrough: which open files the kernel reads from an object's own file, without this process. An inode has one mode as long as any
//! process has it open, whichever daemon opened it; the table of open inodes, which outlives the daemon, knows which.

pub mod device;
mod folders;
mod plugin;
mod table;

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::registry::Found;
pub use folders::{RegistrarInProcess, complete_file};
pub use plugin::RegistrarByPlugin;
pub use table::OpenTable;

/// The kernel's name of a registered file; never 0.
pub type BackingId = NonZeroU32;

/// How an open file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By requests to the daemon.
    Daemon,
    /// By the kernel, from the registered file.
    Passthrough(BackingId),
}

/// Nobody can register files now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody can register files now")]
pub struct Away;

/// Registers files with the kernel, which needs privilege.
pub trait Registrar: std::fmt::Debug + Send + Sync {
    /// Registers the file of an object, if it is complete. `None`: it is not, or the kernel does not take its file.
    fn register(&self, object: &Found) -> Result<Option<BackingId>, Away>;

    /// Whether another process is waited for.
    fn waits(&self) -> bool;

    /// Takes a registration back; the space of a file that was unlinked becomes free.
    fn unregister(&self, id: BackingId) -> Result<(), Away>;
}

/// The passthrough of one session.
#[derive(Debug)]
pub struct Passthrough {
    table: OpenTable,
    registrar: Box<dyn Registrar>,
    /// The table may have registrations that nothing uses any more and nobody could take back.
    leftovers: AtomicBool,
}

impl Passthrough {
    /// With the session's table, and somebody who may register.
    pub fn new(table: OpenTable, registrar: Box<dyn Registrar>) -> Self {
        // A predecessor may have left some.
        Self { table, registrar, leftovers: AtomicBool::new(true) }
    }

    /// The table of open inodes.
    pub fn table(&self) -> &OpenTable {
        &self.table
    }

    /// Whether an open may wait for another process.
    pub fn waits(&self) -> bool {
        self.registrar.waits()
    }

    /// Counts an open of the inode `node_id`, which shows `object`, and says how it is read. To be called before the kernel is answered.
    pub fn open(&self, node_id: u64, object: &Found) -> Mode {
        if let Some(mode) = self.table.join(node_id) {
            return mode;
        }
        let _moving = self.table.moving();
        let registered = self.registrar.register(object);
        if registered.is_ok() && self.leftovers.swap(false, Ordering::Relaxed) {
            self.take_back_leftovers();
        }
        let id = registered.ok().flatten();
        let mode = self.table.enter(node_id, id);
        // Another thread was quicker.
        if let Some(id) = id.filter(|id| mode != Mode::Passthrough(*id)) {
            self.unregister(node_id, id);
        }
        mode
    }

    /// Takes an open away: the file was released, or its open failed.
    pub fn close(&self, node_id: u64) {
        let _moving = self.table.moving();
        if let Some(id) = self.table.leave(node_id) {
            self.unregister(node_id, id);
        }
    }

    fn unregister(&self, node_id: u64, id: BackingId) {
        if self.registrar.unregister(id).is_err() {
            self.table.put_aside(node_id, id);
            self.leftovers.store(true, Ordering::Relaxed);
        }
    }

    /// Takes back the registrations that nothing uses.
    fn take_back_leftovers(&self) {
        for (node_id, id) in self.table.take_unused() {
            self.unregister(node_id, id);
        }
    }
}
