//! Connections to the broker: a daemon that serves, or one that has files registered. Nobody but the daemon's user is listened to.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use forebay_fuse::request_log::is_log;
use forebay_protocol::blocking::BlockingSocket;
use forebay_protocol::broker::{FromDaemon, FromPlugin, Hello, Registrar, from_daemon};
use forebay_protocol::fdsocket::{FdListener, FdSocket};
use tokio::sync::{mpsc, oneshot};

use super::Shared;
use super::state::{Daemon, Holding, Session, State};

/// How long a new connection may take to say hello.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the daemon wants the connection for.
    async fn connection(self: Arc<Self>, socket: FdSocket) -> io::Result<()> {
        let first = tokio::time::timeout(HELLO_PATIENCE, socket.receive::<FromDaemon>()).await;
        let Some((message, fds)) = first.map_err(|_| io::ErrorKind::TimedOut)?? else { return Ok(()) };
        match message.message {
            Some(from_daemon::Message::Hello(hello)) => {
                let end = self.serve_daemon(socket, &hello, fds).await;
                tracing::warn!("the daemon closed its connection; reads of incomplete objects wait for it");
                end
            }
            Some(from_daemon::Message::Registrar(Registrar { session })) => self.register_files(socket, &session).await,
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the first message is neither Hello nor Registrar")),
        }
    }

    /// Registers files for the daemon, on a thread of its own, until either side ends.
    async fn register_files(self: Arc<Self>, socket: FdSocket, session: &str) -> io::Result<()> {
        let (registrations, number) = {
            let mut state = self.state();
            state.next_daemon += 1;
            match &state.session {
                Session::Held(name, Holding { registrations: Some(registrations), .. }) if name == session => {
                    (Arc::clone(registrations), state.next_daemon)
                }
                // It asks again later.
                _ => return Ok(()),
            }
        };
        let socket = socket.into_blocking()?;
        let _shut_down = ShutDownOnDrop(socket.try_clone()?);
        let (ended, end) = oneshot::channel();
        std::thread::Builder::new().name("registrar".into()).spawn(move || {
            let folders = |dataset_uid: &str, catalog_id: &str| {
                let key = (dataset_uid.to_owned(), catalog_id.to_owned());
                self.state().catalogs.get(&key).map(|catalog| catalog.objects.clone())
            };
            // Nobody waits for it any more when the broker is gone.
            let _ = ended.send(registrations.serve(&socket, number, folders));
        })?;
        end.await.unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    }

    async fn serve_daemon(self: Arc<Self>, socket: FdSocket, hello: &Hello, fds: Vec<OwnedFd>) -> io::Result<()> {
        // An error would mean that the broker is gone, and this task with it.
        let _ = self.recovered.subscribe().wait_for(|recovered| *recovered).await;
        let (outbox, mut inbox) = mpsc::unbounded_channel();
        let entry = {
            let mut state = self.state();
            // In one step, so that nothing is missed between the first messages and the later ones.
            for message in state.welcome(hello, fds) {
                let _ = outbox.send(message);
            }
            state.next_daemon += 1;
            let number = state.next_daemon;
            state.daemons.push(Daemon { number, outbox, takes_log: hello.takes_request_log, serving: None });
            Entry { shared: Arc::clone(&self), number }
        };
        tracing::info!(version = hello.version, session = hello.session, "a daemon is connected");
        loop {
            tokio::select! {
                outgoing = inbox.recv() => {
                    let Some((message, fds)) = outgoing else { return Ok(()) };
                    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                    socket.send(&FromPlugin { message: Some(message) }, &fds).await?;
                }
                incoming = socket.receive::<FromDaemon>() => {
                    let Some((message, fds)) = incoming? else { return Ok(()) };
                    match (message.message, fds.into_iter().next()) {
                        (Some(from_daemon::Message::Serving(serving)), _) => entry.serving(Some(serving.session)),
                        (Some(from_daemon::Message::Status(status)), _) => {
                            let asked = self.state().asked.remove(&status.number);
                            if let Some(asked) = asked {
                                // Who has lost patience needs no answer.
                                let _ = asked.answer.send(status);
                            }
                        }
                        (Some(from_daemon::Message::RequestLog(log)), Some(fd)) if is_log(&fd) => {
                            self.state().keep_log(&log.session, fd);
                        }
                        _ => {}
                    }
                }
            }
        }
    }
}

/// Ends a connection that a thread waits on.
struct ShutDownOnDrop(BlockingSocket);

impl Drop for ShutDownOnDrop {
    fn drop(&mut self) {
        self.0.shut_down();
    }
}

/// A daemon's place in the list of daemons, given up when its connection ends.
struct Entry {
    shared: Arc<Shared>,
    number: u64,
}

impl Entry {
    fn serving(&self, session: Option<String>) {
        let mut state = self.shared.state();
        if let Some(daemon) = state.daemons.iter_mut().find(|daemon| daemon.number == self.number) {
            daemon.serving = session;
        }
        self.shared.publish(&state);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.daemons.retain(|daemon| daemon.number != self.number);
        state.asked.retain(|_, question| question.daemon != self.number);
        self.shared.publish(&state);
    }
}

impl Shared {
    fn publish(&self, state: &State) {
        let serving = state.daemons.iter().rev().find_map(|daemon| daemon.serving.clone());
        self.serving.send_replace(serving);
    }
}

pub(super) async fn accept(listener: FdListener, shared: Arc<Shared>) {
    // They end with this task, and so with the broker.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let socket = match listener.accept().await {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, "accepting a daemon's connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match socket.peer() {
            Ok(peer) if peer.uid == shared.daemon_uid => {
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    if let Err(error) = shared.connection(socket).await {
                        tracing::warn!(%error, "a connection of the daemon broke");
                    }
                });
            }
            Ok(peer) => tracing::warn!(
                pid = peer.pid,
                uid = peer.uid,
                expected = shared.daemon_uid,
                "refused a process that is not the daemon"
            ),
            Err(error) => tracing::warn!(%error, "can't tell who has connected"),
        }
    }
}
