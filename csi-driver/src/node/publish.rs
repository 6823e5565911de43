//! Publishing: a staged tree, or a folder of it, at the place where the kubelet wants it for a pod.

use std::path::Path;
use std::sync::Arc;

use super::Shared;
use super::error::{NodeError, blocking};
use super::mounts::is_shown_at;
use crate::attributes::Attributes;
use crate::mount::{self, mountinfo};
use crate::volumes::{Pod, Published, Volume};

impl Shared {
    pub(super) async fn publish(
        self: Arc<Self>,
        id: &str,
        staging_path: &Path,
        target: &Path,
        pod: Option<Pod>,
    ) -> Result<(), NodeError> {
        let volume = self
            .staged(id, staging_path)?
            .ok_or_else(|| NodeError::Invalid(format!("volume {id} is not staged at {}", staging_path.display())))?;
        // A pod that has it keeps it.
        if let Some(pod) = &pod
            && !is_shown_at(&volume, target)?
        {
            self.check_shared(&volume, pod).await?;
        }
        if !self.is_served(&volume) {
            Arc::clone(&self).restore(volume.clone()).await?;
        }
        // Restoring changes the record.
        let Some(mut volume) = self.staged(id, staging_path)? else {
            return Err(NodeError::NotYet(format!("volume {id} was unstaged meanwhile")));
        };
        if !is_shown_at(&volume, target)? {
            bind(&volume, target).await?;
        }
        if !volume.published.contains_key(target) {
            volume.published.insert(target.to_owned(), Published { pod, mounted_over: false });
            self.record(&volume)?;
        }
        Ok(())
    }

    /// Refuses a pod of a namespace that the Dataset is not shared with now: that may have changed since the volume was staged, and the kubelet
    /// does not stage anew.
    async fn check_shared(&self, volume: &Volume, pod: &Pod) -> Result<(), NodeError> {
        let (namespace, dataset) = volume.dataset_name();
        if pod.namespace == namespace {
            return Ok(());
        }
        let attributes = Attributes {
            namespace: Some(namespace.to_owned()),
            dataset: dataset.to_owned(),
            pod: Some(pod.clone()),
            inline: volume.inline,
            ..Attributes::default()
        };
        self.datasets.resolve(&volume.id, &attributes, &self.paths).await?;
        Ok(())
    }

    /// An inline volume is staged for its pod alone.
    pub(super) async fn publish_inline(
        self: Arc<Self>,
        id: &str,
        attributes: &Attributes,
        target: &Path,
    ) -> Result<(), NodeError> {
        let staging_path = self.paths.inline(id);
        Arc::clone(&self).stage(id, attributes, &staging_path).await?;
        let published = Arc::clone(&self).publish(id, &staging_path, target, attributes.pod.clone()).await;
        if published.is_err()
            && let Err(error) = self.unpublish(id, target).await
        {
            // The kubelet calls unpublish as well when the pod goes.
            tracing::warn!(volume = id, %error, "cleaning up after a failed mount failed");
        }
        published
    }

    pub(super) async fn unpublish(self: Arc<Self>, id: &str, target: &Path) -> Result<(), NodeError> {
        let at = target.to_owned();
        blocking(move || Ok(mount::unmount_and_remove(&at)?)).await?;
        let Some(mut volume) = self.volume(id)? else { return Ok(()) };
        if volume.published.remove(target).is_some() {
            self.record(&volume)?;
        }
        if volume.inline && volume.published.is_empty() {
            let staging_path = volume.staging_path;
            self.unstage(id, &staging_path).await?;
            blocking(move || Ok(mount::unmount_and_remove(&staging_path)?)).await?;
        }
        Ok(())
    }
}

/// Mounts what the volume shows at `target`, in place of what is there.
pub(super) async fn bind(volume: &Volume, target: &Path) -> Result<(), NodeError> {
    let (tree, path, target) = (volume.staging_path.clone(), volume.path.clone(), target.to_owned());
    let dataset = volume.dataset.clone();
    blocking(move || {
        if !path.as_os_str().is_empty() && mount::open_beneath(&tree, &path, super::mounts::FOLDER).is_err() {
            return Err(NodeError::Invalid(format!(
                "the volume's attribute path is {}: Dataset {dataset} has no such folder",
                path.display()
            )));
        }
        mount::make_mount_point(&target)?;
        let is_mounted = mountinfo::mounted_at(&target)
            .map_err(super::error::file_error("reading", Path::new("/proc/self/mountinfo")))?
            .is_some();
        let bind = if is_mounted { mount::bind_in_place } else { mount::bind };
        Ok(bind(&tree, &path, &target)?)
    })
    .await
}
