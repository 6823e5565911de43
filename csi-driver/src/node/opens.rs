//! Which opens are watched: those of all overlays that are mounted on this node.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Weak;
use std::time::Instant;

use forebay_catalog::{CATALOG_IMAGE, TreeImage};
use forebay_fuse::NodeClient;

use super::Shared;
use super::mounts::{catalog_file, is_shown_at};
use crate::opens::{self, Schedule, Watched};
use crate::volumes::{Shown, Volume};

/// Overlays that are watched at once: the kernel lets a user have 128 groups. Where there are more, each window takes others.
const MOST_WATCHED: usize = 64;

/// Runs as long as the node lives.
pub(super) async fn watch_opens(node: Weak<Shared>, schedule: Schedule) {
    let mut nodes = HashMap::new();
    let mut first = 0;
    let mut since = Instant::now();
    let Some(metrics) = node.upgrade().map(|node| node.broker.metrics()) else { return };
    loop {
        tokio::time::sleep(schedule.pause()).await;
        let Some(mut trees) = node.upgrade().map(|node| node.overlays(&mut nodes)) else { return };
        if trees.is_empty() {
            schedule.rest().await;
            since = Instant::now();
            continue;
        }
        if trees.len() > MOST_WATCHED {
            first = (first + MOST_WATCHED) % trees.len();
            trees.rotate_left(first);
            trees.truncate(MOST_WATCHED);
        }
        let window = opens::watch(since, trees).await;
        since = window.end;
        metrics.window(window.opens);
    }
}

impl Shared {
    fn overlays(&self, nodes: &mut HashMap<PathBuf, NodeClient>) -> Vec<Watched> {
        // What can't be read is told by those who need it.
        let mut volumes = self.volumes.all().unwrap_or_default();
        volumes.retain(|it| it.shown == Shown::Overlay && is_shown_at(it, &it.staging_path).unwrap_or_default());
        nodes.retain(|socket, _| volumes.iter().any(|volume| volume.node_socket == *socket));
        let watched = |volume: Volume| {
            let image = TreeImage::from_file(&File::from(catalog_file(&volume, CATALOG_IMAGE).ok()?)).ok()?;
            let socket = volume.node_socket;
            let node = nodes.entry(socket.clone()).or_insert_with(|| NodeClient::new(&socket)).clone();
            Some(Watched { tree: volume.staging_path, dataset_uid: volume.dataset_uid, image, node })
        };
        volumes.into_iter().filter_map(watched).collect()
    }
}
