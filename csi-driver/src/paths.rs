//! Where the driver keeps things: all under the kubelet's folder, which is shared with the host, so that mounts outlive the plugin's pod.

use std::path::{Path, PathBuf};

use forebay_protocol::layout::BROKER_SOCKET;

use crate::volumes::file_name;

/// The driver's name.
pub const DRIVER: &str = "csi.forebay.dev";

/// The folders that arguments name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The kubelet's folder, `/var/lib/kubelet`.
    pub kubelet_dir: PathBuf,
    /// The folder of the sockets, `/var/lib/forebay/run`.
    pub run_dir: PathBuf,
    /// Folders under which cache folders may be.
    pub cache_roots: Vec<PathBuf>,
    /// The folder under which memory tiers are.
    pub memory_root: PathBuf,
}

impl Paths {
    fn plugin(&self) -> PathBuf {
        self.kubelet_dir.join("plugins").join(DRIVER)
    }

    /// The CSI socket.
    pub fn csi_socket(&self) -> PathBuf {
        self.plugin().join("csi.sock")
    }

    /// The socket by which the kubelet learns of the driver.
    pub fn registration_socket(&self) -> PathBuf {
        self.kubelet_dir.join("plugins_registry").join(format!("{DRIVER}-reg.sock"))
    }

    /// The broker's socket.
    pub fn broker_socket(&self) -> PathBuf {
        self.run_dir.join(BROKER_SOCKET)
    }

    /// Locked by the plugin that runs.
    pub fn lock(&self) -> PathBuf {
        self.plugin().join("lock")
    }

    /// What is staged on this node: a file per volume.
    pub fn volumes(&self) -> PathBuf {
        self.plugin().join("volumes")
    }

    /// Where the object FUSE is mounted.
    pub fn object_fuse(&self) -> PathBuf {
        self.plugin().join("objects-fuse")
    }

    /// The name of the object FUSE's session, for the plugin's next start.
    pub fn session(&self) -> PathBuf {
        self.plugin().join("session.json")
    }

    /// Where catalog images are mounted.
    pub fn catalogs(&self) -> PathBuf {
        self.plugin().join("catalogs")
    }

    /// Where one catalog image is mounted.
    pub fn catalog(&self, dataset_uid: &str, catalog_id: &str) -> PathBuf {
        self.catalogs().join(dataset_uid).join(catalog_id)
    }

    /// Where the tree of an inline volume is mounted.
    pub fn inline(&self, volume_id: &str) -> PathBuf {
        self.plugin().join("inline").join(file_name(volume_id))
    }

    /// The cache root that a path lies under.
    pub fn cache_root_of(&self, path: &Path) -> Option<&Path> {
        let normal = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
        self.cache_roots.iter().find(|root| normal && path.starts_with(root)).map(PathBuf::as_path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_folder_must_lie_under_a_cache_root() {
        let paths = Paths {
            kubelet_dir: "/k".into(),
            run_dir: "/r".into(),
            cache_roots: vec!["/var/lib/forebay".into(), "/mnt/nvme".into()],
            memory_root: "/dev/shm/forebay".into(),
        };
        assert_eq!(paths.cache_root_of(Path::new("/mnt/nvme/a")), Some(Path::new("/mnt/nvme")));
        for path in ["/mnt/nvme2/a", "/etc", "/mnt/nvme/../../etc", "relative"] {
            assert_eq!(paths.cache_root_of(Path::new(path)), None, "{path}");
        }
    }
}
