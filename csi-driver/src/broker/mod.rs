//! The broker: holds the /dev/fuse descriptor of the node's object FUSE, and gives it, with the side tables of the mounted catalogs, to the
//! unprivileged daemon that serves it. Nobody but the daemon's user is listened to. After a restart of this process the daemon gives the
//! descriptor back, also one that was left it by a worker that died with our predecessor. On a connection of their own the daemon's threads have
//! files registered, see `registrar.rs`.

mod connections;
mod state;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use forebay_fuse::passthrough::OpenTable;
use forebay_protocol::broker::{Status, Stop, Tree, Unmounted, from_plugin};
use forebay_protocol::fdsocket::FdListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::metrics::{Metrics, SessionEvent};
use connections::accept;
use state::{Catalog, Holding, Session, State, mounted_message};

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

/// What a broker has at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// A session is mounted.
    pub session: bool,
    /// A daemon serves it.
    pub served: bool,
    /// Daemons that are connected.
    pub daemons: usize,
    /// Files that this plugin has registered for the session and not taken back.
    pub registrations: usize,
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
        let holding = Holding::new(fd, table, &state.metrics);
        state.metrics.session(SessionEvent::Made);
        state.give_session(session, &holding);
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
            state.metrics.session(SessionEvent::Lost);
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
        self.within(patience, self.served()).await
    }

    /// Waits until all catalogs that were named before are served too: an open that comes first would fail.
    pub async fn wait_catalogs(&self, patience: Duration) -> Result<(), NotServed> {
        self.within(patience, self.catalogs_served()).await
    }

    async fn within(&self, patience: Duration, served: impl Future<Output = ()>) -> Result<(), NotServed> {
        match tokio::time::timeout(patience, served).await {
            Ok(()) => Ok(()),
            _ if self.state().daemons.is_empty() => Err(NotServed::NoDaemon),
            _ => Err(NotServed::NotYet),
        }
    }

    async fn served(&self) {
        let session = self.state().session.name().map(ToOwned::to_owned);
        let mut serving = self.shared.serving.subscribe();
        // An error would mean that we are gone ourselves.
        let _ = serving.wait_for(|serving| session.is_some() && *serving == session).await;
    }

    async fn catalogs_served(&self) {
        loop {
            self.served().await;
            // Also those that have not said yet that they serve: any of them may take up the open.
            let answers = self.state().ask(|_| true);
            // One that has gone meanwhile takes up nothing more.
            if futures::future::join_all(answers).await.iter().any(Result::is_ok) {
                return;
            }
        }
    }

    /// What is counted of this plugin.
    pub fn metrics(&self) -> Metrics {
        self.state().metrics.clone()
    }

    /// Asks the daemon, if one is connected, how it is; none when it does not answer in time.
    pub async fn ask(&self, patience: Duration) -> Option<Status> {
        let answer = {
            let mut state = self.state();
            // Of two, as in a rolling update, the later one.
            let last = state.daemons.last()?.number;
            state.ask(|daemon| daemon.number == last).pop()?
        };
        tokio::time::timeout(patience, answer).await.ok()?.ok()
    }

    /// What there is now.
    pub fn standing(&self) -> Standing {
        let state = self.state();
        let registrations = match &state.session {
            Session::Held(_, Holding { registrations: Some(registrations), .. }) => registrations.count(),
            _ => 0,
        };
        let session = state.session.name();
        let served = session.is_some() && self.shared.serving.borrow().as_deref() == session;
        Standing { session: session.is_some(), served, daemons: state.daemons.len(), registrations }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}
