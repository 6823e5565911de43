//! The session loop: threads that read requests from a /dev/fuse descriptor whose INIT has been answered, hand them to the file system, and
//! write the answers. A request that takes time is finished on the tokio runtime, so a slow one never holds up the others; INTERRUPT ends
//! it. The descriptor may have been served by another process before: what that one left unanswered the kernel is asked to send again
//! ([`resend`]), or it is in the session's log of requests.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use zerocopy::{FromBytes, IntoBytes};

use crate::abi::{self, InHeader, InterruptIn, OutHeader, UNIQUE_RESEND, op};
use crate::backing::Bytes;
use crate::counters::{self, TakenUp};
use crate::handshake::MAX_PAGES;
use crate::listen::{Listening, has_request};
use crate::objects::{Later, Objects, Outcome, Pace};
use crate::passthrough::Passthrough;
use crate::registry::Registry;
use crate::request_log::{self, Buffer, RequestLog};
use crate::slow::{Kept, SlowRequest, SlowRequests};
use crate::wake;

/// Threads that read requests. More were no faster (`docs/performance.md`).
const THREADS: usize = 2;
const _: () = assert!(THREADS <= request_log::SLOTS, "each has a slot in the log of requests");

/// The largest answer: a READ of all pages of a request.
pub const ANSWER_BYTES: usize = MAX_PAGES as usize * 4096;

/// How long [`Server::stop`] lets slow requests finish. What is then unfinished, the next server of the session is asked for again.
const GRACE: Duration = Duration::from_secs(2);

/// How often a server looks whether others, who serve the session too, have died.
const OTHERS: Duration = Duration::from_millis(500);

/// A session being served. Dropping it stops serving without waiting; the mount stays, and whoever has the descriptor can serve it again.
#[derive(Debug)]
pub struct Server {
    session: Arc<Session>,
    threads: Vec<JoinHandle<()>>,
    ended: watch::Receiver<bool>,
}

#[derive(Debug)]
struct Session {
    fd: Arc<OwnedFd>,
    objects: Objects,
    runtime: Handle,
    listening: Listening,
    stopping: AtomicBool,
    slow: SlowRequests,
    ended: watch::Sender<bool>,
    log: Option<RequestLog>,
    /// Done when what dead servers left in the log has been taken up.
    inherited: Once,
}

impl Server {
    /// Serves the objects of `registry` on `fd`; without `passthrough` the daemon reads all files itself, without `log` what it is doing when it is
    /// killed must be asked for by [`resend`]. Must be called within a tokio runtime.
    pub fn start(
        fd: Arc<OwnedFd>,
        registry: Registry,
        passthrough: Option<Passthrough>,
        log: Option<RequestLog>,
    ) -> std::io::Result<Self> {
        wake::install()?;
        let buffers = (0..THREADS).map(|number| Buffer::of_thread(log.as_ref(), number));
        let buffers = buffers.collect::<Result<Vec<_>, _>>()?;
        let (sender, ended) = watch::channel(false);
        let session = Arc::new(Session {
            fd,
            objects: Objects::new(registry, passthrough),
            runtime: Handle::current(),
            listening: Listening::default(),
            stopping: AtomicBool::new(false),
            slow: SlowRequests::default(),
            ended: sender,
            log,
            inherited: Once::new(),
        });
        let threads = buffers.into_iter().enumerate().map(|(number, buffer)| {
            let session = Arc::clone(&session);
            std::thread::Builder::new().name(format!("fuse-{number}")).spawn(move || session.serve(buffer))
        });
        let threads = threads.collect::<Result<_, _>>()?;
        Ok(Self { session, threads, ended })
    }

