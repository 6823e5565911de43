//! What the fuzz targets do: everything that reads bytes of others gets any bytes, and must refuse or take them without a panic, a hang or
//! memory out of proportion; where there is more to hold (what is read is written back alike, no path leaves the tree) it is asserted.
//!
//! A target is a module with `run`, which takes the bytes, and `seeds`, which gives valid ones to begin with; they are written into the
//! corpus folder at the start of a run, so that none are checked in.

pub mod catalog;
pub mod catalog_image;
pub mod local_socket;
pub mod node_api;
pub mod object_paths;
pub mod runtime_yaml;
pub mod s3_error;
pub mod s3_list;
pub mod scratch;
pub mod store_record;

pub use libfuzzer_sys;

/// The `main` of a target.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        $crate::libfuzzer_sys::fuzz_target!(
            init: $crate::plant(&$crate::$name::seeds()),
            |data: &[u8]| $crate::$name::run(data)
        );
    };
}

/// Writes the seeds into the first folder on the command line, the corpus; there is none when a finding is replayed.
pub fn plant(seeds: &[Vec<u8>]) {
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let Some(folder) = folder.map(std::path::PathBuf::from).filter(|folder| folder.is_dir()) else { return };
    for (number, seed) in seeds.iter().enumerate() {
        let path = folder.join(format!("seed-{number}"));
        assert!(std::fs::write(&path, seed).is_ok(), "the seed {} can't be written", path.display());
    }
}
