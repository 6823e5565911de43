//! The broker: holds the /dev/fuse descriptor of the node's object FUSE, and gives it, with the side tables of the mounted catalogs, to the
//! unprivileged daemon that serves it. Nobody but the daemon's user is listened to. After a restart of this process the daemon gives the
//! descriptor back, also one that was left it by a worker that died with our predecessor. On a connection of their own the daemon's threads have
//! files registered, see `registrar.rs`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forebay_fuse::passthrough::OpenTable;
use forebay_protocol::blocking::BlockingSocket;
use forebay_protocol::broker::{
    FromDaemon, FromPlugin, Hello, Mounted, Registrar, Serve, Stop, Tree, Unmounted, from_daemon, from_plugin,
};
use forebay_protocol::fdsocket::{FdListener, FdSocket};
use rustix::fs::FileType;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use crate::registrar::{Folders, Registrations};

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
    Held(String, Holding),
}

/// What we hold of a session.
#[derive(Clone, Debug)]
struct Holding {
    fd: Arc<OwnedFd>,
    /// Unless the kernel can't pass through.
    registrations: Option<Arc<Registrations>>,
}

#[derive(Clone, Debug)]
struct Catalog {
    table: Arc<OwnedFd>,
    node_socket: PathBuf,
    tree: Option<(Tree, Arc<OwnedFd>)>,
    objects: Folders,
}

/// A connected daemon.
#[derive(Debug)]
struct Daemon {
    number: u64,
    outbox: mpsc::UnboundedSender<Outgoing>,
    /// The session that it said it serves.
    serving: Option<String>,
}

/// A message and the descriptors that go with it.
type Outgoing = (from_plugin::Message, Vec<SharedFd>);

/// A descriptor that is sent while somebody keeps it.
#[derive(Clone, Debug)]
enum SharedFd {
    File(Arc<OwnedFd>),
    Opens(Arc<Registrations>),
}

