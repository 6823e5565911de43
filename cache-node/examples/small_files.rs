//! How fast small files come from an S3 server onto a cold node, and how fast a plain loop of object_store gets them. Run against the same
//! server, alternating; each run prints one line of `key=value`.
//!
//! ```text
//! small_files --endpoint http://127.0.0.1:7070 --bucket data --access-key A --secret-key S limit
//! small_files ... limit --write /dev/shm/x
//! small_files ... preload --cache /dev/shm/c
//! small_files ... epoch --cache /dev/shm/c --readers 8
//! ```
#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use forebay_cache_node::node::{Node, NodeOptions};
use forebay_catalog::{Catalog, ObjectId};
use forebay_protocol::config::{
    AccessConfig, Credentials, DEFAULT_MEMORY_BYTES, DatasetConfig, MountConfig, NodeConfig, PlacementConfig,
    PreloadConfig, RuntimeConfig, RuntimeName, SourceConfig,
};
use forebay_protocol::fdsocket::FdSocket;
use forebay_protocol::local::{
    Close, Ensure, Open, Request, Response, Served, request::Call, response::Result as Answer,
};
use forebay_protocol::node::DatasetStatus;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{ObjectStore, ObjectStoreExt};

const UID: &str = "small-files";

/// Measures small files from an S3 server.
#[derive(Parser)]
struct Args {
    /// The server, http only.
    #[arg(long)]
    endpoint: String,
    #[arg(long)]
    bucket: String,
    /// What the keys begin with.
    #[arg(long, default_value = "")]
    prefix: String,
    #[arg(long)]
    access_key: String,
    #[arg(long)]
    secret_key: String,
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// object_store's GETs, so many at once; listed before the clock starts.
    Limit {
        #[arg(long, default_value_t = 64)]
        concurrency: usize,
        /// Also write each to a file of its own below this folder.
        #[arg(long)]
        write: Option<PathBuf>,
    },
    /// A cold node preloads all of it; from the catalog being there to the last file.
    Preload {
        /// An empty folder.
        #[arg(long)]
        cache: PathBuf,
    },
    /// Readers at the local socket of a cold node open every file once, each its share, in random order.
    Epoch {
        /// An empty folder.
        #[arg(long)]
        cache: PathBuf,
        #[arg(long, default_value_t = 8)]
        readers: usize,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let (files, bytes, took) = match &args.mode {
        Mode::Limit { concurrency, write } => limit(&args, *concurrency, write.as_deref()).await?,
        Mode::Preload { cache } => preload(&args, cache).await?,
        Mode::Epoch { cache, readers } => epoch(&args, cache, *readers).await?,
    };
    let mode = match &args.mode {
        Mode::Limit { write: None, .. } => "limit",
        Mode::Limit { .. } => "limit-write",
        Mode::Preload { .. } => "preload",
        Mode::Epoch { .. } => "epoch",
    };
    let seconds = took.as_secs_f64();
    println!(
        "mode={mode} files={files} bytes={bytes} seconds={seconds:.3} files_per_second={:.0}",
        files as f64 / seconds
    );
    Ok(())
}

async fn limit(args: &Args, concurrency: usize, write: Option<&Path>) -> anyhow::Result<(usize, u64, Duration)> {
    let store: AmazonS3 = AmazonS3Builder::new()
        .with_endpoint(&args.endpoint)
        .with_allow_http(true)
        .with_bucket_name(&args.bucket)
        .with_region("us-east-1")
        .with_access_key_id(&args.access_key)
        .with_secret_access_key(&args.secret_key)
        .build()?;
    let prefix = object_store::path::Path::parse(&args.prefix)?;
    let listed: Vec<_> = store.list(Some(&prefix)).try_collect().await?;
    if let Some(folder) = write {
        std::fs::create_dir_all(folder)?;
    }
    let (bytes, number) = (AtomicU64::new(0), AtomicUsize::new(0));
    let began = Instant::now();
    stream::iter(&listed)
        .map(Ok)
        .try_for_each_concurrent(concurrency, |object| {
            let (store, bytes, number) = (&store, &bytes, &number);
            async move {
                let content = store.get(&object.location).await?.bytes().await?;
                bytes.fetch_add(content.len() as u64, Ordering::Relaxed);
                if let Some(folder) = write {
                    let path = folder.join(number.fetch_add(1, Ordering::Relaxed).to_string());
                    tokio::fs::write(path, content).await?;
                }
                anyhow::Ok(())
            }
        })
        .await?;
    Ok((listed.len(), bytes.into_inner(), began.elapsed()))
}

fn config(args: &Args, cache: &Path, preload: Option<PreloadConfig>) -> anyhow::Result<RuntimeConfig> {
    if std::fs::read_dir(cache).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{}: the folder is not empty, so the node would not be cold; name another one", cache.display());
    }
    let credentials = Credentials {
        access_key_id: args.access_key.clone(),
        secret_access_key: args.secret_key.clone(),
        session_token: None,
    };
    let source = SourceConfig {
        url: format!("s3://{}/{}", args.bucket, args.prefix),
        endpoint: Some(args.endpoint.clone()),
        region: Some("us-east-1".to_owned()),
        credentials: Some(credentials),
    };
    let dataset = DatasetConfig {
        uid: UID.to_owned(),
        namespace: "bench".to_owned(),
        name: UID.to_owned(),
        mounts: vec![MountConfig { path: "/".to_owned(), sources: vec![source] }],
        access: AccessConfig::default(),
        placement: PlacementConfig::default(),
        pin: None,
        capacity_bytes: None,
        preload,
        catalog: None,
    };
    Ok(RuntimeConfig {
        revision: "1".to_owned(),
        runtime: RuntimeName { namespace: "bench".to_owned(), name: "bench".to_owned() },
        node: NodeConfig {
            cache_dir: cache.join("cache"),
            capacity_bytes: 1 << 40,
            memory_tier: None,
            memory_bytes: DEFAULT_MEMORY_BYTES,
            listen: ([127, 0, 0, 1], 0).into(),
            metrics: None,
            socket: Some(cache.join("node.sock")),
        },
        tls: None,
        members: Vec::new(),
        quotas: Vec::new(),
        datasets: vec![dataset],
        erase: false,
    })
}

