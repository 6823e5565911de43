//! What the daemon says of itself: to the exec probes of its container, by a socket of its pod's network namespace, and to the CSI plugin, which shows it
//! as metrics, by the broker's. So the daemon needs no port and no folder. Whether a worker hangs is seen in two ways: a session's thread stays at one request, and requests wait in the
//! kernel that no thread takes up. A request that waits for a cache node is neither: it keeps no thread, unless so many wait that the log of requests
//! is full, and then the thread counts as being at none, and what waits in the kernel meanwhile as taken up when it can be.

use std::collections::HashMap;
use std::hash::{Hash as _, Hasher as _};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use forebay_protocol::blocking::BlockingSocket;
use forebay_protocol::broker::{Count, Stall, Status};
use forebay_protocol::fdsocket::FdListener;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::counters::{self, Snapshot};

/// How long a daemon that is well may keep a request, or not take it up: what a thread waits for is a moment's, but the disk under a catalog's image
/// may be slow.
pub const STALL_LIMIT: Duration = Duration::from_secs(30);

/// How often the daemon tries to listen where another one still does.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// How long one who connected may take for the answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Workers that this one's parent had started before it.
static RESTARTS: AtomicU64 = AtomicU64::new(0);

/// For the worker: it is not the first.
pub fn note_restarts(restarts: u64) {
    RESTARTS.store(restarts, Ordering::Relaxed);
}

/// Name of the socket of the daemon whose broker listens at `broker`: a machine without pods may have several.
fn socket_name(broker: &Path) -> Vec<u8> {
    let mut hasher = std::hash::DefaultHasher::new();
    broker.hash(&mut hasher);
    format!("forebay-fuse-{:016x}", hasher.finish()).into_bytes()
}

/// What the daemon knows of itself beside the counts.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    connected: AtomicBool,
    session: Mutex<Weak<OwnedFd>>,
    stalls: Mutex<Stalls>,
}

impl Standing {
    /// Whether the plugin is connected.
    pub(crate) fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }

    /// This session is served from now on, as long as somebody has its descriptor.
    pub(crate) fn set_session(&self, session: &Arc<OwnedFd>) {
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(session);
    }

    /// Whether requests of the session wait to be taken up.
    fn untaken(&self) -> bool {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        session.is_some_and(|session| {
            let mut asked = [PollFd::new(session.as_fd(), PollFlags::POLLIN)];
            poll(&mut asked, PollTimeout::ZERO).is_ok()
                && asked.iter().any(|it| it.revents().is_some_and(|events| events.contains(PollFlags::POLLIN)))
        })
    }
}

