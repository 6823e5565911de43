//! Readers that compare every byte. A read may fail for one reason only: its own node was killed meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{Cluster, Slot};
use crate::cluster::content::Random;
use crate::cluster::reader::{ReadError, Reader};

/// The longest that a read may take, whatever dies: what a FUSE reader waits at most.
const PATIENCE: Duration = Duration::from_secs(120);
/// While the own node is down.
const LOOK: Duration = Duration::from_millis(20);

/// Reads objects of a node in an order that the seed decides, until the end is near.
pub async fn read_until_the_end(cluster: Arc<Cluster>, node: usize, seed: u64) -> Result<()> {
    let slot = cluster.slot(node)?;
    let mut random = Random::new(seed ^ (node as u64 + 1));
    let paths: Vec<&String> = cluster.objects.keys().collect();
    while !cluster.ending.load(Ordering::Relaxed) {
        let kills = slot.kills.load(Ordering::SeqCst);
        let Some(reader) = connect(slot, kills).await? else {
            tokio::time::sleep(LOOK).await;
            continue;
        };
        while !cluster.ending.load(Ordering::Relaxed) {
            let path = paths.get(random.below(paths.len())).copied().context("there are no objects")?;
            match read(&cluster, &reader, path).await {
                Ok(()) => {}
                Err(ReadError::Disconnected(_)) if slot.kills.load(Ordering::SeqCst) != kills => break,
                Err(error) => bail!("reading {path} on node {node}: {error}\n{}", slot.node.read().await.last_words()),
            }
        }
    }
    Ok(())
}

/// Reads everything once on a node that is up.
pub async fn read_all(cluster: &Cluster, node: usize) -> Result<()> {
    let slot = cluster.slot(node)?;
    let reader = slot.node.read().await.reader().await?;
    for path in cluster.objects.keys() {
        if let Err(error) = read(cluster, &reader, path).await {
            bail!("reading {path} on node {node} at the end: {error}\n{}", slot.node.read().await.last_words());
        }
    }
    Ok(())
}

/// None while the node is down.
async fn connect(slot: &Slot, kills: u64) -> Result<Option<Reader>> {
    let node = slot.node.read().await;
    if !node.is_up() || slot.kills.load(Ordering::SeqCst) != kills {
        return Ok(None);
    }
    match node.reader().await {
        Ok(reader) => Ok(Some(reader)),
        Err(_) if slot.kills.load(Ordering::SeqCst) != kills => Ok(None),
        Err(error) => Err(error),
    }
}

async fn read(cluster: &Cluster, reader: &Reader, path: &str) -> Result<(), ReadError> {
    let wrong = |what: String| ReadError::Wrong(anyhow::anyhow!(what));
    let files = reader.files();
    let (Some(id), Some(expected)) = (files.get(path), cluster.objects.get(path)) else {
        return Err(wrong("the catalog does not have it".to_owned()));
    };
    let read = tokio::time::timeout(PATIENCE, reader.read(id, 1 << 20)).await;
    let bytes = read.map_err(|_| wrong(format!("no answer within {} s", PATIENCE.as_secs())))??;
    if bytes != *expected {
        let place = bytes.iter().zip(expected).position(|(read, expected)| read != expected);
        let (length, place) = (bytes.len(), place.unwrap_or(bytes.len().min(expected.len())));
        return Err(wrong(format!("object {id}: wrong bytes from {place} on ({length} of {} read)", expected.len())));
    }
    cluster.reads.fetch_add(1, Ordering::Relaxed);
    cluster.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    Ok(())
}
