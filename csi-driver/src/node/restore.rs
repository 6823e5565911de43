//! After the loss of the object FUSE's session, when plugin and daemon, its worker's parent included, were down at once: a new session, and for each
//! volume a new tree in place of the old one, or over it if that is in use, where pods see it too. What a pod opens anew is read by it if the mount propagates into the pod
//! (`mountPropagation: HostToContainer`); another pod reads what is cached, and must be restarted for the rest. Files that are open and not
//! cached wholly are lost.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Shared;
use super::error::NodeError;
use super::mounts::{is_shown_at, mounted_tree};
use super::publish::bind;
use crate::mount;
use crate::volumes::Volume;

/// How often a session that nobody brings is looked at, and volumes are tried again that could not be restored.
const AGAIN: Duration = Duration::from_secs(1);

/// The Event's reason.
const REASON: &str = "DatasetSessionLost";

/// What users are told.
pub(super) const LOST: &str = "CSI plugin and FUSE daemon of the node were down at once, and the volume was mounted anew. A file that was open and not cached wholly gives errors until it is opened again; a pod without mountPropagation: HostToContainer reads only cached files until it is restarted";

/// Waits until a predecessor's session is brought or known to be dead, and restores what needs it; ends when all volumes are served.
pub(super) async fn watch(node: Weak<Shared>) {
    let mut said = String::new();
    while let Some(shared) = node.upgrade() {
        if shared.broker.awaits_session() {
            let path = shared.paths.object_fuse();
            drop(shared);
            // A thread of its own: it waits while a daemon that has the descriptor does not serve.
            let (sender, dead) = tokio::sync::oneshot::channel();
            std::thread::spawn(move || sender.send(mount::fuse::is_dead(&path)));
            if dead.await == Ok(true)
                && let Some(shared) = node.upgrade()
                && shared.broker.give_session_up()
            {
                tracing::error!("plugin and daemon were down at once: the session is lost; volumes are mounted anew");
                continue;
            }
        } else {
            match shared.restore_all().await {
                Ok(()) => return,
                Err(error) if error.to_string() != said => {
                    said = error.to_string();
                    tracing::error!(%error, "volumes are not served yet; trying again");
                }
                Err(_) => {}
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

impl Shared {
    /// Restores all volumes that are not served; the first failure, if there are any.
    async fn restore_all(self: &Arc<Self>) -> Result<(), NodeError> {
        let mut failed = Ok(());
        for volume in self.all_volumes()? {
            let restore = |node: Arc<Self>, id: String| async move {
                match node.volume(&id)? {
                    Some(volume) if !node.is_served(&volume) => node.restore(volume).await,
                    _ => Ok(()),
                }
            };
            failed = failed.and(self.exclusively(&volume.id, restore).await);
        }
        failed
    }

    /// Mounts a volume anew whose session is lost, and over what its pods see.
    pub(super) async fn restore(self: Arc<Self>, volume: Volume) -> Result<(), NodeError> {
        tracing::warn!(
            volume = volume.id,
            dataset = volume.dataset,
            "the tree's object FUSE is dead; mounting it anew"
        );
        let id = volume.id.clone();
        let lost = volume.session.clone();
        Arc::clone(&self).mount(volume).await?;
        let Some(mut volume) = self.volume(&id)? else { return Ok(()) };
        let Some(tree) = mounted_tree(&volume.staging_path)? else { return Ok(()) };
        for (target, published) in volume.published.clone() {
            let Some(seen) = mounted_tree(&target)? else { continue };
            if !is_shown_at(&volume, &target)? || seen.device == tree.device {
                continue;
            }
            bind(&volume, &target).await?;
            if let Some(place) = volume.published.get_mut(&target) {
                place.mounted_over = true;
            }
            if let Some(pod) = published.pod.clone() {
                let events = self.events.clone();
                tokio::spawn(async move { events.warn(&pod, REASON, LOST).await });
            }
        }
        self.record(&volume)?;
        tracing::info!(volume = id, dataset = volume.dataset, lost, session = volume.session, "mounted anew");
        Ok(())
    }
}
