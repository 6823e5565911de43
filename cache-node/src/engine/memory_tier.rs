//! The memory tier of the config: its checks, and what is brought there without being opened.

use std::path::Path;
use std::sync::Arc;

use forebay_protocol::config::NodeConfig;

use super::Engine;
use crate::problem::{Problem, Reason};

/// Refuses a memory tier inside of the cache folder or around it: each of both empties its own.
pub(super) fn check(node: &NodeConfig) -> Result<(), Problem> {
    let Some(tier) = &node.memory_tier else { return Ok(()) };
    let apart = |a: &Path, b: &Path| !a.starts_with(b) && !b.starts_with(a);
    if apart(&tier.dir, &node.cache_dir) {
        return Ok(());
    }
    let message = format!(
        "node.memoryTier.dir {} and node.cacheDir {} lie in each other: choose another folder on a tmpfs",
        tier.dir.display(),
        node.cache_dir.display()
    );
    Err(Problem::new(Reason::InvalidSource, message))
}

impl Engine {
    /// Has the store copy what is pinned and complete, in the background.
    pub(super) fn bring_pinned_into_memory(&self) {
        if self.pins.is_empty() {
            return;
        }
        let (store, pins) = (Arc::clone(&self.store), Arc::clone(&self.pins));
        tokio::task::spawn_blocking(move || store.promote_pinned(|id| pins.have(id)));
    }
}
