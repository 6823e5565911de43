//! What the process counts of the sessions that it serves, for [`crate::status`]. Each thread counts for itself, in memory that no other thread writes:
//! counting costs a session's thread a few nanoseconds, takes no lock, and reads no clock. A thread that ends leaves its counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use crate::abi::op;
use crate::objects::Outcome;
use crate::passthrough::Mode;

/// Kinds of requests are counted up to this opcode; those above it are none that the kernel sends to us.
const OPCODES: usize = 64;

/// Errnos are counted up to this one, the highest that Linux has for programs is 133.
const ERRNOS: usize = 134;

/// The kinds that have a name; all others are `other`.
const KINDS: [(u32, &str); 20] = [
    (op::LOOKUP, "lookup"),
    (op::FORGET, "forget"),
    (op::BATCH_FORGET, "forget"),
    (op::GETATTR, "getattr"),
    (op::OPEN, "open"),
    (op::READ, "read"),
    (op::RELEASE, "release"),
    (op::OPENDIR, "opendir"),
    (op::READDIR, "readdir"),
    (op::READDIRPLUS, "readdir"),
    (op::RELEASEDIR, "releasedir"),
    (op::GETXATTR, "getxattr"),
    (op::LISTXATTR, "listxattr"),
    (op::STATFS, "statfs"),
    (op::FLUSH, "flush"),
    (op::FSYNC, "fsync"),
    (op::FSYNCDIR, "fsync"),
    (op::ACCESS, "access"),
    (op::INTERRUPT, "interrupt"),
    (op::DESTROY, "destroy"),
];

/// The counts of one thread, on cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
struct Counts {
    /// Requests that the thread has taken up, and those that it is done with: one less while it is at one.
    begun: AtomicU64,
    done: AtomicU64,
    requests: [AtomicU64; OPCODES],
    at_once: AtomicU64,
    put_off: AtomicU64,
    passthrough_opens: AtomicU64,
    daemon_opens: AtomicU64,
    errors: [AtomicU64; ERRNOS],
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            begun: AtomicU64::default(),
            done: AtomicU64::default(),
            requests: [const { AtomicU64::new(0) }; OPCODES],
            at_once: AtomicU64::default(),
            put_off: AtomicU64::default(),
            passthrough_opens: AtomicU64::default(),
            daemon_opens: AtomicU64::default(),
            errors: [const { AtomicU64::new(0) }; ERRNOS],
        }
    }
}

impl Counts {
    fn all(&self) -> impl Iterator<Item = &AtomicU64> {
        let single =
            [&self.begun, &self.done, &self.at_once, &self.put_off, &self.passthrough_opens, &self.daemon_opens];
        single.into_iter().chain(&self.requests).chain(&self.errors)
    }
}

/// Of all threads: those that count now, each with a number that no other ever has, and the sum of those that have ended.
#[derive(Default)]
struct Threads {
    next: u64,
    counting: Vec<(u64, Arc<Counts>)>,
    ended: Counts,
}

static THREADS: Mutex<Option<Threads>> = Mutex::new(None);
static WAITING: AtomicU64 = AtomicU64::new(0);
static WITHOUT_ROOM: AtomicU64 = AtomicU64::new(0);
static CONNECTED: AtomicU64 = AtomicU64::new(0);
static CONNECTIONS_LOST: AtomicU64 = AtomicU64::new(0);

/// This thread's counts, until it ends.
struct Mine(u64, Arc<Counts>);

thread_local! {
    static MINE: Mine = Mine::begin();
}

fn threads() -> MutexGuard<'static, Option<Threads>> {
    THREADS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mine {
    fn begin() -> Self {
        let mut threads = threads();
        let threads = threads.get_or_insert_default();
        threads.next += 1;
        let mine = (threads.next, Arc::<Counts>::default());
        threads.counting.push(mine.clone());
        Self(mine.0, mine.1)
    }
}

impl Drop for Mine {
    fn drop(&mut self) {
        let mut threads = threads();
        let threads = threads.get_or_insert_default();
        threads.counting.retain(|(number, _)| *number != self.0);
        for (sum, count) in threads.ended.all().zip(self.1.all()) {
            sum.fetch_add(count.load(Relaxed), Relaxed);
        }
    }
}

/// Only the thread itself writes: no read-modify-write is needed.
fn add_one(count: &AtomicU64) {
    count.store(count.load(Relaxed) + 1, Relaxed);
}

fn mine(count: impl FnOnce(&Counts)) {
    // Fails in a thread that is just ending.
    let _ = MINE.try_with(|mine| count(&mine.1));
}

/// The thread is at a request until this is dropped.
pub(crate) struct TakenUp {
    /// Of this thread.
    _not_send: std::marker::PhantomData<*const ()>,
}

/// The thread takes up a request.
pub(crate) fn take_up(opcode: u32) -> TakenUp {
    mine(|counts| {
        add_one(&counts.begun);
        // The last one is never asked for.
        let kind = counts.requests.get(opcode as usize).or(counts.requests.last());
        kind.into_iter().for_each(add_one);
    });
    TakenUp { _not_send: std::marker::PhantomData }
}

impl TakenUp {
    /// The request is put off; the thread only waits with it until it is answered, because the log has no room for it.
    pub(crate) fn without_room(self) -> Present {
        let waits = Present::begin(&WITHOUT_ROOM);
        // It is at none meanwhile.
        drop(self);
        waits
    }
}

impl Drop for TakenUp {
    fn drop(&mut self) {
        mine(|counts| add_one(&counts.done));
    }
}

