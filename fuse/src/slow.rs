//! A session's requests whose answers take time. Each is answered once: by whoever takes it out.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::request_log::Entry;

/// All of them, by the kernel's number.
#[derive(Debug, Default)]
pub(crate) struct SlowRequests {
    noted: Mutex<Noted>,
}

#[derive(Debug, Default)]
struct Noted {
    next: u64,
    by_unique: HashMap<u64, SlowRequest>,
}

/// One that is worked on.
#[derive(Debug)]
pub(crate) struct SlowRequest {
    ticket: u64,
    task: AbortHandle,
    pub(crate) kept: Kept,
}

/// Where a request is found if the process is killed before it is answered.
#[derive(Debug)]
pub(crate) enum Kept {
    /// The session has no log.
    Nowhere,
    /// In an entry of the log.
    Entry(Entry),
    /// In the slot of the thread that read it, since there was no entry. The thread waits to be told that it is answered; if that is dropped
    /// instead, it is to stay there.
    Slot(oneshot::Sender<()>),
}

impl SlowRequest {
    /// Ends the work.
    pub(crate) fn abort(&self) {
        self.task.abort();
    }
}

impl SlowRequests {
    /// Notes a request and has the work begun, by who gets a ticket to take it out with. Returns what was noted under this number before: the log had
    /// it twice, since its last server died while it noted it.
    pub(crate) fn begin(&self, unique: u64, kept: Kept, work: impl FnOnce(u64) -> AbortHandle) -> Option<SlowRequest> {
        // Held until it is noted: the work may have ended before.
        let mut noted = self.noted();
        noted.next += 1;
        let ticket = noted.next;
        let task = work(ticket);
        noted.by_unique.insert(unique, SlowRequest { ticket, task, kept })
    }

    /// The right to answer a request, if it has not been answered yet; with a ticket only if it is still that one's.
    pub(crate) fn take(&self, unique: u64, ticket: Option<u64>) -> Option<SlowRequest> {
        let mut noted = self.noted();
        let held = noted.by_unique.get(&unique)?;
        if ticket.is_some_and(|ticket| ticket != held.ticket) {
            return None;
        }
        noted.by_unique.remove(&unique)
    }

    /// Whether all are answered.
    pub(crate) fn is_empty(&self) -> bool {
        self.noted().by_unique.is_empty()
    }

    /// Ends the work on all of them, unanswered: in the log they stay.
    pub(crate) fn abandon(&self) {
        let noted = std::mem::take(&mut self.noted().by_unique);
        for slow in noted.into_values() {
            slow.abort();
        }
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
