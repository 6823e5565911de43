//! The broker: holds the /dev/fuse descriptor of the node's object FUSE, and gives it, with the side tables of the mounted catalogs, to the
//! unprivileged daemon that serves it. Nobody but the daemon's user is listened to. After a restart of this process the daemon gives the
//! descriptor back.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forebay_protocol::broker::{
    FromDaemon, FromPlugin, Hello, Mounted, Serve, Stop, Unmounted, from_daemon, from_plugin,
};
use forebay_protocol::fdsocket::{FdListener, FdSocket};
use rustix::fs::FileType;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

/// Device number of /dev/fuse.
const FUSE_DEVICE: (u32, u32) = (10, 229);

/// How long a new connection may take to say hello.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);

/// The broker. Clones are the same.
#[derive(Clone, Debug)]
pub struct Broker {
    shared: Arc<Shared>,
    /// Stops listening, and ends all connections, with the last clone.
    _accepting: Arc<AbortOnDrop>,
}

#[derive(Debug)]
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug)]
struct Shared {
    daemon_uid: u32,
    /// Whether it is known which session and catalogs there are; before that no daemon is told anything.
    recovered: watch::Sender<bool>,
    state: Mutex<State>,
    /// Name of the session that a connected daemon serves.
    serving: watch::Sender<Option<String>>,
}

#[derive(Debug, Default)]
struct State {
    session: Session,
    catalogs: BTreeMap<(String, String), Catalog>,
    daemons: Vec<Daemon>,
    next_daemon: u64,
}

/// The object FUSE's session.
#[derive(Clone, Debug, Default)]
enum Session {
    /// Nothing is mounted.
    #[default]
    None,
    /// It is mounted, by this process's predecessor; a daemon may still have the descriptor.
    Awaited(String),
    /// It is mounted and we hold it.
    Held(String, Arc<OwnedFd>),
}

#[derive(Clone, Debug)]
struct Catalog {
    table: Arc<OwnedFd>,
    node_socket: PathBuf,
}

/// A connected daemon.
#[derive(Debug)]
struct Daemon {
    number: u64,
    outbox: mpsc::UnboundedSender<Outgoing>,
    /// The session that it said it serves.
    serving: Option<String>,
}

/// A message and the descriptor that goes with it.
type Outgoing = (from_plugin::Message, Option<Arc<OwnedFd>>);

/// Why nobody serves the session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotServed {
    /// No daemon is connected.
    #[error("no forebay-fuse daemon is connected on this node; see whether its pod is running")]
    NoDaemon,
    /// One is connected and did not take the session up.
    #[error("the forebay-fuse daemon of this node is connected but does not serve yet; see its log")]
    NotYet,
}

