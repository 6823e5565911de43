//! The cache node in this process: alone, on a loopback address, with one Dataset.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use forebay_cache_node::node::{Node, NodeOptions};
use forebay_crds::format_bytes;
use forebay_protocol::config::{DEFAULT_MEMORY_BYTES, DatasetConfig, NodeConfig, RuntimeConfig, RuntimeName};
use forebay_protocol::node::{CatalogInfo, DatasetStatus, Problem};

use super::cache::CacheFolder;
use super::dataset;
use super::report::{News, Reporter};
use crate::args::MountArgs;

/// How often the node is asked how far it is.
const POLL: Duration = Duration::from_millis(50);

/// How often progress is told.
const TELL: Duration = Duration::from_millis(500);

/// How long a problem may last that can go by itself, such as a server that restarts.
const PATIENCE: Duration = Duration::from_secs(8);

/// Reasons (of the node's `Problem`) that time does not heal.
const LASTING: [&str; 7] = [
    "AccessDenied",
    "BucketNotFound",
    "InvalidSource",
    "ObjectChanged",
    "ListingFailed",
    "CatalogMismatch",
    "StoreFailed",
];

/// Starts the node.
pub async fn start(args: &MountArgs, dataset: &DatasetConfig, cache: &CacheFolder) -> anyhow::Result<Node> {
    let config = RuntimeConfig {
        revision: String::new(),
        runtime: RuntimeName { namespace: dataset.namespace.clone(), name: "mount".to_owned() },
        node: NodeConfig {
            cache_dir: cache.root().to_owned(),
            capacity_bytes: args.capacity,
            memory_tier: None,
            memory_bytes: DEFAULT_MEMORY_BYTES,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            metrics: args.metrics,
            socket: Some(cache.socket()),
        },
        tls: None,
        members: Vec::new(),
        quotas: Vec::new(),
        datasets: vec![dataset.clone()],
        erase: false,
    };
    Ok(Node::start(config, NodeOptions::default()).await?)
}

/// Waits until the Dataset's sources are listed.
pub async fn catalog(node: &Node, dataset: &DatasetConfig, reporter: &mut Reporter) -> anyhow::Result<CatalogInfo> {
    let began = Instant::now();
    let (mut told, mut problem_since) = (None::<Instant>, None::<Instant>);
    loop {
        let status = status(node, dataset).context("the cache node does not know the Dataset")?;
        if let Some(catalog) = status.catalog {
            return Ok(catalog);
        }
        if let Some(problem) = &status.catalog_problem {
            let since = *problem_since.get_or_insert_with(Instant::now);
            if LASTING.contains(&problem.reason.as_str()) || since.elapsed() >= PATIENCE {
                bail!("{}", shown(problem));
            }
        }
        if told.is_none_or(|at| at.elapsed() >= TELL) {
            told = Some(Instant::now());
            let text = match &status.catalog_problem {
                Some(problem) => format!("{}; trying again", shown(problem)),
                None => format!("listing {} ({} s)", dataset::sources(dataset), began.elapsed().as_secs()),
            };
            reporter.tell(News::Progress(text))?;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What the node says of the Dataset.
pub fn status(node: &Node, dataset: &DatasetConfig) -> Option<DatasetStatus> {
    node.status().datasets.into_iter().find(|status| status.uid == dataset.uid)
}

/// A catalog in a few words.
pub fn describe(catalog: &CatalogInfo) -> String {
    let skipped = match catalog.skipped {
        0 => String::new(),
        count => format!(", {count} keys skipped that can't be files"),
    };
    let listed = jiff::Timestamp::from_second(catalog.observed_at_unix_seconds).map(|at| format!(", listed {at}"));
    let files = if catalog.files == 1 { "1 file".to_owned() } else { format!("{} files", catalog.files) };
    // Alone, a number would say nothing.
    let bytes = if catalog.bytes < 1024 { " bytes" } else { "" };
    format!("{files}, {}{bytes}{skipped}{}", format_bytes(catalog.bytes), listed.unwrap_or_default())
}

fn shown(problem: &Problem) -> String {
    format!("{}: {}", problem.reason, problem.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalog_is_described_with_what_was_left_out() {
        let catalog = CatalogInfo { files: 3, bytes: 3 << 20, skipped: 2, ..CatalogInfo::default() };
        assert_eq!(describe(&catalog), "3 files, 3Mi, 2 keys skipped that can't be files, listed 1970-01-01T00:00:00Z");
        let catalog = CatalogInfo { files: 1, bytes: 4, ..CatalogInfo::default() };
        assert_eq!(describe(&catalog), "1 file, 4 bytes, listed 1970-01-01T00:00:00Z");
    }
}
