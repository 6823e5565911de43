//! What is staged on this node, one small file per volume, written whole or not at all: what a restarted plugin needs to know beyond the mount
//! table. A record is written before the first of its mounts is made and removed after the last is gone.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::mode::Mode;

/// One staged volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// The volume's id.
    pub id: String,
    /// `namespace/name` of the Dataset, for messages.
    pub dataset: String,
    /// UID of the Dataset.
    pub dataset_uid: String,
    /// The version that is mounted.
    pub catalog_id: String,
    /// The session of the object FUSE that the tree reads from; empty while it is not mounted yet.
    pub session: String,
    /// How the tree is shown.
    #[serde(default)]
    pub shown: Shown,
    /// Where the tree is mounted.
    pub staging_path: PathBuf,
    /// The cache root that the cache folder lies under.
    pub cache_root: PathBuf,
    /// The cache folder.
    pub cache: PathBuf,
    /// The folder of the copies in memory, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<PathBuf>,
    /// The cache node's local socket.
    pub node_socket: PathBuf,
    /// Files in the tree.
    pub files: u64,
    /// Sum of their sizes.
    pub bytes: u64,
    /// The folder of the tree that pods see; empty for all of it.
    #[serde(default)]
    pub path: PathBuf,
    /// An inline volume of one pod: staged when it is published, and gone with it.
    #[serde(default)]
    pub inline: bool,
    /// Where pods see it.
    #[serde(default)]
    pub published: BTreeMap<PathBuf, Published>,
}

/// A place where a volume is published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Published {
    /// The pod, if the kubelet said.
    pub pod: Option<Pod>,
    /// The session that it was mounted with was lost: a new tree is mounted over the pod's.
    pub mounted_over: bool,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl Volume {
    /// Namespace and name of the Dataset.
    pub fn dataset_name(&self) -> (&str, &str) {
        self.dataset.split_once('/').unwrap_or_default()
    }
}

/// What a volume's tree is made of. Records of versions that knew only mode Kernel don't say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Shown {
    /// An overlay of the catalog image.
    #[default]
    Overlay,
    /// The object FUSE's folder of this slot.
    Tree {
        /// The slot; none while it has not been given yet.
        slot: Option<u16>,
    },
}

impl Shown {
    /// The mode in which a volume is shown so.
    pub fn mode(self) -> Mode {
        match self {
            Self::Overlay => Mode::Kernel,
            Self::Tree { .. } => Mode::Fuse,
        }
    }
}

/// The records.
#[derive(Clone, Debug)]
pub struct Volumes {
    folder: PathBuf,
}

impl Volumes {
    /// Records in this folder, which is made if it is missing.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// The record of a volume.
    pub fn get(&self, id: &str) -> io::Result<Option<Volume>> {
        read_json(&self.file(id))
    }

    /// All records. One that can't be read is reported and left out: it must not keep the others from being served.
    pub fn all(&self) -> io::Result<Vec<Volume>> {
        let mut volumes = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                match read_json(&path) {
                    Ok(volume) => volumes.extend(volume),
                    Err(error) => tracing::error!(file = %path.display(), %error, "a volume's record can't be read"),
                }
            }
        }
        Ok(volumes)
    }

    /// Writes a record.
    pub fn put(&self, volume: &Volume) -> io::Result<()> {
        write_json(&self.file(&volume.id), volume)
    }

    /// Removes a record; none is fine.
    pub fn remove(&self, id: &str) -> io::Result<()> {
        remove_if_there(&self.file(id))
    }

    /// A volume's id may be any text up to 128 bytes; a file name may not.
    fn file(&self, id: &str) -> PathBuf {
        self.folder.join(file_name(id) + ".json")
    }
}

/// A file's name for a volume's id, another one for each.
pub fn file_name(id: &str) -> String {
    let mut name = String::new();
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            name.push(char::from(byte));
        } else {
            // Writing to a String can't fail.
            let _ = write!(name, "_{byte:02x}");
        }
    }
    name.truncate(240);
    name
}

/// Reads a JSON file; none when it is not there.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a JSON file, whole or not at all.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    file.write_all(&serde_json::to_vec_pretty(value)?)?;
    file.sync_all()?;
    fs::rename(&new, path)
}

/// Removes a file; none is fine.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(id: &str) -> Volume {
        Volume {
            id: id.into(),
            dataset: "training/images".into(),
            dataset_uid: "u".into(),
            catalog_id: "c".into(),
            session: "s".into(),
            shown: Shown::Tree { slot: Some(7) },
            staging_path: "/s".into(),
            cache_root: "/c".into(),
            cache: "/c/a.b".into(),
            memory: None,
            node_socket: "/r/a.b.sock".into(),
            files: 1,
            bytes: 2,
            path: PathBuf::new(),
            inline: false,
            published: BTreeMap::new(),
        }
    }

    #[test]
    fn records_survive_and_a_broken_one_does_not_hide_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(&folder.path().join("volumes")).unwrap();
        for id in ["0b5e-1", "../etc/passwd", "a_2f", "a/"] {
            volumes.put(&volume(id)).unwrap();
            assert_eq!(volumes.get(id).unwrap(), Some(volume(id)));
        }
        // As an earlier version wrote it.
        let old = fs::read_to_string(folder.path().join("volumes/0b5e-1.json")).unwrap();
        let mut old: serde_json::Value = serde_json::from_str(&old).unwrap();
        old.as_object_mut().unwrap().remove("shown").unwrap();
        assert_eq!(serde_json::from_value::<Volume>(old).unwrap().shown, Shown::Overlay);
        fs::write(folder.path().join("volumes/broken.json"), "{").unwrap();
        assert_eq!(volumes.all().unwrap().len(), 4);
        volumes.remove("a/").unwrap();
        volumes.remove("a/").unwrap();
        assert_eq!(volumes.get("a/").unwrap(), None);
        assert_eq!(volumes.all().unwrap().len(), 3);
    }
}