/// Answers the probes of the daemon with this broker, as long as it is polled.
pub(crate) async fn serve(broker: &Path, standing: &Standing) {
    let mut said = false;
    loop {
        match FdListener::bind_abstract(&socket_name(broker)) {
            Ok(listener) => {
                while let Ok(socket) = listener.accept().await {
                    // Who has gone needs no answer.
                    let _ = tokio::time::timeout(PATIENCE, socket.send(&standing.status(0), &[])).await;
                }
            }
            Err(error) if !said => {
                said = true;
                tracing::warn!(broker = %broker.display(), %error, "probes are not answered: does another daemon run in this network namespace?");
            }
            Err(_) => {}
        }
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}

impl Standing {
    /// How the daemon is now, as answer to the question of this number.
    pub(crate) fn status(&self, number: u64) -> Status {
        let counts = counters::snapshot();
        let mut stalls = self.stalls.lock().unwrap_or_else(PoisonError::into_inner);
        let stall = stalls.look(&counts, self.untaken(), Instant::now());
        drop(stalls);
        of_counts(number, self.connected.load(Ordering::Relaxed), stall, counts)
    }
}

fn of_counts(number: u64, connected: bool, stall: Option<Stall>, counts: Snapshot) -> Status {
    let count = |name: String, count| Count { name, count };
    Status {
        number,
        connected,
        stall,
        worker_restarts: RESTARTS.load(Ordering::Relaxed),
        requests: counts.requests.into_iter().map(|(kind, n)| count(kind.to_owned(), n)).collect(),
        answered_at_once: counts.at_once,
        put_off: counts.put_off,
        waiting: counts.waiting,
        errors: counts.errors.into_iter().map(|(errno, n)| count(format!("{errno:?}"), n)).collect(),
        passthrough_opens: counts.passthrough_opens,
        daemon_opens: counts.daemon_opens,
        cache_nodes: counts.connected,
        cache_nodes_lost: counts.connections_lost,
    }
}

/// Since when nothing has moved that should: known from one look to the next.
#[derive(Debug, Default)]
struct Stalls {
    /// By the number of a thread that is at a request, how many it has begun, and since when it was seen so.
    threads: HashMap<u64, (u64, Instant)>,
    /// Requests wait: how many had been taken up when that was first seen.
    untaken: Option<(u64, Instant)>,
}

impl Stalls {
    /// What stands still the longest, seen `now`.
    fn look(&mut self, counts: &Snapshot, untaken: bool, now: Instant) -> Option<Stall> {
        // It may be that all threads wait for cache nodes, which have a time of their own.
        let untaken = untaken && counts.without_room == 0;
        self.threads.retain(|number, (begun, _)| counts.threads.contains(&(*number, *begun, true)));
        for (number, begun, _) in counts.threads.iter().filter(|(_, _, at_one)| *at_one) {
            self.threads.entry(*number).or_insert((*begun, now));
        }
        let taken_up = counts.begun_before + counts.threads.iter().map(|(_, begun, _)| begun).sum::<u64>();
        self.untaken = self.untaken.filter(|(before, _)| untaken && *before == taken_up);
        if untaken {
            self.untaken.get_or_insert((taken_up, now));
        }
        let at_one = self.threads.values().map(|(_, since)| (*since, "a request keeps a thread"));
        let waiting = self.untaken.map(|(_, since)| (since, "requests wait in the kernel and no thread takes them up"));
        let (since, what) = at_one.chain(waiting).min_by_key(|(since, _)| *since)?;
        let milliseconds = now.saturating_duration_since(since).as_millis() as u64;
        (milliseconds > 0).then(|| Stall { milliseconds, what: what.to_owned() })
    }
}

/// Asks the daemon of this network namespace whose broker listens at `broker`. Waits no longer than `patience` at each step.
pub fn ask(broker: &Path, patience: Duration) -> io::Result<Status> {
    let socket = BlockingSocket::connect_abstract(&socket_name(broker), patience)?;
    Ok(socket.receive::<Status>()?.ok_or(io::ErrorKind::UnexpectedEof)?)
}

/// What a probe asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Question {
    /// Does the worker go on? If not, it must be killed
    Alive,
    /// Can new volumes be mounted?
    Ready,
}

