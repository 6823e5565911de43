//! The process that mounts: starts the node, mounts when the catalog is there, and serves until the mount is taken away or a signal asks for its
//! end.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use forebay_cache_node::node::Node;
use forebay_csi::mode::Chosen;
use forebay_csi::opens::{self, Schedule};
use forebay_csi::space::{LOOK as LOOK_FOR_SPACE, Space};
use forebay_fuse::NodeClient;
use forebay_protocol::config::DatasetConfig;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::cache::{CacheFolder, CacheLock};
use super::node;
use super::preload::PreloadView;
use super::report::{News, Reporter};
use super::tree::Tree;
use crate::args::MountArgs;
use crate::mounted::{Mounted, Unmounted, users};

/// How often a busy mount is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// How often the preload's progress is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// What is left running at the end may take so long.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// Serves the Dataset at `target` until its end.
pub fn run(
    args: &MountArgs,
    dataset: &DatasetConfig,
    chosen: &Chosen,
    target: &Path,
    cache: &CacheFolder,
    lock: CacheLock,
    reporter: Reporter,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    let result = runtime.block_on(serve(args, dataset, chosen, target, cache, reporter));
    runtime.shutdown_timeout(END_PATIENCE);
    drop(lock);
    result
}

async fn serve(
    args: &MountArgs,
    dataset: &DatasetConfig,
    chosen: &Chosen,
    target: &Path,
    cache: &CacheFolder,
    mut reporter: Reporter,
) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let node = node::start(args, dataset, cache).await?;
    let mounting = async {
        let catalog = node::catalog(&node, dataset, &mut reporter).await?;
        reporter.tell(News::Progress(format!("mounting {}", node::describe(&catalog))))?;
        let tree = Tree::mount(cache, &dataset.uid, &catalog, chosen.mode, target).await?;
        Ok::<_, anyhow::Error>((tree, catalog))
    };
    let mounted = tokio::select! {
        mounted = mounting => mounted.map(Some),
        () = signals.next() => Ok(None),
    };
    let result = match mounted {
        Ok(Some((tree, catalog))) => {
            let text = format!(
                "{} is mounted at {}: {}\nMount mode {chosen}.",
                dataset.full_name(),
                target.display(),
                node::describe(&catalog)
            );
            tracing::info!(dataset = dataset.full_name(), directory = %target.display(), mode = %chosen, "mounted");
            // Whoever started it may have gone since; the mount is what was asked for.
            let _ = reporter.tell(News::Mounted(text));
            drop(reporter);
            until_end(args, &node, dataset, cache, tree, signals).await
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    node.shutdown().await;
    result
}

async fn until_end(
    args: &MountArgs,
    node: &Node,
    dataset: &DatasetConfig,
    cache: &CacheFolder,
    tree: Tree,
    mut signals: Signals,
) -> anyhow::Result<()> {
    let mut preload = PreloadView::new();
    let shown = async {
        if args.report {
            // In the background nobody looks.
            return std::future::pending().await;
        }
        loop {
            if let Some(progress) = node::status(node, dataset).and_then(|status| status.preload) {
                preload.show(&progress);
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let mut space = Space::new(&cache.socket());
    let freed = async {
        loop {
            tokio::time::sleep(LOOK_FOR_SPACE).await;
            space.look(vec![tree.mounted.directory.clone()]).await;
        }
    };
    let watched = async {
        let Some(schedule) = Schedule::of_percent(args.watch_opens) else { return std::future::pending().await };
        let client = NodeClient::new(&cache.socket());
        let mut since = Instant::now();
        loop {
            tokio::time::sleep(schedule.pause()).await;
            match tree.watched(&client) {
                Ok(Some(watched)) => since = opens::watch(since, vec![watched]).await.end,
                // Mode Fuse sees all opens by itself.
                Ok(None) => std::future::pending().await,
                Err(error) => {
                    tracing::warn!(%error, "opens can't be watched");
                    schedule.rest().await;
                }
            }
        }
    };
    let signalled = tokio::select! {
        () = watched => false,
        () = tree.ended() => false,
        () = signals.next() => true,
        () = shown => false,
        () = freed => false,
    };
    preload.clear();
    if signalled {
        take_away(&tree, &mut signals).await?;
    }
    let directory = tree.mounted.directory.clone();
    if !tree.stop().await {
        eprintln!("{} is unmounted, but the tree is still in use; whoever reads on gets errors.", directory.display());
    }
    Ok(())
}

/// Unmounts; while somebody uses the tree says who, and waits for them or for a second signal.
async fn take_away(tree: &Tree, signals: &mut Signals) -> anyhow::Result<()> {
    let directory = tree.mounted.directory.display();
    let mut said = String::new();
    loop {
        if blocking(&tree.mounted, Mounted::unmount).await? == Unmounted::Gone {
            return Ok(());
        }
        let used = tree.mounted.directory.clone();
        let users = tokio::task::spawn_blocking(move || users::list(&users::find(&used))).await.unwrap_or_default();
        if users != said {
            eprintln!(
                "{directory} is in use by {users}: waiting for the end of that; a second Ctrl-C ends the mount now."
            );
            said = users;
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = tree.ended() => return Ok(()),
            () = signals.next() => {
                blocking(&tree.mounted, Mounted::detach).await?;
                return Ok(());
            }
        }
    }
}

async fn blocking(mounted: &Mounted, work: fn(&Mounted) -> anyhow::Result<Unmounted>) -> anyhow::Result<Unmounted> {
    let mounted = mounted.clone();
    tokio::task::spawn_blocking(move || work(&mounted)).await.context("a thread panicked")?
}

/// The signals that ask for the end.
struct Signals {
    all: [Signal; 3],
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let of = |kind| signal(kind).context("listening to signals");
        Ok(Self { all: [of(SignalKind::interrupt())?, of(SignalKind::terminate())?, of(SignalKind::hangup())?] })
    }

    /// Waits for the next one.
    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.all;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