impl Broker {
    /// Listens at `path`, in group `gid`, to daemons of user `daemon_uid`. They wait until [`Broker::recovered`].
    pub async fn listen(path: &Path, gid: Option<u32>, daemon_uid: u32) -> io::Result<Self> {
        let listener = FdListener::bind(path, 0o660, gid).await?;
        let shared = Shared {
            daemon_uid,
            recovered: watch::channel(false).0,
            state: Mutex::default(),
            serving: watch::channel(None).0,
        };
        let shared = Arc::new(shared);
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared))).abort_handle();
        Ok(Self { shared, _accepting: Arc::new(AbortOnDrop(accepting)) })
    }

    /// A session of our predecessor is mounted: a daemon may bring its descriptor.
    pub fn expect_session(&self, session: &str) {
        self.state().session = Session::Awaited(session.to_owned());
    }

    /// What a predecessor left has been told: daemons are answered from now on. One that came before would be told that there is no session, and let
    /// go of the descriptor that it alone has.
    pub fn recovered(&self) {
        self.shared.recovered.send_replace(true);
    }

    /// Holds a new session and gives it to the daemon.
    pub fn hold_session(&self, session: &str, fd: OwnedFd) {
        let mut state = self.state();
        let fd = Arc::new(fd);
        state.session = Session::Held(session.to_owned(), Arc::clone(&fd));
        state.tell_all(&from_plugin::Message::Serve(Serve { session: session.to_owned() }), Some(&fd));
    }

    /// Lets go of the session, whose mount is gone.
    pub fn drop_session(&self) {
        let mut state = self.state();
        if let Some(session) = std::mem::take(&mut state.session).name() {
            state.tell_all(&from_plugin::Message::Stop(Stop { session: session.to_owned() }), None);
        }
    }

    /// Name of the session, if somebody has its descriptor, or may have.
    pub fn session(&self) -> Option<String> {
        match &self.state().session {
            Session::Held(name, _) | Session::Awaited(name) => Some(name.clone()),
            Session::None => None,
        }
    }

    /// Whether a session is mounted whose descriptor nobody has brought yet.
    pub fn awaits_session(&self) -> bool {
        matches!(self.state().session, Session::Awaited(_))
    }

    /// The awaited session is dead: nobody has its descriptor. False if somebody has brought it after all.
    pub fn give_session_up(&self) -> bool {
        let mut state = self.state();
        let awaited = matches!(state.session, Session::Awaited(_));
        if awaited {
            state.session = Session::None;
        }
        awaited
    }

    /// From now on the daemon serves the objects of this catalog.
    pub fn mounted(&self, dataset_uid: &str, catalog_id: &str, table: OwnedFd, node_socket: &Path) {
        let catalog = Catalog { table: Arc::new(table), node_socket: node_socket.to_owned() };
        let mut state = self.state();
        let (message, table) = mounted_message(dataset_uid, catalog_id, &catalog);
        state.tell_all(&message, Some(&table));
        state.catalogs.insert((dataset_uid.to_owned(), catalog_id.to_owned()), catalog);
    }

    /// And from now on not any more.
    pub fn unmounted(&self, dataset_uid: &str, catalog_id: &str) {
        let mut state = self.state();
        if state.catalogs.remove(&(dataset_uid.to_owned(), catalog_id.to_owned())).is_some() {
            let message = Unmounted { dataset_uid: dataset_uid.to_owned(), catalog_id: catalog_id.to_owned() };
            state.tell_all(&from_plugin::Message::Unmounted(message), None);
        }
    }

    /// Waits until a daemon serves the session.
    pub async fn wait_served(&self, patience: Duration) -> Result<(), NotServed> {
        let session = self.state().session.name().map(ToOwned::to_owned);
        let mut serving = self.shared.serving.subscribe();
        let served = serving.wait_for(|serving| session.is_some() && *serving == session);
        match tokio::time::timeout(patience, served).await {
            Ok(Ok(_)) => Ok(()),
            _ if self.state().daemons.is_empty() => Err(NotServed::NoDaemon),
            _ => Err(NotServed::NotYet),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Session {
    fn name(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Awaited(name) | Self::Held(name, _) => Some(name),
        }
    }
}

impl State {
    fn tell_all(&self, message: &from_plugin::Message, fd: Option<&Arc<OwnedFd>>) {
        for daemon in &self.daemons {
            // One that is going away is told when it comes back.
            let _ = daemon.outbox.send((message.clone(), fd.cloned()));
        }
    }

    /// A daemon said hello: takes the descriptor if it brings the one we miss, and says what the daemon has to be told.
    fn welcome(&mut self, hello: &Hello, fd: Option<OwnedFd>) -> Vec<Outgoing> {
        let brings = (!hello.session.is_empty()).then_some(hello.session.as_str());
        if let (Session::Awaited(name), Some(fd)) = (&self.session, fd)
            && brings == Some(name)
            && is_fuse_device(&fd)
        {
            tracing::info!(session = name, "the daemon gave the session back");
            let (name, fd) = (name.clone(), Arc::new(fd));
            // One that connected before it, as in a rolling update, waits for the descriptor.
            self.tell_all(&from_plugin::Message::Serve(Serve { session: name.clone() }), Some(&fd));
            self.session = Session::Held(name, fd);
        }
        let mut messages: Vec<_> = self
            .catalogs
            .iter()
            .map(|((dataset_uid, catalog_id), catalog)| {
                let (message, table) = mounted_message(dataset_uid, catalog_id, catalog);
                (message, Some(table))
            })
            .collect();
        if brings.is_some() && brings != self.session.name() {
            messages.push((from_plugin::Message::Stop(Stop { session: hello.session.clone() }), None));
        }
        if let Session::Held(name, fd) = &self.session {
            let fd = (brings != Some(name)).then(|| Arc::clone(fd));
            messages.push((from_plugin::Message::Serve(Serve { session: name.clone() }), fd));
        }
        messages
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connection(self: Arc<Self>, socket: FdSocket) -> io::Result<()> {
        let hello = tokio::time::timeout(HELLO_PATIENCE, socket.receive::<FromDaemon>()).await;
        let Some((message, mut fds)) = hello.map_err(|_| io::ErrorKind::TimedOut)?? else { return Ok(()) };
        let Some(from_daemon::Message::Hello(hello)) = message.message else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the first message is no Hello"));
        };
        // An error would mean that the broker is gone, and this task with it.
        let _ = self.recovered.subscribe().wait_for(|recovered| *recovered).await;
        let (outbox, mut inbox) = mpsc::unbounded_channel();
        let entry = {
            let mut state = self.state();
            // In one step, so that nothing is missed between the first messages and the later ones.
            for message in state.welcome(&hello, fds.pop()) {
                let _ = outbox.send(message);
            }
            state.next_daemon += 1;
            let number = state.next_daemon;
            state.daemons.push(Daemon { number, outbox, serving: None });
            Entry { shared: Arc::clone(&self), number }
        };
        tracing::info!(version = hello.version, session = hello.session, "a daemon is connected");
        loop {
            tokio::select! {
                outgoing = inbox.recv() => {
                    let Some((message, fd)) = outgoing else { return Ok(()) };
                    let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
                    socket.send(&FromPlugin { message: Some(message) }, &fds).await?;
                }
                incoming = socket.receive::<FromDaemon>() => {
                    let Some((message, _)) = incoming? else { return Ok(()) };
                    if let Some(from_daemon::Message::Serving(serving)) = message.message {
                        entry.serving(Some(serving.session));
                    }
                }
            }
        }
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
        self.shared.publish(&state);
    }
}

impl Shared {
    fn publish(&self, state: &State) {
        let serving = state.daemons.iter().rev().find_map(|daemon| daemon.serving.clone());
        self.serving.send_replace(serving);
    }
}

async fn accept(listener: FdListener, shared: Arc<Shared>) {
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
                    match shared.connection(socket).await {
                        Ok(()) => {
                            tracing::warn!("the daemon closed its connection; reads of incomplete objects wait for it");
                        }
                        Err(error) => tracing::warn!(%error, "the daemon's connection ended"),
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

fn mounted_message(dataset_uid: &str, catalog_id: &str, catalog: &Catalog) -> (from_plugin::Message, Arc<OwnedFd>) {
    let message = Mounted {
        dataset_uid: dataset_uid.to_owned(),
        catalog_id: catalog_id.to_owned(),
        node_socket: catalog.node_socket.display().to_string(),
    };
    (from_plugin::Message::Mounted(message), Arc::clone(&catalog.table))
}

/// Whether the daemon has not given us something else.
fn is_fuse_device(fd: &OwnedFd) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| {
        let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && device == FUSE_DEVICE
    })
}