    /// The descriptor, to hand it on.
    pub fn fd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.session.fd)
    }

    /// Which files the kernel reads itself, if any.
    pub fn passthrough(&self) -> Option<&Passthrough> {
        self.session.objects.passthrough()
    }

    /// The log of requests, if there is one.
    pub fn log(&self) -> Option<&RequestLog> {
        self.session.log.as_ref()
    }

    /// Waits until the file system is unmounted (or the session aborted).
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // Fails only when the sender is gone, which is an end too.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Takes no more requests, finishes those under way, and returns. The session itself goes on.
    pub async fn stop(mut self) {
        self.session.stopping.store(true, Ordering::Release);
        let finished = async {
            while wake_all(&self.threads) || !self.session.slow.is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        if tokio::time::timeout(GRACE, finished).await.is_err() {
            tracing::info!("leaving slow requests to the next server of the session");
            // Threads that wait for one, too.
            while wake_all(&self.threads) {
                self.session.slow.abandon();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        self.threads.clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.session.stopping.store(true, Ordering::Release);
        self.session.slow.abandon();
        // A signal may come just before a thread blocks in read, so ask until it is gone.
        let threads = std::mem::take(&mut self.threads);
        if threads.is_empty() {
            return;
        }
        let session = Arc::clone(&self.session);
        let waking = std::thread::Builder::new().name("fuse-stop".into()).spawn(move || {
            while wake_all(&threads) {
                std::thread::sleep(Duration::from_millis(2));
                // One that they took up meanwhile, and wait for.
                session.slow.abandon();
            }
        });
        if let Err(error) = waking {
            tracing::error!(%error, "can't stop the session's threads; they end when it is unmounted");
        }
    }
}

/// Wakes threads that wait for a request; whether any has not ended.
fn wake_all(threads: &[JoinHandle<()>]) -> bool {
    let alive = threads.iter().filter(|thread| !thread.is_finished());
    alive.inspect(|thread| wake::wake(thread)).count() > 0
}

impl Session {
    fn serve(self: Arc<Self>, mut request: Buffer) {
        let _runtime = self.runtime.enter();
        // Not zero, so that each page is really there: a page that is not while the kernel copies an answer from it, and the process is killed just
        // then, fails the read with EIO.
        let mut answer = vec![1_u8; ANSWER_BYTES];
        self.inherited.call_once(|| self.inherit_from_the_start(&mut answer));
        let mut turn = None;
        while !self.stopping.load(Ordering::Acquire) {
            // What is there already is taken without a turn.
            let read = if turn.is_none() && has_request(&self.fd) {
                rustix::io::read(&*self.fd, request.bytes())
            } else {
                turn.get_or_insert_with(|| self.listening.turn()).read(&self.fd, request.bytes())
            };
            match read {
                Ok(length) => {
                    let request = request.bytes().get(..length).unwrap_or_default();
                    let pace = self.pace(request);
                    // Somebody else listens meanwhile, if this takes a while or more has come.
                    turn = turn.take_if(|turn| turn.goes_on(pace) && !has_request(&self.fd));
                    if !self.dispatch(request, &mut answer, false) {
                        return;
                    }
                }
                // A wake-up; or the request was interrupted before we could have it.
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN | rustix::io::Errno::NOENT) => {}
                Err(rustix::io::Errno::NODEV | rustix::io::Errno::CONNABORTED) => {
                    self.end("unmounted");
                    return;
                }
                Err(error) => {
                    tracing::error!(%error, "reading a request failed; the session is given up");
                    self.end("unreadable");
                    return;
                }
            }
            // It is answered, or noted elsewhere.
            request.clear();
        }
    }

    fn pace(&self, request: &[u8]) -> Pace {
        match self.objects.pace(request) {
            // A slow one would be waited for here.
            Pace::Quick if self.log.as_ref().is_some_and(RequestLog::is_nearly_full) => Pace::Waits,
            pace => pace,
        }
    }

    fn end(&self, why: &str) {
        if !self.ended.send_replace(true) {
            tracing::info!(why, "the FUSE session ended");
        }
    }

    /// Has a request answered, or noted as a slow one; false if it has to stay where it is, for the next server. `again`: a server before us has had
    /// it, and may even have answered it.
    fn dispatch(self: &Arc<Self>, request: &[u8], answer: &mut [u8], again: bool) -> bool {
        let Ok((mut header, body)) = InHeader::read_from_prefix(request) else {
            tracing::error!(length = request.len(), "a request without a header was ignored");
            return true;
        };
        let taken_up = counters::take_up(header.opcode);
        if header.opcode == op::INTERRUPT {
            self.interrupt(&header, body);
            return true;
        }
        let unique = header.unique;
        if again {
            header.unique |= UNIQUE_RESEND;
        }
        match counters::outcome(self.objects.handle(&header, body, answer)) {
            Outcome::Reply(length) => {
                if !self.reply(unique, 0, answer.get(..length).unwrap_or_default()) {
                    self.objects.not_taken(&header);
                }
            }
            Outcome::Error(errno) => {
                self.reply(unique, -(errno as i32), &[]);
            }
            Outcome::Silent => {}
            Outcome::Later(later) => return self.finish_later(unique, request, later, taken_up),
        }
        true
    }

    /// Has a slow request noted and worked on. Where the log has no room for it, waits for its answer; false if none is given.
    fn finish_later(self: &Arc<Self>, unique: u64, request: &[u8], later: Later, taken_up: TakenUp) -> bool {
        let (kept, answered) = match self.log.as_ref().map(|log| log.enter(request)) {
            None => (Kept::Nowhere, None),
            Some(Some(entry)) => (Kept::Entry(entry), None),
            Some(None) => {
                let (answered, told) = oneshot::channel();
                (Kept::Slot(answered), Some(told))
            }
        };
        let session = Arc::clone(self);
        let earlier = self.slow.begin(unique, kept, |ticket| {
            let waiting = counters::waiting();
            let work = async move {
                let result = later.await;
                drop(waiting);
                if let Some(slow) = session.slow.take(unique, Some(ticket)) {
                    session.answer(unique, result);
                    session.answered(slow);
                }
            };
            self.runtime.spawn(work).abort_handle()
        });
        if let Some(earlier) = earlier {
            earlier.abort();
            self.answered(earlier);
        }
        let Some(answered) = answered else { return true };
        // As any other that waits for a cache node it is no sign of a thread that hangs.
        let _without_room = taken_up.without_room();
        answered.blocking_recv().is_ok()
    }

    fn answer(&self, unique: u64, result: Result<Bytes, Errno>) {
        match result {
            Ok(bytes) => self.reply(unique, 0, &bytes),
            Err(errno) => self.reply(unique, -(errno as i32), &[]),
        };
    }

    fn answered(&self, slow: SlowRequest) {
        match (slow.kept, &self.log) {
            (Kept::Entry(entry), Some(log)) => log.answered(entry),
            // It is ending, if it does not listen.
            (Kept::Slot(thread), _) => drop(thread.send(())),
            (Kept::Nowhere | Kept::Entry(_), _) => {}
        }
    }

    /// A reader wants to give up: the slow request is answered with EINTR. If we do not have it, another thread may just be taking it up: the
    /// kernel then asks again, and stops when the request is answered.
    fn interrupt(&self, header: &InHeader, body: &[u8]) {
        let Ok((interrupt, _)) = InterruptIn::read_from_prefix(body) else { return };
        match self.slow.take(interrupt.unique, None) {
            Some(slow) => {
                slow.abort();
                self.reply(interrupt.unique, -(Errno::EINTR as i32), &[]);
                self.answered(slow);
            }
            None => {
                self.reply(header.unique, -(Errno::EAGAIN as i32), &[]);
            }
        }
    }

    /// Answers; whether the kernel took it.
    fn reply(&self, unique: u64, error: i32, body: &[u8]) -> bool {
        counters::answer(error);
        let header = OutHeader { len: (size_of::<OutHeader>() + body.len()) as u32, error, unique };
        let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(body)];
        match rustix::io::writev(&*self.fd, &parts) {
            Ok(_) => true,
            // ENOENT: the request was interrupted, or answered by a server before us. ENODEV: unmounted.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NODEV) => false,
            Err(errno) => {
                tracing::error!(unique, error, length = body.len(), %errno, "an answer was refused by the kernel");
                false
            }
        }
    }

    /// Before this server reads a request: answers those of dead ones, and goes on to look for such as long as others live.
    fn inherit_from_the_start(self: &Arc<Self>, answer: &mut [u8]) {
        if !self.inherit(true, answer) {
            return;
        }
        let session = Arc::downgrade(self);
        self.runtime.spawn(async move {
            loop {
                tokio::time::sleep(OTHERS).await;
                let Some(session) = session.upgrade().filter(|it| !it.stopping.load(Ordering::Acquire)) else { return };
                let inherit = move || session.inherit(false, &mut vec![1_u8; ANSWER_BYTES]);
                if !tokio::task::spawn_blocking(inherit).await.unwrap_or(false) {
                    return;
                }
            }
        });
    }

    /// Takes up what dead servers left in the log. Whether others live.
    fn inherit(self: &Arc<Self>, at_start: bool, answer: &mut [u8]) -> bool {
        let Some(log) = &self.log else { return false };
        let left = match log.left(at_start) {
            Ok(left) => left,
            Err(error) => {
                tracing::error!(%error, "what a killed daemon was doing can't be read; its readers hang until they are killed");
                return false;
            }
        };
        if !left.requests.is_empty() {
            tracing::info!(requests = left.requests.len(), "taking up what another daemon did not finish");
        }
        for (place, request) in &left.requests {
            if !self.dispatch(request, answer, true) {
                break;
            }
            log.clear(place);
        }
        left.others_live
    }
}

/// Has requests sent again that a server of the session had read and not answered. False: this kernel can't.
pub fn resend(session: impl AsFd) -> std::io::Result<bool> {
    let notification = OutHeader { len: size_of::<OutHeader>() as u32, error: abi::NOTIFY_RESEND, unique: 0 };
    match rustix::io::write(session, notification.as_bytes()) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::INVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