/// What has become of a request.
pub(crate) fn outcome(outcome: Outcome) -> Outcome {
    mine(|counts| match &outcome {
        Outcome::Reply(_) | Outcome::Error(_) => add_one(&counts.at_once),
        Outcome::Later(_) => add_one(&counts.put_off),
        Outcome::Silent => {}
    });
    outcome
}

/// An answer is written: `error` is 0 or a negative errno.
pub(crate) fn answer(error: i32) {
    if error != 0 {
        mine(|counts| counts.errors.get(error.unsigned_abs() as usize).into_iter().for_each(add_one));
    }
}

/// A file is opened.
pub(crate) fn open(mode: Mode) {
    mine(|counts| match mode {
        Mode::Passthrough(_) => add_one(&counts.passthrough_opens),
        Mode::Daemon => add_one(&counts.daemon_opens),
    });
}

/// One more in a count of what there is now, until it is dropped.
pub(crate) struct Present(&'static AtomicU64);

impl Present {
    fn begin(count: &'static AtomicU64) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A request is put off.
pub(crate) fn waiting() -> Present {
    Present::begin(&WAITING)
}

/// A cache node is connected.
pub(crate) fn connected() -> Present {
    Present::begin(&CONNECTED)
}

/// A cache node's connection ended.
pub(crate) fn lost() {
    CONNECTIONS_LOST.fetch_add(1, Relaxed);
}

/// All counts at one moment, but for those that change meanwhile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// By kind, each once.
    pub(crate) requests: Vec<(&'static str, u64)>,
    pub(crate) at_once: u64,
    pub(crate) put_off: u64,
    pub(crate) waiting: u64,
    /// Threads that wait with one of these.
    pub(crate) without_room: u64,
    /// By errno; none that did not happen.
    pub(crate) errors: Vec<(Errno, u64)>,
    pub(crate) passthrough_opens: u64,
    pub(crate) daemon_opens: u64,
    pub(crate) connected: u64,
    pub(crate) connections_lost: u64,
    /// By the thread's number, the requests that it has begun, and whether it is at the last of them.
    pub(crate) threads: Vec<(u64, u64, bool)>,
    /// Requests that threads have begun which have ended.
    pub(crate) begun_before: u64,
}

/// The counts now.
pub(crate) fn snapshot() -> Snapshot {
    let mut threads = threads();
    let threads = threads.get_or_insert_default();
    let sum = Counts::default();
    for counts in std::iter::once(&threads.ended).chain(threads.counting.iter().map(|(_, counts)| &**counts)) {
        for (sum, count) in sum.all().zip(counts.all()) {
            sum.fetch_add(count.load(Relaxed), Relaxed);
        }
    }
    let at = |(number, counts): &(u64, Arc<Counts>)| {
        // In this order: a request that begins in between is not taken for an older one.
        let done = counts.done.load(Relaxed);
        let begun = counts.begun.load(Relaxed);
        (*number, begun, begun != done)
    };
    let errno = |(number, count): (usize, &AtomicU64)| (Errno::from_raw(number as i32), count.load(Relaxed));
    Snapshot {
        requests: by_kind(&sum.requests),
        at_once: sum.at_once.load(Relaxed),
        put_off: sum.put_off.load(Relaxed),
        waiting: WAITING.load(Relaxed),
        without_room: WITHOUT_ROOM.load(Relaxed),
        errors: sum.errors.iter().enumerate().map(errno).filter(|(_, count)| *count > 0).collect(),
        passthrough_opens: sum.passthrough_opens.load(Relaxed),
        daemon_opens: sum.daemon_opens.load(Relaxed),
        connected: CONNECTED.load(Relaxed),
        connections_lost: CONNECTIONS_LOST.load(Relaxed),
        threads: threads.counting.iter().map(at).collect(),
        begun_before: threads.ended.begun.load(Relaxed),
    }
}

fn by_kind(requests: &[AtomicU64; OPCODES]) -> Vec<(&'static str, u64)> {
    let mut kinds: Vec<(&str, u64)> = Vec::new();
    for (opcode, count) in requests.iter().enumerate() {
        let name = KINDS.iter().find(|(named, _)| *named as usize == opcode).map_or("other", |(_, name)| name);
        let count = count.load(Relaxed);
        match kinds.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += count,
            None => kinds.push((name, count)),
        }
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_have_ended_still_count_and_one_that_is_at_a_request_shows() {
        let kind = |snapshot: &Snapshot, name| snapshot.requests.iter().find(|(kind, _)| *kind == name).unwrap().1;
        let before = snapshot();
        let (begun, told) = std::sync::mpsc::channel();
        let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            for opcode in [op::STATFS, 4711] {
                let _taken_up = take_up(opcode);
                outcome(Outcome::Error(Errno::EIO));
                answer(-(Errno::EIO as i32));
            }
            let _taken_up = take_up(op::STATFS);
            begun.send(()).unwrap();
            let _ = goes_on.recv();
        });
        told.recv().unwrap();
        let amid = snapshot();
        assert_eq!(amid.threads.iter().filter(|(_, begun, at_one)| *begun == 3 && *at_one).count(), 1);
        drop(go_on);
        thread.join().unwrap();
        let after = snapshot();
        for now in [&amid, &after] {
            assert_eq!(kind(now, "statfs"), kind(&before, "statfs") + 2);
            assert_eq!(kind(now, "other"), kind(&before, "other") + 1);
            assert_eq!(now.at_once, before.at_once + 2);
            let errors = |of: &Snapshot| of.errors.iter().find(|(errno, _)| *errno == Errno::EIO).map_or(0, |it| it.1);
            assert_eq!(errors(now), errors(&before) + 2);
        }
        assert!(after.threads.iter().all(|(_, begun, at_one)| *begun != 3 || !at_one));
    }
}
