//! A node's identity: a UUID in its cache folder, so that storage that moves to another pod is still the same member.

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

use forebay_protocol::layout::CacheLayout;
use uuid::Uuid;

/// The UUID in the folder; folder and UUID are made if need be.
pub fn of_folder(layout: &CacheLayout) -> io::Result<String> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(layout.root())?;
    let path = layout.node_id();
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let id = text.trim().parse::<Uuid>().map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{} holds no UUID: {error}", path.display()))
            })?;
            Ok(id.to_string())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = Uuid::new_v4().to_string();
            let draft = path.with_extension("new");
            let mut file =
                std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
            writeln!(file, "{id}")?;
            file.sync_all()?;
            std::fs::rename(&draft, &path)?;
            Ok(id)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_keeps_its_identity() {
        let folder = tempfile::tempdir().unwrap();
        let layout = CacheLayout::new(folder.path().join("a/b"));
        let id = of_folder(&layout).unwrap();
        assert_eq!(of_folder(&layout).unwrap(), id);
        std::fs::write(layout.node_id(), "nonsense").unwrap();
        assert!(of_folder(&layout).is_err());
    }
}
