//! The daemon of a Kubernetes node: unprivileged, it gets the session's descriptor and the catalogs from the CSI plugin over the broker socket
//! and serves them. When the plugin goes away it serves on, and gives the next one the descriptor. So does the next daemon with what this one kept,
//! should both die at once.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use forebay_catalog::{ObjectTable, TreeImage};
use forebay_protocol::broker::{self, FromDaemon, FromPlugin, Hello, Mounted, Serving, from_daemon, from_plugin};
use forebay_protocol::fdsocket::FdSocket;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::watch;

use crate::keeper::{Keeper, Kept};
use crate::passthrough::{OpenTable, Passthrough, RegistrarByPlugin};
use crate::request_log::{self, RequestLog};
use crate::status::{self, Standing};
use crate::{Registry, Server, SessionFiles, Tree, session};

/// First pause before connecting to the plugin again; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Longest pause: what a pod's start waits at most for a plugin that has come back.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// When it is asked to end, the daemon stays until the plugin has been there for so long: the plugin may just be ending too, and one of them must
/// have the session's descriptor at any time.
const HANDOVER_STABLE: Duration = Duration::from_secs(1);

/// But not longer than this, less than the chart's `terminationGracePeriodSeconds`.
const HANDOVER_PATIENCE: Duration = Duration::from_secs(10);

/// How the next worker gets to know what this one was doing when it is killed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resend {
    /// The kernel sends it again, if it can; else there is a log.
    #[default]
    IfTheKernelCan,
    /// There is a log, as on kernels before 6.9.
    Never,
}

/// What the daemon is doing.
struct Daemon {
    broker: PathBuf,
    resend: Resend,
    registry: Registry,
    serving: Option<(String, Server)>,
    /// Keeps the session's descriptors for the next worker.
    keeper: Option<Keeper>,
    /// What the last worker was serving. It can't be served before the plugin has named the catalogs.
    kept: Option<Kept>,
    /// Whether the plugin has the descriptor too, or there is none.
    may_end: watch::Sender<bool>,
    /// What is told to who asks how the daemon is.
    standing: Arc<Standing>,
}