async fn wait<T>(node: &Node, mut ready: impl FnMut(&DatasetStatus) -> Option<T>) -> T {
    loop {
        if let Some(value) = node.status().datasets.first().and_then(&mut ready) {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn preload(args: &Args, cache: &Path) -> anyhow::Result<(usize, u64, Duration)> {
    let config = config(args, cache, Some(PreloadConfig::default()))?;
    let node = Node::start(config, NodeOptions::default()).await?;
    wait(&node, |dataset| dataset.catalog.as_ref().map(drop)).await;
    let began = Instant::now();
    let loaded = |dataset: &DatasetStatus| {
        let preload = dataset.preload.as_ref()?;
        let done = preload.loaded_bytes == preload.total_bytes && preload.total_files > 0;
        done.then_some((preload.total_files as usize, preload.total_bytes))
    };
    let (files, bytes) = wait(&node, loaded).await;
    let took = began.elapsed();
    node.shutdown().await;
    Ok((files, bytes, took))
}

async fn epoch(args: &Args, cache: &Path, readers: usize) -> anyhow::Result<(usize, u64, Duration)> {
    let config = config(args, cache, None)?;
    let socket = config.node.socket.clone().context("a socket is configured")?;
    let catalogs = config.node.cache_dir.join("catalogs").join(UID);
    let node = Node::start(config, NodeOptions::default()).await?;
    let id = wait(&node, |dataset| dataset.catalog.as_ref().map(|catalog| catalog.id.clone())).await;
    let catalog = Catalog::open(&catalogs.join(id))?;
    // Object ids are hashes: their order is a random one.
    let ids: Arc<Vec<ObjectId>> = Arc::new(catalog.table().distinct().map(|record| record.id).collect());
    let (bytes, began) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let mut tasks = tokio::task::JoinSet::new();
    for part in 0..readers {
        let (ids, bytes, socket) = (Arc::clone(&ids), Arc::clone(&bytes), socket.clone());
        tasks.spawn(async move {
            let reader = Reader { socket: FdSocket::connect(&socket).await?, next: 1 };
            reader.read(ids.iter().skip(part).step_by(readers), &bytes).await
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let took = began.elapsed();
    node.shutdown().await;
    Ok((ids.len(), bytes.load(Ordering::Relaxed), took))
}

/// A client of the local socket, as `forebay-fuse` is one.
struct Reader {
    socket: FdSocket,
    next: u64,
}

impl Reader {
    async fn call(&mut self, call: Call) -> anyhow::Result<(Answer, Vec<std::os::fd::OwnedFd>)> {
        self.next += 1;
        self.socket.send(&Request { id: self.next, call: Some(call) }, &[]).await?;
        let (response, fds) = self.socket.receive::<Response>().await?.context("the node has closed the socket")?;
        Ok((response.result.context("an empty answer")?, fds))
    }

    async fn read(mut self, ids: impl Iterator<Item = &ObjectId>, bytes: &AtomicU64) -> anyhow::Result<()> {
        let mut buffer = Vec::new();
        for id in ids {
            let open = Open { dataset_uid: UID.to_owned(), object_id: id.as_bytes().to_vec(), ..Open::default() };
            let (Answer::Opened(opened), mut fds) = self.call(Call::Open(open)).await? else {
                bail!("{id}: not opened")
            };
            if !opened.complete {
                let ensure = Ensure { lease: opened.lease, offset: 0, length: opened.size };
                let (Answer::Ensured(_), _) = self.call(Call::Ensure(ensure)).await? else { bail!("{id}: not there") };
            }
            let mut file = std::fs::File::from(fds.pop().context("no descriptor")?);
            buffer.clear();
            std::io::Read::read_to_end(&mut file, &mut buffer)?;
            bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
            if opened.complete {
                self.call(Call::Served(Served { dataset_uid: UID.to_owned(), bytes: opened.size })).await?;
            }
            self.call(Call::Close(Close { lease: opened.lease })).await?;
        }
        Ok(())
    }
}