impl AsFd for SharedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::File(file) => file.as_fd(),
            Self::Opens(registrations) => registrations.table().as_fd(),
        }
    }
}

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

    /// Holds a new session and gives it to the daemon, with its table of open inodes if files may be passed through.
    pub fn hold_session(&self, session: &str, fd: OwnedFd, table: Option<OpenTable>) {
        let mut state = self.state();
        let holding = Holding::new(fd, table);
        let message = from_plugin::Message::Serve(Serve { session: session.to_owned() });
        state.tell_all(&message, &holding.fds());
        state.session = Session::Held(session.to_owned(), holding);
    }

    /// Lets go of the session, whose mount is gone.
    pub fn drop_session(&self) {
        let mut state = self.state();
        if let Some(session) = std::mem::take(&mut state.session).name() {
            state.tell_all(&from_plugin::Message::Stop(Stop { session: session.to_owned() }), &[]);
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

    /// From now on the daemon serves the objects of this catalog; complete ones lie in `objects`, folders from fast to slow. With a tree and the
    /// image that describes it, it serves that too.
    pub fn mounted(
        &self,
        dataset_uid: &str,
        catalog_id: &str,
        table: OwnedFd,
        tree: Option<(Tree, OwnedFd)>,
        node_socket: &Path,
        objects: Vec<OwnedFd>,
    ) {
        let objects = objects.into_iter().map(Arc::new).collect();
        let tree = tree.map(|(tree, image)| (tree, Arc::new(image)));
        let catalog = Catalog { table: Arc::new(table), node_socket: node_socket.to_owned(), tree, objects };
        let mut state = self.state();
        let (message, fds) = mounted_message(dataset_uid, catalog_id, &catalog);
        state.tell_all(&message, &fds);
        state.catalogs.insert((dataset_uid.to_owned(), catalog_id.to_owned()), catalog);
    }

    /// From now on the daemon serves no catalog for which `keep`, asked with Dataset UID and catalog id, says no.
    pub fn retain(&self, keep: impl Fn(&str, &str) -> bool) {
        let mut state = self.state();
        let unmounted: Vec<_> =
            state.catalogs.extract_if(.., |(dataset_uid, catalog_id), _| !keep(dataset_uid, catalog_id)).collect();
        for ((dataset_uid, catalog_id), _) in unmounted {
            state.tell_all(&from_plugin::Message::Unmounted(Unmounted { dataset_uid, catalog_id }), &[]);
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

impl Holding {
    fn new(fd: OwnedFd, table: Option<OpenTable>) -> Self {
        let fd = Arc::new(fd);
        let registrations = table.map(|table| Arc::new(Registrations::new(Arc::clone(&fd), table)));
        Self { fd, registrations }
    }

    fn fds(&self) -> Vec<SharedFd> {
        let table = self.registrations.iter().cloned().map(SharedFd::Opens);
        std::iter::once(SharedFd::File(Arc::clone(&self.fd))).chain(table).collect()
    }
}

impl State {
    fn tell_all(&self, message: &from_plugin::Message, fds: &[SharedFd]) {
        for daemon in &self.daemons {
            // One that is going away is told when it comes back.
            let _ = daemon.outbox.send((message.clone(), fds.to_owned()));
        }
    }

    /// A daemon said hello: takes the descriptors if it brings those we miss, and says what the daemon has to be told.
    fn welcome(&mut self, hello: &Hello, fds: Vec<OwnedFd>) -> Vec<Outgoing> {
        let mut fds = fds.into_iter();
        let (fd, mut table) = (fds.next(), fds.next());
        let brings = (!hello.session.is_empty()).then_some(hello.session.as_str());
        if let (Session::Awaited(name), Some(fd)) = (&self.session, fd)
            && brings == Some(name)
            && is_fuse_device(&fd)
        {
            tracing::info!(session = name, "the daemon gave the session back");
            let (name, holding) = (name.clone(), Holding::new(fd, table.take().and_then(table_of_daemon)));
            // One that connected before it, as in a rolling update, waits for the descriptor.
            self.tell_all(&from_plugin::Message::Serve(Serve { session: name.clone() }), &holding.fds());
            self.session = Session::Held(name, holding);
        }
        // A worker has from the one that was killed what we have too.
        if let (Session::Held(_, Holding { registrations: Some(registrations), .. }), Some(table)) =
            (&self.session, table)
        {
            registrations.table().close(table);
        }
        let mut messages: Vec<_> = self
            .catalogs
            .iter()
            .map(|((dataset_uid, catalog_id), catalog)| mounted_message(dataset_uid, catalog_id, catalog))
            .collect();
        if brings.is_some() && brings != self.session.name() {
            messages.push((from_plugin::Message::Stop(Stop { session: hello.session.clone() }), Vec::new()));
        }
        if let Session::Held(name, holding) = &self.session {
            let fds = if brings == Some(name) { Vec::new() } else { holding.fds() };
            messages.push((from_plugin::Message::Serve(Serve { session: name.clone() }), fds));
        }
        messages
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
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
            state.daemons.push(Daemon { number, outbox, serving: None });
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
                    let Some((message, _)) = incoming? else { return Ok(()) };
                    if let Some(from_daemon::Message::Serving(serving)) = message.message {
                        entry.serving(Some(serving.session));
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

fn mounted_message(dataset_uid: &str, catalog_id: &str, catalog: &Catalog) -> Outgoing {
    let message = Mounted {
        dataset_uid: dataset_uid.to_owned(),
        catalog_id: catalog_id.to_owned(),
        node_socket: catalog.node_socket.display().to_string(),
        tree: catalog.tree.as_ref().map(|(tree, _)| *tree),
    };
    let image = catalog.tree.iter().map(|(_, image)| image);
    let fds = std::iter::once(&catalog.table).chain(image).cloned().map(SharedFd::File).collect();
    (from_plugin::Message::Mounted(message), fds)
}

/// The table that the daemon gave back. One of another version is of no use: without it all further files are read by the daemon.
fn table_of_daemon(fd: OwnedFd) -> Option<OpenTable> {
    OpenTable::from_fd(fd)
        .inspect_err(|error| tracing::error!(%error, "files can't be passed through until the session ends"))
        .ok()
}

/// Whether the daemon has not given us something else.
fn is_fuse_device(fd: &OwnedFd) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| {
        let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && device == FUSE_DEVICE
    })
}