/// Why a connection to the plugin ended.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error(transparent)]
    Socket(#[from] std::io::Error),
    #[error("the plugin {0}; are plugin and daemon of the same version?")]
    Protocol(&'static str),
    #[error("the table of catalog {catalog}: {source}")]
    Table { catalog: String, source: forebay_catalog::TableError },
}

/// Serves what the plugin at the socket `broker` gives, until `shutdown` resolves; then finishes what is under way. The mounts stay. Without a
/// `keeper` the session is lost when plugin and daemon die at once.
pub async fn run(broker: &Path, keeper: Option<Keeper>, resend: Resend, shutdown: impl Future<Output = ()>) {
    raise_descriptor_limit();
    let kept = keeper.as_ref().and_then(of_last_worker);
    let (sender, may_end) = watch::channel(kept.is_none());
    let standing = Arc::<Standing>::default();
    // A task of its own: it answers while a large catalog is opened.
    let status = tokio::spawn({
        let (broker, standing) = (broker.to_owned(), Arc::clone(&standing));
        async move { status::serve(&broker, &standing).await }
    });
    let mut daemon = Daemon {
        broker: broker.to_owned(),
        resend,
        registry: Registry::new(),
        serving: None,
        keeper,
        kept,
        may_end: sender,
        standing,
    };
    let handed_over = async {
        shutdown.await;
        tracing::info!("shutting down");
        if tokio::time::timeout(HANDOVER_PATIENCE, stays_true(may_end, HANDOVER_STABLE)).await.is_err() {
            tracing::error!(
                "no CSI plugin has the session: files that are not cached can't be read by running pods any more"
            );
        }
    };
    tokio::select! {
        () = daemon.keep_connected() => {}
        () = handed_over => {}
    }
    if let Some((_, server)) = daemon.serving.take() {
        server.stop().await;
    }
    daemon.registry.report_served().await;
    status.abort();
}

impl Daemon {
    async fn keep_connected(&mut self) {
        let mut pause = FIRST_PAUSE;
        let mut last_cause = String::new();
        loop {
            let cause = match FdSocket::connect(&self.broker).await {
                Ok(plugin) => {
                    (pause, last_cause) = (FIRST_PAUSE, String::new());
                    tracing::info!(broker = %self.broker.display(), "connected to the CSI plugin");
                    self.standing.set_connected(true);
                    let end = self.talk(&plugin).await;
                    self.standing.set_connected(false);
                    self.may_end.send_replace(self.serving.is_none() && self.kept.is_none());
                    match end {
                        Ok(()) => "it closed the connection".to_owned(),
                        Err(error) => error.to_string(),
                    }
                }
                Err(error) => error.to_string(),
            };
            if cause != last_cause {
                tracing::warn!(broker = %self.broker.display(), cause, "no CSI plugin; what is mounted is served on");
                last_cause = cause;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One connection: says hello, then does as it is told until the plugin closes.
    async fn talk(&mut self, plugin: &FdSocket) -> Result<(), ConnectionError> {
        self.say_hello(plugin).await?;
        // The plugin first names all catalogs, then the session: what it has not named by then is not mounted any more.
        let mut named = Some(HashSet::new());
        while let Some((message, fds)) = plugin.receive::<FromPlugin>().await? {
            match message.message {
                Some(from_plugin::Message::Mounted(mounted)) => {
                    if let Some(named) = &mut named {
                        named.insert((mounted.dataset_uid.clone(), mounted.catalog_id.clone()));
                    }
                    self.mounted(&mounted, fds)?;
                }
                Some(from_plugin::Message::Unmounted(unmounted)) => {
                    self.registry.unmount(&unmounted.dataset_uid, &unmounted.catalog_id);
                }
                Some(from_plugin::Message::Serve(serve)) => {
                    if let Some(named) = named.take() {
                        self.registry.retain(|it| named.contains(&(it.dataset_uid.clone(), it.catalog_id.clone())));
                    }
                    self.serve(plugin, &serve.session, fds).await?;
                    let serving = Serving { session: serve.session };
                    plugin.send(&FromDaemon { message: Some(from_daemon::Message::Serving(serving)) }, &[]).await?;
                    self.may_end.send_replace(true);
                }
                Some(from_plugin::Message::Stop(stop)) => self.stop(&stop.session).await,
                Some(from_plugin::Message::Ask(ask)) => {
                    let status = from_daemon::Message::Status(self.standing.status(ask.number));
                    plugin.send(&FromDaemon { message: Some(status) }, &[]).await?;
                }
                None => tracing::warn!("a message of a newer plugin was ignored"),
            }
        }
        Ok(())
    }

    async fn say_hello(&self, plugin: &FdSocket) -> Result<(), ConnectionError> {
        let served = self.serving.as_ref().map(|(session, server)| (session, server.fd(), server));
        let (session, fds): (_, Vec<BorrowedFd<'_>>) = match (&served, &self.kept) {
            (Some((session, fd, server)), _) => {
                let table = server.passthrough().map(|passthrough| passthrough.table().as_fd());
                let log = server.log().map(RequestLog::shared);
                (session.as_str(), std::iter::once(fd.as_fd()).chain(table).chain(log).collect())
            }
            (None, Some(kept)) => (kept.session.as_str(), kept.fds.iter().map(AsFd::as_fd).collect()),
            (None, None) => ("", Vec::new()),
        };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let hello = Hello { session: session.to_owned(), version, takes_request_log: true };
        Ok(plugin.send(&FromDaemon { message: Some(from_daemon::Message::Hello(hello)) }, &fds).await?)
    }

    async fn stop(&mut self, session: &str) {
        let kept = self.kept.take_if(|kept| kept.session == session);
        let serving = self.serving.take_if(|(serving, _)| serving == session);
        if kept.is_none() && serving.is_none() {
            return;
        }
        if let Some(keeper) = &self.keeper {
            keeper.forget();
        }
        if let Some((_, server)) = serving {
            server.stop().await;
        }
        self.may_end.send_replace(true);
        tracing::info!(session, "stopped serving");
    }

    fn mounted(&self, mounted: &Mounted, fds: Vec<OwnedFd>) -> Result<(), ConnectionError> {
        let mut fds = fds.into_iter().map(File::from);
        let table = fds.next().ok_or(ConnectionError::Protocol("named a catalog without its table"))?;
        let table = ObjectTable::from_file(&table)
            .map_err(|source| ConnectionError::Table { catalog: mounted.catalog_id.clone(), source })?;
        let tree = match &mounted.tree {
            Some(tree) => open_tree(tree, &mounted.catalog_id, fds.next())?,
            None => None,
        };
        let (dataset, catalog, shows_tree) = (&mounted.dataset_uid, &mounted.catalog_id, tree.is_some());
        self.registry.mount(dataset, catalog, table, tree, Path::new(&mounted.node_socket));
        tracing::info!(dataset, catalog, tree = shows_tree, "serving the objects of a catalog");
        Ok(())
    }

    async fn serve(&mut self, plugin: &FdSocket, session: &str, given: Vec<OwnedFd>) -> Result<(), ConnectionError> {
        if given.is_empty() && self.serving.as_ref().is_some_and(|(known, _)| known == session) {
            return Ok(());
        }
        let fds = match self.kept.take().filter(|kept| given.is_empty() && kept.session == session) {
            Some(kept) => kept.fds,
            None if given.is_empty() => {
                return Err(ConnectionError::Protocol("named a session without its descriptor"));
            }
            None => {
                self.keep(session, &given);
                given
            }
        };
        let mut files =
            SessionFiles::sort(fds).ok_or(ConnectionError::Protocol("named a session without its descriptor"))?;
        if files.log.is_none() && self.needs_log(&files.fuse) {
            self.make_log(plugin, session, &mut files).await;
        }
        let log = files.log.map(RequestLog::open).transpose().unwrap_or_else(|error| {
            tracing::error!(%error, "the log of requests can't be used: what this daemon is doing when it is killed hangs until its reader is killed");
            None
        });
        let passthrough = files.opens.map(|table| self.passthrough(session, table)).transpose()?;
        // A session that is replaced was unmounted while there was no connection.
        let fd = Arc::new(files.fuse);
        self.standing.set_session(&fd);
        let server = Server::start(fd, self.registry.clone(), passthrough, log)?;
        self.serving = Some((session.to_owned(), server));
        tracing::info!(session, "serving a session");
        Ok(())
    }

    /// Before anybody is served by it.
    fn keep(&self, session: &str, fds: &[impl AsFd]) {
        if let Some(keeper) = &self.keeper
            && let Err(error) = keeper.keep(session, fds)
        {
            tracing::error!(session, %error, "the session is not kept: it is lost if plugin and worker die at once");
        }
    }

    /// Whether nobody else remembers what this daemon is doing. If the kernel does, it sends again what a daemon before us did not answer.
    fn needs_log(&self, fuse: &OwnedFd) -> bool {
        let can_resend = self.resend == Resend::IfTheKernelCan
            && session::resend(fuse).unwrap_or_else(|error| {
                tracing::error!(%error, "asking for unanswered requests failed");
                true
            });
        !can_resend
    }

    /// Makes a log for a session that has none, and has it kept by all who keep the session, before there is anything in it.
    async fn make_log(&self, plugin: &FdSocket, session: &str, files: &mut SessionFiles) {
        match request_log::create() {
            Ok(log) => {
                let all = [Some(files.fuse.as_fd()), files.opens.as_ref().map(AsFd::as_fd), Some(log.as_fd())];
                self.keep(session, &all.into_iter().flatten().collect::<Vec<_>>());
                let message = from_daemon::Message::RequestLog(broker::RequestLog { session: session.to_owned() });
                // A plugin that has just died is given it by Hello when it is back.
                let _ = plugin.send(&FromDaemon { message: Some(message) }, &[log.as_fd()]).await;
                files.log = Some(log);
            }
            Err(error) => {
                tracing::error!(%error, "no log of requests: what this daemon is doing when it is killed hangs until its reader is killed");
            }
        }
    }

    fn passthrough(&self, session: &str, table: OwnedFd) -> Result<Passthrough, ConnectionError> {
        Ok(Passthrough::new(OpenTable::from_fd(table)?, Box::new(RegistrarByPlugin::new(&self.broker, session))))
    }
}

/// What is kept, if it can be used. If not, readers must not wait for somebody to serve it.
fn of_last_worker(keeper: &Keeper) -> Option<Kept> {
    keeper.kept().unwrap_or_else(|error| {
        tracing::error!(%error, "what the last worker was serving is lost unless the CSI plugin has it");
        keeper.forget();
        None
    })
}

/// None if the image is none.
fn open_tree(
    tree: &forebay_protocol::broker::Tree,
    catalog_id: &str,
    image: Option<File>,
) -> Result<Option<Tree>, ConnectionError> {
    let image = image.ok_or(ConnectionError::Protocol("named a tree without its image"))?;
    let slot = u16::try_from(tree.slot).map_err(|_| ConnectionError::Protocol("gave a tree a slot that is none"))?;
    match TreeImage::from_file(&image) {
        Ok(image) => Ok(Some(Tree::new(slot, catalog_id, image, tree.files, tree.bytes))),
        // The others are served all the same.
        Err(error) => {
            tracing::error!(catalog = catalog_id, %error, "the tree of a catalog can't be served");
            Ok(None)
        }
    }
}

/// Resolves when the value has been true for `time` without a break.
async fn stays_true(mut value: watch::Receiver<bool>, time: Duration) {
    // An error means that the sender is gone, and everything with it.
    while value.wait_for(|value| *value).await.is_ok() {
        match tokio::time::timeout(time, value.wait_for(|value| !*value)).await {
            Ok(Ok(_)) => {}
            _ => return,
        }
    }
}

/// Each open object has a descriptor, and readers may have many open: as many as we may without asking.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, ?limit, "the limit of open files stays as it is");
    }
}