/// Why a daemon is not well.
#[derive(Debug, thiserror::Error)]
pub enum Unwell {
    /// It does not answer.
    #[error("the worker does not answer: {0}")]
    Silent(#[from] io::Error),
    /// It answers, and requests are not.
    #[error("for {} s {what}", after.as_secs())]
    Stalled {
        /// For how long.
        after: Duration,
        /// What does not move.
        what: String,
    },
    /// Nobody tells it what to serve.
    #[error("the CSI plugin is not connected")]
    NotConnected,
}

/// Whether the daemon of this network namespace whose broker listens at `broker` is well.
pub fn probe(broker: &Path, question: Question, patience: Duration, stall_limit: Duration) -> Result<(), Unwell> {
    judge(ask(broker, patience)?, question, stall_limit)
}

fn judge(status: Status, question: Question, stall_limit: Duration) -> Result<(), Unwell> {
    if let Some(Stall { milliseconds, what }) = status.stall
        && Duration::from_millis(milliseconds) > stall_limit
    {
        return Err(Unwell::Stalled { after: Duration::from_millis(milliseconds), what });
    }
    match question {
        Question::Ready if !status.connected => Err(Unwell::NotConnected),
        Question::Alive | Question::Ready => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(threads: &[(u64, u64, bool)]) -> Snapshot {
        Snapshot { threads: threads.to_vec(), ..Snapshot::default() }
    }

    type Threads = Vec<(u64, u64, bool)>;

    /// What a daemon says that was looked at each ten seconds, with what its threads were at, and whether requests waited.
    fn after(looks: impl IntoIterator<Item = (Threads, bool)>) -> Option<(u64, String)> {
        let (began, mut stalls) = (Instant::now(), Stalls::default());
        let mut last = None;
        for (number, (threads, untaken)) in looks.into_iter().enumerate() {
            last = stalls.look(&counts(&threads), untaken, began + Duration::from_secs(10 * number as u64));
        }
        last.map(|stall| (stall.milliseconds, stall.what))
    }

    #[test]
    fn a_daemon_that_works_or_rests_has_no_stall() {
        assert_eq!(after(vec![(vec![(1, 5, false), (2, 7, false)], false); 5]), None);
        assert_eq!(after((0..5).map(|begun| (vec![(1, begun, true)], true))), None, "each look saw another request");
    }

    #[test]
    fn a_request_that_keeps_a_thread_is_a_stall_though_the_other_works() {
        let looks = (0..4).map(|begun| (vec![(1, 5, true), (2, begun, begun % 2 == 0)], false));
        assert_eq!(after(looks), Some((30_000, "a request keeps a thread".to_owned())));
    }

    #[test]
    fn requests_that_nobody_takes_up_are_a_stall_until_one_is_taken_up() {
        let idle = |begun| vec![(1, begun, false), (2, 3, false)];
        let waited = (30_000, "requests wait in the kernel and no thread takes them up".to_owned());
        assert_eq!(after(vec![(idle(5), true); 4]), Some(waited));
        assert_eq!(after([(idle(5), true), (idle(5), true), (idle(6), true)]), None);
        assert_eq!(after([(idle(5), true), (idle(5), false), (idle(5), true)]), None);
        // All threads may wait with requests that the log has no room for.
        let mut stalls = Stalls::default();
        let now = Instant::now();
        for (second, without_room) in [2, 2, 1, 0].into_iter().enumerate() {
            let counts = Snapshot { without_room, ..counts(&idle(5)) };
            assert_eq!(stalls.look(&counts, true, now + Duration::from_mins(second as u64)), None);
        }
        assert!(stalls.look(&counts(&idle(5)), true, now + Duration::from_mins(5)).is_some());
        // A thread that ends takes its requests along.
        let mut stalls = Stalls::default();
        let now = Instant::now();
        assert_eq!(stalls.look(&counts(&idle(5)), true, now), None);
        let ended = Snapshot { begun_before: 5, ..counts(&[(2, 3, false)]) };
        assert!(stalls.look(&ended, true, now + Duration::from_secs(1)).is_some());
    }

    #[test]
    fn a_daemon_without_plugin_is_alive_and_not_ready_and_one_that_stalls_is_neither() {
        let judged =
            |status: &Status, question| judge(status.clone(), question, STALL_LIMIT).map_err(|it| it.to_string());
        let mut status = Status::default();
        assert_eq!(judged(&status, Question::Alive), Ok(()));
        assert_eq!(judged(&status, Question::Ready), Err("the CSI plugin is not connected".to_owned()));
        status.connected = true;
        status.stall = Some(Stall { milliseconds: 30_000, what: "a request keeps a thread".into() });
        assert_eq!(judged(&status, Question::Ready), Ok(()));
        status.stall = Some(Stall { milliseconds: 41_000, what: "a request keeps a thread".into() });
        for question in [Question::Alive, Question::Ready] {
            assert_eq!(judged(&status, question), Err("for 41 s a request keeps a thread".to_owned()));
        }
    }
}
