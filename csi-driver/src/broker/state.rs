//! What the broker knows: the session, the catalogs that are served, the daemons that are connected; and what each of them is told.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use forebay_fuse::SessionFiles;
use forebay_fuse::passthrough::OpenTable;
use forebay_protocol::broker::{Ask, Hello, Mounted, Serve, Status, Stop, Tree, from_plugin};
use rustix::fs::FileType;
use tokio::sync::{mpsc, oneshot};

use crate::metrics::{Metrics, SessionEvent};
use crate::registrar::{Folders, Registrations};

/// Device number of /dev/fuse.
const FUSE_DEVICE: (u32, u32) = (10, 229);

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) session: Session,
    pub(super) catalogs: BTreeMap<(String, String), Catalog>,
    pub(super) daemons: Vec<Daemon>,
    pub(super) next_daemon: u64,
    pub(super) metrics: Metrics,
    pub(super) next_question: u64,
    /// Who waits for a daemon's word, by the question's number.
    pub(super) asked: HashMap<u64, Question>,
}

/// What a daemon was asked.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) daemon: u64,
    pub(super) answer: oneshot::Sender<Status>,
}

/// The object FUSE's session.
#[derive(Clone, Debug, Default)]
pub(super) enum Session {
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
pub(super) struct Holding {
    pub(super) fd: Arc<OwnedFd>,
    /// Unless the kernel can't pass through.
    pub(super) registrations: Option<Arc<Registrations>>,
    /// The log of requests, if a daemon has made one. Nothing for us but to keep.
    pub(super) log: Option<Arc<OwnedFd>>,
}

#[derive(Clone, Debug)]
pub(super) struct Catalog {
    pub(super) table: Arc<OwnedFd>,
    pub(super) node_socket: PathBuf,
    pub(super) tree: Option<(Tree, Arc<OwnedFd>)>,
    pub(super) objects: Folders,
}

/// A connected daemon.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) number: u64,
    pub(super) outbox: mpsc::UnboundedSender<Outgoing>,
    pub(super) takes_log: bool,
    /// The session that it said it serves.
    pub(super) serving: Option<String>,
}

/// A message and the descriptors that go with it.
pub(super) type Outgoing = (from_plugin::Message, Vec<SharedFd>);

/// A descriptor that is sent while somebody keeps it.
#[derive(Clone, Debug)]
pub(super) enum SharedFd {
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

impl Session {
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Awaited(name) | Self::Held(name, _) => Some(name),
        }
    }
}

impl Holding {
    pub(super) fn new(fd: OwnedFd, table: Option<OpenTable>, metrics: &Metrics) -> Self {
        let fd = Arc::new(fd);
        let registrations = table.map(|table| Arc::new(Registrations::new(Arc::clone(&fd), table, metrics.clone())));
        Self { fd, registrations, log: None }
    }

    pub(super) fn fds(&self, with_log: bool) -> Vec<SharedFd> {
        let table = self.registrations.iter().cloned().map(SharedFd::Opens);
        let log = self.log.iter().filter(|_| with_log).cloned().map(SharedFd::File);
        std::iter::once(SharedFd::File(Arc::clone(&self.fd))).chain(table).chain(log).collect()
    }
}

impl State {
    pub(super) fn tell_all(&self, message: &from_plugin::Message, fds: &[SharedFd]) {
        for daemon in &self.daemons {
            // One that is going away is told when it comes back.
            let _ = daemon.outbox.send((message.clone(), fds.to_owned()));
        }
    }

    /// Asks some daemons how they are. Each answers when it is done with what it was told before; the answer fails when it goes.
    pub(super) fn ask(&mut self, whom: impl Fn(&Daemon) -> bool) -> Vec<oneshot::Receiver<Status>> {
        // Who asked has lost patience.
        self.asked.retain(|_, question| !question.answer.is_closed());
        let mut answers = Vec::new();
        for daemon in self.daemons.iter().filter(|daemon| whom(daemon)) {
            let (answer, status) = oneshot::channel();
            self.next_question += 1;
            let ask = from_plugin::Message::Ask(Ask { number: self.next_question });
            let _ = daemon.outbox.send((ask, Vec::new()));
            self.asked.insert(self.next_question, Question { daemon: daemon.number, answer });
            answers.push(status);
        }
        answers
    }

    /// Gives a session to all daemons.
    pub(super) fn give_session(&self, session: &str, holding: &Holding) {
        for daemon in &self.daemons {
            let message = from_plugin::Message::Serve(Serve { session: session.to_owned() });
            let _ = daemon.outbox.send((message, holding.fds(daemon.takes_log)));
        }
    }

    /// A daemon has made a log of requests for a session.
    pub(super) fn keep_log(&mut self, session: &str, log: OwnedFd) {
        match &mut self.session {
            Session::Held(name, holding) if name == session => holding.log = Some(Arc::new(log)),
            _ => {}
        }
    }

    /// A daemon said hello: takes the descriptors if it brings those we miss, and says what the daemon has to be told.
    pub(super) fn welcome(&mut self, hello: &Hello, fds: Vec<OwnedFd>) -> Vec<Outgoing> {
        let (fd, mut table, mut log) = match SessionFiles::sort(fds) {
            Some(SessionFiles { fuse, opens, log }) => (Some(fuse), opens, log),
            None => (None, None, None),
        };
        let brings = (!hello.session.is_empty()).then_some(hello.session.as_str());
        if let (Session::Awaited(name), Some(fd)) = (&self.session, fd)
            && brings == Some(name)
            && is_fuse_device(&fd)
        {
            tracing::info!(session = name, "the daemon gave the session back");
            let table = table.take().and_then(table_of_daemon);
            let (name, mut holding) = (name.clone(), Holding::new(fd, table, &self.metrics));
            holding.log = log.take().map(Arc::new);
            self.metrics.session(SessionEvent::GivenBack);
            // One that connected before it, as in a rolling update, waits for the descriptor.
            self.give_session(&name, &holding);
            self.session = Session::Held(name, holding);
        }
        // A worker has from the one that was killed what we have too.
        if let Session::Held(name, holding) = &mut self.session {
            if let (Some(registrations), Some(table)) = (&holding.registrations, table) {
                registrations.table().close(table);
            }
            // Unless it was made while the daemon could not reach us.
            if holding.log.is_none() && brings == Some(name) {
                holding.log = log.map(Arc::new);
            }
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
            let fds = if brings == Some(name) { Vec::new() } else { holding.fds(hello.takes_request_log) };
            messages.push((from_plugin::Message::Serve(Serve { session: name.clone() }), fds));
        }
        messages
    }
}

pub(super) fn mounted_message(dataset_uid: &str, catalog_id: &str, catalog: &Catalog) -> Outgoing {
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
